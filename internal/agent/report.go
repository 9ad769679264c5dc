package agent

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"chandler.dev/chandler"
)

// refreshState derives what is said of a plugin. It claims InForce only for a
// version that every slot it belongs to has acknowledged.
func (s *State) refreshState(p *plugin, now time.Time) {
	state := s.pluginState(p)
	if state != p.state {
		p.state, p.since = state, now
	}
}

func (s *State) pluginState(p *plugin) chandler.State {
	v := p.want
	switch {
	case v == nil, !s.knowsPlaces():
		return chandler.StatePending
	case !s.belongs(v) && s.bareFor(v) == nil && !unreadable(v):
		return chandler.StateUnmatched
	case s.bypasses(p):
		return chandler.StateFailed
	case s.bareFor(v) != nil && (s.inForce(v) || !s.belongs(v)):
		return chandler.StateFailed
	case s.inForce(v):
		return chandler.StateInForce
	case p.rejected == v.Version:
		return chandler.StateRejected
	case s.lacks(v) != "":
		return chandler.StateFailed
	}
	if v.Program.Lua != nil || s.usable(v) {
		return chandler.StateReady
	}
	l := s.loads[source(v)]
	switch {
	case l == nil:
		return chandler.StatePending
	case l.running && l.problem == nil && !p.overdue:
		return chandler.StateFetching
	}
	return chandler.StateFailed
}

// Report gives the state of every plugin that is assigned here.
func (s *State) Report() map[chandler.Key]chandler.AttachmentState {
	report := make(map[chandler.Key]chandler.AttachmentState, len(s.plugins))
	for key, p := range s.plugins {
		if p.want != nil {
			report[key] = s.reportOf(p)
		}
	}
	return report
}

func (s *State) reportOf(p *plugin) chandler.AttachmentState {
	v := p.want
	st := chandler.AttachmentState{
		Key: v.Key, UID: v.UID, Generation: v.Generation, Release: v.Release, Sequence: v.Sequence,
		State: p.state, Since: p.since, Rejections: p.rejects + p.failCount, VMTraps: p.traps,
	}
	if s.inForce(v) {
		st.InForce = v.Release
	} else if p.good != nil && s.inForce(p.good) {
		st.InForce = p.good.Release
	} else {
		st.StandIn = s.standIn(v.Key)
		if st.StandIn == chandler.StandInNone && p.standIn == chandler.StandInPass {
			st.StandIn = p.standIn // to be left out takes no place in Envoy
		}
	}
	switch p.state {
	case chandler.StateInForce:
		if !p.trapped.IsZero() {
			st.Reason = chandler.CodeVMTrap
			st.Message = fmt.Sprintf("its VM failed while serving, %s so far", often(p.traps))
		} else if s.hasOwnSlot(v) {
			st.Message = fmt.Sprintf("it has a slot of its own in the listeners and decides for connections made since it came; to attach it drained those before (%s so far)", often(p.drains))
		}
	case chandler.StateReady:
		if s.envoy != "" && !s.open {
			st.Message = "the listeners are not active yet: " + s.warming()
		}
	case chandler.StateUnmatched:
		st.Reason = chandler.CodeNoListener
		st.Message = "no listener of this proxy has the mode and port that the plugin matches"
	case chandler.StateRejected:
		st.Reason, st.Message, st.Attempt, st.NextTry = p.reason, p.message, p.attempt, p.nextTry
	case chandler.StateFailed, chandler.StateFetching:
		s.reportLoad(p, &st)
	}
	if b := s.bareFor(v); b != nil && p.state == chandler.StateFailed && (s.inForce(v) || !s.belongs(v)) {
		st.Reason, st.Message, st.Attempt, st.NextTry = b.Why.Code, b.Why.Error(), 0, time.Time{}
	}
	if b, ok := s.bypassed[v.Key]; ok && p.state == chandler.StateFailed {
		st.Reason, st.Message, st.Attempt, st.NextTry = chandler.CodeBypassed, bypassWords(b), 0, time.Time{}
		if st.InForce == "" && st.StandIn == chandler.StandInNone {
			st.StandIn = chandler.StandInPass
		}
	}
	if s.envoy == "" {
		st.Reason, st.Message = chandler.CodeEnvoyDown, cmp.Or(s.down.Message, "Envoy is not running")
		st.Attempt, st.NextTry = s.down.Attempt, s.down.Next
	}
	return st
}

// reportLoad tells why a module is not on disk. The last error stays in sight
// while the next try runs.
func (s *State) reportLoad(p *plugin, st *chandler.AttachmentState) {
	v := p.want
	if f := s.lacks(v); f != "" {
		st.Reason = chandler.CodeFeatureNotSupported
		st.Message = "this agent cannot do what the plugin needs: " + chandler.Quote(f)
		return
	}
	l := s.loads[source(v)]
	if l == nil {
		return
	}
	st.Attempt = l.attempt
	if l.problem != nil {
		st.Reason, st.Message = l.problem.Code, l.problem.Error()
	}
	if !l.running {
		st.NextTry = l.nextTry
	}
	if p.overdue && st.Reason == "" {
		st.Reason, st.Message = chandler.CodeDeadlinePassed, "the module did not come within the fetch deadline; it is still being fetched"
	}
}

// standIn tells what Envoy holds in a plugin's place.
func (s *State) standIn(key chandler.Key) chandler.StandIn {
	for _, sl := range s.slots {
		if sl.acked != nil {
			if m, ok := sl.acked.members[key]; ok {
				return m.standIn
			}
		}
	}
	return chandler.StandInNone
}

// denied tells whether a denial stands in a plugin's place, or may: Envoy acts on what
// it was sent, and opens its listeners with it, before its answer is here.
func (s *State) denied(key chandler.Key) bool {
	return slices.ContainsFunc(s.slots, func(sl *slot) bool { return sl.acked.denies(key) || sl.sent.denies(key) })
}

// Readiness tells why this proxy should not get traffic yet; nil when it may. A
// plugin counts while its denial stands in for it: one that is being attached to
// a serving proxy leaves traffic as it was.
func (s *State) Readiness() []string {
	if s.envoy == "" {
		return []string{"envoy is not running"}
	}
	if why := s.unlistened(); why != "" {
		return []string{why}
	}
	if !s.open {
		return []string{"listeners are not active: " + s.warming()}
	}
	var why []string
	for _, key := range s.sortedKeys() {
		p := s.plugins[key]
		if p.want == nil || p.want.FailStrategy == chandler.FailOpen || !s.belongs(p.want) {
			continue
		}
		if s.denied(key) {
			why = append(why, key.String()+" is "+string(p.state))
		}
	}
	return why
}

// warming tells what listeners wait for that are not active.
func (s *State) warming() string {
	unasked, waiting, unanswered := 0, 0, 0
	for _, sl := range s.slots {
		switch {
		case !sl.subscribed:
			unasked++
		case sl.sent != nil:
			unanswered++
		case sl.acked == nil:
			waiting++
		}
	}
	of := func(n int) string { return fmt.Sprintf("%d of %d slots", n, len(s.slots)) }
	switch {
	case !s.seeded:
		return "neither the disk nor a control plane has told yet which plugins belong here"
	case unasked > 0:
		return "Envoy has not asked for " + of(unasked)
	case unanswered > 0:
		return "Envoy has not answered for " + of(unanswered)
	case waiting > 0:
		return "nothing has been sent yet for " + of(waiting)
	}
	if s.waiting != "" {
		return "Envoy has all slots that it asked for; " + s.waiting
	}
	return "Envoy has all that it asked for"
}

// Counted tells whether a plugin is in force whose VM Envoy makes anew, and counts,
// when it fails.
func (s *State) Counted() bool {
	for _, p := range s.plugins {
		if p.good != nil && p.good.FailStrategy != chandler.FailOpen && source(p.good) != (Source{}) {
			return true
		}
	}
	return false
}

// Known gives the versions of what is assigned, by resource name: what a
// reconnecting agent tells the control plane it has.
func (s *State) Known() map[string]string {
	known := make(map[string]string, len(s.plugins))
	for key, p := range s.plugins {
		if p.want != nil {
			known[key.String()] = p.want.Version
		}
	}
	return known
}

// keptBack is said in place of what Envoy and a plugin say whose configuration holds
// secrets: it may have them in it.
const keptBack = "Envoy refuses it; why is in Envoy's log on this machine only, as the plugin's configuration holds secrets"

// Discreet tells whether some plugin's configuration holds secrets, so that words of
// Envoy's which may be that plugin's are not to be repeated.
func (s *State) Discreet() bool {
	for _, p := range s.plugins {
		if p.want != nil && p.want.SecretConfig || p.good != nil && p.good.SecretConfig {
			return true
		}
	}
	return false
}

func often(n uint64) string { return chandler.Count(n, "time", "times") }
