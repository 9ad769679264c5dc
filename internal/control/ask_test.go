package control_test

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/wire"
)

type reportStream = grpc.BidiStreamingClient[chandlerv1.ReportRequest, chandlerv1.ReportResponse]

// told awaits an answer.
func told(t *testing.T, str reportStream) (sequence uint64, interval time.Duration) {
	t.Helper()
	resp, err := str.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetSequence(), wire.IntervalFromProto(resp.GetTrafficInterval())
}

func tells(t *testing.T, str reportStream, rep wire.Report) {
	t.Helper()
	if err := str.Send(wire.ReportToProto(rep)); err != nil {
		t.Fatal(err)
	}
}

func proxy(t *testing.T, c *rig, name string) control.ProxyView {
	t.Helper()
	for _, p := range c.Proxies() {
		if p.Name == name {
			return p
		}
	}
	return control.ProxyView{}
}

func traffic(epoch string, n uint64) []chandler.Traffic {
	return []chandler.Traffic{{
		Mode: chandler.ModeClient, Port: 8080, Epoch: epoch,
		Now:  chandler.Answers{Classes: [5]uint64{1: n}, Latency: [chandler.LatencyBuckets]uint64{3: n}},
		Hour: chandler.Answers{Classes: [5]uint64{4: n}},
	}}
}

func someFacts() *chandler.Facts {
	return &chandler.Facts{
		Slots: true,
		Listeners: []chandler.Listener{{
			Name: "web", Address: "127.0.0.1:8080", Port: 8080, Mode: chandler.ModeClient,
			Slots: []chandler.Slot{{Name: "chandler/authn/client/8080", Type: chandler.HTTP, Phase: chandler.PhaseAuthn}},
		}},
		Store: chandler.StoreUse{Modules: 2, Bytes: 30, Limit: 4000},
	}
}

// What is asked is heard at once, by whom it is about, and what they say is kept.
func TestTrafficIsTold(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.deliver()
	at, other := r.join(gateway), r.join(chandler.Node{Namespace: "ns", Name: "other"})
	str, node := at.report(), at.node
	tells(t, str, wire.Report{Node: &node, Sequence: 1, Full: true, Facts: someFacts()})
	if seq, interval := told(t, str); seq != 1 || interval != 0 {
		t.Fatalf("report %d answered, traffic every %v; nobody asked", seq, interval)
	}
	r.AskTraffic(3*time.Second, func(n chandler.Node) bool { return n.Name == node.Name })
	if seq, interval := told(t, str); seq != 1 || interval != 3*time.Second {
		t.Errorf("told %d, %v; want 1 and 3s", seq, interval)
	}
	tells(t, str, wire.Report{Sequence: 2, Traffic: traffic("a", 7)})
	if seq, interval := told(t, str); seq != 2 || interval != 3*time.Second {
		t.Errorf("told %d, %v; want 2 and 3s", seq, interval)
	}
	p := proxy(t, r, node.Name)
	if !slices.Equal(p.Traffic, traffic("a", 7)) || p.TrafficAt.IsZero() {
		t.Errorf("kept %+v", p.Traffic)
	}
	if p.Facts == nil || p.Facts.Listeners[0].Name != "web" || p.Facts.Store.Modules != 2 {
		t.Errorf("facts %+v", p.Facts)
	}

	ostr, onode := other.report(), other.node
	tells(t, ostr, wire.Report{Node: &onode, Sequence: 1, Full: true})
	if _, interval := told(t, ostr); interval != 0 {
		t.Errorf("another node was asked for traffic every %v", interval)
	}
	if p := proxy(t, r, onode.Name); p.Facts != nil {
		t.Errorf("facts of an agent that told none: %+v", p.Facts)
	}
	r.AskTraffic(0, nil)
	if seq, interval := told(t, str); seq != 2 || interval != 0 {
		t.Errorf("told %d, %v after nobody asks any more", seq, interval)
	}
}

// The leader hears the traffic of agents of another replica, while it asks.
func TestTrafficIsRelayed(t *testing.T) {
	t.Parallel()
	all := newCluster(t, "a", "b")
	a, b := all.replicas["a"], all.replicas["b"]
	all.deliver(a)
	all.lead("a")
	at := b.join(gateway)
	str, node := at.report(), at.node
	tells(t, str, wire.Report{Node: &node, Sequence: 1, Full: true, Facts: someFacts()})
	if _, interval := told(t, str); interval != 0 {
		t.Fatalf("asked for traffic every %v", interval)
	}
	eventually(t, func() bool { return proxy(t, a, node.Name).Facts != nil }, func() string { return "the leader has no facts" })
	a.AskTraffic(2*time.Second, nil)
	if _, interval := told(t, str); interval != 2*time.Second {
		t.Fatalf("asked for traffic every %v, want 2s", interval)
	}
	tells(t, str, wire.Report{Sequence: 2, Traffic: traffic("x", 5)})
	told(t, str)
	eventually(t, func() bool { return slices.Equal(proxy(t, a, node.Name).Traffic, traffic("x", 5)) },
		func() string { return "the leader has no traffic" })

	// A state that is told later does not make it look new.
	before := proxy(t, a, node.Name).TrafficAt
	state := chandler.AttachmentState{Key: chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: "p"}, State: chandler.StatePending}
	tells(t, str, wire.Report{Sequence: 3, States: []chandler.AttachmentState{state}})
	told(t, str)
	eventually(t, func() bool { return len(proxy(t, a, node.Name).States) == 1 }, func() string { return "the leader has no state" })
	if p := proxy(t, a, node.Name); !p.TrafficAt.Equal(before) || len(p.Traffic) != 1 {
		t.Errorf("traffic %+v of %v, it was told at %v", p.Traffic, p.TrafficAt, before)
	}
	a.AskTraffic(0, nil)
	if _, interval := told(t, str); interval != 0 {
		t.Errorf("asked for traffic every %v by nobody", interval)
	}

	// One that comes while the leader asks is asked, too, and not any more without it.
	a.AskTraffic(time.Minute, nil)
	if _, interval := told(t, str); interval != time.Minute {
		t.Errorf("asked for traffic every %v, want 1m", interval)
	}
	all.stop("a")
	if _, interval := told(t, str); interval != 0 {
		t.Errorf("asked for traffic every %v by a leader that is gone", interval)
	}
}
