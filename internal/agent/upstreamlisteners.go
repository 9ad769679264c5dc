package agent

import (
	"slices"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

// Listeners that another control plane sends come and go while Envoy runs. None goes on to
// Envoy before it is decided which slots of one plugin stand in it, so that none opens
// before a denial; that it can have as soon as there is a set to serve. What is good stays
// good while no listener is its place: one may come again.

// upstreamListeners is what a State knows of such listeners.
type upstreamListeners struct {
	// laid: some are known. admits: some have places that it is not decided of.
	laid, admits bool
	// withheld: some listeners did not go on, after Envoy refused a change.
	withheld bool
	bare     []Bare
	// admitted are the sites of listeners that went on, served those of listeners that
	// serve: to enter there changes what traffic meets.
	admitted []attach.Site
	served   map[attach.Site]bool
}

// Bare is a listener that runs without plugins.
type Bare struct {
	Name string
	Mode chandler.Mode
	Port uint32
	// Why ends up with the plugins that are meant for its traffic.
	Why chandler.Problem
}

// lay takes in which places there are.
func (s *State) lay(ev Laid) {
	s.set.Slots, s.set.Sites, s.bare = ev.Slots, ev.Sites, ev.Bare
	left := s.left && !s.laid // what an Envoy has that was left behind serves
	for _, place := range ev.Slots {
		if s.find(place) == nil {
			s.enter(&slot{Slot: place, name: place.Name(), present: true, serves: left})
		}
	}
	if left {
		s.admitted = ev.Sites
		s.serve()
		for _, sl := range s.slots {
			sl.serves = sl.serves || s.served[siteOf(sl.Slot)]
		}
	}
	s.laid, s.admits = true, true
	there := map[attach.Slot]bool{}
	for _, place := range ev.Slots {
		there[place] = true
	}
	s.drop(func(sl *slot) bool { return sl.Shared() && !sl.subscribed && !there[sl.Slot] })
}

// unlaid gives a shared slot that Envoy asks for before its listener is known here, as
// one does that was left behind; nil: it is none.
func (s *State) unlaid(name string) *slot {
	place, ok := attach.ParseSlot(name)
	if !ok || !place.Shared() || !s.set.Upstream {
		return nil
	}
	sl := &slot{Slot: place, name: name, present: true}
	s.enter(sl)
	return sl
}

// knowsPlaces tells whether it is known where plugins belong.
func (s *State) knowsPlaces() bool { return s.laid || !s.set.Upstream }

// mayBelong tells whether what was good of a plugin is still what is wanted, so that a
// listener which is its place may yet come.
func (s *State) mayBelong(good, want *Version) bool {
	return s.set.Upstream && good.Version == want.Version
}

// settleUpstream changes the slots of one plugin as settleListing does, and admits the
// listeners that wait.
func (s *State) settleUpstream() (effects []Effect) {
	if !s.laid {
		return nil
	}
	want := s.wantListed()
	if s.relistAt.IsZero() && !s.fits(want) {
		if s.awaitsAnswers() {
			s.relisting = true
			return nil
		}
		effects = s.relist(want, false)
	}
	if s.admits || s.withheld && s.relistAt.IsZero() {
		s.admitted = s.admissible(want)
		s.admits, s.withheld = false, len(s.admitted) < len(s.set.Sites)
		if s.listing == nil {
			s.serve()
		}
		effects = append(effects, AdmitListeners{Slots: s.set.Slots, Sites: s.admitted})
	}
	return effects
}

// admissible are the sites at which nothing is missing, or whose listeners serve already.
// After Envoy refused a change, slots that are to stand in others must wait, and so do they.
func (s *State) admissible(want []attach.Slot) []attach.Site {
	missing := map[attach.Site]bool{}
	for _, place := range want {
		if !slices.Contains(s.listed, place) && s.opens(place) {
			missing[siteOf(place)] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(s.set.Sites), func(site attach.Site) bool { return missing[site] })
}

func siteOf(place attach.Slot) attach.Site {
	return attach.Site{Mode: place.Mode, Port: place.Port, Network: place.Network}
}

// serve notes that the listeners that went on serve.
func (s *State) serve() {
	s.served = map[attach.Site]bool{}
	for _, site := range s.admitted {
		s.served[site] = true
	}
}

// opens tells whether the listeners that are a slot's place serve nobody yet: they do not
// open without a plugin.
func (s *State) opens(place attach.Slot) bool {
	return s.set.Upstream && !s.served[siteOf(place)]
}

// deniesOpening tells whether a plugin that cannot run yet, and for which the traffic of
// listeners that serve goes on as before, is denied for in one that opens: there is no
// before.
func (s *State) deniesOpening(p *plugin) bool {
	return s.set.Upstream && s.open && p.want != nil && !s.bypasses(p) && contract(p.want) == chandler.StandInDeny
}

// denyOpening has a slot deny for such plugins when no traffic has met it, and then until
// they run.
func (s *State) denyOpening(sl *slot, chosen, want map[chandler.Key]member) {
	for key, p := range s.plugins {
		if _, ok := chosen[key]; ok || !s.deniesOpening(p) || !sl.Holds(&p.want.Attachment) {
			continue
		}
		if !sl.serves || sl.acked.denies(key) {
			want[key] = member{p.want, chandler.StandInDeny}
		}
	}
}

// known tells whether this Envoy has acknowledged a version before.
func (s *State) known(m member) bool {
	p := s.plugins[m.version.Key]
	return s.goodEnvoy == s.envoy && p != nil && p.good != nil && p.good.Version == m.version.Version
}

// bareFor gives a listener that v is meant for and that runs without it; nil: none.
func (s *State) bareFor(v *Version) *Bare {
	for i, b := range s.bare {
		place := attach.Slot{Phase: v.Phase, Mode: b.Mode, Port: b.Port, Network: v.Type == chandler.Network}
		if place.Holds(&v.Attachment) {
			return &s.bare[i]
		}
	}
	return nil
}

// unlistened is why there is nothing that could get traffic; empty: there is.
func (s *State) unlistened() string {
	switch {
	case !s.set.Upstream:
	case !s.laid:
		return "Envoy has asked for no listener yet, or the control plane in its configuration has sent none and none was kept of it"
	case s.admits && !s.seeded:
		return "neither the disk nor a control plane has told yet which plugins belong here"
	}
	return ""
}
