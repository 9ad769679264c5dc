package main

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/wire"
	"chandler.dev/chandler/internal/xds/deltaclient"
)

// scripted is an agent that speaks to a control plane as a real one does, and has no
// Envoy: one listener, in which everything is in force but what refuse names.
type scripted struct {
	node   chandler.Node
	refuse map[string]string // what Envoy says of plugins, by name

	mu      sync.Mutex
	had     map[string]chandler.Attachment
	changed chan struct{}
}

// proxyInScript connects "proxy NAMESPACE/NAME [KEY=VALUE ...] [!PLUGIN=WORDS ...]" for
// as long as the script runs. @ in the words is what the plugin is given.
func proxyInScript(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("proxy cannot be negated")
	}
	namespace, name, _ := strings.Cut(args[0], "/")
	s := &scripted{
		node:   chandler.Node{Namespace: namespace, Name: name, Labels: map[string]string{}, AgentVersion: "v1.2.3", EnvoyVersion: "1.40.0", Features: []string{chandler.FeatureHTTP, chandler.FeatureSlots}},
		refuse: map[string]string{}, had: map[string]chandler.Attachment{}, changed: make(chan struct{}, 1),
	}
	for _, arg := range args[1:] {
		key, value, _ := strings.Cut(arg, "=")
		if plugin, ok := strings.CutPrefix(key, "!"); ok {
			s.refuse[plugin] = value
		} else {
			s.node.Labels[key] = value
		}
	}
	up := make(chan struct{})
	taken := sync.OnceFunc(func() { close(up) })
	client := deltaclient.New(deltaclient.Config{
		Targets: []string{ts.Getenv("LISTEN")}, Dial: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())},
		TypeURL: wire.AttachmentTypeURL, Node: wire.NodeToXDS(s.node), Handle: s.handle,
		Session: func(ctx context.Context, conn *grpc.ClientConn) { s.report(ctx, conn, taken) },
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx) }()
	ts.Defer(func() { cancel(); <-done })
	select {
	case <-up:
	case <-time.After(20 * time.Second):
		ts.Fatalf("the control plane takes no report")
	}
}

func (s *scripted) handle(u deltaclient.Update) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range u.Changed {
		if len(c.Body) == 0 {
			continue
		}
		att, err := wire.UnmarshalAttachment(c.Body)
		if err != nil {
			return err
		}
		s.had[c.Name] = att
	}
	for _, name := range u.Removed {
		delete(s.had, name)
	}
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return nil
}

// report tells all there is whenever it has changed.
func (s *scripted) report(ctx context.Context, conn *grpc.ClientConn, taken func()) {
	str, err := chandlerv1.NewReportsClient(conn).Report(ctx)
	if err != nil {
		return
	}
	for sequence := uint64(1); ; sequence++ {
		if str.Send(wire.ReportToProto(s.state(sequence))) != nil {
			return
		}
		if _, err := str.Recv(); err != nil {
			return
		}
		taken()
		select {
		case <-ctx.Done():
			return
		case <-s.changed:
		}
	}
}

func (s *scripted) state(sequence uint64) wire.Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	rep := wire.Report{Node: &s.node, Sequence: sequence, Full: true}
	listener := chandler.Listener{Name: "ingress", Address: "0.0.0.0:8080", Mode: chandler.ModeClient, Port: 8080}
	for _, phase := range chandler.Phases() {
		place := attach.Slot{Phase: phase, Mode: chandler.ModeClient, Port: 8080}
		slot := chandler.Slot{Name: place.Name(), Type: chandler.HTTP, Phase: phase}
		var members []*chandler.Attachment
		for _, name := range slices.Sorted(maps.Keys(s.had)) {
			if a := s.had[name]; place.Holds(&a) {
				members = append(members, &a)
			}
		}
		slices.SortFunc(members, (*chandler.Attachment).CompareOrder)
		for _, a := range members {
			state := chandler.AttachmentState{Key: a.Key, UID: a.UID, Generation: a.Generation, Release: a.Release, Sequence: a.Sequence, State: chandler.StateInForce, InForce: a.Release, Since: time.Now()}
			member := chandler.SlotMember{Key: a.Key, Release: a.Release}
			if words := s.refuse[a.Name]; words != "" {
				state.State, state.InForce, state.StandIn = chandler.StateRejected, "", chandler.StandInDeny
				state.Reason, state.Message = chandler.CodeRejected, strings.ReplaceAll(words, "@", repeated(a))
				member.Release, member.StandIn = "", chandler.StandInDeny
			}
			rep.States, slot.Members = append(rep.States, state), append(slot.Members, member)
		}
		listener.Slots = append(listener.Slots, slot)
	}
	rep.Facts = &chandler.Facts{Slots: true, Listeners: []chandler.Listener{listener}, Store: chandler.StoreUse{Modules: len(s.had), Bytes: 2 << 20, Limit: 1 << 30}}
	return rep
}

// repeated is all that a plugin is given, as one that cannot start may write to its log.
func repeated(a *chandler.Attachment) string {
	all := string(a.Config)
	for _, v := range a.Env {
		all += " " + v.Value
	}
	return all
}

// code is "code CODE ARGUMENTS...": it runs chandler and wants an exit code.
func code(ts *testscript.TestScript, _ bool, args []string) {
	var out, errs strings.Builder
	got := run(append([]string{"chandler"}, args[1:]...), ts.Getenv, strings.NewReader(""), &out, &errs)
	if want := args[0]; want != string(rune('0'+got)) {
		ts.Fatalf("chandler %v ends with %d, want %s: %s%s", args[1:], got, want, out.String(), errs.String())
	}
}

// A test of the stand-in itself: what it says is what a control plane takes.
func TestScriptedReportsAreTaken(t *testing.T) {
	t.Parallel()
	s := &scripted{node: chandler.Node{Namespace: "edge", Name: "n"}, had: map[string]chandler.Attachment{"x": {Key: chandler.Key{Kind: "WasmPlugin", Namespace: "edge", Name: "p"}, UID: "u", Release: chandler.ReleaseID(strings.Repeat("a", 64))}}}
	m := wire.ReportToProto(s.state(1))
	rep, err := wire.ReportFromProto(m)
	if err != nil || len(rep.States) != 1 || rep.Facts == nil || len(rep.Facts.Listeners[0].Slots) != 4 {
		t.Errorf("%v (%v)", m, err)
	}
}
