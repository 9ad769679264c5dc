package kube

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/source"
)

const (
	// settled is how long nothing must happen before what there is is told, so that
	// what arrives together is one snapshot; maxSettling is when it is told although
	// something always happens.
	settled     = 2 * time.Millisecond
	maxSettling = 50 * time.Millisecond
	// secretPatience is how long a snapshot waits for a secret of which nothing
	// is known yet.
	secretPatience = time.Second
	// maxPlugins is as with a folder.
	maxPlugins = 10_000
)

// Source is a source.Source on the plugins of all namespaces. What is not ours
// (see owned) is as if it were not there.
//
// Nothing is told before everything was read, and nothing is forgotten because
// the API server does not answer: objects go when it says that they are gone.
// Secrets are read by the names that plugins give, each by itself.
//
// It needs list and watch of wasmplugins and trafficextensions, and get and watch of
// their definitions, of istiod's ConfigMap (see owner.go), and of the secrets that
// plugins name. Where it may get and not watch it looks now and then.
type Source struct {
	Client *Client
	// OwnUnlabelled takes resources without the label istio.io/rev where Istio is, too.
	OwnUnlabelled bool
	// Log may be nil.
	Log *slog.Logger
}

var _ source.Source = (*Source)(nil)

// Run implements source.Source.
func (s *Source) Run(ctx context.Context, deliver func(source.Snapshot)) error {
	newReader(*s).run(ctx, deliver)
	return nil
}

// reader is a Source that runs.
type reader struct {
	cfg  Source
	log  *slog.Logger
	wake chan struct{} // something may be different

	mu      sync.Mutex
	kinds   []*kind
	istiod  sign
	secrets map[source.SecretName]*followed

	tasks sync.WaitGroup // that run started
}

func newReader(cfg Source) *reader {
	s := &reader{cfg: cfg, log: cfg.Log, wake: make(chan struct{}, 1), secrets: map[source.SecretName]*followed{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, name := range []string{chandler.KindTrafficExtension, chandler.KindWasmPlugin} {
		s.kinds = append(s.kinds, newKind(s, name))
	}
	return s
}

// run returns when ctx ends, with all that it started.
func (s *reader) run(ctx context.Context, deliver func(source.Snapshot)) {
	ctx, cancel := context.WithCancel(ctx)
	defer s.tasks.Wait()
	defer cancel()
	for _, k := range s.kinds {
		s.tasks.Go(func() { k.run(ctx) })
		s.tasks.Go(func() { k.followDefinition(ctx) })
	}
	s.tasks.Go(func() { s.followIstiod(ctx) })
	var last *source.Snapshot
	for s.await(ctx) {
		next, ok := s.snapshot(ctx)
		if !ok || last != nil && same(last, &next) {
			continue
		}
		last = &next
		deliver(next)
	}
}

// changed has Run look again.
func (s *reader) changed() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// await returns when something has happened and the rest of the burst too; false
// when ctx has ended.
func (s *reader) await(ctx context.Context) bool {
	select {
	case <-s.wake:
	case <-ctx.Done():
		return false
	}
	end := time.Now().Add(maxSettling)
	for {
		timer := time.NewTimer(min(settled, time.Until(end)))
		select {
		case <-s.wake:
			timer.Stop()
			if time.Now().After(end) {
				return true
			}
		case <-timer.C:
			return true
		case <-ctx.Done():
			timer.Stop()
			return false
		}
	}
}

// snapshot is what there is; false as long as that is not known.
func (s *reader) snapshot(ctx context.Context) (source.Snapshot, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var snap source.Snapshot
	for _, k := range s.kinds {
		if !k.known() {
			return snap, false
		}
		for _, h := range k.objects {
			if k.owned(h) {
				snap.Objects = append(snap.Objects, h.object)
			}
		}
	}
	slices.SortFunc(snap.Objects, func(a, b source.Object) int { return a.Key.Compare(b.Key) })
	refuseTooMany(snap.Objects)
	named := map[source.SecretName]bool{}
	for _, o := range snap.Objects {
		for _, name := range secretsOf(o.Plugin) {
			named[source.SecretName{Namespace: o.Namespace, Name: name}] = true
		}
	}
	var ok bool
	snap.Secrets, ok = s.namedSecrets(ctx, named)
	return snap, ok
}

// secretsOf names the secrets that a plugin needs, of its own namespace.
func secretsOf(p *chandler.Plugin) []string {
	if p == nil || p.Wasm == nil {
		return nil
	}
	var names []string
	if p.Wasm.PullSecret != "" {
		names = append(names, p.Wasm.PullSecret)
	}
	for _, from := range p.Wasm.ConfigFrom {
		names = append(names, from.Name)
	}
	return names
}

// refuseTooMany refuses the youngest of more objects than there may be.
func refuseTooMany(objects []source.Object) {
	if len(objects) <= maxPlugins {
		return
	}
	order := make([]*source.Object, len(objects))
	for i := range objects {
		order[i] = &objects[i]
	}
	slices.SortFunc(order, func(a, b *source.Object) int { return cmp.Or(a.Created.Compare(b.Created), a.Key.Compare(b.Key)) })
	for _, o := range order[maxPlugins:] {
		o.Plugin = nil
		o.Problems = []chandler.Problem{*chandler.Problemf(chandler.CodeSpecValue, "metadata.name", "remove some",
			"%s %s/%s is one too many, limit %d", o.Kind, o.Namespace, o.Name, maxPlugins)}
	}
}
