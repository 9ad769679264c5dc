package control_test

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/rollout"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/wire"
)

// actor is an agent that plays its part by itself: what it is given it says to be in
// force, unless the test says otherwise.
type actor struct {
	*agent
	stopPlaying func()

	mu      sync.Mutex
	verdict func(chandler.Attachment) chandler.AttachmentState // nil: in force
	answers func(inForce chandler.ReleaseID) chandler.Answers  // a second; nil: it tells no traffic
	counted chandler.Answers
	seen    map[chandler.ReleaseID]bool // what it ever was given
	had     chandler.ReleaseID          // in force
	newest  map[chandler.Key]assigned
}

type assigned struct {
	uid      string
	sequence uint64
}

// stage is a control plane with actors.
type stage struct {
	*rig
	t      *testing.T
	actors []*actor
}

// on runs a test with n actors in a bubble of time.
func on(t *testing.T, n int, test func(*testing.T, *stage)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &stage{rig: newRig(t), t: t}
		for i := range n {
			s.enter(chandler.Node{Namespace: "istio-system", Name: fmt.Sprintf("gw-%d", i), Labels: map[string]string{"n": fmt.Sprint(i), "half": fmt.Sprint(i % 2)}})
		}
		test(t, s)
		s.leave()
	})
}

// enter has another actor join.
func (s *stage) enter(n chandler.Node) *actor {
	a := &actor{agent: s.join(n), seen: map[chandler.ReleaseID]bool{}, newest: map[chandler.Key]assigned{}, answers: fine}
	s.actors = append(s.actors, a)
	a.begin()
	return a
}

// leave has all go.
func (s *stage) leave() {
	for _, a := range s.actors {
		a.leave()
	}
	s.stop()
}

// reboot is another control plane on the same records, to which all come back.
func (s *stage) reboot() {
	for _, a := range s.actors {
		a.leave()
	}
	s.restart()
	s.deliver()
	for _, a := range s.actors {
		a.comeBack(s.rig)
	}
}

// leave has one go, and comeBack has it there again with what it has.
func (a *actor) leave() {
	a.stopPlaying()
	a.stop()
}

func (a *actor) comeBack(r *rig) {
	a.connect(r)
	a.begin()
}

func (a *actor) begin() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); a.play(ctx) }()
	a.stopPlaying = sync.OnceFunc(func() { cancel(); <-done })
	a.t.Cleanup(a.stopPlaying)
}

// play reports until ctx ends.
func (a *actor) play(ctx context.Context) {
	node, told := a.node, map[chandler.Key]chandler.AttachmentState{}
	str := a.report()
	go func() {
		for {
			if _, err := str.Recv(); err != nil {
				return
			}
		}
	}()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for n := uint64(1); ; n++ {
		states := a.states()
		rep := wire.Report{Node: &node, Sequence: n, Full: n == 1}
		for k, st := range states {
			if before, ok := told[k]; n == 1 || !ok || !reflect.DeepEqual(before, st) {
				rep.States = append(rep.States, st)
			}
		}
		for k := range told {
			if _, ok := states[k]; !ok {
				rep.Removed = append(rep.Removed, k)
			}
		}
		rep.Traffic = a.traffic()
		if n == 1 || len(rep.States)+len(rep.Removed)+len(rep.Traffic) > 0 {
			if str.Send(wire.ReportToProto(rep)) != nil {
				return
			}
		}
		told = states
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (a *actor) states() map[chandler.Key]chandler.AttachmentState {
	a.agent.mu.Lock()
	attached := maps.Clone(a.attached)
	a.agent.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	out, had := map[chandler.Key]chandler.AttachmentState{}, chandler.ReleaseID("")
	for key, before := range a.newest {
		if _, ok := attached[key.String()]; !ok {
			before.sequence = 0 // what is taken out begins anew
			a.newest[key] = before
		}
	}
	for _, att := range attached {
		if before := a.newest[att.Key]; before.uid == att.UID && att.Sequence < before.sequence {
			a.t.Errorf("%s was given sequence %d after %d", a.node.Name, att.Sequence, before.sequence)
		}
		a.newest[att.Key] = assigned{att.UID, att.Sequence}
		st := stateOf(att, chandler.StateInForce, 0)
		if a.seen[att.Release] = true; a.verdict != nil {
			st = a.verdict(att)
		}
		had, out[att.Key] = st.InForce, st
	}
	a.had = had
	return out
}

// traffic is a fifth of a second's.
func (a *actor) traffic() []chandler.Traffic {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.answers == nil {
		return nil
	}
	for i, n := range a.answers(a.had).Classes {
		a.counted.Classes[i] += n / 5
		a.counted.Latency[3] += n / 5
	}
	hour := chandler.Answers{Classes: [5]uint64{1: 36000}, Latency: [chandler.LatencyBuckets]uint64{3: 36000}}
	return []chandler.Traffic{{Mode: chandler.ModeClient, Port: 8080, Epoch: "one", Now: a.counted, Hour: hour}}
}

// fine is a hundred good answers a second.
func fine(chandler.ReleaseID) chandler.Answers { return chandler.Answers{Classes: [5]uint64{1: 100}} }

func (a *actor) does(verdict func(chandler.Attachment) chandler.AttachmentState) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.verdict = verdict
}

// has tells which module runs, in words.
func (a *actor) runs() string {
	a.agent.mu.Lock()
	defer a.agent.mu.Unlock()
	for _, att := range a.attached {
		return string(att.Program.Module.Digest)
	}
	return ""
}

// count tells how many run a module; none: nothing.
func (s *stage) count(mod []byte) (n int) {
	want := ""
	if mod != nil {
		want = string(chandler.Digest[chandler.ModuleDigest](mod))
	}
	for _, a := range s.actors {
		if a.runs() == want {
			n++
		}
	}
	return n
}

// saw tells how many were ever given a release.
func (s *stage) saw(id chandler.ReleaseID) (n int) {
	for _, a := range s.actors {
		a.mu.Lock()
		if a.seen[id] {
			n++
		}
		a.mu.Unlock()
	}
	return n
}

func (s *stage) rollout(name string) control.RolloutView {
	s.t.Helper()
	views, err := s.Rollouts(s.t.Context())
	if err != nil {
		return control.RolloutView{} // not ready
	}
	for _, v := range views {
		if v.Name == name {
			return v
		}
	}
	return control.RolloutView{}
}

// within waits for something.
func (s *stage) within(d time.Duration, what string, ok func() bool) {
	s.t.Helper()
	for end := time.Now().Add(d); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("not within %v: %s\nrollout %+v\nstatus %+v", d, what, s.rollout("auth").Rollout, s.status("auth").Conditions)
		}
	}
}

// rests waits until a rollout is in a state.
func (s *stage) rests(state chandler.RolloutState) {
	s.t.Helper()
	s.within(5*time.Minute, "the rollout is "+string(state), func() bool { return s.rollout("auth").State == state })
}

func (s *stage) steer(verb control.Verb) error {
	_, err := s.Steer(s.t.Context(), control.Steering{Key: s.objects["auth"].Key, Verb: verb, By: "ann"})
	return err
}

func (s *stage) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// inSteps gives a plugin a plan.
func inSteps(steps ...string) func(*chandler.Plugin) {
	parsed, problem := rollout.ParseSteps(steps)
	if problem != nil {
		panic(problem)
	}
	return func(p *chandler.Plugin) {
		p.Rollout = &chandler.RolloutPlan{Steps: parsed, Interval: 10 * time.Second, OnFailure: chandler.OnFailureRollback, Margins: rollout.DefaultMargins()}
	}
}

// events are those about rollouts.
func (s *stage) events() (out []chandler.EventReason) {
	all, _ := s.Events(0)
	for _, e := range all {
		if strings.HasPrefix(string(e.Reason), "Roll") {
			out = append(out, e.Reason)
		}
	}
	return out
}

var (
	modOne   = module.Append(module.WithSection("a", []byte("one")))
	modTwo   = module.Append(module.WithSection("a", []byte("two")))
	modThree = module.Append(module.WithSection("a", []byte("three")))
)

// settled is a fleet on which modOne is in force everywhere.
func (s *stage) settled(edit func(*chandler.Plugin)) {
	s.t.Helper()
	s.set("auth:v1", modOne)
	s.set("auth:v2", modTwo)
	s.apply("auth", "oci://reg.example/auth:v1", edit)
	s.within(5*time.Minute, "the first release is everywhere", func() bool {
		return s.count(modOne) == len(s.actors) && s.rollout("auth").State == chandler.RolloutHealthy
	})
}

func TestReleaseComesInSteps(t *testing.T) {
	t.Parallel()
	on(t, 10, func(t *testing.T, s *stage) {
		plan := inSteps("10%", "5", "100%")
		s.set("auth:v1", modOne)
		s.set("auth:v2", modTwo)
		began := time.Now()
		s.apply("auth", "oci://reg.example/auth:v1", plan)
		s.within(time.Minute, "one has the first release", func() bool { return s.count(modOne) == 1 })
		if n := s.count(nil); n != 9 {
			t.Fatalf("%d have nothing yet, want 9", n)
		}
		if got := s.reason("auth", chandler.ConditionProgrammed); got != "False RolloutProgressing" {
			t.Errorf("Programmed is %s", got)
		}
		s.within(time.Minute, "five have it", func() bool { return s.count(modOne) == 5 })
		s.rests(chandler.RolloutHealthy)
		if n := s.count(modOne); n != 10 {
			t.Errorf("%d have it in the end", n)
		}
		if took := time.Since(began); took < 30*time.Second || took > time.Minute {
			t.Errorf("three steps of 10 s took %v", took)
		}
		s.await("auth", chandler.ConditionReady, "True Ready")

		s.apply("auth", "oci://reg.example/auth:v2", plan)
		s.within(time.Minute, "one has the second", func() bool { return s.count(modTwo) == 1 && s.count(modOne) == 9 })
		s.within(5*time.Second, "status counts all that have what they are to have", func() bool {
			st := s.status("auth")
			return st.Desired == 10 && st.InForce == 10 && st.Rollout.Chosen == 1 && st.Rollout.Updated == 1
		})
		s.rests(chandler.RolloutHealthy)
		if n := s.count(modTwo); n != 10 {
			t.Errorf("%d have the second in the end", n)
		}
		h := s.rollout("auth").History
		if len(h) != 2 || h[0].Outcome != "InForce" || h[1].Outcome != "Superseded" {
			t.Errorf("history %+v", h)
		}
		want := []chandler.EventReason{chandler.EventRolloutStarted, chandler.EventRolloutStep, chandler.EventRolloutStep, chandler.EventRolloutStep, chandler.EventRolloutDone}
		if got := s.events(); !slices.Equal(got, append(want, want...)) {
			t.Errorf("events %v", got)
		}
	})
}
