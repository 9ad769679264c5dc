package control_test

import (
	"fmt"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/source"
)

// follows waits for something as a page does that follows: it looks when there was a
// change, and only then.
func (r *rig) follows(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	over := time.After(limit)
	for {
		changed := r.Changed()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-over:
			if ok() {
				t.Fatalf("%s, and nobody was told", what)
			}
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// Whoever looks at one replica is told within half a second of what became of a rollout
// at another, though none of its own agents says a word; and of what is measured, though
// no proxy's state is another.
func TestChangedTellsOfRollouts(t *testing.T) {
	t.Parallel()
	const soon = 500 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		all := newCluster(t, "a", "b")
		a, b := all.replicas["a"], all.replicas["b"]
		a.set("auth:v1", modOne)
		a.set("auth:v2", modTwo)
		leader, other := &stage{rig: a, t: t}, &stage{rig: b, t: t}
		for i := range 8 {
			leader.enter(chandler.Node{Namespace: "istio-system", Name: fmt.Sprintf("gw-%d", i)})
		}
		all.lead("a")
		deliver := func(url string) {
			a.put("auth", url, inSteps("25%", "50%", "100%"))
			all.deliver(a)
		}
		at := func(s *stage, ok func(control.RolloutView) bool) func() bool {
			return func() bool { return ok(s.rollout("auth")) }
		}
		deliver("oci://reg.example/auth:v1")
		leader.rests(chandler.RolloutHealthy)
		deliver("oci://reg.example/auth:v2")
		leader.within(time.Minute, "two have the second", func() bool { return leader.count(modTwo) == 2 })
		leader.within(time.Minute, "gates are measured", at(leader, func(v control.RolloutView) bool { return len(v.Gates) > 0 }))

		time.Sleep(2 * time.Second) // all have said what they have
		for n := range uint64(3) {
			before := leader.rollout("auth").Gates
			for _, actor := range leader.actors {
				actor.mu.Lock()
				actor.answers = func(chandler.ReleaseID) chandler.Answers {
					return chandler.Answers{Classes: [5]uint64{1: 100, 3: 5 + 5*n}}
				}
				actor.mu.Unlock()
			}
			a.follows(t, time.Second+soon, "other gates", at(leader, func(v control.RolloutView) bool { return !reflect.DeepEqual(v.Gates, before) }))
		}
		key := a.objects["auth"].Key
		steer := func(r *rig, verb control.Verb) {
			t.Helper()
			if _, err := r.Steer(t.Context(), control.Steering{Key: key, Verb: verb, By: "ann"}); err != nil {
				t.Fatal(err)
			}
		}
		second := func(v control.RolloutView) bool { return v.Step == 1 }
		steer(b, control.Promote)
		a.follows(t, soon, "promoted", at(leader, second))
		b.follows(t, soon, "promoted", at(other, second))
		paused := func(v control.RolloutView) bool { return v.State == chandler.RolloutPaused }
		steer(a, control.Pause)
		b.follows(t, soon, "paused", at(other, paused))
		pinned := func(v control.RolloutView) bool { return v.Pinned }
		steer(b, control.Undo)
		a.follows(t, soon, "pinned", at(leader, pinned))
		disabled := func(v control.RolloutView) bool { return len(v.Disabled) == 1 }
		if _, err := a.Disable(t.Context(), key, chandler.Disablement{By: "ann"}); err != nil {
			t.Fatal(err)
		}
		b.follows(t, soon, "disabled", at(other, disabled))
		leader.leave()
		all.stop("b")
	})
}

// What is measured is of the present step, and the leader's: whoever led before shows
// nothing of what it measured then.
func TestGatesOfAnotherTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		all := newCluster(t, "a", "b")
		a, b := all.replicas["a"], all.replicas["b"]
		a.set("auth:v1", modOne)
		leader, other := &stage{rig: a, t: t}, &stage{rig: b, t: t}
		for i := range 4 {
			leader.enter(chandler.Node{Namespace: "istio-system", Name: fmt.Sprintf("gw-%d", i)})
		}
		all.lead("a")
		a.put("auth", "oci://reg.example/auth:v1", inSteps("25%", "100%"))
		all.deliver(a)
		measured := func(s *stage) func() bool {
			return func() bool { return len(s.rollout("auth").Gates) > 0 }
		}
		leader.within(time.Minute, "gates are measured", measured(leader))
		if measured(other)() {
			t.Error("who does not lead shows gates")
		}
		before := leader.rollout("auth")
		leader.must(leader.steer(control.Promote))
		leader.within(time.Minute, "gates of the next step", func() bool {
			v := leader.rollout("auth")
			if v.Step != before.Step && reflect.DeepEqual(v.Gates, before.Gates) {
				t.Fatal("the next step shows what was measured in the one before")
			}
			return v.Step != before.Step && len(v.Gates) > 0
		})
		all.lead("b")
		synctest.Wait()
		if measured(leader)() {
			t.Error("who leads no more shows what it measured before")
		}
		other.within(time.Minute, "the new leader measures", measured(other))
		leader.leave()
		all.stop("b")
	})
}

// A file that cannot be read is told of where there is no plugin, too.
func TestChangedTellsOfBrokenFiles(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.deliver()
	go func() { r.source <- source.Snapshot{Broken: []source.Broken{{Path: "x.yaml"}}} }()
	r.follows(t, time.Minute, "the file is named", func() bool { return len(r.Broken()) == 1 })
}
