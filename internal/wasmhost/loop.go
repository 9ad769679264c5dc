package wasmhost

import (
	"slices"
	"time"
)

// loop is what waits in a VM: answers to calls, ticks, queues that are ready. Its time
// goes on only when it is told to, so that a plugin that waits takes no time and every
// run is the same.
type loop struct {
	now    time.Duration
	events []event // by their time, and of one time in the order in which they came
}

type event struct {
	at time.Duration
	do func()
}

const maxEvents = 1 << 14

// in has something happen after a while. Too much at a time is dropped.
func (l *loop) in(wait time.Duration, do func()) {
	if len(l.events) >= maxEvents {
		return
	}
	e := event{l.now + max(wait, 0), do}
	after := slices.IndexFunc(l.events, func(o event) bool { return o.at > e.at })
	if after < 0 {
		after = len(l.events)
	}
	l.events = slices.Insert(l.events, after, e)
}

// step lets the next event happen that is due until then; false: there is none.
func (l *loop) step(until time.Duration) bool {
	if len(l.events) == 0 || l.events[0].at > until {
		return false
	}
	e := l.events[0]
	l.events = l.events[1:]
	l.now = max(l.now, e.at)
	e.do()
	return true
}
