package deltaclient

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler/internal/testenv/leaks"
)

const typeURL = "type.googleapis.com/test.Thing"

func TestMain(m *testing.M) { leaks.Main(m) }

// server is a control plane whose streams the test plays by hand.
type server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	streams chan *peer
}

type peer struct {
	discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	done chan error
}

func (s *server) DeltaAggregatedResources(str discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	p := &peer{str, make(chan error, 1)}
	select {
	case s.streams <- p:
	case <-str.Context().Done():
		return nil
	}
	select {
	case err := <-p.done:
		return err
	case <-str.Context().Done():
		return nil
	}
}

func listen(t *testing.T) (*server, *bufconn.Listener) {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	s := &server{streams: make(chan *peer)}
	g := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, s)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return s, l
}

// run starts a client towards listeners by name; a nil one refuses.
func run(t *testing.T, cfg Config, listeners map[string]*bufconn.Listener) {
	t.Helper()
	for name := range listeners {
		if len(cfg.Targets) < len(listeners) {
			cfg.Targets = append(cfg.Targets, "passthrough:///"+name)
		}
	}
	cfg.TypeURL, cfg.Node = typeURL, &corev3.Node{Id: "n"}
	cfg.Dial = []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, name string) (net.Conn, error) {
			if l := listeners[name]; l != nil {
				return l.DialContext(ctx)
			}
			return nil, errors.New("refused")
		}),
	}
	if cfg.Handle == nil {
		cfg.Handle = func(Update) error { return nil }
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- New(cfg).Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func await[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(time.Minute):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func response(nonce, name, version string, removed ...string) *discoveryv3.DeltaDiscoveryResponse {
	r := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: nonce, RemovedResources: removed}
	if name != "" {
		r.Resources = []*discoveryv3.Resource{{Name: name, Version: version, Resource: &anypb.Any{TypeUrl: typeURL, Value: []byte("body of " + name)}}}
	}
	return r
}

func recv(t *testing.T, p *peer) *discoveryv3.DeltaDiscoveryRequest {
	t.Helper()
	r, err := p.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func send(t *testing.T, p *peer, r *discoveryv3.DeltaDiscoveryResponse) {
	t.Helper()
	if err := p.Send(r); err != nil {
		t.Fatal(err)
	}
}

func TestStreamSaysWhatIsKnownAndAnswersEveryUpdate(t *testing.T) {
	s, l := listen(t)
	updates := make(chan Update, 10)
	connected := make(chan bool, 10)
	run(t, Config{
		Known: func() map[string]string { return map[string]string{"a": "1"} },
		Handle: func(u Update) error {
			updates <- u
			if len(u.Changed) > 0 && u.Changed[0].Name == "bad" {
				return errors.New("cannot\nread " + strings.Repeat("x", 10_000))
			}
			return nil
		},
		Connected: func(ok bool, _ string, _ error) { connected <- ok },
	}, map[string]*bufconn.Listener{"one": l})

	p := await(t, s.streams)
	first := recv(t, p)
	if first.GetNode().GetId() != "n" || first.GetTypeUrl() != typeURL || first.GetInitialResourceVersions()["a"] != "1" {
		t.Errorf("first request: %v", first)
	}
	if sub := first.GetResourceNamesSubscribe(); len(sub) != 1 || sub[0] != "*" {
		t.Errorf("subscribed to %q", sub)
	}

	send(t, p, response("n1", "", ""))
	if u := await(t, updates); !u.First || len(u.Changed) != 0 {
		t.Errorf("empty first answer became %+v", u)
	}
	if !await(t, connected) {
		t.Error("not told of the connection")
	}
	if ack := recv(t, p); ack.GetResponseNonce() != "n1" || ack.GetErrorDetail() != nil || ack.GetNode() != nil {
		t.Errorf("ACK: %v", ack)
	}

	named := response("n2", "b", "7", "a")
	named.ControlPlane = &corev3.ControlPlane{Identifier: "one"}
	send(t, p, named)
	u := await(t, updates)
	if u.First || u.From != "one" || len(u.Changed) != 1 || u.Changed[0].Name != "b" || u.Changed[0].Version != "7" || string(u.Changed[0].Body) != "body of b" || u.Removed[0] != "a" {
		t.Errorf("update: %+v", u)
	}
	recv(t, p)

	send(t, p, response("n3", "bad", "1"))
	nack := recv(t, p)
	if msg := nack.GetErrorDetail().GetMessage(); nack.GetResponseNonce() != "n3" || !strings.HasPrefix(msg, "cannot read") || len(msg) > maxDetail+64 {
		t.Errorf("NACK: %.100v", nack)
	}

	foreign := response("n4", "c", "1")
	foreign.Resources[0].Resource.TypeUrl = "type.googleapis.com/test.Other"
	send(t, p, foreign)
	if nack := recv(t, p); nack.GetErrorDetail() == nil {
		t.Error("a resource of another type was accepted")
	}
}

func TestReconnectAsksAgainWithWhatIsKnownByThen(t *testing.T) {
	s, l := listen(t)
	var version atomic.Value
	version.Store("1")
	firsts := make(chan bool, 10)
	lost := make(chan error, 10)
	run(t, Config{
		Known:  func() map[string]string { return map[string]string{"a": version.Load().(string)} },
		Handle: func(u Update) error { firsts <- u.First; return nil },
		Connected: func(ok bool, _ string, err error) {
			if !ok {
				lost <- err
			}
		},
	}, map[string]*bufconn.Listener{"one": l})

	p := await(t, s.streams)
	recv(t, p)
	send(t, p, response("1", "a", "2"))
	if !await(t, firsts) {
		t.Error("first update is not marked")
	}
	version.Store("2")
	p.done <- status.Error(codes.Unavailable, "going down")
	if err := await(t, lost); status.Code(err) != codes.Unavailable {
		t.Errorf("loss told as %v", err)
	}

	p = await(t, s.streams)
	if got := recv(t, p).GetInitialResourceVersions()["a"]; got != "2" {
		t.Errorf("second connect says version %q", got)
	}
	send(t, p, response("1", "", ""))
	if !await(t, firsts) {
		t.Error("first update of the second stream is not marked")
	}
}

func TestFailOverToTheNextTarget(t *testing.T) {
	s, l := listen(t)
	var dead *bufconn.Listener
	reached := make(chan string, 10)
	run(t, Config{
		Targets: []string{"passthrough:///dead", "passthrough:///live"},
		Connected: func(ok bool, target string, _ error) {
			if ok {
				reached <- target
			}
		},
	}, map[string]*bufconn.Listener{"dead": dead, "live": l})
	p := await(t, s.streams)
	recv(t, p)
	send(t, p, response("1", "", ""))
	if got := await(t, reached); got != "passthrough:///live" {
		t.Errorf("connected to %s", got)
	}
}

func TestSessionSharesTheConnectionAndEndsWithTheStream(t *testing.T) {
	s, l := listen(t)
	began, ended := make(chan *grpc.ClientConn, 10), make(chan struct{}, 10)
	run(t, Config{
		Session: func(ctx context.Context, conn *grpc.ClientConn) {
			began <- conn
			<-ctx.Done()
			if conn.GetState().String() == "SHUTDOWN" {
				t.Error("the connection was closed before the session had ended")
			}
			ended <- struct{}{}
		},
	}, map[string]*bufconn.Listener{"one": l})
	p := await(t, s.streams)
	recv(t, p)
	send(t, p, response("1", "", ""))
	await(t, began)
	p.done <- nil
	await(t, ended)
	p = await(t, s.streams)
	recv(t, p)
	send(t, p, response("1", "", ""))
	await(t, began)
}

func TestDelay(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		failures, targets int
		chance            float64
		want              time.Duration
	}{
		{0, 1, 0, minBackoff},
		{0, 1, 0.5, firstSpread / 2},
		{0, 1, 1, firstSpread},
		{1, 2, 1, firstSpread}, // the second target's first try
		{2, 2, 1, 2 * firstSpread},
		{3, 1, 1, MaxBackoff},
		{1000, 1, 0.5, MaxBackoff / 2},
		{1000, 1, 1, MaxBackoff},
	} {
		if got := Delay(c.failures, c.targets, c.chance); got != c.want {
			t.Errorf("Delay(%d, %d, %v) = %v, want %v", c.failures, c.targets, c.chance, got, c.want)
		}
	}
}

// A control plane that stays away is told at once, and then once a minute with how often it
// was tried: not at every try.
func TestAwayIsToldNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text strings.Builder
		began, tries := time.Now(), 0
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		c := New(Config{
			Targets: []string{"passthrough:///gone"}, TypeURL: typeURL, Node: &corev3.Node{Id: "n"},
			Handle:    func(Update) error { return nil },
			Connected: func(bool, string, error) { tries++ },
			Dial: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return nil, errors.New("refused") })},
			Log: slog.New(slog.NewTextHandler(&text, nil)),
		})
		go func() { done <- c.Run(ctx) }()
		time.Sleep(10*time.Minute + 30*time.Second)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(text.String()), "\n")
		if n := len(lines); n < 10 || n > 11 || tries < 100 {
			t.Fatalf("%d lines of %d tries in %v:\n%s", n, tries, time.Since(began), text.String())
		}
		if !strings.Contains(lines[0], " tries=1 ") || strings.Contains(lines[9], " tries=10 ") || !strings.Contains(lines[9], " tries=") {
			t.Errorf("first %s\nlater %s", lines[0], lines[9])
		}
	})
}

func TestOutlived(t *testing.T) {
	t.Parallel()
	expired := status.Error(codes.Unauthenticated, "expired")
	if !outlived(0, expired) {
		t.Error("a stream whose credential expired is waited for")
	}
	if outlived(1, expired) || outlived(0, status.Error(codes.Unavailable, "gone")) || outlived(0, errors.New("reset")) {
		t.Error("nothing holds back a fleet")
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	if err := New(Config{}).Run(t.Context()); err == nil {
		t.Error("no targets, and no error")
	}
}
