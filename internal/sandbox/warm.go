package sandbox

import (
	"context"
	"slices"
	"sync"
	"time"

	"chandler.dev/chandler"
)

const (
	// DefaultWarm is how many Envoys are kept unless Config says otherwise.
	DefaultWarm = 2
	// DefaultWarmTime is how long one may take unless Config says otherwise; a verdict
	// takes milliseconds. After that it is the other way that answers, so that a busy
	// machine refuses nobody.
	DefaultWarmTime = 2 * time.Second
	// warmAfter is how long after a verdict an Envoy for others like it is made: what was
	// found good is about to be compiled by proxies, perhaps on this machine.
	warmAfter = 5 * time.Second
	// maxOnce is how many modules are remembered that came but once.
	maxOnce = 16
)

// warmth is the Envoys that are kept, each with a module that it took before, so that
// another configuration of that is judged without compiling it again. Between two
// verdicts they stand still: whatever a plugin does by its clock, it does not do here.
type warmth struct {
	room int
	time time.Duration // for a verdict

	mu     sync.Mutex
	kept   []*warm // used last, last
	once   []module
	closed bool

	ctx    context.Context // of those kept
	cancel context.CancelFunc
	wg     sync.WaitGroup // of those being made
	making bool
}

// module is what an Envoy is kept for.
type module struct {
	digest chandler.ModuleDigest
	kind   chandler.FilterType
}

// warm is an Envoy that is kept; busy holds one while it works.
type warm struct {
	*live
	module
	busy chan struct{}
	gone bool
}

func newWarmth(room int, atMost time.Duration) *warmth {
	w := &warmth{room: room, time: atMost}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

// close ends all of them.
func (w *warmth) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.cancel()
	w.wg.Wait()
	for _, k := range w.kept {
		k.live.close()
	}
}

func (c *Case) module() (module, bool) {
	m := c.Attachment.Program.Module
	if m == nil {
		return module{}, false
	}
	return module{m.Digest, c.Attachment.Type}, true
}

// judge has the Envoy that holds the case's module judge it; known is false when
// there is none, or it came to no verdict, which is its end.
func (w *warmth) judge(ctx context.Context, c Case, version string) (problem *chandler.Problem, known bool) {
	k := w.find(c)
	if k == nil {
		return nil, false
	}
	limited, cancel := context.WithTimeout(ctx, w.time)
	defer cancel()
	select {
	case k.busy <- struct{}{}:
	case <-limited.Done():
		return nil, false
	}
	defer func() { <-k.busy }()
	if k.gone {
		return nil, false
	}
	k.freeze(false)
	problem, err := k.live.judge(limited, c.Member, version)
	if err != nil {
		w.drop(k)
		return nil, false
	}
	k.freeze(true)
	return problem, true
}

// find gives the Envoy that holds a case's module, or nil, and marks it as used.
func (w *warmth) find(c Case) *warm {
	m, ok := c.module()
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.IndexFunc(w.kept, func(k *warm) bool { return k.module == m })
	if !ok || i < 0 {
		return nil
	}
	k := w.kept[i]
	w.kept = append(slices.Delete(w.kept, i, i+1), k)
	return k
}

// drop ends one; whoever calls it holds its busy.
func (w *warmth) drop(k *warm) {
	w.mu.Lock()
	w.kept = slices.DeleteFunc(w.kept, func(o *warm) bool { return o == k })
	w.mu.Unlock()
	k.gone = true
	k.live.close()
}

// keep has an Envoy made that holds the module of a case which was just found good,
// beside its caller. Where there is no room the one that was used longest ago goes,
// but for a module that came before only: what comes once is not worth it.
func (w *warmth) keep(s *Sandbox, c Case) {
	m, ok := c.module()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !ok || w.closed || w.making || w.room <= 0 || slices.ContainsFunc(w.kept, func(k *warm) bool { return k.module == m }) {
		return
	}
	var old *warm
	if len(w.kept) >= w.room {
		if i := slices.Index(w.once, m); i < 0 {
			w.once = append(w.once[max(0, len(w.once)-maxOnce+1):], m)
			return
		}
		old = w.kept[0]
	}
	w.making = true
	w.wg.Go(func() {
		select {
		case <-time.After(warmAfter):
		case <-w.ctx.Done():
		}
		if old != nil {
			old.busy <- struct{}{}
			if !old.gone {
				w.drop(old)
			}
			<-old.busy
		}
		k := w.make(s, c, m)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.making = false
		if k != nil {
			w.kept = append(w.kept, k)
		}
	})
}

// make gives an Envoy that took the case; nil when it did not, or not in time.
func (w *warmth) make(s *Sandbox, c Case, m module) *warm {
	ctx, cancel := context.WithTimeout(w.ctx, s.cfg.Time)
	defer cancel()
	l, err := s.launch(w.ctx, c)
	if err != nil {
		return nil
	}
	if problem, err := l.judge(ctx, c.Member, s.version); err != nil || problem != nil {
		l.close()
		return nil
	}
	l.freeze(true)
	return &warm{live: l, module: m, busy: make(chan struct{}, 1)}
}
