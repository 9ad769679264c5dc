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

// tcp is a State whose plugins need slots of their own, in two sites, and an
// Envoy that keeps the real one's rules: a slot is asked for when a listener with
// it is taken in, and given up when none has it any more.
type tcp struct {
	s     *State
	now   time.Time
	fatal func(string, ...any)

	file    []attach.Slot // as last written
	written bool          // and not taken in yet
	serving []attach.Slot // of the listeners that Envoy has
	asked   map[string]bool
	pushed  map[string]Push
	members map[string]map[chandler.Key]member // of pushes, by slot and version
	runs    map[string]map[chandler.Key]member // in force, by slot
	loads   map[Source]bool
	saved   *SaveLastGood
	bad     map[string]bool
	changes int
}

var tcpSites = []attach.Site{
	{Mode: chandler.ModeClient, Port: 80, Network: true},
	{Mode: chandler.ModeServer, Port: 90, Network: true},
}

func newTCP(fatal func(string, ...any)) *tcp {
	p := &tcp{now: time.Unix(1_700_000_000, 0), fatal: fatal, bad: map[string]bool{}}
	p.fresh()
	return p
}

// fresh is an agent without an Envoy.
func (p *tcp) fresh() {
	p.s = NewState(Settings{Sites: tcpSites, Shut: true, Features: []string{chandler.FeatureNetwork}})
	p.file, p.serving, p.written, p.loads = nil, nil, false, map[Source]bool{}
	p.asked, p.pushed = map[string]bool{}, map[string]Push{}
	p.members, p.runs = map[string]map[chandler.Key]member{}, map[string]map[chandler.Key]member{}
}

func (p *tcp) step(ev Event) {
	for _, effect := range p.s.Step(ev, p.now) {
		switch e := effect.(type) {
		case Load:
			p.loads[e.Source] = true
		case CancelLoad:
			delete(p.loads, e.Source)
		case Push:
			p.push(e)
		case WriteListeners:
			if p.written || p.s.envoy != "" && len(p.pushed) > 0 {
				p.fatal("the listeners change while something is under way")
			}
			p.file, p.written = e.Own, p.s.envoy != ""
			p.changes++
		case SaveLastGood:
			p.saved = &e
		}
	}
	p.check()
}

func (p *tcp) push(e Push) {
	if !p.asked[e.Slot] {
		p.fatal("%s is sent and Envoy did not ask for it", e.Slot)
	}
	if _, busy := p.pushed[e.Slot]; busy {
		p.fatal("%s is sent before the answer to the last", e.Slot)
	}
	members := maps.Clone(p.s.slot(e.Slot).sent.members)
	for key, m := range members {
		slot, _ := attach.ParseSlot(e.Slot)
		if p.s.open && m.standIn == chandler.StandInNone && !slices.Contains(p.serving, slot) {
			p.fatal("%v runs in %s before its listener serves", key, e.Slot)
		}
	}
	p.pushed[e.Slot], p.members[e.Slot+e.Version] = e, members
}

// check holds what must be true at every moment.
func (p *tcp) check() {
	for key, st := range p.s.Report() {
		if st.State != chandler.StateInForce {
			continue
		}
		v := p.s.plugins[key].want
		for place := range p.s.places(v) {
			m, ok := p.runs[place.Name()][key]
			if !ok || m.version.Version != v.Version || m.standIn != chandler.StandInNone || !slices.Contains(p.serving, place) {
				p.fatal("%v is said to be in force, and %s does not serve it", key, place.Name())
			}
		}
	}
}

// take lets Envoy read the listeners file.
func (p *tcp) take() {
	p.written = false
	for _, place := range p.file {
		if !p.asked[place.Name()] {
			p.asked[place.Name()] = true
			p.step(Subscribed{Slot: place.Name()})
		}
	}
	if !p.s.open { // it waits for its slots
		p.serving = p.file
		p.step(ListenersTaken{})
		return
	}
	for _, place := range p.file { // it serves once the new slots are filled
		if _, due := p.pushed[place.Name()]; due && p.runs[place.Name()] == nil {
			p.answer(place.Name())
		}
		if p.runs[place.Name()] == nil {
			p.fatal("%s is never filled, and its listener waits", place.Name())
		}
	}
	left := slices.DeleteFunc(slices.Clone(p.serving), func(sl attach.Slot) bool { return slices.Contains(p.file, sl) })
	p.serving = p.file
	p.step(ListenersTaken{})
	for _, place := range left {
		for key, m := range p.runs[place.Name()] {
			if m.standIn != chandler.StandInPass {
				p.fatal("%s was taken out while %v still decided", place.Name(), key)
			}
		}
		delete(p.asked, place.Name())
		delete(p.runs, place.Name())
		delete(p.pushed, place.Name())
		p.step(Unsubscribed{Slot: place.Name()})
	}
}

// refuse lets Envoy refuse the listeners file.
func (p *tcp) refuse(reason string) {
	p.written = false
	p.step(ListenersRefused{Reason: reason})
}

func (p *tcp) answer(slot string) {
	push := p.pushed[slot]
	delete(p.pushed, slot)
	members := p.members[slot+push.Version]
	for key, m := range members {
		if m.standIn == chandler.StandInNone && p.bad[m.version.Version] {
			p.step(Nacked{Slot: slot, Version: push.Version, Message: "Unable to create Wasm plugin " + key.String(), Reason: "it is bad"})
			return
		}
	}
	p.runs[slot] = members
	if p.runs[slot] == nil {
		p.runs[slot] = map[chandler.Key]member{}
	}
	p.step(Acked{Slot: slot, Version: push.Version})
}

func (p *tcp) load(src Source) {
	delete(p.loads, src)
	p.step(Loaded{Source: src, Digest: src.Digest, Path: "/store/" + src.Digest.Hex()})
}

// settle answers everything until nothing is left to do.
func (p *tcp) settle() {
	for range 1000 {
		switch {
		case len(p.loads) > 0:
			p.load(sortedSources(maps.Keys(p.loads))[0])
		case len(p.pushed) > 0:
			p.answer(slices.Min(slices.Collect(maps.Keys(p.pushed))))
		case p.written:
			p.take()
		case !p.s.open && p.s.envoy != "" && !p.s.shut:
			p.step(ListenersOpen{})
		default:
			return
		}
	}
	p.fatal("it never comes to rest")
}

// start gives the agent an Envoy, which reads the file as it begins.
func (p *tcp) start(binary string) {
	p.step(EnvoyStarted{Envoy: binary})
	if !p.s.shut {
		p.take()
	}
}

func networkVersion(name, version string, phase chandler.Phase, priority int32, strategy chandler.FailStrategy, sequence uint64) Version {
	return Version{Version: version, Attachment: chandler.Attachment{
		Key: chandler.Key{Kind: "WasmPlugin", Namespace: "ns", Name: name}, UID: "uid-" + name, Sequence: sequence,
		Release: chandler.ReleaseID(version), Program: chandler.Program{Module: &chandler.Module{Digest: digestOf("m"), Size: 1}},
		Behaviour: chandler.Behaviour{Type: chandler.Network, Phase: phase, Priority: &priority, FailStrategy: strategy, RootID: version},
	}}
}

// Whatever comes in whatever order: nothing runs in a listener that does not
// serve yet, nothing leaves one while it decides, and in the end all that is good
// is in force in its order.
func TestListingModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newTCP(t.Fatalf)
		p.start("envoy-1")
		p.step(Assigned{})
		p.settle()
		sequence := uint64(0)
		names := rapid.SampledFrom([]string{"a", "b", "c"})
		t.Repeat(map[string]func(*rapid.T){
			"assign": func(t *rapid.T) {
				sequence++
				name := names.Draw(t, "name")
				v := networkVersion(name, fmt.Sprintf("%s-%d", name, sequence),
					rapid.SampledFrom([]chandler.Phase{chandler.PhaseAuthn, chandler.PhaseStats}).Draw(t, "phase"), rapid.Int32Range(0, 2).Draw(t, "priority"),
					rapid.SampledFrom([]chandler.FailStrategy{chandler.FailOpen, chandler.FailClose}).Draw(t, "strategy"), sequence)
				if rapid.Bool().Draw(t, "one site") {
					v.Match = []chandler.Match{{Mode: chandler.ModeServer}}
				}
				p.bad[v.Version] = rapid.IntRange(0, 3).Draw(t, "bad") == 0
				p.step(Assigned{Changed: []Version{v}})
			},
			"remove": func(t *rapid.T) {
				p.step(Assigned{Removed: []chandler.Key{{Kind: "WasmPlugin", Namespace: "ns", Name: names.Draw(t, "name")}}})
			},
			"answer": func(t *rapid.T) {
				if len(p.pushed) == 0 {
					t.Skip("nothing pushed")
				}
				p.answer(rapid.SampledFrom(slices.Sorted(maps.Keys(p.pushed))).Draw(t, "slot"))
			},
			"take": func(t *rapid.T) {
				if !p.written {
					t.Skip("nothing written")
				}
				p.take()
			},
			"refuse": func(t *rapid.T) {
				if !p.written || !p.s.open {
					t.Skip("nothing written")
				}
				p.refuse("no")
			},
			"time": func(t *rapid.T) {
				p.now = p.now.Add(time.Duration(rapid.IntRange(1, 600).Draw(t, "seconds")) * time.Second)
				p.step(Tick{})
			},
			"restart": func(t *rapid.T) {
				p.settle()
				saved := p.saved
				p.fresh()
				if saved != nil {
					p.step(Restored(*saved))
				}
				p.start(rapid.SampledFrom([]string{"envoy-1", "envoy-2"}).Draw(t, "binary"))
				p.step(Assigned{})
				p.settle()
			},
			"end":    func(*rapid.T) { p.end() },
			"settle": func(*rapid.T) { p.settle(); p.checkSettled() },
		})
	})
}

// end lets Envoy end by itself, whatever is under way, and starts it anew. It begins
// with all slots that are needed; what was on its way into one waits for a while.
func (p *tcp) end() {
	p.written, p.serving = false, nil
	clear(p.asked)
	clear(p.pushed)
	clear(p.runs)
	p.step(EnvoyEnded{Message: "killed", Attempt: 1})
	if !p.s.fits(p.s.wantListed()) || p.s.shut || !slices.Equal(p.file, p.s.listed) {
		p.fatal("the next Envoy would begin with %v, and needs %v", p.file, p.s.wantListed())
	}
	p.start("envoy-1")
	p.settle()
	p.now = p.now.Add(rejectedInterval)
	p.step(Tick{})
	p.settle()
}

// checkSettled holds what must be true once everything was answered.
func (p *tcp) checkSettled() {
	if len(p.serving) > 12+maxRetired {
		p.fatal("%d slots stand in the listeners", len(p.serving))
	}
	if !p.s.relistAt.IsZero() {
		return // Envoy refused a change, and the next try is due later
	}
	for _, site := range tcpSites {
		for _, phase := range chandler.Phases() {
			var before *chandler.Attachment
			for _, place := range p.serving {
				if place.Phase != phase || (attach.Site{Mode: place.Mode, Port: place.Port, Network: true}) != site {
					continue
				}
				for _, m := range p.s.find(place).acked.members { // of the same bytes, the newest version
					if m.standIn == chandler.StandInPass {
						continue
					}
					if before != nil && before.CompareOrder(&m.version.Attachment) > 0 {
						p.fatal("%v stands behind %v", m.version.Key, before.Key)
					}
					before = &m.version.Attachment
				}
			}
		}
	}
	for key, plugin := range p.s.plugins {
		switch {
		case plugin.want == nil:
			p.fatal("%v was removed and is remembered", key)
		case p.bad[plugin.want.Version], plugin.rejected == plugin.want.Version:
		case plugin.state != chandler.StateInForce:
			p.fatal("%v is good and %s", key, plugin.state)
		}
	}
}

// serves tells what decides in each slot that serves, in its order there.
func (p *tcp) serves() string {
	var all []string
	for _, place := range p.serving {
		content := "nothing"
		for _, m := range p.runs[place.Name()] {
			content = m.version.Version
			if m.standIn != chandler.StandInNone {
				content += "=" + string(m.standIn)
			}
		}
		all = append(all, fmt.Sprintf("%s:%d:%s", place.Plugin.Name, place.Port, content))
	}
	return strings.Join(all, " ")
}

func (p *tcp) wantServes(t *testing.T, want string, changes int) {
	t.Helper()
	if got := p.serves(); got != want || p.changes != changes {
		t.Errorf("it serves %q after %d changes of the listeners, want %q after %d", got, p.changes, want, changes)
	}
}

func TestListing(t *testing.T) {
	t.Parallel()
	p := newTCP(t.Fatalf)
	a1, b1 := networkVersion("a", "a1", "", 1, chandler.FailClose, 1), networkVersion("b", "b1", "", 2, chandler.FailOpen, 1)
	p.step(EnvoyStarted{Envoy: "envoy-1"})
	if p.changes != 0 {
		t.Fatal("listeners are written before anybody told what belongs into them")
	}
	// An Envoy that starts denies before it serves, and fetches meanwhile.
	p.step(Assigned{Changed: []Version{a1}})
	p.take()
	p.answer(attach.Slot{Mode: chandler.ModeClient, Port: 80, Network: true, Plugin: a1.Key}.Name())
	p.answer(attach.Slot{Mode: chandler.ModeServer, Port: 90, Network: true, Plugin: a1.Key}.Name())
	p.step(ListenersOpen{})
	p.wantServes(t, "a:80:a1=deny a:90:a1=deny", 1)
	p.settle()
	p.wantServes(t, "a:80:a1 a:90:a1", 1)

	// Priorities decide the order in the listener, and a detach leaves it alone.
	p.step(Assigned{Changed: []Version{b1}})
	p.settle()
	p.wantServes(t, "b:80:b1 a:80:a1 b:90:b1 a:90:a1", 2)
	p.step(Assigned{Removed: []chandler.Key{b1.Key}})
	p.settle()
	p.wantServes(t, "b:80:nothing a:80:a1 b:90:nothing a:90:a1", 2)
	p.step(Assigned{Changed: []Version{b1}})
	p.settle()
	p.wantServes(t, "b:80:b1 a:80:a1 b:90:b1 a:90:a1", 2)

	// What drains is said.
	if st := p.s.Report()[b1.Key]; st.State != chandler.StateInForce || !strings.Contains(st.Message, "drained") {
		t.Errorf("of b is said %s, %q", st.State, st.Message)
	}

	// The next Envoy begins with all of it.
	saved := *p.saved
	p.fresh()
	p.step(Restored(saved))
	p.start("envoy-1")
	for _, src := range sortedSources(maps.Keys(p.loads)) {
		p.load(src)
	}
	p.settle()
	p.wantServes(t, "b:80:b1 a:80:a1 b:90:b1 a:90:a1", 3)
}

func TestListingRefused(t *testing.T) {
	t.Parallel()
	p := newTCP(t.Fatalf)
	p.start("envoy-1")
	a1 := networkVersion("a", "a1", "", 1, chandler.FailClose, 1)
	p.step(Assigned{Changed: []Version{a1}})
	p.settle()
	b1 := networkVersion("b", "b1", "", 1, chandler.FailClose, 1)
	p.step(Assigned{Changed: []Version{b1}})
	if !p.written {
		t.Fatal("the listeners do not change")
	}
	p.refuse("no such thing")
	p.settle()
	p.wantServes(t, "a:80:a1 a:90:a1", 3)
	if st := p.s.Report()[b1.Key]; st.State != chandler.StateRejected || st.Message != "no such thing" || st.NextTry.IsZero() || st.Rejections != 1 {
		t.Errorf("of b is said %s, %q, next try %v", st.State, st.Message, st.NextTry)
	}
	if st := p.s.Report()[a1.Key]; st.State != chandler.StateInForce {
		t.Errorf("a is %s", st.State)
	}
	p.now = p.now.Add(time.Hour)
	p.step(Tick{})
	p.settle()
	p.wantServes(t, "a:80:a1 b:80:b1 a:90:a1 b:90:b1", 4)
}
