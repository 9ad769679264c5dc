package wire

import (
	"encoding/json"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
)

func seed(f *testing.F, m proto.Message) {
	f.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
}

// sameJSON compares what came back with what was read first.
func sameJSON(t *testing.T, first, again any) {
	t.Helper()
	a, errA := json.Marshal(first)
	b, errB := json.Marshal(again)
	if errA != nil || errB != nil || string(a) != string(b) {
		t.Fatalf("read %s\nthen %s (%v %v)", a, b, errA, errB)
	}
}

// FuzzReport: a report of an agent is refused in a few words, or is within bounds
// and the same when it travels on.
func FuzzReport(f *testing.F) {
	seed(f, ReportToProto(Report{
		Node: &chandler.Node{Name: "n", Namespace: "ns", Labels: map[string]string{"a": "b"}}, Sequence: 1, Full: true,
		States:  []chandler.AttachmentState{{Key: chandler.Key{Kind: "WasmPlugin", Namespace: "a", Name: "b"}, State: chandler.StateRejected, Reason: "Rejected", Message: "\x1b[1m"}},
		Removed: []chandler.Key{{Kind: "WasmPlugin", Namespace: "a", Name: "c"}},
		Facts: &chandler.Facts{
			Slots: true, More: true, Store: chandler.StoreUse{Modules: 1, Bytes: 2, Limit: 3},
			Listeners: []chandler.Listener{{Name: "in", Address: "0.0.0.0:80", Port: 80, Mode: chandler.ModeServer, Slots: []chandler.Slot{{
				Name: "chandler/authn/server/80", Type: chandler.HTTP, Phase: chandler.PhaseAuthn,
				Members: []chandler.SlotMember{{Key: chandler.Key{Kind: "WasmPlugin", Namespace: "a", Name: "b"}, StandIn: chandler.StandInDeny}},
			}}}},
			Bypassed: []chandler.Bypass{{Key: chandler.Key{Kind: "WasmPlugin", Namespace: "a", Name: "b"}, Reason: "\x1b why", At: time.Unix(1, 0)}},
		},
		Traffic: []chandler.Traffic{{Mode: chandler.ModeServer, Port: 80, Epoch: "e", Now: chandler.Answers{Classes: [5]uint64{1, 2}}}},
	}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m chandlerv1.ReportRequest
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		r, err := ReportFromProto(&m)
		if err != nil {
			if len(err.Error()) > 4<<10 {
				t.Fatalf("%d bytes of reason", len(err.Error()))
			}
			return
		}
		for _, s := range r.States {
			if len(s.Message) > MaxMessage || len(s.Reason) > 64 {
				t.Fatalf("%+v", s)
			}
		}
		if f := r.Facts; f != nil && (len(f.Listeners) > MaxListeners || len(f.Bypassed) > maxList) || len(r.Traffic) > MaxTraffic {
			t.Fatalf("%+v", r)
		}
		again, err := ReportFromProto(ReportToProto(r))
		if err != nil {
			t.Fatal(err)
		}
		sameJSON(t, r, again)
	})
}

// FuzzNode: who an agent says that it is, in an xDS request.
func FuzzNode(f *testing.F) {
	seed(f, NodeToXDS(chandler.Node{Name: "n", Namespace: "ns", Labels: map[string]string{"app": "x"}, EnvoyVersion: "1.40.0", Features: []string{"a"}}))
	seed(f, &corev3.Node{Id: "sidecar~10.0.0.1~x~y"})
	f.Fuzz(func(t *testing.T, b []byte) {
		var m corev3.Node
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		n, err := NodeFromXDS(&m)
		if err != nil {
			if len(err.Error()) > 4<<10 {
				t.Fatalf("%d bytes of reason", len(err.Error()))
			}
			return
		}
		if n.ID() != m.GetId() {
			t.Fatalf("%q says it is %q", m.GetId(), n.ID())
		}
		again, err := NodeFromXDS(NodeToXDS(n))
		if err != nil {
			t.Fatal(err)
		}
		sameJSON(t, n, again)
	})
}
