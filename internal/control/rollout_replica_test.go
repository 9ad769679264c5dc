package control_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
)

// halves are two replicas, a and b, with actors at each in turn; the stage is a's.
func halves(t *testing.T, actors int) (*cluster, *stage) {
	t.Helper()
	all := newCluster(t, "a", "b")
	a, b := all.replicas["a"], all.replicas["b"]
	a.set("auth:v1", modOne)
	a.set("auth:v2", modTwo)
	s := &stage{t: t}
	for i := range actors {
		s.rig = []*rig{a, b}[i%2]
		s.enter(chandler.Node{Namespace: "istio-system", Name: fmt.Sprintf("gw-%d", i)})
	}
	s.rig = a
	return all, s
}

// Replicas give the same variants to the same proxies, whichever leads, take orders
// alike, and go on with a rollout that another one led.
func TestReplicasAgreeOnRollouts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		all, s := halves(t, 8)
		a, b := all.replicas["a"], all.replicas["b"]
		deliver := func(url string) {
			a.put("auth", url, inSteps("25%", "50%", "100%"))
			all.deliver(a)
		}
		all.lead("a")
		deliver("oci://reg.example/auth:v1")
		s.within(5*time.Minute, "the first release is everywhere", func() bool {
			return s.count(modOne) == 8 && s.rollout("auth").State == chandler.RolloutHealthy
		})
		deliver("oci://reg.example/auth:v2")
		s.within(time.Minute, "two have the second", func() bool { return s.count(modTwo) == 2 && s.count(modOne) == 6 })

		key := a.objects["auth"].Key
		if _, err := b.Steer(t.Context(), control.Steering{Key: key, Verb: control.Pause, By: "ann"}); err != nil {
			t.Fatal(err) // at one that does not lead
		}
		s.within(5*time.Second, "who leads heard of it", func() bool { return s.rollout("auth").State == chandler.RolloutPaused })
		all.lead("b")
		s.rig = b
		if _, err := a.Steer(t.Context(), control.Steering{Key: key, Verb: control.Resume, By: "ann"}); err != nil {
			t.Fatal(err)
		}
		s.within(time.Minute, "four have it under the other leader", func() bool { return s.count(modTwo) == 4 })
		if _, err := a.Disable(t.Context(), key, chandler.Disablement{Reason: "INC-1", By: "ann"}); err != nil {
			t.Fatal(err)
		}
		s.within(2*time.Second, "nobody has anything", func() bool { return s.count(nil) == 8 })
		if _, err := b.Enable(t.Context(), key, chandler.Disablement{By: "ann"}); err != nil {
			t.Fatal(err)
		}
		s.within(2*time.Second, "all have what they had", func() bool { return s.count(modTwo) == 4 && s.count(modOne) == 4 })
		s.within(5*time.Minute, "the second release is everywhere", func() bool {
			return s.count(modTwo) == 8 && s.rollout("auth").State == chandler.RolloutHealthy
		})
		s.rig = a
		s.within(5*time.Second, "both say so", func() bool { return s.rollout("auth").State == chandler.RolloutHealthy })
		if _, err := a.Steer(t.Context(), control.Steering{Key: key, Verb: control.Promote}); !errors.Is(err, control.ErrNotNow) {
			t.Errorf("promoted what is over: %v", err)
		}
		for _, actor := range s.actors {
			actor.leave()
		}
		all.stop("a")
		all.stop("b")
	})
}
