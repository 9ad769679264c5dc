package swarm_test

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/resolve"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/testenv/fed"
	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/swarm"
)

func TestMain(m *testing.M) { leaks.Main(m) }

type trust struct{}

func (trust) Authenticate(_ context.Context, n chandler.Node) (chandler.Node, error) { return n, nil }

// plane is a control plane with one plugin.
type plane struct {
	*control.Control
	t          testing.TB
	source     fed.Source
	target     string
	generation int64
	plan       *chandler.RolloutPlan // of what is applied; nil: to all at once
}

var key = chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "istio-system", Name: "auth"}

func newPlane(t testing.TB) *plane {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return newPlaneOn(t, l)
}

func newPlaneOn(t testing.TB, l net.Listener) *plane {
	t.Helper()
	s, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	p := &plane{t: t, source: make(fed.Source), target: l.Addr().String()}
	p.Control, err = control.New(control.Config{
		Source: p.source, Records: record.NewMemory(), Store: s, Listener: l, Authenticator: trust{},
		Resolver: resolve.New(resolve.Config{Fetcher: fed.Module(module.Append()), Store: s}),
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, p.Run)
	t.Cleanup(func() { s.Close() })
	return p
}

// run has something run until the test is over.
func run(t testing.TB, do func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// apply gives the plugin a configuration, and its release.
func (p *plane) apply(n int) chandler.ReleaseID {
	p.t.Helper()
	p.generation++
	ref, _ := chandler.ParseReference("oci://reg.example/auth:v1")
	o := source.Object{Key: key, UID: "uid", Created: time.Unix(1000, 0), Generation: p.generation}
	o.Plugin = &chandler.Plugin{
		Key: key, UID: o.UID, Generation: o.Generation, Created: o.Created, Type: chandler.HTTP, Phase: chandler.PhaseAuthn, Rollout: p.plan,
		Wasm: &chandler.Wasm{URL: "oci://reg.example/auth:v1", Reference: ref, FailStrategy: chandler.FailClose, Config: fmt.Appendf(nil, `{"n":%d}`, n)},
	}
	p.source <- source.Snapshot{Objects: []source.Object{o}}
	var release chandler.ReleaseID
	eventually(p.t, "a release", func() bool {
		if r := p.status().Release; r != nil && r.Generation == p.generation {
			release = r.ID
		}
		return release != ""
	})
	return release
}

func (p *plane) status() chandler.Status {
	views, err := p.Objects(p.t.Context())
	if err != nil || len(views) == 0 {
		return chandler.Status{}
	}
	return views[0].Status
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("did not come to pass: %s", what)
		}
	}
}

// script is what Envoys make of releases.
type script struct {
	mu sync.Mutex
	of map[string]swarm.Conduct // by configuration
}

func (s *script) conduct(_ chandler.Node, a *chandler.Attachment) swarm.Conduct {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.of[string(a.Config)]
}

// Agents get a release, read its module and have it in force; the next is refused, and
// the one after that is in force later. The control plane knows all of it.
func TestSwarm(t *testing.T) {
	t.Parallel()
	const agents = 20
	p := newPlane(t)
	s := &script{of: map[string]swarm.Conduct{
		`{"n":2}`: {Reject: "it has no root"},
		`{"n":3}`: {Delay: 50 * time.Millisecond, Traps: 1000, Answers: swarm.Denies()},
	}}
	fleet := swarm.New(swarm.Config{
		Target: p.target, Agents: agents, Conduct: s.conduct, Rate: 1000, Fetch: true, History: time.Hour,
	})
	run(t, fleet.Run)

	first := p.apply(1)
	eventually(t, "the first is in force", func() bool { return fleet.InForce(key)[first] == agents && p.status().InForce == agents })
	if fleet.Connected() != agents {
		t.Errorf("%d are connected", fleet.Connected())
	}
	proxies := p.Proxies()
	if len(proxies) != agents || proxies[0].Facts == nil {
		t.Fatalf("%+v", proxies)
	}
	slot := proxies[0].Facts.Listeners[0].Slots[0]
	if slot.Name != "chandler/authn/server/8080" || len(slot.Members) != 1 || slot.Members[0].Release != first || proxies[0].Facts.Store.Modules != 1 {
		t.Errorf("%+v", proxies[0].Facts)
	}

	second := p.apply(2)
	eventually(t, "the second is refused", func() bool { return p.status().Failed == agents })
	if fleet.InForce(key)[first] != agents {
		t.Errorf("in force: %v", fleet.InForce(key))
	}
	for _, v := range p.Proxies() {
		if st := v.States[key]; st.State != chandler.StateRejected || st.Rejections != 1 || st.Message != "it has no root" || st.InForce != first {
			t.Fatalf("%+v", st)
		}
	}

	third := p.apply(3)
	eventually(t, "the third is in force", func() bool { return p.status().InForce == agents })
	eventually(t, "faults are told", func() bool { return p.Proxies()[0].States[key].VMTraps > 0 })
	for id, n := range map[chandler.ReleaseID]int{first: agents, second: agents, third: agents, "none": 0} {
		if fleet.Told(key)[id] != n {
			t.Errorf("%s: %v", id, fleet.Told(key))
		}
	}
	traffic := fleet.Agents()[3].Traffic()[0]
	if traffic.Now.Classes[1] == 0 || traffic.Now.Classes[3] == 0 || traffic.Hour.Classes[1] < 3_400_000 || traffic.Mode != chandler.ModeServer || traffic.Port != 8080 {
		t.Errorf("%+v", traffic)
	}
}

// An agent that is away goes on with what it has, and an Envoy that begins anew counts
// from zero; back again, the agent gets what it missed and nothing else.
func TestAway(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	var passed atomic.Int64 // of the Envoys' time
	began := time.Now()
	fleet := swarm.New(swarm.Config{Target: p.target, Agents: 2, Rate: 1000, Now: func() time.Time { return began.Add(time.Duration(passed.Load())) }})
	run(t, fleet.Run)
	first := p.apply(1)
	eventually(t, "the first is in force", func() bool { return p.status().InForce == 2 })
	one := fleet.Agents()[0]
	one.Away(true)
	one.Away(true)
	eventually(t, "one is away", func() bool { return fleet.Connected() == 1 && !p.Proxies()[0].Connected })
	second := p.apply(2)
	eventually(t, "the other has the second", func() bool { return fleet.InForce(key)[second] == 1 })
	if one.InForce(key) != first {
		t.Error("who is away was told something")
	}
	passed.Add(int64(time.Minute))
	before := one.Traffic()[0]
	one.Restart()
	passed.Add(int64(time.Second))
	if after := one.Traffic()[0]; after.Epoch == before.Epoch || after.Now.Classes[1] == 0 || after.Now.Classes[1] >= before.Now.Classes[1] {
		t.Errorf("%+v after %+v", after, before)
	}
	one.Away(false)
	eventually(t, "all have the second", func() bool { return p.status().InForce == 2 })
	if told := one.Told(key); len(told) != 2 || told[0] != first || told[1] != second {
		t.Errorf("%v", told)
	}
	p.source <- source.Snapshot{}
	eventually(t, "it is gone", func() bool { return fleet.InForce(key)[""] == 2 })
	if told := one.Told(key); len(told) != 2 {
		t.Errorf("%v", told)
	}
}
