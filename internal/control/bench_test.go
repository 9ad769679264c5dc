package control_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/wire"
)

// BenchmarkPush measures from one change of configuration to the moment at which
// the last of a thousand agents has it. All of them share the machine, so the
// figure holds their side too.
func BenchmarkPush(b *testing.B) {
	const agents = 1000
	r := newRig(b)
	r.set("auth:v1", module.Append())
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	r.await("auth", chandler.ConditionResolvedRefs, "True Resolved")

	ctx, cancel := context.WithCancel(context.Background())
	var wg, round sync.WaitGroup
	round.Add(agents)
	began := time.Now()
	var conn *grpc.ClientConn
	for i := range agents {
		if i%50 == 0 { // streams a connection
			var err error
			if conn, err = grpc.NewClient("passthrough:///control", r.options()...); err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
		}
		str, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
		if err != nil {
			b.Fatal(err)
		}
		node := wire.NodeToXDS(chandler.Node{Namespace: "istio-system", Name: fmt.Sprint(i)})
		if err := str.Send(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: wire.AttachmentTypeURL}); err != nil {
			b.Fatal(err)
		}
		wg.Go(func() {
			for {
				resp, err := str.Recv()
				if err != nil {
					return
				}
				if err := str.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: wire.AttachmentTypeURL, ResponseNonce: resp.GetNonce()}); err != nil {
					return
				}
				round.Done()
			}
		})
	}
	round.Wait()
	var mem runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&mem)
	connected := time.Since(began)

	n := 0
	for b.Loop() {
		n++
		round.Add(agents)
		r.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Wasm.Config = fmt.Appendf(nil, `{"n":%d}`, n) })
		round.Wait()
	}
	b.StopTimer()
	b.ReportMetric(float64(connected.Milliseconds()), "ms-to-connect")
	b.ReportMetric(float64(mem.HeapInuse+mem.StackInuse)/(1<<20), "MiB-both-sides")
	cancel()
	wg.Wait()
}
