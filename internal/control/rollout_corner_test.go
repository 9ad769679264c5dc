package control_test

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/rollout"
)

// relabel has an agent come back with other labels, and with what it has.
func (s *stage) relabel(a *actor, labels map[string]string) {
	a.leave()
	a.node.Labels, a.firm = maps.Clone(a.node.Labels), true
	maps.Copy(a.node.Labels, labels)
	a.comeBack(s.rig)
}

// Agents take nothing older than what they have: a canary whose label goes keeps the new
// release, is counted with those who have it, and goes where the rollout goes.
func TestRelabelledCanaryKeepsItsRelease(t *testing.T) {
	t.Parallel()
	on(t, 4, func(t *testing.T, s *stage) {
		plan := inSteps("n=1", "100%")
		s.settled(plan)
		s.apply("auth", "oci://reg.example/auth:v2", plan)
		s.within(time.Minute, "the canary has it", func() bool { return s.rollout("auth").Updated == 1 })
		s.relabel(s.actors[1], map[string]string{"n": "no more"})
		s.within(5*time.Second, "it is there again", func() bool { return s.rollout("auth").Proxies == 4 })
		time.Sleep(time.Second)
		if r := s.rollout("auth"); s.actors[1].runs() != string(chandler.Digest[chandler.ModuleDigest](modTwo)) || r.Chosen != 1 || r.Updated != 1 {
			t.Errorf("chosen %d, updated %d", r.Chosen, r.Updated)
		}
		if st := s.status("auth"); st.Desired != 4 || st.InForce != 4 {
			t.Errorf("in force on %d of %d", st.InForce, st.Desired)
		}
		s.rests(chandler.RolloutHealthy)
		if n := s.count(modTwo); n != 4 {
			t.Errorf("%d have it in the end", n)
		}
	})
}

// A step is for as many as it says also when it is chosen while most agents are away: they
// are back soon, and those whose turn is earlier would be chosen with whoever was there.
func TestStepIsChosenAmongThoseWhoComeBack(t *testing.T) {
	t.Parallel()
	for name, restarted := range map[string]bool{"the network is gone": false, "the control plane was": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			on(t, 6, func(t *testing.T, s *stage) {
				plan := inSteps("1", "100%")
				s.settled(plan)
				uid := s.objects["auth"].UID
				lastFirst := slices.SortedFunc(slices.Values(s.actors), func(a, b *actor) int {
					return cmp.Compare(rollout.Place(uid, b.node), rollout.Place(uid, a.node))
				})
				away := lastFirst[1:]
				if restarted {
					away = lastFirst
				}
				for _, a := range away {
					a.leave()
				}
				s.apply("auth", "oci://reg.example/auth:v2", plan)
				if restarted {
					s.restart()
					s.deliver()
				}
				for _, a := range away {
					time.Sleep(1500 * time.Millisecond)
					a.comeBack(s.rig)
				}
				s.within(20*time.Second, "somebody has it", func() bool { return s.count(modTwo) > 0 })
				time.Sleep(5 * time.Second)
				if n := s.count(modTwo); n != 1 {
					t.Errorf("%d have what is for one", n)
				}
				s.rests(chandler.RolloutHealthy)
			})
		})
	}
}

// Nobody waits for a proxy that does not come back.
func TestStepIsNotForWhoStaysAway(t *testing.T) {
	t.Parallel()
	on(t, 3, func(t *testing.T, s *stage) {
		plan := inSteps("1", "100%")
		s.settled(plan)
		uid := s.objects["auth"].UID
		first := slices.MinFunc(s.actors, func(a, b *actor) int { return cmp.Compare(rollout.Place(uid, a.node), rollout.Place(uid, b.node)) })
		first.leave()
		s.apply("auth", "oci://reg.example/auth:v2", plan)
		time.Sleep(8 * time.Second)
		if n := s.count(modTwo); n != 0 {
			t.Errorf("%d have it while the one whose turn it is may come back", n)
		}
		s.within(15*time.Second, "the next has it", func() bool { return s.count(modTwo) == 1 })
	})
}

// Whom a plugin selects no more loses it at once, chosen or not.
func TestRelabelledOutOfTheSelector(t *testing.T) {
	t.Parallel()
	on(t, 4, func(t *testing.T, s *stage) {
		steps := inSteps("1", "100%")
		plan := func(p *chandler.Plugin) { steps(p); p.Selector = map[string]string{"half": "0"} }
		s.set("auth:v1", modOne)
		s.set("auth:v2", modTwo)
		s.apply("auth", "oci://reg.example/auth:v1", plan)
		s.within(time.Minute, "both have the first", func() bool { return s.count(modOne) == 2 && s.rollout("auth").State == chandler.RolloutHealthy })
		s.apply("auth", "oci://reg.example/auth:v2", plan)
		s.within(time.Minute, "one has the second", func() bool { return s.rollout("auth").Updated == 1 })
		for _, a := range s.actors {
			if a.runs() == string(chandler.Digest[chandler.ModuleDigest](modTwo)) {
				s.relabel(a, map[string]string{"half": "1"})
			}
		}
		s.within(5*time.Second, "it has nothing", func() bool { return s.count(nil) == 3 && s.count(modOne) == 1 && s.rollout("auth").Proxies == 1 })
	})
}

// A first attach in steps denies nobody: who is not chosen is as before there was the
// plugin, also when it is to deny from the first moment on.
func TestFirstAttachInStepsDeniesNobody(t *testing.T) {
	t.Parallel()
	on(t, 4, func(t *testing.T, s *stage) {
		steps := inSteps("1", "100%")
		s.fail(errors.New("the registry is away"))
		s.set("auth:v1", modOne)
		s.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { steps(p); p.FirstAttach = chandler.FirstAttachDeny })
		s.within(10*time.Second, "it cannot be resolved", func() bool { return strings.HasPrefix(s.reason("auth", chandler.ConditionResolvedRefs), "False") })
		if n := s.count(nil); n != 4 {
			t.Errorf("%d of 4 have nothing before there is a release", n)
		}
		s.fail(nil)
		s.within(5*time.Minute, "one has it", func() bool { return s.count(modOne) == 1 })
		if n := s.count(nil); n != 3 {
			t.Errorf("%d of the 3 others have nothing", n)
		}
	})
}

// replace is what "kubectl replace --force" does: the resource is another one, of the same
// name. seen: its deletion is heard of before.
func (s *stage) replace(url string, edit func(*chandler.Plugin), seen bool) {
	s.t.Helper()
	delete(s.objects, "auth")
	if seen {
		s.deliver()
		time.Sleep(3 * time.Second)
	}
	s.apply("auth", url, edit)
}

// A resource that is deleted and made anew changes a plugin like any other change: in
// steps, and nobody is without it meanwhile.
func TestReplacedResourceComesInSteps(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ deletionSeen, killed bool }{
		"at once": {}, "its deletion begun": {deletionSeen: true}, "the control plane killed": {killed: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			on(t, 6, func(t *testing.T, s *stage) {
				plan := inSteps("1", "50%", "100%")
				s.settled(plan)
				old := s.objects["auth"].UID
				lost := 0
				if c.deletionSeen {
					lost = 1 // the deletion came to the first step
				}
				s.replace("oci://reg.example/auth:v2", plan, c.deletionSeen)
				seen := 8 * time.Second
				if c.killed {
					s.reboot()
					seen = 13 * time.Second // it waits for who may come back
				}
				for end := time.Now().Add(seen); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
					if n := s.count(nil); n > lost {
						t.Fatalf("%d have nothing", n)
					}
				}
				if s.count(modTwo) != 1 || s.count(modOne) != 5 {
					t.Errorf("%d have the second, %d the first", s.count(modTwo), s.count(modOne))
				}
				if r := s.rollout("auth"); r.UID == old || r.State != chandler.RolloutProgressing || r.From == "" {
					t.Errorf("%+v", r.Rollout)
				}
				for _, a := range s.actors {
					a.does(traps(modTwo))
				}
				s.rests(chandler.RolloutDegraded)
				s.within(5*time.Second, "all are back", func() bool { return s.count(modOne) == 6 })
				s.reboot()
				time.Sleep(20 * time.Second)
				if n := s.count(modOne); n != 6 {
					t.Errorf("%d still are", n)
				}
				for _, a := range s.actors {
					a.does(nil)
				}
				s.must(s.steer(control.Retry))
				s.rests(chandler.RolloutHealthy)
				if n := s.count(modTwo); n != 6 {
					t.Errorf("%d have the second in the end", n)
				}
				s.within(time.Minute, "nothing is left of the old one", func() bool {
					rollouts, _ := s.records.Rollouts(t.Context())
					releases, _ := s.records.Releases(t.Context())
					return len(rollouts) == 1 && !slices.ContainsFunc(releases, func(r chandler.Release) bool { return r.UID == old })
				})
				s.must(s.steer(control.Undo))
				s.within(5*time.Second, "undone to what the old one was", func() bool { return s.count(modOne) == 6 })
			})
		})
	}
}

// What is made anew as it was changes nothing, and needs no steps.
func TestReplacedByItself(t *testing.T) {
	t.Parallel()
	on(t, 4, func(t *testing.T, s *stage) {
		plan := inSteps("1", "100%")
		s.settled(plan)
		old := s.objects["auth"].UID
		s.replace("oci://reg.example/auth:v1", plan, false)
		s.within(3*time.Second, "everyone has the new one's", func() bool {
			r := s.rollout("auth")
			if s.count(nil) > 0 {
				t.Fatal("somebody has nothing")
			}
			return r.UID != old && r.State == chandler.RolloutHealthy && s.saw(r.To) == 4
		})
		s.within(time.Minute, "nothing is left of the old one", func() bool {
			rollouts, _ := s.records.Rollouts(t.Context())
			return len(rollouts) == 1
		})
	})
}

// What is made anew under a name that proxies do not know any more is a first release.
func TestReplacedLongAfterItsEnd(t *testing.T) {
	t.Parallel()
	on(t, 4, func(t *testing.T, s *stage) {
		plan := inSteps("1", "100%")
		s.settled(nil)
		s.replace("oci://reg.example/auth:v2", plan, true)
		s.within(time.Minute, "one has the second", func() bool { return s.count(modTwo) == 1 })
		if n := s.count(nil); n != 3 {
			t.Errorf("%d have nothing", n)
		}
	})
}

// An order that took a plugin out is about its name: it holds for what is made anew.
func TestReplacedResourceStaysDisabled(t *testing.T) {
	t.Parallel()
	for name, plan := range map[string]func(*chandler.Plugin){"in steps": inSteps("1", "100%"), "at once": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			on(t, 4, func(t *testing.T, s *stage) {
				s.settled(plan)
				key := s.objects["auth"].Key
				if _, err := s.Disable(t.Context(), key, chandler.Disablement{Labels: map[string]string{"half": "1"}, Reason: "INC-1", By: "ann"}); err != nil {
					t.Fatal(err)
				}
				s.within(2*time.Second, "half have it", func() bool { return s.count(modOne) == 2 })
				s.replace("oci://reg.example/auth:v2", plan, false)
				s.within(time.Minute, "the others have the second", func() bool { return s.count(modTwo) == 2 })
				if n := s.count(nil); n != 2 || len(s.rollout("auth").Disabled) != 1 {
					t.Errorf("%d have nothing, of the 2 that it was taken out of", n)
				}
			})
		})
	}
}

// against is a gate against one url.
type against struct {
	gate
	url string
}

func (g *against) Admit(p *chandler.Plugin) []chandler.Problem {
	if p.Wasm.URL == g.url {
		return []chandler.Problem{*chandler.Problemf(chandler.CodePolicyDenied, "spec.url", "", "not that one")}
	}
	return nil
}

// What the policy has taken out does not come back with a resource that is made anew.
func TestReplacedResourceThatWasDetached(t *testing.T) {
	t.Parallel()
	on(t, 4, func(t *testing.T, s *stage) {
		plan := inSteps("1", "100%")
		s.settled(plan)
		s.Govern(t.Context(), &against{gate{hash: "1", detach: true}, "oci://reg.example/auth:v1"})
		s.within(5*time.Second, "nobody has it", func() bool { return s.count(nil) == 4 })
		s.replace("oci://reg.example/auth:v2", plan, false)
		s.within(time.Minute, "one has the new one", func() bool { return s.count(modTwo) == 1 })
		if n := s.count(nil); n != 3 {
			t.Errorf("%d have nothing, want the 3 others", n)
		}
	})
}

// countConfig tells how many run with a configuration; empty: none, as they refuse requests.
func (s *stage) countConfig(want string) (n int) {
	for _, a := range s.actors {
		a.agent.mu.Lock()
		for _, att := range a.attached {
			if want == "" && att.Program.Deny || want != "" && !att.Program.Deny && string(att.Config) == want {
				n++
			}
		}
		a.agent.mu.Unlock()
	}
	return n
}

// What was made with values of secrets that are known no more cannot be put back. The
// rollout waits and says so, in place of claiming that it did; an authentication plugin
// refuses on newcomers; and once the values are back, so is the release.
func TestReleaseOfOldSecretsIsNotPutBack(t *testing.T) {
	t.Parallel()
	on(t, 5, func(t *testing.T, s *stage) {
		const before, after = `{"a":1,"b":{"c":2},"password":"old"}`, `{"a":1,"b":{"c":2},"password":"new"}`
		steps := inSteps("1", "100%")
		plan := func(p *chandler.Plugin) { steps(p); secretive(p) }
		s.set("auth:v1", modOne)
		s.hide("v1", "password: old")
		s.apply("auth", "oci://reg.example/auth:v1", plan)
		s.within(5*time.Minute, "all have it", func() bool { return s.countConfig(before) == 5 && s.rollout("auth").State == chandler.RolloutHealthy })
		old := s.rollout("auth").To
		s.hide("v2", "password: new")
		s.deliver()
		s.within(time.Minute, "one has the new value", func() bool { return s.countConfig(after) == 1 })
		s.reboot() // nobody remembers the old value
		for _, a := range s.actors {
			a.does(func(att chandler.Attachment) chandler.AttachmentState {
				st := stateOf(att, chandler.StateInForce, 0)
				if string(att.Config) == after {
					st.Reason, st.VMTraps = chandler.CodeVMTrap, uint64(time.Now().Unix()-946684800)
				}
				return st
			})
		}
		s.rests(chandler.RolloutPaused)
		for range 2 {
			s.enter(chandler.Node{Namespace: "istio-system", Name: "late-" + fmt.Sprint(len(s.actors)), Labels: map[string]string{}})
		}
		s.within(5*time.Second, "newcomers refuse", func() bool { return s.countConfig("")+s.countConfig(after) == 3 && s.countConfig("") > 0 })
		if n := s.countConfig(before); n != 4 {
			t.Errorf("%d keep the old value", n)
		}
		r := s.rollout("auth")
		for _, says := range []string{"VMs failed", "it is not taken back", old.Short(), "secret/db#config", "put the values back"} {
			if r.Reason != chandler.CodeGateFailed || !strings.Contains(r.Message, says) {
				t.Errorf("%s: %s, want %q", r.Reason, r.Message, says)
			}
		}
		s.await("auth", chandler.ConditionProgrammed, "False RolloutPaused")
		if st := s.status("auth"); !slices.ContainsFunc(st.Warnings, func(p chandler.Problem) bool { return p.Code == chandler.CodeSecretChanged }) ||
			!strings.Contains(condition(st, chandler.ConditionProgrammed), "secret/db#config") {
			t.Errorf("%+v %+v", st.Warnings, st.Conditions)
		}
		for _, verb := range []control.Verb{control.Abort, control.Undo} {
			if err := s.steer(verb); !errors.Is(err, control.ErrNotNow) || !strings.Contains(err.Error(), "secret/db#config") {
				t.Errorf("%s: %v", verb, err)
			}
		}

		s.hide("v1", "password: old")
		s.deliver()
		s.within(time.Minute, "everyone has the old value again", func() bool { return s.countConfig(before) == 7 })
	})
}

// edit changes what does not count as a change of the plugin: annotations.
func (s *stage) edit(edit func(*chandler.Plugin)) {
	s.t.Helper()
	o := s.objects["auth"]
	p := *o.Plugin
	edit(&p)
	o.Plugin = &p
	s.objects["auth"] = o
	s.deliver()
	s.within(time.Second, "it is heard of", func() bool { v, _ := s.Objects(s.t.Context()); return v[0].Plugin == &p })
}

// A plan that is changed counts from the next change on, and where a rollout is under way
// it is said that it goes by another. A deletion is a change, too.
func TestChangedPlan(t *testing.T) {
	t.Parallel()
	on(t, 4, func(t *testing.T, s *stage) {
		plan := inSteps("1", "100%")
		s.settled(plan)
		s.apply("auth", "oci://reg.example/auth:v2", plan)
		s.within(time.Minute, "one has it", func() bool { return s.count(modTwo) == 1 })
		if r := s.rollout("auth"); r.Ahead != nil {
			t.Errorf("ahead is %+v", r.Ahead)
		}
		s.edit(inSteps("3", "100%"))
		if r := s.rollout("auth"); r.Plan.Steps[0].Count != 1 || r.Ahead == nil || r.Ahead.Steps[0].Count != 3 || s.count(modTwo) != 1 {
			t.Errorf("by %+v, ahead is %+v", r.Plan, r.Ahead)
		}
		s.edit(func(p *chandler.Plugin) { p.Rollout = nil })
		if r := s.rollout("auth"); r.Plan == nil || r.Ahead == nil || len(r.Ahead.Steps) > 0 {
			t.Errorf("by %+v, ahead is %+v", r.Plan, r.Ahead)
		}
		s.edit(inSteps("3", "100%"))
		s.rests(chandler.RolloutHealthy)
		if r := s.rollout("auth"); r.Ahead != nil || r.Plan.Steps[0].Count != 3 {
			t.Errorf("by %+v, ahead is %+v", r.Plan, r.Ahead)
		}
		delete(s.objects, "auth")
		s.deliver()
		s.within(time.Minute, "three have it no more", func() bool { return s.count(nil) == 3 })
	})
}

// The operator's file is heard of at once.
func TestChangedPlanOfTheFile(t *testing.T) {
	t.Parallel()
	on(t, 4, func(t *testing.T, s *stage) {
		var p chandler.Plugin
		inSteps("1", "100%")(&p)
		var file atomic.Pointer[chandler.RolloutPlan]
		s.rig.settle = func(c *control.Config) {
			c.Rollouts = func(*chandler.Plugin) *chandler.RolloutPlan { return file.Load() }
		}
		s.settled(nil)
		s.reboot() // with that file
		file.Store(p.Rollout)
		s.apply("auth", "oci://reg.example/auth:v2", nil)
		s.within(time.Minute, "one has it", func() bool { return s.count(modTwo) == 1 })
		file.Store(nil)
		if r := s.rollout("auth"); r.Ahead == nil || len(r.Ahead.Steps) > 0 || r.Plan.Steps[0].Count != 1 {
			t.Errorf("by %+v, ahead is %+v", r.Plan, r.Ahead)
		}
		s.must(s.steer(control.Abort))
		s.must(s.steer(control.Retry))
		s.within(time.Second, "all have it at once", func() bool { return s.count(modTwo) == 4 })
	})
}

// Whom a change is said to come to first has it first.
func TestFirstStage(t *testing.T) {
	t.Parallel()
	on(t, 8, func(t *testing.T, s *stage) {
		plan := inSteps("25%", "100%")
		s.settled(plan)
		said := func(name string, edit func(*chandler.Plugin)) control.FirstStage {
			p := *s.objects["auth"].Plugin
			p.Name, p.UID = name, ""
			edit(&p)
			f, ok := s.FirstStage(&p)
			if !ok {
				t.Fatal("to everyone at once")
			}
			return f
		}
		f := said("auth", plan)
		if len(f.Chosen) != 2 || f.Selected != 8 || f.Undecided || f.Step.Percent != 25 {
			t.Fatalf("%+v", f)
		}
		s.apply("auth", "oci://reg.example/auth:v2", plan)
		s.within(time.Minute, "two have it", func() bool { return s.count(modTwo) == 2 })
		for _, a := range s.actors {
			has := a.runs() == string(chandler.Digest[chandler.ModuleDigest](modTwo))
			if first := slices.ContainsFunc(f.Chosen, func(n chandler.Node) bool { return n.ID() == a.node.ID() }); first != has {
				t.Errorf("%s: has it %t, said %t", a.node.Name, has, first)
			}
		}
		if f := said("new", plan); len(f.Chosen) != 2 || !f.Undecided {
			t.Errorf("of what there is not yet: %+v", f)
		}
		if f := said("new", inSteps("n=3", "100%")); len(f.Chosen) != 1 || f.Undecided || f.Chosen[0].Name != "gw-3" {
			t.Errorf("by labels: %+v", f)
		}
		half := func(p *chandler.Plugin) { plan(p); p.Selector = map[string]string{"half": "1"} }
		if f := said("new", half); len(f.Chosen) != 1 || f.Selected != 4 {
			t.Errorf("of half: %+v", f)
		}
		if f := said("auth", half); f.Selected != 8 {
			t.Errorf("of half, of whom all have it: %+v", f)
		}
		p := *s.objects["auth"].Plugin
		p.Rollout = nil
		if f, ok := s.FirstStage(&p); ok {
			t.Errorf("without a plan: %+v", f)
		}
	})
}

func condition(st chandler.Status, typ chandler.ConditionType) string {
	for _, c := range st.Conditions {
		if c.Type == typ {
			return c.Message
		}
	}
	return ""
}

// A release that was put back, and whose secrets are known no more after a restart: who
// has it keeps it, and why newcomers refuse is said.
func TestOldSecretsAfterARestart(t *testing.T) {
	t.Parallel()
	on(t, 4, func(t *testing.T, s *stage) {
		steps := inSteps("1", "100%")
		plan := func(p *chandler.Plugin) { steps(p); secretive(p) }
		const before = `{"a":1,"b":{"c":2},"password":"old"}`
		s.set("auth:v1", modOne)
		s.hide("v1", "password: old")
		s.apply("auth", "oci://reg.example/auth:v1", plan)
		s.within(5*time.Minute, "all have it", func() bool { return s.countConfig(before) == 4 && s.rollout("auth").State == chandler.RolloutHealthy })
		s.hide("v2", "password: new")
		s.deliver()
		s.within(time.Minute, "one has the new value", func() bool { return s.countConfig(before) == 3 })
		s.must(s.steer(control.Abort))
		s.within(5*time.Second, "all are back", func() bool { return s.countConfig(before) == 4 })
		if st := s.status("auth"); len(st.Warnings) > 0 {
			t.Errorf("%+v", st.Warnings)
		}
		s.reboot()
		s.enter(chandler.Node{Namespace: "istio-system", Name: "late"})
		s.within(5*time.Second, "the newcomer refuses, the others keep it", func() bool { return s.countConfig("") == 1 && s.countConfig(before) == 4 })
		s.await("auth", chandler.ConditionProgrammed, "False RolloutAborted")
		if said := condition(s.status("auth"), chandler.ConditionProgrammed); !strings.Contains(said, "secret/db#config") || !strings.Contains(said, "refuses requests") {
			t.Error(said)
		}
	})
}
