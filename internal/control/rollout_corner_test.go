package control_test

import (
	"maps"
	"testing"
	"time"

	"chandler.dev/chandler"
)

// relabel has an agent come back with other labels, and with what it has.
func (s *stage) relabel(a *actor, labels map[string]string) {
	a.stopPlaying()
	a.stop()
	a.node.Labels, a.firm = maps.Clone(a.node.Labels), true
	maps.Copy(a.node.Labels, labels)
	a.connect(s.rig)
	a.begin()
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
