package agent

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

// Step takes an event in and tells what to do about it. It is the only place
// where State changes; the same events at the same times give the same effects.
func (s *State) Step(ev Event, now time.Time) []Effect {
	var effects []Effect
	switch ev := ev.(type) {
	case Restored:
		s.restored(ev, now)
	case Assigned:
		s.assigned(ev, now)
	case Loaded:
		s.loaded(ev, now)
	case EnvoyStarted:
		s.envoyStarted(ev, now)
	case EnvoyEnded:
		s.envoyEnded(ev, now)
	case Waiting:
		s.waiting = ev.For
	case ListenersOpen:
		s.opened()
	case Laid:
		s.lay(ev)
	case Subscribed:
		s.subscribed(ev)
	case Unsubscribed:
		s.unsubscribed(ev.Slot)
	case ListenersTaken:
		s.listenersTaken()
	case ListenersRefused:
		effects = s.listenersRefused(ev.Reason, now)
	case Acked:
		s.acked(ev)
	case Nacked:
		s.nacked(ev, now)
	case Lost:
		for _, l := range s.loads {
			if l.ready && l.digest == ev.Digest {
				l.ready, l.attempt, l.nextTry, l.lost, l.missed = false, 0, time.Time{}, now, false
			}
		}
	case Trapped:
		s.trapped(ev, now)
	case Bypassed:
		s.bypass(ev.Plugins)
	case Tick:
	}
	return append(effects, s.settle(now)...)
}

// settle compares what is with what should be, and gives the effects that lead
// there.
func (s *State) settle(now time.Time) []Effect {
	for _, p := range s.plugins {
		if p.rejected != "" && !p.nextTry.After(now) {
			p.rejected = ""
		}
		if !p.trapped.IsZero() && !now.Before(p.trapped.Add(trapMemory)) {
			p.trapped = time.Time{}
		}
		if !p.deadline.IsZero() && !p.deadline.After(now) {
			p.overdue = true
		}
	}
	s.promote()
	effects := append(s.settleLoads(now), s.settleListing(now)...)
	for again := true; again; {
		var pushes []Effect
		if pushes, again = s.settleSlots(now); again {
			s.promote()
		}
		effects = append(effects, pushes...)
	}
	s.forget()
	for _, key := range s.sortedKeys() {
		s.refreshState(s.plugins[key], now)
	}
	if save := s.lastGood(); s.dirty || !slices.Equal(versionsOf(save.Denied), s.denying) {
		s.dirty, s.denying = false, versionsOf(save.Denied)
		effects = append(effects, save)
	}
	return effects
}

// Wake is when Step wants a Tick; zero when nothing is due.
func (s *State) Wake() time.Time {
	var at time.Time
	earliest := func(t time.Time) {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	for _, l := range s.loads {
		if !l.ready && !l.running {
			earliest(l.nextTry)
		}
	}
	for _, p := range s.plugins {
		if p.rejected != "" {
			earliest(p.nextTry)
		}
		if !p.trapped.IsZero() {
			earliest(p.trapped.Add(trapMemory))
		}
		if p.want != nil && p.good == nil && !p.overdue {
			earliest(p.deadline)
		}
	}
	if s.awaiting {
		earliest(s.envoySince.Add(goodPatience))
	}
	earliest(s.relistAt)
	earliest(s.keepUntil)
	return at
}

func (s *State) sortedKeys() []chandler.Key {
	return slices.SortedFunc(maps.Keys(s.plugins), chandler.Key.Compare)
}

func (s *State) restored(ev Restored, now time.Time) {
	s.seeded = true
	s.goodEnvoy = ev.Envoy
	for i := range ev.Versions {
		v := &ev.Versions[i]
		s.plugins[v.Key] = &plugin{want: v, good: v, since: now}
	}
	for i := range ev.Denied {
		v := &ev.Denied[i]
		s.plugins[v.Key] = &plugin{want: v, standIn: chandler.StandInDeny, since: now}
	}
	s.denying = versionsOf(ev.Denied)
}

// assigned takes an update in. Within one uid and one control plane nothing older wins,
// whatever the order in which updates come. Another control plane has counts of its own,
// as has one that was restored from a back-up: what it says first counts.
func (s *State) assigned(ev Assigned, now time.Time) {
	if !s.heard {
		s.heardAt = now
	}
	s.seeded, s.heard = true, true
	for i := range ev.Changed {
		v := &ev.Changed[i]
		p := s.plugins[v.Key]
		if p == nil {
			p = &plugin{since: now}
			s.plugins[v.Key] = p
		}
		if w := p.want; w != nil {
			if w.Version == v.Version || w.UID == v.UID && w.From == v.From && v.Sequence < w.Sequence {
				continue
			}
			if p.rejected != w.Version && (p.good == nil || p.good.Version != w.Version) && s.holds(w) {
				p.before = w
			}
		}
		if unreadable(v) && p.want != nil {
			v.Behaviour = p.want.Behaviour // its place is that of the one before, which stays there
		}
		p.want = v
		if p.good == nil {
			if p.standIn == chandler.StandInDeny {
				p.standIn = contract(v)
			} else {
				p.standIn = chandler.StandInNone // left out so far: nothing closes before the new deadline
			}
			p.deadline = now.Add(cmp.Or(v.FetchDeadline, DefaultFetchDeadline))
			p.overdue = false
		}
		p.rejected, p.reason, p.message, p.attempt = "", "", "", 0
	}
	for _, key := range ev.Removed {
		if p := s.plugins[key]; p != nil {
			p.want, p.before, p.rejected = nil, nil, ""
			s.dirty = s.dirty || p.good != nil
			p.good = nil
		}
	}
}

func (s *State) loaded(ev Loaded, now time.Time) {
	l := s.loads[ev.Source]
	if l == nil || !l.running {
		return // cancelled meanwhile
	}
	l.running = false
	if ev.Err == nil {
		l.ready, l.path, l.digest, l.size, l.problem = true, ev.Path, ev.Digest, ev.Size, nil
		if !l.missed {
			l.lost = time.Time{}
		}
		return
	}
	l.problem = &ev.Err.Problem
	chance := s.set.Jitter()
	wait := Retry(l.attempt, chance)
	if !ev.Err.Temporary || l.standby {
		wait = spread(backoff(l.attempt, minPermanent, maxPermanent), chance)
	}
	l.nextTry = now.Add(max(wait, ev.Err.RetryAfter))
	for _, p := range s.plugins {
		if l.attempt == 1 && p.want != nil && source(p.want) == ev.Source {
			p.failCount++
		}
	}
}

// Retry is how long after a failure that may pass by itself the network is asked again
// for a module; chance is in [0, 1).
func Retry(attempt uint32, chance float64) time.Duration {
	return spread(backoff(attempt, minBackoff, maxBackoff), chance)
}

// spread is between half a time and all of it.
func spread(wait time.Duration, chance float64) time.Duration {
	return wait - time.Duration(float64(wait)/2*chance)
}

// backoff doubles from least at the first attempt up to most.
func backoff(attempt uint32, least, most time.Duration) time.Duration {
	d := least
	for range min(attempt, 16) - min(attempt, 1) {
		if d >= most {
			break
		}
		d *= 2
	}
	return min(d, most)
}

// envoyStarted begins with an Envoy. What was put away when the one before ended
// stays away for its time.
func (s *State) envoyStarted(ev EnvoyStarted, now time.Time) {
	s.envoy, s.envoySince, s.open, s.left, s.waiting = ev.Envoy, now, ev.Open, ev.Open, ""
	if s.down == (EnvoyEnded{}) {
		s.forgetEnvoy()
	} else {
		s.down, s.listing = EnvoyEnded{}, nil
		s.freshSlots()
	}
	s.served = nil
}

// opened notes that the first listeners serve.
func (s *State) opened() {
	if s.open = true; s.listing == nil {
		s.serve()
	}
}

func (s *State) slot(name string) *slot {
	for _, sl := range s.slots {
		if sl.name == name {
			return sl
		}
	}
	return nil
}

func (s *State) subscribed(ev Subscribed) {
	sl := s.slot(ev.Slot)
	if sl == nil {
		sl = s.unlaid(ev.Slot)
	}
	if sl != nil {
		sl.subscribed, sl.runs = true, ev.Version
		sl.serves = sl.serves || s.left && !s.laid // what an Envoy was left behind with
	}
}

func (s *State) acked(ev Acked) {
	sl := s.slot(ev.Slot)
	if sl == nil || sl.sent == nil || sl.sent.version != ev.Version {
		return
	}
	sl.acked, sl.sent, sl.revert, sl.serves = sl.sent, nil, false, true
	for _, m := range sl.acked.members {
		if l := s.loads[source(m.version)]; l != nil && m.standIn == chandler.StandInNone {
			l.lost = time.Time{}
		}
	}
}

// nacked marks the plugin that Envoy refused and lets the composition that was
// in force go out again: Envoy remembers the refused bytes, and while it does
// an update with the same ones would be acknowledged without effect.
func (s *State) nacked(ev Nacked, now time.Time) {
	sl := s.slot(ev.Slot)
	if sl == nil || sl.sent == nil || sl.sent.version != ev.Version {
		return
	}
	refused := sl.sent
	sl.sent = nil
	// What was in force may itself be refused, when a file of it is gone; then
	// there is nothing to go back to.
	sl.revert = refused != sl.acked
	if s.lose(refused, ev.Message, now) {
		return
	}
	culprit, ok := s.culprit(sl, refused, ev.Message)
	if !ok {
		sl.careful, sl.bare = true, sl.acked == nil && (sl.careful || s.allGood(refused))
		return
	}
	s.reject(culprit, refused.members[culprit].version, ev, now)
}

// allGood tells whether a composition has nothing but what was good.
func (s *State) allGood(c *composition) bool {
	for key, m := range c.members {
		if p := s.plugins[key]; m.standIn == chandler.StandInNone && (p == nil || p.good == nil || p.good.Version != m.version.Version) {
			return false
		}
	}
	return true
}

// lose notes that files are gone which Envoy was to run, and tells whether that
// explains a NACK. They are brought again, and what runs goes on meanwhile; a file
// that Envoy then misses once more is its plugin's fault.
func (s *State) lose(refused *composition, message string, now time.Time) bool {
	lost := false
	for _, m := range refused.members {
		l := s.loads[source(m.version)]
		if m.standIn != chandler.StandInNone || l == nil || !l.ready || !l.lost.IsZero() || !attach.MissingFile(message, l.path) {
			continue
		}
		l.ready, l.attempt, l.nextTry, l.lost, l.missed = false, 0, time.Time{}, now, true
		lost = true
	}
	return lost
}

// culprit finds the plugin that a NACK is about: the one Envoy names, or the
// only one that differs from what was in force.
func (s *State) culprit(sl *slot, refused *composition, message string) (chandler.Key, bool) {
	var members []attach.Member
	for _, m := range refused.members {
		members = append(members, s.attachMember(m))
	}
	if key, ok := attach.PluginOfNack(message, members); ok {
		return key, true
	}
	if changed := changes(sl.acked, refused.members); len(changed) == 1 && refused.has(changed[0]) {
		return changed[0], true
	}
	return chandler.Key{}, false
}

func (s *State) reject(key chandler.Key, v *Version, ev Nacked, now time.Time) {
	p := s.plugins[key]
	if p == nil {
		return
	}
	p.rejects++
	if p.before != nil && p.before.Version == v.Version {
		p.before = nil // another slot may have it
	}
	if p.good != nil && p.good.Version == v.Version {
		// It was good and is refused: another Envoy, or a file that is gone. It must
		// not be left out in silence, hold up its neighbours, or be sent to the next
		// Envoy as it starts.
		p.good, s.dirty = nil, true
		p.standIn = contract(v)
	}
	if p.want == nil || p.want.Version != v.Version {
		return
	}
	p.rejected = v.Version
	p.attempt++
	p.nextTry = now.Add(rejectedInterval)
	p.reason = chandler.CodeRejected
	same := s.compose(s.slot(ev.Slot), map[chandler.Key]member{key: {version: v}}).version
	switch {
	case ev.Reason != "":
		p.told = refusal{same, ev.Reason}
	case p.told.version != same:
		p.told = refusal{same, ev.Message}
	}
	p.message = p.told.reason
	if v.SecretConfig {
		p.message = keptBack
	}
}

// promote makes a wanted version, or the one before it, the good one once every slot that
// it belongs to has acknowledged it.
func (s *State) promote() {
	if s.envoy == "" || !s.knowsPlaces() {
		return
	}
	allGood := s.open
	for _, p := range s.plugins {
		if p.want == nil {
			continue
		}
		if p.before != nil && (!s.belongs(p.want) || !s.holds(p.before)) {
			p.before = nil
		}
		if s.inForce(p.want) && p.rejected != p.want.Version {
			s.proven(p, p.want)
			p.reason, p.message, p.attempt = "", "", 0
		} else if p.before != nil && s.inForce(p.before) {
			s.proven(p, p.before)
		} else if p.good != nil && !s.belongs(p.want) && !s.mayBelong(p.good, p.want) {
			p.good = nil // it is meant for other traffic now
			s.dirty = true
		}
		allGood = allGood && (p.good == nil || s.inForce(p.good) || s.bypasses(p) || s.set.Upstream && !s.belongs(p.good))
	}
	if allGood && s.goodEnvoy != s.envoy {
		s.goodEnvoy = s.envoy
		s.dirty = true
	}
}

// proven makes a version that is in force the good one, of which nothing is due any more.
func (s *State) proven(p *plugin, v *Version) {
	if p.good != v {
		p.good, s.dirty = v, true
	}
	p.before, p.deadline, p.overdue, p.standIn = nil, time.Time{}, false, chandler.StandInNone
}

// holds tells whether a slot has a version or has been sent it.
func (s *State) holds(v *Version) bool {
	return slices.ContainsFunc(s.slots, func(sl *slot) bool { return sl.acked.holds(v) || sl.sent.holds(v) })
}

// inForce tells whether every slot that v belongs to has acknowledged it, in the
// listeners that serve.
func (s *State) inForce(v *Version) bool {
	some := false
	for place := range s.places(v) {
		sl := s.find(place)
		if sl == nil || !sl.present || !sl.acked.holds(v) {
			return false
		}
		some = true
	}
	return some
}

// forget drops removed plugins that no slot holds any more.
func (s *State) forget() {
	for key, p := range s.plugins {
		if p.want != nil {
			continue
		}
		held := slices.ContainsFunc(s.slots, func(sl *slot) bool {
			return sl.acked.has(key) || sl.sent.has(key)
		})
		if !held {
			delete(s.plugins, key)
		}
	}
}

func (s *State) lastGood() SaveLastGood {
	save := SaveLastGood{Envoy: s.goodEnvoy}
	for _, key := range s.sortedKeys() {
		switch p := s.plugins[key]; {
		case p.good != nil:
			save.Versions = append(save.Versions, s.pinned(*p.good))
		case p.want != nil && s.belongs(p.want) && (p.standIn == chandler.StandInDeny || s.denied(key)):
			save.Denied = append(save.Denied, *p.want)
		}
	}
	return save
}

func versionsOf(list []Version) []string {
	var versions []string
	for _, v := range list {
		versions = append(versions, v.Version)
	}
	return versions
}

// pinned notes what a local file held when it was loaded.
func (s *State) pinned(v Version) Version {
	if v.Program.File != nil {
		if l := s.loads[source(&v)]; l != nil && l.ready {
			v.Pinned = l.digest
		}
	}
	return v
}

// settleLoads starts the loads that are needed and due, and cancels those that
// no version needs any more.
func (s *State) settleLoads(now time.Time) []Effect {
	needed := map[Source][]string{} // with their origins
	for _, p := range s.plugins {
		for _, v := range []*Version{p.want, p.before, p.good} {
			if v != nil && s.lacks(v) == "" && (s.set.Upstream || s.belongs(v)) {
				if src := source(v); src != (Source{}) {
					needed[src] = origins(v)
				}
			}
		}
	}
	standby := s.standby(needed)
	var effects []Effect
	for _, src := range sortedSources(maps.Keys(s.loads)) {
		_, wanted := needed[src]
		if _, prefetched := standby[src]; wanted || prefetched || s.referenced(src) {
			continue
		}
		if s.loads[src].running {
			effects = append(effects, CancelLoad{src})
		}
		delete(s.loads, src)
	}
	for _, src := range sortedSources(maps.Keys(needed)) {
		l := s.loads[src]
		if l == nil {
			l = &load{}
			s.loads[src] = l
		}
		l.want()
		if l.ready || l.running || l.nextTry.After(now) {
			continue
		}
		l.running = true
		l.attempt++
		effects = append(effects, Load{Source: src, Origins: needed[src], Attempt: l.attempt})
	}
	return append(effects, s.settleStandby(needed, standby, now)...)
}

// referenced tells whether a slot still holds, or may hold, a module.
func (s *State) referenced(src Source) bool {
	for _, sl := range s.slots {
		for _, c := range []*composition{sl.acked, sl.sent} {
			if c == nil {
				continue
			}
			for _, m := range c.members {
				if m.standIn == chandler.StandInNone && source(m.version) == src {
					return true
				}
			}
		}
	}
	return false
}

// Modules gives the digests that must stay on disk.
func (s *State) Modules() map[chandler.ModuleDigest]bool {
	digests := map[chandler.ModuleDigest]bool{}
	for _, l := range s.loads {
		if l.ready {
			digests[l.digest] = true
		}
	}
	return digests
}
