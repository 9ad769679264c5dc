package resolve_test

import (
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/resolve"
	"chandler.dev/chandler/internal/testenv/clock"
)

// What a record says of when it was made decides nothing that a wrong clock could
// put off for long: not asked for a year is what would follow from a year ahead.
func TestFault_F43_RecordsOfAWrongClock(t *testing.T) {
	t.Parallel()
	const year, interval = 365 * 24 * time.Hour, time.Hour
	p := &chandler.Plugin{UID: "u", Generation: 1, Wasm: &chandler.Wasm{
		Reference: chandler.Reference{Scheme: chandler.SchemeOCI, Host: "h", Repository: "r", Tag: "v1"}, PullPolicy: chandler.PullAlways,
	}}
	policy := resolve.Policy{Interval: interval}
	begun := time.Now() // with its monotonic reading, as the control plane has it
	for _, c := range []struct {
		name     string
		resolved time.Time // as the record says
		done     time.Time // in this run
		now      time.Time
		policy   resolve.Policy
		want     resolve.Decision
	}{
		{"restarted, the clock was a year ahead", begun.Add(year).Round(0), time.Time{}, begun, policy, resolve.Decision{Now: true}},
		{"restarted, the clock was an hour ahead", begun.Add(time.Hour).Round(0), time.Time{}, begun, policy, resolve.Decision{Now: true}},
		{"and asked since", begun.Add(year).Round(0), begun, begun.Add(time.Minute), policy, resolve.Decision{At: begun.Add(interval)}},
		{"and due again", begun.Add(year).Round(0), begun, begun.Add(interval), policy, resolve.Decision{Now: true}},
		{"the clock was an hour behind", begun.Add(-time.Hour).Round(0), begun, begun.Add(time.Minute), policy, resolve.Decision{At: begun.Add(interval)}},
		{"a year went by, and what is not asked for again stays as it is", begun.Add(-year).Round(0), time.Time{}, begun, resolve.Policy{}, resolve.Decision{}},
	} {
		have := &chandler.Release{UID: "u", Generation: 1, ResolvedAt: c.resolved}
		var a resolve.Attempts
		if !c.done.IsZero() {
			a = resolve.Succeeded(p, "", c.done)
		}
		if got := resolve.Due(p, have, a, c.policy, c.now); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// What is tried again is so by a clock that never jumps.
func TestFault_F43_WaitsAreMonotonic(t *testing.T) {
	t.Parallel()
	p := &chandler.Plugin{UID: "u", Generation: 1}
	a := resolve.Attempts{}
	for range 20 {
		a = a.After(p, &fetch.Error{Temporary: true, RetryAfter: time.Minute}, time.Now(), 0.5)
	}
	for _, v := range []any{a, a.Behind(p, a), resolve.Succeeded(p, "", time.Now()), resolve.Due(p, nil, a, resolve.Policy{}, time.Now())} {
		if err := clock.Kept(v); err != nil {
			t.Errorf("%T: %v", v, err)
		}
	}
}
