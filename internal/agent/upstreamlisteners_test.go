package agent

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

// elsewhere is a State whose listeners come from another control plane, with an Envoy that
// keeps the real one's rules, and a disk.
type elsewhere struct {
	t   *rapid.T
	s   *State
	now time.Time

	ports    []uint32 // of the listeners that the control plane sent last
	admitted []uint32 // that went on
	own      []attach.Slot
	taken    []attach.Slot                      // of own, that Envoy has
	listing  bool                               // Envoy has not answered for own
	asked    map[string]bool                    // slots that Envoy asks for
	pushed   map[string]Push                    // that it has not answered
	members  map[string]map[chandler.Key]member // of a push, by slot and version
	runs     map[string]map[chandler.Key]member
	loads    map[Source]bool
	bad      map[string]bool // versions that it refuses

	opens    map[string]bool // slots that stand in their listener since that opened
	assigned map[chandler.Key]Version
	saved    Restored
}

// restart is another agent, which finds Envoy as this one left it. The control plane tells
// it what it told this one, at once or later.
func (p *elsewhere) restart(told bool) {
	p.loads = map[Source]bool{}
	p.s = NewState(Settings{Upstream: true, Running: true, Listed: p.own, Features: []string{chandler.FeatureHTTP, chandler.FeatureNetwork}})
	p.step(EnvoyStarted{Envoy: "e", Open: true})
	p.step(p.saved)
	for _, name := range slices.Sorted(maps.Keys(p.asked)) {
		version := ""
		for key := range p.members {
			if v, ok := strings.CutPrefix(key, name); ok && maps.EqualFunc(p.members[key], p.runs[name], member.equal) {
				version = v
			}
		}
		p.step(Subscribed{Slot: name, Version: version})
	}
	if told {
		p.tell()
	}
	slots, sites := placesOf(p.ports) // which Envoy has, and were kept
	p.step(Laid{Slots: slots, Sites: sites})
}

// met tells whether Envoy has something in each slot of its listeners.
func (p *elsewhere) met() bool {
	for _, name := range p.wants() {
		if _, ok := p.runs[name]; !ok {
			return false
		}
	}
	return true
}

func (p *elsewhere) tell() {
	var all []Version
	for _, key := range slices.SortedFunc(maps.Keys(p.assigned), chandler.Key.Compare) {
		all = append(all, p.assigned[key])
	}
	var gone []chandler.Key
	for key := range p.s.plugins {
		if _, ok := p.assigned[key]; !ok {
			gone = append(gone, key)
		}
	}
	p.step(Assigned{Changed: all, Removed: gone})
}

func placesOf(ports []uint32) (slots []attach.Slot, sites []attach.Site) {
	for _, port := range ports {
		slots = append(slots, attach.Slot{Phase: chandler.PhaseAuthn, Mode: chandler.ModeClient, Port: port})
		sites = append(sites, attach.Site{Mode: chandler.ModeClient, Port: port, Network: true})
	}
	return slots, sites
}

func (p *elsewhere) step(ev Event) {
	for _, effect := range p.s.Step(ev, p.now) {
		switch e := effect.(type) {
		case Load:
			p.loads[e.Source] = true
		case CancelLoad:
			delete(p.loads, e.Source)
		case WriteListeners:
			p.relist(e.Own)
		case AdmitListeners:
			p.admit(e)
		case SaveLastGood:
			p.saved = Restored(e)
		case Push:
			p.push(e)
		}
	}
	p.check()
}

// admit holds that nothing goes on without the slots that it needs: those of every plugin
// that is here, or must deny.
func (p *elsewhere) admit(e AdmitListeners) {
	if !p.s.seeded {
		p.t.Fatal("listeners go on before it is known which plugins belong here")
	}
	before := p.admitted
	p.admitted = nil
	for _, s := range e.Sites {
		p.admitted = append(p.admitted, s.Port)
		if slices.Contains(before, s.Port) {
			continue // it serves, and Envoy may have refused a change of it
		}
		for key, pl := range p.s.plugins {
			if v := pl.want; v != nil && v.FailStrategy != chandler.FailOpen {
				if slot, ok := s.Slot(&v.Attachment); ok && !slices.Contains(p.own, slot) && !movesTo(pl, slot) {
					p.t.Fatalf("port %d opens without the slot of %v", s.Port, key)
				}
			}
		}
		shared, _ := placesOf([]uint32{s.Port})
		for _, slot := range append(shared, p.own...) {
			if slot.Port == s.Port {
				p.opens[slot.Name()] = true
			}
		}
	}
}

// movesTo tells whether a plugin runs elsewhere and is to come to a slot: until then it runs
// there alone.
func movesTo(pl *plugin, place attach.Slot) bool {
	return pl.good != nil && !place.Holds(&pl.good.Attachment)
}

// relist holds that slots which decide stay in listeners that serve, whichever agent it is.
func (p *elsewhere) relist(own []attach.Slot) {
	for _, slot := range p.taken {
		if slices.Contains(own, slot) || !slices.Contains(p.admitted, slot.Port) || !slices.Contains(p.ports, slot.Port) {
			continue
		}
		for key := range p.runs[slot.Name()] {
			if pl := p.s.plugins[key]; pl != nil && pl.want != nil && slot.Holds(&pl.want.Attachment) {
				p.t.Fatalf("the slot of %v leaves port %d", key, slot.Port)
			}
		}
	}
	for _, slot := range p.own {
		if !slices.Contains(own, slot) {
			delete(p.opens, slot.Name())
		}
	}
	if p.own, p.listing = own, p.s.envoy != ""; !p.listing {
		p.taken = own
	}
}

func (p *elsewhere) push(e Push) {
	if _, busy := p.pushed[e.Slot]; busy || !p.asked[e.Slot] {
		p.t.Fatalf("%s is sent (%v under way), asked for: %v", e.Slot, busy, p.asked[e.Slot])
	}
	members := maps.Clone(p.s.slot(e.Slot).sent.members)
	place, _ := attach.ParseSlot(e.Slot)
	for key, v := range p.goodFor(place) { // what is good is in every composition, also the first
		if m, ok := members[key]; place.Shared() && !p.s.slot(e.Slot).careful && (!ok || m.standIn != chandler.StandInNone || m.version.Version != v.Version) {
			p.t.Fatalf("%s is sent without %v, which is good: %+v", e.Slot, key, members)
		}
	}
	for key, pl := range p.s.plugins { // nothing opens without what is to deny, nor goes on so after a denial
		if v := pl.want; v == nil || v.FailStrategy == chandler.FailOpen || !place.Holds(&v.Attachment) || p.s.slot(e.Slot).careful || !slices.Contains(p.ports, place.Port) || movesTo(pl, place) {
			continue
		}
		runs, met := p.runs[e.Slot]
		if _, ok := members[key]; !ok && (!met && p.opens[e.Slot] || runs[key].standIn == chandler.StandInDeny) {
			p.t.Fatalf("%s is sent without %v, before it ran: %+v", e.Slot, key, members)
		}
	}
	p.pushed[e.Slot], p.members[e.Slot+e.Version] = e, members
}

// goodFor are the plugins that are meant for a slot, good, and want nothing else.
func (p *elsewhere) goodFor(place attach.Slot) map[chandler.Key]*Version {
	all := map[chandler.Key]*Version{}
	for key, pl := range p.s.plugins {
		if v := pl.good; v != nil && pl.want != nil && pl.want.Version == v.Version && pl.rejected == "" && place.Holds(&v.Attachment) && p.s.usable(v) {
			all[key] = v
		}
	}
	return all
}

// check holds what must be true at every moment.
func (p *elsewhere) check() {
	for key, st := range p.s.Report() {
		if st.State != chandler.StateInForce {
			continue
		}
		v, found := p.s.plugins[key].want, false
		for name := range p.asked {
			place, _ := attach.ParseSlot(name)
			if !p.asked[name] || !place.Holds(&v.Attachment) || !place.Shared() && (!slices.Contains(p.own, place) || !slices.Contains(p.ports, place.Port)) {
				continue
			}
			found = true
			if m, ok := p.runs[name][key]; !ok || m.version.Version != v.Version || m.standIn != chandler.StandInNone {
				p.t.Fatalf("%v is said to be in force, and %s does not hold it", key, name)
			}
		}
		if !found {
			p.t.Fatalf("%v is said to be in force nowhere", key)
		}
	}
}

// wants are the slots in the listeners that went on.
func (p *elsewhere) wants() []string {
	slots, _ := placesOf(p.admitted)
	for _, s := range p.own {
		if slices.Contains(p.admitted, s.Port) {
			slots = append(slots, s)
		}
	}
	var names []string
	for _, s := range slots {
		if slices.Contains(p.ports, s.Port) {
			names = append(names, s.Name())
		}
	}
	return names
}

// TestUpstreamListeners holds the rules for listeners that another control plane sends,
// whatever happens in whatever order.
func TestUpstreamListeners(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := &elsewhere{t: t, now: time.Unix(1_700_000_000, 0), asked: map[string]bool{}, pushed: map[string]Push{},
			members: map[string]map[chandler.Key]member{}, runs: map[string]map[chandler.Key]member{}, loads: map[Source]bool{}, bad: map[string]bool{}, assigned: map[chandler.Key]Version{}, opens: map[string]bool{}}
		p.s = NewState(Settings{Upstream: true, Features: []string{chandler.FeatureHTTP, chandler.FeatureNetwork}})
		p.step(EnvoyStarted{Envoy: "e"})
		sequence := uint64(0)
		key := rapid.SampledFrom([]string{"a", "b", "n"})
		some := func(t *rapid.T, from []string) string {
			if len(from) == 0 {
				t.Skip("there is none")
			}
			return rapid.SampledFrom(from).Draw(t, "of")
		}
		answer := func(t *rapid.T, refuse bool) {
			name := some(t, slices.Sorted(maps.Keys(p.pushed)))
			e := p.pushed[name]
			delete(p.pushed, name)
			members := p.members[name+e.Version]
			runs := false // a module, without which Envoy refuses nothing
			for _, m := range members {
				runs = runs || m.standIn == chandler.StandInNone
				refuse = refuse || m.standIn == chandler.StandInNone && p.bad[m.version.Version]
			}
			if refuse && runs && p.s.open {
				p.step(Nacked{Slot: name, Version: e.Version, Message: "no"})
				return
			}
			p.runs[name] = members
			p.step(Acked{Slot: name, Version: e.Version})
		}
		t.Repeat(map[string]func(*rapid.T){
			"listeners come and go": func(t *rapid.T) {
				p.ports = rapid.SliceOfNDistinct(rapid.SampledFrom([]uint32{1, 2, 3}), 0, 3, rapid.ID[uint32]).Draw(t, "ports")
				slots, sites := placesOf(p.ports)
				p.step(Laid{Slots: slots, Sites: sites})
			},
			"envoy asks": func(t *rapid.T) {
				for _, name := range p.wants() {
					if !p.asked[name] {
						p.asked[name] = true
						p.step(Subscribed{Slot: name})
					}
				}
			},
			"envoy forgets": func(t *rapid.T) {
				wants := p.wants()
				for _, name := range slices.Sorted(maps.Keys(p.asked)) {
					if !slices.Contains(wants, name) {
						delete(p.asked, name)
						delete(p.opens, name)
						delete(p.pushed, name)
						delete(p.runs, name)
						p.step(Unsubscribed{Slot: name})
					}
				}
			},
			"listeners are taken": func(t *rapid.T) {
				if !p.listing {
					t.Skip("nothing changed")
				}
				p.listing = false
				if rapid.IntRange(0, 4).Draw(t, "refused") == 0 {
					p.step(ListenersRefused{Reason: "no"})
					return
				}
				p.taken = p.own
				p.step(ListenersTaken{})
			},
			"a plugin comes": func(t *rapid.T) {
				sequence++
				v := version(key.Draw(t, "plugin"))
				v.Version, v.Sequence = fmt.Sprint(v.Name, sequence), sequence
				v.Program.Module.Digest = digestOf(v.Version)
				if v.Type = chandler.HTTP; v.Name == "n" {
					v.Type = chandler.Network
				}
				v.Match = []chandler.Match{{Ports: rapid.SliceOfNDistinct(rapid.SampledFrom([]uint32{1, 2, 3}), 1, 3, rapid.ID[uint32]).Draw(t, "ports")}}
				p.bad[v.Version] = rapid.IntRange(0, 3).Draw(t, "bad") == 0
				p.assigned[v.Key] = v
				p.step(Assigned{Changed: []Version{v}})
			},
			"a plugin goes": func(t *rapid.T) {
				v := version(key.Draw(t, "plugin"))
				delete(p.assigned, v.Key)
				p.step(Assigned{Removed: []chandler.Key{v.Key}})
			},
			"a module comes": func(t *rapid.T) {
				for _, src := range sortedSources(maps.Keys(p.loads)) {
					delete(p.loads, src)
					p.step(Loaded{Source: src, Digest: src.Digest, Path: "/" + string(src.Digest)})
				}
			},
			"envoy takes":   func(t *rapid.T) { answer(t, false) },
			"envoy refuses": func(t *rapid.T) { answer(t, true) },
			"envoy serves":  func(t *rapid.T) { p.step(ListenersOpen{}) },
			"time passes": func(t *rapid.T) {
				p.now = p.now.Add(10 * time.Second)
				p.step(Tick{})
			},
			"the agent is another": func(t *rapid.T) {
				if !p.s.open || p.s.envoy == "" || len(p.ports) == 0 || !slices.Equal(p.ports, p.admitted) || p.listing || len(p.pushed) > 0 || !p.met() {
					t.Skip("it does not take over, or what it finds is not settled")
				}
				p.restart(rapid.Bool().Draw(t, "told at once"))
			},
			"the control plane tells it again": func(*rapid.T) { p.tell() },
			"envoy is another": func(t *rapid.T) {
				p.asked, p.pushed, p.runs, p.listing = map[string]bool{}, map[string]Push{}, map[string]map[chandler.Key]member{}, false
				p.step(EnvoyEnded{Message: "it ended"})
				p.step(EnvoyStarted{Envoy: "e"})
			},
		})
	})
}

// An Envoy that was left behind asks for its slots before its listeners are known: it keeps
// what it has, and then it is as it was.
func TestUpstreamListenersOfALeftEnvoy(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	v := version("a", func(v *Version) { v.Match = []chandler.Match{{Ports: []uint32{8080}}} })
	s := NewState(Settings{Upstream: true, Running: true, Features: []string{chandler.FeatureHTTP}})
	s.Step(Restored{Envoy: "e", Versions: []Version{v}}, now)
	s.Step(EnvoyStarted{Envoy: "e", Open: true}, now)
	digest := v.Program.Module.Digest
	var pushes []Push
	take := func(ev Event) {
		for _, e := range s.Step(ev, now) {
			if push, ok := e.(Push); ok {
				pushes = append(pushes, push)
			}
		}
	}
	take(Subscribed{Slot: authn, Version: "x"})
	take(Loaded{Source: Source{Digest: digest}, Digest: digest, Path: "/m"})
	if len(pushes) != 0 || len(s.lastGood().Versions) != 1 {
		t.Fatalf("before its listeners are known: pushed %v, good %v", pushes, s.lastGood())
	}
	if why := s.Readiness(); len(why) != 1 {
		t.Errorf("it is ready: %v", why)
	}
	// Another listener comes first: the one that it has is no less there.
	take(Assigned{Changed: []Version{v}})
	take(Laid{Slots: []attach.Slot{{Phase: chandler.PhaseAuthn, Mode: chandler.ModeClient, Port: 9}}})
	if len(pushes) != 1 || pushes[0].Slot != authn || len(pushes[0].Wasm) != 1 {
		t.Fatalf("pushed %+v", pushes)
	}
	s.Step(Acked{Slot: authn, Version: pushes[0].Version}, now)
	s.Step(Unsubscribed{Slot: authn}, now)
	if st := s.Report()[v.Key]; st.State == chandler.StateInForce {
		t.Errorf("in a slot that is gone it is %+v", st)
	}
	if len(s.lastGood().Versions) != 1 {
		t.Error("what was good is forgotten with its listener")
	}
}
