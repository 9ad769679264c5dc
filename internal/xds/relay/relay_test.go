package relay

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// talk is a stream by hand: every message in the order in which a test says it.
type talk struct {
	*testing.T
	*Stream
	delta  bool
	now    time.Time
	events []Event
	heard  int // nonces of the upstream's
}

func newTalk(t *testing.T, delta bool, transforms map[string]Transform) *talk {
	k := &talk{T: t, delta: delta, now: time.Unix(1000, 0)}
	r := New(Hooks{Transforms: transforms, Tell: func(ev Event) { k.events = append(k.events, ev) },
		Node: func(n []byte) []byte { return append([]byte("chandler+"), n...) }})
	k.Stream = r.Open(Kind{Delta: delta}, k.now)
	k.Connected(k.now)
	return k
}

func both(t *testing.T, test func(*testing.T, bool)) {
	t.Parallel()
	for _, delta := range []bool{false, true} {
		t.Run(fmt.Sprintf("delta=%v", delta), func(t *testing.T) {
			t.Parallel()
			test(t, delta)
		})
	}
}

// ask is a request of Envoy's.
func (k *talk) ask(q Request) {
	k.Helper()
	if err := k.FromEnvoy(q, k.now); err != nil {
		k.Fatal(err)
	}
}

func (k *talk) want(typeURL string, names ...string) { k.ask(Request{Type: typeURL, Subscribe: names}) }

// push is a response of the upstream: each resource as "name=content", "-name" is gone.
// It gives the nonce.
func (k *talk) push(typeURL, version string, resources ...string) string {
	k.Helper()
	k.heard++
	p := Response{Type: typeURL, Version: version, Nonce: fmt.Sprint("up", k.heard)}
	for _, r := range resources {
		if name, ok := strings.CutPrefix(r, "-"); ok {
			p.Removed = append(p.Removed, name)
			continue
		}
		name, content, _ := strings.Cut(r, "=")
		p.Items = append(p.Items, item(k.delta, typeURL, name, content, content))
	}
	if err := k.FromUpstream(p); err != nil {
		k.Fatal(err)
	}
	return p.Nonce
}

// gets expects the next response to Envoy, written as push's.
func (k *talk) gets(typeURL string, resources ...string) *Response {
	k.Helper()
	p := k.ToEnvoy(k.now)
	if p == nil {
		k.Fatalf("Envoy gets nothing, want %q", resources)
	}
	var got []string
	for _, it := range p.Items {
		got = append(got, it.Name+"="+contentOf(it.body(k.delta)))
	}
	for _, n := range p.Removed {
		got = append(got, "-"+n)
	}
	if p.Type != typeURL || !slices.Equal(got, resources) {
		k.Fatalf("Envoy gets of %s %q, want of %s %q", p.Type, got, typeURL, resources)
	}
	return p
}

func (k *talk) getsNothing() {
	k.Helper()
	if p := k.ToEnvoy(k.now); p != nil {
		k.Fatalf("Envoy gets %d resources of %s, want nothing", len(p.Items), p.Type)
	}
}

func (k *talk) ack(p *Response, names ...string) {
	k.Helper()
	q := Request{Type: p.Type, Nonce: p.Nonce}
	if !k.delta {
		q.Version, q.Subscribe = p.Version, names
	}
	k.ask(q)
}

func (k *talk) nack(p *Response, words string, names ...string) {
	k.Helper()
	q := Request{Type: p.Type, Nonce: p.Nonce, Error: appendText(nil, 2, words)}
	if !k.delta {
		q.Subscribe = names
	}
	k.ask(q)
}

// tells expects the next request to the upstream.
func (k *talk) tells(typeURL string) *Request {
	k.Helper()
	q := k.ToUpstream()
	if q == nil || q.Type != typeURL {
		k.Fatalf("the upstream is told %+v, want something of %s", q, typeURL)
	}
	return q
}

// answers expects an answer to a response of the upstream's.
func (k *talk) answers(typeURL, nonce, no string) *Request {
	k.Helper()
	q := k.tells(typeURL)
	if q.Nonce != nonce || words(q.Error) != no {
		k.Fatalf("the upstream is answered %q with %q, want %q with %q", q.Nonce, words(q.Error), nonce, no)
	}
	return q
}

func (k *talk) tellsNothing() {
	k.Helper()
	if q := k.ToUpstream(); q != nil {
		k.Fatalf("the upstream is told %+v, want nothing", q)
	}
}

const endpointType = typePrefix + "envoy.config.endpoint.v3.ClusterLoadAssignment"

// Responses go on in the order in which they came, whatever Envoy has not answered, and
// the upstream is answered when Envoy has.
func TestOrderAndAnswers(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		k := newTalk(t, delta, nil)
		k.want(clusterType)
		k.want(endpointType, "a")
		k.want(listenerType)
		for _, typeURL := range []string{clusterType, endpointType, listenerType} {
			k.tells(typeURL)
		}
		first := k.push(clusterType, "1", "a=1")
		second := k.push(endpointType, "1", "a=1")
		third := k.push(listenerType, "1", "l=1")
		c, e, l := k.gets(clusterType, "a=1"), k.gets(endpointType, "a=1"), k.gets(listenerType, "l=1")
		k.tellsNothing()
		k.ack(e, "a")
		k.answers(endpointType, second, "")
		k.ack(c)
		k.nack(l, "Error adding/updating listener(s) l: no filter chains")
		if q := k.answers(clusterType, first, ""); !delta && q.Version != "1" {
			t.Errorf("acknowledged as version %q", q.Version)
		}
		if q := k.answers(listenerType, third, "Error adding/updating listener(s) l: no filter chains"); q.Version != "" {
			t.Errorf("refused with version %q as the last good one", q.Version)
		}
		k.tellsNothing()
		if ev := k.events[len(k.events)-1]; !slices.Equal(ev.Refused, []string{"l"}) || len(ev.Ours) != 0 {
			t.Errorf("the owner is told %+v", ev)
		}
	})
}

// The upstream is told of the node as Envoy tells it, with what the owner adds.
func TestNode(t *testing.T) {
	t.Parallel()
	k := newTalk(t, true, nil)
	k.ask(Request{Type: clusterType, Node: []byte("n")})
	k.want(listenerType)
	if got := string(k.tells(clusterType).Node); got != "chandler+n" {
		t.Errorf("node %q", got)
	}
	if q := k.tells(listenerType); q.Node != nil {
		t.Errorf("node %q again", q.Node)
	}
	k.Disconnected()
	k.Connected(k.now)
	if q := k.tells(clusterType); q.Node == nil {
		t.Error("the next stream begins without a node")
	}
	k.ask(Request{Type: endpointType, Subscribe: []string{"a"}, Node: []byte("n")})
	k.tells(listenerType)
	if q := k.tells(endpointType); q.Node == nil {
		t.Error("Envoy says its node in every message, the upstream does not hear it")
	}
}

// What was refused and comes again at once waits, longer each time; what differs does
// not wait, nor do names that Envoy asks for.
func TestRefusedAgain(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		k := newTalk(t, delta, nil)
		k.want(routeType, "a")
		k.tells(routeType)
		pushes := 0
		storm := func() (nonce string) { pushes++; return k.push(routeType, "1", "a=bad") }
		nonce := storm()
		for pause := range 3 {
			k.nack(k.gets(routeType, "a=bad"), "no", "a")
			k.answers(routeType, nonce, "no")
			nonce = storm()
			k.getsNothing()
			k.tellsNothing()
			if wait := k.Wake().Sub(k.now); wait != minPause<<pause {
				t.Errorf("after %d refusals it waits %v", pause+1, wait)
			}
			k.now = k.Wake()
		}
		k.nack(k.gets(routeType, "a=bad"), "no", "a")
		k.answers(routeType, nonce, "no")
		nonce = storm()
		k.getsNothing()
		if delta {
			k.want(routeType, "b")
			if q := k.tells(routeType); !slices.Equal(q.Subscribe, []string{"b"}) || q.Nonce != "" {
				t.Errorf("the upstream is told %+v", q)
			}
		} else {
			k.want(routeType, "a", "b")
			if q := k.answers(routeType, nonce, "no"); !slices.Equal(q.Subscribe, []string{"a", "b"}) {
				t.Errorf("the upstream is asked for %q", q.Subscribe)
			}
		}
		k.push(routeType, "2", "a=good")
		k.gets(routeType, "a=good")
	})
}

// A stream to the upstream that is lost is begun anew with what Envoy wants and has;
// Envoy hears only what differs.
func TestResume(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		k := newTalk(t, delta, nil)
		k.want(clusterType)
		k.want(routeType, "r")
		k.push(clusterType, "1", "a=1", "b=1")
		k.ack(k.gets(clusterType, "a=1", "b=1"))
		k.push(routeType, "1", "r=1")
		k.ack(k.gets(routeType, "r=1"), "r")
		for k.ToUpstream() != nil {
		}
		resume := func() (clusters, routes *Request) {
			k.Disconnected()
			k.tellsNothing()
			k.Connected(k.now)
			return k.tells(clusterType), k.tells(routeType)
		}
		clusters, routes := resume()
		k.getsNothing()
		if len(clusters.Subscribe) != 0 || !slices.Equal(routes.Subscribe, []string{"r"}) || clusters.Nonce != "" {
			t.Errorf("it asks %+v and %+v", clusters, routes)
		}
		if delta && !maps.Equal(clusters.Held, map[string]string{"a": "1", "b": "1"}) || !delta && clusters.Version != "1" {
			t.Errorf("it holds %v, version %q", clusters.Held, clusters.Version)
		}

		// What Envoy refused, and what it was not asked yet, is to come again.
		k.push(clusterType, "2", "a=2", "b=2")
		k.nack(k.gets(clusterType, "a=2", "b=2"), "Error adding/updating cluster(s) a: bad")
		k.want(routeType, "r", "s")
		clusters, routes = resume()
		if delta && !maps.Equal(clusters.Held, map[string]string{"a": "", "b": "2"}) || !delta && clusters.Version+routes.Version != "" {
			t.Errorf("it holds %v, versions %q and %q", clusters.Held, clusters.Version, routes.Version)
		}
	})
}

// A state-of-the-world request is said when no answer is due: it would be taken for one.
func TestNamesWithTheAnswer(t *testing.T) {
	t.Parallel()
	k := newTalk(t, false, nil)
	k.want(routeType, "a")
	k.tells(routeType)
	nonce := k.push(routeType, "1", "a=1")
	p := k.gets(routeType, "a=1")
	k.ask(Request{Type: routeType, Subscribe: []string{"a", "b"}})
	k.tellsNothing()
	k.ack(p, "a", "b")
	if q := k.answers(routeType, nonce, ""); !slices.Equal(q.Subscribe, []string{"a", "b"}) || q.Version != "1" {
		t.Errorf("told %+v", q)
	}
	k.ask(Request{Type: routeType, Version: "1", Nonce: p.Nonce, Subscribe: []string{"b"}})
	if q := k.answers(routeType, nonce, ""); !slices.Equal(q.Subscribe, []string{"b"}) || q.Version != "1" {
		t.Errorf("told %+v", q)
	}
}

// Subscriptions of the incremental protocol go up as Envoy makes them, also with a
// stale nonce.
func TestDeltaSubscriptions(t *testing.T) {
	t.Parallel()
	k := newTalk(t, true, nil)
	k.ask(Request{Type: routeType, Subscribe: []string{"b", "a"}})
	if q := k.tells(routeType); !slices.Equal(q.Subscribe, []string{"a", "b"}) {
		t.Errorf("begun with %q", q.Subscribe)
	}
	k.ask(Request{Type: routeType, Nonce: "stale", Subscribe: []string{"d", "c"}, Unsubscribe: []string{"a"}})
	k.ask(Request{Type: routeType, Subscribe: []string{"a", "*"}, Unsubscribe: []string{"d"}})
	if q := k.tells(routeType); !slices.Equal(q.Subscribe, []string{"c", "a", "*"}) || !slices.Equal(q.Unsubscribe, []string{"d"}) || q.Nonce != "" {
		t.Errorf("told %+v", q)
	}
	k.Disconnected()
	k.ask(Request{Type: routeType, Unsubscribe: []string{"*", "a", "b"}})
	k.want(clusterType)
	k.want(clusterType, "c")
	k.Connected(k.now)
	if q := k.tells(routeType); !slices.Equal(q.Subscribe, []string{"c"}) || len(q.Unsubscribe) != 0 {
		t.Errorf("begun anew with %+v", q)
	}
	if q := k.tells(clusterType); !slices.Equal(q.Subscribe, []string{"*", "c"}) {
		t.Errorf("begun anew with %q, without everything", q.Subscribe)
	}
	k.ask(Request{Type: routeType, Unsubscribe: []string{"c"}})
	k.tells(routeType)
	k.Disconnected()
	k.Connected(k.now)
	k.tells(clusterType)
	k.tellsNothing() // without a name it would ask for everything
}

// An Envoy that starts is given at once what the one before acknowledged; one that holds
// it already is not, and what it holds of which nobody knows is asked for.
func TestMemory(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		k := newTalk(t, delta, nil)
		k.want(clusterType)
		k.push(clusterType, "1", "a=1", "b=1")
		k.ack(k.gets(clusterType, "a=1", "b=1"))
		k.push(clusterType, "2", "a=2", "b=2", "c=2")
		k.nack(k.gets(clusterType, "a=2", "b=2", "c=2"), "Error adding/updating cluster(s) a: bad")
		k.want(listenerType)
		k.push(listenerType, "1")
		k.ack(k.gets(listenerType))
		k.Close(k.now)

		r := New(Hooks{})
		r.Restore(reread(t, k.relay.Views()))
		k.Stream = r.Open(Kind{Delta: delta}, k.now)
		k.want(clusterType)
		k.gets(clusterType, "a=1", "b=2", "c=2")
		k.want(listenerType)
		k.gets(listenerType) // there is none: Envoy need not wait
		k.getsNothing()
		k.Close(k.now)
		if !delta {
			return
		}
		k.Stream = r.Open(Kind{Delta: true}, k.now)
		k.ask(Request{Type: clusterType, Held: map[string]string{"a": "1", "b": "1", "x": "1"}})
		k.gets(clusterType, "b=2", "c=2")
		k.Connected(k.now)
		if q := k.tells(clusterType); !maps.Equal(q.Held, map[string]string{"a": "1", "b": "", "c": "", "x": ""}) {
			t.Errorf("the upstream is told that Envoy holds %v", q.Held)
		}
		k.push(clusterType, "2", "-x")
		k.gets(clusterType, "-x")
	})
}

// An Envoy that goes on under another relay keeps what that one cannot give yet: with all
// that there is in a response, the response waits. So does the first one to a new process.
func TestNotYetAfterRestore(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		before := newTalk(t, delta, nil)
		before.want(listenerType)
		before.push(listenerType, "1", "l=1", "m=1")
		before.ack(before.gets(listenerType, "l=1", "m=1"))
		for _, another := range []bool{false, true} {
			missing, byParts := "l", delta && !another
			k := newTalk(t, delta, map[string]Transform{listenerType: func(r Resource) ([]byte, bool) { return r.Body, r.Name != missing }})
			k.Stream.Close(k.now)
			k.relay.Restore(reread(t, before.relay.Views()))
			if another {
				k.relay.Another()
			}
			k.Stream = k.relay.Open(Kind{Delta: delta}, k.now)
			k.Connected(k.now)
			k.want(listenerType)
			if byParts {
				k.ack(k.gets(listenerType, "m=1"))
			}
			k.getsNothing()
			nonce := k.push(listenerType, "2", "l=2", "m=1", "n=1")
			if byParts {
				k.ack(k.gets(listenerType, "m=1", "n=1"))
			}
			k.getsNothing()
			missing = ""
			k.relay.Changed(listenerType, "l")
			if byParts {
				k.ack(k.gets(listenerType, "l=2"))
			} else {
				k.ack(k.gets(listenerType, "l=2", "m=1", "n=1"))
			}
			k.tells(listenerType)
			k.answers(listenerType, nonce, "")
		}
	})
}

// What Envoy does not want any more, and what no stream wanted for long, is forgotten.
func TestForgotten(t *testing.T) {
	t.Parallel()
	k := newTalk(t, true, map[string]Transform{routeType: func(r Resource) ([]byte, bool) { return r.Body, r.Name != "c" }})
	k.want(routeType, "a", "b", "c")
	k.push(routeType, "1", "a=1", "b=1", "c=1")
	k.ack(k.gets(routeType, "a=1", "b=1"))
	var left []string
	told := func() []string {
		for _, ev := range k.events {
			left = append(left, ev.Left...)
		}
		k.events = nil
		return left
	}
	remembered := func() []string { return sorted(k.relay.shelf(shelfKey{routeType, true}).items) }
	other := k.relay.Open(Kind{Delta: true}, k.now)
	if err := other.FromEnvoy(Request{Type: routeType, Subscribe: []string{"a"}}, k.now); err != nil {
		t.Fatal(err)
	}
	k.ask(Request{Type: routeType, Unsubscribe: []string{"a", "c", "nobody"}})
	if got := told(); !slices.Equal(got, []string{"c"}) {
		t.Errorf("told of %q; another stream asks for a, and what never went on is wanted no more", got)
	}
	if err := other.FromEnvoy(Request{Type: routeType, Unsubscribe: []string{"a"}}, k.now); err != nil {
		t.Fatal(err)
	}
	other.Close(k.now)
	if got := remembered(); !slices.Equal(got, []string{"b"}) || !slices.Equal(told(), []string{"c", "a"}) {
		t.Errorf("remembered are %q, told is of %q", got, told())
	}
	k.Close(k.now)
	k.now = k.now.Add(100 * keepLeft)
	k.relay.Trim(k.now)
	k.Stream = k.relay.Open(Kind{Delta: true}, k.now)
	k.relay.Trim(k.now.Add(keepLeft - 1))
	if got := remembered(); !slices.Equal(got, []string{"b"}) {
		t.Errorf("of an Envoy that was away %q are remembered", got)
	}
	before := k.relay.Changes()
	k.relay.Trim(k.now.Add(keepLeft))
	if !slices.Equal(told(), []string{"c", "a", "b"}) {
		t.Errorf("told of %q", told())
	}
	if got := remembered(); len(got) != 0 || k.relay.Changes() == before {
		t.Errorf("%q are remembered though nobody asked", got)
	}
}

// A transform's bytes have a version of their own, and go out when it says something
// else; types that are named by others go first.
func TestTransform(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		suffix := ""
		edit := func(r Resource) ([]byte, bool) {
			if suffix == "" {
				return r.Body, true
			}
			return message(r.Name, contentOf(r.Body)+suffix), true
		}
		k := newTalk(t, delta, map[string]Transform{listenerType: edit, clusterType: edit})
		k.want(listenerType)
		k.want(clusterType)
		k.push(listenerType, "1", "l=1", "m=1")
		p := k.gets(listenerType, "l=1", "m=1")
		k.ack(p)
		k.push(clusterType, "1", "c=1")
		k.ack(k.gets(clusterType, "c=1"))
		for k.ToUpstream() != nil {
		}
		suffix = "+slots"
		k.relay.Changed(listenerType)
		k.relay.Changed(clusterType, "c", "nobody")
		k.ack(k.gets(clusterType, "c=1+slots"))
		edited := k.gets(listenerType, "l=1+slots", "m=1+slots")
		if edited.Version == p.Version && !delta || delta && edited.Items[0].Version == p.Items[0].Version {
			t.Errorf("version %q stayed", p.Version)
		}
		k.nack(edited, "Error adding/updating listener(s) l: slots\nm: slots")
		k.tellsNothing() // it is no fault of the upstream
		if ev := k.events[len(k.events)-1]; len(ev.Ours) != 2 || len(ev.Refused) != 2 || ev.Words == "" {
			t.Errorf("the owner is told %+v", ev)
		}
		k.relay.Changed(listenerType)
		k.getsNothing() // the same was refused
		suffix = "+others"
		k.relay.Changed(listenerType, "m")
		if delta {
			k.gets(listenerType, "m=1+others")
		} else {
			k.gets(listenerType, "l=1", "m=1+others")
		}
	})
}

// What is not there yet is held back, and nothing else is; it goes on when it is there.
func TestNotYet(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		missing := "a"
		ready := func(r Resource) ([]byte, bool) { return r.Body, r.Name != missing }
		k := newTalk(t, delta, map[string]Transform{extensionType: ready, listenerType: ready})
		k.want(extensionType, "a", "b")
		k.tells(extensionType)
		nonce := k.push(extensionType, "1", "a=1", "b=1")
		k.ack(k.gets(extensionType, "b=1"), "a", "b")
		k.answers(extensionType, nonce, "")
		k.getsNothing()
		nonce = k.push(extensionType, "2", "a=2")
		k.getsNothing()
		k.answers(extensionType, nonce, "") // it may go on to the next
		missing = ""
		k.relay.Changed(extensionType, "a")
		k.nack(k.gets(extensionType, "a=2"), "no", "a", "b")
		k.answers(extensionType, nonce, "no") // late

		// All there is has the version before in its place.
		missing = "l"
		k.want(listenerType)
		k.tells(listenerType)
		nonce = k.push(listenerType, "1", "l=1")
		k.getsNothing()
		k.answers(listenerType, nonce, "")
		missing = ""
		k.relay.Changed(listenerType)
		k.ack(k.gets(listenerType, "l=1"))
		missing = "l"
		k.push(listenerType, "2", "l=2", "m=2")
		if delta {
			k.gets(listenerType, "m=2")
		} else {
			k.gets(listenerType, "l=1", "m=2")
		}
	})
}

// Extensions go one by one: what is bad harms nothing else, and the upstream is told
// once. What Envoy had is sent after it, so that Envoy does not remember the refused; and
// that is not sent again, as Envoy would acknowledge it without taking it.
func TestExtensions(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		k := newTalk(t, delta, nil)
		names := []string{"a", "b"}
		k.want(extensionType, names...)
		k.tells(extensionType)
		k.push(extensionType, "1", "a=1", "b=1")
		k.ack(k.gets(extensionType, "a=1"), names...)
		k.ack(k.gets(extensionType, "b=1"), names...)
		k.tells(extensionType)
		nonce := k.push(extensionType, "2", "a=bad", "b=2")
		a, b := k.gets(extensionType, "a=bad"), k.gets(extensionType, "b=2")
		k.nack(a, "no", names...)
		k.tellsNothing()
		k.ack(b, names...)
		k.answers(extensionType, nonce, "no")
		k.ack(k.gets(extensionType, "a=1"), names...)
		k.tellsNothing()

		nonce = k.push(extensionType, "2", "a=bad")
		k.getsNothing()
		k.now = k.Wake()
		k.getsNothing()
		k.answers(extensionType, nonce, "no")
		if items := k.relay.shelf(shelfKey{extensionType, delta}).items; contentOf(items["a"].item.body(delta)) != "1" {
			t.Error("what was refused is remembered as good")
		}

		// The same Envoy on another stream, also of another relay. If it were sent what it
		// had, it would remember the refused no more.
		k.Close(k.now)
		if !delta {
			return
		}
		r := New(Hooks{})
		r.Restore(reread(t, k.relay.Views()))
		k.Stream = r.Open(Kind{Delta: delta}, k.now)
		k.Connected(k.now)
		k.ask(Request{Type: extensionType, Subscribe: names, Held: map[string]string{"a": "1", "b": "2"}})
		k.tells(extensionType)
		nonce = k.push(extensionType, "3", "a=bad", "b=3")
		k.ack(k.gets(extensionType, "b=3"), names...)
		k.getsNothing()
		k.answers(extensionType, nonce, "no")
		k.Close(k.now)
		r.Another()
		k.Stream = r.Open(Kind{Delta: delta}, k.now)
		k.Connected(k.now)
		k.want(extensionType, names...)
		k.gets(extensionType, "a=1")
		k.gets(extensionType, "b=3")
		k.push(extensionType, "3", "a=bad")
		k.gets(extensionType, "a=bad")
	})
}

// What is refused together with others is sent alone after it.
func TestRefusedTogether(t *testing.T) {
	t.Parallel()
	k := newTalk(t, true, nil)
	k.want(routeType, "a", "b", "c")
	k.tells(routeType)
	nonce := k.push(routeType, "1", "a=1", "b=bad", "c=1")
	k.nack(k.gets(routeType, "a=1", "b=bad", "c=1"), "no")
	k.answers(routeType, nonce, "no")
	a, b, c := k.gets(routeType, "a=1"), k.gets(routeType, "b=bad"), k.gets(routeType, "c=1")
	k.getsNothing()
	k.ack(a)
	k.nack(b, "no")
	k.ack(c)
	k.tellsNothing()
	k.getsNothing()
}

// Of a type that Envoy does not answer a bounded number of responses goes out, then the
// newest of what comes; other types pass.
func TestUnanswered(t *testing.T) {
	t.Parallel()
	k := newTalk(t, true, nil)
	k.want(clusterType)
	k.want(endpointType, "a")
	var last *Response
	for i := range maxUnanswered {
		k.push(clusterType, "1", fmt.Sprint("a=", i))
		last = k.gets(clusterType, fmt.Sprint("a=", i))
	}
	k.push(clusterType, "1", "a=old", "b=old")
	k.push(clusterType, "1", "a=new", "-b", "-c")
	k.getsNothing()
	k.push(endpointType, "1", "a=1")
	k.gets(endpointType, "a=1")
	k.ack(last)
	k.nack(k.gets(clusterType, "a=new", "-b", "-c"), "Error adding/updating cluster(s) a: bad")

	// Nothing wakes a stream for what Envoy must answer first.
	for i := range maxUnanswered {
		k.push(clusterType, "1", fmt.Sprint("d=", i))
		last = k.gets(clusterType, fmt.Sprint("d=", i))
	}
	k.push(clusterType, "1", "a=new")
	if !k.Wake().IsZero() {
		t.Error("it wakes though nothing can be sent")
	}
	k.ack(last)
	if k.Wake().IsZero() {
		t.Error("it does not wake for what was refused")
	}
}

// Everything of a response passes that nobody here needs to know, and a sign that a
// resource lives on does not replace it.
func TestBytes(t *testing.T) {
	t.Parallel()
	body := &anypb.Any{TypeUrl: clusterType, Value: append(message("c", "1"), 0xfa, 0x3f, 1, 'u')}
	resource := &discovery.Resource{Name: "c", Version: "1", Aliases: []string{"x"}, Resource: body, Ttl: durationpb.New(time.Second),
		CacheControl: &discovery.Resource_CacheControl{DoNotCache: true}, Metadata: &core.Metadata{}}
	resource.ProtoReflect().SetUnknown([]byte{0xfa, 0x3f, 1, 'r'})
	plane := &core.ControlPlane{Identifier: "pilot"}
	wrapped, err := anypb.New(resource)
	if err != nil {
		t.Fatal(err)
	}
	for delta, sent := range map[bool]proto.Message{
		true: &discovery.DeltaDiscoveryResponse{TypeUrl: clusterType, Nonce: "up", SystemVersionInfo: "v", ControlPlane: plane,
			Resources: []*discovery.Resource{resource}, RemovedResources: []string{"d"}, ResourceErrors: []*discovery.ResourceError{{}}},
		false: &discovery.DiscoveryResponse{TypeUrl: clusterType, Nonce: "up", VersionInfo: "v", ControlPlane: plane, Canary: true,
			Resources: []*anypb.Any{wrapped}, ResourceErrors: []*discovery.ResourceError{{}}},
	} {
		sent.ProtoReflect().SetUnknown([]byte{0xfa, 0x3f, 1, 'm'})
		b, err := proto.Marshal(sent)
		if err != nil {
			t.Fatal(err)
		}
		p, err := ReadResponse(b, delta)
		if err != nil {
			t.Fatal(err)
		}
		k := newTalk(t, delta, nil)
		k.want(clusterType)
		if err := k.FromUpstream(p); err != nil {
			t.Fatal(err)
		}
		out := k.ToEnvoy(k.now)
		out.Nonce = "up"
		got := sent.ProtoReflect().New().Interface()
		if err := proto.Unmarshal(out.Bytes(delta), got); err != nil || !proto.Equal(got, sent) {
			t.Errorf("delta=%v: Envoy gets %v (%v), want %v", delta, got, err, sent)
		}

		alive := proto.CloneOf(resource)
		alive.Resource = nil
		raw, _ := proto.Marshal(alive)
		if !delta {
			w, _ := anypb.New(alive)
			raw, _ = proto.Marshal(w)
		}
		it, err := readItem(raw, delta)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.FromUpstream(Response{Type: clusterType, Items: []*Item{it}}); err != nil {
			t.Fatal(err)
		}
		if out := k.ToEnvoy(k.now); len(out.Items) != 1 || string(out.Items[0].Raw) != string(raw) {
			t.Errorf("delta=%v: a sign of life does not pass", delta)
		}
		if e := k.feeds[clusterType].entries["c"]; contentOf(e.up.body(delta)) != "1" {
			t.Errorf("delta=%v: a sign of life replaces the resource", delta)
		}

		edited := k.feeds[clusterType].entries["c"].up.with(delta, message("c", "2"))
		again, err := readItem(edited.Raw, delta)
		if err != nil || contentOf(again.body(delta)) != "2" || again.Version != edited.Version || !slices.Equal(again.aliases, []string{"x"}) {
			t.Errorf("delta=%v: edited it is %+v (%v)", delta, again, err)
		}
	}
}

// A request is read as it is written.
func TestRequests(t *testing.T) {
	t.Parallel()
	want := &discovery.DeltaDiscoveryRequest{Node: &core.Node{Id: "n"}, TypeUrl: "t", ResourceNamesSubscribe: []string{"a", "b"},
		ResourceNamesUnsubscribe: []string{"c"}, InitialResourceVersions: map[string]string{"x": "1", "y": ""}, ResponseNonce: "5"}
	b, _ := proto.Marshal(want)
	q, err := ReadRequest(b, true)
	got := &discovery.DeltaDiscoveryRequest{}
	if err != nil || proto.Unmarshal(q.Bytes(true), got) != nil || !proto.Equal(got, want) {
		t.Errorf("%v became %v (%v)", want, got, err)
	}
	wanted := &discovery.DiscoveryRequest{Node: &core.Node{Id: "n"}, TypeUrl: "t", ResourceNames: []string{"b", "a"}, ResponseNonce: "5", VersionInfo: "v"}
	b, _ = proto.Marshal(wanted)
	q, err = ReadRequest(b, false)
	had := &discovery.DiscoveryRequest{}
	if err != nil || proto.Unmarshal(q.Bytes(false), had) != nil || !proto.Equal(had, wanted) {
		t.Errorf("%v became %v (%v)", wanted, had, err)
	}
}

// Aliases and collections are what Envoy asked for.
func TestAliases(t *testing.T) {
	t.Parallel()
	w := subscription{}
	w.change([]string{"r/host", "xdstp://a/t/*", "routes"}, nil)
	for name, aliases := range map[string][]string{"r/vhost": {"r/other", "r/host"}, "xdstp://a/t/one": nil, "r/host": nil, "routes/host": nil} {
		if !w.isWanted(name, aliases) {
			t.Errorf("%s is not wanted", name)
		}
	}
	if w.isWanted("r/vhost", []string{"r/other"}) || w.isWanted("xdstp://a/u/one", nil) {
		t.Error("what was not asked for is wanted")
	}
}

// A virtual host that was asked for by its alias is remembered under that, and forgotten
// with it.
func TestVirtualHosts(t *testing.T) {
	t.Parallel()
	k := newTalk(t, true, nil)
	k.want(virtualHostType, "r/host", "r/other")
	host := item(true, virtualHostType, "r/vhost", "1", "1")
	host.Raw = appendBytes(host.Raw, resourceAliases, "r/host")
	it, err := readItem(host.Raw, true)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := k.FromUpstream(Response{Type: virtualHostType, Items: []*Item{it}}); err != nil {
			t.Fatal(err)
		}
		k.ack(k.gets(virtualHostType, "r/vhost=1"))
	}
	k.Close(k.now)
	k.Stream = k.relay.Open(Kind{Delta: true}, k.now)
	k.want(virtualHostType, "r/host", "r/other")
	k.ack(k.gets(virtualHostType, "r/vhost=1"))
	k.ask(Request{Type: virtualHostType, Unsubscribe: []string{"r/host"}})
	if got := sorted(k.relay.shelf(shelfKey{virtualHostType, true}).items); len(got) != 0 {
		t.Errorf("%q is remembered, and nobody wants it", got)
	}
}

// What one stream makes the relay keep is bounded.
func TestLimits(t *testing.T) {
	t.Parallel()
	k := newTalk(t, true, nil)
	for i := range maxTypes {
		k.want(fmt.Sprint("type", i), "a")
	}
	if err := k.FromEnvoy(Request{Type: "one more"}, k.now); err == nil || !strings.Contains(err.Error(), "types") {
		t.Errorf("one type more: %v", err)
	}
	names := make([]string, maxNames+1)
	for i := range names {
		names[i] = fmt.Sprint(i)
	}
	if err := k.FromEnvoy(Request{Type: "type0", Subscribe: names}, k.now); err == nil {
		t.Error("there is no limit of names")
	}
	k.size = maxBytes
	if err := k.FromUpstream(Response{Type: "type1", Items: []*Item{item(true, "type1", "a", "1", "1")}}); err == nil {
		t.Error("there is no limit of bytes")
	}
}

// reread gives views as they are read after they were written.
func reread(t testing.TB, views []View) []View {
	t.Helper()
	again := make([]View, len(views))
	for i, v := range views {
		var b bytes.Buffer
		n, err := v.WriteTo(&b)
		if err != nil || n != int64(b.Len()) {
			t.Fatal(n, b.Len(), err)
		}
		if again[i], err = ReadView(b.Bytes()); err != nil {
			t.Fatal(err)
		}
	}
	return again
}

// Only the view of a type that changed counts a change, and one that is restored and
// acknowledged again is the same.
func TestViewsChange(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		k := newTalk(t, delta, nil)
		k.want(clusterType)
		k.want(endpointType, "a")
		k.push(clusterType, "1", "a=1")
		k.ack(k.gets(clusterType, "a=1"))
		k.push(endpointType, "1", "a=1")
		k.ack(k.gets(endpointType, "a=1"), "a")
		before := k.relay.Views()
		k.push(endpointType, "2", "a=2")
		k.ack(k.gets(endpointType, "a=2"), "a")
		after := k.relay.Views()
		if len(before) != 2 || len(after) != 2 || before[0].Changes != after[0].Changes || before[1].Changes == after[1].Changes {
			t.Errorf("%+v became %+v", before, after)
		}
		k.Close(k.now)
		r := New(Hooks{})
		r.Restore(reread(t, after))
		k.Stream = r.Open(Kind{Delta: delta}, k.now)
		k.want(clusterType)
		k.ack(k.gets(clusterType, "a=1"))
		k.Connected(k.now)
		k.push(clusterType, "1", "a=1")
		k.ack(k.gets(clusterType, "a=1"))
		if r.Changes() != 0 {
			t.Errorf("%d changes of what is the same", r.Changes())
		}
	})
}
