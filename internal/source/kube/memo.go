package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"chandler.dev/chandler/internal/identity"
)

const (
	// refusalAge is how long a refusal is good.
	refusalAge = 10 * time.Second

	maxKept    = 20_000 // answers of one kind
	maxRefused = 1_000
	askTimeout = 10 * time.Second
)

// memo keeps what the API server said to questions of one kind, and asks it once for all
// that ask the same at the same time. Keys have no secrets in them.
type memo[K comparable, V any] struct {
	age time.Duration // how long an answer is good
	now func() time.Time
	// stale is how long an answer is good while the API server cannot be asked, which
	// believed hears of; zero: no longer than else.
	stale    time.Duration
	believed func(why error)
	again    bool // what was refused is asked anew each time

	flights singleflight.Group
	mu      sync.Mutex
	answers map[K]known[V]
	refused map[K]known[string] // and why
}

// known is what the API server said.
type known[T any] struct {
	value T
	at    time.Time
	until time.Time // not beyond; zero: there is no such time
}

// good tells whether it is not older than age and may be believed at all.
func (k known[T]) good(now time.Time, age time.Duration) bool {
	return now.Sub(k.at) < age && (k.until.IsZero() || now.Before(k.until))
}

// refusedError is the API server's no.
type refusedError struct{ why string }

func (e *refusedError) Error() string { return identity.ErrRefused.Error() + ": " + e.why }
func (e *refusedError) Unwrap() error { return identity.ErrRefused }

// get gives the answer for a key: one that is kept, or what ask gives, with the time until
// which it is good. A refusal is a *refusedError.
func (m *memo[K, V]) get(ctx context.Context, key K, ask func(context.Context) (v V, until time.Time, err error)) (V, error) {
	if v, err, ok := m.kept(key); ok {
		return v, err
	}
	v, err := m.fly(ctx, key, ask)
	var no *refusedError
	if err == nil || errors.As(err, &no) {
		return v, err
	}
	m.mu.Lock()
	before, ok := m.answers[key]
	m.mu.Unlock()
	if ok && before.good(m.now(), m.stale) {
		m.believed(err)
		return before.value, nil
	}
	return v, err
}

// kept gives what is known and good.
func (m *memo[K, V]) kept(key K) (v V, err error, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	if before, ok := m.answers[key]; ok && before.good(now, m.age) {
		return before.value, nil, true
	}
	if before, ok := m.refused[key]; ok && before.good(now, refusalAge) {
		return v, &refusedError{before.value}, true
	}
	return v, nil, false
}

// fly asks and keeps the answer, for all that ask the same meanwhile, and goes on when the
// first of them gives up. Who found nothing may come when another's flight has just ended,
// so a flight looks at what is kept once more.
func (m *memo[K, V]) fly(ctx context.Context, key K, ask func(context.Context) (V, time.Time, error)) (v V, err error) {
	answer := m.flights.DoChan(fmt.Sprintf("%x", any(key)), func() (any, error) {
		if v, err, ok := m.kept(key); ok {
			return v, err
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
		defer cancel()
		v, until, err := ask(ctx)
		m.keep(key, v, until, err)
		return v, err
	})
	select {
	case a := <-answer:
		v, _ = a.Val.(V)
		return v, a.Err
	case <-ctx.Done():
		return v, ctx.Err()
	}
}

// keep keeps an answer or a refusal.
func (m *memo[K, V]) keep(key K, v V, until time.Time, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var no *refusedError
	switch {
	case err == nil:
		put(&m.answers, key, known[V]{v, m.now(), until}, maxKept)
	case errors.As(err, &no):
		delete(m.answers, key)
		if !m.again {
			put(&m.refused, key, known[string]{value: no.why, at: m.now()}, maxRefused)
		}
	}
}

// put puts something in, and out what was longest there when there is no room.
func put[K comparable, V any](in *map[K]known[V], key K, value known[V], most int) {
	if *in == nil {
		*in = map[K]known[V]{}
	}
	if _, ok := (*in)[key]; !ok && len(*in) >= most {
		times := make([]time.Time, 0, len(*in))
		for _, k := range *in {
			times = append(times, k.at)
		}
		slices.SortFunc(times, time.Time.Compare)
		before := times[len(times)/10] // a tenth at a time, so that it is seldom done
		maps.DeleteFunc(*in, func(_ K, k known[V]) bool { return !k.at.After(before) })
	}
	(*in)[key] = value
}
