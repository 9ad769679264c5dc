package rollout_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/rollout"
)

var start = time.Date(2026, 11, 28, 9, 0, 0, 0, time.UTC)

// conduct is how a release answers.
type conduct struct {
	// shares of 2xx, 3xx, 4xx, 5xx; what is left is 2xx.
	redirect, client, server float64
	typical, slow            time.Duration // slow is for five of a hundred
	traps                    float64       // a second
	refused                  bool
	delay                    time.Duration // until it is in force
}

var (
	good   = conduct{client: 0.02, server: 0.001, typical: 8 * time.Millisecond, slow: 30 * time.Millisecond, delay: time.Second}
	denies = conduct{client: 1, typical: time.Millisecond, slow: time.Millisecond, delay: time.Second}
	trap   = conduct{client: 0.02, server: 0.3, typical: 8 * time.Millisecond, slow: 30 * time.Millisecond, traps: 0.5, delay: time.Second}
	slow   = conduct{client: 0.02, typical: 8 * time.Millisecond, slow: 400 * time.Millisecond, delay: time.Second}
	refuse = conduct{refused: true, delay: time.Second}
	never  = conduct{delay: 1000 * time.Hour}
)

// machine is a proxy of a simulated fleet.
type machine struct {
	rollout.Proxy
	given time.Time // the new release; zero: it has the old one
	traps float64
	had   bool // it ever was given the new one
	away  bool
}

// fleet answers requests as the releases in force have it.
type fleet struct {
	machines []*machine
	old, new conduct
	rps      float64 // of each
	now      time.Time
	chance   *rand.Rand
	heard    time.Time
	polled   time.Time // when agents asked their Envoys for faults
	typ      chandler.FilterType
}

func newFleet(n int, was, is conduct) *fleet {
	f := &fleet{old: was, new: is, rps: 20, now: start, polled: start, chance: rand.New(rand.NewPCG(1, 2)), typ: chandler.HTTP}
	for i := range n {
		f.join(i)
	}
	for _, m := range f.machines {
		f.answer(&m.Traffic[0].Hour, f.old, int(3600*f.rps))
		m.Traffic[0].Now = m.Traffic[0].Hour
	}
	return f
}

func (f *fleet) join(i int) *machine {
	m := &machine{}
	m.Node = chandler.Node{Namespace: "default", Name: fmt.Sprintf("proxy-%d", i), Labels: map[string]string{"zone": fmt.Sprint(i % 3)}}
	m.Connected = true
	m.Traffic = []chandler.Traffic{{Mode: chandler.ModeServer, Port: 80, Epoch: "1"}}
	f.machines = append(f.machines, m)
	return m
}

func (f *fleet) leave() {
	for _, m := range f.machines {
		m.away = true
	}
}

// answer has a release answer so many requests: few by chance, many as is to be expected.
func (f *fleet) answer(a *chandler.Answers, c conduct, n int) {
	fast, slow := bucket(c.typical), bucket(c.slow)
	if n > 1000 {
		for class, share := range [5]float64{0, 1 - c.redirect - c.client - c.server, c.redirect, c.client, c.server} {
			a.Classes[class] += uint64(share * float64(n))
		}
		a.Latency[fast] += uint64(n - n/20)
		a.Latency[slow] += uint64(n / 20)
		return
	}
	for range n {
		class := 1
		switch p := f.chance.Float64(); {
		case p < c.redirect:
			class = 2
		case p < c.redirect+c.client:
			class = 3
		case p < c.redirect+c.client+c.server:
			class = 4
		}
		a.Classes[class]++
		if f.chance.Float64() < 0.05 {
			a.Latency[slow]++
		} else {
			a.Latency[fast]++
		}
	}
}

func bucket(took time.Duration) int {
	at := 0
	for bounds := chandler.LatencyBounds(); at < len(bounds) && took > bounds[at]; {
		at++
	}
	return at
}

// pass lets time pass, with a choice of who has the new release.
func (f *fleet) pass(d time.Duration, c rollout.Choice) {
	f.now = f.now.Add(d)
	for _, m := range f.machines {
		if m.given.IsZero() && c.Has("uid", m.Node) {
			m.given, m.had = f.now, true
		}
		m.Keeps = !m.given.IsZero()
		arrived := !m.given.IsZero() && f.now.Sub(m.given) >= f.new.delay
		m.InForce, m.Refused, m.Message = arrived && !f.new.refused, arrived && f.new.refused, ""
		release := f.old
		if m.InForce {
			release = f.new
		}
		if m.Refused {
			m.Message = "Rejected: it says no"
		}
		m.Connected = !m.away
		f.answer(&m.Traffic[0].Now, release, int(f.rps*d.Seconds()))
		if m.traps += release.traps * d.Seconds(); !f.now.Before(f.polled.Add(5 * time.Second)) {
			m.Traps = uint64(m.traps)
		}
	}
	if !f.now.Before(f.polled.Add(5 * time.Second)) {
		f.polled = f.now
	}
}

func (f *fleet) observed() rollout.Observed {
	o := rollout.Observed{UID: "uid", Type: f.typ, Heard: f.heard}
	for _, m := range f.machines {
		p := m.Proxy
		p.Traffic = append([]chandler.Traffic(nil), m.Traffic...)
		o.Proxies = append(o.Proxies, p)
	}
	return o
}

// run goes on second by second until something is decided that ends or pauses the
// rollout, and tells how far it came.
func (f *fleet) run(t testing.TB, s rollout.State, most time.Duration) (rollout.State, rollout.Decision, []chandler.Measure) {
	t.Helper()
	for end := f.now.Add(most); f.now.Before(end); {
		f.pass(time.Second, s.Choice)
		next, decision, measures := rollout.Next(s, f.observed(), f.now)
		if again, d, m := rollout.Next(recorded(t, s), f.observed(), f.now); d != decision || !reflect.DeepEqual(m, measures) || !reflect.DeepEqual(recorded(t, again), recorded(t, next)) {
			t.Fatalf("after its record was read: %v %+v, and %v %+v", d, m, decision, measures)
		}
		if s = next; decision != rollout.Stay && decision != rollout.Advance {
			return s, decision, measures
		}
	}
	return s, rollout.Stay, nil
}

// recorded is a state that was written down and read again.
func recorded(t testing.TB, s rollout.State) (again rollout.State) {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 32<<10 {
		t.Fatalf("the record has %d bytes", len(b))
	}
	if err := json.Unmarshal(b, &again); err != nil {
		t.Fatal(err)
	}
	return again
}

func plan(t testing.TB, steps, interval string) chandler.RolloutPlan {
	t.Helper()
	p, problems := rollout.Parse(map[string]string{chandler.AnnotationRollout: steps, chandler.AnnotationRolloutInterval: interval})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return *p
}

// A fleet of twenty: what is bad is taken back within two intervals and never comes to
// more than the first step; what is good comes to all.
func TestFleet(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		new  conduct
		want rollout.Decision
		gate chandler.Gate
		most time.Duration
	}{
		{"good", good, rollout.Finish, "", 200 * time.Second},
		{"denies everyone", denies, rollout.RollBack, chandler.GateClientError, 120 * time.Second},
		{"traps", trap, rollout.RollBack, chandler.GateTraps, 120 * time.Second},
		{"slow", slow, rollout.RollBack, chandler.GateLatency, 120 * time.Second},
		{"refused", refuse, rollout.RollBack, chandler.GateRejections, 5 * time.Second},
		{"never there", never, rollout.RollBack, chandler.GateInForce, 130 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(20, good, c.new)
			s := rollout.Begin(plan(t, "10%,50%", "60s"), f.observed(), f.now)
			s, decision, measures := f.run(t, s, c.most)
			if decision != c.want {
				t.Fatalf("%s at step %d: %+v", decision, s.Step, measures)
			}
			had := 0
			for _, m := range f.machines {
				if m.had {
					had++
				}
			}
			if c.want == rollout.Finish {
				if had != 20 || f.now.Sub(start) < 180*time.Second {
					t.Errorf("after %v %d have it", f.now.Sub(start), had)
				}
				return
			}
			if had != 2 {
				t.Errorf("%d proxies had it", had)
			}
			for _, m := range measures {
				if m.Gate == c.gate && m.Result != chandler.GateFailed {
					t.Errorf("%+v", m)
				}
			}
			if s.Reason != chandler.CodeGateFailed || s.Message == "" {
				t.Errorf("%+v", s)
			}
			t.Logf("after %v: %s", f.now.Sub(start), s.Message)
		})
	}
}
