package edge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	buffer "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/buffer/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler/internal/testenv/upstream"
	"chandler.dev/chandler/internal/xds/relay"
)

// methods are those of the services of one type.
var methods = map[string]string{
	upstream.Clusters:   "/envoy.service.cluster.v3.ClusterDiscoveryService/%sClusters",
	upstream.Endpoints:  "/envoy.service.endpoint.v3.EndpointDiscoveryService/%sEndpoints",
	upstream.Listeners:  "/envoy.service.listener.v3.ListenerDiscoveryService/%sListeners",
	upstream.Routes:     "/envoy.service.route.v3.RouteDiscoveryService/%sRoutes",
	upstream.Secrets:    "/envoy.service.secret.v3.SecretDiscoveryService/%sSecrets",
	upstream.Extensions: "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/%sExtensionConfigs",
}

// Through the edge every type arrives as it arrives without, byte for byte but for the
// nonce, and under the method by which it was asked for.
func TestEveryTypePasses(t *testing.T) {
	t.Parallel()
	for _, v := range upstream.Variants {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			u := upstream.New(t, upstream.Config{Variant: v})
			secret := &tls.Secret{Name: "s", Type: &tls.Secret_GenericSecret{GenericSecret: &tls.GenericSecret{
				Secret: &core.DataSource{Specifier: &core.DataSource_InlineString{InlineString: "x"}}}}}
			listener := v.Listener("l", filepath.Join(t.TempDir(), "l"), "r")
			listener.ProtoReflect().SetUnknown([]byte{0xfa, 0x7f, 1, 'u'})
			u.Set("1", upstream.Resources{listener, v.Cluster("c"), upstream.Route("r", "c", "m"), upstream.Backend("c", "127.0.0.1:1"),
				secret, upstream.Extension("e", &buffer.Buffer{})})
			up, err := grpc.NewClient(u.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			defer up.Close()
			through := behind(t, New(Config{Upstream: up}))
			names := map[string][]string{upstream.Endpoints: {"c"}, upstream.Routes: {"r"}, upstream.Secrets: {"s"}, upstream.Extensions: {"e"}}
			for typeURL, method := range methods {
				way := map[bool]string{false: "Stream", true: "Delta"}[v.Delta]
				if method = fmt.Sprintf(method, way); !v.Separate {
					method = adsMethod + way + "AggregatedResources"
				}
				q := &relay.Request{Type: typeURL, Subscribe: names[typeURL], Node: []byte{}}
				direct, relayed := first(t, up, method, v.Delta, q), first(t, through, method, v.Delta, q)
				if !proto.Equal(direct, relayed) {
					t.Errorf("of %s Envoy gets\n%v, not\n%v", typeURL, relayed, direct)
				}
			}
		})
	}
}

// behind gives a connection to an edge that serves.
func behind(t *testing.T, e *Edge) *grpc.ClientConn {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "edge")
	lis := listen(t, socket)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Serve(ctx, lis) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return dial(t, socket)
}

// call begins a stream that ends with the test.
func call(t *testing.T, conn *grpc.ClientConn, method string, headers ...string) grpc.ClientStream {
	t.Helper()
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(context.Background(), headers...))
	t.Cleanup(cancel)
	rpc, err := conn.NewStream(ctx, &streaming, method, grpc.ForceCodecV2(newCodec()))
	if err != nil {
		t.Fatal(err)
	}
	return rpc
}

// receive gives the next response of the state of the world.
func receive(t *testing.T, rpc grpc.ClientStream) relay.Response {
	t.Helper()
	var b []byte
	err := rpc.RecvMsg(&b)
	if err != nil {
		t.Fatal(err)
	}
	p, err := relay.ReadResponse(b, false)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// first asks and gives the first response without its nonce.
func first(t *testing.T, conn *grpc.ClientConn, method string, delta bool, q *relay.Request) proto.Message {
	t.Helper()
	rpc := call(t, conn, method)
	if err := rpc.SendMsg(q.Bytes(delta)); err != nil {
		t.Fatal(err)
	}
	var b []byte
	if err := rpc.RecvMsg(&b); err != nil {
		t.Fatal(method, err)
	}
	if delta {
		m := &discovery.DeltaDiscoveryResponse{}
		if err := proto.Unmarshal(b, m); err != nil || m.Nonce == "" || len(m.Resources) != 1 {
			t.Fatalf("%s answers %v (%v)", method, m, err)
		}
		m.Nonce = ""
		return m
	}
	m := &discovery.DiscoveryResponse{}
	if err := proto.Unmarshal(b, m); err != nil || m.Nonce == "" || len(m.Resources) != 1 {
		t.Fatalf("%s answers %v (%v)", method, m, err)
	}
	m.Nonce = ""
	return m
}

// plane is an upstream of one handler for all methods.
func plane(t *testing.T, handler grpc.StreamHandler) *grpc.ClientConn {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "up")
	server := grpc.NewServer(grpc.WaitForHandlers(true), grpc.ForceServerCodecV2(newCodec()), grpc.UnknownServiceHandler(handler))
	lis := listen(t, socket)
	done := make(chan error, 1)
	go func() { done <- server.Serve(lis) }()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return dial(t, socket)
}

// What is not xDS is handed on, with its headers, its end and its status.
func TestOtherCalls(t *testing.T) {
	t.Parallel()
	const method = "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats"
	var headers atomic.Pointer[metadata.MD]
	up := plane(t, func(_ any, rpc grpc.ServerStream) error {
		if m, _ := grpc.MethodFromServerStream(rpc); m != method {
			return status.Error(codes.Unimplemented, m)
		}
		md, _ := metadata.FromIncomingContext(rpc.Context())
		headers.Store(&md)
		for {
			var b []byte
			if rpc.RecvMsg(&b) != nil {
				return status.Error(codes.DataLoss, "enough")
			}
			if err := rpc.SendMsg(append(b, '!')); err != nil {
				return err
			}
		}
	})
	rpc := call(t, behind(t, New(Config{Upstream: up})), method, "authorization", "Bearer x")
	for _, text := range []string{"one", "two"} {
		if err := rpc.SendMsg([]byte(text)); err != nil {
			t.Fatal(err)
		}
		var b []byte
		if err := rpc.RecvMsg(&b); err != nil || string(b) != text+"!" {
			t.Fatalf("answered %q (%v)", b, err)
		}
	}
	if got := headers.Load().Get("authorization"); !slices.Equal(got, []string{"Bearer x"}) {
		t.Errorf("authorization is %q", got)
	}
	if err := rpc.CloseSend(); err != nil {
		t.Fatal(err)
	}
	var b []byte
	if err := rpc.RecvMsg(&b); status.Code(err) != codes.DataLoss || !strings.Contains(err.Error(), "enough") {
		t.Errorf("it ends with %v", err)
	}
}

// An Envoy that does not read holds the upstream back, and gets all in the end.
func TestSlowEnvoy(t *testing.T) {
	t.Parallel()
	const pushes = 200
	var sent atomic.Int32
	large := protowire.AppendBytes(protowire.AppendTag(nil, 100, protowire.BytesType), make([]byte, 1<<19))
	up := plane(t, func(_ any, rpc grpc.ServerStream) error {
		var b []byte
		if err := rpc.RecvMsg(&b); err != nil {
			return err
		}
		for i := range pushes {
			p := relay.Response{Type: upstream.Clusters, Nonce: fmt.Sprint(i), Version: fmt.Sprint(i), Rest: large}
			if err := rpc.SendMsg(p.Bytes(false)); err != nil {
				return err
			}
			sent.Add(1)
		}
		for rpc.RecvMsg(&b) == nil {
		}
		return nil
	})
	rpc := call(t, behind(t, New(Config{Upstream: up})), methodOf(false))
	if err := rpc.SendMsg((&relay.Request{Type: upstream.Clusters}).Bytes(false)); err != nil {
		t.Fatal(err)
	}
	before := int32(-1)
	for until := time.Now().Add(bound); sent.Load() != before && time.Now().Before(until); time.Sleep(500 * time.Millisecond) {
		before = sent.Load()
	}
	if before > 20 {
		t.Errorf("%d responses of 512 KiB were taken for an Envoy that does not read", before)
	}
	for version := ""; version != fmt.Sprint(pushes-1); {
		m := receive(t, rpc)
		version = m.Version
		q := relay.Request{Type: upstream.Clusters, Nonce: m.Nonce, Version: version}
		if err := rpc.SendMsg(q.Bytes(false)); err != nil {
			t.Fatal(err)
		}
	}
}

// An upstream that is away is tried again, and its owner is told; what changes by a
// transform goes out meanwhile, and what Envoy takes is told to be remembered.
func TestUpstreamAway(t *testing.T) {
	t.Parallel()
	open := make(chan bool, 1)
	up := plane(t, func(_ any, rpc grpc.ServerStream) error {
		select {
		case <-open:
		default:
			return status.Error(codes.Unavailable, "not yet")
		}
		q := request{}
		if err := rpc.RecvMsg(&q); err != nil {
			return err
		}
		b, _ := proto.Marshal(&discovery.DiscoveryResponse{TypeUrl: upstream.Clusters, Nonce: "n", VersionInfo: "1", Resources: clusters(1, 1)})
		if err := rpc.SendMsg(b); err != nil {
			return err
		}
		return rpc.RecvMsg(&q)
	})
	linked, took := make(chan error, 100), make(chan bool, 100)
	var edits atomic.Int32
	e := New(Config{Upstream: up, Took: func() { took <- true }, Linked: func(_ string, err error) { linked <- err },
		Hooks: relay.Hooks{Transforms: map[string]relay.Transform{upstream.Clusters: func(r relay.Resource) ([]byte, bool) {
			return append(slices.Clip(r.Body), bytes.Repeat([]byte{0xfa, 0x7f, 1, 'u'}, int(edits.Load()))...), true
		}}}})
	rpc := call(t, behind(t, e), methodOf(false))
	if err := rpc.SendMsg((&relay.Request{Type: upstream.Clusters}).Bytes(false)); err != nil {
		t.Fatal(err)
	}
	err := await(t, linked)
	for err == nil { // it was there for a while, as the machine was busy
		err = await(t, linked)
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("the owner is told %v", err)
	}
	open <- true
	get := func() (version string, size int) {
		t.Helper()
		m := receive(t, rpc)
		if len(m.Items) != 1 {
			t.Fatalf("Envoy gets %d resources", len(m.Items))
		}
		if err := rpc.SendMsg((&relay.Request{Type: upstream.Clusters, Nonce: m.Nonce, Version: m.Version}).Bytes(false)); err != nil {
			t.Fatal(err)
		}
		return m.Version, len(m.Items[0].Raw)
	}
	version, size := get()
	await(t, took)
	for err := await(t, linked); err != nil; err = await(t, linked) {
	}
	await(t, linked) // lost after its first answer
	edits.Store(1)
	e.Changed(upstream.Clusters)
	changed, larger := get()
	if version != "1" || changed == version || larger != size+4 {
		t.Errorf("version %q of %d bytes became %q of %d", version, size, changed, larger)
	}
	if views := e.Views(); len(views) != 1 || views[0].Len() != 1 {
		t.Error("nothing is remembered")
	}
}

// An upstream that has nothing to say is there all the same.
func TestUpstreamSilent(t *testing.T) {
	t.Parallel()
	up := plane(t, func(_ any, rpc grpc.ServerStream) error {
		for {
			if err := rpc.RecvMsg(&request{}); err != nil {
				return err
			}
		}
	})
	linked := make(chan error, 100)
	rpc := call(t, behind(t, New(Config{Upstream: up, Linked: func(_ string, err error) { linked <- err }})), methodOf(false))
	if err := rpc.SendMsg((&relay.Request{Type: upstream.Clusters}).Bytes(false)); err != nil {
		t.Fatal(err)
	}
	if err := await(t, linked); err != nil {
		t.Errorf("the owner is told %v", err)
	}
}

func await[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(bound):
		t.Fatal("nothing came")
	}
	panic("unreachable")
}

// Pauses grow up to a bound, and are never nothing.
func TestPause(t *testing.T) {
	t.Parallel()
	for failures, want := range []time.Duration{firstPause, 2 * firstPause, 4 * firstPause} {
		if got := pause(failures, 1); got != want {
			t.Errorf("after %d failures %v, want %v", failures, got, want)
		}
	}
	if pause(1000, 1) != maxPause || pause(5, 0) != minPause {
		t.Error("it is not bounded")
	}
}

// An edge whose listener fails says so.
func TestServeFails(t *testing.T) {
	t.Parallel()
	lis := listen(t, filepath.Join(t.TempDir(), "edge"))
	_ = lis.Close()
	if err := New(Config{}).Serve(context.Background(), lis); !errors.Is(err, net.ErrClosed) {
		t.Errorf("it ends with %v", err)
	}
}
