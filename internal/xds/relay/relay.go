// Package relay decides what passes between one Envoy and the control plane that its
// bootstrap names, its upstream, when the agent stands between the two. It computes
// only: events go in, messages come out, and the time is given. The streams themselves
// are in relay/edge.
//
// The relay ends the protocol on both sides; it does not splice. Each stream that Envoy
// opens is a Stream, and the relay opens one of the same kind to the upstream: the same
// method, so aggregated or of one type, and the state of the world or deltas, which are
// never turned into each other. Both are read into one form, Request and Response, by
// which one loop serves both:
//
//	r := relay.New(hooks)
//	s := r.Open(kind, now)       // Envoy has opened a stream
//	s.FromEnvoy(request, now)    // it asks, acknowledges or refuses
//	s.Connected(now)             // a stream to the upstream is there
//	s.FromUpstream(response)     // the upstream says something
//	s.Disconnected()             // that stream is gone; Envoy's stays
//	r.Changed(type, names...)    // the owner says something else of a type now
//	r.Another()                  // Envoy is another process
//	s.Close(now)                 // Envoy's stream is gone
//
// After each event, and at s.Wake, ToEnvoy and ToUpstream are asked for what is to be
// sent until they give nothing. They make messages of what is newest in that moment, so
// nothing queues: a peer that reads slowly gets fewer and newer messages.
//
// For each stream and type the relay knows what Envoy wants, what the upstream says
// there is (a version and the exact bytes for each name), and what Envoy acknowledged.
// From these follows all else:
//
//   - What the upstream sends goes on in the order in which it came, whatever is not yet
//     answered. The upstream is answered when Envoy has answered, with Envoy's words.
//   - A new stream to the upstream is told what Envoy wants and what it acknowledged;
//     Envoy hears only the difference.
//   - What Envoy acknowledged is remembered (Memory). An Envoy that asks for it anew is
//     given it at once, and from then on what the upstream makes of it.
//   - What Envoy refused and the upstream sends once more, unchanged, is handed on after
//     a pause that doubles; what differs is handed on at once.
//   - Names that are the owner's (Local) are answered on the same stream, with or without
//     an upstream, which never hears of them.
//
// Resources are bytes here. What a transform does not change, and everything of a message
// that nobody here needs to know, goes on byte for byte.
package relay

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// Kind is what a stream is like. It is the same on both sides.
type Kind struct {
	// Delta is the incremental protocol; otherwise it is the state of the world.
	Delta bool
	// Type is the type URL of a service that has only one; empty: aggregated.
	Type string
}

// Resource is one resource of an upstream, as a transform sees it.
type Resource struct {
	// Type is the type URL, Name and Version are the upstream's. In the state of the
	// world a resource has no version of its own: it is empty.
	Type, Name, Version string
	// Body is the resource's message. It must not be changed.
	Body []byte
}

// Transform gives what Envoy gets in the place of a resource: Body itself for no change.
// ready false means not yet: Envoy keeps what it has until Changed says that the answer
// may be another one. It is pure and quick, and gives the same bytes for the same
// knowledge.
type Transform func(Resource) (body []byte, ready bool)

// Event tells the owner what Envoy did with resources.
type Event struct {
	Type string
	// Acked are names that Envoy has taken, Removed those that it has dropped as the upstream
	// has them no more. Left are those that it asks for no more; of types with a transform.
	Acked, Removed, Left []string
	// Refused are names of which Envoy refused at least one, in its Words. Ours are those of
	// them that it has taken as the transform made them before: that is to blame, not the
	// upstream.
	Refused, Ours []string
	Words         string
	// Without are listeners that are not in the first answer to an Envoy that has none, as they
	// are still held: it will count as ready before they come.
	Without []string
}

// Hooks are what the owner adds. All may be nil. They are called from within the
// relay's methods, and must not call these.
type Hooks struct {
	// Node gives what goes up in the place of Envoy's node message.
	Node func(node []byte) []byte
	// Transforms are by type URL; resources of others are not touched.
	Transforms map[string]Transform
	// Amend are by type URL, too. One is told that Envoy refuses what the transform made of a
	// resource, in its words; own: it has taken the resource before in another form. True
	// means that the transform makes something else of it by now: Envoy is given that, and
	// the upstream hears nothing but what Envoy says of that.
	Amend map[string]func(name string, own bool, words string) bool
	// Names tells what Envoy will ask for once it has taken a listener or a cluster.
	Names func(typeURL string, body []byte, named func(typeURL, name string))
	// Clusters tells to which clusters a resource leads traffic.
	Clusters func(typeURL string, body []byte, to func(cluster string))
	// Local are by type URL, too.
	Local map[string]Local
	// ListenersTimeout is how long Envoy waits for its first listeners before it goes on
	// without any; 0: it never does.
	ListenersTimeout time.Duration
	// Tell is told what Envoy did.
	Tell func(Event)
}

// Relay holds the streams of one Envoy, and what it acknowledged. Its methods and those
// of its streams are to be called by one goroutine at a time.
type Relay struct {
	hooks   Hooks
	memory  map[shelfKey]*shelf
	streams map[*Stream]bool
	locals  map[string]*locals
	process int       // counts those of Envoy
	since   time.Time // when the first of the streams was opened
	// unsettled is since when something is missing whenever Settled looked; zero: nothing is.
	unsettled time.Time
	changes   uint64
	opening   opening
	lacking   lacking
}

// New gives a relay without streams and without a memory.
func New(hooks Hooks) *Relay {
	if hooks.Node == nil {
		hooks.Node = func(node []byte) []byte { return node }
	}
	if hooks.Names == nil {
		hooks.Names = func(string, []byte, func(string, string)) {}
	}
	if hooks.Clusters == nil {
		hooks.Clusters = func(string, []byte, func(string)) {}
	}
	if hooks.Tell == nil {
		hooks.Tell = func(Event) {}
	}
	return &Relay{hooks: hooks, memory: map[shelfKey]*shelf{}, streams: map[*Stream]bool{}, locals: newLocals(hooks.Local)}
}

// Open begins a stream of Envoy's.
func (r *Relay) Open(kind Kind, now time.Time) *Stream {
	if len(r.streams) == 0 {
		r.since = now
	}
	s := &Stream{relay: r, kind: kind, process: r.process, feeds: map[string]*feed{}}
	r.streams[s] = true
	return s
}

// Changed says that the transform of a type, or Local's Get, may give something else now
// for those names, or for all. What differs is sent, what was held back goes on.
func (r *Relay) Changed(typeURL string, names ...string) {
	if l := r.locals[typeURL]; l != nil {
		others, more := l.changed(names)
		if !more {
			return
		}
		names = others
	}
	for s := range r.streams {
		if f := s.feeds[typeURL]; f != nil {
			f.changed(names)
		}
	}
}

// left tells the owner of names that no stream asks for any more.
func (r *Relay) left(typeURL string, names []string) {
	if r.hooks.Transforms[typeURL] == nil {
		return
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		for s := range r.streams {
			if f := s.feeds[typeURL]; f != nil && f.entries[name] != nil {
				return true
			}
		}
		return false
	})
	if len(names) > 0 {
		r.hooks.Tell(Event{Type: typeURL, Left: names})
	}
}

// ranks is the order in which types are told that change by the relay's own doing: what
// is named before what names it.
var ranks = map[string]int{
	clusterType: 1,
	typePrefix + "envoy.config.endpoint.v3.ClusterLoadAssignment":   2,
	typePrefix + "envoy.config.endpoint.v3.LbEndpoint":              2,
	typePrefix + "envoy.extensions.transport_sockets.tls.v3.Secret": 2,
	listenerType: 3,
	typePrefix + "envoy.config.route.v3.ScopedRouteConfiguration": 4,
	routeType:       4,
	virtualHostType: 5,
}

const (
	typePrefix      = "type.googleapis.com/"
	clusterType     = typePrefix + "envoy.config.cluster.v3.Cluster"
	listenerType    = typePrefix + "envoy.config.listener.v3.Listener"
	extensionType   = typePrefix + "envoy.config.core.v3.TypedExtensionConfig"
	routeType       = typePrefix + "envoy.config.route.v3.RouteConfiguration"
	virtualHostType = typePrefix + "envoy.config.route.v3.VirtualHost"
)

// rank is that of a type; those that nobody knows come last.
func rank(typeURL string) int {
	return cmp.Or(ranks[typeURL], len(ranks))
}

// sorted gives the keys of a map in an order that is always the same.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
