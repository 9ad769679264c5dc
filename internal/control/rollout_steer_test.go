package control_test

import (
	"errors"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/record"
)

// rejects says of a release's module that Envoy refuses it; the one before stays.
func rejects(mod []byte, before *chandler.ReleaseID) func(chandler.Attachment) chandler.AttachmentState {
	bad := chandler.Digest[chandler.ModuleDigest](mod)
	return func(att chandler.Attachment) chandler.AttachmentState {
		if att.Program.Module.Digest == bad {
			st := stateOf(att, chandler.StateRejected, 1)
			st.InForce = *before
			return st
		}
		*before = att.Release
		return stateOf(att, chandler.StateInForce, 0)
	}
}

func traps(mod []byte) func(chandler.Attachment) chandler.AttachmentState {
	bad := chandler.Digest[chandler.ModuleDigest](mod)
	return func(att chandler.Attachment) chandler.AttachmentState {
		st := stateOf(att, chandler.StateInForce, 0)
		if att.Program.Module.Digest == bad {
			st.Reason, st.VMTraps = chandler.CodeVMTrap, uint64(time.Now().Unix()-946684800)
		}
		return st
	}
}

// A release that proxies do badly with goes back by itself: the others never have it.
func TestBadReleaseIsTakenBack(t *testing.T) {
	t.Parallel()
	two := chandler.Digest[chandler.ModuleDigest](modTwo)
	for name, spoil := range map[string]func(*actor){
		"refused by Envoy": func(a *actor) {
			before := new(chandler.ReleaseID)
			a.does(rejects(modTwo, before))
		},
		"traps": func(a *actor) { a.does(traps(modTwo)) },
		"denies everyone": func(a *actor) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.answers = func(chandler.ReleaseID) chandler.Answers {
				a.agent.mu.Lock()
				defer a.agent.mu.Unlock()
				for _, att := range a.attached {
					if att.Program.Module.Digest == two {
						return chandler.Answers{Classes: [5]uint64{3: 100}}
					}
				}
				return fine("")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			on(t, 10, func(t *testing.T, s *stage) {
				plan := inSteps("20%", "100%")
				s.settled(plan)
				for _, a := range s.actors {
					spoil(a)
				}
				began := time.Now()
				s.apply("auth", "oci://reg.example/auth:v2", plan)
				s.rests(chandler.RolloutDegraded)
				if took := time.Since(began); took > 20*time.Second {
					t.Errorf("it took %v, more than two intervals", took)
				}
				s.within(5*time.Second, "all are back", func() bool { return s.count(modOne) == 10 })
				r := s.rollout("auth")
				bad := r.History[0]
				if bad.Outcome != record.RolledBack || bad.Why == "" || r.History[1].Outcome != record.InForce {
					t.Errorf("history %+v", r.History)
				}
				if n := s.saw(bad.Release); n != 2 {
					t.Errorf("%d were given the release, want the 2 of the first step", n)
				}
				s.await("auth", chandler.ConditionProgrammed, "False RolloutFailed")
				s.within(5*time.Second, "status says that what is to be is in force", func() bool {
					st := s.status("auth")
					return st.Desired == 10 && st.InForce == 10 && st.Release.ID == r.To
				})
				if got := s.reason("auth", chandler.ConditionResolvedRefs); got != "True Resolved" {
					t.Errorf("ResolvedRefs is %s", got)
				}
				time.Sleep(time.Minute) // it is not tried again by itself
				if n := s.count(modOne); n != 10 {
					t.Errorf("%d of 10 still have the release before", n)
				}

				for _, a := range s.actors { // it is mended, and said to be
					a.does(nil)
					a.mu.Lock()
					a.answers = fine
					a.mu.Unlock()
				}
				s.must(s.steer(control.Retry))
				s.rests(chandler.RolloutHealthy)
				if n := s.count(modTwo); n != 10 {
					t.Errorf("%d have it after the retry", n)
				}
			})
		})
	}
}

// Another generation is another release, also of what was taken back.
func TestAnotherGenerationAfterRollback(t *testing.T) {
	t.Parallel()
	on(t, 4, func(t *testing.T, s *stage) {
		plan := inSteps("1", "100%")
		s.settled(plan)
		for _, a := range s.actors {
			a.does(traps(modTwo))
		}
		s.apply("auth", "oci://reg.example/auth:v2", plan)
		s.rests(chandler.RolloutDegraded)
		for _, a := range s.actors {
			a.does(nil)
		}
		s.apply("auth", "oci://reg.example/auth:v2", plan)
		s.within(5*time.Second, "it begins again", func() bool { return s.rollout("auth").State == chandler.RolloutProgressing })
		s.rests(chandler.RolloutHealthy)
		if n := s.count(modTwo); n != 4 {
			t.Errorf("%d have it", n)
		}
		s.await("auth", chandler.ConditionReady, "True Ready")
	})
}

// A generation under which proxies do nothing else needs no steps.
func TestNothingChangesAtOnce(t *testing.T) {
	t.Parallel()
	on(t, 4, func(t *testing.T, s *stage) {
		plan := inSteps("1", "100%")
		s.settled(plan)
		before := s.rollout("auth").To
		s.apply("auth", "oci://reg.example/auth:v1", plan)
		s.within(3*time.Second, "everyone has the new release", func() bool {
			r := s.rollout("auth")
			return r.To != before && r.State == chandler.RolloutHealthy && s.saw(r.To) == 4
		})
		s.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { plan(p); p.Wasm.Config = []byte(`{"a":1}`) })
		s.within(3*time.Second, "a configuration goes in steps", func() bool { return s.rollout("auth").Chosen == 1 })
	})
}

// A first release that does badly leaves nothing behind.
func TestFirstReleaseIsTakenBack(t *testing.T) {
	t.Parallel()
	on(t, 4, func(t *testing.T, s *stage) {
		s.set("auth:v1", modOne)
		for _, a := range s.actors {
			a.does(traps(modOne))
		}
		s.apply("auth", "oci://reg.example/auth:v1", inSteps("1", "100%"))
		s.rests(chandler.RolloutDegraded)
		s.within(5*time.Second, "nobody has it", func() bool { return s.count(nil) == 4 })
		if st := s.status("auth"); st.Desired != 0 || st.Release != nil {
			t.Errorf("status %+v", st)
		}
	})
}

func TestSteering(t *testing.T) {
	t.Parallel()
	on(t, 10, func(t *testing.T, s *stage) {
		plan := inSteps("1", "5", "100%")
		s.settled(plan)
		for _, verb := range []control.Verb{control.Promote, control.Pause, control.Resume, control.Abort, control.Retry, control.Unpin, control.Undo} {
			if err := s.steer(verb); !errors.Is(err, control.ErrNotNow) {
				t.Errorf("%s of one release that everyone has: %v", verb, err)
			}
		}
		s.apply("auth", "oci://reg.example/auth:v2", plan)
		s.within(time.Minute, "one has it", func() bool { return s.count(modTwo) == 1 })
		s.must(s.steer(control.Pause))
		if r := s.rollout("auth"); r.State != chandler.RolloutPaused || r.Reason != chandler.CodePaused {
			t.Errorf("paused: %+v", r.Rollout)
		}
		time.Sleep(time.Minute)
		if n := s.count(modTwo); n != 1 {
			t.Errorf("%d have it while it is paused", n)
		}
		s.await("auth", chandler.ConditionProgrammed, "False RolloutPaused")
		s.must(s.steer(control.Resume))
		s.within(20*time.Second, "it goes on", func() bool { return s.count(modTwo) == 5 })
		began := time.Now()
		s.must(s.steer(control.Promote))
		s.within(5*time.Second, "all have it", func() bool { return s.count(modTwo) == 10 })
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("promoted after %v", took)
		}
		s.must(s.steer(control.Abort))
		s.within(5*time.Second, "all are back", func() bool { return s.count(modOne) == 10 })
		if r := s.rollout("auth"); r.State != chandler.RolloutDegraded || r.Reason != chandler.CodeRolloutAborted || r.History[0].By != "ann" {
			t.Errorf("aborted: %+v", r.Rollout)
		}
		s.await("auth", chandler.ConditionProgrammed, "False RolloutAborted")
		s.must(s.steer(control.Retry))
		s.within(time.Minute, "one has it again", func() bool { return s.count(modTwo) == 1 })
		s.must(s.steer(control.PromoteFull))
		s.within(5*time.Second, "all have it at once", func() bool { return s.count(modTwo) == 10 })
		s.rests(chandler.RolloutHealthy)

		s.must(s.steer(control.Undo))
		s.within(5*time.Second, "all are back on the first", func() bool { return s.count(modOne) == 10 })
		if r := s.rollout("auth"); !r.Pinned || r.History[0].Why != "undo" || r.History[1].Outcome != record.Undone {
			t.Errorf("undone: %+v", r.Rollout)
		}
		s.await("auth", chandler.ConditionProgrammed, "False Pinned")
		s.must(s.steer(control.Unpin))
		s.within(time.Minute, "it goes on in steps", func() bool { return s.count(modTwo) == 1 })
		s.rests(chandler.RolloutHealthy)
		s.await("auth", chandler.ConditionReady, "True Ready")
		to := s.rollout("auth").History[1].Release
		if _, err := s.Steer(t.Context(), control.Steering{Key: s.objects["auth"].Key, Verb: control.Undo, Release: "feed"}); !errors.Is(err, control.ErrNotNow) {
			t.Errorf("too short a prefix: %v", err)
		}
		view, err := s.Steer(t.Context(), control.Steering{Key: s.objects["auth"].Key, Verb: control.Undo, Release: string(to)[:8]})
		s.must(err)
		if view.To != to || !view.Pinned {
			t.Errorf("undone to %s: %+v", to, view.Rollout)
		}
		s.apply("auth", "oci://reg.example/auth:v2", nil) // whatever is pinned, the resource was changed
		s.within(5*time.Second, "the new generation is everywhere", func() bool { return s.count(modTwo) == 10 && !s.rollout("auth").Pinned })
	})
}

// A newer change takes the place of one that is under way: who is not chosen keeps what
// was everyone's.
func TestNewerReleaseSupersedes(t *testing.T) {
	t.Parallel()
	on(t, 6, func(t *testing.T, s *stage) {
		plan := inSteps("1", "3", "100%")
		s.settled(plan)
		s.set("auth:v3", modThree)
		s.apply("auth", "oci://reg.example/auth:v2", plan)
		s.within(time.Minute, "three have the second", func() bool { return s.count(modTwo) == 3 })
		s.apply("auth", "oci://reg.example/auth:v3", plan)
		s.within(5*time.Second, "one has the third, the others the first", func() bool { return s.count(modThree) == 1 && s.count(modOne) == 5 })
		s.rests(chandler.RolloutHealthy)
		if h := s.rollout("auth").History; s.count(modThree) != 6 || h[0].Outcome != record.InForce || h[1].Outcome != record.Superseded || h[2].Outcome != record.Superseded {
			t.Errorf("history %+v", h)
		}
	})
}

func TestSelectorComesInSteps(t *testing.T) {
	t.Parallel()
	on(t, 8, func(t *testing.T, s *stage) {
		plan := inSteps("25%", "100%")
		half := func(p *chandler.Plugin) { plan(p); p.Selector = map[string]string{"half": "0"} }
		s.set("auth:v1", modOne)
		s.apply("auth", "oci://reg.example/auth:v1", half)
		s.within(5*time.Minute, "half have it", func() bool { return s.count(modOne) == 4 && s.rollout("auth").State == chandler.RolloutHealthy })
		s.apply("auth", "oci://reg.example/auth:v1", plan)
		s.within(time.Minute, "the first step begins", func() bool { return s.rollout("auth").Chosen == 2 })
		if n := s.count(modOne); n < 4 || n > 6 {
			t.Errorf("%d have it in the first step", n)
		}
		s.rests(chandler.RolloutHealthy)
		if n := s.count(modOne); n != 8 {
			t.Errorf("%d have it in the end", n)
		}
		s.apply("auth", "oci://reg.example/auth:v1", half)
		s.within(time.Minute, "the first step begins", func() bool { return s.rollout("auth").Chosen == 2 })
		if n := s.count(modOne); n < 6 {
			t.Errorf("%d still have it in the first step", n)
		}
		s.rests(chandler.RolloutHealthy)
		s.within(5*time.Second, "half have it again", func() bool { return s.count(modOne) == 4 })
	})
}

func TestDeletionComesInSteps(t *testing.T) {
	t.Parallel()
	on(t, 4, func(t *testing.T, s *stage) {
		plan := inSteps("1", "100%")
		s.settled(plan)
		key := s.objects["auth"].Key
		delete(s.objects, "auth")
		s.deliver()
		if n := s.count(modOne); n != 4 {
			t.Errorf("%d have it when the deletion is heard of", n)
		}
		s.within(time.Minute, "one has it no more", func() bool { return s.count(nil) == 1 })
		if r := s.rollout("auth"); !r.Gone || r.To != "" || r.State != chandler.RolloutProgressing {
			t.Errorf("rollout %+v", r)
		}
		s.reboot() // it is in no snapshot, and goes on all the same
		time.Sleep(7 * time.Second)
		if _, err := s.Steer(t.Context(), control.Steering{Key: key, Verb: control.Abort, By: "ann"}); err != nil {
			t.Fatal(err)
		}
		s.within(5*time.Second, "all have it again", func() bool { return s.count(modOne) == 4 })
		time.Sleep(time.Minute)
		if n := s.count(modOne); n != 4 {
			t.Errorf("%d have it after the abort", n)
		}
		if _, err := s.Steer(t.Context(), control.Steering{Key: key, Verb: control.Retry, By: "ann"}); err != nil {
			t.Fatal(err)
		}
		s.within(5*time.Minute, "nobody has it", func() bool { return s.count(nil) == 4 })
		s.within(time.Minute, "its records are gone", func() bool {
			rollouts, _ := s.records.Rollouts(t.Context())
			releases, _ := s.records.Releases(t.Context())
			return len(rollouts) == 0 && len(releases) == 0
		})
	})
}

func TestDisable(t *testing.T) {
	t.Parallel()
	on(t, 4, func(t *testing.T, s *stage) {
		s.settled(nil)
		key := s.objects["auth"].Key
		d := chandler.Disablement{Labels: map[string]string{"half": "1"}, Reason: "INC-1", By: "ann"}
		began := time.Now()
		if _, err := s.Disable(t.Context(), key, d); err != nil {
			t.Fatal(err)
		}
		s.within(2*time.Second, "half have it", func() bool { return s.count(modOne) == 2 && s.count(nil) == 2 })
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("taken out after %v", took)
		}
		s.await("auth", chandler.ConditionReady, "False Disabled")
		if st := s.status("auth"); st.Desired != 2 {
			t.Errorf("desired on %d", st.Desired)
		}
		s.reboot()
		s.within(10*time.Second, "it stays so", func() bool { return s.count(modOne) == 2 })
		s.apply("auth", "oci://reg.example/auth:v2", nil)
		s.within(10*time.Second, "also when the resource is changed", func() bool { return s.count(modTwo) == 2 && s.count(nil) == 2 })
		if _, err := s.Enable(t.Context(), key, chandler.Disablement{Node: "istio-system/gw-1"}); !errors.Is(err, control.ErrNotNow) {
			t.Errorf("another order ended: %v", err)
		}
		if _, err := s.Enable(t.Context(), key, chandler.Disablement{By: "bob"}); err != nil {
			t.Fatal(err)
		}
		s.within(2*time.Second, "all have it", func() bool { return s.count(modTwo) == 4 })
		s.await("auth", chandler.ConditionReady, "True Ready")
	})
}
