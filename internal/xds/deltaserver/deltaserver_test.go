package deltaserver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/wire"
	"chandler.dev/chandler/internal/xds/deltaclient"
	"chandler.dev/chandler/internal/xds/deltaserver"
	"chandler.dev/chandler/internal/xds/quiet"
)

const typeURL = "type.googleapis.com/test.Thing"

func TestMain(m *testing.M) { leaks.Main(m) }

// control is a server whose view the test sets.
type control struct {
	*deltaserver.Server
	dial func(context.Context) (net.Conn, error)

	mu     sync.Mutex
	views  map[string][]*deltaserver.Resource // by node id
	nacks  []string
	events []string
	asked  map[deltaserver.Asked]int
	log    bytes.Buffer
}

// Write implements io.Writer, for the log.
func (c *control) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.log.Write(b)
}

// claimed reads a node by its id alone.
func claimed(n *corev3.Node) (chandler.Node, error) {
	namespace, name, _ := strings.Cut(n.GetId(), "/")
	return chandler.Node{Namespace: namespace, Name: name}, nil
}

func serve(t *testing.T) *control {
	t.Helper()
	c := &control{asked: map[deltaserver.Asked]int{}}
	c.Server = deltaserver.New(deltaserver.Config{
		TypeURL: typeURL, Log: slog.New(slog.NewTextHandler(c, nil)),
		Claimed: claimed,
		Authenticate: func(_ context.Context, n chandler.Node) (chandler.Node, error) {
			if n.ID() == "ns/stranger" {
				return chandler.Node{}, wire.Refusal(codes.PermissionDenied, chandler.CodeXDSIdentity, "go away")
			}
			return n, nil
		},
		View: func(n chandler.Node) ([]*deltaserver.Resource, bool) {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.views[n.ID()], c.views != nil
		},
		Connected: func(n chandler.Node, ok bool) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.events = append(c.events, fmt.Sprintf("%s %v", n.ID(), ok))
		},
		Asked: func(what deltaserver.Asked, names int) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.asked[what] += names
		},
		Nacked: func(n chandler.Node, names []string, detail string) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.nacks = append(c.nacks, fmt.Sprintf("%s %v %s", n.ID(), names, detail))
		},
	})
	l := bufconn.Listen(1 << 20)
	g := quiet.NewServer(quiet.Config{})
	c.Register(g)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	c.dial = l.DialContext
	return c
}

// set replaces a node's view; each entry is name@version, or a name alone.
func (c *control) set(node string, entries ...string) {
	c.mu.Lock()
	next := maps.Clone(c.views)
	if next == nil {
		next = map[string][]*deltaserver.Resource{}
	}
	next[node] = nil
	for _, e := range entries {
		name, version, _ := strings.Cut(e, "@")
		r := &deltaserver.Resource{Name: name}
		if version != "" {
			r.Version, r.Body = version, &anypb.Any{TypeUrl: typeURL, Value: []byte(e)}
		}
		next[node] = append(next[node], r)
	}
	c.views = next
	c.mu.Unlock()
	c.Refresh()
}

func (c *control) options() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return c.dial(ctx) }),
	}
}

// agent is a real delta client that keeps what it gets.
type agent struct {
	t       *testing.T
	updates chan deltaclient.Update
	stop    func()

	mu     sync.Mutex
	held   map[string]string
	bytes  int
	reject string // resources of this name are refused
	gate   chan struct{}
}

func (c *control) join(t *testing.T, node string, held map[string]string) *agent {
	t.Helper()
	a := &agent{t: t, updates: make(chan deltaclient.Update, 1000), held: map[string]string{}}
	maps.Copy(a.held, held)
	a.start(c, node)
	return a
}

func (a *agent) start(c *control, node string) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	client := deltaclient.New(deltaclient.Config{
		Targets: []string{"passthrough:///control"}, Dial: c.options(), TypeURL: typeURL,
		Node:   &corev3.Node{Id: node},
		Known:  func() map[string]string { a.mu.Lock(); defer a.mu.Unlock(); return maps.Clone(a.held) },
		Handle: a.handle,
	})
	go func() { defer close(done); _ = client.Run(ctx) }()
	a.stop = sync.OnceFunc(func() { cancel(); <-done })
	a.t.Cleanup(a.stop)
}

func (a *agent) handle(u deltaclient.Update) error {
	if a.gate != nil {
		<-a.gate
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	defer func() { a.updates <- u }()
	for _, r := range u.Changed {
		a.bytes += len(r.Body)
		if r.Name == a.reject {
			return errors.New("cannot " + r.Name)
		}
		a.held[r.Name] = r.Version
	}
	for _, name := range u.Removed {
		delete(a.held, name)
	}
	return nil
}

func (a *agent) next() deltaclient.Update {
	a.t.Helper()
	select {
	case u := <-a.updates:
		return u
	case <-time.After(time.Minute):
		a.t.Fatal("no update came")
		panic("unreachable")
	}
}

// holds waits until the agent has exactly these entries.
func (a *agent) holds(entries ...string) {
	a.t.Helper()
	want := map[string]string{}
	for _, e := range entries {
		name, version, _ := strings.Cut(e, "@")
		want[name] = version
	}
	eventually(a.t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return maps.Equal(a.held, want) })
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-deadline:
			t.Fatal("did not come to pass")
		case <-time.After(time.Millisecond):
		}
	}
}

func TestDifferencesOnly(t *testing.T) {
	t.Parallel()
	c := serve(t)
	c.set("ns/a", "x@1", "y@1")
	a := c.join(t, "ns/a", nil)
	if u := a.next(); !u.First || len(u.Changed) != 2 {
		t.Fatalf("first update: %+v", u)
	}
	c.set("ns/a", "x@1", "y@2", "z@1")
	if u := a.next(); len(u.Changed) != 2 || u.Changed[0].Name != "y" || u.Changed[1].Name != "z" {
		t.Errorf("only y and z changed, sent %+v", u)
	}
	c.set("ns/a", "y@2")
	if u := a.next(); len(u.Changed) != 0 || !slices.Equal(u.Removed, []string{"x", "z"}) {
		t.Errorf("x and z were removed, sent %+v", u)
	}
	c.set("ns/a", "x@1", "y@2") // the same version as before it was removed
	a.holds("x@1", "y@2")
}

// A name without a body: who has it keeps it, who has not gets nothing.
func TestWithoutBodyNothingIsSentAndNothingRemoved(t *testing.T) {
	t.Parallel()
	c := serve(t)
	c.set("ns/a", "x", "y@1")
	has, hasNot := c.join(t, "ns/a", map[string]string{"x": "7", "z": "1"}), c.join(t, "ns/a", nil)
	has.holds("x@7", "y@1")
	hasNot.holds("y@1")
	c.set("ns/a", "x@8", "y@1")
	has.holds("x@8", "y@1")
	hasNot.holds("x@8", "y@1") // or the next view could be the first it is told of
	c.set("ns/a", "x", "y@2")
	has.holds("x@8", "y@2")
	hasNot.holds("x@8", "y@2")
}

func TestEachNodeSeesItsOwnView(t *testing.T) {
	t.Parallel()
	c := serve(t)
	c.set("ns/a", "x@1")
	c.set("ns/b", "y@1")
	a, b := c.join(t, "ns/a", nil), c.join(t, "ns/b", nil)
	a.holds("x@1")
	b.holds("y@1")
	if u := a.next(); len(u.Changed) != 1 {
		t.Errorf("a got %+v", u)
	}
}

// F5: an agent that comes back with what it has gets no resource bytes.
func TestFault_F5_UpToDateAgentGetsNoBytes(t *testing.T) {
	t.Parallel()
	c := serve(t)
	c.set("ns/a", "x@1", "y@2")
	a := c.join(t, "ns/a", map[string]string{"x": "1", "y": "2"})
	if u := a.next(); !u.First || len(u.Changed)+len(u.Removed) != 0 {
		t.Errorf("an up-to-date agent was told %+v", u)
	}
	b := c.join(t, "ns/a", map[string]string{"x": "1", "y": "1", "gone": "9"})
	if u := b.next(); len(u.Changed) != 1 || u.Changed[0].Name != "y" || !slices.Equal(u.Removed, []string{"gone"}) {
		t.Errorf("an agent that was behind was told %+v", u)
	}
	if a.bytes != 0 {
		t.Errorf("%d bytes", a.bytes)
	}
}

func TestNobodyIsAnsweredBeforeTheViewIsKnown(t *testing.T) {
	t.Parallel()
	c := serve(t)
	a := c.join(t, "ns/a", map[string]string{"x": "1"})
	eventually(t, func() bool { return len(c.Nodes()) == 1 })
	c.Refresh()
	select {
	case u := <-a.updates:
		t.Fatalf("answered with %+v", u)
	default:
	}
	c.set("ns/a", "x@1")
	if u := a.next(); len(u.Removed)+len(u.Changed) != 0 {
		t.Errorf("told %+v", u)
	}
}

func TestRefusedResourceIsToldAndNotSentAgain(t *testing.T) {
	t.Parallel()
	c := serve(t)
	c.set("ns/a")
	a := c.join(t, "ns/a", nil)
	a.next()
	a.mu.Lock()
	a.reject = "bad"
	a.mu.Unlock()
	c.set("ns/a", "bad@1")
	a.next()
	eventually(t, func() bool { c.mu.Lock(); defer c.mu.Unlock(); return len(c.nacks) == 1 })
	if want := "ns/a [bad] cannot bad"; c.nacks[0] != want {
		t.Errorf("told %q, want %q", c.nacks[0], want)
	}
	c.set("ns/a", "bad@1", "good@1")
	if u := a.next(); len(u.Changed) != 1 || u.Changed[0].Name != "good" {
		t.Errorf("after the refusal came %+v", u)
	}
}

// F66, F69: one agent that does not answer holds up nobody, and when it reads
// again it gets the newest and not the history.
func TestFault_F66_F69_SlowReaderGetsTheNewestAndHoldsUpNobody(t *testing.T) {
	t.Parallel()
	c := serve(t)
	c.set("ns/slow", "x@0")
	c.set("ns/quick", "x@0")
	slow := &agent{t: t, updates: make(chan deltaclient.Update, 1000), held: map[string]string{}, gate: make(chan struct{})}
	slow.start(c, "ns/slow")
	quick := c.join(t, "ns/quick", nil)
	quick.holds("x@0")
	for i := 1; i <= 100; i++ {
		c.set("ns/slow", fmt.Sprintf("x@%d", i))
		c.set("ns/quick", fmt.Sprintf("x@%d", i))
	}
	quick.holds("x@100")
	close(slow.gate)
	slow.holds("x@100")
	if n := len(slow.updates); n > 3 {
		t.Errorf("the slow one was sent %d updates", n)
	}
}

func TestBigViewsComeInSeveralAnswers(t *testing.T) {
	t.Parallel()
	c := serve(t)
	var view []*deltaserver.Resource
	for i := range 10 {
		view = append(view, &deltaserver.Resource{
			Name: fmt.Sprint(i), Version: "1",
			Body: &anypb.Any{TypeUrl: typeURL, Value: make([]byte, 1<<20)},
		})
	}
	c.mu.Lock()
	c.views = map[string][]*deltaserver.Resource{"ns/a": view}
	c.mu.Unlock()
	a := c.join(t, "ns/a", nil)
	eventually(t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.held) == 10 })
	if a.bytes != 10<<20 {
		t.Errorf("%d bytes for 10 MiB", a.bytes)
	}
}

func TestSecondStreamOfANodeAndTheEndOfBoth(t *testing.T) {
	t.Parallel()
	c := serve(t)
	c.set("ns/a", "x@1")
	one, two := c.join(t, "ns/a", nil), c.join(t, "ns/a", nil)
	one.holds("x@1")
	two.holds("x@1")
	if n := c.Nodes(); len(n) != 1 || n[0].ID() != "ns/a" {
		t.Errorf("nodes: %v", n)
	}
	one.stop()
	c.set("ns/a", "x@2")
	two.holds("x@2")
	two.stop()
	eventually(t, func() bool { return len(c.Nodes()) == 0 })
	c.mu.Lock()
	defer c.mu.Unlock()
	if last := c.events[len(c.events)-1]; last != "ns/a false" {
		t.Errorf("events: %v", c.events)
	}
}

// raw opens a stream by hand.
func (c *control) raw(t *testing.T) discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///control", c.options()...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(func() { cancel(); conn.Close() })
	str, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return str
}

// A client that names what it wants gets that and nothing else; a name that is
// not there gets the same silence as one that is not for this node.
func TestNamesInsteadOfTheWildcard(t *testing.T) {
	t.Parallel()
	c := serve(t)
	c.set("ns/a", "x@1", "y@1")
	str := c.raw(t)
	if err := str.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "ns/a"}, TypeUrl: typeURL, ResourceNamesSubscribe: []string{"x", "missing"}}); err != nil {
		t.Fatal(err)
	}
	resp, err := str.Recv()
	if err != nil || len(resp.GetResources()) != 1 || resp.GetResources()[0].GetName() != "x" {
		t.Errorf("got %v, %v", resp, err)
	}
}

// Streams that end while answers are being made: nothing is sent on a closed
// channel (the race detector and the panic would tell).
func TestStreamsEndWhileRefreshed(t *testing.T) {
	t.Parallel()
	c := serve(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				c.set("ns/a", fmt.Sprintf("x@%d", i))
			}
		}
	})
	for range 20 {
		agents := []*agent{c.join(t, "ns/a", nil), c.join(t, "ns/a", nil), c.join(t, "ns/a", nil)}
		for _, a := range agents {
			a.next()
			a.stop()
		}
	}
	close(stop)
	wg.Wait()
}
