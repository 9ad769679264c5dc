package main

import (
	"crypto/rand"
	"fmt"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/assign"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/wire"
)

// kind is what a message is.
type kind int

const (
	subscribe kind = iota // an agent's first message: who it is and what it has
	push                  // a delta answer
	ack
	report
	taken // that a report was taken in, or how often traffic is to be told
	relay // a replica tells the leader of a node
	ask   // for a module
	piece // of a module
	kinds
)

// count is of messages and of their bytes, without what the transport adds.
type count struct{ Messages, Bytes int64 }

// tally counts messages by their kind.
type tally [kinds]count

func (t *tally) sum() (c count) {
	for _, k := range t {
		c.Messages += k.Messages
		c.Bytes += k.Bytes
	}
	return c
}

// The two plugins, both in the root namespace: one for everybody, one for a hundredth.
const (
	root     = "istio-system"
	pluginN  = 2
	everyone = 0
	few      = 1
	fewEvery = 100
)

func pluginOf(i int) *chandler.Plugin {
	name := [pluginN]string{"all", "few"}[i]
	p := &chandler.Plugin{
		Key: chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: root, Name: name}, UID: "uid-" + name,
		Generation: 1, Created: epoch, Type: chandler.HTTP, Phase: chandler.PhaseAuthn,
	}
	if i == few {
		p.Selector = map[string]string{"few": "yes"}
	}
	return p
}

// attachment is what a proxy is told of a plugin at a change of it, made as the control
// plane makes it; its configuration is that of "make bench-fleet". With a new module it
// names the one before, too, which is worth keeping.
func attachment(p *chandler.Plugin, change int, module int64, isNew bool) chandler.Attachment {
	digest := chandler.Digest[chandler.ModuleDigest](nil)
	m := chandler.Module{Digest: digest, Size: module, Origins: []string{"oci://registry.example/bench/append@" + string(digest)}}
	r := &chandler.Release{
		ID: release(change), Key: p.Key, UID: p.UID, Generation: int64(change),
		Program:   chandler.Program{Module: &m},
		Behaviour: assign.Behaviour(p),
	}
	r.FailStrategy = chandler.FailClose
	r.Config = fmt.Appendf(nil, `{"basic_auth_rules":[{"credentials":["ok:test","YWRtaW4zOmFkbWluMw=="],"prefix":"/productpage","request_methods":["GET","POST"]}],"change":%d}`, change)
	c := assign.Candidate{Plugin: p, Release: r, Sequence: uint64(change)}
	if isNew {
		c.Standby = []chandler.Module{m}
	}
	return assign.Attach(c)
}

func release(change int) chandler.ReleaseID {
	if change == 0 {
		return ""
	}
	return chandler.ReleaseID(wire.Version(fmt.Append(nil, change)))
}

// sizes are how large messages are, as the product's encoders have them. Numbers in them
// grow with time, which is left out.
type sizes struct {
	resource            [pluginN]int64
	answer, ack, asking int64
	node, xdsNode       int64
	version             int64          // of a resource that is held
	facts               [pluginN]int64 // of a proxy that has the plugins up to that one
	state, traffic      int64
	envelope, silent    int64 // of a report; of one that wants no answer, more
}

// measureSizes is of a control plane that is alone in its cluster, and names itself, or of one
// of several, which have no name of their own.
func measureSizes(n chandler.Node, module int64, isNew, alone bool) (s sizes, err error) {
	size := func(m proto.Message) int64 { return int64(proto.Size(m)) }
	var version string
	for i := range pluginN {
		a := attachment(pluginOf(i), 2, module, isNew)
		body, v, err := wire.MarshalAttachment(&a)
		if err != nil {
			return s, err
		}
		version = v
		s.resource[i] = size(&discoveryv3.DeltaDiscoveryResponse{Resources: []*discoveryv3.Resource{{Name: a.Key.String(), Version: v, Resource: body}}})
		s.facts[i] = size(wire.ReportToProto(wire.Report{Facts: facts(module, i)}))
	}
	key := pluginOf(everyone).Key
	answer := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: wire.AttachmentTypeURL, Nonce: "1"}
	if alone {
		answer.ControlPlane = &corev3.ControlPlane{Identifier: rand.Text()}
	}
	s.answer = size(answer)
	s.ack = size(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: wire.AttachmentTypeURL, ResponseNonce: "1"})
	s.xdsNode = size(&discoveryv3.DeltaDiscoveryRequest{Node: wire.NodeToXDS(n), TypeUrl: wire.AttachmentTypeURL, ResourceNamesSubscribe: []string{"*"}})
	s.version = size(&discoveryv3.DeltaDiscoveryRequest{InitialResourceVersions: map[string]string{key.String(): version}})
	s.asking = size(&chandlerv1.ReadRequest{Node: wire.NodeToProto(n), Digest: string(chandler.Digest[chandler.ModuleDigest](nil))})
	s.envelope = size(wire.ReportToProto(wire.Report{Sequence: 1}))
	s.silent = size(wire.ReportToProto(wire.Report{Silent: true}))
	s.node = size(wire.ReportToProto(wire.Report{Node: &n, Full: true}))
	st := state(0, 2, 2)
	s.state = size(wire.ReportToProto(wire.Report{States: []chandler.AttachmentState{st}}))
	s.traffic = size(wire.ReportToProto(wire.Report{Traffic: []chandler.Traffic{answers(time.Hour)}}))
	return s, nil
}

// takenSize is that of an answer to a report: how often traffic is to be told is in it, and
// within what time a change, if they are not zero.
func takenSize(interval, spread time.Duration) int64 {
	return int64(proto.Size(&chandlerv1.ReportResponse{
		Sequence: 1, TrafficInterval: wire.IntervalToProto(interval), Spread: wire.IntervalToProto(spread),
	}))
}

// state is what an agent says of the plugin i, of which it was told a change.
func state(i, told, inForce int) chandler.AttachmentState {
	p := pluginOf(i)
	s := chandler.AttachmentState{
		Key: p.Key, UID: p.UID, Generation: int64(told), Release: release(told), Sequence: uint64(told),
		State: chandler.StatePending, InForce: release(inForce), Since: epoch.Add(123456789),
	}
	if told == inForce {
		s.State = chandler.StateInForce
	}
	return s
}

// facts are of a proxy with one listener and the plugins up to one in it.
func facts(module int64, last int) *chandler.Facts {
	l := chandler.Listener{Name: "main", Address: "127.0.0.1:8080", Port: 8080, Mode: chandler.ModeServer}
	for _, phase := range chandler.Phases() {
		place := attach.Slot{Phase: phase, Mode: l.Mode, Port: l.Port}
		s := chandler.Slot{Name: place.Name(), Type: chandler.HTTP, Phase: phase}
		if phase == chandler.PhaseAuthn {
			for i := range last + 1 {
				s.Members = append(s.Members, chandler.SlotMember{Key: pluginOf(i).Key, Release: release(2)})
			}
		}
		l.Slots = append(l.Slots, s)
	}
	return &chandler.Facts{Slots: true, Listeners: []chandler.Listener{l}, Store: chandler.StoreUse{Modules: 1, Bytes: module, Limit: 1 << 30}}
}

// rate is how many requests a second a proxy answers, all of them well.
const rate = 20

// answers are what a proxy has answered, some time after the simulation began.
func answers(since time.Duration) chandler.Traffic {
	of := func(d time.Duration) (a chandler.Answers) {
		n := uint64(rate * d.Seconds())
		a.Classes[1], a.Latency[4] = n, n
		return a
	}
	return chandler.Traffic{Mode: chandler.ModeServer, Port: 8080, Epoch: "1", Now: of(time.Hour + since), Hour: of(time.Hour)}
}
