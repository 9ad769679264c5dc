package control_test

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/wire"
)

// stalling is a connection from which nothing is read any more once stall is
// closed: not even an answer to a ping goes out.
type stalling struct {
	net.Conn
	stall <-chan struct{}
	once  sync.Once
	ended chan struct{}
}

func (s *stalling) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	select {
	case <-s.stall:
		<-s.ended
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (s *stalling) Close() error {
	s.once.Do(func() { close(s.ended) })
	return s.Conn.Close()
}

// One agent in a hundred stops reading. The others get every change as if those were
// not there, and those are dropped and no longer counted as connected.
func TestFault_F69_SomeNeverRead(t *testing.T) {
	synctest.Test(t, someNeverRead) // a machine that stalls would drop them before the first look
}

func someNeverRead(t *testing.T) {
	const deaf = min(2000, crowdSize) / 100
	const agents = 99 * deaf
	r := newRig(t)
	r.set("auth:v1", module.Append())
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	r.await("auth", chandler.ConditionResolvedRefs, "True Resolved")
	c := newCrowd(t, agents)
	c.join(r)
	stall := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for i := range deaf {
		options := append(r.options(), grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			conn, err := r.dial(ctx)
			return &stalling{Conn: conn, stall: stall, ended: make(chan struct{})}, err
		}))
		conn, err := grpc.NewClient("passthrough:///control", options...)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		str, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
		if err != nil {
			t.Fatal(err)
		}
		node := wire.NodeToXDS(chandler.Node{Namespace: "istio-system", Name: fmt.Sprint("deaf-", i)})
		if err := str.Send(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: wire.AttachmentTypeURL}); err != nil {
			t.Fatal(err)
		}
		resp, err := str.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if err := str.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: wire.AttachmentTypeURL, ResponseNonce: resp.GetNonce()}); err != nil {
			t.Fatal(err)
		}
	}
	soon(t, "agents answered", c.answered.Load, agents)
	soon(t, "connected", func() int64 { return int64(r.status("auth").Desired) }, agents+deaf)

	change := func(n int, size int) time.Duration {
		began, before := time.Now(), c.version()
		r.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) {
			p.Wasm.Config = fmt.Appendf(nil, `{"n":%d,"pad":"%0*d"}`, n, size, 0)
		})
		soon(t, "agents that got the change", c.after(before), agents)
		return time.Since(began).Round(time.Millisecond)
	}
	alone := change(1, 1)
	close(stall)
	// Larger than what a connection buffers, so that the writers of those that do not
	// read stand still in the midst of it.
	const changes = 5
	beside := make([]time.Duration, 0, changes)
	for n := range changes {
		beside = append(beside, change(n+2, 100<<10))
		if d := r.status("auth").Desired; n == 0 && d != agents+deaf {
			t.Errorf("%d are connected after the first change: did the others wait for those that do not read?", d)
		}
	}
	t.Logf("%d agents had a change after %s; beside %d that do not read, and 100 KiB of it, after %v", agents, alone, deaf, beside)
	began := time.Now()
	soon(t, "connected once those that do not read are dropped", func() int64 { return int64(r.status("auth").Desired) }, agents)
	t.Logf("those were dropped %s later", time.Since(began).Round(time.Second))
	if last := change(changes+2, 1); last > time.Minute {
		t.Errorf("a change took %s", last)
	}
}
