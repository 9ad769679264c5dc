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

// rig is a State between a scripted Envoy and a scripted disk. It keeps the
// rules of the real Envoy: a refused push changes nothing, and the bytes that
// were refused last are acknowledged without effect when sent again.
type rig struct {
	t     *rapid.T
	s     *State
	now   time.Time
	slots []attach.Slot

	pushed  map[string]Push     // awaiting an answer
	inForce map[string]*Push    // what Envoy runs
	refused map[string]string   // version of the last refused bytes, per slot
	content map[string]*content // by composition version
	loads   map[Source]bool
	saved   SaveLastGood
	bad     map[string]bool // versions that Envoy refuses
	broken  map[string]bool // versions whose module cannot be had
	// out are plugins that are taken out, back those that no longer are since the last
	// time that all was answered.
	out, back map[chandler.Key]bool
}

// content is what a pushed composition holds.
type content struct {
	members map[chandler.Key]member
}

func newRig(t *rapid.T) *rig {
	r := &rig{
		t: t, now: time.Unix(1_700_000_000, 0),
		slots: []attach.Slot{
			{Phase: chandler.PhaseAuthn, Mode: chandler.ModeClient, Port: 8080},
			{Phase: chandler.PhaseAuthn, Mode: chandler.ModeClient, Port: 8443},
			{Phase: chandler.PhaseStats, Mode: chandler.ModeClient, Port: 8080},
		},
		pushed: map[string]Push{}, inForce: map[string]*Push{}, refused: map[string]string{},
		content: map[string]*content{}, loads: map[Source]bool{}, bad: map[string]bool{}, broken: map[string]bool{},
		out: map[chandler.Key]bool{}, back: map[chandler.Key]bool{},
	}
	r.s = NewState(Settings{Slots: r.slots, Features: []string{chandler.FeatureHTTP}})
	return r
}

func (r *rig) step(ev Event) {
	r.t.Helper()
	for _, effect := range r.s.Step(ev, r.now) {
		switch e := effect.(type) {
		case Load:
			if r.loads[e.Source] {
				r.t.Fatalf("a second load of %v while the first runs", e.Source)
			}
			r.loads[e.Source] = true
		case CancelLoad:
			delete(r.loads, e.Source)
		case Push:
			r.take(e)
		case SaveLastGood:
			r.saved = e
		}
	}
	r.check()
}

func (r *rig) take(p Push) {
	if _, busy := r.pushed[p.Slot]; busy {
		r.t.Fatalf("slot %s got a second push before the answer to the first", p.Slot)
	}
	if r.refused[p.Slot] == p.Version {
		r.t.Fatalf("slot %s got the bytes it refused a second time in a row", p.Slot)
	}
	if good := r.inForce[p.Slot]; r.refused[p.Slot] != "" && good != nil && good.Version != p.Version {
		r.t.Fatalf("after a NACK slot %s was not sent what is in force", p.Slot)
	}
	members := maps.Clone(r.s.slot(p.Slot).sent.members)
	if !r.s.open {
		for key, m := range members {
			if m.standIn == chandler.StandInNone && r.s.goodEnvoy != r.s.envoy {
				r.t.Fatalf("%v was sent to a warming Envoy that never acknowledged it", key)
			}
		}
	}
	r.content[p.Version] = &content{members: members}
	r.pushed[p.Slot] = p
}

// answer lets Envoy judge the push to a slot.
func (r *rig) answer(slot string) {
	p := r.pushed[slot]
	delete(r.pushed, slot)
	for key, m := range r.content[p.Version].members {
		if m.standIn == chandler.StandInNone && r.bad[m.version.Version] {
			r.refused[slot] = p.Version
			r.step(Nacked{Slot: slot, Version: p.Version, Message: "Unable to create Wasm plugin " + key.String()})
			return
		}
	}
	delete(r.refused, slot)
	r.inForce[slot] = &p
	r.step(Acked{Slot: slot, Version: p.Version})
}

func (r *rig) finishLoad(src Source) {
	delete(r.loads, src)
	ev := Loaded{Source: src}
	if r.broken[string(src.Digest)] {
		ev.Err = &LoadError{Problem: chandler.Problem{Code: chandler.CodeFetchFailed, Message: "no"}, Temporary: true}
	} else {
		ev.Digest, ev.Path = src.Digest, "/store/"+src.Digest.Hex()
	}
	r.step(ev)
}

// running tells which version of a plugin Envoy runs in every slot it has it in.
func (r *rig) running(key chandler.Key) map[string]member {
	out := map[string]member{}
	for slot, p := range r.inForce {
		if m, ok := r.content[p.Version].members[key]; ok {
			out[slot] = m
		}
	}
	return out
}

// check holds what must be true at every moment.
func (r *rig) check() {
	for key, st := range r.s.Report() {
		for slot, m := range r.running(key) {
			if st.State == chandler.StateInForce && r.s.slot(slot).Holds(&r.s.plugins[key].want.Attachment) && m.version.Version != r.s.plugins[key].want.Version {
				r.t.Fatalf("%v is said to be in force, but %s runs %s", key, slot, m.version.Version)
			}
		}
		p := r.s.plugins[key]
		if p.good == nil || !r.s.open || r.bad[p.good.Version] {
			continue
		}
		some := false
		for _, m := range r.running(key) {
			if m.standIn != chandler.StandInNone {
				continue
			}
			some = true
		}
		if r.out[key] || r.back[key] {
			continue
		}
		if !some && r.s.belongs(p.good) && p.standIn == chandler.StandInNone && len(r.inForce) == len(r.slots) {
			r.t.Fatalf("%v was good and nothing of it is in force", key)
		}
	}
}

// quiesce answers everything until nothing is left to do.
func (r *rig) quiesce() {
	for range 1000 {
		switch {
		case len(r.pushed) > 0:
			r.answer(slices.Min(slices.Collect(maps.Keys(r.pushed))))
		case len(r.loads) > 0 && !r.onlyBroken():
			for _, src := range sortedSources(maps.Keys(r.loads)) {
				if !r.broken[string(src.Digest)] {
					r.finishLoad(src)
					break
				}
			}
		case r.waiting() > 0:
			r.now = r.now.Add(r.waiting())
			r.step(Tick{})
		default:
			return
		}
	}
	r.t.Fatal("it never comes to rest")
}

// waiting is how long it is to the next try of a load that is needed and would succeed.
func (r *rig) waiting() time.Duration {
	for src, l := range r.s.loads {
		if !l.ready && !l.running && !l.standby && !r.broken[string(src.Digest)] {
			return max(l.nextTry.Sub(r.now), 1)
		}
	}
	return 0
}

func (r *rig) onlyBroken() bool {
	for src := range r.loads {
		if !r.broken[string(src.Digest)] {
			return false
		}
	}
	return true
}

func digestOf(s string) chandler.ModuleDigest {
	return chandler.Digest[chandler.ModuleDigest]([]byte(s))
}

// TestStepModel drives State with random edits, answers, failures and restarts.
func TestStepModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := newRig(t)
		r.step(Assigned{})
		r.start("envoy-1")
		r.open()
		sequence := uint64(0)
		keys := []chandler.Key{{Kind: "WasmPlugin", Namespace: "ns", Name: "a"}, {Kind: "WasmPlugin", Namespace: "ns", Name: "b"}, {Kind: "WasmPlugin", Namespace: "ns", Name: "c"}}
		t.Repeat(map[string]func(*rapid.T){
			"assign": func(t *rapid.T) {
				sequence++
				r.assign(t, rapid.SampledFrom(keys).Draw(t, "key"), sequence)
			},
			"remove": func(t *rapid.T) {
				r.step(Assigned{Removed: []chandler.Key{rapid.SampledFrom(keys).Draw(t, "key")}})
			},
			"answer": func(t *rapid.T) {
				if len(r.pushed) == 0 {
					t.Skip("nothing pushed")
				}
				r.answer(rapid.SampledFrom(slices.Sorted(maps.Keys(r.pushed))).Draw(t, "slot"))
			},
			"load": func(t *rapid.T) {
				if len(r.loads) == 0 {
					t.Skip("nothing loads")
				}
				r.finishLoad(rapid.SampledFrom(sortedSources(maps.Keys(r.loads))).Draw(t, "source"))
			},
			"time": func(t *rapid.T) {
				r.now = r.now.Add(time.Duration(rapid.IntRange(1, 600).Draw(t, "seconds")) * time.Second)
				r.step(Tick{})
			},
			"restart": func(t *rapid.T) {
				r.restart(rapid.SampledFrom([]string{"envoy-1", "envoy-2"}).Draw(t, "binary"))
			},
			"bypass": func(t *rapid.T) { r.bypass(rapid.SampledFrom(keys).Draw(t, "key")) },
			"end":    func(*rapid.T) { r.end() },
			"settle": func(*rapid.T) { r.quiesce(); r.checkSettled() },
		})
	})
}

// bypass takes a plugin out, or no longer.
func (r *rig) bypass(key chandler.Key) {
	if r.out[key] {
		delete(r.out, key)
		r.back[key] = true
	} else {
		r.out[key] = true
	}
	var orders []chandler.Bypass
	for key := range r.out {
		orders = append(orders, chandler.Bypass{Key: key, Reason: "it burns"})
	}
	r.step(Bypassed{Plugins: orders})
}

func (r *rig) assign(t *rapid.T, key chandler.Key, sequence uint64) {
	module := rapid.SampledFrom([]string{"m1", "m2", "m3"}).Draw(t, "module")
	version := fmt.Sprintf("%s-%d", key.Name, sequence)
	v := Version{Version: version, Attachment: chandler.Attachment{
		Key: key, UID: "uid-" + key.Name, Generation: int64(sequence), Sequence: sequence,
		Release: chandler.ReleaseID(version),
		Program: chandler.Program{Module: &chandler.Module{Digest: digestOf(module), Size: 1}},
		Behaviour: chandler.Behaviour{
			Type:         chandler.HTTP,
			Phase:        rapid.SampledFrom([]chandler.Phase{chandler.PhaseAuthn, chandler.PhaseStats}).Draw(t, "phase"),
			FailStrategy: rapid.SampledFrom([]chandler.FailStrategy{chandler.FailOpen, chandler.FailClose}).Draw(t, "strategy"),
			RootID:       version,
		},
	}}
	if rapid.Bool().Draw(t, "standby") {
		v.Standby = []chandler.Module{{Digest: digestOf(rapid.SampledFrom([]string{"m1", "m4"}).Draw(t, "for later"))}}
	}
	if rapid.Bool().Draw(t, "bad") {
		r.bad[version] = true
	}
	if module == "m3" {
		r.broken[string(digestOf(module))] = rapid.Bool().Draw(t, "broken")
	}
	r.step(Assigned{Changed: []Version{v}})
}

func (r *rig) start(binary string) {
	r.step(EnvoyStarted{Envoy: binary})
	for _, sl := range r.slots {
		r.step(Subscribed{Slot: sl.Name()})
	}
}

func (r *rig) open() {
	r.quiesce()
	r.step(ListenersOpen{})
	r.quiesce()
}

func (r *rig) restart(binary string) {
	clear(r.pushed)
	clear(r.inForce)
	clear(r.refused)
	r.start(binary)
	r.open()
}

// end lets Envoy end by itself, and starts it anew. What was on its way into a slot
// is put away for a while.
func (r *rig) end() {
	clear(r.pushed)
	clear(r.inForce)
	clear(r.refused)
	r.step(EnvoyEnded{Message: "killed", Attempt: 1})
	for key, st := range r.s.Report() {
		if st.InForce != "" || st.State == chandler.StateInForce || st.Reason != chandler.CodeEnvoyDown {
			r.t.Fatalf("%v without an Envoy: %+v", key, st)
		}
	}
	r.start("envoy-1")
	r.open()
	r.now = r.now.Add(rejectedInterval)
	r.step(Tick{})
	r.quiesce()
}

// checkSettled holds what must be true once everything was answered.
func (r *rig) checkSettled() {
	clear(r.back)
	for key, p := range r.s.plugins {
		if p.want == nil {
			r.t.Fatalf("%v was removed and is remembered", key)
		}
		loadable := !r.broken[string(p.want.Program.Module.Digest)]
		state := p.state
		switch {
		case r.out[key]:
			for slot, m := range r.running(key) {
				if m.standIn != chandler.StandInPass {
					r.t.Fatalf("%v is taken out, %s has it (%s)", key, slot, m.standIn)
				}
			}
			if st := r.s.Report()[key]; state != chandler.StateFailed || st.Reason != chandler.CodeBypassed {
				r.t.Fatalf("%v is taken out: %+v", key, st)
			}
		case r.bad[p.want.Version] && loadable:
			if state != chandler.StateRejected {
				r.t.Fatalf("%v is bad and %s", key, state)
			}
		case loadable:
			if state != chandler.StateInForce {
				r.t.Fatalf("%v is good and %s", key, state)
			}
		}
		for slot, m := range r.running(key) {
			if m.standIn == chandler.StandInNone && r.bad[m.version.Version] {
				r.t.Fatalf("%s runs the bad %s", slot, m.version.Version)
			}
		}
	}
	for slot, p := range r.inForce {
		for key, m := range r.content[p.Version].members {
			if m.standIn != chandler.StandInPass && r.s.plugins[key] == nil {
				r.t.Fatalf("%s runs %v, which was removed", slot, key)
			}
		}
	}
}

// A version that is older than what is known never wins, in whatever order
// updates come.
func TestStepOlderSequenceLoses(t *testing.T) {
	s := NewState(Settings{})
	key := chandler.Key{Kind: "WasmPlugin", Namespace: "ns", Name: "a"}
	at := func(seq uint64) Version {
		return Version{Version: fmt.Sprint(seq), Attachment: chandler.Attachment{Key: key, UID: "u", Sequence: seq}}
	}
	s.Step(Assigned{Changed: []Version{at(5)}}, time.Unix(0, 0))
	s.Step(Assigned{Changed: []Version{at(4)}}, time.Unix(0, 0))
	if got := s.Known()[key.String()]; got != "5" {
		t.Errorf("version %s is wanted, want 5", got)
	}
	again := at(1)
	again.UID, again.Version = "another", "another 1"
	s.Step(Assigned{Changed: []Version{again}}, time.Unix(0, 0))
	if got := s.Known()[key.String()]; got != "another 1" {
		t.Errorf("version %s is wanted; a resource created anew starts its own sequence", got)
	}
}

// Under several control planes, in whatever order their words come, an agent wants what
// it was told last, unless the same control plane has already said something newer of
// the same plugin. One that was restored from a back-up is another.
func TestStepSequencesOfSeveralControlPlanes(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		s, key := NewState(Settings{}), chandler.Key{Kind: "WasmPlugin", Namespace: "ns", Name: "a"}
		var wanted Version
		for range rapid.IntRange(1, 40).Draw(r, "words") {
			v := Version{From: rapid.SampledFrom([]string{"", "left", "right", "restored"}).Draw(r, "from")}
			v.Key, v.UID, v.Sequence = key, rapid.SampledFrom([]string{"u", "w"}).Draw(r, "uid"), rapid.Uint64Range(1, 9).Draw(r, "sequence")
			v.Version = fmt.Sprint(v.From, v.UID, v.Sequence)
			older := v.From == wanted.From && v.UID == wanted.UID && v.Sequence < wanted.Sequence
			if !older {
				wanted = v
			}
			s.Step(Assigned{Changed: []Version{v}}, time.Unix(0, 0))
			if got := s.Known()[key.String()]; got != wanted.Version {
				r.Fatalf("%s is wanted after %s, want %s", got, v.Version, wanted.Version)
			}
		}
	})
}

func TestReasonInLog(t *testing.T) {
	log := strings.Split(strings.TrimSpace(`
[2026-08-01 10:00:00.000][12][error][wasm] [source/extensions/common/wasm/context.cc:1] wasm log WasmPlugin/ns/a root WasmPlugin/ns/a: realm is no string
[2026-08-01 10:00:00.001][12][critical][wasm] [source/extensions/common/wasm/wasm.cc:2] Wasm VM failed Failed to configure base Wasm plugin
[2026-08-01 10:00:00.002][12][critical][wasm] [source/extensions/common/wasm/wasm.cc:3] Plugin WasmPlugin/ns/a failed to load
[2026-08-01 10:00:00.003][12][warning][config] [source/x.cc:4] gRPC config for type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig rejected: Unable to create Wasm plugin WasmPlugin/ns/a
`), "\n")
	if got, want := reasonIn(log, `Unable to create Wasm plugin WasmPlugin/ns/a`), "realm is no string"; got != want {
		t.Errorf("reason %q, want %q", got, want)
	}
	if got, want := reasonIn(log[1:], ``), "Wasm VM failed Failed to configure base Wasm plugin; Plugin WasmPlugin/ns/a failed to load"; got != want {
		t.Errorf("reason %q, want %q", got, want)
	}
}
