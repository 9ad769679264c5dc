package edge

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"chandler.dev/chandler/internal/testenv/upstream"
)

const adsMethod = "/envoy.service.discovery.v3.AggregatedDiscoveryService/"

func methodOf(delta bool) string {
	if delta {
		return adsMethod + "DeltaAggregatedResources"
	}
	return adsMethod + "StreamAggregatedResources"
}

// clusters are as a mesh has them: of about 450 bytes each.
func clusters(n, round int) []*anypb.Any {
	var all []*anypb.Any
	for i := range n {
		name := fmt.Sprintf("outbound|80||service-%05d.some-namespace.svc.cluster.local", i)
		c := upstream.Variant{Delta: true}.Cluster(name)
		c.AltStatName = name
		c.EdsClusterConfig.ServiceName = name
		c.ConnectTimeout = durationpb.New(time.Second + time.Duration(round))
		c.CircuitBreakers = &cluster.CircuitBreakers{Thresholds: []*cluster.CircuitBreakers_Thresholds{{TrackRemaining: true}}}
		c.Metadata = &core.Metadata{TypedFilterMetadata: map[string]*anypb.Any{
			"services": {TypeUrl: "type.googleapis.com/some.mesh.Services", Value: []byte(name + name)}}}
		a, err := anypb.New(c)
		if err != nil {
			panic(err)
		}
		all = append(all, a)
	}
	return all
}

// message is a push of all of them, and size what the resources take.
func message(delta bool, round int, resources []*anypb.Any) (b []byte, size int) {
	var m proto.Message
	if delta {
		d := &discovery.DeltaDiscoveryResponse{TypeUrl: upstream.Clusters, Nonce: fmt.Sprint(round)}
		for i, a := range resources {
			d.Resources = append(d.Resources, &discovery.Resource{Name: fmt.Sprintf("outbound|80||service-%05d.some-namespace.svc.cluster.local", i),
				Version: fmt.Sprint(round), Resource: a})
		}
		m = d
	} else {
		m = &discovery.DiscoveryResponse{TypeUrl: upstream.Clusters, Nonce: fmt.Sprint(round), VersionInfo: fmt.Sprint(round), Resources: resources}
	}
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b, len(b)
}

// pair is a control plane that sends what it is given, and a client of it or of an edge.
type pair struct {
	push  chan []byte
	acked chan struct{}
	rpc   grpc.ClientStream
	edge  *Edge
}

func dial(tb testing.TB, socket string) *grpc.ClientConn {
	tb.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStaticStreamWindowSize(window), grpc.WithStaticConnWindowSize(window))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	return conn
}

func listen(tb testing.TB, socket string) net.Listener {
	tb.Helper()
	lis, err := net.Listen("unix", socket)
	if err != nil {
		tb.Fatal(err)
	}
	return lis
}

func newPair(tb testing.TB, delta, through bool) *pair {
	tb.Helper()
	p := &pair{push: make(chan []byte), acked: make(chan struct{})}
	dir := tb.TempDir()
	server := grpc.NewServer(grpc.ForceServerCodecV2(newCodec()), grpc.UnknownServiceHandler(func(_ any, rpc grpc.ServerStream) error {
		for {
			q := request{delta: delta}
			if err := rpc.RecvMsg(&q); err != nil {
				return err
			}
			if q.Nonce != "" {
				p.acked <- struct{}{}
			}
			b, ok := <-p.push
			if !ok {
				return nil
			}
			if err := rpc.SendMsg(b); err != nil {
				return err
			}
		}
	}))
	lis := listen(tb, filepath.Join(dir, "up"))
	go func() { _ = server.Serve(lis) }()
	tb.Cleanup(func() { close(p.push); server.Stop() })
	conn := dial(tb, filepath.Join(dir, "up"))
	if through {
		p.edge = New(Config{Upstream: conn})
		lis := listen(tb, filepath.Join(dir, "edge"))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- p.edge.Serve(ctx, lis) }()
		tb.Cleanup(func() {
			cancel()
			<-done
		})
		conn = dial(tb, filepath.Join(dir, "edge"))
	}
	ctx, cancel := context.WithCancel(context.Background())
	tb.Cleanup(cancel)
	var err error
	p.rpc, err = conn.NewStream(ctx, &streaming, methodOf(delta), grpc.ForceCodecV2(newCodec()), grpc.MaxCallRecvMsgSize(maxMessage))
	if err != nil {
		tb.Fatal(err)
	}
	p.send(tb, delta, "")
	return p
}

// send asks for clusters, or answers.
func (p *pair) send(tb testing.TB, delta bool, nonce string) {
	tb.Helper()
	q := request{delta: delta}
	q.Type, q.Nonce = upstream.Clusters, nonce
	if err := p.rpc.SendMsg(q.Bytes(delta)); err != nil {
		tb.Fatal(err)
	}
}

// round is a push from its begin to its acknowledgement.
func (p *pair) round(tb testing.TB, delta bool, b []byte) {
	tb.Helper()
	p.push <- b
	m := scanned{delta: delta}
	if err := p.rpc.RecvMsg(&m); err != nil {
		tb.Fatal(err)
	}
	p.send(tb, delta, m.Nonce)
	m.buffer.Free()
	<-p.acked
}

// BenchmarkPush is a push of 1,000 clusters that all differ, to its acknowledgement, in
// turns without an edge between and with one: how much that adds, in ms and as a ratio, by
// the medians, and by the fastest tenth, which a machine that does other things tells too.
func BenchmarkPush(b *testing.B) {
	for _, delta := range []bool{false, true} {
		b.Run(fmt.Sprintf("delta=%v", delta), func(b *testing.B) {
			pairs := [2]*pair{newPair(b, delta, false), newPair(b, delta, true)}
			var rounds [2][]byte
			for i := range rounds {
				rounds[i], _ = message(delta, i+1, clusters(1000, i))
			}
			var took [2][]time.Duration
			for i := 0; b.Loop(); i++ {
				for way, p := range pairs {
					began := time.Now()
					p.round(b, delta, rounds[i%2])
					took[way] = append(took[way], time.Since(began))
				}
			}
			for name, part := range map[string]int{"median": 2, "fast": 10} {
				var at [2]time.Duration
				for way, all := range took {
					slices.Sort(all)
					at[way] = all[len(all)/part]
				}
				b.ReportMetric(float64(at[1]-at[0])/1e6, name+"-ms-added")
				b.ReportMetric(float64(at[1])/float64(at[0]), name+"-ratio")
			}
		})
	}
}

// BenchmarkMemory is what an edge keeps of 20,000 clusters, for each byte of them.
func BenchmarkMemory(b *testing.B) {
	for _, delta := range []bool{false, true} {
		b.Run(fmt.Sprintf("delta=%v", delta), func(b *testing.B) {
			p := newPair(b, delta, true)
			first, _ := message(delta, 1, clusters(10, 1))
			p.round(b, delta, first)
			push, size := message(delta, 2, clusters(20_000, 2))
			before := heap()
			for b.Loop() {
				p.round(b, delta, push)
			}
			b.ReportMetric(float64(heap()-before)/float64(size), "B/B")
			runtime.KeepAlive(push)
		})
	}
}

func heap() uint64 {
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
