package agent

import (
	"cmp"
	"iter"
	"slices"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

// A NETWORK plugin, and where Envoy knows no shared slots every plugin, has slots
// of its own, which stand in the listeners themselves. To change those drains
// their connections, so it is done as rarely as can be: a slot enters when its
// plugin can run or must deny, and one that nobody needs any more stays, without
// effect, until the listeners change anyway.

// maxRetired bounds the slots without effect that stay in the listeners.
const maxRetired = 4

// relistPause is how long the listeners stay as they are after Envoy refused a
// change of them.
const relistPause = time.Minute

// listing is a change of the listeners that Envoy has not taken in yet.
type listing struct {
	before []attach.Slot
	// back: it takes back one that was refused.
	back bool
}

// places are the slots that v belongs into, whether they stand already or not.
func (s *State) places(v *Version) iter.Seq[attach.Slot] {
	return func(yield func(attach.Slot) bool) {
		for _, sl := range s.slots {
			if sl.Shared() && sl.Holds(&v.Attachment) && !yield(sl.Slot) {
				return
			}
		}
		for _, site := range s.set.Sites {
			if sl, ok := site.Slot(&v.Attachment); ok && !yield(sl) {
				return
			}
		}
	}
}

// belongs tells whether any listener of this Envoy is the place of v.
func (s *State) belongs(v *Version) bool {
	for range s.places(v) {
		return true
	}
	return false
}

// hasOwnSlot tells whether v is attached through a slot of its own.
func (s *State) hasOwnSlot(v *Version) bool {
	for place := range s.places(v) {
		if !place.Shared() {
			return true
		}
	}
	return false
}

func (s *State) find(place attach.Slot) *slot { return s.at[place] }

// enter adds a slot.
func (s *State) enter(sl *slot) {
	s.slots = append(s.slots, sl)
	s.at[sl.Slot] = sl
}

// drop forgets slots.
func (s *State) drop(gone func(*slot) bool) {
	s.slots = slices.DeleteFunc(s.slots, func(sl *slot) bool {
		if !gone(sl) {
			return false
		}
		delete(s.at, sl.Slot)
		return true
	})
}

// settleListing changes the listeners when plugins need slots that do not stand
// in them, or stand in another order. One thing happens after the other: no push
// is under way when the listeners change, and while they do only new slots get
// content.
func (s *State) settleListing(now time.Time) []Effect {
	s.relisting = false
	if !now.Before(s.relistAt) {
		s.relistAt = time.Time{}
	}
	switch {
	case !s.seeded, s.listing != nil:
		return nil
	case s.set.Upstream:
		return s.settleUpstream()
	case !s.relistAt.IsZero():
		return nil
	case s.envoy == "" && s.set.Running, len(s.set.Sites) == 0 && !s.shut:
		return nil
	}
	want := s.wantListed()
	if !s.shut && s.fits(want) {
		return nil
	}
	if s.awaitsAnswers() {
		s.relisting = true
		return nil
	}
	return s.relist(want, false)
}

// awaitsAnswers tells whether pushes are under way that the listeners must not change
// beneath.
func (s *State) awaitsAnswers() bool {
	return s.envoy != "" && slices.ContainsFunc(s.slots, func(sl *slot) bool { return sl.sent != nil || sl.revert })
}

// relist begins a change of the listeners.
func (s *State) relist(want []attach.Slot, back bool) []Effect {
	s.listing = &listing{before: s.listed, back: back}
	for _, place := range want {
		if s.find(place) == nil {
			s.enter(&slot{Slot: place, name: place.Name()})
		}
	}
	if s.open {
		s.countDrains(s.listed, want)
	}
	s.listed = want
	if s.envoy == "" {
		s.listenersTaken() // it will read the file as it begins
	}
	return []Effect{WriteListeners{Own: want}}
}

// countDrains notes for whom connections are drained.
func (s *State) countDrains(before, after []attach.Slot) {
	touched := map[chandler.Key]bool{}
	for _, sl := range slices.Concat(before, after) {
		if !slices.Contains(before, sl) || !slices.Contains(after, sl) {
			touched[sl.Plugin] = true
		}
	}
	for key := range touched {
		if p := s.plugins[key]; p != nil {
			p.drains++
		}
	}
}

// wantListed are the slots of one plugin that must stand in the listeners, in
// their order. A proxy that starts gets them all, so that its listeners do not
// open before a denial, and need no change soon after.
func (s *State) wantListed() []attach.Slot {
	var chosen map[chandler.Key]member
	if s.open {
		chosen = s.chooseAll()
	}
	by := map[attach.Slot]*chandler.Attachment{}
	for key, p := range s.plugins {
		v, held := p.want, false
		if m, ok := chosen[key]; s.open {
			switch held = !ok && s.deniesOpening(p); {
			case held:
			case !ok, m.standIn == chandler.StandInPass:
				continue
			default:
				v = m.version
			}
		}
		if v == nil {
			continue
		}
		for place := range s.places(v) {
			if !place.Shared() && (!held || s.opens(place)) {
				by[place] = &v.Attachment
			}
		}
	}
	for _, place := range s.listed {
		if sl := s.find(place); by[place] == nil && sl != nil && sl.acked != nil {
			for _, m := range sl.acked.members { // it still decides
				by[place] = &m.version.Attachment
			}
		}
	}
	var list []attach.Slot
	for place := range by {
		list = append(list, place)
	}
	slices.SortFunc(list, func(a, b attach.Slot) int {
		x, y := a, b
		x.Plugin, y.Plugin = chandler.Key{}, chandler.Key{}
		return cmp.Or(x.Compare(y), by[a].CompareOrder(by[b]))
	})
	return list
}

// fits tells whether the listeners can stay as they are.
func (s *State) fits(want []attach.Slot) bool {
	var needed []attach.Slot
	for _, place := range s.listed {
		if slices.Contains(want, place) {
			needed = append(needed, place)
		}
	}
	return slices.Equal(needed, want) && len(s.listed)-len(want) <= maxRetired
}

// listenersTaken makes the listeners as they were written the ones that serve.
func (s *State) listenersTaken() {
	s.listing, s.shut = nil, false
	s.serve()
	for _, sl := range s.slots {
		sl.present = sl.Shared() || slices.Contains(s.listed, sl.Slot)
	}
	s.drop(func(sl *slot) bool { return !sl.present && !sl.subscribed })
}

// listenersRefused takes a change back. The plugins whose slots were new in it
// count as refused.
func (s *State) listenersRefused(reason string, now time.Time) []Effect {
	l := s.listing
	if l == nil {
		return nil
	}
	s.relistAt = now.Add(relistPause)
	if l.back {
		s.listenersTaken() // there is nothing else to go back to
		return nil
	}
	blamed := map[chandler.Key]bool{}
	for _, place := range s.listed {
		p := s.plugins[place.Plugin]
		if p == nil || p.want == nil || slices.Contains(l.before, place) || blamed[place.Plugin] {
			continue
		}
		blamed[place.Plugin] = true
		s.reject(place.Plugin, p.want, Nacked{Slot: place.Name(), Reason: reason}, now)
	}
	return s.relist(l.before, true)
}

// unsubscribed forgets what Envoy does not want any more: content, and a slot
// that has left the listeners.
func (s *State) unsubscribed(name string) {
	sl := s.slot(name)
	if sl == nil {
		return
	}
	*sl = slot{Slot: sl.Slot, name: sl.name, present: sl.present}
	if !sl.Shared() && !slices.Contains(s.listed, sl.Slot) || s.set.Upstream && sl.Shared() && !slices.Contains(s.set.Slots, sl.Slot) {
		s.drop(func(o *slot) bool { return o == sl })
	}
}

// held tells whether a slot must wait while the listeners change. Those that are
// new and empty do not: the listeners wait for them. A proxy that starts gets
// nothing before it knows all its listeners, as they open when it has all.
func (s *State) held(sl *slot) bool {
	switch {
	case !sl.present && !slices.Contains(s.listed, sl.Slot):
		return true // it has left
	case s.listing != nil && !s.open:
		return true
	}
	return (s.listing != nil || s.relisting) && sl.acked != nil && !sl.revert
}

// entering gives what a slot may hold while its listener does not serve yet: of a
// proxy that serves no module, as a refusal would leave a listener behind that
// ends every connection. One that opens gets what is known to be good, and else a denial.
func (s *State) entering(sl *slot, want map[chandler.Key]member) map[chandler.Key]member {
	if sl.present || !s.open {
		return want
	}
	standIns := map[chandler.Key]member{}
	for key, m := range want {
		switch opening := s.opens(sl.Slot); {
		case m.standIn != chandler.StandInNone, opening && s.known(m):
			standIns[key] = m
		case opening:
			standIns[key] = member{m.version, contract(m.version)}
		}
	}
	return standIns
}
