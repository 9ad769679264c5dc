package swarm

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

// Conduct is what an agent's Envoy makes of a release. The zero value takes it at once
// and answers as usual.
type Conduct struct {
	// Delay is how long it takes to be in force, or to be refused.
	Delay time.Duration
	// Reject is why Envoy does not take it; Fail why it cannot be fetched. Empty: neither.
	Reject, Fail string
	// Traps are faults of the plugin's VM while it serves, a second.
	Traps float64
	// Answers is how requests are answered with it in force; nil: as usual. Of several
	// plugins the first in the order of their keys that says something counts.
	Answers *Answers
}

// Answers is how requests are answered: shares of classes, what is left being 2xx, and
// the time taken, by 95 of a hundred and by the others.
type Answers struct {
	Redirects, ClientErrors, ServerErrors float64
	Typical, Slow                         time.Duration
}

// Usual is how an Envoy answers when nothing else is said.
func Usual() *Answers {
	return &Answers{ClientErrors: 0.02, ServerErrors: 0.001, Typical: 8 * time.Millisecond, Slow: 30 * time.Millisecond}
}

// Denies is how one answers that refuses everyone.
func Denies() *Answers {
	return &Answers{ClientErrors: 1, Typical: time.Millisecond, Slow: time.Millisecond}
}

// envoy is a scripted Envoy with what its agent knows of it. It reads no clock: time
// passes by advance. What happens in it depends only on what it was told and when.
type envoy struct {
	mode  chandler.Mode
	port  uint32
	rate  float64 // requests a second
	usual *Answers

	at      time.Time // up to when it is so
	began   time.Time
	history time.Duration // how long it was there before
	starts  int
	plugins map[chandler.Key]*plugin
	counted counts
}

// plugin is one that the agent was told of.
type plugin struct {
	*chandler.Attachment
	version string
	conduct Conduct
	since   time.Time // it was told, and has the module
	fetched bool
	state   chandler.State
	changed time.Time // state

	good       *chandler.Attachment // in force
	behaves    Conduct              // of good
	rejections uint64
	traps      float64
	told       []chandler.ReleaseID
}

// maxTold is how many releases of a plugin are remembered.
const maxTold = 64

// counts are answers, with the parts of requests that are under way.
type counts struct {
	classes [5]float64
	latency [chandler.LatencyBuckets]float64
}

// assign tells of an attachment.
func (e *envoy) assign(a *chandler.Attachment, version string, c Conduct, fetch bool, now time.Time) {
	e.advance(now)
	p := e.plugins[a.Key]
	if p == nil || p.UID != a.UID {
		p = &plugin{}
		e.plugins[a.Key] = p
	}
	p.Attachment, p.version, p.conduct, p.since = a, version, c, now
	if n := len(p.told); n < maxTold && (n == 0 || p.told[n-1] != a.Release) {
		p.told = append(p.told, a.Release)
	}
	known := p.good != nil && p.good.Release == a.Release
	if p.fetched = known || !fetch || a.Program.Module == nil; known {
		p.conduct.Delay = 0
	}
	p.set(chandler.StatePending, now)
	e.advance(now)
}

func (p *plugin) set(s chandler.State, now time.Time) {
	if p.state != s {
		p.state, p.changed = s, now
	}
}

// remove tells that a plugin is no longer for this proxy.
func (e *envoy) remove(key chandler.Key, now time.Time) {
	e.advance(now)
	delete(e.plugins, key)
}

// arrived tells that a plugin's module is there.
func (e *envoy) arrived(p *plugin, now time.Time) {
	e.advance(now)
	p.fetched, p.since = true, now
	e.advance(now)
}

// restart begins anew: Envoy counts from zero, and has in force what was.
func (e *envoy) restart(now time.Time) {
	e.advance(now)
	e.starts++
	e.counted = counts{}
}

// due is when something happens by itself next.
func (e *envoy) due() (next time.Time, ok bool) {
	for _, p := range e.plugins {
		if at, waits := p.due(); waits && (!ok || at.Before(next)) {
			next, ok = at, true
		}
	}
	return next, ok
}

func (p *plugin) due() (time.Time, bool) {
	return p.since.Add(p.conduct.Delay), p.state == chandler.StatePending && p.fetched
}

// advance lets time pass: requests are answered, releases come in force or are refused.
func (e *envoy) advance(now time.Time) {
	for {
		next, ok := e.due()
		if !ok || next.After(now) {
			break
		}
		e.answer(next)
		for _, p := range e.plugins {
			if at, waits := p.due(); waits && !at.After(next) {
				e.settle(p, next)
			}
		}
	}
	e.answer(now)
}

// settle has a release come in force, or not.
func (e *envoy) settle(p *plugin, now time.Time) {
	switch {
	case !e.slot(p.Phase, p.Type).Holds(p.Attachment):
		p.good = nil
		p.set(chandler.StateUnmatched, now)
	case p.conduct.Fail != "" || p.Program.Deny:
		p.set(chandler.StateFailed, now)
	case p.conduct.Reject != "":
		p.rejections++
		p.set(chandler.StateRejected, now)
	default:
		p.good, p.behaves = p.Attachment, p.conduct
		p.set(chandler.StateInForce, now)
	}
}

func (e *envoy) slot(phase chandler.Phase, typ chandler.FilterType) attach.Slot {
	return attach.Slot{Phase: phase, Mode: e.mode, Port: e.port, Network: typ == chandler.Network}
}

// answer answers what was asked since the last time.
func (e *envoy) answer(now time.Time) {
	seconds := now.Sub(e.at).Seconds()
	if seconds <= 0 {
		return
	}
	e.at = now
	how := e.usual
	said := false
	for _, key := range e.keys() {
		p := e.plugins[key]
		if p.good == nil {
			continue
		}
		p.traps += p.behaves.Traps * seconds
		if a := p.behaves.Answers; a != nil && !said {
			how, said = a, true
		}
	}
	e.counted.add(how, e.rate*seconds)
}

func (e *envoy) keys() []chandler.Key {
	keys := make([]chandler.Key, 0, len(e.plugins))
	for key := range e.plugins {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, chandler.Key.Compare)
	return keys
}

func (c *counts) add(how *Answers, n float64) {
	rest := 1 - how.Redirects - how.ClientErrors - how.ServerErrors
	for class, share := range [5]float64{0, rest, how.Redirects, how.ClientErrors, how.ServerErrors} {
		c.classes[class] += n * share
	}
	c.latency[bucket(how.Typical)] += 0.95 * n
	c.latency[bucket(how.Slow)] += 0.05 * n
}

func bucket(took time.Duration) int {
	for i, bound := range chandler.LatencyBounds() {
		if took <= bound {
			return i
		}
	}
	return chandler.LatencyBuckets - 1
}

func (c *counts) whole() (a chandler.Answers) {
	for i, n := range c.classes {
		a.Classes[i] = uint64(n)
	}
	for i, n := range c.latency {
		a.Latency[i] = uint64(n)
	}
	return a
}

// traffic gives what was answered. The hour before is told as it is in the first hour:
// what was before it began counts as usual.
func (e *envoy) traffic() []chandler.Traffic {
	hour := e.counted
	if before := min(e.history, time.Hour-e.at.Sub(e.began)); before > 0 {
		hour.add(e.usual, e.rate*before.Seconds())
	}
	return []chandler.Traffic{{Mode: e.mode, Port: e.port, Epoch: fmt.Sprint(e.starts), Now: e.counted.whole(), Hour: hour.whole()}}
}

// report gives what the agent says of its plugins.
func (e *envoy) report() map[chandler.Key]chandler.AttachmentState {
	states := make(map[chandler.Key]chandler.AttachmentState, len(e.plugins))
	for key, p := range e.plugins {
		s := chandler.AttachmentState{
			Key: key, UID: p.UID, Generation: p.Generation, Release: p.Release, Sequence: p.Sequence,
			State: p.state, Since: p.changed, Rejections: p.rejections, VMTraps: uint64(p.traps),
		}
		if p.good != nil {
			s.InForce = p.good.Release
		}
		switch p.state {
		case chandler.StatePending:
			if !p.fetched {
				s.State = chandler.StateFetching
			}
		case chandler.StateRejected:
			s.Reason, s.Message, s.Attempt = chandler.CodeRejected, p.conduct.Reject, 1
		case chandler.StateFailed:
			s.Reason, s.Message, s.Attempt = chandler.CodeFetchFailed, cmp.Or(p.conduct.Fail, "there is no module"), 1
			if p.Program.Deny && p.good == nil {
				s.StandIn = chandler.StandInDeny
			}
		}
		states[key] = s
	}
	return states
}

// facts gives what the agent says of its proxy: one listener, with what is in force.
func (e *envoy) facts() *chandler.Facts {
	l := chandler.Listener{Name: "main", Address: fmt.Sprintf("127.0.0.1:%d", e.port), Port: e.port, Mode: e.mode}
	for _, phase := range chandler.Phases() {
		l.Slots = append(l.Slots, chandler.Slot{Name: e.slot(phase, chandler.HTTP).Name(), Type: chandler.HTTP, Phase: phase})
	}
	var all []*chandler.Attachment
	modules := map[chandler.ModuleDigest]int64{}
	for _, p := range e.plugins {
		if p.good != nil {
			all = append(all, p.good)
			if m := p.good.Program.Module; m != nil {
				modules[m.Digest] = m.Size
			}
		}
	}
	slices.SortFunc(all, func(a, b *chandler.Attachment) int { return a.CompareOrder(b) })
	for _, a := range all {
		if a.Type == chandler.Network {
			s := attach.Slot{Phase: a.Phase, Mode: e.mode, Port: e.port, Network: true, Plugin: a.Key}
			l.Slots = append(l.Slots, chandler.Slot{Name: s.Name(), Type: a.Type, Phase: a.Phase, Members: []chandler.SlotMember{{Key: a.Key, Release: a.Release}}})
			continue
		}
		at := slices.Index(chandler.Phases(), a.Phase)
		l.Slots[at].Members = append(l.Slots[at].Members, chandler.SlotMember{Key: a.Key, Release: a.Release})
	}
	f := &chandler.Facts{Slots: true, Listeners: []chandler.Listener{l}, Store: chandler.StoreUse{Modules: len(modules), Limit: 1 << 30}}
	for _, size := range modules {
		f.Store.Bytes += size
	}
	return f
}
