package e2e

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/wire"
)

// tap stands between agents and their control plane. It hands everything on, keeps
// what is reported, and can ask for traffic.
type tap struct {
	chandlerv1.UnimplementedReportsServer
	chandlerv1.UnimplementedModulesServer
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	t    testing.TB
	addr string
	conn *grpc.ClientConn
	// What passes is changed by these on its way, where they are set.
	changeReport func(*chandlerv1.ReportRequest)
	changeAnswer func(*chandlerv1.ReportResponse)
	changeUpdate func(*discoveryv3.DeltaDiscoveryResponse)

	mu       sync.Mutex
	reports  []tapped
	interval time.Duration
	say      func() // answers on the newest stream
}

// tapped is a report, and when it came.
type tapped struct {
	wire.Report
	at time.Time
}

func newTap(t testing.TB, control string) *tap {
	t.Helper()
	conn, err := grpc.NewClient(control, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", loopback(0))
	if err != nil {
		t.Fatal(err)
	}
	tp := &tap{t: t, addr: lis.Addr().String(), conn: conn}
	srv := grpc.NewServer()
	chandlerv1.RegisterReportsServer(srv, tp)
	chandlerv1.RegisterModulesServer(srv, tp)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(srv, tp)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(lis) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		conn.Close()
	})
	return tp
}

// ask asks for traffic, from now on.
func (tp *tap) ask(interval time.Duration) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	tp.interval = interval
	if tp.say != nil {
		tp.say()
	}
}

// all are the reports so far.
func (tp *tap) all() []tapped {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	return append([]tapped(nil), tp.reports...)
}

// facts are those told last.
func (tp *tap) facts() *chandler.Facts {
	var f *chandler.Facts
	for _, r := range tp.all() {
		if r.Facts != nil {
			f = r.Facts
		}
	}
	return f
}

// traffic is what was told last.
func (tp *tap) traffic() []chandler.Traffic {
	var last []chandler.Traffic
	for _, r := range tp.all() {
		if len(r.Traffic) > 0 {
			last = r.Traffic
		}
	}
	return last
}

// state is what was told last of a plugin.
func (tp *tap) state(name string) chandler.AttachmentState {
	var last chandler.AttachmentState
	for _, r := range tp.all() {
		for _, s := range r.States {
			if s.Name == name {
				last = s
			}
		}
	}
	return last
}

func (tp *tap) Report(str grpc.BidiStreamingServer[chandlerv1.ReportRequest, chandlerv1.ReportResponse]) error {
	ctx, cancel := context.WithCancel(str.Context())
	defer cancel()
	to, err := chandlerv1.NewReportsClient(tp.conn).Report(ctx)
	if err != nil {
		return err
	}
	var last uint64
	tp.mu.Lock()
	tp.say = func() {
		m := &chandlerv1.ReportResponse{Sequence: last, TrafficInterval: wire.IntervalToProto(tp.interval)}
		if tp.changeAnswer != nil {
			tp.changeAnswer(m)
		}
		_ = str.Send(m)
	}
	tp.mu.Unlock()
	go func() { // ends with the call
		defer cancel()
		for {
			m, err := str.Recv()
			if err != nil {
				return
			}
			r, err := wire.ReportFromProto(m)
			if err != nil {
				tp.t.Errorf("an agent reports what is refused: %v", err)
				return
			}
			tp.mu.Lock()
			tp.reports = append(tp.reports, tapped{r, time.Now()})
			tp.mu.Unlock()
			if tp.changeReport != nil {
				tp.changeReport(m)
			}
			if to.Send(m) != nil {
				return
			}
		}
	}()
	for {
		m, err := to.Recv()
		if err != nil {
			return err
		}
		tp.mu.Lock()
		last = m.GetSequence()
		tp.say()
		tp.mu.Unlock()
	}
}

func (tp *tap) DeltaAggregatedResources(str discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	ctx, cancel := context.WithCancel(str.Context())
	defer cancel()
	to, err := discoveryv3.NewAggregatedDiscoveryServiceClient(tp.conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	go func() { // ends with the call
		defer cancel()
		for {
			m, err := str.Recv()
			if err != nil || to.Send(m) != nil {
				return
			}
		}
	}()
	for {
		m, err := to.Recv()
		if err != nil {
			return err
		}
		if tp.changeUpdate != nil {
			tp.changeUpdate(m)
		}
		if err := str.Send(m); err != nil {
			return err
		}
	}
}

func (tp *tap) Read(req *chandlerv1.ReadRequest, str grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error {
	from, err := chandlerv1.NewModulesClient(tp.conn).Read(str.Context(), req)
	if err != nil {
		return err
	}
	for {
		m, err := from.Recv()
		if err != nil {
			return str.Context().Err() // the end, or the agent's
		}
		if err := str.Send(m); err != nil {
			return err
		}
	}
}
