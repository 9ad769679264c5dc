package deltaserver_test

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/xds/deltaserver"
	"chandler.dev/chandler/internal/xds/quiet"
)

// A stream that stays goes by who its node is now: other labels, another view; no
// longer believed, no longer served; nobody can tell, nothing changes.
func TestRecheck(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	color, verdict, asked := "red", error(nil), 0
	set := func(c string, err error) (at int) {
		mu.Lock()
		defer mu.Unlock()
		color, verdict = c, err
		return asked
	}
	c := &control{}
	c.Server = deltaserver.New(deltaserver.Config{
		TypeURL: typeURL,
		Claimed: claimed,
		Authenticate: func(_ context.Context, n chandler.Node) (chandler.Node, error) {
			mu.Lock()
			defer mu.Unlock()
			asked++
			if n.ID() != "ns/a" {
				t.Errorf("asked about %q", n.ID())
			}
			return chandler.Node{Namespace: "ns", Name: "a", Labels: map[string]string{"color": color}}, verdict
		},
		View: func(n chandler.Node) ([]*deltaserver.Resource, bool) {
			name := n.Labels["color"]
			return []*deltaserver.Resource{{Name: name, Version: "1", Body: &anypb.Any{TypeUrl: typeURL, Value: []byte(name)}}}, true
		},
		Connected: func(n chandler.Node, ok bool) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.events = append(c.events, fmt.Sprintf("%s %v", n.Labels["color"], ok))
		},
	})
	l := bufconn.Listen(1 << 20)
	g := quiet.NewServer(quiet.Config{})
	c.Register(g)
	c.dial = func(ctx context.Context) (net.Conn, error) { return l.DialContext(ctx) }
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.Serve(l) })
	wg.Go(func() { c.Recheck(ctx, time.Millisecond) })
	defer wg.Wait()
	defer g.Stop()
	defer cancel()

	passes := func(from, n int) {
		t.Helper()
		eventually(t, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return asked >= from+n
		})
	}
	a := c.join(t, "ns/a", nil)
	a.holds("red@1")
	set("blue", nil)
	a.holds("blue@1")
	passes(set("green", status.Error(codes.Unavailable, "nobody can tell")), 3)
	a.holds("blue@1")
	c.mu.Lock()
	events := fmt.Sprint(c.events)
	c.mu.Unlock()
	if events != "[red true blue true]" {
		t.Errorf("events %s", events)
	}
	set("green", status.Error(codes.Unauthenticated, "expired"))
	eventually(t, func() bool { return len(c.Nodes()) == 0 })
	a.holds("blue@1")
}
