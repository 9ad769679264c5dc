package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/proxywasm"
	"chandler.dev/chandler/internal/remotewasm"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/xds/relay"
	"chandler.dev/chandler/internal/xds/upstream"
)

// Patience with one try to fetch a module that Envoy's own control plane names: what the
// resource says is held within bounds.
const (
	remotePatience    = 5 * time.Minute // if it says nothing
	minRemotePatience = time.Second
	maxRemotePatience = 10 * time.Minute
)

// How long is waited for what is not there yet of a cluster, and how often is looked.
const (
	clusterPatience = 2 * time.Second
	clusterPoll     = 50 * time.Millisecond
)

// maxArtifacts bounds the artifacts whose modules are known. What is forgotten costs a
// download.
const maxArtifacts = 1024

// remoteWasm makes modules local that Envoy's own control plane names, in the agent's store.
type remoteWasm struct {
	extensions, listeners *remotewasm.Keeper
	fetcher               *remoteFetcher
	client                *fetch.Client
}

// aboutUpstream is what remote modules need to know of Envoy and its control plane.
type aboutUpstream struct {
	// starting tells whether Envoy's listeners are not open yet; nil: they are.
	starting func() bool
	// changed is told of resources that go on in another form now.
	changed func(typeURL string, names ...string)
	// find gives what the control plane has.
	find upstream.Find
}

// newRemoteWasm gives the one of an agent.
func newRemoteWasm(modules *store.Store, cfg Config, m *metrics, about aboutUpstream) *remoteWasm {
	fc := fetch.Config{Dir: cfg.Data, Hosts: cfg.Hosts, Log: cfg.Log}
	if cfg.DockerConfig != "" {
		fc.Keychain = fetch.DockerConfig(cfg.DockerConfig)
	}
	f := &remoteFetcher{store: modules, client: fetch.New(fc), metrics: m, find: about.find, log: cfg.Log,
		known: map[chandler.ArtifactDigest]foundModule{}, pulling: map[chandler.ModuleDigest]chan struct{}{}}
	for _, result := range []string{remotewasm.NoRemoteLoad, remotewasm.NoPlaceToFetch} {
		m.conversions.WithLabelValues(result)
	}
	keeper := func(typeURL string) *remotewasm.Keeper {
		return remotewasm.New(remotewasm.Config{
			Type: typeURL, Fetcher: f, Starting: about.starting, Dir: cfg.Data, Log: cfg.Log,
			Changed: func(names ...string) { about.changed(typeURL, names...) },
			Converted: func(result string, took time.Duration) {
				if result == remotewasm.Success {
					m.converted(result, took)
					return
				}
				m.conversions.WithLabelValues(result).Inc()
			},
		})
	}
	return &remoteWasm{fetcher: f, client: f.client, extensions: keeper(attach.ExtensionConfigType), listeners: keeper(listenerType)}
}

// run brings modules until ctx ends.
func (r *remoteWasm) run(ctx context.Context) {
	defer r.client.Close()
	var keepers sync.WaitGroup
	keepers.Go(func() { r.extensions.Run(ctx) })
	r.listeners.Run(ctx)
	keepers.Wait()
}

// tell, another and lost are those of both keepers.
func (r *remoteWasm) tell(ev relay.Event) {
	r.extensions.Tell(ev)
	r.listeners.Tell(ev)
}

func (r *remoteWasm) another() {
	r.extensions.Another()
	r.listeners.Another()
}

func (r *remoteWasm) lost(d chandler.ModuleDigest) {
	r.extensions.Lost(d)
	r.listeners.Lost(d)
}

func (r *remoteWasm) status() []remotewasm.Status {
	return append(r.extensions.Status(), r.listeners.Status()...)
}

// remoteFetcher is the agent's way to such modules. They come from where the resource says,
// by the cluster that it says if Envoy's control plane has that, or from a mirror: chandler's
// control plane knows nothing of them. So nobody has judged them either; what can be seen
// without running them is looked at here.
type remoteFetcher struct {
	store   *store.Store
	client  *fetch.Client
	metrics *metrics
	find    upstream.Find // nil: no cluster is known
	log     *slog.Logger

	mu      sync.Mutex
	known   map[chandler.ArtifactDigest]foundModule
	pulling map[chandler.ModuleDigest]chan struct{} // by their pins, closed at the end
}

// foundModule is what was found in an artifact.
type foundModule struct {
	module chandler.ModuleDigest
	unfit  *chandler.Problem // why it cannot run
}

// Hold gives a module that is in the store.
func (f *remoteFetcher) Hold(d chandler.ModuleDigest) (remotewasm.Module, *remotewasm.Failure) {
	lease, err := f.store.Acquire(d)
	f.metrics.lookup(err == nil)
	if err != nil {
		why := failure(err)
		why.Lost = errors.Is(err, fs.ErrNotExist)
		return nil, why
	}
	return lease, nil
}

// Fetch brings one into the store.
func (f *remoteFetcher) Fetch(ctx context.Context, q *remotewasm.Request) (remotewasm.Module, *remotewasm.Failure) {
	timeout := remotePatience
	if q.Timeout > 0 {
		timeout = min(max(q.Timeout, minRemotePatience), maxRemotePatience)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if q.Attempt > 1 {
		f.metrics.retries.Inc()
	}
	lease, err := f.fetch(ctx, q)
	if err != nil {
		return nil, failure(err)
	}
	return lease, nil
}

func failure(err error) *remotewasm.Failure {
	load := loadError(err)
	return &remotewasm.Failure{Problem: load.Problem, Temporary: load.Temporary, RetryAfter: load.RetryAfter}
}

func (f *remoteFetcher) fetch(ctx context.Context, q *remotewasm.Request) (*store.Lease, error) {
	want, err := f.request(q)
	if err == nil && want.Reference.Scheme == chandler.SchemeOCI {
		err = f.resolve(ctx, &want)
	}
	if err != nil {
		f.metrics.fetched(err)
		return nil, err
	}
	free, err := f.alone(ctx, want)
	if err != nil {
		return nil, err
	}
	defer free()
	if lease, err := f.local(q, want); lease != nil || err != nil {
		f.metrics.lookup(true)
		return lease, err
	}
	f.metrics.lookup(false)
	lease, err := f.pullBy(ctx, q.Cluster, want)
	f.metrics.fetched(err)
	return lease, err
}

// alone waits until nobody else fetches a file with the same pin: then it may be here.
func (f *remoteFetcher) alone(ctx context.Context, want fetch.Request) (free func(), err error) {
	if want.Reference.Scheme == chandler.SchemeOCI || want.SHA256 == "" {
		return func() {}, nil
	}
	module := chandler.ModuleDigest("sha256:" + want.SHA256)
	for {
		f.mu.Lock()
		before := f.pulling[module]
		if before == nil {
			ended := make(chan struct{})
			f.pulling[module] = ended
			f.mu.Unlock()
			return func() {
				f.mu.Lock()
				defer f.mu.Unlock()
				delete(f.pulling, module)
				close(ended)
			}, nil
		}
		f.mu.Unlock()
		select {
		case <-before:
		case <-ctx.Done():
			return nil, fmt.Errorf("another download of the same module goes on: %w", ctx.Err())
		}
	}
}

// pullBy brings a module from a web server by a cluster, if Envoy's control plane has that;
// otherwise in the agent's own way.
func (f *remoteFetcher) pullBy(ctx context.Context, cluster string, want fetch.Request) (*store.Lease, error) {
	if want.Reference.Scheme == chandler.SchemeOCI || cluster == "" || f.find == nil {
		return f.pull(ctx, want)
	}
	var c *upstream.Cluster
	var ok bool
	var err error
	for until := time.Now().Add(clusterPatience); ; time.Sleep(clusterPoll) { // what is of the cluster may come just now
		c, ok, err = upstream.NewCluster(cluster, want.Reference.Host, f.find, upstream.Options{Log: f.log})
		if !errors.Is(err, upstream.ErrNotYet) || time.Now().After(until) || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	if ok {
		defer c.CloseIdleConnections()
		want.Via = c
	}
	return f.pull(ctx, want)
}

// request is what the network is asked for. A secret that cannot be read is an error: to
// ask without it would hide why the answer is no.
func (f *remoteFetcher) request(q *remotewasm.Request) (fetch.Request, error) {
	want := fetch.Request{Reference: q.Reference, SHA256: q.SHA256}
	if q.PullSecret == nil || q.Reference.Scheme != chandler.SchemeOCI {
		return want, nil // a web server is shown none
	}
	secret, _, err := fetch.ParseSecret(q.PullSecret)
	var problem *chandler.Problem
	if errors.As(err, &problem) {
		return want, chandler.Problemf(problem.Code, "", problem.Hint, "the pull secret of %s cannot be used: %s", chandler.Quote(q.Name), problem.Message)
	}
	if err != nil {
		return want, err
	}
	want.Credentials = secret.For(q.Reference)
	return want, nil
}

// resolve finds what a tag means now; it may move meanwhile.
func (f *remoteFetcher) resolve(ctx context.Context, want *fetch.Request) error {
	resolved, err := f.client.Resolve(ctx, *want)
	if err == nil {
		want.Reference.Digest, want.SHA256 = resolved.Digest, ""
	}
	return err
}

// local gives a module that is here already: the one of a pin of its own bytes, or of an
// artifact of which the registry just said that whoever asks may have it, as it told what
// the tag means. A digest in the resource proves nothing of that kind. Nil: it is to be
// pulled.
func (f *remoteFetcher) local(q *remotewasm.Request, want fetch.Request) (*store.Lease, error) {
	var module chandler.ModuleDigest
	switch {
	case q.Reference.Scheme != chandler.SchemeOCI:
		if q.SHA256 == "" {
			return nil, nil
		}
		module = chandler.ModuleDigest("sha256:" + q.SHA256)
	case q.Reference.Digest != "" || q.SHA256 != "":
		return nil, nil
	default:
		f.mu.Lock()
		found, ok := f.known[want.Reference.Digest]
		f.mu.Unlock()
		if !ok {
			return nil, nil
		}
		if found.unfit != nil {
			return nil, found.unfit
		}
		module = found.module
	}
	lease, err := f.store.Acquire(module)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return fit(lease)
}

func (f *remoteFetcher) pull(ctx context.Context, want fetch.Request) (*store.Lease, error) {
	pulled, err := f.client.Pull(ctx, want, f.store)
	if err != nil {
		return nil, err
	}
	lease, err := f.store.Acquire(pulled.Module)
	if err != nil {
		return nil, err
	}
	lease, err = fit(lease)
	var unfit *chandler.Problem
	if err == nil || errors.As(err, &unfit) {
		f.remember(pulled.Digest, foundModule{pulled.Module, unfit})
	}
	return lease, err
}

func (f *remoteFetcher) remember(d chandler.ArtifactDigest, found foundModule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.known) >= maxArtifacts {
		clear(f.known)
	}
	if d != "" {
		f.known[d] = found
	}
}

// fit gives a module back if it can run, as far as can be seen from outside.
func fit(lease *store.Lease) (*store.Lease, error) {
	file, err := os.Open(lease.Path())
	if err == nil {
		_, err = proxywasm.Inspect(file, lease.Size())
		_ = file.Close()
	}
	if err != nil {
		lease.Release()
		return nil, err
	}
	return lease, nil
}
