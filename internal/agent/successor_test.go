package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/xds/envoyads"
)

// scripted is an Envoy's stream at the agent's socket.
type scripted struct {
	*testing.T
	discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
}

func dialSlots(ctx context.Context, t *testing.T, a *Agent) *scripted {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+a.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &scripted{t, stream}
}

// asks subscribes to the slot, of which it holds that version; empty: nothing.
func (e *scripted) asks(held string) {
	req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: envoyads.TypeURL, ResourceNamesSubscribe: []string{authn}}
	if held != "" {
		req.InitialResourceVersions = map[string]string{authn: held}
	}
	_ = e.Send(req) // to a stream that has ended, perhaps
}

// takes acknowledges what it is sent, and gives its version.
func (e *scripted) takes() string {
	e.Helper()
	resp, err := e.Recv()
	if err != nil {
		e.Fatalf("it is sent nothing: %v", err)
	}
	if err := e.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: envoyads.TypeURL, ResponseNonce: resp.Nonce}); err != nil {
		e.Fatal(err)
	}
	return resp.Resources[0].Version
}

// An Envoy ends while a connection of its last moment has said nothing yet. What comes
// over that is not the next Envoy's word: nothing is claimed in force before the next one
// was sent it and acknowledged it.
func TestSuccessorBeginsWithNothing(t *testing.T) {
	leaks.Check(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	services, stop := context.WithCancel(ctx)
	g, services := errgroup.WithContext(services)
	a, v := bareAgent(t), version("a")
	dir := shortDir(t)
	a.socket, a.cfg.Restart, a.unfollow = filepath.Join(dir, "ads"), RestartOnFailure, func() {}
	v.Program.Module.Digest = ingested(t, a)
	next := func() {
		t.Helper()
		select {
		case m := <-a.inbox:
			a.step(services, m)
		case <-ctx.Done():
			t.Fatal("nothing happens")
		}
	}
	inForce := func() chandler.ReleaseID { return a.view.Load().report[0].InForce }

	if err := a.serveSlots(services, g, true); err != nil {
		t.Fatal(err)
	}
	a.step(services, message{event: EnvoyStarted{Envoy: "e", Open: true}})
	a.step(services, message{event: Assigned{Changed: []Version{v}}})
	next() // it is loaded
	first := dialSlots(ctx, t, a)
	first.asks("")
	next() // it is subscribed to
	held := first.takes()
	next() // it is acknowledged
	if inForce() != v.Release {
		t.Fatalf("%q is in force, want %q", inForce(), v.Release)
	}
	late := dialSlots(ctx, t, a)

	a.process = &envoyProcess{proc: &os.Process{Pid: 1}, err: errNotOurChild}
	if err := a.envoyEnded(services, g); err != nil {
		t.Fatal(err)
	}
	for parted := false; !parted; {
		select {
		case m := <-a.inbox:
			parted = m.parted
		case <-ctx.Done():
			t.Fatal("nothing says that it has parted")
		}
	}
	a.envoyDown(services)
	late.asks(held)
	if _, err := late.Recv(); err == nil || len(a.inbox) > 0 {
		t.Fatalf("the Envoy that has ended is heard: %v, %d events", err, len(a.inbox))
	}
	if err := a.serveSlots(services, g, true); err != nil {
		t.Fatal(err)
	}
	a.step(services, message{event: EnvoyStarted{Envoy: "e"}})
	second := dialSlots(ctx, t, a)
	second.asks("")
	next() // it is subscribed to
	if inForce() != "" || len(a.inbox) > 0 {
		t.Fatalf("%q is claimed of an Envoy that has nothing; %d events more", inForce(), len(a.inbox))
	}
	if again := second.takes(); again != held {
		t.Errorf("it begins with %s, want %s", again, held)
	}
	next() // it is acknowledged
	if inForce() != v.Release {
		t.Errorf("%q is in force, want %q", inForce(), v.Release)
	}
	stop()
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	a.loader.wait()
	a.releaseAll()
}

// While listeners are not active, agent and control plane tell what they wait for.
func TestWhatListenersWaitFor(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	slots := []attach.Slot{authnSlot, statsSlot}
	s, v := NewState(Settings{Slots: slots, Features: []string{chandler.FeatureHTTP}}), version("a")
	v.Program = chandler.Program{Lua: &chandler.Lua{InlineCode: "x"}}
	wait := func(why string) {
		t.Helper()
		if got := s.Readiness(); len(got) != 1 || !strings.Contains(got[0], why) {
			t.Errorf("not ready for %q, want %q", got, why)
		}
		if st, ok := s.Report()[v.Key]; ok && (st.State != chandler.StateReady || st.InForce != "" || !strings.Contains(st.Message, why)) {
			t.Errorf("reported: %+v, want %q", st, why)
		}
	}
	s.Step(EnvoyStarted{Envoy: "e"}, now)
	wait("which plugins belong here")
	s.Step(Assigned{Changed: []Version{v}}, now)
	wait("not asked for 2 of 2 slots")
	sent := pushesOf(s.Step(Subscribed{Slot: statsSlot.Name()}, now))
	wait("not asked for 1 of 2 slots")
	sent = append(sent, pushesOf(s.Step(Subscribed{Slot: authn}, now))...)
	for i, push := range sent {
		wait(fmt.Sprintf("not answered for %d of 2 slots", len(sent)-i))
		s.Step(Acked{Slot: push.Slot, Version: push.Version}, now)
	}
	wait("has all that it asked for")
	s.Step(Waiting{For: `the listener "web" waits for "RDS r1"`}, now)
	wait(`; the listener "web" waits for "RDS r1"`)
	s.Step(ListenersOpen{}, now)
	if why := s.Readiness(); why != nil && strings.Contains(why[0], "listeners") {
		t.Errorf("not ready for %q", why)
	}
	if st := s.Report()[v.Key]; st.Message != "" {
		t.Errorf("reported: %+v", st)
	}
}

// shortDir is a folder for sockets, whose paths are bounded.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "chandler")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
