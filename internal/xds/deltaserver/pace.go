package deltaserver

import "time"

// A resource that changes all the time is sent to one agent at most once a tick, with
// what it is by then; all else, and the same resource to whoever edits it now and then,
// is never held back. The allowance is for somebody who edits one plugin again and again
// and waits for each edit to be in force, which takes Envoy some 20 to 50 ms: for many
// seconds that is no flapping. What does flap, at a hundred changes a second, has used
// the allowance up after the first.
//
// A tick is longer where there are many agents: all of them told, and their reports
// taken in, take a control plane some 0.15 ms an agent, and it has else to do. So what
// flaps takes less than a core, however large the fleet is.
//
// It is counted for each resource, so that one which flaps does not slow down its
// neighbours, and for each stream, where all comes together that can change what
// an agent is sent: releases, selectors, removal. What has used its allowance up
// goes together, so that ten resources that flap are hardly more messages than one.
const (
	paceEvery  = 100 * time.Millisecond // a tick, at least
	paceAgent  = 200 * time.Microsecond // of a tick, for each stream
	paceMost   = 5 * time.Second        // a tick, at most
	paceWindow = 10 * time.Second       // the allowance is what so long gives back
)

// tempo is the ticks of all streams, so that what was held back for them goes in one pass.
type tempo struct {
	begun time.Time
	every time.Duration
}

// tempo gives the ticks for the streams there are now.
func (s *Server) tempo() tempo {
	every := time.Duration(s.count.Load()) * paceAgent
	return tempo{begun: s.begun, every: min(max(every, paceEvery), paceMost)}
}

// tick is when the tick began that a moment is in.
func (t tempo) tick(now time.Time) time.Time {
	return t.begun.Add(now.Sub(t.begun).Truncate(t.every))
}

// pace counts what was sent on one stream. The zero value has sent nothing. It remembers
// no more than what was sent within twice the window.
type pace struct {
	spent map[string]time.Time // by resource, when all of its allowance has grown back
	swept time.Time
	last  time.Time // the tick in which something used its allowance up
}

// may tells whether a resource may be sent now.
func (p *pace) may(name string, t tempo, now time.Time) bool {
	tick := t.tick(now)
	used := p.spent[name].Sub(tick)
	return used+t.every < paceWindow || used < paceWindow && !p.last.Equal(tick)
}

// spend notes that resources were sent.
func (p *pace) spend(names []string, t tempo, now time.Time) {
	if p.spent == nil {
		p.spent = map[string]time.Time{}
	}
	tick := t.tick(now)
	if tick.Sub(p.swept) > paceWindow {
		p.swept = tick
		for name, due := range p.spent {
			if !due.After(tick) {
				delete(p.spent, name)
			}
		}
	}
	for _, name := range names {
		used := max(0, p.spent[name].Sub(tick)) + t.every
		if used >= paceWindow {
			p.last = tick
		}
		p.spent[name] = tick.Add(used)
	}
}

// later has every stream asked again when the next tick begins.
func (s *Server) later(t tempo, now time.Time) {
	if s.due.Swap(true) {
		return
	}
	time.AfterFunc(t.tick(now).Add(t.every).Sub(now), func() {
		s.due.Store(false)
		s.Refresh()
	})
}
