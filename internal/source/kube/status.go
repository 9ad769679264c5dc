package kube

import (
	"cmp"
	"context"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
)

const (
	fieldManager = "chandler"
	// maxWrites bounds the writes under way.
	maxWrites = 8
	// askAgain is when Objects is asked again that had no answer.
	askAgain = 250 * time.Millisecond
)

// StatusConfig is what statuses are written with.
type StatusConfig struct {
	Client *Client
	// Objects gives every resource with its status. While it has an error nothing
	// is known, and nothing is written.
	Objects func(context.Context) ([]control.ObjectView, error)
	// Changed gives a channel that is closed when Objects may say something else
	// than it does at this moment.
	Changed func() <-chan struct{}
	// Instance names this control plane in Events; "chandler" when empty.
	Instance string
	Log      *slog.Logger
}

// StatusWriter keeps the status of every resource as it is true: it writes what
// differs from what the cluster shows, at most once a second and resource, and an
// Event at each turn. It takes no status for truth; of what is shown it keeps
// only the times at which conditions turned.
//
// It needs list and watch of wasmplugins and trafficextensions, patch of their
// status, and create of events (events.k8s.io).
type StatusWriter struct {
	cfg     StatusConfig
	log     *slog.Logger
	events  *announcer
	lacking map[string]*atomic.Pointer[lacks] // by kind
}

// NewStatusWriter starts nothing; Run does.
func NewStatusWriter(cfg StatusConfig) *StatusWriter {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	w := &StatusWriter{cfg: cfg, log: cfg.Log, lacking: map[string]*atomic.Pointer[lacks]{}}
	w.events = newAnnouncer(cfg.Client, cmp.Or(cfg.Instance, "chandler"), cfg.Log)
	for kind := range resources {
		w.lacking[kind] = &atomic.Pointer[lacks]{}
		w.lacking[kind].Store(&lacks{})
	}
	return w
}

// sight is what the watch tells of a resource; nil: it is gone.
type sight struct {
	key chandler.Key
	now *sighted
}

// Run writes until ctx ends, and returns when all that it started has ended.
func (w *StatusWriter) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	sights := make(chan sight)
	for kind, resource := range resources {
		g.Go(func() error { w.look(ctx, kind, resource, sights); return nil })
	}
	g.Go(func() error { w.events.run(ctx); return nil })
	g.Go(func() error { return w.write(ctx, sights) })
	if err := g.Wait(); ctx.Err() == nil {
		return err
	}
	return nil
}

// look tells what the cluster shows of one kind.
func (w *StatusWriter) look(ctx context.Context, kind string, resource schema.GroupVersionResource, sights chan<- sight) {
	api := w.cfg.Client.dynamic.Resource(resource)
	o := &unstructured.Unstructured{}
	o.SetGroupVersionKind(resource.GroupVersion().WithKind(kind))
	observe(ctx, o, "", newAccess(w.log, "the status of "+resource.Resource),
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return api.List(ctx, o) },
		func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return api.Watch(ctx, o) },
		&looker{kind: kind, known: map[chandler.Key]bool{}, tell: func(s sight) {
			select {
			case sights <- s:
			case <-ctx.Done():
			}
		}})
}

// looker turns objects into sights.
type looker struct {
	kind  string
	known map[chandler.Key]bool
	tell  func(sight)
}

func (l *looker) key(o *unstructured.Unstructured) chandler.Key {
	return chandler.Key{Kind: l.kind, Namespace: o.GetNamespace(), Name: o.GetName()}
}

func (l *looker) is(o *unstructured.Unstructured) {
	l.known[l.key(o)] = true
	l.tell(sight{l.key(o), newSighted(o)})
}

func (l *looker) gone(o *unstructured.Unstructured) {
	delete(l.known, l.key(o))
	l.tell(sight{key: l.key(o)})
}

func (l *looker) all(objects []*unstructured.Unstructured) {
	before := l.known
	l.known = make(map[chandler.Key]bool, len(objects))
	for _, o := range objects {
		l.is(o)
	}
	for k := range before {
		if !l.known[k] {
			l.tell(sight{key: k})
		}
	}
}

func newSighted(o *unstructured.Unstructured) *sighted {
	version, err := strconv.ParseUint(o.GetResourceVersion(), 10, 64)
	if err != nil {
		version = 0 // then the last word counts
	}
	return &sighted{uid: string(o.GetUID()), version: version, fields: readStatusFields(o)}
}

// write is the loop: it owns the ledger.
func (w *StatusWriter) write(ctx context.Context, sights <-chan sight) error {
	l := newLedger()
	results := make(chan written, maxWrites)
	defer func() {
		for ; l.busy > 0; l.busy-- {
			<-results
		}
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var ask time.Time // not before
	changed := closed()
	for {
		var news <-chan struct{} = changed
		if time.Now().Before(ask) {
			news = nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-news:
			changed = w.cfg.Changed()
			began := time.Now()
			if w.ask(ctx, l) {
				ask = time.Now().Add(min(4*time.Since(began), time.Second))
			} else {
				changed, ask = closed(), began.Add(askAgain)
			}
		case s := <-sights:
			l.see(s.key, s.now)
		case r := <-results:
			w.report(l, r)
		case <-timer.C:
		}
		writes, next := l.due(time.Now(), maxWrites)
		for _, wr := range writes {
			go func() { results <- w.apply(ctx, wr) }()
		}
		if time.Now().Before(ask) && (next.IsZero() || ask.Before(next)) {
			next = ask
		}
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
	}
}

func closed() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// ask brings into the ledger what is true; false when that is not known.
func (w *StatusWriter) ask(ctx context.Context, l *ledger) bool {
	views, err := w.cfg.Objects(ctx)
	if err != nil {
		l.want(nil) // perhaps another replica leads by now
		return false
	}
	all := make(map[chandler.Key]wanted, len(views))
	for i := range views {
		v := &views[i]
		lacking := w.lacking[v.Kind]
		if lacking == nil {
			continue
		}
		f := newStatusFields(&v.Status).without(*lacking.Load())
		all[v.Key] = wanted{v.UID, f, f.text()}
	}
	l.want(all)
	return true
}

// apply writes one status.
func (w *StatusWriter) apply(ctx context.Context, wr write) written {
	lacking := *w.lacking[wr.key.Kind].Load()
	for {
		wr.fields = wr.fields.without(lacking)
		got, err := w.applied(ctx, wr)
		if err == nil {
			return written{write: wr, shown: newSighted(got)}
		}
		more := lacking.refused(err)
		if more == lacking {
			return written{write: wr, err: err}
		}
		lacking = more
		w.lacking[wr.key.Kind].Store(&more)
	}
}

func (w *StatusWriter) applied(ctx context.Context, wr write) (*unstructured.Unstructured, error) {
	o, err := wr.fields.object(wr.key, wr.uid)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return w.cfg.Client.dynamic.Resource(resources[wr.key.Kind]).Namespace(wr.key.Namespace).
		ApplyStatus(ctx, wr.key.Name, o, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
}

// report takes in what became of a write.
func (w *StatusWriter) report(l *ledger, r written) {
	now := time.Now()
	// It may just have been deleted, or be another one of its name.
	if r.err != nil && !apierrors.IsNotFound(r.err) && !apierrors.IsConflict(r.err) {
		w.log.Warn("a status cannot be written", "plugin", r.key.String(), "error", explained(r.err))
	}
	for _, t := range l.done(r, now) {
		w.events.announce(r.key, r.uid, t, now)
	}
}
