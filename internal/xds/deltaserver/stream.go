package deltaserver

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/wire"
)

// stream is one agent's stream in both of its roles: towards go-control-plane's
// stream loop it is the transport, whose Recv checks every request, and it is
// the ConfigWatcher of that loop, so that a watch knows its stream.
type stream struct {
	discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	server *Server
	id     string       // the xDS node id of the first message
	name   string       // the node's id
	claim  *corev3.Node // the node of the first message, which go-control-plane keeps too
	cancel context.CancelCauseFunc

	// Only the receiving goroutine touches these.
	first *discoveryv3.DeltaDiscoveryRequest
	types map[string]bool
	asked bool // something, in words or by saying nothing

	mu       sync.Mutex
	node     chandler.Node     // its labels may change, its name does not
	refused  error             // why Recv ended the stream
	watch    *watch            // open while the agent waits for news; nil while an answer is under way
	held     map[string]string // what the agent holds when all that was made has arrived; nil before its first word on it
	answered bool
	names    []string // of the last answer
	made     time.Time
	pace     pace
	again    *time.Timer // refreshes when what was held back may be sent; nil before the first time
}

func newStream(s *Server, str discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer, node chandler.Node, first *discoveryv3.DeltaDiscoveryRequest) *stream {
	return &stream{
		AggregatedDiscoveryService_DeltaAggregatedResourcesServer: str,
		server: s, node: node, name: node.ID(), id: first.GetNode().GetId(), claim: first.GetNode(), first: first,
		types: map[string]bool{},
	}
}

// watch is the agent waiting for news. It is answered once at most.
type watch struct {
	req *cache.DeltaRequest
	sub cache.Subscription
	out chan cache.DeltaResponse
}

// Recv gives the next request that is fit to be looked at. The first one was
// received before the stream began.
func (st *stream) Recv() (*discoveryv3.DeltaDiscoveryRequest, error) {
	req := st.first
	if req != nil {
		st.first = nil
	} else {
		var err error
		if req, err = st.AggregatedDiscoveryService_DeltaAggregatedResourcesServer.Recv(); err != nil {
			return nil, err
		}
		if id := req.GetNode().GetId(); id != "" && id != st.id {
			return nil, st.refuse(wire.Refusal(codes.InvalidArgument, chandler.CodeXDSNode, "node id changed from %s to %s", chandler.Quote(st.id), chandler.Quote(id)))
		}
		req.Node = nil
	}
	if err := st.check(req); err != nil {
		return nil, st.refuse(err)
	}
	if req.GetTypeUrl() == st.server.cfg.TypeURL {
		st.note(req)
	}
	return req, nil
}

// check bounds a request.
func (st *stream) check(req *discoveryv3.DeltaDiscoveryRequest) error {
	typ := req.GetTypeUrl()
	if typ == "" || len(typ) > MaxName {
		return wire.Refusal(codes.InvalidArgument, chandler.CodeXDSType, "type URL of %d bytes, limit %d", len(typ), MaxName)
	}
	if !st.types[typ] {
		if len(st.types) == maxTypes {
			return wire.Refusal(codes.ResourceExhausted, chandler.CodeXDSLimit, "more than %d resource types on a stream", maxTypes)
		}
		st.types[typ] = true
		if typ != st.server.cfg.TypeURL {
			st.server.cfg.Log.Warn("resource type is not served here", "code", chandler.CodeXDSType, "node", st.name, "type", chandler.Quote(typ))
		}
	}
	if n := len(req.GetInitialResourceVersions()); n > MaxVersions {
		return wire.Refusal(codes.ResourceExhausted, chandler.CodeXDSLimit, "%d initial resource versions, limit %d", n, MaxVersions)
	}
	if n := max(len(req.GetResourceNamesSubscribe()), len(req.GetResourceNamesUnsubscribe())); n > MaxNames {
		return wire.Refusal(codes.InvalidArgument, chandler.CodeXDSName, "%d resource names, limit %d", n, MaxNames)
	}
	for _, name := range slices.Concat(req.GetResourceNamesSubscribe(), req.GetResourceNamesUnsubscribe()) {
		if err := checkName(name); err != nil {
			return err
		}
	}
	for name, version := range req.GetInitialResourceVersions() {
		if err := cmp.Or(checkName(name), checkName(version)); err != nil {
			return err
		}
	}
	// Of why it refused something an agent may say more than is kept.
	if size := proto.Size(req) - proto.Size(req.GetErrorDetail()); size > maxRequest {
		return wire.Refusal(codes.ResourceExhausted, chandler.CodeXDSLimit, "request of %d bytes, limit %d", size, maxRequest)
	}
	return nil
}

// checkName bounds the name of a resource, or its version.
func checkName(name string) error {
	switch {
	case len(name) > MaxName:
		return wire.Refusal(codes.InvalidArgument, chandler.CodeXDSName, "name of %d bytes, limit %d", len(name), MaxName)
	case strings.ContainsFunc(name, unicode.IsControl):
		return wire.Refusal(codes.InvalidArgument, chandler.CodeXDSName, "name %s has control characters", chandler.Quote(name))
	}
	return nil
}

func (st *stream) refuse(err error) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.refused = err
	return err
}

func (st *stream) refusal() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.refused
}

// note takes in what a request tells of the agent: what it holds from before
// (the first time), or that it took or refused the last answer.
func (st *stream) note(req *discoveryv3.DeltaDiscoveryRequest) {
	st.mu.Lock()
	if st.held == nil {
		st.held = map[string]string{}
		maps.Copy(st.held, req.GetInitialResourceVersions())
	}
	names, made, node := st.names, st.made, st.node
	if req.GetResponseNonce() != "" {
		st.names, st.made = nil, time.Time{}
	}
	st.mu.Unlock()
	if req.GetResponseNonce() == "" || made.IsZero() {
		return
	}
	st.server.cfg.Pushed(time.Since(made))
	if req.GetErrorDetail() != nil {
		st.server.cfg.Nacked(node, names, wire.Masked(req.GetErrorDetail().GetMessage(), maxDetail))
	}
}

// CreateWatch is the state of the world, which is not served.
func (st *stream) CreateWatch(*cache.Request, cache.Subscription, chan cache.Response) (func(), error) {
	return nil, errors.New("only delta is served here")
}

// CreateDeltaWatch opens a watch and answers it at once when there is news. A
// type that is not served never has any.
//
// The loop closes out after it has cancelled its watches, so sending and
// cancelling share a lock. The channel has room: a watch sends once, and the
// loop empties it before it opens the next.
func (st *stream) CreateDeltaWatch(req *cache.DeltaRequest, sub cache.Subscription, out chan cache.DeltaResponse) (func(), error) {
	if req.GetTypeUrl() != st.server.cfg.TypeURL {
		return nil, nil
	}
	w := &watch{req: req, sub: sub, out: out}
	st.mu.Lock()
	st.watch = w
	for _, name := range req.GetResourceNamesUnsubscribe() {
		delete(st.held, name)
	}
	st.mu.Unlock()
	st.count(req, sub)
	st.refresh()
	return func() {
		st.mu.Lock()
		defer st.mu.Unlock()
		if st.watch == w {
			st.watch = nil
		}
	}, nil
}

// count tells what a request asks for. The first one asks for all when it names
// nothing.
func (st *stream) count(req *cache.DeltaRequest, sub cache.Subscription) {
	names := req.GetResourceNamesSubscribe()
	if len(names) == 0 && !st.asked && sub.IsWildcard() {
		names = []string{"*"}
	}
	if len(names) == 0 {
		return
	}
	st.asked = true
	st.mu.Lock()
	node := st.node
	st.mu.Unlock()
	own, all, other := map[string]bool{}, 0, 0
	view, _ := st.server.cfg.View(node)
	for _, res := range view {
		own[res.Name] = true
	}
	for _, name := range names {
		switch {
		case name == "*":
			all++
		case !own[name]:
			other++
		}
	}
	for what, n := range map[Asked]int{AskedAll: all, AskedOther: other, AskedOwn: len(names) - all - other} {
		if n > 0 {
			st.server.cfg.Asked(what, n)
		}
	}
}

// refresh answers the open watch if there is news for it. The first answer of
// a stream is sent in any case: it tells the agent that it is up to date.
func (st *stream) refresh() {
	st.mu.Lock()
	defer st.mu.Unlock()
	w := st.watch
	if w == nil {
		return
	}
	view, ok := st.server.cfg.View(st.node)
	if !ok {
		return
	}
	now := time.Now()
	r, held := st.difference(w, view, now)
	if held {
		st.refreshIn(st.pace.wait(now))
	}
	if len(r.changed)+len(r.removed) == 0 && st.answered {
		return
	}
	st.hold(r)
	if st.names, st.made = r.names(), now; st.answered { // what a stream begins with is no change
		st.pace.spend(st.names, now)
	}
	st.watch, st.answered = nil, true
	st.server.cfg.Sent(r.bytes)
	w.out <- r
}

// refreshIn has refresh called again, unless the stream has ended by then.
func (st *stream) refreshIn(wait time.Duration) {
	if st.again == nil {
		st.again = time.AfterFunc(wait, st.refresh)
		return
	}
	st.again.Reset(wait)
}

// end stops what the stream has started. Its watch is cancelled by then.
func (st *stream) end() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.again != nil {
		st.again.Stop()
	}
}

// difference compares a view with what the agent holds. Changes beyond the size
// of one answer are left for the next, which the acknowledgement brings, and those
// of what changes too often for later: then held is true.
func (st *stream) difference(w *watch, view []*Resource, now time.Time) (r *response, held bool) {
	r = &response{req: w.req}
	there := make(map[string]bool, len(view))
	for _, res := range view {
		if _, named := w.sub.SubscribedResources()[res.Name]; !named && !w.sub.IsWildcard() {
			continue
		}
		there[res.Name] = true
		if res.Body == nil {
			continue
		}
		if version, ok := st.held[res.Name]; ok && (version == res.Version || res.Newcomers) {
			continue
		}
		if !st.pace.may(res.Name, now) {
			held = true
			continue
		}
		size := proto.Size(res.Body)
		if r.bytes+size > maxResponse && len(r.changed) > 0 {
			continue
		}
		r.bytes += size
		r.changed = append(r.changed, res)
	}
	for name := range st.held {
		switch {
		case there[name]:
		case st.pace.may(name, now):
			r.removed = append(r.removed, name)
		default:
			held = true
		}
	}
	slices.Sort(r.removed)
	return r, held
}

// hold counts an answer as arrived. The loop sends what is in its channel in
// order or ends the stream, and its own account of what was returned lags
// behind: between its emptying the channel and its cancelling the watch another
// answer may be made.
func (st *stream) hold(r *response) {
	for _, res := range r.changed {
		st.held[res.Name] = res.Version
	}
	for _, name := range r.removed {
		delete(st.held, name)
	}
}

// response is one answer to one watch.
type response struct {
	req     *cache.DeltaRequest
	changed []*Resource
	removed []string
	bytes   int // of what changed
}

var _ cache.DeltaResponse = (*response)(nil)

func (r *response) names() []string {
	names := make([]string, 0, len(r.changed)+len(r.removed))
	for _, res := range r.changed {
		names = append(names, res.Name)
	}
	return append(names, r.removed...)
}

// GetDeltaDiscoveryResponse builds the message; the loop puts its nonce in, so
// it is never shared.
func (r *response) GetDeltaDiscoveryResponse() (*discoveryv3.DeltaDiscoveryResponse, error) {
	m := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: r.req.GetTypeUrl(), RemovedResources: r.removed}
	for _, res := range r.changed {
		m.Resources = append(m.Resources, &discoveryv3.Resource{Name: res.Name, Version: res.Version, Resource: res.Body})
	}
	return m, nil
}

func (r *response) GetDeltaRequest() *discoveryv3.DeltaDiscoveryRequest { return r.req }
func (r *response) GetSystemVersion() (string, error)                   { return "", nil }
func (r *response) GetResponseVersion() string                          { return "" }
func (r *response) GetContext() context.Context                         { return context.Background() }

// GetReturnedResources is the loop's account, which is not used here; the loop
// writes into it, so it is not nil.
func (r *response) GetReturnedResources() map[string]string { return map[string]string{} }

// GetNextVersionMap is the older name of GetReturnedResources.
func (r *response) GetNextVersionMap() map[string]string { return r.GetReturnedResources() }
