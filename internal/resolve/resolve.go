// Package resolve finds out what a plugin means: which bytes its URL stands for
// right now, that they are a module which can run, and so its release. When that
// is due, and what follows from a failure, is pure (Due, Attempts); the work is a
// Resolver's.
//
// It keeps no records and decides nothing about proxies.
package resolve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/assign"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/proxywasm"
	"chandler.dev/chandler/internal/store"
)

// Fetcher is what is used of package fetch.
type Fetcher interface {
	Resolve(context.Context, fetch.Request) (fetch.Resolved, error)
	Pull(context.Context, fetch.Request, fetch.Sink) (fetch.Artifact, error)
}

// Config holds what a Resolver works with. Fetcher and Store are required.
type Config struct {
	Fetcher Fetcher
	Store   *store.Store
	// Schemas gives the configuration's schema that an artifact carries, up to 256 KiB of
	// text, none if it carries none. Nil: nobody is asked.
	Schemas func(context.Context, fetch.Request) ([]byte, error)
	// Now is the clock, time.Now when nil.
	Now func() time.Time
	Log *slog.Logger
}

// Resolver turns plugins into releases. It is safe for concurrent use; many
// plugins that want the same artifact at the same time share one download.
type Resolver struct {
	cfg     Config
	flights flights

	mu     sync.Mutex
	known  map[chandler.ArtifactDigest]artifact // manifests seen
	proofs map[string]bool                      // who fetched what from where
}

// artifact is what was pulled, and is in the store.
type artifact struct {
	fetch.Artifact
	schema *chandler.ConfigSchema
	// unusable says why there is none of what the artifact carries.
	unusable string
}

// maxKnown bounds known and proofs. What is forgotten costs a download.
const maxKnown = 4096

// New gives a resolver. It starts nothing.
func New(cfg Config) *Resolver {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Resolver{cfg: cfg, known: map[chandler.ArtifactDigest]artifact{}, proofs: map[string]bool{}}
}

// Request asks for one plugin.
type Request struct {
	Plugin *chandler.Plugin
	// Have is the newest release of the plugin, or of the one that had its key
	// before; nil: none. Its digests are kept where the pull policy says so.
	Have        *chandler.Release
	Credentials *fetch.Credentials
	// ConfigFrom are the secrets' values that belong to the plugin's configuration.
	ConfigFrom []chandler.SecretVersion
}

// Resolve gives the release of a plugin. An error holds a *fetch.Error or a
// *chandler.Problem when it is about the plugin; any other is about this machine
// or ctx.
func (r *Resolver) Resolve(ctx context.Context, req Request) (chandler.Release, error) {
	p := req.Plugin
	release := chandler.Release{
		Key: p.Key, UID: p.UID, Generation: p.Generation,
		Behaviour:  assign.Behaviour(p),
		ConfigFrom: req.ConfigFrom,
		ResolvedAt: r.cfg.Now().UTC(),
	}
	switch {
	case p.Lua != nil:
		release.Program.Lua = p.Lua
		return release.WithID(), nil
	case p.Wasm == nil:
		return chandler.Release{}, chandler.Problemf(chandler.CodeSpecRequired, "spec", "", "neither a module nor Lua")
	}
	release.Asked = asked(p.Wasm)
	if p.Wasm.Reference.Scheme == chandler.SchemeFile {
		release.Reference = p.Wasm.Reference.String()
		release.Program.File = &chandler.LocalFile{Path: p.Wasm.Reference.Path}
		if pin := p.Wasm.SHA256; pin != "" {
			release.Program.File.Digest = chandler.ModuleDigest("sha256:" + pin)
		}
		return release.WithID(), nil
	}
	a, err := r.artifact(ctx, req)
	if err != nil {
		return chandler.Release{}, err
	}
	m, err := r.inspect(a.Module)
	if err != nil {
		return chandler.Release{}, err
	}
	release.ABI, release.CodeSize = m.ABI, m.CodeBytes
	release.Reference = a.Reference
	release.Artifact, release.Blob, release.BlobSize = a.Digest, a.Blob, a.BlobSize
	release.Program.Module = &chandler.Module{Digest: a.Module, Size: a.Size}
	if p.Wasm.Reference.Scheme == chandler.SchemeOCI {
		release.Program.Module.Origins = []string{a.Reference}
	}
	release.Verdicts = []chandler.Verdict{{Judge: chandler.JudgeStatic, EnvoyVersion: proxywasm.EnvoyVersion, At: release.ResolvedAt}}
	if release.Schema = a.schema; a.unusable != "" {
		release.Verdicts = append(release.Verdicts, chandler.Verdict{Judge: chandler.JudgeSchema, Unusable: a.unusable, At: release.ResolvedAt})
	}
	return release.WithID(), nil
}

// asked is what a release must have been made for to have its digests kept.
func asked(w *chandler.Wasm) string {
	if w.SHA256 == "" {
		return w.Reference.String()
	}
	return w.Reference.String() + " " + w.SHA256
}

// Kept tells whether the digests of a release stand for p as well, so that
// nobody has to be asked: the URL and the pin are the same, a lock file says nothing
// else, and the policy is not to pull always.
func Kept(p *chandler.Plugin, have *chandler.Release) bool {
	return p.Wasm != nil && have != nil && have.Key == p.Key && have.Program.Module != nil &&
		have.Asked == asked(p.Wasm) && AsLocked(p, have) && p.Wasm.EffectivePullPolicy() != chandler.PullAlways
}

// AsLocked tells whether a release is of what a lock file says that the plugin's url
// means; it is where none says anything.
func AsLocked(p *chandler.Plugin, have *chandler.Release) bool {
	if p.Wasm == nil || p.Wasm.Locked == "" || have.Program.Module == nil {
		return true
	}
	got := string(have.Program.Module.Digest)
	if p.Wasm.Reference.Scheme == chandler.SchemeOCI {
		got = string(have.Artifact)
	}
	return got == "sha256:"+p.Wasm.Locked
}

// artifact brings the module into the store and says what it came in.
func (r *Resolver) artifact(ctx context.Context, req Request) (artifact, error) {
	want := fetch.Request{Reference: req.Plugin.Wasm.Reference, SHA256: req.Plugin.Wasm.SHA256, Credentials: req.Credentials}
	if Kept(req.Plugin, req.Have) {
		a := recorded(req.Have)
		if r.holds(a) {
			return a, nil
		}
		return r.again(ctx, want, a, who(req.Plugin))
	}
	locked := req.Plugin.Wasm.Locked
	switch {
	case locked == "":
	case want.Reference.Scheme == chandler.SchemeOCI:
		want.Reference.Digest = chandler.ArtifactDigest("sha256:" + locked)
	default:
		want.SHA256 = locked
	}
	a, err := r.pull(ctx, want, who(req.Plugin))
	if locked != "" {
		err = notLocked(err, req.Plugin.Wasm)
	}
	return a, err
}

// notLocked tells of a lock file that names what cannot be had.
func notLocked(err error, w *chandler.Wasm) error {
	var failed *fetch.Error
	if !errors.As(err, &failed) {
		return err
	}
	switch code := failed.Problem.Code; code {
	case chandler.CodeNotFound, chandler.CodeDigestMismatch:
		found := "which is not there"
		if code == chandler.CodeDigestMismatch {
			found = "and something else is there"
		}
		return chandler.Problemf(code, "", "run chandler lock again, or push what it names",
			"the lock file says that %s is sha256:%s, %s", w.Reference.Redacted(), w.Locked, found)
	}
	return err
}

// who names the credentials of a plugin: those of its pull secret, or the
// operator's, which serve everybody.
func who(p *chandler.Plugin) string {
	if p.Wasm.PullSecret == "" {
		return ""
	}
	return p.Namespace + "/" + p.Wasm.PullSecret
}

func recorded(have *chandler.Release) artifact {
	a := artifact{schema: have.Schema, Artifact: fetch.Artifact{
		Reference: have.Reference, Digest: have.Artifact, Blob: have.Blob, BlobSize: have.BlobSize,
		Module: have.Program.Module.Digest, Size: have.Program.Module.Size,
	}}
	if a.schema == nil {
		a.unusable = have.SchemaUnusable()
	}
	return a
}

// again fetches bytes that were recorded and are no longer in the store. A tag
// that moved meanwhile changes nothing: the artifact is asked for by its digest.
func (r *Resolver) again(ctx context.Context, want fetch.Request, rec artifact, who string) (artifact, error) {
	if want.Reference.Scheme == chandler.SchemeOCI && rec.Digest != "" {
		want.Reference.Digest, want.SHA256 = rec.Digest, ""
	}
	got, err := r.pull(ctx, want, who)
	if err != nil {
		return artifact{}, err
	}
	if got.Module != rec.Module {
		return artifact{}, chandler.Problemf(chandler.CodeDigestMismatch, "", "change the url or its pin to take the new module",
			"the url now gives module %s; %s was resolved", got.Module, rec.Module)
	}
	rec.schema, rec.unusable = got.schema, got.unusable // nobody looked in earlier versions
	return rec, nil
}

// Restore brings the module of a plugin's release, and the schema that came with it,
// back into the store when they are not there; p may be of another generation than
// the release.
func (r *Resolver) Restore(ctx context.Context, p *chandler.Plugin, have *chandler.Release, c *fetch.Credentials) error {
	if have.Program.Module == nil || p.Wasm == nil || r.holds(recorded(have)) {
		return nil
	}
	ref, problem := chandler.ParseReference(have.Reference)
	if problem != nil {
		return problem
	}
	_, err := r.again(ctx, fetch.Request{Reference: ref, Credentials: c}, recorded(have), who(p))
	return err
}

// pull finds the artifact behind a reference and downloads it unless its module
// is here already.
//
// What one plugin may have, another may not. Asking the registry what a tag means
// proves it, with the plugin's own credentials; a digest in the reference proves
// nothing, so then only those who bring the same credentials share.
func (r *Resolver) pull(ctx context.Context, want fetch.Request, who string) (artifact, error) {
	if want.Reference.Scheme != chandler.SchemeOCI {
		return r.flights.do(ctx, want.Reference.String()+" "+want.SHA256, func(ctx context.Context) (artifact, error) { return r.download(ctx, want) })
	}
	tagged := want.Reference.Digest == "" && want.SHA256 == ""
	res, err := r.cfg.Fetcher.Resolve(ctx, want)
	if err != nil {
		return artifact{}, err
	}
	want.Reference.Digest, want.SHA256 = res.Digest, "" // the tag may move meanwhile
	key := want.Reference.Host + "/" + want.Reference.Repository + "@" + string(res.Digest)
	if !tagged {
		key += " " + who
	}
	// The flight itself looks at what is known: who found nothing before it may come when
	// another's flight has just ended.
	a, err := r.flights.do(ctx, key, func(ctx context.Context) (artifact, error) {
		if a, ok := r.remembered(res.Digest, key, tagged); ok {
			return a, nil
		}
		a, err := r.download(ctx, want)
		if err == nil {
			r.remember(a, key)
		}
		return a, err
	})
	if err != nil {
		return artifact{}, err
	}
	a.Reference = want.Reference.String()
	return a, nil
}

func (r *Resolver) download(ctx context.Context, want fetch.Request) (a artifact, err error) {
	if a.Artifact, err = r.cfg.Fetcher.Pull(ctx, want, r.cfg.Store); err == nil && a.Digest != "" && r.cfg.Schemas != nil {
		want.Reference.Digest, want.SHA256 = a.Digest, ""
		a.schema, a.unusable, err = r.schema(ctx, want)
	}
	return a, err
}

// schema brings the schema that an artifact carries into the store. One that cannot be
// had is no reason not to have the module: that says so, but that it may be had soon.
func (r *Resolver) schema(ctx context.Context, want fetch.Request) (s *chandler.ConfigSchema, unusable string, err error) {
	text, err := r.cfg.Schemas(ctx, want)
	var failed *fetch.Error
	switch {
	case errors.As(err, &failed) && !failed.Temporary:
		return nil, chandler.Printable(failed.Problem.Message, 512), nil
	case err != nil || len(text) == 0:
		return nil, "", err
	}
	d, size, err := r.cfg.Store.Ingest(bytes.NewReader(text), "")
	if err != nil {
		return nil, "", err
	}
	return &chandler.ConfigSchema{Digest: chandler.SchemaDigest(d), Size: size}, "", nil
}

// holds tells whether all that was recorded of an artifact is in the store.
func (r *Resolver) holds(a artifact) bool {
	return r.has(a.Module) && (a.schema == nil || r.has(chandler.ModuleDigest(a.schema.Digest)))
}

func (r *Resolver) has(d chandler.ModuleDigest) bool {
	lease, err := r.cfg.Store.Acquire(d)
	if err != nil {
		return false
	}
	lease.Release()
	return true
}

// remembered gives an artifact that was seen and whose module is in the store;
// to those who did not prove that they may have it only if they did before.
func (r *Resolver) remembered(d chandler.ArtifactDigest, key string, proven bool) (artifact, bool) {
	r.mu.Lock()
	a, ok := r.known[d]
	proven = proven || r.proofs[key]
	r.mu.Unlock()
	return a, ok && proven && r.holds(a)
}

func (r *Resolver) remember(a artifact, key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.known) >= maxKnown {
		clear(r.known)
	}
	if len(r.proofs) >= maxKnown {
		clear(r.proofs)
	}
	r.known[a.Digest] = a
	r.proofs[key] = true
}

// Know tells of what releases recorded, so that a restart costs no download.
func (r *Resolver) Know(releases []chandler.Release) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range releases {
		if rel := &releases[i]; rel.Program.Module != nil && rel.Artifact != "" && len(r.known) < maxKnown {
			r.known[rel.Artifact] = recorded(rel)
		}
	}
}

// inspect is the static verdict on a module in the store.
func (r *Resolver) inspect(d chandler.ModuleDigest) (m proxywasm.Module, err error) {
	lease, err := r.cfg.Store.Acquire(d)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("module %s left the store while it was looked at", d)
		}
		return m, err
	}
	defer lease.Release()
	f, err := lease.Open()
	if err != nil {
		return m, err
	}
	defer f.Close()
	m, err = proxywasm.Inspect(&readerAt{r: f}, lease.Size())
	if err != nil {
		return m, err
	}
	for i := range m.Warnings {
		r.cfg.Log.Warn("module with a warning", "module", d, "code", m.Warnings[i].Code, "warning", m.Warnings[i].Error())
	}
	return m, nil
}

// readerAt reads at offsets of a file that can seek.
type readerAt struct {
	mu sync.Mutex
	r  io.ReadSeeker
}

func (a *readerAt) ReadAt(p []byte, off int64) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, err := a.r.Seek(off, io.SeekStart); err != nil {
		return 0, err
	}
	n, err := io.ReadFull(a.r, p)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}
