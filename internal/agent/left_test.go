package agent

import (
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

// An Envoy that was left behind keeps what it has while a lost module is fetched
// again: as long as it takes when no control plane is heard, else until the
// fetch deadline.
func TestFault_F18_LeftEnvoyKeepsWhatItHas(t *testing.T) {
	t.Parallel()
	start := time.Unix(1_700_000_000, 0)
	slot := attach.Slot{Phase: chandler.PhaseAuthn, Mode: chandler.ModeClient, Port: 8080}
	digest := chandler.ModuleDigest("sha256:" + strings.Repeat("a", 64))
	v := Version{Version: "1", Attachment: chandler.Attachment{
		Key: chandler.Key{Kind: "WasmPlugin", Namespace: "ns", Name: "a"}, UID: "u", Sequence: 1,
		Program:   chandler.Program{Module: &chandler.Module{Digest: digest}},
		Behaviour: chandler.Behaviour{Type: chandler.HTTP, Phase: chandler.PhaseAuthn},
	}}
	composed := func(v Version) string {
		return attach.Version(attach.Compose(slot, []attach.Member{{Attachment: &v.Attachment, ModulePath: "/m"}}))
	}
	adopted := func() *State {
		s := NewState(Settings{Slots: []attach.Slot{slot}, Features: []string{chandler.FeatureHTTP}})
		s.Step(Restored{Envoy: "e", Versions: []Version{v}}, start)
		s.Step(EnvoyStarted{Envoy: "e", Open: true}, start)
		s.Step(Loaded{Source: Source{Digest: digest}, Err: &LoadError{Temporary: true}}, start)
		if pushes := pushesOf(s.Step(Subscribed{Slot: slot.Name(), Version: composed(v)}, start)); pushes != nil {
			t.Fatalf("pushed %v over what is in force", pushes)
		}
		return s
	}
	lost := LoadError{Temporary: true}

	alone := adopted()
	if pushes := pushesOf(alone.Step(Tick{}, start.Add(time.Hour))); pushes != nil {
		t.Errorf("without a control plane: pushed %v", pushes)
	}

	heard := adopted()
	heard.Step(Assigned{Changed: []Version{v}}, start)
	heard.Step(Loaded{Source: Source{Digest: digest}, Err: &lost}, start)
	if pushes := pushesOf(heard.Step(Tick{}, start.Add(DefaultFetchDeadline-time.Second))); pushes != nil {
		t.Errorf("before the deadline: pushed %v", pushes)
	}
	if at := heard.Wake(); at.After(start.Add(DefaultFetchDeadline)) {
		t.Errorf("wakes at %s, after the deadline", at)
	}
	if pushes := pushesOf(heard.Step(Tick{}, start.Add(DefaultFetchDeadline))); len(pushes) != 1 || len(pushes[0].Wasm) != 0 {
		t.Errorf("after the deadline: pushed %v, want a stand-in", pushes)
	}

	mended := adopted()
	mended.Step(Tick{}, start.Add(10*time.Second))
	if pushes := pushesOf(mended.Step(Loaded{Source: Source{Digest: digest}, Digest: digest, Path: "/m"}, start.Add(10*time.Second))); len(pushes) != 1 || len(pushes[0].Wasm) != 1 {
		t.Errorf("fetched: pushed %v, want the module", pushes)
	}
}

// The agent before was killed when Envoy had acknowledged version 2 and the last
// good set said 1. Envoy says what it has, and is not taken back to 1: not while
// the control plane is away, and not when it tells of 2 and its module is still
// being read.
func TestFault_F4_LeftEnvoyIsAhead(t *testing.T) {
	t.Parallel()
	start := time.Unix(1_700_000_000, 0)
	slot := attach.Slot{Phase: chandler.PhaseAuthn, Mode: chandler.ModeClient, Port: 8080}
	version := func(n uint64, module string) Version {
		return Version{Version: module, Attachment: chandler.Attachment{
			Key: chandler.Key{Kind: "WasmPlugin", Namespace: "ns", Name: "a"}, UID: "u", Sequence: n,
			Program:   chandler.Program{Module: &chandler.Module{Digest: digestOf(module)}},
			Behaviour: chandler.Behaviour{Type: chandler.HTTP, Phase: chandler.PhaseAuthn},
		}}
	}
	one, two := version(1, "one"), version(2, "two")
	loaded := func(v Version) Event {
		d := v.Program.Module.Digest
		return Loaded{Source: Source{Digest: d}, Digest: d, Path: "/" + v.Version}
	}
	adopted := func() *State {
		s := NewState(Settings{Slots: []attach.Slot{slot}, Features: []string{chandler.FeatureHTTP}})
		s.Step(Restored{Envoy: "e", Versions: []Version{one}}, start)
		s.Step(EnvoyStarted{Envoy: "e", Open: true}, start)
		s.Step(loaded(one), start)
		runs := attach.Version(attach.Compose(slot, []attach.Member{{Attachment: &two.Attachment, ModulePath: "/two"}}))
		if pushes := pushesOf(s.Step(Subscribed{Slot: slot.Name(), Version: runs}, start)); pushes != nil {
			t.Fatalf("it goes back to %v", pushes)
		}
		if pushes := pushesOf(s.Step(Tick{}, start.Add(time.Hour))); pushes != nil {
			t.Fatalf("after an hour without a control plane it goes back to %v", pushes)
		}
		return s
	}
	later := start.Add(time.Hour)

	told := adopted()
	if pushes := pushesOf(told.Step(Assigned{Changed: []Version{two}}, later)); pushes != nil {
		t.Errorf("while its module is read it goes back to %v", pushes)
	}
	if pushes := pushesOf(told.Step(loaded(two), later)); len(pushes) != 1 {
		t.Errorf("pushed %v, want version 2", pushes)
	}
	told.Step(Acked{Slot: slot.Name(), Version: told.slot(slot.Name()).sent.version}, later)
	if st := told.Report()[one.Key]; st.State != chandler.StateInForce || st.Sequence != 2 {
		t.Errorf("%+v", st)
	}

	same := adopted() // nothing newer exists after all
	if pushes := pushesOf(same.Step(Assigned{Changed: []Version{one}}, later)); len(pushes) != 1 {
		t.Errorf("pushed %v, want what the control plane wants", pushes)
	}

	stuck := adopted()
	stuck.Step(Assigned{Changed: []Version{two}}, later)
	if at := stuck.Wake(); at.After(later.Add(goodPatience)) {
		t.Errorf("wakes at %s", at)
	}
	if pushes := pushesOf(stuck.Step(Tick{}, later.Add(goodPatience))); len(pushes) != 1 {
		t.Errorf("it holds the slot for ever: %v", pushes)
	}
}

func pushesOf(effects []Effect) []Push {
	var pushes []Push
	for _, e := range effects {
		if p, ok := e.(Push); ok {
			pushes = append(pushes, p)
		}
	}
	return pushes
}
