package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/wire"
)

// clerk is a control plane that takes reports: the test sees each one and says
// when it is acknowledged, or with what the stream ends.
type clerk struct {
	chandlerv1.UnimplementedReportsServer
	reports  chan *chandlerv1.ReportRequest
	answers  chan error
	interval time.Duration // that it asks for
}

func (c *clerk) Report(stream grpc.BidiStreamingServer[chandlerv1.ReportRequest, chandlerv1.ReportResponse]) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case c.reports <- req:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
		select {
		case err := <-c.answers:
			if err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
		// What it asks for it says first, by itself.
		if c.interval > 0 {
			if err := stream.Send(&chandlerv1.ReportResponse{TrafficInterval: durationpb.New(c.interval)}); err != nil {
				return err
			}
		}
		if err := stream.Send(&chandlerv1.ReportResponse{Sequence: req.Sequence, TrafficInterval: durationpb.New(c.interval)}); err != nil {
			return err
		}
	}
}

// reporting is a reporter that reports to a clerk.
type reporting struct {
	*reporter
	*clerk
	t     *testing.T
	conn  *grpc.ClientConn
	ended chan error
}

func newReporting(t *testing.T) *reporting {
	r := &reporting{
		t:        t,
		reporter: newReporter(chandler.Node{Name: "n"}),
		clerk:    &clerk{reports: make(chan *chandlerv1.ReportRequest), answers: make(chan error)},
		ended:    make(chan error, 1),
	}
	r.conn = connect(t, func(s grpc.ServiceRegistrar) { chandlerv1.RegisterReportsServer(s, r.clerk) })
	return r
}

// run begins a stream; it ends with the returned function or the test.
func (r *reporting) run() context.CancelFunc {
	ctx, cancel := context.WithCancel(r.t.Context())
	r.t.Cleanup(cancel)
	go func() { r.ended <- r.reporter.run(ctx, r.conn) }()
	return cancel
}

// report gives the next report and leaves it without an answer.
func (r *reporting) report() *chandlerv1.ReportRequest {
	r.t.Helper()
	select {
	case req := <-r.reports:
		return req
	case <-time.After(time.Minute):
		r.t.Fatal("no report comes")
		return nil
	}
}

func (r *reporting) answer(err error) { r.answers <- err }

func (r *reporting) wantEnd() error {
	r.t.Helper()
	select {
	case err := <-r.ended:
		return err
	case <-time.After(time.Minute):
		r.t.Fatal("it does not end")
		return nil
	}
}

// states makes states of plugins, each with a message to tell them apart.
func states(messages map[string]string) map[chandler.Key]chandler.AttachmentState {
	all := map[chandler.Key]chandler.AttachmentState{}
	for name, message := range messages {
		key := chandler.Key{Kind: "WasmPlugin", Namespace: "ns", Name: name}
		all[key] = chandler.AttachmentState{Key: key, State: chandler.StateFailed, Message: message}
	}
	return all
}

func wantReport(t *testing.T, req *chandlerv1.ReportRequest, full bool, sequence uint64, changed []string, removed ...string) {
	t.Helper()
	var got []string
	for _, st := range req.States {
		got = append(got, fmt.Sprintf("%s=%s", st.Plugin.GetName(), st.Message))
	}
	slices.Sort(got)
	if !slices.Equal(got, changed) || !slices.Equal(req.Removed, removed) || req.Full != full || req.Sequence != sequence || full != (req.Node.GetName() == "n") {
		t.Errorf("report %d (full %v, node %q): %v without %v, want %d (full %v): %v without %v",
			req.Sequence, req.Full, req.Node.GetName(), got, req.Removed, sequence, full, changed, removed)
	}
}

func TestReporterSendsAllThenChanges(t *testing.T) {
	leaks.Check(t)
	r := newReporting(t)
	r.set(states(map[string]string{"a": "1", "b": "1"}), nil)
	cancel := r.run()
	wantReport(t, r.report(), true, 1, []string{"a=1", "b=1"})
	r.answer(nil)

	r.set(states(map[string]string{"a": "1", "b": "2"}), nil)
	wantReport(t, r.report(), false, 2, []string{"b=2"})
	r.answer(nil)

	r.set(states(map[string]string{"a": "1", "b": "2"}), nil) // nothing new: not sent
	r.set(states(map[string]string{"b": "2", "c": "1"}), nil)
	wantReport(t, r.report(), false, 3, []string{"c=1"}, "WasmPlugin/ns/a")
	r.answer(nil)

	cancel()
	if err := r.wantEnd(); !errors.Is(err, context.Canceled) {
		t.Errorf("it ends with %v", err)
	}
}

// A node without plugins says so, once.
func TestReporterSendsEmptyState(t *testing.T) {
	leaks.Check(t)
	r := newReporting(t)
	r.run()
	wantReport(t, r.report(), true, 1, nil)
}

// lateClerk takes reports in and says so when the test wants it to.
type lateClerk struct {
	chandlerv1.UnimplementedReportsServer
	reports chan *chandlerv1.ReportRequest
	answers chan *chandlerv1.ReportResponse
}

func (c *lateClerk) Report(stream grpc.BidiStreamingServer[chandlerv1.ReportRequest, chandlerv1.ReportResponse]) error {
	go func() {
		for {
			select {
			case resp := <-c.answers:
				_ = stream.Send(resp)
			case <-stream.Context().Done():
				return
			}
		}
	}()
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case c.reports <- req:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func newLateReporting(t *testing.T) (*reporting, *lateClerk) {
	late := &lateClerk{reports: make(chan *chandlerv1.ReportRequest, 100), answers: make(chan *chandlerv1.ReportResponse)}
	r := &reporting{t: t, reporter: newReporter(chandler.Node{Name: "n"}), clerk: &clerk{reports: late.reports}, ended: make(chan error, 1)}
	r.conn = connect(t, func(s grpc.ServiceRegistrar) { chandlerv1.RegisterReportsServer(s, late) })
	return r, late
}

// While the control plane does not say that it took reports in, a few are under way, and
// further changes become one.
func TestReporterCoalesces(t *testing.T) { synctest.Test(t, reporterCoalesces) }

func reporterCoalesces(t *testing.T) {
	r, late := newLateReporting(t)
	r.set(states(map[string]string{"a": "0"}), nil)
	r.run()
	for sequence := uint64(1); sequence <= mostUnderWay; sequence++ {
		req := r.report()
		wantReport(t, req, sequence == 1, sequence, []string{fmt.Sprintf("a=%d", sequence-1)})
		if asks := sequence%answerEvery == 1; req.GetSilent() == asks {
			t.Errorf("report %d wants an answer: %v", sequence, !req.GetSilent())
		}
		if sequence == mostUnderWay {
			break
		}
		r.set(states(map[string]string{"a": fmt.Sprint(sequence)}), nil)
	}
	for i := range 1000 {
		r.set(states(map[string]string{"a": fmt.Sprint("passing", i), "passing": "by"}), nil)
	}
	r.set(states(map[string]string{"a": "last"}), nil)
	late.answers <- &chandlerv1.ReportResponse{} // of how often traffic is to be told, say
	synctest.Wait()
	if n := len(r.reports); n > 0 {
		t.Errorf("%d more are under way", n)
	}
	late.answers <- &chandlerv1.ReportResponse{Sequence: 1}
	wantReport(t, r.report(), false, mostUnderWay+1, []string{"a=last"})
}

// In a large fleet a change is told at any moment of a while, with all that changed by
// then.
func TestReporterSpreads(t *testing.T) { synctest.Test(t, reporterSpreads) }

func reporterSpreads(t *testing.T) {
	r, late := newLateReporting(t)
	r.run()
	r.report()
	late.answers <- &chandlerv1.ReportResponse{Sequence: 1, Spread: durationpb.New(time.Hour)}
	synctest.Wait() // the answer is taken in before what comes after it
	var first, last time.Duration
	for i := range 20 {
		began := time.Now()
		r.set(states(map[string]string{"a": fmt.Sprint(i), "b": ""}), nil)
		r.set(states(map[string]string{"a": fmt.Sprint(i)}), nil)
		req := r.report()
		took := time.Since(began)
		if len(req.States) > 2 || took > wire.MaxSpread {
			t.Errorf("%v came after %v", req, took)
		}
		if first, last = min(first, took), max(last, took); i == 0 {
			first = took
		}
		if req.GetSequence()%answerEvery == 1 {
			late.answers <- &chandlerv1.ReportResponse{Sequence: req.GetSequence(), Spread: durationpb.New(200 * time.Millisecond)}
			synctest.Wait()
		}
	}
	if last-first < 50*time.Millisecond {
		t.Errorf("all came after %v to %v", first, last)
	}
}

// A new stream begins with everything, whatever was sent on the one before.
func TestReporterBeginsAnew(t *testing.T) {
	leaks.Check(t)
	r := newReporting(t)
	r.set(states(map[string]string{"a": "1", "b": "1"}), nil)
	r.run()
	r.report()
	r.answer(nil)
	r.set(states(map[string]string{"a": "2"}), nil)
	r.report()
	r.answer(status.Error(codes.ResourceExhausted, "too many"))
	if err := r.wantEnd(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("it ends with %v", err)
	}
	r.run()
	wantReport(t, r.report(), true, 1, []string{"a=2"})
}

// The end of a stream is noticed also when there is nothing to report.
func TestReporterNoticesTheEnd(t *testing.T) {
	leaks.Check(t)
	r := newReporting(t)
	r.run()
	r.report()
	r.answer(nil)
	r.set(states(map[string]string{"a": "1"}), nil)
	r.report()
	go r.answer(status.Error(codes.Aborted, "leave"))
	if err := r.wantEnd(); status.Code(err) != codes.Aborted {
		t.Errorf("it ends with %v", err)
	}

	idle := &idleClerk{leave: make(chan struct{})}
	conn := connect(t, func(s grpc.ServiceRegistrar) { chandlerv1.RegisterReportsServer(s, idle) })
	r.conn = conn
	r.run()
	close(idle.leave) // nothing is under way then
	if err := r.wantEnd(); status.Code(err) != codes.Unavailable {
		t.Errorf("it ends with %v", err)
	}
}

// idleClerk takes one report and ends the stream later.
type idleClerk struct {
	chandlerv1.UnimplementedReportsServer
	leave chan struct{}
}

func (c *idleClerk) Report(stream grpc.BidiStreamingServer[chandlerv1.ReportRequest, chandlerv1.ReportResponse]) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	if err := stream.Send(&chandlerv1.ReportResponse{Sequence: 1}); err != nil {
		return err
	}
	<-c.leave
	return status.Error(codes.Unavailable, "another replica will take it")
}

// A control plane that never answers holds nobody up at the end.
func TestReporterEndsWhileItWaits(t *testing.T) {
	leaks.Check(t)
	r := newReporting(t)
	cancel := r.run()
	r.report()
	cancel()
	if err := r.wantEnd(); !errors.Is(err, context.Canceled) {
		t.Errorf("it ends with %v", err)
	}
}

// Facts go with the first report, and with others at once; alone they wait for their
// time.
func TestReporterTellsFacts(t *testing.T) { synctest.Test(t, reporterTellsFacts) }

func reporterTellsFacts(t *testing.T) {
	r := newReporting(t)
	facts := func(n int) *chandler.Facts { return &chandler.Facts{Store: chandler.StoreUse{Modules: n}} }
	r.set(states(map[string]string{"a": "1"}), facts(1))
	cancel := r.run()
	first := r.report()
	if first.GetFacts().GetStoreModules() != 1 || !first.Full {
		t.Errorf("the first report: %v", first)
	}
	r.answer(nil)
	began := time.Now()

	r.set(states(map[string]string{"a": "2"}), facts(2))
	if req := r.report(); req.GetFacts().GetStoreModules() != 2 || len(req.States) != 1 {
		t.Errorf("with a state: %v", req)
	}
	r.answer(nil)
	r.set(states(map[string]string{"a": "3"}), facts(2))
	if req := r.report(); req.Facts != nil {
		t.Errorf("they did not change: %v", req)
	}
	r.answer(nil)
	r.set(states(map[string]string{"a": "3"}), facts(3))
	r.set(states(map[string]string{"a": "3"}), facts(4))
	if req := r.report(); req.GetFacts().GetStoreModules() != 4 || len(req.States) != 0 || time.Since(began) != factsPause {
		t.Errorf("alone, after %s: %v", time.Since(began), req)
	}
	r.answer(nil)
	r.count([]chandler.Traffic{{Mode: chandler.ModeServer, Port: 80, Epoch: "e"}})
	if req := r.report(); len(req.Traffic) != 1 || req.Facts != nil {
		t.Errorf("traffic: %v", req)
	}
	r.answer(nil)
	cancel()
	_ = r.wantEnd()
}

// What is asked for ends with the stream.
func TestReporterHearsTheInterval(t *testing.T) {
	leaks.Check(t)
	r := newReporting(t)
	r.clerk.interval = 3 * time.Second
	r.set(nil, nil)
	cancel := r.run()
	r.report()
	r.answer(nil)
	select {
	case <-r.asked:
	case <-time.After(time.Minute):
		t.Fatal("it did not hear")
	}
	if got := r.every(); got != 3*time.Second {
		t.Errorf("every %v", got)
	}
	cancel()
	_ = r.wantEnd()
	if got := r.every(); got != 0 {
		t.Errorf("every %v, without a stream", got)
	}
}
