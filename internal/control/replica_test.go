package control_test

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/wire"
)

// seat is an Election that the test decides.
type seat chan control.Leader

func (s seat) Run(ctx context.Context, changed func(control.Leader)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case l := <-s:
			changed(l)
		}
	}
}

// cluster is control planes of one record store and one registry, each with a
// disk of its own, by their address.
type cluster struct {
	replicas map[string]*rig

	mu    sync.Mutex
	lines map[string]func(context.Context) (net.Conn, error) // of those that are up
}

func newCluster(t *testing.T, addresses ...string) *cluster {
	c := idleCluster(t, addresses...)
	for _, address := range addresses {
		c.start(address)
	}
	return c
}

// idleCluster is one that has not been started.
func idleCluster(t *testing.T, addresses ...string) *cluster {
	shared, records := &registry{mods: map[string][]byte{}}, record.NewMemory()
	c := &cluster{replicas: map[string]*rig{}, lines: map[string]func(context.Context) (net.Conn, error){}}
	for _, address := range addresses {
		c.replicas[address] = &rig{
			t: t, registry: shared, records: records, dir: t.TempDir(), election: make(seat), objects: map[string]source.Object{},
			peers: &control.Peers{
				Dial:      c.dial,
				Addresses: func(context.Context) []string { return addresses },
				Admit:     func(context.Context) error { return nil },
			},
		}
	}
	return c
}

func (c *cluster) dial(to string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+to, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			c.mu.Lock()
			line := c.lines[to]
			c.mu.Unlock()
			if line == nil {
				return nil, errors.New("nobody there")
			}
			return line(ctx)
		}))
}

func (c *cluster) start(address string) {
	r := c.replicas[address]
	r.start()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines[address] = r.dial
}

func (c *cluster) stop(address string) {
	c.mu.Lock()
	delete(c.lines, address)
	c.mu.Unlock()
	c.replicas[address].stop()
}

// lead makes one the leader for all that are up.
func (c *cluster) lead(address string) {
	for name := range c.lines {
		l := control.Leader{Address: address}
		if name == address {
			l = control.Leader{Self: true}
		}
		c.replicas[name].election.(seat) <- l
	}
}

// deliver gives all that are up the objects of one.
func (c *cluster) deliver(from *rig) {
	for name := range c.lines {
		c.replicas[name].objects = maps.Clone(from.objects)
		c.replicas[name].deliver()
	}
}

// One resolves, all serve; what agents say at one is known at the leader.
func TestReplicasServeWhatTheLeaderResolved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, replicasServe) // from a leader who stalls, a replica does not take the bytes
}

func replicasServe(t *testing.T) {
	all := newCluster(t, "a", "b")
	a, b := all.replicas["a"], all.replicas["b"]
	mod := module.Append()
	a.set("auth:v1", mod)
	a.put("auth", "oci://reg.example/auth:v1", nil)
	all.deliver(a)
	if got := a.count(); got != 0 {
		t.Errorf("%d registry requests while nobody led", got)
	}
	all.lead("a")
	at := b.join(gateway)
	att := at.has("auth", runs(mod))
	if got := a.count(); got != 3 {
		t.Errorf("%d registry requests; want the leader's three, and the bytes from it", got)
	}
	str, node := at.report(), at.node
	if err := say(t, str, wire.Report{Node: &node, Sequence: 1, Full: true, States: []chandler.AttachmentState{stateOf(att, chandler.StateInForce, 0)}}); err != nil {
		t.Fatal(err)
	}
	a.await("auth", chandler.ConditionReady, "True Ready")
	if s := a.status("auth"); s.Desired != 1 || s.InForce != 1 {
		t.Errorf("the leader knows of %d proxies, %d in force; want 1 and 1", s.Desired, s.InForce)
	}
	if got := gauge(t, a.metrics, "chandler_agents"); got != 1 {
		t.Errorf("the leader counts %v agents", got)
	}
	at.stop()
	eventually(t, func() bool { return gauge(t, a.metrics, "chandler_agents") == 0 }, func() string { return "the agent never left" })
}

// electing is a gate that has something happen when it is first asked, which is as the loop
// looks what to do.
type electing struct {
	*gate
	happens func()
}

func (g *electing) Hash() string {
	g.happens()
	return g.gate.Hash()
}

// Who is elected while it is at something else notices, though nothing else happens.
func TestElectedWhileBusy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		all := idleCluster(t, "a")
		a := all.replicas["a"]
		elect := sync.OnceFunc(func() {
			all.lead("a")
			synctest.Wait()
		})
		a.settle = func(cfg *control.Config) { cfg.Gate = &electing{&gate{hash: "1"}, elect} }
		all.start("a")
		a.set("auth:v1", module.Append())
		time.Sleep(2 * time.Second) // what the loop does at a start is over
		a.apply("auth", "oci://reg.example/auth:v1", nil)
		a.await("auth", chandler.ConditionResolvedRefs, "True Resolved")
	})
}

// The leader's end costs agents nothing: they are sent no byte, and the next
// leader goes on where it was.
func TestLeaderDies(t *testing.T) {
	t.Parallel()
	all := newCluster(t, "a", "b")
	a, b := all.replicas["a"], all.replicas["b"]
	one, two := module.Append(), module.Append(module.WithSection("two", nil))
	a.set("auth:v1", one)
	a.set("auth:v2", two)
	a.put("auth", "oci://reg.example/auth:v1", nil)
	all.deliver(a)
	all.lead("a")
	at := a.join(gateway)
	first := at.has("auth", runs(one))
	b.await("auth", chandler.ConditionResolvedRefs, "True Resolved")

	all.stop("a")
	before := at.bytes
	at.stop()
	at.connect(b)
	at.conn()
	if at.bytes != before {
		t.Errorf("%d bytes sent to an agent that has everything", at.bytes-before)
	}
	all.lead("b")
	b.put("auth", "oci://reg.example/auth:v2", nil)
	all.deliver(b)
	second := at.has("auth", runs(two))
	if second.Sequence != first.Sequence+1 {
		t.Errorf("sequence %d after %d", second.Sequence, first.Sequence)
	}
}

// A replica without a byte serves modules while the registry is down.
func TestFreshReplicaGetsBytesFromPeers(t *testing.T) {
	t.Parallel()
	all := newCluster(t, "a", "b")
	a, b := all.replicas["a"], all.replicas["b"]
	all.stop("b")
	mod := module.Append()
	a.set("auth:v1", mod)
	a.put("auth", "oci://reg.example/auth:v1", nil)
	all.deliver(a)
	all.lead("a")
	a.await("auth", chandler.ConditionResolvedRefs, "True Resolved")
	a.fail(errors.New("the registry is down"))
	b.dir = t.TempDir()
	all.start("b")
	all.deliver(a)
	all.lead("a")
	at := b.join(gateway)
	at.has("auth", runs(mod))
	eventually(t, func() bool {
		got, err := at.read(string(chandler.Digest[chandler.ModuleDigest](mod)), 0)
		return err == nil && bytes.Equal(got, mod)
	}, func() string { return "no bytes" })
}

// Who is no replica may not ask as one.
func TestPeersAreAdmitted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.deliver()
	at := r.join(gateway)
	str, err := chandlerv1.NewModulesClient(at.conn()).Read(t.Context(), &chandlerv1.ReadRequest{Digest: "sha256:" + strings.Repeat("0", 64)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := str.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a read without a node: %v", err)
	}
	relay, err := chandlerv1.NewReportsClient(at.conn()).Relay(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := relay.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a relay: %v", err)
	}
}

// Two that both believe to lead come to one release: a record is moved by
// compare-and-swap, and what was resolved once keeps its digests.
func TestFault_F54_TwoLeaders(t *testing.T) {
	t.Parallel()
	all := newCluster(t, "a", "b")
	a, b := all.replicas["a"], all.replicas["b"]
	a.set("auth:v1", module.Append())
	a.put("auth", "oci://reg.example/auth:v1", nil)
	for _, r := range all.replicas {
		r.election.(seat) <- control.Leader{Self: true}
	}
	last := chandler.Attachment{}
	for range 20 {
		a.put("auth", "oci://reg.example/auth:v1", nil) // a generation more
		all.deliver(a)
		want := a.objects["auth"].Generation
		newest := func(att chandler.Attachment) bool { return att.Generation == want }
		at, bt := a.join(gateway), b.join(gateway)
		one := at.has("auth", newest)
		two := bt.has("auth", func(att chandler.Attachment) bool { return att.Release == one.Release })
		if one.Sequence != two.Sequence || one.Sequence <= last.Sequence {
			t.Fatalf("sequences %d and %d after %d", one.Sequence, two.Sequence, last.Sequence)
		}
		last = one
		at.stop()
		bt.stop()
	}
}
