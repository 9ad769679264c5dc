package envoyads

import (
	"context"
	"net"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"chandler.dev/chandler/internal/testenv/leaks"
)

func TestMain(m *testing.M) { leaks.Main(m) }

const bound = time.Minute

// rig is a server and the events that it told.
type rig struct {
	*testing.T
	server *Server
	lis    *bufconn.Listener
	events chan Event
}

func serve(t *testing.T) *rig {
	r := &rig{T: t, lis: bufconn.Listen(1 << 20), events: make(chan Event, 1000)}
	r.serve(New(Config{Events: func(ev Event) { r.events <- ev }}))
	return r
}

// serve has a server serve until the test is over.
func (r *rig) serve(s *Server) {
	r.server = s
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, r.lis) }()
	r.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				r.Errorf("Serve: %v", err)
			}
		case <-time.After(bound):
			r.Error("Serve does not end")
		}
	})
}

func (r *rig) expect(want ...Event) {
	r.Helper()
	for _, w := range want {
		select {
		case got := <-r.events:
			if !reflect.DeepEqual(got, w) {
				r.Fatalf("told %#v, want %#v", got, w)
			}
		case <-time.After(bound):
			r.Fatalf("not told %#v", w)
		}
	}
}

// peer is a scripted Envoy.
type peer struct {
	*rig
	conn   *grpc.ClientConn
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
}

func (r *rig) dial() *grpc.ClientConn {
	r.Helper()
	conn, err := grpc.NewClient("passthrough:///envoy", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return r.lis.DialContext(ctx) }))
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (r *rig) connect() *peer {
	r.Helper()
	p := &peer{rig: r, conn: r.dial()}
	ctx, cancel := context.WithTimeout(context.Background(), 3*bound)
	r.Cleanup(cancel)
	var err error
	if p.stream, err = discoveryv3.NewAggregatedDiscoveryServiceClient(p.conn).DeltaAggregatedResources(ctx); err != nil {
		r.Fatal(err)
	}
	return p
}

func (p *peer) send(req *discoveryv3.DeltaDiscoveryRequest) {
	p.Helper()
	if req.TypeUrl == "" {
		req.TypeUrl = TypeURL
	}
	if err := p.stream.Send(req); err != nil {
		p.Fatal(err)
	}
}

// hello is the first message of a stream.
func (p *peer) hello(held map[string]string, names ...string) {
	p.Helper()
	p.send(&discoveryv3.DeltaDiscoveryRequest{
		Node: &corev3.Node{UserAgentVersionType: &corev3.Node_UserAgentBuildVersion{UserAgentBuildVersion: &corev3.BuildVersion{
			Version: &typev3.SemanticVersion{MajorNumber: 1, MinorNumber: 40},
		}}},
		ResourceNamesSubscribe: names, InitialResourceVersions: held,
	})
}

// receive takes the next response, which must hold just that slot and version.
func (p *peer) receive(slot, version string) *discoveryv3.DeltaDiscoveryResponse {
	p.Helper()
	res, err := p.stream.Recv()
	if err != nil {
		p.Fatalf("instead of %s at %s: %v", slot, version, err)
	}
	if len(res.Resources) != 1 || len(res.RemovedResources) != 0 || res.TypeUrl != TypeURL {
		p.Fatalf("response %v", res)
	}
	if r := res.Resources[0]; r.Name != slot || r.Version != version || string(r.Resource.Value) != version {
		p.Fatalf("received %s at %s, want %s at %s", r.Name, r.Version, slot, version)
	}
	return res
}

func (p *peer) ack(res *discoveryv3.DeltaDiscoveryResponse) {
	p.Helper()
	p.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: res.Nonce})
}

func (p *peer) nack(res *discoveryv3.DeltaDiscoveryResponse, message string) {
	p.Helper()
	p.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: res.Nonce, ErrorDetail: &rpcstatus.Status{Code: 13, Message: message}})
}

func (r *rig) set(slot, version string) { r.server.Set(slot, version, bodyOf(version)) }

func TestFault_F64_OneAtATimeInOrder(t *testing.T) {
	t.Parallel()
	r := serve(t)
	p := r.connect()
	p.hello(nil, "a", "b")
	r.expect(Connected{"1.40.0"}, Subscribed{Slot: "a"}, Subscribed{Slot: "b"})
	r.set("b", "b1")
	first := p.receive("b", "b1")
	r.set("c", "c1") // not subscribed to yet
	r.set("a", "a1")
	r.set("b", "b2")
	r.set("a", "a2") // in the place of a1
	p.ack(first)
	r.expect(Acked{Slot: "b", Version: "b1"})
	second := p.receive("a", "a2")
	p.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: first.Nonce, ResourceNamesSubscribe: []string{"c"}}) // a stale nonce
	r.expect(Subscribed{Slot: "c"})
	p.nack(second, "no\ngood")
	r.expect(Nacked{"a", "a2", "no good"})
	p.ack(p.receive("c", "c1"))
	p.ack(p.receive("b", "b2"))
	r.expect(Acked{Slot: "c", Version: "c1"}, Acked{Slot: "b", Version: "b2"})
}

func TestRefusedBytesDoNotGoOutAgain(t *testing.T) {
	t.Parallel()
	r := serve(t)
	p := r.connect()
	p.hello(nil, "a")
	r.expect(Connected{"1.40.0"}, Subscribed{Slot: "a"})
	r.set("a", "good")
	p.ack(p.receive("a", "good"))
	r.set("a", "bad")
	p.nack(p.receive("a", "bad"), "bad plugin")
	r.expect(Acked{Slot: "a", Version: "good"}, Nacked{"a", "bad", "bad plugin"})
	r.set("a", "bad")
	r.expect(Nacked{"a", "bad", "bad plugin"}) // and nothing was sent: the next response is
	r.set("a", "good")
	p.ack(p.receive("a", "good"))
	r.set("a", "bad")
	p.nack(p.receive("a", "bad"), strings.Repeat("x", maxMessage+1))
	r.expect(Acked{Slot: "a", Version: "good"}, Nacked{"a", "bad", strings.Repeat("x", maxMessage) + "... (4097 bytes)"})
}

func TestReconnect(t *testing.T) {
	t.Parallel()
	r := serve(t)
	p := r.connect()
	p.hello(nil, "a", "b", "c")
	r.expect(Connected{"1.40.0"}, Subscribed{Slot: "a"}, Subscribed{Slot: "b"}, Subscribed{Slot: "c"})
	r.set("a", "a1")
	p.ack(p.receive("a", "a1"))
	r.set("b", "b1")
	p.ack(p.receive("b", "b1"))
	r.expect(Acked{Slot: "a", Version: "a1"}, Acked{Slot: "b", Version: "b1"})
	r.set("c", "c1")
	p.receive("c", "c1") // and no answer
	r.set("b", "b2")
	if err := p.conn.Close(); err != nil {
		t.Fatal(err)
	}
	r.expect(Disconnected{})

	p = r.connect()
	p.hello(map[string]string{"a": "a1", "b": "b1", "c": "c1"}, "a", "b", "c")
	r.expect(Connected{"1.40.0"},
		Subscribed{"a", "a1"}, Subscribed{"b", "b1"}, Subscribed{"c", "c1"},
		Acked{"a", "a1", true}, Acked{"c", "c1", true}) // which was applied when the stream broke
	res := p.receive("b", "b2")
	if err := p.conn.Close(); err != nil { // and so it is not known whether it was refused
		t.Fatal(err)
	}
	r.expect(Disconnected{})
	p = r.connect()
	p.hello(map[string]string{"a": "a1", "b": "b1"}, "a", "b")
	r.expect(Connected{"1.40.0"}, Subscribed{"a", "a1"}, Subscribed{"b", "b1"}, Acked{"a", "a1", true})
	if again := p.receive("b", "b1"); again.Nonce == res.Nonce {
		t.Error("a nonce came twice")
	} else {
		p.ack(again)
	}
	p.ack(p.receive("b", "b2"))
	r.expect(Acked{Slot: "b", Version: "b2"})

	// Another Envoy in its place, of which nobody told: it has nothing and gets all.
	if err := p.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	r.expect(Disconnected{})
	p = r.connect()
	p.hello(nil, "b")
	r.expect(Connected{"1.40.0"}, Subscribed{Slot: "b"})
	p.ack(p.receive("b", "b2"))
	r.expect(Acked{Slot: "b", Version: "b2"})
}

func TestSecondStreamReplacesTheFirst(t *testing.T) {
	t.Parallel()
	r := serve(t)
	idle := r.connect() // a stream that says nothing disturbs nobody
	first := r.connect()
	first.hello(nil, "a")
	r.expect(Connected{"1.40.0"}, Subscribed{Slot: "a"})
	second := r.connect()
	second.hello(nil, "a")
	r.expect(Disconnected{errReplaced}, Connected{"1.40.0"}, Subscribed{Slot: "a"})
	if _, err := first.stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the first stream: %v", err)
	}
	r.set("a", "a1")
	second.ack(second.receive("a", "a1"))
	r.expect(Acked{Slot: "a", Version: "a1"})
	_ = idle.conn.Close()
}

// A stream that begins while the end of the one before is still being told begins after it:
// whoever is told would else take Envoy for gone.
func TestStreamsAreToldOneAfterTheOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		r := &rig{T: t, lis: bufconn.Listen(1 << 20), events: make(chan Event, 1000)}
		r.serve(New(Config{Events: func(ev Event) {
			if _, ends := ev.(Disconnected); ends {
				<-hold
			}
			r.events <- ev
		}}))
		first := r.connect()
		first.hello(nil, "a")
		r.expect(Connected{"1.40.0"}, Subscribed{Slot: "a"})
		if err := first.stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // its end is being told
		second := r.connect()
		second.hello(nil, "a")
		synctest.Wait()
		if n := len(r.events); n != 0 {
			t.Errorf("told meanwhile is %#v", <-r.events)
		}
		close(hold)
		r.expect(Disconnected{}, Connected{"1.40.0"}, Subscribed{Slot: "a"})
		first.conn.Close()
		second.conn.Close()
	})
}

func TestUnsubscribedAndSubscribedAgain(t *testing.T) {
	t.Parallel()
	r := serve(t)
	p := r.connect()
	p.hello(nil, "a", "b", "*")
	r.expect(Connected{"1.40.0"}, Subscribed{Slot: "a"}, Subscribed{Slot: "b"})
	r.set("a", "a1")
	p.ack(p.receive("a", "a1"))
	r.expect(Acked{Slot: "a", Version: "a1"})
	p.send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{"a", "never"}})
	r.expect(Unsubscribed{"a"})
	r.set("b", "b1")
	p.ack(p.receive("b", "b1"))
	p.send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"a"}})
	r.expect(Acked{Slot: "b", Version: "b1"}, Subscribed{Slot: "a"})
	p.ack(p.receive("a", "a1"))
	r.expect(Acked{Slot: "a", Version: "a1"})
}

func TestOtherRequests(t *testing.T) {
	t.Parallel()
	r := serve(t)
	p := r.connect()
	p.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster", ResourceNamesSubscribe: []string{"a"}})
	r.expect(Connected{""})
	p.hello(nil, "a") // the other type's subscription was none
	r.expect(Subscribed{Slot: "a"})
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(p.conn).StreamAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unimplemented {
		t.Errorf("state of the world: %v", err)
	}
	p.hello(nil, strings.Repeat("n", maxName+1))
	if _, err := p.stream.Recv(); err == nil || !strings.Contains(err.Error(), "slots") {
		t.Errorf("a name beyond the bound: %v", err)
	}
}
