package vet

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"
)

// slice is how long a trial is left alone. Most are over by then; one that is not
// makes room when others wait.
const slice = time.Second

// errYield ends a trial that has to make room; it begins anew among the slow.
var errYield = errors.New("it makes room for others")

// turns decides which trial runs when, where more want to than there is room for: a
// queue with feedback. There is room for a number of trials, and for as many slow
// ones beside them.
//
// A free place goes to the namespace that has the fewest trials running, of these to
// the one that was served longest ago, and within it to plugins that had a release
// before newcomers. So whoever floods waits for himself. A trial that has had its
// slice while others wait becomes a slow one and goes on beside them, if there is
// room, else it is ended and waits for that; one namespace has half of it at most. So
// a plugin that comes to no end costs the others a slice, and not its deadline.
type turns struct {
	places int

	mu      sync.Mutex
	waiting []*turn              // in the order of their coming
	running []*turn              // in the order of their start
	served  map[string]time.Time // when a namespace that has any got a place last
	look    *time.Timer          // when a slice is over that others wait for
}

// turn is a trial in the queue, or running.
type turn struct {
	namespace string
	settled   bool // the plugin had a release
	slow      bool
	began     time.Time
	ready     chan struct{} // closed when it may run
	ended     bool          // it was told to make room
	cancel    context.CancelCauseFunc
}

func newTurns(places int) *turns { return &turns{places: places, served: map[string]time.Time{}} }

// take waits until it is t's turn. The context it gives ends with ctx, or with
// errYield as its cause; then, and at its end, the turn is to be given back.
func (q *turns) take(ctx context.Context, t *turn) (context.Context, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	q.mu.Lock()
	t.ready, t.cancel, t.ended = make(chan struct{}), cancel, false
	q.waiting = append(q.waiting, t)
	q.dispatch()
	q.mu.Unlock()
	select {
	case <-t.ready:
		return ctx, nil
	case <-ctx.Done():
		q.give(t)
		return nil, ctx.Err()
	}
}

// give gives a turn back, or leaves the queue.
func (q *turns) give(t *turn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting, q.running = without(q.waiting, t), without(q.running, t)
	if q.of(t.namespace, func(*turn) bool { return true }) == 0 && !waits(q.waiting, t.namespace) {
		delete(q.served, t.namespace)
	}
	t.cancel(nil)
	q.dispatch()
}

// dispatch fills the places that are free, and has those make room that have had
// their slice.
func (q *turns) dispatch() {
	for q.count(slow) < q.places && q.start(q.next(func(t *turn) bool {
		return t.slow && q.of(t.namespace, slow) < max(1, q.places/2)
	})) {
	}
	for {
		next := q.next(func(t *turn) bool { return !t.slow })
		switch {
		case next == nil:
			return
		case q.count(quick) < q.places:
			q.start(next)
		case !q.makeRoom():
			return
		}
	}
}

func slow(t *turn) bool  { return t.slow }
func quick(t *turn) bool { return !t.slow }

// start lets a turn run; nil is none.
func (q *turns) start(t *turn) bool {
	if t == nil {
		return false
	}
	q.waiting = without(q.waiting, t)
	q.running = append(q.running, t)
	t.began = time.Now()
	q.served[t.namespace] = t.began
	close(t.ready)
	return true
}

// next is whose turn it is among those that may.
func (q *turns) next(may func(*turn) bool) (best *turn) {
	rank := func(a, b *turn) int {
		return cmp.Or(
			cmp.Compare(q.of(a.namespace, func(*turn) bool { return true }), q.of(b.namespace, func(*turn) bool { return true })),
			q.served[a.namespace].Compare(q.served[b.namespace]),
			cmp.Compare(newcomer(a), newcomer(b)))
	}
	for _, t := range q.waiting {
		if may(t) && (best == nil || rank(t, best) < 0) {
			best = t
		}
	}
	return best
}

func newcomer(t *turn) int {
	if t.settled {
		return 0
	}
	return 1
}

// makeRoom turns the trial that runs longest into a slow one, and tells whether that
// freed a place. Where the slow have no room it is told to end, which frees one soon;
// where nobody has had his slice yet, it looks again when the first has.
func (q *turns) makeRoom() bool {
	for _, t := range q.running {
		if t.slow || t.ended {
			continue
		}
		if left := slice - time.Since(t.began); left > 0 {
			q.lookIn(left)
			return false
		}
		if q.count(slow) < q.places && q.of(t.namespace, slow) < max(1, q.places/2) {
			t.slow = true
			return true
		}
		t.ended = true
		t.cancel(errYield)
	}
	return false
}

// lookIn has the queue looked at again.
func (q *turns) lookIn(d time.Duration) {
	if q.look != nil {
		q.look.Stop()
	}
	q.look = time.AfterFunc(d, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.dispatch()
	})
}

func (q *turns) count(what func(*turn) bool) (n int) {
	for _, t := range q.running {
		if what(t) {
			n++
		}
	}
	return n
}

// of counts the running trials of a namespace.
func (q *turns) of(namespace string, what func(*turn) bool) int {
	return q.count(func(t *turn) bool { return t.namespace == namespace && what(t) })
}

// queued is how many wait.
func (q *turns) queued() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

func waits(all []*turn, namespace string) bool {
	for _, t := range all {
		if t.namespace == namespace {
			return true
		}
	}
	return false
}

func without(all []*turn, t *turn) []*turn {
	for i := range all {
		if all[i] == t {
			return append(all[:i:i], all[i+1:]...)
		}
	}
	return all
}
