package vet_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/sandbox"
	"chandler.dev/chandler/internal/vet"
)

// timed is an Envoy that takes as long as the configuration says.
type timed struct{ envoy }

func (*timed) Judge(ctx context.Context, c sandbox.Case) (*chandler.Problem, error) {
	takes, err := time.ParseDuration(string(c.Attachment.Config))
	if err != nil {
		return nil, err
	}
	select {
	case <-time.After(takes):
		return nil, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// queue has plugins vetted beside each other and notes how long each took.
type queue struct {
	t *testing.T
	v *vet.Vetter
	sync.WaitGroup
	n int

	mu   sync.Mutex
	took map[string]time.Duration
}

func newQueue(t *testing.T) *queue {
	return &queue{t: t, took: map[string]time.Duration{}, v: vet.New(vet.Config{
		Trials: 2, Judges: []vet.Judge{&timed{envoy{version: "1.40.0"}}},
	})}
}

func (q *queue) vet(ctx context.Context, namespace, name, takes string, settled bool) {
	r := release(takes)
	r.Namespace, r.Name = namespace, fmt.Sprint(name, q.n)
	q.n++
	q.Go(func() {
		began := time.Now()
		if _, err := q.v.Vet(ctx, vet.Request{Release: r, Settled: settled}); err != nil && !errors.Is(err, context.Canceled) {
			q.t.Errorf("%s: %v", name, err)
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		q.took[name] = time.Since(began)
	})
	synctest.Wait()
}

// Behind a flood that comes to no end others wait for their slice at most, those that
// had a release before newcomers, and who needs long comes to his end all the same.
func TestTurnsBehindAFlood(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t)
		flood, end := context.WithCancel(t.Context())
		for range 100 {
			q.vet(flood, "flood", "loop", "20s", false)
		}
		time.Sleep(3 * time.Second)
		q.vet(t.Context(), "shop", "good", "100ms", false)
		q.vet(t.Context(), "flood", "settled", "100ms", true)
		q.vet(t.Context(), "shop", "large", "5s", false)
		time.Sleep(time.Minute)
		end()
		q.Wait()
		for name, most := range map[string]time.Duration{"good": 1200 * time.Millisecond, "settled": 2300 * time.Millisecond, "large": 30 * time.Second} {
			if got := q.took[name]; got == 0 || got > most {
				t.Errorf("%s took %s, more than %s", name, got, most)
			}
		}
	})
}

// While nobody waits nobody has to make room, however long he takes.
func TestTurnsAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t)
		q.vet(t.Context(), "shop", "one", "15s", false)
		q.vet(t.Context(), "shop", "two", "15s", false)
		q.Wait()
		if q.took["one"] != 15*time.Second || q.took["two"] != 15*time.Second {
			t.Errorf("they took %v", q.took)
		}
	})
}
