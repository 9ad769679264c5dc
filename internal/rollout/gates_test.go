package rollout_test

import (
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/rollout"
)

// answers are n of them, of which so many in a hundred are of class 3xx, 4xx and 5xx,
// and as many took as long as slow says; the rest took 8 ms.
func answers(n, redirect, client, server, late int, slow time.Duration) (a chandler.Answers) {
	a.Classes[2], a.Classes[3], a.Classes[4] = uint64(n*redirect/100), uint64(n*client/100), uint64(n*server/100)
	a.Classes[1] = uint64(n) - a.Classes[2] - a.Classes[3] - a.Classes[4]
	a.Latency[3] = uint64(n - n*late/100)
	a.Latency[bucket(slow)] += uint64(n * late / 100)
	return a
}

// Each side answers once, and the gates are looked at then, and when the interval is
// over. "" is for a gate that is not asked about.
func TestShares(t *testing.T) {
	t.Parallel()
	usual := func(n int) chandler.Answers { return answers(n, 1, 2, 0, 5, 30*time.Millisecond) }
	none := chandler.Answers{}
	const holds, failed, waits, unclear = chandler.GateHolds, chandler.GateFailed, chandler.GateWaiting, chandler.GateInconclusive
	for name, c := range map[string]struct {
		chosen, others, before chandler.Answers
		gate                   chandler.Gate
		during, after          chandler.GateResult
		why                    string
	}{
		"as before":                {usual(500), usual(500), usual(9000), chandler.GateClientError, holds, holds, "2.0%"},
		"denies everyone":          {answers(500, 0, 100, 0, 0, 0), usual(500), usual(9000), chandler.GateClientError, failed, failed, "100.0% of 500"},
		"denies with redirects":    {answers(500, 100, 0, 0, 0, 0), usual(500), usual(9000), chandler.GateRedirect, failed, failed, "limit"},
		"nobody succeeds":          {answers(500, 100, 0, 0, 0, 0), usual(500), usual(9000), chandler.GateSuccess, failed, failed, "limit 92.0%"},
		"fails":                    {answers(500, 0, 0, 50, 0, 0), usual(500), usual(9000), chandler.GateServerError, failed, failed, "limit 1.0%"},
		"four of a hundred fail":   {answers(5000, 0, 0, 4, 0, 0), usual(5000), usual(9000), chandler.GateServerError, failed, failed, "4.0%"},
		"four failed":              {answers(100, 0, 0, 4, 0, 0), usual(100), usual(9000), chandler.GateServerError, waits, unclear, "chance"},
		"slow":                     {answers(500, 0, 0, 0, 10, 400*time.Millisecond), usual(500), usual(9000), chandler.GateLatency, failed, failed, "p99 475 ms"},
		"two were slow":            {answers(100, 0, 0, 0, 2, 400*time.Millisecond), usual(100), usual(9000), chandler.GateLatency, waits, unclear, "chance"},
		"over the floor":           {answers(500, 0, 0, 0, 5, 30*time.Millisecond), answers(500, 0, 0, 0, 0, 0), none, chandler.GateLatency, failed, failed, "45 ms"},
		"within the floor":         {answers(500, 0, 0, 0, 5, 20*time.Millisecond), answers(500, 0, 0, 0, 0, 0), none, chandler.GateLatency, holds, holds, ""},
		"few requests":             {answers(99, 0, 100, 0, 0, 0), usual(500), usual(9000), chandler.GateClientError, waits, unclear, "99 of the 100"},
		"the others are silent":    {answers(500, 0, 100, 0, 0, 0), none, usual(9000), chandler.GateClientError, waits, failed, "hour before"},
		"silent before":            {answers(500, 0, 100, 0, 0, 0), usual(500), none, chandler.GateClientError, failed, failed, "others"},
		"nothing to compare with":  {usual(500), none, none, chandler.GateClientError, waits, unclear, "nothing to compare"},
		"all fail, for all":        {answers(500, 0, 0, 100, 0, 0), answers(500, 0, 0, 100, 0, 0), usual(9000), chandler.GateServerError, waits, unclear, "one of them only"},
		"fails as it did before":   {answers(500, 0, 0, 100, 0, 0), usual(500), answers(9000, 0, 0, 100, 0, 0), chandler.GateServerError, waits, unclear, "one of them only"},
		"better than before":       {usual(500), usual(500), answers(9000, 0, 0, 100, 0, 0), chandler.GateServerError, holds, holds, ""},
		"fewer denied than before": {usual(500), answers(500, 0, 60, 0, 5, 30*time.Millisecond), answers(9000, 0, 60, 0, 5, 30*time.Millisecond), chandler.GateClientError, holds, holds, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(4, good, good)
			f.rps = 0
			s := rollout.State{}
			for _, m := range f.machines {
				m.Traffic[0].Hour = chandler.Answers{}
			}
			f.machines[0].Traffic[0].Hour, f.machines[1].Traffic[0].Hour = c.before, none
			// labels choose the first
			f.machines[0].Labels = map[string]string{"canary": "true"}
			s = rollout.Begin(plan(t, "canary=true", "60s"), f.observed(), f.now)
			look := func() (rollout.Decision, chandler.Measure) {
				next, d, measures := rollout.Next(s, f.observed(), f.now)
				s = next
				for _, m := range measures {
					if m.Gate == c.gate {
						return d, m
					}
				}
				t.Fatal("no such gate")
				return d, chandler.Measure{}
			}
			for range 10 {
				f.pass(time.Second, s.Choice)
				look()
			}
			f.machines[0].Traffic[0].Now = sum(f.machines[0].Traffic[0].Now, c.chosen)
			f.machines[1].Traffic[0].Now = sum(f.machines[1].Traffic[0].Now, c.others)
			f.pass(time.Second, s.Choice)
			d, m := look()
			if m.Result != c.during || (d == rollout.RollBack) != (c.during == failed) && c.gate != chandler.GateSuccess {
				t.Errorf("%s, %+v", d, m)
			}
			f.pass(time.Minute, s.Choice)
			d, m = look()
			if m.Result != c.after || !strings.Contains(m.Message, c.why) {
				t.Errorf("when it is over: %s, %+v", d, m)
			}
			switch {
			case c.after == failed && d != rollout.RollBack, c.after == unclear && d != rollout.Pause && d != rollout.RollBack:
				t.Errorf("%s", d)
			case d == rollout.Pause && (s.Phase != chandler.RolloutPaused || s.Reason != chandler.CodeGateInconclusive || s.Message == ""):
				t.Errorf("%+v", s)
			}
		})
	}
}

func sum(a, b chandler.Answers) chandler.Answers {
	for i, n := range b.Classes {
		a.Classes[i] += n
	}
	for i, n := range b.Latency {
		a.Latency[i] += n
	}
	return a
}

// What is not said by traffic: each case changes a fleet of four, of which two are to
// have the release, after some seconds, and looks for a gate's result.
func TestOtherGates(t *testing.T) {
	t.Parallel()
	const holds, failed, waits, unclear = chandler.GateHolds, chandler.GateFailed, chandler.GateWaiting, chandler.GateInconclusive
	away := func(_ *fleet, c []*machine) { c[0].away, c[1].away = true, true }
	for name, c := range map[string]struct {
		steps string
		at    int
		do    func(f *fleet, chosen []*machine)
		after int
		gate  chandler.Gate
		want  chandler.GateResult
		d     rollout.Decision // in the last second
		why   string
	}{
		"all have it":              {"50%", 0, nil, 10, chandler.GateInForce, holds, rollout.Stay, "2 of 2"},
		"late":                     {"50%", 0, func(f *fleet, _ []*machine) { f.new = never }, 120, chandler.GateInForce, waits, rollout.Stay, "0 of 2"},
		"too late":                 {"50%", 0, func(f *fleet, _ []*machine) { f.new = never }, 121, chandler.GateInForce, failed, rollout.RollBack, "after 2m1s"},
		"lost again":               {"50%", 30, func(f *fleet, _ []*machine) { f.new = never }, 120, chandler.GateInForce, waits, rollout.Stay, "0 of 2"},
		"lost again for too long":  {"50%", 30, func(f *fleet, _ []*machine) { f.new = never }, 150, chandler.GateInForce, failed, rollout.RollBack, "0 of 2"},
		"who is away counts not":   {"50%", 0, func(_ *fleet, c []*machine) { c[0].away = true }, 10, chandler.GateInForce, holds, rollout.Stay, "1 of 1"},
		"all are away":             {"50%", 0, away, 120, chandler.GateInForce, waits, rollout.Stay, "none of the proxies that are to have it"},
		"all are away for long":    {"50%", 0, away, 121, chandler.GateInForce, unclear, rollout.Pause, "none of the proxies that have it"},
		"the fleet is away":        {"50%", 0, func(f *fleet, _ []*machine) { f.leave() }, 500, chandler.GateInForce, waits, rollout.Stay, "no proxy"},
		"nobody has the labels":    {"canary=true", 0, nil, 1, chandler.GateInForce, unclear, rollout.Pause, "canary=true"},
		"one refuses":              {"50%", 0, func(f *fleet, c []*machine) { f.new.refused = true; c[0].away = true }, 1, chandler.GateRejections, failed, rollout.RollBack, "it says no"},
		"one refuses it later":     {"50%", 30, func(f *fleet, _ []*machine) { f.new.refused = true }, 30, chandler.GateRejections, failed, rollout.RollBack, "it says no"},
		"a fault":                  {"50%", 10, func(_ *fleet, c []*machine) { c[0].traps = 1 }, 10, chandler.GateTraps, failed, rollout.RollBack, "1 time"},
		"a fault of the others":    {"50%", 10, func(f *fleet, c []*machine) { other(f, c).traps = 1 }, 10, chandler.GateTraps, holds, rollout.Stay, "no VM"},
		"faults of the one before": {"50%", 0, func(f *fleet, _ []*machine) { f.old.traps, f.new.delay = 3, 8*time.Second }, 30, chandler.GateTraps, holds, rollout.Stay, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(4, good, good)
			s := rollout.Begin(plan(t, c.steps, "60s"), f.observed(), f.now)
			var chosen []*machine
			for _, m := range f.machines {
				if s.Choice.Has("uid", m.Node) {
					chosen = append(chosen, m)
				}
			}
			for second := range c.after + 1 {
				if second == c.at && c.do != nil {
					c.do(f, chosen)
				}
				f.pass(min(time.Duration(second), 1)*time.Second, s.Choice)
				next, d, measures := rollout.Next(s, f.observed(), f.now)
				if s = next; second < c.after {
					if d != rollout.Stay && d != rollout.Pause {
						t.Fatalf("after %d s: %s", second, d)
					}
					continue
				}
				for _, m := range measures {
					if m.Gate == c.gate && (m.Result != c.want || !strings.Contains(m.Message, c.why)) {
						t.Errorf("%+v", m)
					}
				}
				if paused := d == rollout.Stay && s.Phase == chandler.RolloutPaused; d != c.d && (c.d != rollout.Pause || !paused) {
					t.Errorf("%s %+v", d, measures)
				}
			}
		})
	}
}

func other(f *fleet, chosen []*machine) *machine {
	for _, m := range f.machines {
		if m != chosen[0] && m != chosen[1] {
			return m
		}
	}
	return nil
}
