// Package remotewasm makes local what another control plane, the upstream of an Envoy,
// says of Wasm modules that are elsewhere. An extension config (ECDS) whose code is remote,
// be it for HTTP or for connections, a message or a TypedStruct, goes on to Envoy with the
// module in a file of this machine, and so does a listener with such filters in it. What
// Istio says to its own agent in variables of the plugin's VM, a pull secret among it, is
// gone by and taken out.
//
// The rules are those of chandler's own plugins:
//
//   - A module is asked for once. It is asked for anew when the resource names another one
//     or, under the pull policy Always (also: no tag, or "latest"), when the plugin's
//     version in the upstream changes; of an upstream that tells none, its content.
//   - Until a module is here Envoy keeps what it has. Where it has nothing its listener is
//     held, for a bounded time; then what failStrategy says stands in: nothing for
//     FAIL_OPEN, else a denial. The module is asked for again and again all the same, and
//     replaces the stand-in when it comes.
//   - What was in force stays on disk, and what resources meant by it is kept, so that an
//     Envoy and an agent that start anew need neither registry nor upstream.
//   - A module that Envoy refuses is replaced by its stand-in where nothing else is in
//     force.
//
// A listener goes on as a whole: while a module that is new to it is missing, Envoy keeps
// the listener as it was, with all else that is new in it. Where Envoy has nothing, stand-ins
// are for those modules alone that are missing, but for all if Envoy refuses the listener.
// Access logs are left out where something would stand in. Wasm in places that are not looked
// into is told of, and Envoy fetches it.
//
// Decisions are those of state, which is given the time and does nothing itself. A Keeper
// is the shell around it; how a module is brought to disk is its Fetcher's business.
package remotewasm

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/xds/relay"
)

// Module is a module on disk that stays there until it is released; *store.Lease is one.
type Module interface {
	Path() string
	Digest() chandler.ModuleDigest
	Release()
}

// Request asks for a module. It may hold a secret and is no text for logs.
type Request struct {
	Name      string // of a resource that asks for it
	Reference chandler.Reference
	SHA256    string
	Cluster   string // of the upstream, by which Envoy would go there
	// PullSecret is the content of a .dockerconfigjson; nil: none is to be shown.
	PullSecret []byte `json:"-"`
	// Timeout is what one try may take, zero if the resource does not say; the others are
	// the first pause between two and the longest one.
	Timeout, RetryBase, RetryMax time.Duration
	Attempt                      uint32 // 1 is the first
}

// Failure is why a module is not here.
type Failure struct {
	Problem chandler.Problem
	// Temporary: it may pass by itself soon. RetryAfter is what the server asks for.
	Temporary  bool
	RetryAfter time.Duration
	// Lost: it was to be on disk, and is not.
	Lost bool
}

// Fetcher brings modules to disk. Its methods may be called by several goroutines.
type Fetcher interface {
	// Fetch brings one from where it is, and judges whether it may run.
	Fetch(context.Context, *Request) (Module, *Failure)
	// Hold gives one that is on disk already.
	Hold(chandler.ModuleDigest) (Module, *Failure)
}

// Results of conversions, as Istio's agent counts them.
const (
	Success         = "success"
	NoRemoteLoad    = "no_remote_load"
	UnreadableWasm  = "unmarshal_failure"
	FetchFailed     = "fetch_failure"
	NoPlaceToFetch  = "miss_remote_fetch_hint"
	savePace        = time.Second // what is fetched and taken together is written together
	saveRetry       = 5 * time.Second
	tooManyEvery    = time.Minute // is said that there are too many
	neverSoonerThan = time.Hour
)

// The type URLs of listeners and of clusters.
const (
	ListenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
	ClusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
)

// Config is what a Keeper needs. Type, Fetcher and Changed are required.
type Config struct {
	// Type is the type URL of its resources, attach.ExtensionConfigType or ListenerType.
	Type    string
	Fetcher Fetcher
	// Changed is told of names of resources for which Transform may answer otherwise. It is
	// called by Run.
	Changed func(names ...string)
	// Starting tells whether Envoy's listeners are not open yet; nil: they are.
	Starting func() bool
	// Dir is where is kept what resources meant; empty: nowhere. FS is the operating
	// system's when nil.
	Dir string
	FS  durable.FS
	// Converted counts a resource by what became of it, and how long that took; nil:
	// nobody does.
	Converted func(result string, took time.Duration)
	Log       *slog.Logger
}

// Keeper makes modules local. Its methods but Run are quick and may be called by several
// goroutines, from hooks of a relay too.
type Keeper struct {
	cfg  Config
	kick chan struct{}

	mu        sync.Mutex
	state     *state
	cancels   map[*source]context.CancelFunc
	tooMany   time.Time // was said
	elsewhere elsewhere
	flights   sync.WaitGroup

	// Of Run alone: when what is known is to be written, zero if it is, and when it was.
	saveAt, saved time.Time
}

// New gives a keeper that remembers what the one before it wrote into Dir. It fetches
// nothing before Run. If Envoy is not the one that was served then, Another is to be called
// first.
func New(cfg Config) *Keeper {
	if cfg.FS == nil {
		cfg.FS = durable.OS()
	}
	if cfg.Starting == nil {
		cfg.Starting = func() bool { return false }
	}
	if cfg.Converted == nil {
		cfg.Converted = func(string, time.Duration) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	k := &Keeper{cfg: cfg, kick: make(chan struct{}, 1), state: newState(rand.Float64), cancels: map[*source]context.CancelFunc{}, elsewhere: elsewhere{}}
	records, err := readRecords(cfg.FS, cfg.Dir, cfg.Type)
	if err != nil {
		cfg.Log.Warn("what remote modules of the control plane meant is not known any more; they are asked for anew", "error", err)
	}
	k.state.restore(records, time.Now())
	return k
}

// Transform is for resources of the keeper's type: a relay.Transform.
func (k *Keeper) Transform(res relay.Resource) (body []byte, ready bool) {
	resource := &anypb.Any{TypeUrl: res.Type, Value: res.Body}
	k.lookElsewhere(res.Name, resource)
	r, err := attach.ReadRemote(resource)
	if err != nil || r == nil {
		return k.asItIs(res, resource, err), true
	}
	for _, w := range r.Wasm {
		w.Name = cmp.Or(res.Name, w.Name)
	}
	name := r.Wasm[0].Name
	now, patience := time.Now(), servingPatience
	if k.cfg.Starting() {
		patience = startingPatience
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	defer k.wake()
	paths, what := k.state.give(name, r, patience, now)
	if k.state.names[name] == nil || len(r.Wasm) > maxModules {
		k.sayTooMany(name, now)
	}
	k.count(name, r, what, now)
	if what == held {
		return nil, false
	}
	return r.Local(paths).Value, true
}

// sayTooMany tells of a resource that is stood in for because of the limits, now and then.
func (k *Keeper) sayTooMany(name string, now time.Time) {
	if !k.tooMany.IsZero() && now.Sub(k.tooMany) < tooManyEvery {
		return
	}
	k.tooMany = now
	k.cfg.Log.Error("a module of the control plane is not fetched, and its stand-in is in force", "resource", chandler.Printable(name, 256),
		"error", chandler.Problemf(chandler.CodeXDSLimit, "", "give the proxy fewer plugins, and names that are shorter",
			"at most %d extension configs and listeners with remote modules are made local, of names up to %d bytes and with %d modules each", maxNames, maxName, maxModules))
}

// lookElsewhere notes in which fields of a resource Wasm stands that is not made local.
func (k *Keeper) lookElsewhere(name string, resource *anypb.Any) {
	fields := attach.WasmElsewhere(resource)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.elsewhere.look(name, fields, k.cfg.Log)
}

// asItIs is for what is not remote, and for what cannot be read, which Envoy will refuse.
func (k *Keeper) asItIs(res relay.Resource, resource *anypb.Any, err error) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	defer k.wake()
	k.state.leave(res.Name, time.Now())
	if err != nil {
		k.cfg.Converted(UnreadableWasm, 0)
		return res.Body
	}
	public, isWasm := attach.Public(resource)
	if isWasm {
		k.cfg.Converted(NoRemoteLoad, 0)
	}
	if public != nil {
		return public.Value
	}
	return res.Body
}

// Discreet gives a resource as it may be kept on disk: without pull secrets. One that had
// one is to be asked for anew of the upstream as soon as that is there.
func Discreet(typeURL string, body []byte) (kept []byte, hadSecret bool) {
	resource := &anypb.Any{TypeUrl: typeURL, Value: body}
	r, err := attach.ReadRemote(resource)
	switch {
	case err != nil:
		return body, false
	case r != nil && r.Secret():
		return r.Discreet().Value, true
	case r == nil:
		if public, _ := attach.Public(resource); public != nil {
			return public.Value, false
		}
	}
	return body, false
}

// count counts what became of a resource, once for each that comes.
func (k *Keeper) count(name string, r *attach.Remote, what answer, now time.Time) {
	e := k.state.names[name]
	if e == nil || e.counted {
		return
	}
	switch {
	case what == local:
		k.cfg.Converted(Success, now.Sub(e.since))
	case slices.ContainsFunc(r.Wasm, func(w *attach.RemoteWasm) bool { return w.Nowhere }):
		k.cfg.Converted(NoPlaceToFetch, 0)
	case slices.ContainsFunc(r.Wasm, func(w *attach.RemoteWasm) bool { return w.Problem != nil }):
		k.cfg.Converted(FetchFailed, 0)
	default:
		return
	}
	e.counted = true
}

// Tell takes what Envoy did, as a relay tells it.
func (k *Keeper) Tell(ev relay.Event) {
	if ev.Type != k.cfg.Type {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	defer k.wake()
	now := time.Now()
	for _, name := range ev.Acked {
		k.state.acked(name)
	}
	for _, name := range ev.Refused {
		if k.cfg.Type == ListenerType && !attach.RefusesModule(ev.Words, name) {
			k.state.spared(name)
			continue
		}
		k.state.rejected(name, now)
	}
	// Those that Envoy asks for no more may come back in a while.
	for _, name := range slices.Concat(ev.Removed, ev.Left) {
		k.state.leave(name, now)
		delete(k.elsewhere, name)
	}
}

// Gave tells whether Envoy was given modules for a name.
func (k *Keeper) Gave(name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.state.names[name]
	return e != nil && e.given != (form{})
}

// Another says that Envoy is another process from now on, which has nothing yet: what is
// missing then is not held for ever, as it is for one that goes on with what it has.
func (k *Keeper) Another() {
	k.mu.Lock()
	defer k.mu.Unlock()
	defer k.wake()
	k.state.another(time.Now())
	clear(k.elsewhere)
}

// Lost says that the file of a module is gone, or corrupt.
func (k *Keeper) Lost(d chandler.ModuleDigest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	defer k.wake()
	k.state.lost(d)
}

// wake lets Run look.
func (k *Keeper) wake() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// Run brings modules until ctx ends. When it returns nothing goes on any more, and nothing
// is kept on disk. It is to be called once.
func (k *Keeper) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		timer.Reset(k.turn(ctx))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-k.kick:
		}
	}
	k.flights.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.saveAt.IsZero() || k.state.todo.save {
		k.save(k.state.records(), time.Now())
	}
	for _, m := range k.state.take().release {
		m.Release()
	}
	for s := range k.held() {
		s.module.Release()
		s.module = nil
	}
}

// held are the sources whose modules are here.
func (k *Keeper) held() map[*source]bool {
	held := map[*source]bool{}
	for _, e := range k.state.names {
		for _, s := range e.wanted {
			if s.ready() {
				held[s] = true
			}
		}
	}
	return held
}

// turn does what is to be done, and tells for how long that was all.
func (k *Keeper) turn(ctx context.Context) time.Duration {
	now := time.Now()
	k.mu.Lock()
	next := k.state.step(now)
	todo := k.state.take()
	var records []record
	if todo.save && k.saveAt.IsZero() {
		k.saveAt = later(now, k.saved.Add(savePace))
	}
	due := !k.saveAt.IsZero() && !now.Before(k.saveAt)
	if due {
		records = k.state.records()
	}
	for _, s := range todo.start {
		k.fly(ctx, s)
	}
	for _, s := range todo.cancel {
		if cancel := k.cancels[s]; cancel != nil {
			cancel()
		}
	}
	k.mu.Unlock()
	for _, n := range todo.told {
		k.log(n)
	}
	if len(todo.changed) > 0 {
		k.cfg.Changed(slices.Sorted(maps.Keys(todo.changed))...)
	}
	if due {
		k.save(records, now)
	}
	// What replaces it is here, and Envoy is told.
	for _, m := range todo.release {
		m.Release()
	}
	return k.until(next, now)
}

func (k *Keeper) until(next, now time.Time) time.Duration {
	wait := neverSoonerThan
	for _, t := range []time.Time{next, k.saveAt} {
		if !t.IsZero() {
			wait = min(wait, max(0, t.Sub(now)))
		}
	}
	return wait
}

// save writes what is known; on a full disk again later.
func (k *Keeper) save(records []record, now time.Time) {
	k.saveAt, k.saved = time.Time{}, now
	if err := writeRecords(k.cfg.FS, k.cfg.Dir, k.cfg.Type, records); err != nil {
		k.cfg.Log.Error("what remote modules of the control plane mean is not written", "error", err, "retry_in", saveRetry)
		k.saveAt = now.Add(saveRetry)
	}
}

func (k *Keeper) log(n notice) {
	names := chandler.Printable(n.names[0], 256)
	if n.problem == nil {
		k.cfg.Log.Info("a module of the control plane is here", "resource", names, "of", len(n.names))
		return
	}
	k.cfg.Log.Warn("a module of the control plane cannot be had", "resource", names, "of", len(n.names),
		"code", n.problem.Code, "error", n.problem, "next_try", n.nextTry)
}

// fly brings a module. The lock is held.
func (k *Keeper) fly(ctx context.Context, s *source) {
	ctx, cancel := context.WithCancel(ctx)
	k.cancels[s] = cancel
	digest := s.digest
	var request *Request
	if s.request != nil {
		this := *s.request
		this.Attempt = s.attempt + 1
		request = &this
	}
	k.flights.Go(func() {
		defer cancel()
		m, why := k.bring(ctx, request, digest)
		k.mu.Lock()
		defer k.mu.Unlock()
		defer k.wake()
		delete(k.cancels, s)
		if why != nil && request != nil && ctx.Err() == nil {
			k.cfg.Converted(FetchFailed, 0)
		}
		k.state.fetched(s, m, why, time.Now())
	})
}

// bring gets a module from disk if it is known to have been there, else from where it is.
func (k *Keeper) bring(ctx context.Context, q *Request, digest chandler.ModuleDigest) (Module, *Failure) {
	if digest != "" {
		m, why := k.cfg.Fetcher.Hold(digest)
		if why == nil || !why.Lost || q == nil {
			return m, why
		}
	}
	return k.cfg.Fetcher.Fetch(ctx, q)
}

// Status is one module of a resource as it is now.
type Status struct {
	Name string `json:"name"` // the resource's
	// Module is where it is, without secrets, and Digest the one that is here.
	Module string                `json:"module"`
	Digest chandler.ModuleDigest `json:"digest,omitempty"`
	// InForce: Envoy has one. StandIn: something stands in its place. Refused: Envoy
	// does not take the one that is here.
	InForce bool `json:"in_force"`
	StandIn bool `json:"stand_in"`
	Refused bool `json:"refused"`
	// Elsewhere: it is no module of the resource, but Wasm in it that is not made local, for
	// which Problem says in what field.
	Elsewhere bool `json:"elsewhere,omitempty"`
	// Problem is why the newest one is not here, after so many tries, until the next.
	Problem *chandler.Problem `json:"problem,omitempty"`
	Tries   uint32            `json:"tries,omitempty"`
	NextTry time.Time         `json:"next_try,omitzero"`
}

// Status tells of all modules that resources name, in order of the resources' names, and
// then of those with Wasm that is not made local.
func (k *Keeper) Status() []Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	list := []Status{}
	for _, name := range slices.Sorted(maps.Keys(k.state.names)) {
		e := k.state.names[name]
		if !e.left.IsZero() {
			continue
		}
		for _, s := range slices.Backward(e.wanted[:e.now]) {
			one := Status{Name: name, Digest: s.digest, InForce: e.has() || e.given.has(s.digest), StandIn: e.stands && !e.given.has(s.digest),
				Problem: s.problem, Tries: s.attempt, NextTry: s.nextTry, Refused: e.refused.has(s.digest)}
			if s.request != nil {
				one.Module = s.request.Reference.Redacted()
			}
			list = append(list, one)
		}
	}
	return append(list, k.elsewhere.status()...)
}
