package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/assign"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/rollout"
)

// Rollouts in steps. Whoever leads looks at each that is under way once a second, asks
// package rollout what is to become of it, and moves its record; every replica then gives
// its agents what the record says. What was seen since the record was written is in
// memory, and a leader that comes anew begins from the record.

const (
	// beat is between two looks at the rollouts that are under way, at most.
	beat = rollout.MaxLook
	// rewrite is how often what was seen is recorded, though nothing follows from it.
	rewrite = 30 * time.Second
	// empty is how long it waits for a proxy before it is over, as there is none.
	empty = 10 * time.Second
)

// watched is a rollout that is under way, as this leader has seen it.
type watched struct {
	revision uint64 // of the record that it goes on from
	state    rollout.State
	written  time.Time
	gauge    gauge
}

// moved is a record that was to be moved beside the loop.
type moved struct {
	uid    string
	stored *record.Rollout // as it is now; nil: nobody knows
	seen   watched         // when err is nil
	err    error
	event  *chandler.Event
}

// consider notes whether a plugin's rollout has to be looked at.
func (l *loop) consider(uid string) {
	ro := l.at(uid)
	kept, ghost := l.ghost(uid)
	switch {
	case ro.Stage != nil && (ghost || l.byUID[uid] != nil), ghost && !kept.Stays:
		l.unsettled[uid] = true
	default:
		delete(l.unsettled, uid)
		delete(l.watching, uid)
	}
}

// restless tells whether there is something to look at here.
func (l *loop) restless() bool { return len(l.unsettled) > 0 && l.c.leads() }

// advance looks at all rollouts that are under way, and gives when to look again; zero:
// there are none.
func (l *loop) advance(ctx context.Context) time.Duration {
	l.ask()
	if !l.restless() {
		return 0
	}
	pause := beat
	for uid := range l.unsettled {
		if st := l.at(uid).Stage; st != nil {
			pause = min(pause, rollout.LookEvery(&st.Plan))
		}
	}
	now := l.c.cfg.Now().UTC()
	if wait := l.looked.Add(pause).Sub(now); wait > 0 && wait <= pause && !l.kicked {
		return wait
	}
	if !l.c.Authoritative() {
		return pause
	}
	_, term := l.c.office.self()
	l.looked, l.kicked = now, false
	members := l.c.fleet.list()
	for uid := range l.unsettled {
		e := l.entryOf(uid)
		if ro := l.at(uid); l.moving[uid] || e == nil || e.course.rollout.Revision != ro.Revision {
			continue // when that is over
		}
		l.step(ctx, e, members, now)
	}
	l.c.gauge(gaugesOf(l.watching, term))
	return pause
}

// entryOf is a plugin's entry in the last publication, or its ghost's.
func (l *loop) entryOf(uid string) *entry {
	if o := l.byUID[uid]; o != nil {
		if e := l.entries[o.Key]; e != nil && e.object.UID == uid {
			return e
		}
		return nil
	}
	for _, e := range l.c.published.Load().ghosts {
		if e.object.UID == uid {
			return e
		}
	}
	return nil
}

// step looks at one rollout.
func (l *loop) step(ctx context.Context, e *entry, members []member, now time.Time) {
	ro, uid := *l.at(e.object.UID), e.object.UID
	if ro.Stage == nil {
		if kept, ok := l.ghost(uid); ok {
			l.move(ctx, leaving(ro, kept, now), &chandler.Event{Reason: chandler.EventRolloutStarted, Message: "its resource is gone; it is taken out in steps"})
		}
		return
	}
	if e.course.denial != nil {
		return // nobody can have it: to go on would take the one before out of everyone
	}
	if ro.Release == "" && l.byUID[uid] != nil {
		return // it was being taken out and is there again: what it means is found out first
	}
	w := l.watching[uid]
	if w.revision != ro.Revision {
		w = watched{revision: ro.Revision, state: ro.Stage.State, written: now}
	}
	o := l.c.observed(e, members)
	var next rollout.State
	var decision rollout.Decision
	switch order := ro.Stage.Order; {
	case w.state.Step == unbegun && e.denial(ro.Release) != nil:
		return
	case w.state.Step == unbegun:
		l.first(ctx, ro, o, now)
		return
	case order == record.Promote && !o.Reunited(&w.state.Plan, now):
		return
	case order == record.Promote:
		next, decision = rollout.Promote(w.state, o, now)
	case order == record.Resume:
		next, decision = rollout.Resume(w.state, o, now), rollout.Advance
	default:
		w.gauge.since = w.state.Since
		next, decision, w.gauge.measures = rollout.Next(w.state, o, now)
		if why := e.noReturn(); why != "" && decision == rollout.RollBack {
			next, decision = stuck(w.state, next, why)
		}
	}
	if onwards := decision == rollout.Advance || decision == rollout.Finish; onwards && e.denial(ro.Release) != nil {
		return // no more proxies are to have it, and those who have it are watched
	}
	before := w.state
	w.state = next
	l.watching[uid] = w
	l.decided(ctx, ro, before, w, o, decision, now)
}

// stuck has a rollout wait for somebody's word that was to be taken back and cannot be.
// Once it can be, it is.
func stuck(before, next rollout.State, why string) (rollout.State, rollout.Decision) {
	again := before.Phase == chandler.RolloutPaused && before.Reason == next.Reason
	next.Phase = chandler.RolloutPaused
	next.Message += "; it is not taken back: " + why
	if again {
		return next, rollout.Stay
	}
	return next, rollout.Pause
}

// first begins a rollout: as soon as proxies are there, and said what they answered before
// it.
func (l *loop) first(ctx context.Context, ro record.Rollout, o rollout.Observed, now time.Time) {
	waited, silent := now.Sub(ro.Stage.Since), false
	for i := range o.Proxies {
		p := &o.Proxies[i]
		silent = silent || p.Connected && len(p.Traffic) == 0
	}
	there := len(o.There(&ro.Stage.Plan, now))
	switch {
	case !o.Reunited(&ro.Stage.Plan, now), there == 0 && waited < empty, silent && waited < rollout.Foreword:
		return
	case there == 0:
		l.move(ctx, arrived(ro, now), &chandler.Event{Reason: chandler.EventRolloutDone, Message: "no proxy is connected that it is for: there is nothing to watch"})
		return
	}
	state := rollout.Begin(ro.Stage.Plan, o, now)
	l.move(ctx, staged(ro, state), &chandler.Event{Reason: chandler.EventRolloutStep, Message: stepText(&state, o)})
}

// staged gives a record whose rollout is in another state.
func staged(ro record.Rollout, state rollout.State) record.Rollout {
	st := *ro.Stage
	st.State, st.Order = state, ""
	ro.Stage = &st
	return ro
}

// stepText says who has the release now.
func stepText(s *rollout.State, o rollout.Observed) string {
	chosen, all := 0, 0
	for i := range o.Proxies {
		if p := &o.Proxies[i]; p.Connected {
			all++
			if p.Keeps || s.Choice.Has(o.UID, p.Node) {
				chosen++
			}
		}
	}
	return fmt.Sprintf("step %d of %d (%s): %d of %s", min(s.Step+1, len(s.Plan.Steps)), len(s.Plan.Steps), s.Plan.Steps[min(s.Step, len(s.Plan.Steps)-1)], chosen, chandler.Count(all, "proxy", "proxies"))
}

// decided has a record moved as was decided, or written anew when it is long ago.
func (l *loop) decided(ctx context.Context, ro record.Rollout, before rollout.State, w watched, o rollout.Observed, d rollout.Decision, now time.Time) {
	next := staged(ro, w.state)
	next.UpdatedAt = now
	event := &chandler.Event{}
	switch d {
	case rollout.Advance:
		event.Reason, event.Message = chandler.EventRolloutStep, stepText(&w.state, o)
	case rollout.Pause:
		event.Reason, event.Message, event.Warning = chandler.EventRolloutPaused, w.state.Message, true
		l.c.metrics.gates(w.gauge.measures)
	case rollout.Finish:
		next, event.Reason, event.Message = arrived(ro, now), chandler.EventRolloutDone, "everyone has "+releaseText(ro.Release)
	case rollout.RollBack:
		why := record.Failure{Reason: w.state.Reason, Message: w.state.Message, Gates: w.gauge.measures, At: now}
		next = takenBack(ro, why, record.RolledBack, "")
		event.Reason, event.Message, event.Warning = chandler.EventRolledBack, fmt.Sprintf("%s: back to %s", w.state.Message, releaseText(next.Release)), true
		l.c.metrics.gates(w.gauge.measures)
	default:
		chosen := !reflect.DeepEqual(before.Choice, w.state.Choice)
		if !chosen && before.Watched.IsZero() == w.state.Watched.IsZero() && now.Sub(w.written) < rewrite {
			return
		}
		if event = nil; chosen {
			event = &chandler.Event{Reason: chandler.EventRolloutStep, Message: stepText(&w.state, o)}
		}
	}
	l.move(ctx, next, event)
}

func releaseText(id chandler.ReleaseID) string {
	if id == "" {
		return "nothing"
	}
	return "release " + id.Short()
}

// move has a record moved beside the loop: no agent hears of it before it is written.
func (l *loop) move(ctx context.Context, next record.Rollout, event *chandler.Event) {
	old, w := l.at(next.UID), l.watching[next.UID]
	l.moving[next.UID] = true
	if event != nil {
		event.Key = next.Key
	}
	go func() {
		m := moved{uid: next.UID, event: event}
		m.stored, m.err = l.c.swapExactly(ctx, old, next)
		if m.err == nil && m.stored.Stage != nil {
			m.seen = watched{revision: m.stored.Revision, state: m.stored.Stage.State, written: next.UpdatedAt, gauge: w.gauge}
		}
		l.c.moved <- m
	}()
}

// hasMoved takes in what became of a move. One that failed is found due again.
func (l *loop) hasMoved(m moved) {
	delete(l.moving, m.uid)
	if m.stored != nil {
		l.keep(*m.stored)
	}
	log := l.c.log.With("uid", m.uid)
	switch {
	case errors.Is(m.err, context.Canceled), errors.Is(m.err, record.ErrConflict):
	case m.err != nil:
		l.recordNext = l.c.cfg.Now().Add(collectEvery)
		log.Warn("a rollout cannot be recorded yet", "error", m.err)
	default:
		if m.stored.Stage != nil {
			l.watching[m.uid] = m.seen
		}
		if m.event != nil {
			log.Info("rollout", "plugin", m.event.Key.String(), "what", string(m.event.Reason), "message", m.event.Message, "release", m.stored.Release.Short(), "sequence", m.stored.Sequence)
			l.c.Emit(*m.event)
		}
	}
}

// swapExactly moves a record on. When it is not what it was thought to be, the error is
// record.ErrConflict, and what it is instead is given.
func (c *Control) swapExactly(ctx context.Context, old *record.Rollout, next record.Rollout) (*record.Rollout, error) {
	from := old
	if old != nil && old.Revision == 0 {
		from = nil // it was lost; its sequence goes on
	}
	stored, err := c.cfg.Records.SwapRollout(ctx, from, next)
	switch {
	case err == nil:
		return &stored, nil
	case !errors.Is(err, record.ErrConflict):
		return nil, err
	}
	all, readErr := c.cfg.Records.Rollouts(ctx)
	if readErr != nil {
		return nil, readErr
	}
	for i := range all {
		if all[i].UID == next.UID {
			return &all[i], err
		}
	}
	if old != nil {
		lost := *old
		lost.Revision = 0
		return &lost, err
	}
	return nil, err
}

// observed is what is known of the proxies that a rollout is about.
func (c *Control) observed(e *entry, members []member) rollout.Observed {
	_, since := c.office.self()
	o := rollout.Observed{UID: e.object.UID, Heard: since}
	var match []chandler.Match
	for _, v := range e.variants() {
		if v.target != nil && o.Type == "" {
			o.Type, match = v.target.Type, v.target.Match
		}
	}
	withholds := c.withholds()
	for i := range members {
		m := &members[i]
		if !e.concerns(m.node, c.cfg.RootNamespace) || e.disabled(m.node) != nil || m.facts.Bypass(e.object.Key) != nil ||
			withholds && e.target != nil && !e.target.FitFor(m.node.EnvoyVersion) {
			continue
		}
		p := c.says(e, m)
		p.Traffic = rollout.Concerned(match, m.traffic)
		o.Proxies = append(o.Proxies, p)
	}
	return o
}

// says is what a proxy says of the release that is on its way.
func (c *Control) says(e *entry, m *member) rollout.Proxy {
	p := rollout.Proxy{Node: m.node, Connected: m.connected, Since: m.since}
	said, told := m.states[e.object.Key]
	var to chandler.ReleaseID
	if e.target != nil && !e.nothing && assign.Selects(e.whom, m.node, c.cfg.RootNamespace) {
		to = e.target.ID
	}
	p.Read(to, e.course.sequence, said, told && said.UID == e.object.UID)
	return p
}

// ask has proxies say what they answer, as long as a rollout is about them.
func (l *loop) ask() {
	var about []*entry
	interval, text := rollout.MaxTraffic, ""
	if l.restless() {
		for _, uid := range slices.Sorted(maps.Keys(l.unsettled)) {
			e := l.entryOf(uid)
			if e == nil || e.course.rollout.Stage == nil {
				continue
			}
			about = append(about, e)
			interval = min(interval, rollout.TrafficEvery(&e.course.rollout.Stage.Plan))
			text += fmt.Sprint(uid, " ", e.course.rollout.Revision, ";")
		}
	}
	if text == l.asked {
		return
	}
	l.asked = text
	if len(about) == 0 {
		l.c.fleet.ask(0, nil)
		return
	}
	root := l.c.cfg.RootNamespace
	l.c.fleet.ask(interval, func(n chandler.Node) bool {
		return slices.ContainsFunc(about, func(e *entry) bool { return e.concerns(n, root) })
	})
}

// begun tells of a release that is on its way.
func (l *loop) begun(ro *record.Rollout) {
	if ro.Stage == nil {
		return
	}
	l.kicked = true
	var steps []string
	for _, s := range ro.Stage.Plan.Steps {
		steps = append(steps, s.String())
	}
	l.c.Emit(chandler.Event{
		Key: ro.Key, Reason: chandler.EventRolloutStarted,
		Message: fmt.Sprintf("%s in steps %s, from %s", releaseText(ro.Release), strings.Join(steps, ", "), releaseText(ro.Stage.Base.Release)),
	})
}
