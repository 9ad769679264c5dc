package kube

import (
	"fmt"
	"time"

	"chandler.dev/chandler"
)

// turn is something that happened to a plugin and is worth an Event.
type turn struct {
	reason  chandler.Code
	note    string
	warning bool
}

const (
	// turnBurst and turnEvery bound the Events of one plugin: so many at once, and
	// then one in this time.
	turnBurst = 10
	turnEvery = time.Minute
)

// turns is what was told of a plugin in Events, so that it is not told twice.
type turns struct {
	resolved   string // the message of what was resolved
	programmed int64  // the generation that is in force
	failure    string // why it is not, and of which generation
	spent      int
	since      time.Time // spent was zero, or is counted down from
}

// of gives what turned between what the cluster showed and what it shows now. What
// a control plane finds as it was, after a restart for instance, did not turn.
func (t *turns) of(before, after *statusFields, now time.Time) []turn {
	t.learn(before)
	accepted, resolved, programmed := after.condition(chandler.ConditionAccepted), after.condition(chandler.ConditionResolvedRefs), after.condition(chandler.ConditionProgrammed)
	var out []turn
	tell := func(c conditionJSON, warning bool) {
		if t.allowed(now) {
			out = append(out, turn{c.Reason, c.Message, warning})
		}
	}
	for _, c := range []conditionJSON{accepted, resolved} {
		b := before.condition(c.Type)
		if c.Status == chandler.False && (b.Status != c.Status || b.Reason != c.Reason || b.ObservedGeneration != c.ObservedGeneration) {
			tell(c, true)
		}
	}
	if resolved.Status == chandler.True && resolved.Message != t.resolved {
		tell(resolved, false)
	}
	switch why := failing(after); {
	case why != "" && why != t.failure:
		tell(programmed, true)
	case programmed.Status == chandler.True && (programmed.ObservedGeneration != t.programmed || t.failure != ""):
		tell(programmed, false) // a proxy that joins is no turn
	}
	if c := after.condition(chandler.ConditionReady); c.Reason == chandler.CodeVMTrap && before.condition(c.Type).Reason != c.Reason {
		tell(c, true)
	}
	t.learn(after)
	return out
}

// learn takes what a status says for told.
func (t *turns) learn(f *statusFields) {
	if c := f.condition(chandler.ConditionResolvedRefs); c.Status == chandler.True {
		t.resolved = c.Message
	}
	if why := failing(f); why != "" {
		t.failure = why
	}
	if c := f.condition(chandler.ConditionProgrammed); c.Status == chandler.True {
		t.programmed, t.failure = c.ObservedGeneration, ""
	}
}

// failing tells why a plugin that is accepted and resolved is not in force
// somewhere; empty: it is, or is on its way.
func failing(f *statusFields) string {
	c := f.condition(chandler.ConditionProgrammed)
	if c.Status != chandler.False || c.Reason == chandler.CodeProgressing || c.Reason == chandler.CodeRolloutProgressing || f.condition(chandler.ConditionAccepted).Status != chandler.True ||
		f.condition(chandler.ConditionResolvedRefs).Status != chandler.True {
		return ""
	}
	return fmt.Sprint(c.Reason, " ", c.ObservedGeneration)
}

// allowed takes one Event from what is left.
func (t *turns) allowed(now time.Time) bool {
	if t.spent == 0 {
		t.since = now
	}
	if back := int(now.Sub(t.since) / turnEvery); back > 0 {
		t.spent, t.since = max(0, t.spent-back), t.since.Add(time.Duration(back)*turnEvery)
	}
	if t.spent >= turnBurst {
		return false
	}
	t.spent++
	return true
}
