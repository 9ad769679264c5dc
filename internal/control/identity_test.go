package control_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/wire"
)

// registrar says who nodes are: nobody from elsewhere, with labels of its own.
type registrar struct {
	mu     sync.Mutex
	labels map[string]string
	err    error
}

func (r *registrar) Authenticate(_ context.Context, n chandler.Node) (chandler.Node, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n.Namespace != "istio-system" {
		return chandler.Node{}, status.Errorf(codes.PermissionDenied, "you may not act as node %s", n.ID())
	}
	n.Labels = r.labels
	return n, r.err
}

func (r *registrar) set(labels map[string]string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.labels, r.err = labels, err
}

// What a node gets, may read and may say goes by who it is, not by what it claims,
// and no longer than that is so.
func TestIdentity(t *testing.T) {
	t.Parallel()
	who := &registrar{labels: map[string]string{"app": "web"}}
	r := newRig(t)
	r.settle = func(c *control.Config) { c.Authenticator, c.Recheck = who, time.Nanosecond }
	r.restart()
	mod := module.Append()
	r.set("auth:v1", mod)
	node := chandler.Node{Namespace: "istio-system", Name: "gw", Labels: map[string]string{"app": "pay"}}
	a := r.join(node)
	r.apply("pay", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Selector = map[string]string{"app": "pay"} })
	r.await("pay", chandler.ConditionResolvedRefs, "True Resolved")
	digest := string(chandler.Digest[chandler.ModuleDigest](mod))
	if _, err := a.read(digest, 0); status.Code(err) != codes.NotFound {
		t.Errorf("bytes for a label that is only claimed: %v", err)
	}
	forged := r.join(chandler.Node{Namespace: "pay", Name: "gw"})
	forged.conns = a.conns // it never gets so far by itself
	if _, err := forged.read(digest, 0); status.Code(err) != codes.PermissionDenied {
		t.Errorf("bytes for a forged namespace: %v", err)
	}
	if err := say(t, forged.report(), wire.Report{Node: &forged.node, Sequence: 1, Full: true}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a report for a forged namespace: %v", err)
	}
	if s := r.status("pay"); s.Desired != 0 {
		t.Errorf("%d proxies are desired: a claim counts", s.Desired)
	}

	// Its labels become others while it is connected.
	who.set(map[string]string{"app": "pay"}, nil)
	att := a.has("pay", runs(mod))
	if got, err := a.read(digest, 0); err != nil || len(got) != len(mod) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	conn, err := grpc.NewClient("passthrough:///control", r.options()...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	own := &agent{t: t, node: node, conns: make(chan *grpc.ClientConn, 1)} // the stream's ends with it
	own.conns <- conn
	str := own.report()
	if err := say(t, str, wire.Report{Node: &node, Sequence: 1, Full: true, States: []chandler.AttachmentState{stateOf(att, chandler.StateInForce, 0)}}); err != nil {
		t.Fatal(err)
	}
	r.await("pay", chandler.ConditionReady, "True Ready")

	// Nobody can tell who it is: nothing changes. It is nobody: all ends.
	who.set(map[string]string{"app": "pay"}, status.Error(codes.Unavailable, "nobody can tell now"))
	if err := say(t, str, wire.Report{Sequence: 2, States: []chandler.AttachmentState{stateOf(att, chandler.StateInForce, 0)}}); err != nil {
		t.Errorf("a report, while nobody can tell: %v", err)
	}
	who.set(nil, status.Error(codes.Unauthenticated, "expired"))
	if err := say(t, str, wire.Report{Sequence: 3, States: []chandler.AttachmentState{stateOf(att, chandler.StateRejected, 1)}}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a report of nobody: %v", err)
	}
	eventually(t, func() bool { return gauge(t, r.metrics, "chandler_agents") == 0 }, func() string { return "the stream of nobody stays" })
}
