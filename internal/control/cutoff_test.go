package control_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/testenv/module"
)

// A replica whose source is silent serves its agents until another's speaks; then
// it sends them there, as long as that one answers at all.
func TestFault_F53_CutOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, cutOff) // on a machine that stalls, who answers late counts as away
}

func cutOff(t *testing.T) {
	all := idleCluster(t, "a", "b")
	a, b := all.replicas["a"], all.replicas["b"]
	var ahead atomic.Int64 // of everybody's clock
	now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	for _, r := range all.replicas {
		r.settle = func(cfg *control.Config) { cfg.Now = now }
	}
	var speaks atomic.Bool // b's source; a's is silent from the start
	a.peers.Heard = func() time.Time { return time.Time{} }
	b.peers.Heard = func() time.Time {
		if speaks.Load() {
			return now()
		}
		return time.Time{}
	}
	a.peers.Addresses = func(context.Context) []string { return []string{"b"} }
	b.peers.Addresses = nil
	asked := make(chan string) // a asks
	a.peers.Dial = func(to string) (*grpc.ClientConn, error) {
		select {
		case asked <- to:
		case <-t.Context().Done():
		}
		return all.dial(to)
	}
	all.start("a")
	all.start("b")
	mod := module.Append()
	a.set("auth:v1", mod)
	a.put("auth", "oci://reg.example/auth:v1", nil)
	all.deliver(a)
	all.lead("a")
	at := a.join(gateway)
	at.has("auth", runs(mod))
	served := func(want float64) {
		t.Helper()
		agents := func() float64 { return gauge(t, a.metrics, "chandler_agents") }
		eventually(t, func() bool { return agents() == want }, func() string { return fmt.Sprintf("a serves %v agents, not %v", agents(), want) })
	}
	served(1)

	ahead.Store(int64(time.Minute))
	looks := func(n int) { // whole ones of a's: the last one has begun only
		t.Helper()
		for range n + 1 {
			select {
			case <-asked:
			case <-time.After(time.Minute):
				t.Fatal("a does not ask the other replica")
			}
		}
	}
	looks(2)
	if err := a.Ready(); err != nil {
		t.Errorf("the source is silent for all, and a is lowered: %v", err)
	}
	speaks.Store(true)
	looks(2)
	if err := a.Ready(); err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("b's source speaks, and a says of itself: %v", err)
	}
	served(0)
	speaks.Store(false)
	looks(2)
	if a.Ready() == nil {
		t.Error("a serves again, though b answers, which knows no less")
	}
	all.stop("b")
	looks(2)
	if err := a.Ready(); err != nil {
		t.Errorf("nobody else answers, and a stays lowered: %v", err)
	}
	served(1)
}
