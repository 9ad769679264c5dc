package agent

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

func TestRestartsBackOff(t *testing.T) {
	t.Parallel()
	var r restarts
	for _, c := range []struct {
		ran    time.Duration
		jitter float64
		want   time.Duration
	}{
		{time.Second, 0, 200 * time.Millisecond},
		{time.Second, 0, 400 * time.Millisecond},
		{0, 0.5, 600 * time.Millisecond},
		{0, 0, 1600 * time.Millisecond},
		{0, 0, 3200 * time.Millisecond},
		{0, 0, 6400 * time.Millisecond},
		{0, 0, 10 * time.Second},
		{healthyAfter - 1, 0.999, 5005 * time.Millisecond},
		{healthyAfter, 0, 200 * time.Millisecond},
	} {
		if got := r.after(c.ran, c.jitter); got.Round(time.Millisecond) != c.want {
			t.Errorf("after %s: %s, want %s", c.ran, got, c.want)
		}
	}
	for range 1000 {
		if got := r.after(0, 0); got > maxRestart {
			t.Fatalf("it waits %s", got)
		}
	}
}

func TestLastWords(t *testing.T) {
	t.Parallel()
	var lines []string
	for i := range 20 {
		lines = append(lines, fmt.Sprintf("[t][1][info][main] [a.cc:1] line %d", i))
	}
	if got := lastWords(lines); len(got) != 5 || !strings.HasSuffix(got[4], "line 19") {
		t.Errorf("without a crash: %q", got)
	}
	lines[4] = "[t][1][critical][backtrace] Caught Segmentation fault\x1b[31m, suspect faulting address 0x0"
	got := lastWords(lines)
	if len(got) < 10 || !strings.Contains(got[0], "Segmentation fault [31m") {
		t.Errorf("with one: %q", got)
	}
	long := []string{"[critical]", strings.Repeat("é", 10_000), strings.Repeat("x", 10_000)}
	for range 100 {
		long = append(long, strings.Repeat("y", 200))
	}
	if n := len(strings.Join(lastWords(long), "")); n > crashLimit {
		t.Errorf("%d bytes", n)
	}
	if got := lastWords(nil); len(got) != 0 {
		t.Errorf("of nothing: %q", got)
	}
	e := &ExitError{Code: 139, Signal: 11, Log: lastWords(long)}
	if m := e.message(); len(m) > crashLimit+32 || !strings.HasPrefix(m, "envoy was ended by signal 11 (segmentation fault); its last words: [critical]; éé") {
		t.Errorf("%d bytes: %.100s", len(m), m)
	}
	if m := (&ExitError{Code: 1}).message(); m != "envoy ended with exit code 1" {
		t.Error(m)
	}
	if m := (&ExitError{Code: 1, Unknown: true}).Error(); !strings.Contains(m, "not known") {
		t.Error(m)
	}
}

func TestRestartPolicies(t *testing.T) {
	t.Parallel()
	cfg := Config{Node: chandler.Node{Name: "n", Namespace: "ns"}, Data: "/nowhere", EnvoyArgs: []string{"-c", "a.yaml"}}
	for policy, ok := range map[string]bool{"": true, RestartNever: true, RestartOnFailure: true, "always": false} {
		cfg.Restart = policy
		if _, err := New(cfg); (err == nil) != ok {
			t.Errorf("%q: %v", policy, err)
		}
	}
}

// An Envoy that ends takes what was in force with it, and the next one gets what
// was good before its listeners open. Its end and the next try are told.
func TestEnvoyEndsAndIsStartedAnew(t *testing.T) {
	t.Parallel()
	start := time.Unix(1_700_000_000, 0)
	slot := attach.Slot{Phase: chandler.PhaseAuthn, Mode: chandler.ModeClient, Port: 8080}
	version := func(n string, sequence uint64) Version {
		return Version{Version: n, Attachment: chandler.Attachment{
			Key: chandler.Key{Kind: "WasmPlugin", Namespace: "ns", Name: "a"}, UID: "u", Sequence: sequence, Release: chandler.ReleaseID(n),
			Program:   chandler.Program{Module: &chandler.Module{Digest: digestOf(n)}},
			Behaviour: chandler.Behaviour{Type: chandler.HTTP, Phase: chandler.PhaseAuthn},
		}}
	}
	one, two := version("1", 1), version("2", 2)
	s := NewState(Settings{Slots: []attach.Slot{slot}, Features: []string{chandler.FeatureHTTP}})
	deliver := func(effects []Effect, now time.Time) (pushes []Push) {
		for len(effects) > 0 {
			e := effects[0]
			effects = effects[1:]
			switch e := e.(type) {
			case Load:
				effects = append(effects, s.Step(Loaded{Source: e.Source, Digest: e.Source.Digest, Path: "/m/" + string(e.Source.Digest)}, now)...)
			case Push:
				pushes = append(pushes, e)
			}
		}
		return pushes
	}
	state := func() chandler.AttachmentState { return s.Report()[one.Key] }
	begin := func(now time.Time) Push {
		t.Helper()
		pushes := deliver(s.Step(EnvoyStarted{Envoy: "e"}, now), now)
		pushes = append(pushes, deliver(s.Step(Subscribed{Slot: slot.Name()}, now), now)...)
		if len(pushes) != 1 {
			t.Fatalf("it begins with %v", pushes)
		}
		s.Step(Acked{Slot: slot.Name(), Version: pushes[0].Version}, now)
		return pushes[0]
	}
	s.Step(Assigned{}, start)
	begin(start)
	s.Step(ListenersOpen{}, start)
	first := deliver(s.Step(Assigned{Changed: []Version{one}}, start), start)
	s.Step(Acked{Slot: slot.Name(), Version: first[0].Version}, start)
	if st := state(); st.State != chandler.StateInForce {
		t.Fatalf("%+v", st)
	}

	now := start.Add(time.Minute)
	next := now.Add(time.Second)
	if pushes := deliver(s.Step(EnvoyEnded{Message: "envoy was ended by signal 9", Attempt: 3, Next: next}, now), now); len(pushes) > 0 {
		t.Errorf("pushed to nobody: %v", pushes)
	}
	if st := state(); st.State == chandler.StateInForce || st.InForce != "" || st.Reason != chandler.CodeEnvoyDown || st.Attempt != 3 || !st.NextTry.Equal(next) || !strings.Contains(st.Message, "signal 9") {
		t.Errorf("while it is down: %+v", st)
	}
	if why := s.Readiness(); !slices.Equal(why, []string{"envoy is not running"}) {
		t.Errorf("ready: %v", why)
	}
	if p := begin(now); p.Version != first[0].Version {
		t.Errorf("the next Envoy begins with %v, not with what was good", p)
	}
	s.Step(ListenersOpen{}, now)
	if st := state(); st.State != chandler.StateInForce || st.Reason != "" {
		t.Errorf("after it: %+v", st)
	}

	// A version that was being put in force when Envoy ended is put away: the next
	// Envoy serves with the one before, for longer each time.
	pushes := deliver(s.Step(Assigned{Changed: []Version{two}}, now), now)
	for round := range 3 {
		if len(pushes) != 1 || len(pushes[0].Wasm) != 1 {
			t.Fatalf("round %d: pushed %v, want the new version", round, pushes)
		}
		s.Step(EnvoyEnded{Message: "envoy was ended by signal 11", Attempt: 1, Next: now}, now)
		begin(now)
		if late := deliver(s.Step(ListenersOpen{}, now), now); len(late) > 0 {
			t.Fatalf("round %d: it is sent again at once", round)
		}
		if st := state(); st.State != chandler.StateRejected || st.InForce != one.Release || !strings.Contains(st.Message, "signal 11") {
			t.Errorf("round %d: %+v", round, st)
		}
		wait := crashPause << round
		if at := s.Wake(); !at.Equal(now.Add(wait)) {
			t.Errorf("round %d: tried again at %s, want after %s", round, at.Sub(now), wait)
		}
		now = now.Add(wait)
		pushes = deliver(s.Step(Tick{}, now), now)
	}
	s.Step(Acked{Slot: slot.Name(), Version: pushes[0].Version}, now)
	if st := state(); st.State != chandler.StateInForce || st.InForce != two.Release {
		t.Errorf("in the end: %+v", st)
	}
}

// Faults of VMs in an Envoy that has ended are not forgotten.
func TestTrapsOfSeveralEnvoys(t *testing.T) {
	t.Parallel()
	p := serving(t)
	key := chandler.Key{Kind: "WasmPlugin", Namespace: "ns", Name: "a"}
	p.step(Assigned{Changed: []Version{{Version: "1", Attachment: chandler.Attachment{Key: key, UID: "u", Sequence: 1}}}})
	p.step(Trapped{Counts: map[chandler.Key]VMFaults{key: {Reloads: 3}}})
	p.step(EnvoyEnded{Message: "gone"})
	p.step(Trapped{Counts: map[chandler.Key]VMFaults{key: {Reloads: 1}}})
	if n := p.s.Report()[key].VMTraps; n != 4 {
		t.Errorf("%d faults, want 4", n)
	}
}

// exit tells a signal from a code, and what cannot be known.
func TestExit(t *testing.T) {
	t.Parallel()
	a := bareAgent(t)
	a.process = &envoyProcess{err: errNotOurChild}
	if e := a.exit(); !e.Unknown || e.Code != 1 || e.Signal != 0 {
		t.Errorf("%+v", e)
	}
	a.process = &envoyProcess{err: errors.New("no idea")}
	if e := a.exit(); e.Unknown || e.Code != 1 {
		t.Errorf("%+v", e)
	}
	a.process = &envoyProcess{}
	if e := a.exit(); e.Code != 0 {
		t.Errorf("%+v", e)
	}
}
