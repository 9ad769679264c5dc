package agent

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

// source tells where the bytes of a version come from; zero for programs that
// need none.
func source(v *Version) Source {
	switch {
	case v.Program.Module != nil:
		return Source{Digest: v.Program.Module.Digest}
	case v.Program.File != nil:
		return Source{Digest: v.Program.File.Digest, Path: v.Program.File.Path, Version: v.Version, Pinned: v.Pinned}
	}
	return Source{}
}

// origins tells from where a version's module can be had beside the control
// plane.
func origins(v *Version) []string {
	if v.Program.Module == nil {
		return nil
	}
	return v.Program.Module.Origins
}

func sortedSources(seq iter.Seq[Source]) []Source {
	return slices.SortedFunc(seq, func(a, b Source) int {
		return cmp.Or(cmp.Compare(a.Digest, b.Digest), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Version, b.Version))
	})
}

// lacks names a feature that v requires and this agent has not.
func (s *State) lacks(v *Version) string {
	for _, f := range v.Requires {
		if !slices.Contains(s.set.Features, f) {
			return f
		}
	}
	return ""
}

// unreadable tells of a version of which a later control plane said what this agent
// cannot read, and that it need not: it requires what this agent has not.
func unreadable(v *Version) bool { return v.Program == chandler.Program{} }

// usable tells whether v could go to Envoy now: it has a place there, its bytes
// are on disk, and nothing it requires is missing.
func (s *State) usable(v *Version) bool {
	if v == nil || s.lacks(v) != "" || v.Program.Deny || !s.belongs(v) {
		return false
	}
	src := source(v)
	if src == (Source{}) {
		return v.Program.Lua != nil
	}
	l := s.loads[src]
	return l != nil && l.ready
}

// choose decides what stands for a plugin: a version, a stand-in in its place,
// or nothing. It is the table of BEHAVIOUR 7.
func (s *State) choose(p *plugin) (member, bool) {
	if p.want == nil || !s.belongs(p.want) || s.bypasses(p) {
		return member{}, false
	}
	if v := s.chooseVersion(p); v != nil {
		return member{version: v}, true
	}
	p.standIn = s.chooseStandIn(p)
	return member{p.want, p.standIn}, p.standIn != chandler.StandInNone
}

// chooseVersion gives the version that can run. While listeners warm it must be
// one that this Envoy binary has acknowledged before.
func (s *State) chooseVersion(p *plugin) *Version {
	if !s.open && s.goodEnvoy != s.envoy {
		return nil
	}
	if s.open && p.rejected != p.want.Version && s.usable(p.want) {
		return p.want
	}
	if s.open && s.usable(p.before) {
		return p.before
	}
	if s.usable(p.good) && p.rejected != p.good.Version {
		return p.good
	}
	return nil
}

// chooseStandIn decides for a plugin of which no version can run.
func (s *State) chooseStandIn(p *plugin) chandler.StandIn {
	switch {
	case p.want.Program.Deny:
		return chandler.StandInDeny
	case p.rejected == p.want.Version, p.overdue:
		return contract(p.want)
	case p.want.FirstAttach == chandler.FirstAttachDeny:
		return chandler.StandInDeny
	case p.standIn != chandler.StandInNone:
		return p.standIn
	case !s.open, p.good != nil: // it starts, or it is lost: not left out in silence
		return contract(p.want)
	}
	return chandler.StandInNone // hold: traffic goes on as before
}

// contract is what failStrategy makes of a plugin that cannot run.
func contract(v *Version) chandler.StandIn {
	if v.FailStrategy == chandler.FailOpen {
		return chandler.StandInPass
	}
	return chandler.StandInDeny
}

// settleSlots pushes to every slot what it should hold and does not. A slot has
// one push at a time; what changes meanwhile goes out with the next. adopted
// tells that a slot took in versions without a push, as its bytes are the same:
// that may have put them in force.
func (s *State) settleSlots(now time.Time) (effects []Effect, adopted bool) {
	if !s.seeded || s.envoy == "" || !s.knowsPlaces() {
		return nil, false
	}
	s.awaiting, s.keepUntil = s.awaitsGood(now), time.Time{}
	chosen := s.chooseAll()
	for _, sl := range s.slots {
		if !sl.subscribed || sl.sent != nil || sl.acked == nil && s.awaiting || s.held(sl) {
			continue
		}
		until, keep := s.keeps(sl, now)
		var next *composition
		if !keep {
			if next = s.next(sl, chosen); next == nil {
				continue
			}
			if until, keep = s.ahead(sl, next, now); !keep {
				until, keep = time.Time{}, s.onlyLost(sl, next)
			}
		}
		if keep {
			if !until.IsZero() && (s.keepUntil.IsZero() || until.Before(s.keepUntil)) {
				s.keepUntil = until
			}
			continue
		}
		if sl.acked != nil && !sl.revert && sl.acked.version == next.version {
			sl.acked, adopted = next, true
			continue
		}
		sl.sent = next
		push := Push{Slot: sl.name, Version: next.version, Config: next.config}
		for key, m := range next.members {
			if m.standIn == chandler.StandInNone && m.version.Program.Lua == nil {
				push.Wasm = append(push.Wasm, key)
			}
		}
		slices.SortFunc(push.Wasm, chandler.Key.Compare)
		effects = append(effects, push)
	}
	return effects, adopted
}

func (s *State) chooseAll() map[chandler.Key]member {
	chosen := map[chandler.Key]member{}
	for _, key := range s.sortedKeys() {
		if m, ok := s.choose(s.plugins[key]); ok {
			chosen[key] = m
		}
	}
	return chosen
}

// Pushing tells whether a push awaits its answer.
func (s *State) Pushing() bool {
	return slices.ContainsFunc(s.slots, func(sl *slot) bool { return sl.sent != nil })
}

// awaitsGood tells whether a module of the last good set is still being read
// from disk. The first content of a slot waits for that, as it takes no network:
// listeners do not open, and an Envoy that was left behind keeps what it has.
func (s *State) awaitsGood(now time.Time) bool {
	if !now.Before(s.envoySince.Add(goodPatience)) {
		return false
	}
	for _, p := range s.plugins {
		if p.good == nil {
			continue
		}
		if l := s.loads[source(p.good)]; l != nil && l.running && l.attempt == 1 {
			return true
		}
	}
	return false
}

// keeps tells whether a slot stays as Envoy has it, because the file of a module
// that runs there is lost and must be fetched: what runs is better than what could
// stand in for it, and cannot be sent again. That has an end, until, as others in
// the slot may want to change; but not while an Envoy that was left behind has not
// heard of the control plane, as then there is nothing to change to.
func (s *State) keeps(sl *slot, now time.Time) (until time.Time, ok bool) {
	if !sl.present {
		return time.Time{}, false
	}
	for _, p := range s.plugins {
		if p.good == nil || p.want == nil || !sl.Holds(&p.good.Attachment) || s.bypasses(p) {
			continue
		}
		l := s.loads[source(p.good)]
		if l == nil || l.ready || s.usable(p.want) {
			continue
		}
		switch {
		case sl.acked == nil && s.left && !s.heard:
			return time.Time{}, true
		case sl.acked == nil && s.left:
			until = s.envoySince.Add(DefaultFetchDeadline)
		case sl.acked != nil && !l.lost.IsZero():
			until = l.lost.Add(DefaultFetchDeadline)
		default:
			continue
		}
		if now.Before(until) {
			return until, true
		}
	}
	return time.Time{}, false
}

// ahead tells whether an Envoy that was left behind runs something else in a slot
// than what would be sent now: then the agent before was killed between Envoy's
// acknowledgement and the writing of its last good set, which is a step behind. It
// stays until the control plane has told what is wanted, and then until the
// modules of that are read from disk, with an end.
func (s *State) ahead(sl *slot, next *composition, now time.Time) (until time.Time, ok bool) {
	if !s.left || sl.acked != nil || sl.runs == "" || sl.runs == next.version || s.bypassesIn(sl) {
		return time.Time{}, false
	}
	if !s.heard {
		return time.Time{}, true
	}
	until = s.heardAt.Add(goodPatience)
	for _, p := range s.plugins {
		if p.want == nil || !sl.Holds(&p.want.Attachment) || p.good != nil && p.good.Version == p.want.Version {
			continue
		}
		if l := s.loads[source(p.want)]; l != nil && !l.ready && l.attempt <= 1 && now.Before(until) {
			return until, true
		}
	}
	return time.Time{}, false
}

// onlyLost tells whether a slot would change for nothing but modules whose files
// are lost: they run from Envoy's memory, and that has no end.
func (s *State) onlyLost(sl *slot, next *composition) bool {
	if sl.acked == nil || sl.revert {
		return false
	}
	for _, key := range changes(sl.acked, next.members) {
		old, runs := sl.acked.members[key]
		p := s.plugins[key]
		if !runs || old.standIn != chandler.StandInNone || p == nil || p.want == nil || s.bypasses(p) || p.good == nil || p.good.Version != old.version.Version {
			return false
		}
		if l := s.loads[source(p.good)]; l == nil || l.ready || l.lost.IsZero() {
			return false
		}
	}
	return true
}

// next gives the composition that a slot should be sent; nil when it has it.
func (s *State) next(sl *slot, chosen map[chandler.Key]member) *composition {
	if sl.revert && sl.acked != nil {
		return sl.acked
	}
	want := map[chandler.Key]member{}
	for key, m := range chosen {
		if sl.Holds(&m.version.Attachment) {
			want[key] = m
		}
	}
	s.keepLeaving(sl, chosen, want)
	s.denyOpening(sl, chosen, want)
	want = s.entering(sl, want)
	if sl.careful {
		want = s.carefully(sl, want)
	}
	if sl.acked != nil && maps.EqualFunc(sl.acked.members, want, member.equal) {
		return nil
	}
	return s.compose(sl, want)
}

// carefully gives the next composition on the way to one that was refused, Envoy
// did not say for which plugin: one plugin after the other changes. A slot of which
// nothing is known yet begins with what was good.
func (s *State) carefully(sl *slot, want map[chandler.Key]member) map[chandler.Key]member {
	if sl.acked == nil {
		return s.beginning(sl, want)
	}
	changed := changes(sl.acked, want)
	if len(changed) <= 1 {
		sl.careful = false
		return want
	}
	return oneChange(sl.acked, want, changed[0])
}

// beginning is want without what is new and, if that was refused too, stand-ins
// only. A plugin that is new to an Envoy that serves waits for its turn; else
// nothing is left out in silence.
func (s *State) beginning(sl *slot, want map[chandler.Key]member) map[chandler.Key]member {
	first := map[chandler.Key]member{}
	for key, m := range want {
		good := s.plugins[key].good
		switch {
		case sl.bare:
			first[key] = member{m.version, contract(m.version)}
		case m.standIn != chandler.StandInNone:
			first[key] = m
		case good != nil && s.usable(good) && sl.Holds(&good.Attachment):
			first[key] = member{version: good}
		case !s.open:
			first[key] = member{m.version, contract(m.version)}
		}
	}
	return first
}

// keepLeaving keeps in a slot the plugins that move to another one, until that
// one has acknowledged them: for a moment both run, at no moment none.
func (s *State) keepLeaving(sl *slot, chosen, want map[chandler.Key]member) {
	if sl.acked == nil {
		return
	}
	for key, old := range sl.acked.members {
		m, ok := chosen[key]
		if _, stays := want[key]; stays || !ok || old.standIn != chandler.StandInNone {
			continue
		}
		if m.standIn == chandler.StandInNone && s.belongs(m.version) && !s.inForce(m.version) {
			want[key] = old
		}
	}
}

func (s *State) compose(sl *slot, members map[chandler.Key]member) *composition {
	list := make([]attach.Member, 0, len(members))
	for _, m := range members {
		list = append(list, s.attachMember(m))
	}
	config := attach.Compose(sl.Slot, list)
	versioned := config
	if named, secret := withoutSecrets(list); secret {
		versioned = attach.Compose(sl.Slot, named)
	}
	return &composition{version: attach.Version(versioned), config: config, members: members}
}

// withoutSecrets has releases in place of configurations that hold secrets; false when
// none does. A version is shown, in Envoy's statistics for one, and as a hash of a
// secret it would let whoever sees it try all short ones.
func withoutSecrets(list []attach.Member) ([]attach.Member, bool) {
	secret := false
	named := slices.Clone(list)
	for i, m := range named {
		if !m.Attachment.SecretConfig {
			continue
		}
		a := *m.Attachment
		a.Config = []byte(a.Release)
		named[i].Attachment, secret = &a, true
	}
	return named, secret
}

func (s *State) attachMember(m member) attach.Member {
	am := attach.Member{Attachment: &m.version.Attachment, StandIn: m.standIn, Env: s.set.HostEnv}
	if l := s.loads[source(m.version)]; l != nil {
		am.ModulePath = l.path
	}
	return am
}

// changes lists the plugins in which a composition differs from another, in the
// order of keys.
func changes(from *composition, to map[chandler.Key]member) []chandler.Key {
	var old map[chandler.Key]member
	if from != nil {
		old = from.members
	}
	var keys []chandler.Key
	for key, m := range to {
		if o, ok := old[key]; !ok || !o.equal(m) {
			keys = append(keys, key)
		}
	}
	for key := range old {
		if _, ok := to[key]; !ok {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, chandler.Key.Compare)
	return keys
}

// oneChange is the members of from with just one plugin as it is in to.
func oneChange(from *composition, to map[chandler.Key]member, key chandler.Key) map[chandler.Key]member {
	one := map[chandler.Key]member{}
	if from != nil {
		maps.Copy(one, from.members)
	}
	delete(one, key)
	if m, ok := to[key]; ok {
		one[key] = m
	}
	return one
}

func (c *composition) has(key chandler.Key) bool {
	if c == nil {
		return false
	}
	_, ok := c.members[key]
	return ok
}

// holds tells whether a version runs in it.
func (c *composition) holds(v *Version) bool {
	return c.has(v.Key) && c.members[v.Key].standIn == chandler.StandInNone && c.members[v.Key].version.Version == v.Version
}

func (c *composition) denies(key chandler.Key) bool {
	return c.has(key) && c.members[key].standIn == chandler.StandInDeny
}
