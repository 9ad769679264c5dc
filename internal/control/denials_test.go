package control_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/fetch"
)

// distrusts is a gate that finds one module unsigned.
type distrusts struct {
	gate
	module []byte
	away   bool // nobody can be asked for signatures
}

func (g *distrusts) Trust(ctx context.Context, p *chandler.Plugin, r *chandler.Release, c *fetch.Credentials) ([]chandler.Verdict, error) {
	switch {
	case g.away:
		return nil, &fetch.Error{Problem: chandler.Problem{Code: chandler.CodeFetchFailed, Message: "the registry is away"}, Temporary: true}
	case r.Artifact == artifactOf(g.module):
		return nil, chandler.Problemf(chandler.CodeSigMissing, "spec.url", "", "nobody signed it")
	}
	return g.gate.Trust(ctx, p, r, c)
}

// denying are gates against the first release: by what was asked for, and by what it is.
func denying(hash string) map[string]control.Gate {
	return map[string]control.Gate{
		"by its url":       &against{gate{hash: hash, detach: true}, "oci://reg.example/auth:v1"},
		"by its signature": &distrusts{gate: gate{hash: hash, detach: true}, module: modOne},
	}
}

// denied is a fleet out of which the policy has taken the first release.
func (s *stage) denied(g control.Gate, plan func(*chandler.Plugin)) {
	s.t.Helper()
	s.settled(plan)
	s.govern(g)
	s.within(5*time.Second, "nobody has it", s.noneHasOne)
	time.Sleep(time.Second) // that is recorded
}

func (s *stage) noneHasOne() bool { return s.count(nil) == len(s.actors) && s.standbyOne() == 0 }

// standbyOne tells how many have the bytes of the first release stand by.
func (s *stage) standbyOne() (n int) {
	for _, a := range s.actors {
		a.agent.mu.Lock()
		for _, att := range a.attached {
			for _, m := range att.Standby {
				if m.Digest == chandler.Digest[chandler.ModuleDigest](modOne) {
					n++
				}
			}
		}
		a.agent.mu.Unlock()
	}
	return n
}

// never holds that for a while no proxy has anything of the first release.
func (s *stage) never(d time.Duration, what string) {
	s.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if n := s.count(modOne) + s.standbyOne(); n > 0 {
			s.t.Fatalf("%s: %d have what the policy has taken out", what, n)
		}
	}
}

// What the policy has taken out does not come back because its resource is edited: not while
// the edit is resolved, nor through a restart, nor with those whom the rollout has not reached.
func TestEditAfterDetach(t *testing.T) {
	t.Parallel()
	for name, plan := range map[string]func(*chandler.Plugin){"at once": nil, "in steps": inSteps("1", "100%")} {
		for by, g := range denying("strict") {
			t.Run(name+", denied "+by, func(t *testing.T) {
				t.Parallel()
				on(t, 4, func(t *testing.T, s *stage) {
					s.denied(g, plan)
					s.fail(&fetch.Error{Problem: chandler.Problem{Code: chandler.CodeFetchFailed, Message: "the registry is away"}, Temporary: true})
					s.apply("auth", "oci://reg.example/auth:v2", plan)
					s.never(3*time.Second, "edited")
					s.await("auth", chandler.ConditionProgrammed, "False FetchFailed")
					if said := condition(s.status("auth"), chandler.ConditionProgrammed); !strings.Contains(said, "generation 1 is taken out of all proxies") {
						t.Errorf("Programmed: %s", said)
					}
					s.reboot()
					s.never(10*time.Second, "begun anew")
					s.fail(nil)
					if plan != nil {
						s.within(time.Minute, "one has the second", func() bool { return s.count(modTwo) == 1 })
						s.await("auth", chandler.ConditionProgrammed, "False RolloutProgressing")
						if said := condition(s.status("auth"), chandler.ConditionProgrammed); !strings.Contains(said, "generation 1 is taken out of the proxies that are not chosen") {
							t.Errorf("Programmed: %s", said)
						}
						s.reboot()
					}
					s.never(5*time.Second, "resolved")
					s.rests(chandler.RolloutHealthy)
					s.within(5*time.Second, "all have the second", func() bool { return s.count(modTwo) == 4 })
					s.never(5*time.Second, "in the end")
					if err := s.steer(control.Undo); !errors.Is(err, control.ErrNotNow) || !strings.Contains(err.Error(), "against the operator's policy") {
						t.Errorf("undo: %v", err)
					}
				})
			})
		}
	}
}

// Nor does it come back because the release that takes its place does not hold.
func TestRollbackToWhatIsDenied(t *testing.T) {
	t.Parallel()
	for by, g := range denying("strict") {
		t.Run(by, func(t *testing.T) {
			t.Parallel()
			on(t, 4, func(t *testing.T, s *stage) {
				plan := inSteps("1", "100%")
				s.denied(g, plan)
				for _, a := range s.actors {
					a.does(traps(modTwo))
				}
				s.apply("auth", "oci://reg.example/auth:v2", plan)
				s.rests(chandler.RolloutDegraded)
				s.never(5*time.Second, "taken back")
				s.within(time.Second, "nobody has anything", s.noneHasOne)
				want := map[string]string{"by its url": "False PolicyDenied", "by its signature": "False SigMissing"}[by]
				s.await("auth", chandler.ConditionProgrammed, want)
				s.Govern(t.Context(), &gate{hash: "mild", detach: true})
				s.within(5*time.Second, "allowed again, it is back", func() bool { return s.count(modOne) == 4 })
				s.await("auth", chandler.ConditionProgrammed, "False RolloutFailed")
			})
		})
	}
}

// A resource that is made anew, or only deleted, brings nothing back that was taken out,
// nor does a restart in between.
func TestReplacedAfterDetach(t *testing.T) {
	t.Parallel()
	for by, g := range denying("strict") {
		for name, c := range map[string]struct{ killed, seen bool }{
			"": {seen: true}, ", the control plane killed": {true, true}, ", and killed before that is heard of": {killed: true},
		} {
			t.Run(by+name, func(t *testing.T) {
				t.Parallel()
				on(t, 4, func(t *testing.T, s *stage) {
					plan := inSteps("1", "100%")
					s.denied(g, plan)
					delete(s.objects, "auth")
					if !c.seen {
						s.put("auth", "oci://reg.example/auth:v2", plan)
					}
					if c.killed {
						s.reboot()
					}
					if c.seen {
						s.deliver()
						s.never(3*time.Second, "deleted")
						s.apply("auth", "oci://reg.example/auth:v2", plan)
					}
					s.within(time.Minute, "one has the second", func() bool {
						s.never(50*time.Millisecond, "made anew")
						return s.count(modTwo) == 1
					})
					s.never(5*time.Second, "one has the second")
					if n := s.count(nil); n != 3 {
						t.Errorf("%d have nothing, want the 3 others", n)
					}
					s.rests(chandler.RolloutHealthy)
				})
			})
		}
	}
}

// A policy that comes, or is heard of at a start, while a rollout is under way judges both
// of its releases. Whose release is denied has nothing; the others keep theirs; a rollout
// of what is denied stands still. That nobody can be asked takes nothing out.
func TestPolicyComesDuringARollout(t *testing.T) {
	t.Parallel()
	plan := inSteps("1", "100%")
	for name, c := range map[string]struct {
		gate     control.Gate
		one, two int // that have it
		reason   string
	}{
		"the first, by its url":        {&against{gate{hash: "s", detach: true}, "oci://reg.example/auth:v1"}, 0, 1, "False RolloutProgressing"},
		"the first, by its signature":  {&distrusts{gate: gate{hash: "s", detach: true}, module: modOne}, 0, 1, "False RolloutProgressing"},
		"the second, by its url":       {&against{gate{hash: "s", detach: true}, "oci://reg.example/auth:v2"}, 3, 0, "False PolicyDenied"},
		"the second, by its signature": {&distrusts{gate: gate{hash: "s", detach: true}, module: modTwo}, 3, 0, "False SigMissing"},
		"nobody can be asked":          {&distrusts{gate: gate{hash: "s", detach: true}, away: true}, 3, 1, "False FetchFailed"},
		"the first is to be kept":      {&against{gate{hash: "s"}, "oci://reg.example/auth:v1"}, 3, 1, "False RolloutProgressing"},
		"the second is to be kept":     {&against{gate{hash: "s"}, "oci://reg.example/auth:v2"}, 3, 1, "False PolicyDenied"},
	} {
		for how, killed := range map[string]bool{"": false, ", at a start": true} {
			t.Run(name+how, func(t *testing.T) {
				t.Parallel()
				on(t, 4, func(t *testing.T, s *stage) {
					s.settled(plan)
					s.apply("auth", "oci://reg.example/auth:v2", plan)
					s.within(time.Minute, "one has the second", func() bool { return s.count(modTwo) == 1 })
					if killed {
						s.rig.settle = func(cfg *control.Config) { cfg.Gate = c.gate }
						s.reboot()
					} else {
						s.govern(c.gate)
					}
					s.within(5*time.Second, "it is judged", func() bool { return s.count(modOne) == c.one && s.count(modTwo) == c.two })
					time.Sleep(3 * time.Second)
					if s.count(modOne) != c.one || s.count(modTwo) != c.two {
						t.Errorf("%d have the first, %d the second; want %d and %d", s.count(modOne), s.count(modTwo), c.one, c.two)
					}
					s.await("auth", chandler.ConditionProgrammed, c.reason)
					if strings.HasPrefix(name, "the second") {
						time.Sleep(time.Minute)
						if n := s.count(modOne); n != c.one || s.rollout("auth").State != chandler.RolloutPaused {
							t.Errorf("%d have the first, and the rollout is %s", n, s.rollout("auth").State)
						}
						if err := s.steer(control.Promote); !errors.Is(err, control.ErrNotNow) || !strings.Contains(err.Error(), "against the operator's policy") {
							t.Errorf("promote: %v", err)
						}
					}
					s.Govern(t.Context(), &gate{hash: "mild", detach: true})
					s.rests(chandler.RolloutHealthy)
					s.within(5*time.Second, "allowed again, it goes on", func() bool { return s.count(modTwo) == 4 })
				})
			})
		}
	}
}

// What was not denied is not taken out by an edit, whether or not a digest is asked for that
// only a lock file has given.
func TestEditOfWhatIsAllowed(t *testing.T) {
	t.Parallel()
	on(t, 4, func(t *testing.T, s *stage) {
		steps := inSteps("1", "100%")
		locked := func(p *chandler.Plugin) {
			steps(p)
			p.Wasm.Locked = strings.TrimPrefix(string(artifactOf(map[string][]byte{"oci://reg.example/auth:v1": modOne, "oci://reg.example/auth:v2": modTwo}[p.Wasm.URL])), "sha256:")
		}
		s.settled(locked)
		s.govern(&pinned{gate{hash: "s", detach: true}})
		s.apply("auth", "oci://reg.example/auth:v2", locked)
		for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if n := s.count(nil); n > 0 {
				t.Fatalf("%d have nothing", n)
			}
		}
		s.rests(chandler.RolloutHealthy)
	})
}

// pinned is a gate that wants digests.
type pinned struct{ gate }

func (g *pinned) Admit(p *chandler.Plugin) []chandler.Problem {
	if !p.Wasm.Pinned() {
		return []chandler.Problem{*chandler.Problemf(chandler.CodePolicyDenied, "spec.url", "", "no digest")}
	}
	return nil
}

// What lacked a digest does not come back because the resource has one now.
func TestDigestAfterDetach(t *testing.T) {
	t.Parallel()
	on(t, 4, func(t *testing.T, s *stage) {
		plan := inSteps("1", "100%")
		s.denied(&pinned{gate{hash: "s", detach: true}}, plan)
		s.reboot()
		s.never(3*time.Second, "begun anew")
		s.apply("auth", "oci://reg.example/auth@"+string(artifactOf(modTwo)), plan)
		s.within(time.Minute, "one has the second", func() bool { s.never(20*time.Millisecond, "edited"); return s.count(modTwo) == 1 })
		s.reboot()
		s.never(5*time.Second, "in steps")
		s.rests(chandler.RolloutHealthy)
	})
}

// What the leader judges, signatures, holds at every replica and with the next leader, who
// cannot ask for them.
func TestReplicasTakeOutWhatTheLeaderDenies(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		all, s := halves(t, 4)
		a, b := all.replicas["a"], all.replicas["b"]
		deliver := func(url string) {
			a.put("auth", url, inSteps("1", "100%"))
			all.deliver(a)
		}
		all.lead("a")
		deliver("oci://reg.example/auth:v1")
		s.within(5*time.Minute, "the first release is everywhere", func() bool {
			return s.count(modOne) == 4 && s.rollout("auth").State == chandler.RolloutHealthy
		})
		a.Govern(t.Context(), &distrusts{gate: gate{hash: "s", detach: true}, module: modOne})
		b.Govern(t.Context(), &distrusts{gate: gate{hash: "s", detach: true}, away: true})
		s.within(5*time.Second, "nobody has it", s.noneHasOne)
		all.lead("b")
		s.never(5*time.Second, "another leads")
		deliver("oci://reg.example/auth:v2")
		s.never(5*time.Second, "edited")
		all.lead("a")
		s.within(time.Minute, "one has the second", func() bool { return s.count(modTwo) == 1 })
		s.never(5*time.Second, "in steps")
		for _, actor := range s.actors {
			actor.leave()
		}
		all.stop("a")
		all.stop("b")
	})
}
