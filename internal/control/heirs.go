package control

import (
	"maps"
	"slices"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/record"
)

// A resource that is deleted and made anew (kubectl replace --force) has another uid, and
// is another plugin to agents. To people it is a change: where the one before is still on
// proxies, the new one begins from what is everyone's of it, as if that were its own. So
// its plan's steps apply, and who is not chosen yet is not left without the plugin.

// legacy is what a plugin takes over from the one of its name that went.
type legacy struct {
	base    *chandler.Release // as the heir's own; nil: nothing is everyone's
	config  []byte            // of base, with the secrets in it
	rollout record.Rollout    // to go on from
}

// inherit makes a legacy of the record of the one that went, and the release that is
// everyone's by it.
func inherit(uid string, old *record.Rollout, base *chandler.Release) legacy {
	in := legacy{rollout: record.Rollout{UID: uid, Key: old.Key, Course: record.Course{Disabled: old.Disabled}}}
	if base == nil {
		return in
	}
	own := *base
	own.UID, own.Generation = uid, 0 // it is of no generation of the heir's
	own = own.WithID()
	in.base = &own
	in.rollout.Release, in.rollout.Sequence, in.rollout.Scope = own.ID, 1, everyones(old).Scope
	in.rollout.Note(chandler.HistoricRelease{
		Release: own.ID, Sequence: 1, At: old.UpdatedAt, Outcome: record.InForce, Why: "of the resource of this name before, which was deleted",
	})
	return in
}

// onto gives what the heir's rollout goes on from, where it has a record of orders already.
func (in *legacy) onto(own *record.Rollout) *record.Rollout {
	ro := in.rollout
	if own != nil {
		ro.Disabled = slices.Concat(ro.Disabled, own.Disabled)
	}
	return &ro
}

// succeed notes which plugins of which nothing was rolled out take the place of one that
// went: of one that was there in the last snapshot (was), or is being taken out. After a
// start proxies may have whatever is recorded.
func (l *loop) succeed(was map[string]*chandler.Plugin, first bool) {
	maps.DeleteFunc(l.from, func(uid, old string) bool {
		return l.byUID[uid] == nil || l.at(uid).Sequence > 0 || l.at(old).UID == ""
	})
	last := map[chandler.Key]*record.Rollout{}
	for uid := range l.gone {
		ro := l.at(uid)
		_, there := was[uid]
		_, parted := l.partings[uid]
		if before := last[ro.Key]; (first || there || parted || ro.Kept != nil) && (before == nil || ro.UpdatedAt.After(before.UpdatedAt)) {
			last[ro.Key] = ro
		}
	}
	for i := range l.snapshot.Objects {
		o := &l.snapshot.Objects[i]
		if ro := last[o.Key]; ro != nil && l.at(o.UID).Sequence == 0 && l.from[o.UID] == "" {
			l.from[o.UID] = ro.UID
		}
	}
}

// bequeaths tells whether somebody is yet to take a legacy over.
func (l *loop) bequeaths(uid string) bool {
	for heir, old := range l.from {
		if old == uid && l.at(heir).Sequence == 0 {
			return true
		}
	}
	return false
}

// legacy gives what a plugin takes over, by its plan; nil: nothing. What the policy takes
// out is on no proxy, and nothing that an heir begins from.
func (l *loop) legacy(uid string, plan *chandler.RolloutPlan) *legacy {
	old := l.at(l.from[uid])
	if old.UID == "" || l.at(uid).Sequence > 0 {
		return nil
	}
	var base *chandler.Release
	if plan != nil {
		base = l.known(old.UID, everyones(old).Release)
	}
	if l.barred(base, l.plugin(uid), everyones(old).Scope) != nil {
		base = nil
	}
	if base == nil && len(old.Disabled) == 0 {
		return nil
	}
	in := inherit(uid, old, base)
	in.config, _ = l.config(base)
	return &in
}
