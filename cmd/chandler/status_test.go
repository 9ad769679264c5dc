package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/api/chandler/v1/chandlerv1connect"
)

// changing is a control plane whose plugin comes into force at the third look.
type changing struct {
	chandlerv1connect.UnimplementedAdminHandler
	looks atomic.Int32
}

func (c *changing) List(context.Context, *connect.Request[chandlerv1.ListRequest]) (*connect.Response[chandlerv1.ListResponse], error) {
	st := &chandlerv1.Status{Desired: 1}
	if c.looks.Add(1) > 2 {
		st.InForce = 1
	}
	res := connect.NewResponse(&chandlerv1.ListResponse{Objects: []*chandlerv1.Object{
		{Ref: &chandlerv1.ObjectRef{Kind: "WasmPlugin", Namespace: "ns", Name: "p"}, Status: st},
	}})
	res.Header().Set("Warning", `299 chandler "another replica \"leads\""`)
	return res, nil
}

// A watch prints once, and again when something has changed, and ends well when
// it is interrupted. What the control plane warns of is said once.
func TestStatusWatch(t *testing.T) {
	t.Parallel()
	_, handler := chandlerv1connect.NewAdminHandler(&changing{})
	srv := httptest.NewServer(handler)
	defer srv.Close()
	r, w := io.Pipe()
	var said strings.Builder
	e := &env{getenv: func(string) string { return "" }, stdout: w, stderr: &said}
	root := rootCommand(e)
	root.SetArgs([]string{"status", "-w", "--server", srv.URL})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- root.ExecuteContext(ctx) }()
	var rows []string
	for lines := bufio.NewScanner(r); len(rows) < 2 && lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "ns") {
			rows = append(rows, strings.Fields(lines.Text())[2])
		}
	}
	cancel()
	go func() { _, _ = io.Copy(io.Discard, r) }() // what it still has to say
	err := <-done
	w.Close()
	if err != nil {
		t.Errorf("interrupted, it ended with %v", err)
	}
	if strings.Join(rows, " ") != "0/1 1/1" {
		t.Errorf("it showed %v", rows)
	}
	if said.String() != "Warning: another replica \"leads\"\n" {
		t.Errorf("it said %q", said.String())
	}
	http.DefaultClient.CloseIdleConnections()
}

// On a terminal a watch shows the newest alone, in a pipe one below the other.
func TestNextLook(t *testing.T) {
	t.Parallel()
	var screen, out strings.Builder
	e := &env{screen: &screen, stdout: &out}
	e.nextLook(true)
	e.nextLook(false)
	if screen.String() != "\x1b[H\x1b[2J\x1b[H\x1b[2J" || out.Len() > 0 {
		t.Errorf("%q %q", screen.String(), out.String())
	}
	e.screen = nil
	e.nextLook(true)
	e.nextLook(false)
	if out.String() != "\n" {
		t.Errorf("%q", out.String())
	}
}

// telling has one more event at each look.
type telling struct {
	chandlerv1connect.UnimplementedFleetHandler
	looks atomic.Uint64
	after atomic.Uint64
}

func (s *telling) ListEvents(_ context.Context, req *connect.Request[chandlerv1.ListEventsRequest]) (*connect.Response[chandlerv1.ListEventsResponse], error) {
	id := s.looks.Add(1)
	s.after.Store(req.Msg.After)
	return connect.NewResponse(&chandlerv1.ListEventsResponse{Events: []*chandlerv1.Event{{Id: id, Reason: "Applied", Message: fmt.Sprint("event ", id)}}}), nil
}

// A watch of events goes on behind the last that it has shown.
func TestEventsWatch(t *testing.T) {
	t.Parallel()
	s := &telling{}
	_, handler := chandlerv1connect.NewFleetHandler(s)
	srv := httptest.NewServer(handler)
	defer srv.Close()
	r, w := io.Pipe()
	e := &env{getenv: func(string) string { return "" }, stdout: w, stderr: io.Discard}
	root := rootCommand(e)
	root.SetArgs([]string{"events", "-w", "--server", srv.URL})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- root.ExecuteContext(ctx) }()
	var lines []string
	for scan := bufio.NewScanner(r); len(lines) < 3 && scan.Scan(); {
		lines = append(lines, scan.Text())
	}
	cancel()
	go func() { _, _ = io.Copy(io.Discard, r) }() // what it still has to say
	err := <-done
	w.Close()
	if err != nil {
		t.Errorf("interrupted, it ended with %v", err)
	}
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "TIME") || !strings.HasSuffix(lines[1], "event 1") || !strings.HasSuffix(lines[2], "event 2") || s.after.Load() == 0 {
		t.Errorf("it showed %q, after %d", lines, s.after.Load())
	}
	http.DefaultClient.CloseIdleConnections()
}

// advancing is a control plane whose rollout is over at the fourth look.
type advancing struct {
	chandlerv1connect.UnimplementedRolloutsHandler
	looks atomic.Int32
}

func (a *advancing) ListRollouts(context.Context, *connect.Request[chandlerv1.ListRolloutsRequest]) (*connect.Response[chandlerv1.ListRolloutsResponse], error) {
	state := chandler.RolloutProgressing
	if a.looks.Add(1) > 4 {
		state = chandler.RolloutHealthy
	}
	return connect.NewResponse(&chandlerv1.ListRolloutsResponse{Rollouts: []*chandlerv1.Rollout{
		{Ref: &chandlerv1.ObjectRef{Kind: "WasmPlugin", Namespace: "ns", Name: "p"}, State: string(state)},
	}}), nil
}

// A watch asks over one connection, however long it goes on: a control plane takes only so
// many from one machine.
func TestWatchConnections(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	mux.Handle(chandlerv1connect.NewRolloutsHandler(&advancing{}))
	mux.Handle(chandlerv1connect.NewAdminHandler(&changing{}))
	srv := httptest.NewUnstartedServer(mux)
	var connections atomic.Int32
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	var out, errs strings.Builder
	if code := run([]string{"chandler", "rollout", "status", "p", "--watch", "--server", srv.URL}, func(string) string { return "" }, nil, &out, &errs); code != 0 {
		t.Fatalf("it ends with %d: %s%s", code, out.String(), errs.String())
	}
	// net/http leaves a connection on which a request went out that it has not heard of as
	// written 50 ms after the answer.
	if n := connections.Load(); n > 2 || !strings.Contains(out.String(), "Healthy") {
		t.Errorf("over %d connections it says\n%s", n, out.String())
	}
}

// deciding is a control plane that finds out for two looks what a plugin means; until then
// there is the rollout before.
type deciding struct {
	chandlerv1connect.UnimplementedAdminHandler
	chandlerv1connect.UnimplementedRolloutsHandler
	before []*chandlerv1.Rollout
	looks  atomic.Int32
}

func (d *deciding) List(context.Context, *connect.Request[chandlerv1.ListRequest]) (*connect.Response[chandlerv1.ListResponse], error) {
	st := &chandlerv1.Status{}
	if d.looks.Add(1) <= 2 {
		st.Conditions = []*chandlerv1.Condition{{Type: string(chandler.ConditionResolvedRefs), Reason: string(chandler.CodeResolving)}}
	}
	return connect.NewResponse(&chandlerv1.ListResponse{Objects: []*chandlerv1.Object{
		{Ref: &chandlerv1.ObjectRef{Kind: "WasmPlugin", Namespace: "ns", Name: "p"}, Status: st},
	}}), nil
}

func (d *deciding) ListRollouts(context.Context, *connect.Request[chandlerv1.ListRolloutsRequest]) (*connect.Response[chandlerv1.ListRolloutsResponse], error) {
	if d.looks.Load() <= 2 {
		return connect.NewResponse(&chandlerv1.ListRolloutsResponse{Rollouts: d.before}), nil
	}
	return connect.NewResponse(&chandlerv1.ListRolloutsResponse{Rollouts: []*chandlerv1.Rollout{
		{Ref: &chandlerv1.ObjectRef{Kind: "WasmPlugin", Namespace: "ns", Name: "p"}, State: string(chandler.RolloutHealthy), To: "new"},
	}}), nil
}

// A watch that begins right after a change was applied does not take the rollout before it
// for that of the change, nor that there was none for its end.
func TestWatchBeginsBeforeTheRollout(t *testing.T) {
	t.Parallel()
	ref := &chandlerv1.ObjectRef{Kind: "WasmPlugin", Namespace: "ns", Name: "p"}
	for name, before := range map[string][]*chandlerv1.Rollout{
		"another": {{Ref: ref, State: string(chandler.RolloutDegraded), To: "old"}},
		"none":    nil,
	} {
		server := &deciding{before: before}
		mux := http.NewServeMux()
		mux.Handle(chandlerv1connect.NewRolloutsHandler(server))
		mux.Handle(chandlerv1connect.NewAdminHandler(server))
		srv := httptest.NewServer(mux)
		defer srv.Close()
		var out, errs strings.Builder
		code := run([]string{"chandler", "rollout", "status", "p", "--watch", "--server", srv.URL}, func(string) string { return "" }, nil, &out, &errs)
		if code != 0 || strings.Count(out.String(), "Release:") != 1 || !strings.Contains(out.String(), "new") {
			t.Errorf("%s: it ends with %d: %s%s", name, code, out.String(), errs.String())
		}
	}
}

// describe says of a proxy what decides its requests, also where that is no release.
func TestDescribeTellsWhatStandsIn(t *testing.T) {
	t.Parallel()
	for want, p := range map[string]*chandlerv1.ProxyStatus{
		"denied":   {StandIn: string(chandler.StandInDeny)},
		"left out": {StandIn: string(chandler.StandInPass)},
		"-":        {},
	} {
		p.Namespace, p.Node, p.Connected, p.State, p.Reason = "edge", "n1", true, string(chandler.StateFailed), string(chandler.CodeFetchFailed)
		var out strings.Builder
		e := &env{stdout: &out}
		e.describeProxies(&chandlerv1.Status{Proxies: []*chandlerv1.ProxyStatus{p}})
		if row := "edge/n1  Failed  " + want + " "; !strings.Contains(out.String(), row) {
			t.Errorf("no %q in\n%s", row, out.String())
		}
	}
}

// A wait that is interrupted says so, and not that its time was over.
func TestWaitIsInterrupted(t *testing.T) {
	t.Parallel()
	server := &waiting{}
	_, handler := chandlerv1connect.NewAdminHandler(server)
	srv := httptest.NewServer(handler)
	defer srv.Close()
	var out, said strings.Builder
	e := &env{getenv: func(string) string { return "" }, stdin: strings.NewReader("x"), stdout: &out, stderr: &said}
	root := rootCommand(e)
	root.SetArgs([]string{"apply", "--wait", "-f", "-", "--server", srv.URL})
	ctx, cancel := context.WithCancel(t.Context())
	server.looked = cancel
	err := root.ExecuteContext(ctx)
	if err == nil || err.Error() != "interrupted; wasmplugin.extensions.istio.io/p is applied: ResolvedRefs=False: FetchFailed: away" {
		t.Errorf("%v; %s%s", err, out.String(), said.String())
	}
}

// waiting is a control plane that takes a plugin and cannot fetch its module.
type waiting struct {
	chandlerv1connect.UnimplementedAdminHandler
	looks  atomic.Int32
	looked func() // called at the third look
}

var waitingFor = &chandlerv1.ObjectRef{Kind: "WasmPlugin", Namespace: "ns", Name: "p"}

func (*waiting) Apply(context.Context, *connect.Request[chandlerv1.ApplyRequest]) (*connect.Response[chandlerv1.ApplyResponse], error) {
	return connect.NewResponse(&chandlerv1.ApplyResponse{Results: []*chandlerv1.ObjectResult{{Ref: waitingFor, Action: chandlerv1.Action_ACTION_CREATED}}}), nil
}

func (w *waiting) List(context.Context, *connect.Request[chandlerv1.ListRequest]) (*connect.Response[chandlerv1.ListResponse], error) {
	if w.looks.Add(1) == 3 {
		w.looked()
	}
	st := &chandlerv1.Status{Conditions: []*chandlerv1.Condition{{
		Type: string(chandler.ConditionResolvedRefs), Status: string(chandler.False), Reason: string(chandler.CodeFetchFailed), Message: "away",
	}}}
	return connect.NewResponse(&chandlerv1.ListResponse{Objects: []*chandlerv1.Object{{Ref: waitingFor, Status: st}}}), nil
}

// An address at which something else answers is told as that.
func TestNoControlPlaneThere(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	e := &env{getenv: func(string) string { return "" }, stdout: io.Discard, stderr: io.Discard}
	root := rootCommand(e)
	root.SetArgs([]string{"status", "--server", srv.URL})
	if err := root.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "is no control plane, or an older one (404 Not Found)") {
		t.Error(err)
	}
}
