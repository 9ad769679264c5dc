// Package rollout decides how a change of a plugin goes from some proxies to all: whom
// the next step is for, what has to hold before it, and what becomes of a release that
// does not hold. It is pure: no clock, no I/O; what was seen comes in, a decision goes out.
//
// It keeps nothing itself and moves no proxy: the control plane records the State, and
// gives each proxy what Choice says.
package rollout

import (
	"maps"
	"slices"
	"time"

	"chandler.dev/chandler"
)

// State is where the rollout of one plugin is, as it is recorded. What is over has none.
//
// All that decides is in it, and all of it goes through JSON, so that a control plane
// that comes back goes on where its last record says; and it is of a bounded size,
// however many proxies there are. An older one is no wrong one: it counts from what it
// saw then.
type State struct {
	Plan  chandler.RolloutPlan
	Step  int
	Phase chandler.RolloutState // Progressing or Paused
	// Since is when the step began.
	Since time.Time
	// Watched is when all that were chosen had the release for the first time in this
	// step: the interval runs from then on. Whole is when that was so last.
	Watched time.Time `json:",omitzero"`
	Whole   time.Time `json:",omitzero"`
	// Choice is who has the new release, and Members how many of them were connected when
	// they were chosen.
	Choice  Choice
	Members int
	// Reason and Message say why it is paused, or was taken back.
	Reason  chandler.Code `json:",omitempty"`
	Message string        `json:",omitempty"`
	// Chosen and Others are what both sides did in this step, and Before what the chosen
	// ones answered in the hour before they were.
	Chosen, Others Side
	Before         chandler.Answers
}

// Decision is what is to be done.
type Decision string

// The decisions. With Advance and Pause the State that comes with them says so already.
const (
	Stay     Decision = "Stay"
	Advance  Decision = "Advance" // to State.Step, which may be the same, with another Choice
	Pause    Decision = "Pause"   // State.Reason and Message say why
	RollBack Decision = "RollBack"
	Finish   Decision = "Finish" // everyone has it
)

// deadline is how long the release may take to be in force on all that are chosen, or
// the plan's interval, whichever is longer.
const deadline = 2 * time.Minute

// reunion is how long a control plane that has just begun, or has just been made the
// leader, waits for the agents to come back before it concludes anything from their
// absence; or the plan's interval, whichever is shorter. That too little was answered it
// does not conclude sooner, however short the interval.
const reunion = 30 * time.Second

// Begin gives the rollout at its first step. What the chosen proxies answered before is
// taken from Observed here, so their traffic should be known by then, and the proxies
// reunited.
func Begin(plan chandler.RolloutPlan, o Observed, now time.Time) State {
	s := State{Plan: plan, Step: -1, Phase: chandler.RolloutProgressing}
	s.enter(0, Choose(o.UID, o.There(&plan, now), Choice{}, plan.Steps[0]), o, now)
	return s
}

// Due is when the next step may come at the earliest; zero: it waits for a word.
func (s State) Due() time.Time {
	switch {
	case s.Phase == chandler.RolloutPaused:
		return time.Time{}
	case s.Watched.IsZero():
		return s.Since.Add(s.Plan.Interval)
	}
	return s.Watched.Add(s.Plan.Interval)
}

// Next takes in what is seen now, and decides. It is to be called again and again, also
// of a rollout that is paused: what its release does is measured all the same. A gate that
// fails decides at once, gates that hold only when the step was watched for the interval.
//
// Of a rollout that is to be taken back the State is what it was, with the reason.
func Next(s State, o Observed, now time.Time) (State, Decision, []chandler.Measure) {
	s = s.clone()
	somebody := s.chooseSomebody(o, now)
	v := s.look(o)
	s.observe(v, now)
	measures := s.measure(v, now)
	if somebody {
		return s, Advance, measures
	}
	failed, inconclusive := those(measures, chandler.GateFailed), those(measures, chandler.GateInconclusive)
	switch {
	case failed != "":
		s.Reason, s.Message = chandler.CodeGateFailed, failed
		if s.Plan.OnFailure != chandler.OnFailurePause {
			return s, RollBack, measures
		}
		if s.Phase == chandler.RolloutPaused {
			return s, Stay, measures
		}
		s.Phase = chandler.RolloutPaused
		return s, Pause, measures
	case s.Phase == chandler.RolloutPaused:
		return s, Stay, measures
	case inconclusive != "":
		s.Phase, s.Reason, s.Message = chandler.RolloutPaused, chandler.CodeGateInconclusive, inconclusive
		return s, Pause, measures
	case those(measures, chandler.GateWaiting) != "" || !s.over(v, now):
		return s, Stay, measures
	}
	next, decision := Promote(s, o, now)
	return next, decision, measures
}

// Promote goes to the next step, whatever the gates say: Advance, or Finish where there
// is none. The proxies should be reunited. A step that adds nobody is passed over.
func Promote(s State, o Observed, now time.Time) (State, Decision) {
	s = s.clone()
	nodes := o.There(&s.Plan, now)
	for at := s.Step + 1; at < len(s.Plan.Steps); at++ {
		step := s.Plan.Steps[at]
		choice := Choose(o.UID, nodes, s.Choice, step)
		more := count(o.UID, nodes, choice) - count(o.UID, nodes, s.Choice)
		if more > 0 || len(step.Labels) > 0 && !slices.ContainsFunc(nodes, labelled(step.Labels)) {
			s.enter(at, choice, o, now)
			return s, Advance
		}
	}
	s.Step, s.Choice, s.Phase, s.Reason, s.Message = len(s.Plan.Steps), Everyone(), chandler.RolloutProgressing, "", ""
	return s, Finish
}

// Resume has a paused rollout watch its step once more, from the beginning.
func Resume(s State, o Observed, now time.Time) State {
	s = s.clone()
	s.enter(s.Step, s.Choice, o, now)
	return s
}

// Halt pauses a rollout by somebody's word.
func Halt(s State, why string) State {
	s = s.clone()
	s.Phase, s.Reason, s.Message = chandler.RolloutPaused, chandler.CodePaused, why
	return s
}

// chooseSomebody begins a step again that chose nobody, as nobody was there.
func (s *State) chooseSomebody(o Observed, now time.Time) bool {
	if s.Members > 0 || s.Phase != chandler.RolloutProgressing || !o.Reunited(&s.Plan, now) {
		return false
	}
	nodes := o.There(&s.Plan, now)
	choice := Choose(o.UID, nodes, s.Choice, s.Plan.Steps[s.Step])
	if count(o.UID, nodes, s.Choice) > 0 || count(o.UID, nodes, choice) == 0 {
		return false
	}
	s.enter(s.Step, choice, o, now)
	return true
}

// enter begins a step.
func (s *State) enter(at int, choice Choice, o Observed, now time.Time) {
	before := s.Choice
	s.Step, s.Choice, s.Members = at, choice, 0
	s.Phase, s.Reason, s.Message = chandler.RolloutProgressing, "", ""
	s.Since, s.Watched, s.Whole = now, time.Time{}, time.Time{}
	s.Chosen, s.Others = Side{}, Side{}
	for i := range o.Proxies {
		p := &o.Proxies[i]
		if !p.Connected || !p.Keeps && !choice.Has(o.UID, p.Node) {
			continue
		}
		s.Members++
		if !p.Keeps && !before.Has(o.UID, p.Node) {
			for _, t := range p.Traffic {
				s.Before.Add(&t.Hour)
			}
		}
	}
}

// over tells whether the step was watched for long enough.
func (s *State) over(v view, now time.Time) bool {
	return !s.Watched.IsZero() && !now.Before(s.Watched.Add(s.Plan.Interval)) && v.Reunited(&s.Plan, now)
}

func (s State) clone() State {
	s.Plan.Steps = slices.Clone(s.Plan.Steps)
	s.Choice.Labels = slices.Clone(s.Choice.Labels)
	s.Chosen.Groups, s.Others.Groups = maps.Clone(s.Chosen.Groups), maps.Clone(s.Others.Groups)
	return s
}
