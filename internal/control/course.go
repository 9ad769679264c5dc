package control

import (
	"reflect"
	"slices"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/rollout"
)

// How a rollout record moves. All of it is pure: a record comes in, and what is to be
// written in its place goes out. A record that comes in is never changed, nor what it
// points to.

// unbegun is the step of a rollout for which nobody was chosen yet.
const unbegun = -1

// goal is what is to be everyone's.
type goal struct {
	release    chandler.ReleaseID // empty: nothing
	generation int64
	scope      *record.Scope
	// same: nothing that a proxy does is another than under the release that is everyone's.
	same    bool
	by, why string
}

// scopeOf is whom a plugin is for, by its resource.
func scopeOf(p *chandler.Plugin) *record.Scope {
	return &record.Scope{Selector: p.Selector, TargetRefs: p.TargetRefs}
}

// scoped is a plugin for those whom a scope names; nil: for whom the plugin says.
func scoped(p *chandler.Plugin, s *record.Scope) *chandler.Plugin {
	if p == nil || s == nil {
		return p
	}
	other := *p
	other.Selector, other.TargetRefs = s.Selector, s.TargetRefs
	return &other
}

// alike tells whether proxies do the same by two releases.
func alike(a, b *chandler.Release) bool {
	if a == nil || b == nil {
		return false
	}
	effect := func(r *chandler.Release) []any {
		return []any{r.Program, r.Behaviour, r.ConfigFrom, r.Capabilities, r.SecretConfig}
	}
	return reflect.DeepEqual(effect(a), effect(b))
}

// adoption is a release that a resource was found to mean.
type adoption struct {
	release *chandler.Release
	plugin  *chandler.Plugin
	plan    *chandler.RolloutPlan
	before  *chandler.Release // that is everyone's; nil: none, or nobody knows
	now     time.Time
}

// adopted takes in what a resource means now. What was taken back and what is pinned
// stays as it is until there is another generation.
func adopted(old *record.Rollout, in adoption) record.Rollout {
	r := in.release
	next := record.Rollout{}
	if old != nil {
		next = *old
	}
	if r.Generation != next.Generation {
		next.Bad, next.Failure, next.Pinned = nil, nil, false
	}
	next.UID, next.Key, next.Generation, next.UpdatedAt, next.Pin = r.UID, r.Key, r.Generation, in.now, pin(*r)
	next.Kept = nil
	if in.plan != nil {
		next.Kept = &record.Kept{Created: in.plugin.Created, FirstAttach: in.plugin.FirstAttach, Plan: *in.plan}
	}
	to := goal{release: r.ID, generation: r.Generation, scope: scopeOf(in.plugin)}
	if next.Pinned || slices.Contains(next.Bad, r.ID) {
		next.Wanted = &record.Assigned{Release: r.ID, Scope: to.scope}
		return next
	}
	base := everyones(&next)
	to.same = in.before != nil && in.before.ID == base.Release && alike(in.before, r) && reflect.DeepEqual(base.Scope, to.scope)
	return bound(next, to, in.plan, in.now)
}

// everyones is the last release that was for everyone.
func everyones(ro *record.Rollout) record.Assigned {
	if ro.Stage != nil {
		return ro.Stage.Base
	}
	return record.Assigned{Release: ro.Release, Sequence: ro.Sequence, Scope: ro.Scope}
}

// bound has a rollout go to a goal: in steps by a plan, or at once without one. One that
// was under way ends; what was everyone's before it stays so with whoever is not chosen.
func bound(ro record.Rollout, to goal, plan *chandler.RolloutPlan, now time.Time) record.Rollout {
	base, underway := everyones(&ro), ro.Stage != nil
	if underway {
		ro.Outcome(ro.Release, record.Superseded, "", "")
	}
	ro.UpdatedAt, ro.Wanted, ro.Stage, ro.Failure = now, nil, nil, nil
	if base.Release != "" {
		ro.Previous = base.Release
	}
	ro.Sequence++
	if underway && base.Release != "" {
		base.Sequence = ro.Sequence // those who had what was under way take nothing older
		ro.Sequence++
	}
	ro.Release, ro.Scope = to.release, to.scope
	if to.release != "" {
		ro.Note(chandler.HistoricRelease{Release: to.release, Generation: to.generation, Sequence: ro.Sequence, At: now, By: to.by, Why: to.why})
	}
	if plan == nil || to.same || to.release == base.Release {
		return arrived(ro, now)
	}
	// Whom its first step is for is found out next, by who leads.
	ro.Stage = &record.Stage{Base: base, State: rollout.State{Plan: *plan, Step: unbegun, Phase: chandler.RolloutProgressing, Since: now}}
	return ro
}

// arrived is the end of a rollout: its release is everyone's.
func arrived(ro record.Rollout, now time.Time) record.Rollout {
	ro.Stage, ro.UpdatedAt = nil, now
	ro.Outcome(ro.Release, record.InForce, "", "")
	return ro
}

// takenBack gives everyone the release before, as something new. What was on its way is
// bad from now on.
func takenBack(ro record.Rollout, why record.Failure, outcome, by string) record.Rollout {
	base := ro.Stage.Base
	why.Release = ro.Release
	ro.Failure, ro.UpdatedAt = &why, why.At
	switch {
	case ro.Release != "":
		ro.Outcome(ro.Release, outcome, by, why.Message)
		ro.Wanted = &record.Assigned{Release: ro.Release, Scope: ro.Scope}
		if !slices.Contains(ro.Bad, ro.Release) {
			ro.Bad = append(slices.Clone(ro.Bad), ro.Release)
		}
	case ro.Kept != nil: // it was to be taken out
		kept := *ro.Kept
		kept.Stays = true
		ro.Kept = &kept
	}
	ro.Sequence++
	ro.Release, ro.Scope, ro.Previous, ro.Stage = base.Release, base.Scope, "", nil
	return ro
}

// leaving has a plugin whose resource is gone taken out.
func leaving(ro record.Rollout, kept record.Kept, now time.Time) record.Rollout {
	kept.Stays = false
	ro.Kept = &kept
	ro.Pinned, ro.Bad = false, nil
	return bound(ro, goal{}, &kept.Plan, now)
}
