package agent

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/xds/relay"
)

// between is a relay between an upstream and an Envoy that a test plays.
type between struct {
	t     *testing.T
	delta bool
	l     *relayedListeners
	relay *relay.Relay
	s     *relay.Stream
	now   time.Time
	nonce int
	sent  *relay.Response // to Envoy, not answered
	noes  []string        // that the upstream hears
}

func newBetween(t *testing.T, delta bool) *between {
	l := newRelayedListeners(func(a *anypb.Any, own []attach.Slot) (attach.Placed, error) {
		return attach.PlaceSlots(a, own, false)
	})
	b := &between{t: t, delta: delta, l: l, now: time.Unix(1_700_000_000, 0)}
	b.relay = relay.New(relay.Hooks{Transforms: map[string]relay.Transform{listenerType: l.transform}, Tell: l.tell,
		Amend: map[string]func(string, bool, string) bool{listenerType: l.amend}})
	b.s = b.relay.Open(relay.Kind{Delta: delta}, b.now)
	b.say(relay.Request{Type: listenerType, Node: []byte{}})
	b.s.Connected(b.now)
	return b
}

func (b *between) say(q relay.Request) {
	b.t.Helper()
	if err := b.s.FromEnvoy(q, b.now); err != nil {
		b.t.Fatal(err)
	}
	for q := b.s.ToUpstream(); q != nil; q = b.s.ToUpstream() {
		if q.Error != nil {
			var no statuspb.Status
			if err := proto.Unmarshal(q.Error, &no); err != nil {
				b.t.Fatal(err)
			}
			b.noes = append(b.noes, no.Message)
		}
	}
}

func anyOf(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a := new(anypb.Any)
	if err := anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		t.Fatal(err)
	}
	return a
}

// httpListener is one with a connection manager, as an upstream sends it.
func httpListener(t testing.TB, name string, port uint32, stats string) *anypb.Any {
	manager := anyOf(t, &hcmv3.HttpConnectionManager{StatPrefix: stats, HttpFilters: []*hcmv3.HttpFilter{{
		Name: "router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: anyOf(t, &routerv3.Router{})}}}})
	return anyOf(t, &listenerv3.Listener{Name: name,
		Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port}}}},
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: manager}}}}}})
}

// upstream sends a listener under a version.
func (b *between) upstream(name, version string, body *anypb.Any) {
	b.t.Helper()
	b.nonce++
	p := relay.Response{Type: listenerType, Version: version, Nonce: fmt.Sprint(b.nonce)}
	var m proto.Message = body
	if b.delta {
		m = &discoveryv3.Resource{Name: name, Version: version, Resource: body}
	}
	raw, err := proto.Marshal(m)
	if err != nil {
		b.t.Fatal(err)
	}
	p.Items = []*relay.Item{{Name: name, Version: version, Raw: raw}}
	if err := b.s.FromUpstream(p); err != nil {
		b.t.Fatal(err)
	}
}

// gets gives the listener that Envoy is sent; nil: nothing is.
func (b *between) gets() []byte {
	b.t.Helper()
	b.sent = b.s.ToEnvoy(b.now)
	if b.sent == nil || len(b.sent.Items) == 0 {
		return nil
	}
	raw, body := b.sent.Items[0].Raw, new(anypb.Any)
	if b.delta {
		var r discoveryv3.Resource
		if err := proto.Unmarshal(raw, &r); err != nil {
			b.t.Fatal(err)
		}
		return r.Resource.Value
	}
	if err := proto.Unmarshal(raw, body); err != nil {
		b.t.Fatal(err)
	}
	return body.Value
}

// answer has Envoy take what it was sent or, with words, refuse it.
func (b *between) answer(words string) {
	b.t.Helper()
	q := relay.Request{Type: listenerType, Nonce: b.sent.Nonce}
	if words != "" {
		var err error
		if q.Error, err = proto.Marshal(&statuspb.Status{Code: 13, Message: words}); err != nil {
			b.t.Fatal(err)
		}
	}
	b.say(q)
}

// told gives what is new.
func (b *between) told() relayedNews { return b.l.look() }

func (b *between) admit(ev *Laid) {
	if names := b.l.admit(ev.Slots, ev.Sites); len(names) > 0 {
		b.relay.Changed(listenerType, names...)
	}
}

// hasSlots tells whether a listener has shared slots, and whether the own one.
func hasSlot(body []byte, name string) bool { return bytes.Contains(body, []byte(name)) }

// A listener waits until it is decided what stands in it. One that Envoy refuses with slots
// in it goes on as it is, and who is meant for its traffic hears why; what the upstream
// sends next is tried with slots again.
func TestRelayedListenerRefused(t *testing.T) {
	t.Parallel()
	for _, delta := range []bool{false, true} {
		b := newBetween(t, delta)
		first := httpListener(t, "in", 8080, "one")
		b.upstream("in", "1", first)
		if got := b.gets(); got != nil {
			t.Fatalf("delta %v: it goes on before anything is decided", delta)
		}
		n := b.told()
		if n.laid == nil || len(n.laid.Slots) != 4 || len(n.laid.Sites) != 1 || len(n.laid.Bare) != 0 {
			t.Fatalf("delta %v: laid %+v", delta, n.laid)
		}
		b.admit(n.laid)
		if !hasSlot(b.gets(), authn) {
			t.Fatalf("delta %v: no slot is in it", delta)
		}
		b.answer("Error adding/updating listener(s) in: it is\x1btoo full\n")
		if got := b.gets(); !bytes.Equal(got, first.Value) {
			t.Fatalf("delta %v: it is sent again as %q", delta, got)
		}
		if n = b.told(); n.refused != "" || len(n.without) != 0 {
			t.Fatalf("delta %v: before Envoy has it: %+v", delta, n)
		}
		b.answer("")
		if len(b.noes) != 0 {
			t.Errorf("delta %v: the upstream hears %q of what is right without slots", delta, b.noes)
		}
		n = b.told()
		if len(n.without) != 1 || !strings.Contains(n.without[0], "in: it is too full") || !slices.Equal(n.without, b.l.warnings()["in"]) {
			t.Errorf("delta %v: told %q, in the status %q", delta, n.without, b.l.warnings())
		}
		if n.laid == nil || len(n.laid.Slots)+len(n.laid.Sites) != 0 || len(n.laid.Bare) != 1 || n.laid.Bare[0].Port != 8080 {
			t.Fatalf("delta %v: laid %+v", delta, n.laid)
		}
		if list := b.l.layout(); len(list) != 1 || list[0].Name != "in" || len(list[0].Slots) != 0 {
			t.Errorf("delta %v: listeners %+v", delta, list)
		}

		// Who is meant for it is not in force, and says so.
		v := version("a")
		s := NewState(Settings{Upstream: true, Features: []string{chandler.FeatureHTTP}})
		s.Step(EnvoyStarted{Envoy: "e", Open: true}, b.now)
		s.Step(Assigned{Changed: []Version{v}}, b.now)
		if st := s.Report()[v.Key]; st.State != chandler.StatePending {
			t.Errorf("before there are listeners it is %+v", st)
		}
		s.Step(*n.laid, b.now)
		if st := s.Report()[v.Key]; st.State != chandler.StateFailed || st.Reason != chandler.CodeRejected || !strings.Contains(st.Message, "in: it is too full") {
			t.Errorf("delta %v: it is %s, %s: %s", delta, st.State, st.Reason, st.Message)
		}

		b.upstream("in", "2", httpListener(t, "in", 8080, "two"))
		if b.gets() != nil {
			b.answer("")
		}
		n = b.told()
		if n.laid.Slots == nil { // it waits
			t.Fatalf("delta %v: it is not tried", delta)
		}
		b.admit(n.laid)
		if b.gets() != nil {
			b.answer("")
			n = b.told()
		}
		if n.laid == nil || len(n.laid.Slots) != 4 || len(n.laid.Bare) != 0 {
			t.Errorf("delta %v: the next version: %+v", delta, n.laid)
		}
	}
}

// What the upstream itself does wrong stays its own matter: Envoy goes on with what it has,
// and that is what is told.
func TestRelayedListenerIsBadItself(t *testing.T) {
	t.Parallel()
	for _, delta := range []bool{false, true} {
		b := newBetween(t, delta)
		b.upstream("in", "1", httpListener(t, "in", 8080, "one"))
		_ = b.gets()
		b.admit(b.told().laid)
		_ = b.gets()
		b.answer("")
		b.upstream("in", "2", httpListener(t, "in", 8081, "two"))
		if b.gets() != nil { // of the state of the world it gets what it has
			b.answer("")
		}
		n := b.told()
		if len(n.laid.Slots) != 8 {
			t.Fatalf("delta %v: of both %+v", delta, n.laid)
		}
		b.admit(n.laid)
		if !hasSlot(b.gets(), "chandler/authn/client/8081") {
			t.Fatalf("delta %v: the new one does not go on", delta)
		}
		for range 2 { // with slots and without
			if len(b.noes) != 0 {
				t.Errorf("delta %v: the upstream hears %q before it was tried without slots", delta, b.noes)
			}
			b.answer("Error adding/updating listener(s) in: no such port")
			n = b.told()
			_ = b.gets()
		}
		if len(b.noes) != 1 || !strings.Contains(b.noes[0], "no such port") {
			t.Errorf("delta %v: the upstream hears %q", delta, b.noes)
		}
		if n.laid == nil || len(n.laid.Slots) != 4 || n.laid.Slots[0].Port != 8080 || len(n.laid.Bare) != 0 {
			t.Errorf("delta %v: laid %+v", delta, n.laid)
		}
	}
}

// A slot of one plugin enters listeners that serve: Envoy's answers are awaited, and a
// change that it refuses is taken back without a word to the upstream.
func TestRelayedListenersChange(t *testing.T) {
	t.Parallel()
	own := attach.Slot{Phase: chandler.PhaseAuthn, Mode: chandler.ModeClient, Port: 8080, Network: true,
		Plugin: chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: "n"}}
	for _, delta := range []bool{false, true} {
		b := newBetween(t, delta)
		b.upstream("in", "1", httpListener(t, "in", 8080, "one"))
		_ = b.gets()
		b.admit(b.told().laid)
		before := b.gets()
		b.answer("")
		_ = b.told()

		relist := func(own []attach.Slot) {
			names := b.l.relist(own, true)
			if n := b.told(); !n.changing || n.answered != (len(names) == 0) {
				t.Errorf("delta %v: of %v: %+v", delta, names, n)
			}
			b.relay.Changed(listenerType, names...)
		}
		relist([]attach.Slot{own})
		if got := b.gets(); !hasSlot(got, own.Name()) {
			t.Fatalf("delta %v: the slot is not in it", delta)
		}
		b.answer("Error adding/updating listener(s) in: no room")
		n := b.told()
		if !strings.Contains(n.refused, "in: no room") || len(b.noes) != 0 {
			t.Fatalf("delta %v: refused: %+v, the upstream hears %q", delta, n, b.noes)
		}
		b.l.settled()
		names := b.l.relist(nil, true)
		b.relay.Changed(listenerType, names...)
		if got := b.gets(); got != nil && !bytes.Equal(got, before) {
			t.Errorf("delta %v: after it was taken back Envoy gets %q", delta, got)
		}
		if b.sent != nil {
			b.answer("")
		}
		if n = b.told(); !n.answered || n.refused != "" {
			t.Errorf("delta %v: taken back: %+v", delta, n)
		}
		b.l.settled()

		relist([]attach.Slot{own})
		_ = b.gets()
		b.answer("")
		if n = b.told(); !n.answered || n.refused != "" {
			t.Errorf("delta %v: taken: %+v", delta, n)
		}
	}
}

// What of a listener gets no plugins is told once Envoy has it, once, and in the status as
// long as it is so.
func TestRelayedListenersWarn(t *testing.T) {
	t.Parallel()
	for _, delta := range []bool{false, true} {
		b := newBetween(t, delta)
		push := func(version string, chains int) relayedNews {
			l := &listenerv3.Listener{}
			if err := httpListener(t, "in", 8080, "one").UnmarshalTo(l); err != nil {
				t.Fatal(err)
			}
			empty := anyOf(t, &hcmv3.HttpConnectionManager{StatPrefix: version})
			for range chains {
				l.FilterChains = append(l.FilterChains, &listenerv3.FilterChain{Filters: []*listenerv3.Filter{{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: empty}}}})
			}
			b.upstream("in", version, anyOf(t, l))
			if b.gets() == nil {
				b.admit(b.told().laid)
				_ = b.gets()
			}
			b.answer("")
			return b.told()
		}
		n := push("1", 1)
		if len(n.without) != 1 || !strings.Contains(n.without[0], `"in"`) || !strings.Contains(n.without[0], "filter_chains[1]") || !strings.Contains(n.without[0], "gets no plugins") {
			t.Errorf("delta %v: told %q", delta, n.without)
		}
		if n = push("2", 1); len(n.without) != 0 {
			t.Errorf("delta %v: told again %q", delta, n.without)
		}
		if n = push("3", 1000); len(n.without) != maxWarnings+1 || !strings.Contains(n.without[maxWarnings], "992 more") {
			t.Errorf("delta %v: of a thousand chains told %q", delta, n.without)
		}
		if n = push("4", 0); len(n.without)+len(b.l.warnings()["in"]) != 0 {
			t.Errorf("delta %v: of a good one told %q, in the status %q", delta, n.without, b.l.warnings())
		}
	}
}
