package deltaserver

import (
	"context"
	"fmt"
	"slices"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/xds/quiet"
)

// sink is a stream that takes everything.
type sink struct {
	grpc.ServerStream
	ctx  context.Context
	last any
}

func (s *sink) Context() context.Context                          { return s.ctx }
func (s *sink) Send(*discoveryv3.DeltaDiscoveryResponse) error    { return nil }
func (s *sink) Recv() (*discoveryv3.DeltaDiscoveryRequest, error) { return nil, context.Canceled }
func (s *sink) SendMsg(v any) error                               { s.last = v; return nil }

// What one more agent costs when a resource changes does not depend on how large that is,
// and is a few allocations; one that the change does not concern costs none.
func TestToldAgentCosts(t *testing.T) {
	const told, untold = 16, 0 // allocations; codec and answer, not gRPC
	view := []*Resource{{Name: "kind/ns/name", Version: "1", Body: &anypb.Any{TypeUrl: thing, Value: make([]byte, 1<<20)}}}
	s := New(Config{TypeURL: thing, View: func(chandler.Node) ([]*Resource, bool) { return view, true }})
	str := &sink{ctx: t.Context()}
	st := &stream{server: s, str: str, node: chandler.Node{Name: "n"}, name: "n"}
	if err := st.take(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: thing}); err != nil {
		t.Fatal(err)
	}
	version := 1
	next := func() {
		version++
		view = []*Resource{{Name: "kind/ns/name", Version: fmt.Sprint(version), Body: view[0].Body}}
		if _, err := view[0].encode(); err != nil {
			t.Fatal(err)
		}
		st.mu.Lock()
		st.waiting = true
		st.mu.Unlock()
	}
	alone := testing.AllocsPerRun(50, next)
	both := testing.AllocsPerRun(50, func() {
		next()
		st.refresh()
		if parts := str.last.(quiet.Parts); len(parts) != 2 || len(parts[0]) < 1<<20 || &parts[0][0] != &view[0].encoded[0] {
			t.Fatal("what is sent is not what is shared")
		}
	})
	if n := both - alone; n > told {
		t.Errorf("to tell an agent takes %v allocations, at most %d are to be", n, told)
	}
	st.waiting = true
	if n := testing.AllocsPerRun(50, st.refresh); n > untold+1 {
		t.Errorf("an agent to whom nothing is new takes %v allocations", n)
	}
}

// An answer in parts reads as the message that it stands for.
func TestAnswerInParts(t *testing.T) {
	t.Parallel()
	body := func(s string) *anypb.Any { return &anypb.Any{TypeUrl: thing, Value: []byte(s)} }
	a := &answer{
		typeURL: thing, nonce: "7", from: "one", removed: []string{"gone", "gone too"},
		changed: []*Resource{{Name: "a", Version: "1", Body: body("one")}, {Name: "b", Version: "2", Body: body("two")}},
	}
	want := &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl: thing, Nonce: "7", RemovedResources: a.removed, ControlPlane: &corev3.ControlPlane{Identifier: "one"},
		Resources: []*discoveryv3.Resource{{Name: "a", Version: "1", Resource: body("one")}, {Name: "b", Version: "2", Resource: body("two")}},
	}
	for range 2 { // what is shared is as good the second time
		parts, err := a.encode()
		if err != nil {
			t.Fatal(err)
		}
		got := &discoveryv3.DeltaDiscoveryResponse{}
		if err := proto.Unmarshal(slices.Concat(parts...), got); err != nil || !proto.Equal(got, want) {
			t.Fatalf("%v, %v", got, err)
		}
	}
}
