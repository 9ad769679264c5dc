package relay

import "time"

// An Envoy that starts waits for its first answer for listeners, and counts as ready when
// all that are in it are open. One that is held for something of the owner's, and so is not
// in it, would be no part of that: whoever balances load by Envoy's word sends connections
// to a port that is shut. So that answer waits as a whole. For what a listener itself names
// Envoy waits by itself.

const (
	// openingPatience is how long that answer waits at most since Envoy asked.
	openingPatience = 14 * time.Second
	// openingMargin is how long before Envoy would be ready without any listener.
	openingMargin = time.Second
)

// patience is how long that answer waits for an Envoy that would itself wait for so long;
// 0: for ever.
func patience(envoys time.Duration) time.Duration {
	if envoys == 0 {
		return openingPatience
	}
	return min(openingPatience, max(envoys-openingMargin, envoys/2))
}

// opening is that answer; of an Envoy that may have listeners already, nothing is awaited.
type opening struct {
	isAwaited bool
	until     time.Time // zero: Envoy has not asked
}

// asked notes that Envoy asks for listeners, for which it waits for so long.
func (o *opening) asked(q Request, now time.Time, envoys time.Duration) {
	switch {
	case q.Version != "" || len(q.Held) > 0:
		o.isAwaited = false
	case o.until.IsZero():
		o.until = now.Add(patience(envoys))
	}
}

// opens tells whether Envoy may be answered for listeners. All are asked for what holds
// them, so that they wait at the same time.
func (f *feed) opens(now time.Time) bool {
	r := f.stream.relay
	if !r.opening.isAwaited {
		return true
	}
	var held []string
	for _, name := range sorted(f.entries) {
		e := f.entries[name]
		if e.up == nil {
			continue
		}
		if _, ready := f.make(e); !ready {
			e.held, held = true, append(held, name)
		}
	}
	if len(held) > 0 && now.Before(r.opening.until) {
		return false
	}
	r.opening.isAwaited = false
	if len(held) > 0 {
		r.hooks.Tell(Event{Type: listenerType, Without: held})
	}
	return true
}
