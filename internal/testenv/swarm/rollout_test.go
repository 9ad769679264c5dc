package swarm_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/test/bufconn"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/rollout"
	"chandler.dev/chandler/internal/testenv/swarm"
)

// A fleet of twenty gets releases in steps, in a bubble of time: what is bad is taken
// back within two intervals, and eighteen agents never hear of it; what is good comes to
// all.
func TestRollout(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		conduct swarm.Conduct
		why     string
	}{
		"denies":  {swarm.Conduct{Answers: swarm.Denies()}, "client-errors: 100.0%"},
		"traps":   {swarm.Conduct{Traps: 0.5, Answers: &swarm.Answers{ServerErrors: 0.3, Typical: time.Millisecond, Slow: time.Millisecond}}, "traps: "},
		"slow":    {swarm.Conduct{Answers: &swarm.Answers{ClientErrors: 0.02, Typical: 8 * time.Millisecond, Slow: 400 * time.Millisecond}}, "latency: p99"},
		"refused": {swarm.Conduct{Reject: "it has no root"}, "it has no root"},
		"good":    {swarm.Conduct{Delay: 2 * time.Second}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { roll(t, c.conduct, c.why) })
		})
	}
}

func roll(t *testing.T, conduct swarm.Conduct, why string) {
	const interval = time.Minute
	plan, problems := rollout.Parse(map[string]string{chandler.AnnotationRollout: "10%,50%", chandler.AnnotationRolloutInterval: interval.String()})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	pipes := bufconn.Listen(64 << 10)
	p := newPlaneOn(t, pipes)
	s := &script{of: map[string]swarm.Conduct{`{"n":2}`: conduct}}
	fleet := swarm.New(swarm.Config{
		Target: "control", Agents: 20, Conduct: s.conduct, Rate: 10, History: time.Hour,
		DialContext: func(ctx context.Context, _ string) (net.Conn, error) { return pipes.DialContext(ctx) },
	})
	run(t, fleet.Run)
	first := p.apply(1)
	eventually(t, "the first is in force", func() bool { return fleet.InForce(key)[first] == 20 && p.status().InForce == 20 })

	p.plan = plan
	second, began := p.apply(2), time.Now()
	wait := func(most time.Duration, what string, ok func() bool) {
		for !ok() {
			if time.Since(began) > most {
				t.Fatalf("after %v: %s did not come to pass: %+v", most, what, p.rollout())
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	if why == "" {
		wait(4*interval, "in force everywhere", func() bool { return fleet.InForce(key)[second] == 20 && p.rollout().State == chandler.RolloutHealthy })
		if took := time.Since(began); took < 3*interval {
			t.Errorf("it took %v", took)
		}
		return
	}
	wait(2*interval, "taken back", func() bool { return p.rollout().State == chandler.RolloutDegraded && fleet.InForce(key)[first] == 20 })
	if r := p.rollout(); !strings.Contains(r.Message, why) {
		t.Errorf("%+v", r)
	}
	time.Sleep(10 * interval)
	if n := fleet.Told(key)[second]; n != 2 || fleet.InForce(key)[first] != 20 {
		t.Errorf("%d agents heard of it; in force is %v", n, fleet.InForce(key))
	}
}

func (p *plane) rollout() chandler.Rollout {
	all, err := p.Rollouts(p.t.Context())
	if err != nil || len(all) != 1 {
		p.t.Fatal(all, err)
	}
	return all[0].Rollout
}
