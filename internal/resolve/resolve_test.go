package resolve_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/resolve"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/testenv/module"
)

func TestMain(m *testing.M) { leaks.Main(m) }

// registry is a Fetcher whose tags the test moves.
type registry struct {
	mu    sync.Mutex
	tags  map[string][]byte // reference as written -> module
	down  error
	calls []string
	gate  chan struct{} // when set, a pull waits for it or its context
}

func digestOf(mod []byte) chandler.ArtifactDigest {
	return chandler.Digest[chandler.ArtifactDigest](append([]byte("manifest of "), mod...))
}

func (r *registry) find(req fetch.Request, verb string) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, verb)
	if r.down != nil {
		return nil, r.down
	}
	for ref, mod := range r.tags {
		if req.Reference.Digest != "" && req.Reference.Digest == digestOf(mod) || ref == req.Reference.String() {
			return mod, nil
		}
	}
	return nil, &fetch.Error{Problem: chandler.Problem{Code: chandler.CodeNotFound, Message: "no such tag"}}
}

func (r *registry) Resolve(_ context.Context, req fetch.Request) (fetch.Resolved, error) {
	mod, err := r.find(req, "resolve")
	if err != nil {
		return fetch.Resolved{}, err
	}
	return fetch.Resolved{Digest: digestOf(mod)}, nil
}

func (r *registry) Pull(ctx context.Context, req fetch.Request, sink fetch.Sink) (fetch.Artifact, error) {
	mod, err := r.find(req, "pull")
	if err != nil {
		return fetch.Artifact{}, err
	}
	if r.gate != nil {
		select {
		case <-r.gate:
		case <-ctx.Done():
			return fetch.Artifact{}, ctx.Err()
		}
	}
	d, size, err := sink.Ingest(bytes.NewReader(mod), "")
	if err != nil {
		return fetch.Artifact{}, err
	}
	a := fetch.Artifact{Module: d, Size: size, Blob: chandler.Digest[chandler.BlobDigest](mod), BlobSize: size}
	if req.Reference.Scheme == chandler.SchemeOCI {
		a.Digest = digestOf(mod)
	}
	return a, nil
}

func (r *registry) set(ref string, mod []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tags[ref] = mod
}

// did gives the calls since the last did.
func (r *registry) did() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := r.calls
	r.calls = nil
	return calls
}

type rig struct {
	*registry
	*resolve.Resolver
	store *store.Store
}

func newRig(t *testing.T) *rig {
	t.Helper()
	s, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	r := &registry{tags: map[string][]byte{}}
	return &rig{r, resolve.New(resolve.Config{Fetcher: r, Store: s, Now: func() time.Time { return t0 }}), s}
}

func wasm(url string, generation int64) *chandler.Plugin {
	ref, p := chandler.ParseReference(url)
	if p != nil {
		panic(p)
	}
	return &chandler.Plugin{
		Key: chandler.Key{Kind: "WasmPlugin", Namespace: "ns", Name: "n"}, UID: "u", Generation: generation,
		Type: chandler.HTTP, Wasm: &chandler.Wasm{URL: url, Reference: ref, FailStrategy: chandler.FailClose},
	}
}

func (r *rig) must(t *testing.T, p *chandler.Plugin, have *chandler.Release) chandler.Release {
	t.Helper()
	got, err := r.Resolver.Resolve(t.Context(), resolve.Request{Plugin: p, Have: have})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestReleaseOfAnImage(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("oci://reg.example/a:v1", mod)
	p := wasm("oci://reg.example/a:v1", 3)
	p.Wasm.Config, p.Phase = []byte(`{"a":1}`), chandler.PhaseAuthn
	got := r.must(t, p, nil)
	d := chandler.Digest[chandler.ModuleDigest](mod)
	if got.Program.Module.Digest != d || got.Program.Module.Size != int64(len(mod)) || got.Artifact != digestOf(mod) || got.Generation != 3 || got.UID != "u" {
		t.Errorf("release %+v", got)
	}
	if want := "oci://reg.example/a:v1@" + string(digestOf(mod)); got.Reference != want || !slices.Equal(got.Program.Module.Origins, []string{want}) {
		t.Errorf("reference %s, origins %v", got.Reference, got.Program.Module.Origins)
	}
	if got.ABI == "" || got.Verdicts[0].Judge != "static" || string(got.Config) != `{"a":1}` || got.Phase != chandler.PhaseAuthn {
		t.Errorf("release %+v", got)
	}
	if got.ID == "" || got.ID != got.WithID().ID || !r.store.Has(d) {
		t.Error("release without id, or module not in the store")
	}
}

func TestIfNotPresentKeepsTheDigestUntilTheURLChanges(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	old, moved := module.Append(), module.Deny(401)
	r.set("oci://reg.example/a:v1", old)
	r.set("oci://reg.example/a:v2", moved)
	first := r.must(t, wasm("oci://reg.example/a:v1", 1), nil)
	r.did()

	r.set("oci://reg.example/a:v1", moved)
	r.down = errors.New("registry is away")
	p := wasm("oci://reg.example/a:v1", 2)
	p.Wasm.Config = []byte(`{}`)
	second := r.must(t, p, &first)
	if calls := r.did(); len(calls) != 0 {
		t.Errorf("a change of configuration asked the registry: %v", calls)
	}
	if second.Artifact != first.Artifact || second.ID == first.ID || second.Generation != 2 || string(second.Config) != "{}" || second.ABI != first.ABI {
		t.Errorf("second release %+v", second)
	}

	r.down = nil
	if third := r.must(t, wasm("oci://reg.example/a:v2", 3), &second); third.Artifact == first.Artifact {
		t.Error("another url gave the old digest")
	}
	// Back to v1: what is asked for has changed, so it is resolved again.
	if fourth := r.must(t, wasm("oci://reg.example/a:v1", 4), nil); fourth.Artifact != digestOf(moved) {
		t.Error("an old digest came back")
	}
}

func TestAlwaysResolvesAtEveryGenerationAndDownloadsOnlyWhatIsNew(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.set("oci://reg.example/a:latest", module.Append())
	first := r.must(t, wasm("oci://reg.example/a:latest", 1), nil)
	r.did()
	second := r.must(t, wasm("oci://reg.example/a:latest", 2), &first)
	if calls := r.did(); !slices.Equal(calls, []string{"resolve"}) {
		t.Errorf("an unmoved tag cost %v", calls)
	}
	if second.Artifact != first.Artifact || second.Program.Module.Digest != first.Program.Module.Digest {
		t.Error("an unmoved tag gave other digests")
	}
	r.set("oci://reg.example/a:latest", module.Deny(403))
	if third := r.must(t, wasm("oci://reg.example/a:latest", 3), &second); third.Artifact == first.Artifact {
		t.Error("the tag moved and nobody noticed")
	}
}

func TestRestartNeedsNoDownload(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.set("oci://reg.example/a:v1", module.Append())
	first := r.must(t, wasm("oci://reg.example/a:v1", 1), nil)
	r.did()
	r.Resolver = resolve.New(resolve.Config{Fetcher: r.registry, Store: r.store})
	r.Know([]chandler.Release{first})
	other := wasm("oci://reg.example/a:v1", 1)
	other.UID, other.Name = "another", "another"
	r.must(t, other, nil)
	if calls := r.did(); !slices.Equal(calls, []string{"resolve"}) {
		t.Errorf("a known artifact cost %v", calls)
	}
}

func TestMissingModuleComesBackByDigest(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	old := module.Append()
	r.set("oci://reg.example/a:v1", old)
	first := r.must(t, wasm("oci://reg.example/a:v1", 1), nil)
	s, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r.Resolver = resolve.New(resolve.Config{Fetcher: r.registry, Store: s})
	r.set("oci://reg.example/a:v1", module.Deny(401))
	r.set("oci://reg.example/kept", old)
	second := r.must(t, wasm("oci://reg.example/a:v1", 2), &first)
	if second.Artifact != first.Artifact || !s.Has(first.Program.Module.Digest) {
		t.Errorf("second release %+v", second)
	}
	if err := r.Restore(t.Context(), wasm("oci://reg.example/a:v1", 1), &first, nil); err != nil {
		t.Error(err)
	}

	// Over HTTP there is no asking by digest: other bytes are no substitute.
	r.set("http://h.example/x.wasm", old)
	web := r.must(t, wasm("http://h.example/x.wasm", 1), nil)
	s2, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s2.Close()
	r.Resolver = resolve.New(resolve.Config{Fetcher: r.registry, Store: s2})
	r.set("http://h.example/x.wasm", module.Deny(401))
	_, err = r.Resolver.Resolve(t.Context(), resolve.Request{Plugin: wasm("http://h.example/x.wasm", 2), Have: &web})
	var problem *chandler.Problem
	if !errors.As(err, &problem) || problem.Code != chandler.CodeDigestMismatch {
		t.Errorf("other bytes at the url: %v", err)
	}
}

// A digest in a URL is no proof of being allowed to have what is behind it.
func TestPinnedPluginsShareOnlyWithTheSameCredentials(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	url := "oci://reg.example/a@" + string(digestOf(mod))
	r.set("oci://reg.example/a:v1", mod)
	pulls := func(namespace, secret string) int {
		p := wasm(url, 1)
		p.Namespace, p.Wasm.PullSecret = namespace, secret
		r.must(t, p, nil)
		return len(slices.DeleteFunc(r.did(), func(c string) bool { return c != "pull" }))
	}
	for i, c := range []struct {
		namespace, secret string
		want              int
	}{{"a", "s", 1}, {"a", "s", 0}, {"b", "s", 1}, {"a", "", 1}, {"b", "", 0}} {
		if got := pulls(c.namespace, c.secret); got != c.want {
			t.Errorf("%d: %d downloads, want %d", i, got, c.want)
		}
	}
}

func TestRefusedModuleMakesNoRelease(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for name, c := range map[string]struct {
		mod  []byte
		code chandler.Code
	}{
		"empty":       {[]byte{}, chandler.CodeWasmEmpty},
		"not wasm":    {[]byte("#!/bin/sh\n"), chandler.CodeWasmMagic},
		"truncated":   {module.Append()[:60], ""},
		"unknown ABI": {module.Append(module.ABI("9_9_9")), chandler.CodeWasmABI},
		"import":      {module.MissingImport(), chandler.CodeWasmImport},
	} {
		url := "oci://reg.example/" + fmt.Sprint(len(c.mod)) + ":v1"
		r.set(url, c.mod)
		_, err := r.Resolver.Resolve(t.Context(), resolve.Request{Plugin: wasm(url, 1)})
		var problem *chandler.Problem
		if !errors.As(err, &problem) || c.code != "" && problem.Code != c.code {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if a := (resolve.Attempts{}).After(wasm(url, 1), err, t0, 1); a.Problem.Field != "spec.url" || a.Next.Sub(t0) != time.Second {
			t.Errorf("%s: %+v", name, a)
		}
	}
}

func TestNothingIsFetchedForLuaAndFiles(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	lua := &chandler.Plugin{UID: "u", Generation: 1, Type: chandler.HTTP, Lua: &chandler.Lua{InlineCode: "x"}}
	if got := r.must(t, lua, nil); got.Program.Lua.InlineCode != "x" || got.ID == "" {
		t.Errorf("lua: %+v", got)
	}
	file := wasm("file:///opt/x.wasm", 1)
	file.Wasm.SHA256 = chandler.Digest[chandler.ModuleDigest]([]byte("x")).Hex()
	got := r.must(t, file, nil)
	if f := got.Program.File; f.Path != "/opt/x.wasm" || f.Digest != chandler.Digest[chandler.ModuleDigest]([]byte("x")) {
		t.Errorf("file: %+v", f)
	}
	if calls := r.did(); len(calls) != 0 {
		t.Errorf("fetched: %v", calls)
	}
}

func TestOneDownloadForTenPlugins(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"oci://reg.example/a:v1", "http://h.example/a.wasm"} {
		r := newRig(t)
		r.set(url, module.Append())
		r.gate = make(chan struct{})
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				p := wasm(url, 1)
				p.Name, p.UID = fmt.Sprint(i), fmt.Sprint(i)
				if _, err := r.Resolver.Resolve(t.Context(), resolve.Request{Plugin: p}); err != nil {
					t.Error(err)
				}
			})
		}
		eventually(t, func() bool { r.mu.Lock(); defer r.mu.Unlock(); return slices.Contains(r.calls, "pull") })
		close(r.gate)
		wg.Wait()
		if n := len(slices.DeleteFunc(r.did(), func(c string) bool { return c != "pull" })); n != 1 && url[:3] == "oci" {
			t.Errorf("%s: %d downloads", url, n)
		}
	}
}

// F57: a download ends with the last who wants it, not with the first.
func TestFault_F57_CancelledDownload(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.set("oci://reg.example/a:v1", module.Append())
	r.gate = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	run := func(ctx context.Context, done chan error) {
		_, err := r.Resolver.Resolve(ctx, resolve.Request{Plugin: wasm("oci://reg.example/a:v1", 1)})
		done <- err
	}
	go run(ctx, first)
	eventually(t, func() bool { r.mu.Lock(); defer r.mu.Unlock(); return slices.Contains(r.calls, "pull") })
	go run(t.Context(), second)
	eventually(t, func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.calls) == 3 })
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	close(r.gate)
	if err := <-second; err != nil {
		t.Errorf("the other one: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	r.gate = make(chan struct{})
	if _, err := r.Resolver.Resolve(ctx, resolve.Request{Plugin: wasm("http://h.example/none.wasm", 1)}); err == nil {
		t.Error("cancelled, and no error")
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-deadline:
			t.Fatal("did not come to pass")
		case <-time.After(time.Millisecond):
		}
	}
}
