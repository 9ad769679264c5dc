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
	adopted := func() *State {
		s := NewState(Settings{Slots: []attach.Slot{slot}, Features: []string{chandler.FeatureHTTP}})
		s.Step(Restored{Envoy: "e", Versions: []Version{v}}, start)
		s.Step(EnvoyStarted{Envoy: "e", Open: true}, start)
		s.Step(Loaded{Source: Source{Digest: digest}, Err: &LoadError{Temporary: true}}, start)
		if pushes := pushesOf(s.Step(Subscribed{Slot: slot.Name(), Version: "what the agent before sent"}, start)); pushes != nil {
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

func pushesOf(effects []Effect) []Push {
	var pushes []Push
	for _, e := range effects {
		if p, ok := e.(Push); ok {
			pushes = append(pushes, p)
		}
	}
	return pushes
}
