package upstream

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// maxRequests is how many requests are kept, the newest.
const maxRequests = 10_000

type nodeID = core.Node

// Request is what a client said, in either protocol.
type Request struct {
	// Stream counts from 1, also over restarts.
	Stream int64
	// Node is the client's, as it said it first on this stream.
	Node *core.Node
	// Authorization is the header of that name, with which the stream began.
	Authorization string
	// Type is the type URL.
	Type string
	// Subscribe and Unsubscribe are names as they came; of a state-of-the-world
	// client, Subscribe are all that it wants.
	Subscribe, Unsubscribe []string
	// Known is what a client has from a stream before: of a delta client the version
	// of each resource, of a state-of-the-world client the version under "".
	Known map[string]string
	// Acked or Nacked is the version that the request answers, Words why it is refused.
	Acked, Nacked, Words string
	// Again is how often the client refused the same once more, with nothing else said
	// by anybody in between.
	Again int
}

// ledger is what clients said.
type ledger struct {
	requests []Request
	streams  map[int64]*stream
	// opened counts streams, changed is closed at the next request or end of a stream.
	opened  int
	changed chan struct{}
}

// stream is one that is open.
type stream struct {
	service string // the type URL of a service that has one type
	shown   string // the header "authorization"
	node    *core.Node
	sent    map[string][]version       // by type URL: those from the last answered one on
	wants   map[string]map[string]bool // by type URL: names; "*" is everything
}

// version is one that was sent, and the nonce by which it is answered.
type version struct{ nonce, name string }

// answered gives the version of that type that the nonce answers.
func (s *stream) answered(typeURL, nonce string) (name string, ok bool) {
	sent := s.sent[typeURL]
	i := slices.IndexFunc(sent, func(v version) bool { return v.nonce == nonce })
	if i < 0 {
		return "", false
	}
	s.sent[typeURL] = slices.Clone(sent[i:])
	return sent[i].name, true
}

func newLedger() ledger {
	return ledger{streams: map[int64]*stream{}, changed: make(chan struct{})}
}

// Requests gives what clients said, the newest last, 10,000 at most.
func (u *Upstream) Requests() []Request {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.requests)
}

// Subscribed gives the names that clients want of a type on the streams that are open,
// sorted. "*" is everything.
func (u *Upstream) Subscribed(typeURL string) []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	names := map[string]bool{}
	for _, s := range u.streams {
		maps.Copy(names, s.wants[typeURL])
	}
	return slices.Sorted(maps.Keys(names))
}

// Acked says whether some client took the version of that type.
func (u *Upstream) Acked(typeURL, version string) bool {
	return slices.ContainsFunc(u.Requests(), func(r Request) bool { return r.Type == typeURL && r.Acked == version })
}

// Nacked gives a client's words of why it refuses that version of the type; they are
// empty as long as none does.
func (u *Upstream) Nacked(typeURL, version string) string {
	for _, r := range u.Requests() {
		if r.Type == typeURL && r.Nacked == version {
			return r.Words
		}
	}
	return ""
}

// Streams gives how many are open now, and how many there were ever.
func (u *Upstream) Streams() (open, ever int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.streams), u.opened
}

// Await waits until something holds that clients say; it ends the test if it never
// does.
func (u *Upstream) Await(what string, holds func() bool) {
	u.t.Helper()
	for deadline := time.After(bound); ; {
		u.mu.Lock()
		changed := u.changed
		u.mu.Unlock()
		if holds() {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			u.t.Fatalf("the upstream waited %v for: %s", bound, what)
		}
	}
}

// tell wakes all that wait; mu is held.
func (u *Upstream) tell() {
	close(u.changed)
	u.changed = make(chan struct{})
}

// callbacks keep the ledger.
type callbacks struct{ u *Upstream }

func (c callbacks) OnStreamOpen(ctx context.Context, id int64, service string) error {
	return c.open(ctx, id, service, false)
}

func (c callbacks) OnDeltaStreamOpen(ctx context.Context, id int64, service string) error {
	return c.open(ctx, id, service, true)
}

// open refuses the protocol that is not the variant's.
func (c callbacks) open(ctx context.Context, id int64, service string, delta bool) error {
	if delta != c.u.config.Delta {
		return status.Errorf(codes.Unimplemented, "this control plane is %s", c.u.config.Variant)
	}
	c.u.mu.Lock()
	defer c.u.mu.Unlock()
	c.u.opened++
	shown := strings.Join(metadata.ValueFromIncomingContext(ctx, "authorization"), ",")
	c.u.streams[id] = &stream{service: service, shown: shown, sent: map[string][]version{}, wants: map[string]map[string]bool{}}
	return nil
}

func (c callbacks) OnStreamClosed(id int64, _ *core.Node)      { c.closed(id) }
func (c callbacks) OnDeltaStreamClosed(id int64, _ *core.Node) { c.closed(id) }

func (c callbacks) closed(id int64) {
	c.u.mu.Lock()
	defer c.u.mu.Unlock()
	delete(c.u.streams, id)
	c.u.tell()
}

func (c callbacks) OnStreamResponse(_ context.Context, id int64, _ *discovery.DiscoveryRequest, res *discovery.DiscoveryResponse) {
	c.sent(id, res.GetTypeUrl(), version{res.GetNonce(), res.GetVersionInfo()})
}

func (c callbacks) OnStreamDeltaResponse(id int64, _ *discovery.DeltaDiscoveryRequest, res *discovery.DeltaDiscoveryResponse) {
	c.sent(id, res.GetTypeUrl(), version{res.GetNonce(), res.GetSystemVersionInfo()})
}

func (c callbacks) sent(id int64, typeURL string, v version) {
	c.u.mu.Lock()
	defer c.u.mu.Unlock()
	s := c.u.streams[id]
	s.sent[typeURL] = append(s.sent[typeURL], v)
}

func (c callbacks) OnStreamRequest(id int64, req *discovery.DiscoveryRequest) error {
	c.u.mu.Lock()
	defer c.u.mu.Unlock()
	s := c.u.streams[id]
	r := Request{Stream: id, Type: req.GetTypeUrl(), Subscribe: slices.Clone(req.GetResourceNames())}
	version, answers := s.answered(r.Type, req.GetResponseNonce())
	switch {
	case !answers && req.GetVersionInfo() != "":
		r.Known = map[string]string{"": req.GetVersionInfo()}
	case answers && req.GetErrorDetail() != nil:
		r.Nacked, r.Words = version, req.GetErrorDetail().GetMessage()
	case answers && req.GetVersionInfo() == version: // else it asks for more after a NACK
		r.Acked = version
	}
	names := map[string]bool{}
	for _, n := range r.Subscribe {
		names[n] = true
	}
	// Nothing named is everything, until something was.
	if before := s.wants[r.Type]; len(names) == 0 && (before == nil || before["*"]) {
		names["*"] = true
	}
	s.wants[r.Type] = names
	c.u.note(s, r, req.GetNode())
	return nil
}

func (c callbacks) OnStreamDeltaRequest(id int64, req *discovery.DeltaDiscoveryRequest) error {
	c.u.mu.Lock()
	defer c.u.mu.Unlock()
	s := c.u.streams[id]
	r := Request{
		Stream: id, Type: req.GetTypeUrl(), Known: maps.Clone(req.GetInitialResourceVersions()),
		Subscribe: slices.Clone(req.GetResourceNamesSubscribe()), Unsubscribe: slices.Clone(req.GetResourceNamesUnsubscribe()),
	}
	if r.Type == "" {
		r.Type = s.service
	}
	if version, answers := s.answered(r.Type, req.GetResponseNonce()); answers && req.GetErrorDetail() != nil {
		r.Nacked, r.Words = version, req.GetErrorDetail().GetMessage()
	} else if answers {
		r.Acked = version
	}
	names := s.wants[r.Type]
	if names == nil {
		names = map[string]bool{}
		s.wants[r.Type] = names
		if len(r.Subscribe) == 0 {
			names["*"] = true
		}
	}
	for _, n := range r.Subscribe {
		names[n] = true
	}
	for _, n := range r.Unsubscribe {
		delete(names, n)
	}
	c.u.note(s, r, req.GetNode())
	return nil
}

// note keeps a request; mu is held.
func (u *Upstream) note(s *stream, r Request, node *core.Node) {
	if node != nil && s.node == nil {
		s.node = proto.CloneOf(node)
	}
	r.Node, r.Authorization = s.node, s.shown
	defer u.tell()
	if n := len(u.requests); n > 0 && r.Nacked != "" && r.sameRefusal(u.requests[n-1]) {
		u.requests[n-1].Again++
		return
	}
	if len(u.requests) == maxRequests {
		u.requests = slices.Delete(u.requests, 0, maxRequests/10)
	}
	u.requests = append(u.requests, r)
}

func (r Request) sameRefusal(as Request) bool {
	return r.Stream == as.Stream && r.Type == as.Type && r.Nacked == as.Nacked && r.Words == as.Words
}

// There is no REST here.
func (callbacks) OnFetchRequest(context.Context, *discovery.DiscoveryRequest) error { return nil }
func (callbacks) OnFetchResponse(*discovery.DiscoveryRequest, *discovery.DiscoveryResponse) {
}
