package control_test

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/wire"
)

// crowd is many agents that only speak the protocol, fifty on a connection.
type crowd struct {
	t      *testing.T
	conns  []*grpc.ClientConn
	held   []map[string]string      // by agent; each is its own goroutine's
	newest []atomic.Pointer[string] // by agent: the version that came last
	wg     sync.WaitGroup
	cancel context.CancelFunc

	answered atomic.Int64 // agents that got their first answer
	bytes    atomic.Int64 // of resources
}

func newCrowd(t *testing.T, size int) *crowd {
	c := &crowd{t: t, held: make([]map[string]string, size), newest: make([]atomic.Pointer[string], size)}
	for i := range c.held {
		c.held[i] = map[string]string{}
	}
	t.Cleanup(c.leave)
	return c
}

// join connects all agents at once, each with what it held before.
func (c *crowd) join(r *rig) {
	c.t.Helper()
	var ctx context.Context
	ctx, c.cancel = context.WithCancel(context.Background())
	c.answered.Store(0)
	c.bytes.Store(0)
	for i := range c.held {
		if i%50 == 0 {
			conn, err := grpc.NewClient("passthrough:///control", r.options()...)
			if err != nil {
				c.t.Fatal(err)
			}
			c.conns = append(c.conns, conn)
		}
		conn := c.conns[len(c.conns)-1]
		c.wg.Go(func() { c.follow(ctx, conn, i) })
	}
}

// follow is one agent, which comes back when its stream ends: on a busy machine some
// do.
func (c *crowd) follow(ctx context.Context, conn *grpc.ClientConn, i int) {
	answered := false
	for ctx.Err() == nil {
		c.stream(ctx, conn, i, func() {
			if !answered {
				answered = true
				c.answered.Add(1)
			}
		})
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (c *crowd) stream(ctx context.Context, conn *grpc.ClientConn, i int, heard func()) {
	str, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return
	}
	node := wire.NodeToXDS(chandler.Node{Namespace: "istio-system", Name: fmt.Sprint(i)})
	req := &discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: wire.AttachmentTypeURL, InitialResourceVersions: maps.Clone(c.held[i])}
	for {
		if err := str.Send(req); err != nil {
			return
		}
		resp, err := str.Recv()
		if err != nil {
			return
		}
		for _, res := range resp.GetResources() {
			c.bytes.Add(int64(len(res.GetResource().GetValue())))
			version := res.GetVersion()
			c.held[i][res.GetName()] = version
			c.newest[i].Store(&version)
		}
		heard()
		req = &discoveryv3.DeltaDiscoveryRequest{TypeUrl: wire.AttachmentTypeURL, ResponseNonce: resp.GetNonce()}
	}
}

// version is what the first agent got last.
func (c *crowd) version() string {
	if v := c.newest[0].Load(); v != nil {
		return *v
	}
	return ""
}

// after gives how many agents got last what the first did, unless that is before.
func (c *crowd) after(before string) func() int64 {
	return func() (n int64) {
		now := c.version()
		for i := range c.newest {
			if v := c.newest[i].Load(); now != before && v != nil && *v == now {
				n++
			}
		}
		return n
	}
}

// leave ends all connections.
func (c *crowd) leave() {
	if c.cancel != nil {
		c.cancel()
	}
	c.wg.Wait()
	for _, conn := range c.conns {
		_ = conn.Close()
	}
	c.conns = nil
}

// soon waits until got gives want; it looks seldom, as looks cost something too.
func soon(t *testing.T, what string, got func() int64, want int64) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); got() != want; {
		if time.Now().After(deadline) {
			t.Fatalf("%s: %d of %d", what, got(), want)
		}
		<-time.After(100 * time.Millisecond)
	}
}

// heldMemory is what this process cannot do without.
func heldMemory() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// A control plane starts anew and all agents come back in one moment: each is
// answered, nobody is sent what it has, and a change reaches all of them.
func TestFault_F68_AllComeBackAtOnce(t *testing.T) {
	r := newRig(t)
	r.set("auth:v1", module.Append())
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	r.await("auth", chandler.ConditionResolvedRefs, "True Resolved")
	c := newCrowd(t, crowdSize)
	c.join(r)
	soon(t, "agents answered", c.answered.Load, crowdSize)
	if c.bytes.Load() == 0 {
		t.Fatal("nobody was sent anything")
	}

	c.leave()
	r.restart()
	r.deliver()
	began := time.Now()
	c.join(r)
	soon(t, "agents back", c.answered.Load, crowdSize)
	held := heldMemory()
	t.Logf("%d agents were back after %s; %d MiB on both sides", crowdSize, time.Since(began).Round(10*time.Millisecond), held>>20)
	// The agents' side is in this process too, and about as large, so that the bound
	// leaves the control plane room for as much garbage as it holds. What a process
	// needs for itself does not grow with them.
	const alone = 32 << 20
	if most := uint64(alone + (1536<<20-alone)*crowdSize/10_000); held > most {
		t.Errorf("%d MiB are held, at most %d are to be", held>>20, most>>20)
	}
	if n := c.bytes.Load(); n != 0 {
		t.Errorf("up-to-date agents were sent %d bytes", n)
	}
	before := c.version()
	r.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Wasm.Config = []byte(`{"n":1}`) })
	soon(t, "agents that got the change", c.after(before), crowdSize)
}

// Ten thousand resources appear at once: all are resolved, of each module one
// download is made, and a plugin that was there before is changed meanwhile.
func TestFault_F50_ManyAppearAtOnce(t *testing.T) {
	r := newRig(t)
	r.set("auth:v1", module.Append())
	a := r.join(chandler.Node{Namespace: "istio-system", Name: "gw", Labels: map[string]string{"app": "one"}})
	elsewhere := func(p *chandler.Plugin) { p.Selector = map[string]string{"app": "none"} }
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	a.has("auth", runs(module.Append()))
	for i := range crowdSize {
		r.put(fmt.Sprintf("p%d", i), "oci://reg.example/auth:v1", elsewhere)
	}
	began := time.Now()
	r.deliver()
	r.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Wasm.Config = []byte(`{"a":1}`) })
	a.has("auth", func(att chandler.Attachment) bool { return string(att.Config) == `{"a":1}` })
	t.Logf("the old plugin's change arrived after %s", time.Since(began).Round(time.Millisecond))
	resolved := func() (n int64) {
		views, err := r.Objects(t.Context())
		if err != nil {
			return 0
		}
		for _, v := range views {
			if v.Status.Release != nil {
				n++
			}
		}
		return n
	}
	soon(t, "resolved", resolved, crowdSize+1)
	t.Logf("%d resources were resolved after %s", crowdSize, time.Since(began).Round(10*time.Millisecond))
	if a.updates > 10 {
		t.Errorf("an agent that none of them is for got %d updates", a.updates)
	}
}

// The Envoys of a thousand agents refuse a plugin in one moment, again and again:
// status counts them all and names a few, and what is kept of it is bounded.
func TestFault_F62_AllRefuse(t *testing.T) {
	const agents, rounds = 1000, 3
	r := newRig(t)
	r.set("auth:v1", module.Append())
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	r.await("auth", chandler.ConditionResolvedRefs, "True Resolved")
	c := newCrowd(t, agents)
	c.join(r)
	soon(t, "agents answered", c.answered.Load, agents)
	o := r.objects["auth"]
	release := r.status("auth").Release.ID
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	streams := make([]grpc.BidiStreamingClient[chandlerv1.ReportRequest, chandlerv1.ReportResponse], agents)
	var conn *grpc.ClientConn
	open := func(i int) {
		var err error
		if i%50 == 0 { // a server takes only so many streams of a connection
			next, err := grpc.NewClient("passthrough:///control", r.options()...)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { next.Close() })
			conn = next
		}
		if streams[i], err = chandlerv1.NewReportsClient(conn).Report(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for round := range uint64(rounds) {
		for i := range streams {
			if round == 0 {
				open(i) // who opens one and says nothing is ended
			}
			node := chandler.Node{Namespace: "istio-system", Name: fmt.Sprint(i)}
			report := wire.Report{Node: &node, Sequence: round + 1, Full: true, States: []chandler.AttachmentState{{
				Key: o.Key, UID: o.UID, Generation: o.Generation, Release: release, State: chandler.StateRejected,
				Reason: chandler.CodeRejected, Message: "realm is no string", Rejections: round + 1,
			}}}
			if err := streams[i].Send(wire.ReportToProto(report)); err != nil {
				t.Fatal(err)
			}
		}
	}
	soon(t, "failed", func() int64 { return int64(r.status("auth").Failed) }, agents)
	st := r.status("auth")
	message := ""
	for _, cond := range st.Conditions {
		if cond.Type == chandler.ConditionProgrammed {
			message = cond.Message
		}
	}
	if st.Desired != agents || !strings.Contains(message, "realm is no string") || len(message) > 4<<10 {
		t.Errorf("%d desired, Programmed says %q", st.Desired, message)
	}
}

// Messages over the limits end their own stream with a code, and nobody else's; an
// agent whose connection is cut comes back by itself.
func TestFault_F65_MessagesOverTheLimit(t *testing.T) {
	r := newRig(t)
	r.set("auth:v1", module.Append())
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	a.has("auth", runs(module.Append()))
	conn, err := grpc.NewClient("passthrough:///control", r.options()...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	str, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	node := wire.NodeToXDS(chandler.Node{Namespace: "istio-system", Name: strings.Repeat("x", 9<<20)})
	_ = str.Send(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: wire.AttachmentTypeURL})
	if _, err := str.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message over the limit: %v", err)
	}
	r.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Wasm.Config = []byte(`{"n":1}`) })
	a.has("auth", func(att chandler.Attachment) bool { return string(att.Config) == `{"n":1}` })

	_ = a.conn().Close() // as a reset does
	r.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Wasm.Config = []byte(`{"n":2}`) })
	a.has("auth", func(att chandler.Attachment) bool { return string(att.Config) == `{"n":2}` })
}
