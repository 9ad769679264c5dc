package rollout_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/rollout"
)

// whoHas are those that are chosen, connected or not.
func (f *fleet) whoHas(c rollout.Choice) map[string]bool {
	who := map[string]bool{}
	for _, m := range f.machines {
		if c.Has("uid", m.Node) {
			who[m.ID()] = true
		}
	}
	return who
}

// A gate that fails can be for people to look at; what is paused is not taken back, and
// goes on when somebody says so.
func TestPauseOnFailure(t *testing.T) {
	t.Parallel()
	f := newFleet(10, good, denies)
	p := plan(t, "10%,50%", "20s")
	p.OnFailure = chandler.OnFailurePause
	s, d, _ := f.run(t, rollout.Begin(p, f.observed(), f.now), time.Minute)
	if d != rollout.Pause || s.Phase != chandler.RolloutPaused || s.Reason != chandler.CodeGateFailed || !strings.Contains(s.Message, "client-errors: 100.0%") {
		t.Fatalf("%s %+v", d, s)
	}
	if !s.Due().IsZero() {
		t.Error("something is due")
	}
	s, d, _ = f.run(t, s, time.Minute)
	if d != rollout.Stay || s.Phase != chandler.RolloutPaused || s.Step != 0 {
		t.Fatalf("%s %+v", d, s)
	}
	f.new = good
	s = rollout.Resume(s, f.observed(), f.now)
	if s.Phase != chandler.RolloutProgressing || s.Reason != "" || s.Message != "" || len(f.whoHas(s.Choice)) != 1 {
		t.Fatalf("%+v", s)
	}
	if s, d, m := f.run(t, s, 2*time.Minute); d != rollout.Finish {
		t.Fatalf("%s %+v %+v", d, s, m)
	}
}

// Somebody's word pauses a rollout, and takes it a step on whatever its gates say; what
// is paused is watched, and taken back when it fails.
func TestByHand(t *testing.T) {
	t.Parallel()
	f := newFleet(10, good, good)
	s := rollout.Halt(rollout.Begin(plan(t, "1,2", "10s"), f.observed(), f.now), "it is Friday")
	s, d, _ := f.run(t, s, time.Minute)
	if d != rollout.Stay || s.Reason != chandler.CodePaused || s.Message != "it is Friday" {
		t.Fatalf("%s %+v", d, s)
	}
	s, d = rollout.Promote(s, f.observed(), f.now)
	if d != rollout.Advance || s.Step != 1 || s.Phase != chandler.RolloutProgressing || len(f.whoHas(s.Choice)) != 2 {
		t.Fatalf("%s %+v", d, s)
	}
	s = rollout.Halt(s, "again")
	f.new = denies
	if s, d, _ = f.run(t, s, time.Minute); d != rollout.RollBack || s.Reason != chandler.CodeGateFailed {
		t.Fatalf("%s %+v", d, s)
	}
	if s, d = rollout.Promote(s, f.observed(), f.now); d != rollout.Advance || s.Step != 2 || len(f.whoHas(s.Choice)) != 10 {
		t.Fatalf("%s %+v", d, s)
	}
	if s, d = rollout.Promote(s, f.observed(), f.now); d != rollout.Finish || s.Step != 3 {
		t.Fatalf("%s %+v", d, s)
	}
}

// Agents take nothing older than what they have: a proxy that the step chose by labels
// that are others by now counts among those with the new release, to the end.
func TestRelabelled(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		new  conduct
		want rollout.Decision
	}{"bad": {trap, rollout.RollBack}, "good": {good, rollout.Finish}} {
		f := newFleet(6, good, c.new)
		s := rollout.Begin(plan(t, "zone=1,100%", "30s"), f.observed(), f.now)
		f.pass(2*time.Second, s.Choice)
		f.pass(2*time.Second, s.Choice)
		for _, m := range f.machines {
			m.Labels = map[string]string{"zone": "0"}
		}
		began := s.Choice
		s, d, m := f.run(t, s, 5*time.Minute)
		if d != c.want {
			t.Errorf("%s: %s %+v %+v", name, d, s, m)
		}
		if has := f.whoHas(began); len(has) > 0 {
			t.Errorf("%s: by their labels %v are chosen", name, has)
		}
		if c.want == rollout.RollBack && s.Others.Seen.Traps > 0 {
			t.Errorf("%d faults are those of the others", s.Others.Seen.Traps)
		}
	}
}

// The interval begins when all that are chosen have the release.
func TestIntervalBeginsInForce(t *testing.T) {
	t.Parallel()
	f := newFleet(4, good, good)
	f.new.delay = 40 * time.Second
	s := rollout.Begin(plan(t, "1", "30s"), f.observed(), f.now)
	for s.Step == 0 {
		f.pass(time.Second, s.Choice)
		s, _, _ = rollout.Next(s, f.observed(), f.now)
	}
	if took := f.now.Sub(start); took != 71*time.Second { // it is given in the first second
		t.Errorf("the first step took %v", took)
	}
}

// Steps that add nobody are passed over: one proxy is everyone.
func TestSmallFleets(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]time.Duration{1: 11 * time.Second, 2: 22 * time.Second, 3: 33 * time.Second} {
		f := newFleet(n, good, good)
		f.rps = 100
		s, d, m := f.run(t, rollout.Begin(plan(t, "10%,50%,51%", "10s"), f.observed(), f.now), time.Minute)
		if d != rollout.Finish || len(f.whoHas(s.Choice)) != n || f.now.Sub(start) > want+3*time.Second || f.now.Sub(start) < want {
			t.Errorf("%d proxies: %s after %v %+v", n, d, f.now.Sub(start), m)
		}
	}
}

// A rollout in a fleet that is not there yet begins with the first that come.
func TestEmptyFleet(t *testing.T) {
	t.Parallel()
	f := newFleet(0, good, good)
	s, d, _ := f.run(t, rollout.Begin(plan(t, "50%", "10s"), f.observed(), f.now), 5*time.Minute)
	if d != rollout.Stay || s.Step != 0 {
		t.Fatalf("%s %+v", d, s)
	}
	for i := range 4 {
		f.answer(&f.join(i).Traffic[0].Hour, good, 1000)
	}
	f.pass(time.Second, s.Choice)
	if s, _, _ = rollout.Next(s, f.observed(), f.now); len(f.whoHas(s.Choice)) != 2 {
		t.Fatalf("%+v", s)
	}
	f.rps = 100
	if s, d, m := f.run(t, s, time.Minute); d != rollout.Finish {
		t.Fatalf("%s %+v %+v", d, s, m)
	}
}

// A control plane that has just begun takes nobody's absence for an answer.
func TestReunion(t *testing.T) {
	t.Parallel()
	f := newFleet(20, good, good)
	s := rollout.Begin(plan(t, "10%,50%", "60s"), f.observed(), f.now)
	for range 55 {
		f.pass(time.Second, s.Choice)
		s, _, _ = rollout.Next(s, f.observed(), f.now)
	}
	f.heard = f.now.Add(10 * time.Second)
	f.leave()
	f.machines[0].away = false // not chosen, and alone at first
	for range 39 {
		f.pass(time.Second, s.Choice)
		var d rollout.Decision
		if s, d, _ = rollout.Next(s, f.observed(), f.now); d != rollout.Stay {
			t.Fatalf("%s after %v", d, f.now.Sub(f.heard))
		}
	}
	for _, m := range f.machines {
		m.away = false
	}
	f.pass(time.Second, s.Choice)
	s, d, _ := rollout.Next(s, f.observed(), f.now)
	if d != rollout.Advance || len(f.whoHas(s.Choice)) != 10 {
		t.Errorf("%s, %d", d, len(f.whoHas(s.Choice)))
	}
}

// A control plane that comes back in a step that is short waits until it has seen what
// proxies answer; not for ever.
func TestReunionOfAShortStep(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		silent int // seconds for which nobody says what it answers
		want   rollout.Decision
		after  time.Duration
	}{
		"they tell":  {10, rollout.Advance, 15 * time.Second},
		"they don't": {60, rollout.Pause, 30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(20, good, good)
			s := rollout.Begin(plan(t, "10%,50%", "3s"), f.observed(), f.now)
			f.pass(time.Second, s.Choice)
			s, _, _ = rollout.Next(s, f.observed(), f.now)
			usual := f.rps
			f.rps, f.heard = 0, f.now
			for second := 1; ; second++ {
				if second > c.silent {
					f.rps = max(usual, 100)
				}
				f.pass(time.Second, s.Choice)
				next, d, _ := rollout.Next(s, f.observed(), f.now)
				took := f.now.Sub(f.heard)
				switch {
				case d == rollout.Stay && took <= c.after:
				case d == c.want && took <= c.after && (c.want != rollout.Pause || took == c.after):
					return
				default:
					t.Fatalf("%s after %v: %s", d, took, next.Message)
				}
				s = next
			}
		})
	}
}

// Counters that begin anew, proxies that come and go: what is lost is left out, and
// what is counted was there.
func TestCountersBeginAnew(t *testing.T) {
	t.Parallel()
	f := newFleet(60, good, good) // of which some share a group
	f.rps = 2
	s := rollout.Begin(plan(t, "50%", "10m"), f.observed(), f.now)
	var chosen, others uint64
	for second := range 300 {
		f.pass(time.Second, s.Choice)
		for i, m := range f.machines {
			switch second % 100 {
			case i: // Envoy begins anew
				m.Traffic[0].Epoch, m.Traffic[0].Now, m.Traps = fmt.Sprint(second), chandler.Answers{}, 0
				f.answer(&m.Traffic[0].Now, good, rapid.IntRange(0, 200_000).Example(second))
			case i + 7: // its counters do, without a word
				m.Traffic[0].Now = chandler.Answers{}
			case i + 13:
				m.away = true
			case i + 17:
				m.away = false
			}
			if s.Choice.Has("uid", m.Node) {
				chosen += 2
			} else {
				others += 2
			}
		}
		s, _, _ = rollout.Next(s, f.observed(), f.now)
		if seen(s.Chosen) > chosen || seen(s.Others) > others {
			t.Fatalf("%d answers of %d, and %d of %d", seen(s.Chosen), chosen, seen(s.Others), others)
		}
	}
	if seen(s.Chosen) < chosen/10 || seen(s.Others) < others/2 {
		t.Errorf("only %d answers of %d, and %d of %d", seen(s.Chosen), chosen, seen(s.Others), others)
	}
}

func seen(s rollout.Side) (n uint64) {
	for _, c := range s.Seen.Classes {
		n += c
	}
	return n
}

// A step chooses as many as it says, and whoever was chosen stays so, whoever comes and
// goes.
func TestChoose(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var all []chandler.Node
		for i := range rapid.IntRange(0, 30).Draw(t, "proxies") {
			all = append(all, chandler.Node{Namespace: "n", Name: fmt.Sprint(i), Labels: map[string]string{"zone": fmt.Sprint(i % 3)}})
		}
		some := func() (some []chandler.Node) {
			for _, n := range all {
				if rapid.Bool().Draw(t, "there") {
					some = append(some, n)
				}
			}
			return some
		}
		var c rollout.Choice
		for range rapid.IntRange(1, 6).Draw(t, "steps") {
			nodes := some()
			step := chandler.RolloutStep{Percent: rapid.IntRange(1, 100).Draw(t, "percent")}
			want := (len(nodes)*step.Percent + 99) / 100
			switch rapid.IntRange(0, 2).Draw(t, "kind") {
			case 0:
				step = chandler.RolloutStep{Count: rapid.IntRange(1, 40).Draw(t, "count")}
				want = min(step.Count, len(nodes))
			case 1:
				step = chandler.RolloutStep{Labels: map[string]string{"zone": rapid.SampledFrom([]string{"0", "1", "9"}).Draw(t, "zone")}}
				want = 0
			}
			next, has := rollout.Choose("uid", nodes, c, step), 0
			for _, n := range nodes {
				if next.Has("uid", n) {
					has++
				} else if len(step.Labels) > 0 && n.Labels["zone"] == step.Labels["zone"] {
					t.Fatalf("%v is not chosen by %s", n, step)
				}
			}
			if first := c.Last == 0 && len(c.Labels) == 0; has < want || first && want > 0 && has != want {
				t.Fatalf("%s of %d: %d", step, len(nodes), has)
			}
			for _, n := range all {
				if c.Has("uid", n) && !next.Has("uid", n) {
					t.Fatalf("%s: %v has it no more", step, n)
				}
			}
			c = next
		}
	})
}

// Plugins of type NETWORK may stand where nothing answers HTTP.
func TestNetwork(t *testing.T) {
	t.Parallel()
	f := newFleet(4, good, good)
	f.typ = chandler.Network
	o := func() rollout.Observed {
		o := f.observed()
		for i := range o.Proxies {
			o.Proxies[i].Traffic = nil
		}
		return o
	}
	s := rollout.Begin(plan(t, "1", "10s"), o(), f.now)
	for range 12 {
		f.pass(time.Second, s.Choice)
		s, _, _ = rollout.Next(s, o(), f.now)
	}
	if s.Step != 1 {
		t.Errorf("%+v", s)
	}
	f.typ = chandler.HTTP
	for range 12 {
		f.pass(time.Second, s.Choice)
		s, _, _ = rollout.Next(s, o(), f.now)
	}
	// What five gates say is said once.
	if s.Reason != chandler.CodeGateInconclusive || !strings.HasPrefix(s.Message, "success, redirects, client-errors, server-errors, latency: 0 of the ") || strings.Count(s.Message, "requests") != 1 {
		t.Errorf("without traffic an HTTP plugin: %+v", s)
	}
}

// large is what is observed of ten thousand proxies that have answered a lot.
func large() rollout.Observed {
	o := rollout.Observed{UID: "uid", Type: chandler.HTTP}
	for i := range 10_000 {
		p := rollout.Proxy{Node: chandler.Node{Namespace: "default", Name: fmt.Sprintf("proxy-with-a-long-name-%d", i)}, Connected: true, InForce: true, Traps: 1 << 40}
		for port := range 4 {
			tr := chandler.Traffic{Mode: chandler.ModeServer, Port: uint32(port), Epoch: "2026-11-28T09:00:00Z"}
			for i := range tr.Now.Latency {
				tr.Now.Latency[i], tr.Hour.Latency[i] = 1<<32, 1<<32
			}
			for i := range tr.Now.Classes {
				tr.Now.Classes[i], tr.Hour.Classes[i] = 1<<32, 1<<32
			}
			p.Traffic = append(p.Traffic, tr)
		}
		o.Proxies = append(o.Proxies, p)
	}
	return o
}

// The record of a rollout is small however large the fleet.
func TestLargeFleet(t *testing.T) {
	t.Parallel()
	o := large()
	s := rollout.Begin(plan(t, "50%", "1m"), o, start)
	for i := range 20 {
		s, _, _ = rollout.Next(s, o, start.Add(time.Duration(i)*time.Second))
	}
	b, err := json.Marshal(s)
	if err != nil || len(b) > 32<<10 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// BenchmarkNext is one look at a rollout to ten thousand proxies of four ports each.
func BenchmarkNext(b *testing.B) {
	o := large()
	s := rollout.Begin(plan(b, "50%", "1m"), o, start)
	for b.Loop() {
		s, _, _ = rollout.Next(s, o, start.Add(30*time.Second))
	}
}

func TestRead(t *testing.T) {
	t.Parallel()
	const to, from = chandler.ReleaseID("to"), chandler.ReleaseID("from")
	for name, c := range map[string]struct {
		to               chandler.ReleaseID
		said             chandler.AttachmentState
		told             bool
		inForce, refused bool
		keeps            bool
	}{
		"in force":          {to, chandler.AttachmentState{Release: to, InForce: to, Sequence: 7, State: chandler.StateInForce}, true, true, false, true},
		"on its way":        {to, chandler.AttachmentState{Release: to, InForce: from, Sequence: 7, State: chandler.StateFetching}, true, false, false, true},
		"not told yet":      {to, chandler.AttachmentState{Release: from, InForce: from, Sequence: 6, State: chandler.StateInForce}, true, false, false, false},
		"refused":           {to, chandler.AttachmentState{Release: to, InForce: from, Sequence: 7, State: chandler.StateRejected, Reason: chandler.CodeRejected}, true, false, true, true},
		"refused long ago":  {to, chandler.AttachmentState{Release: to, InForce: from, Sequence: 5, State: chandler.StateRejected}, true, false, false, false},
		"not concerned":     {to, chandler.AttachmentState{Release: to, Sequence: 7, State: chandler.StateUnmatched}, true, true, false, true},
		"nothing said":      {to, chandler.AttachmentState{}, false, false, false, false},
		"still there":       {"", chandler.AttachmentState{Release: from, InForce: from}, true, false, false, false},
		"taken out":         {"", chandler.AttachmentState{}, false, true, false, false},
		"could not fetch":   {to, chandler.AttachmentState{Release: to, Sequence: 7, State: chandler.StateFailed, Reason: chandler.CodeFetchFailed}, true, false, false, true},
		"another is wanted": {to, chandler.AttachmentState{Release: from, InForce: to, Sequence: 8, State: chandler.StateFetching}, true, false, false, false},
	} {
		var p rollout.Proxy
		if p.Read(c.to, 7, c.said, c.told); p.InForce != c.inForce || p.Refused != c.refused || p.Keeps != c.keeps {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

func TestConcerned(t *testing.T) {
	t.Parallel()
	all := []chandler.Traffic{{Mode: chandler.ModeServer, Port: 80}, {Mode: chandler.ModeServer, Port: 443}, {Mode: chandler.ModeClient, Port: 80}}
	for _, c := range []struct {
		match []chandler.Match
		want  int
	}{
		{nil, 3},
		{[]chandler.Match{{}}, 3},
		{[]chandler.Match{{Mode: chandler.ModeServer}}, 2},
		{[]chandler.Match{{Ports: []uint32{80}}}, 2},
		{[]chandler.Match{{Mode: chandler.ModeServer, Ports: []uint32{443}}, {Mode: chandler.ModeClient}}, 2},
		{[]chandler.Match{{Ports: []uint32{8080}}}, 0},
	} {
		if got := rollout.Concerned(c.match, all); len(got) != c.want {
			t.Errorf("%v: %v", c.match, got)
		}
	}
}

// Whatever happens to a fleet: a step is never gone on from with a gate that fails or
// says nothing, nobody who is chosen is dropped, the record says all (run checks
// that), and every rollout comes to an end when it is promoted where it paused.
func TestRollouts(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		f := newFleet(rapid.IntRange(0, 12).Draw(t, "proxies"), good, rapid.SampledFrom([]conduct{good, good, denies, trap, slow, refuse, never}).Draw(t, "release"))
		f.rps = rapid.SampledFrom([]float64{0, 1, 5}).Draw(t, "rate")
		p, _ := rollout.Parse(map[string]string{
			chandler.AnnotationRollout:          rapid.SampledFrom([]string{"10%", "1,3,50%", "zone=1,50%", "zone=7", "100%", "25%,zone=0,75%"}).Draw(t, "steps"),
			chandler.AnnotationRolloutOnFailure: rapid.SampledFrom([]string{"rollback", "pause"}).Draw(t, "on failure"),
			chandler.AnnotationRolloutInterval:  rapid.SampledFrom([]string{"5s", "60s"}).Draw(t, "interval"),
		})
		s := rollout.Begin(*p, f.observed(), f.now)
		record := s
		for round := range 5000 {
			disturb(t, f, round)
			if rapid.IntRange(0, 49).Draw(t, "killed") == 0 {
				s, f.heard = copied(t, record), f.now
			}
			f.pass(time.Duration(rapid.IntRange(1, 20).Draw(t, "seconds"))*time.Second, s.Choice)
			before := f.whoHas(s.Choice)
			next, d, measures := rollout.Next(s, f.observed(), f.now)
			if again, same, _ := rollout.Next(copied(t, s), f.observed(), f.now); same != d || again.Message != next.Message {
				t.Fatalf("%s, and after its record was read %s", d, same)
			}
			bad := ""
			for _, m := range measures {
				if m.Result != chandler.GateHolds {
					bad = string(m.Gate) + ": " + m.Message
				}
			}
			if (d == rollout.Advance && next.Step > s.Step || d == rollout.Finish) && bad != "" {
				t.Fatalf("%s with %s", d, bad)
			}
			switch {
			case d == rollout.Pause && next.Phase != chandler.RolloutPaused, d == rollout.Advance && next.Step == s.Step && len(before) > 0, next.Step < s.Step,
				d == rollout.Stay && next.Step != s.Step, d == rollout.RollBack && (p.OnFailure == chandler.OnFailurePause || next.Message == ""):
				t.Fatalf("%s: %+v", d, next)
			}
			if s = next; d != rollout.Stay {
				record = s
			}
			after := f.whoHas(s.Choice)
			for id := range before {
				if !after[id] {
					t.Fatalf("%s: %s has it no more", d, id)
				}
			}
			if d == rollout.RollBack {
				return
			}
			if s.Phase == chandler.RolloutPaused {
				s, d = rollout.Promote(s, f.observed(), f.now)
				record = s
			}
			if d == rollout.Finish {
				if len(f.whoHas(s.Choice)) != len(f.machines) {
					t.Fatal("not everyone has it")
				}
				return
			}
			if len(f.machines) == 0 {
				f.join(0)
			}
		}
		t.Fatalf("no end: %+v", s)
	})
}

// disturb has proxies come, go and begin anew.
func disturb(t *rapid.T, f *fleet, round int) {
	if len(f.machines) == 0 {
		return
	}
	m := f.machines[rapid.IntRange(0, len(f.machines)-1).Draw(t, "proxy")]
	switch rapid.IntRange(0, 9).Draw(t, "what") {
	case 0:
		m.away = !m.away
	case 1:
		m.Traffic[0].Epoch, m.Traffic[0].Now, m.traps = fmt.Sprint(round), chandler.Answers{}, 0
	case 2:
		if len(f.machines) < 16 {
			f.join(len(f.machines))
		}
	case 3: // nobody stays away for ever
		for _, m := range f.machines {
			m.away = false
		}
	}
}

func copied(t *rapid.T, s rollout.State) (again rollout.State) {
	b, err := json.Marshal(s)
	if err == nil {
		err = json.Unmarshal(b, &again)
	}
	if err != nil {
		t.Fatal(err)
	}
	return again
}
