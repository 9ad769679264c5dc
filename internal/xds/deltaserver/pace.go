package deltaserver

import "time"

// A resource that changes all the time is sent to one agent at most once every
// paceEvery, with what it is by then; all else, and the same resource to whoever
// edits it now and then, is never held back. The allowance is for somebody who
// edits one plugin again and again and waits for each edit to be in force, which
// takes Envoy some 20 to 50 ms: for many seconds that is no flapping. What does
// flap, at a hundred changes a second, has used the allowance up after the first.
//
// It is counted for each resource, so that one which flaps does not slow down its
// neighbours, and for each stream, where all comes together that can change what
// an agent is sent: releases, selectors, removal. What has used its allowance up
// goes together, so that ten resources that flap are hardly more messages than one.
const (
	paceEvery     = 100 * time.Millisecond
	paceAllowance = 100
)

// pace counts what was sent on one stream. The zero value has sent nothing. It
// remembers no more than what was sent within the time that the allowance takes
// to grow back, twice.
type pace struct {
	begun time.Time
	spent map[string]spending // by resource
	swept int64               // tick
	last  int64               // tick in which something used its allowance up
}

// spending is what a resource has used of its allowance; a tick gives one back.
type spending struct {
	used int64
	tick int64
}

func (s spending) at(tick int64) int64 { return max(0, s.used-(tick-s.tick)) }

func (p *pace) tick(now time.Time) int64 { return int64(now.Sub(p.begun) / paceEvery) }

// may tells whether a resource may be sent now.
func (p *pace) may(name string, now time.Time) bool {
	tick := p.tick(now)
	used := p.spent[name].at(tick)
	return used < paceAllowance-1 || used < paceAllowance && p.last != tick
}

// spend notes that resources were sent.
func (p *pace) spend(names []string, now time.Time) {
	if p.spent == nil {
		p.begun, p.spent = now, map[string]spending{}
	}
	tick := p.tick(now)
	if tick-p.swept > paceAllowance {
		p.swept = tick
		for name, s := range p.spent {
			if s.at(tick) == 0 {
				delete(p.spent, name)
			}
		}
	}
	for _, name := range names {
		used := p.spent[name].at(tick) + 1
		if used >= paceAllowance {
			p.last = tick
		}
		p.spent[name] = spending{used: used, tick: tick}
	}
}

// wait is how long until what may not be sent now may be.
func (p *pace) wait(now time.Time) time.Duration {
	return p.begun.Add(time.Duration(p.tick(now)+1) * paceEvery).Sub(now)
}
