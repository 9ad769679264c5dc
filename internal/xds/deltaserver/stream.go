package deltaserver

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/wire"
	"chandler.dev/chandler/internal/xds/quiet"
)

// stream is one agent's stream.
type stream struct {
	server *Server
	str    discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	id     string        // the xDS node id of the first message
	name   string        // the node's id
	claim  chandler.Node // of the first message

	// Only whoever deals with what was received touches these.
	entered bool     // who it is is known
	types   []string // that were asked for
	asked   bool     // something, in words or by saying nothing

	// sending is held while an answer is written, and for ever once the stream has ended.
	// It is asked for only with TryLock, so that nobody waits for an agent.
	sending sync.Mutex

	mu       sync.Mutex
	node     chandler.Node     // its labels may change, its name does not
	wanted   wanted            // what the agent subscribes to
	waiting  bool              // the agent waits for news; not while an answer is under way
	missed   bool              // a refresh, as something was being sent
	held     map[string]string // what the agent holds when all that was made has arrived; nil before its first word on it
	answered bool
	nonce    uint64   // of the last answer
	names    []string // of the last answer
	made     time.Time
	pace     pace
}

// serve has what the agent says taken in, until the stream ends. The first message says
// who it is, and must not be long in coming.
func (st *stream) serve() error {
	late := time.AfterFunc(firstTimeout, func() {
		quiet.End(st.str.Context(), wire.Refusal(codes.DeadlineExceeded, chandler.CodeXDSLimit, "no first message in %v", firstTimeout))
	})
	return quiet.Attend(st.str, func(req *discoveryv3.DeltaDiscoveryRequest) error {
		if !st.entered {
			late.Stop()
			if err := st.server.begin(st, req); err != nil {
				return err
			}
		} else if id := req.GetNode().GetId(); id != "" && id != st.id {
			return wire.Refusal(codes.InvalidArgument, chandler.CodeXDSNode, "node id changed from %s to %s", chandler.Quote(st.id), chandler.Quote(id))
		}
		return st.take(req)
	}, func() {
		late.Stop()
		if st.entered {
			st.close()
			st.server.leave(st)
		}
	})
}

// take takes a request in, and answers it if there is news for it. A type that is not
// served never has any.
func (st *stream) take(req *discoveryv3.DeltaDiscoveryRequest) error {
	if err := st.check(req); err != nil {
		return err
	}
	if req.GetTypeUrl() != st.server.cfg.TypeURL {
		return nil
	}
	st.note(req)
	st.count(req)
	st.mu.Lock()
	st.waiting = true
	st.wanted.update(req.GetResourceNamesSubscribe(), req.GetResourceNamesUnsubscribe())
	for _, name := range req.GetResourceNamesUnsubscribe() {
		delete(st.held, name)
	}
	named := len(st.wanted.names)
	st.mu.Unlock()
	if named > MaxVersions {
		return wire.Refusal(codes.ResourceExhausted, chandler.CodeXDSLimit, "more than %d resource names on a stream", MaxVersions)
	}
	st.refresh()
	return nil
}

// check bounds a request.
func (st *stream) check(req *discoveryv3.DeltaDiscoveryRequest) error {
	typ := req.GetTypeUrl()
	if typ == "" || len(typ) > MaxName {
		return wire.Refusal(codes.InvalidArgument, chandler.CodeXDSType, "type URL of %d bytes, limit %d", len(typ), MaxName)
	}
	if !slices.Contains(st.types, typ) {
		if len(st.types) == maxTypes {
			return wire.Refusal(codes.ResourceExhausted, chandler.CodeXDSLimit, "more than %d resource types on a stream", maxTypes)
		}
		st.types = append(st.types, typ)
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

// count tells what a request asks for. The first one asks for all when it names
// nothing.
func (st *stream) count(req *discoveryv3.DeltaDiscoveryRequest) {
	names := req.GetResourceNamesSubscribe()
	if len(names) == 0 && !st.asked { // see wanted.update
		names = []string{wildcard}
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
		case name == wildcard:
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

// refresh sends the agent what is new, if it waits for that. If something is being sent
// to it, whoever does that goes on with it.
func (st *stream) refresh() {
	for a := st.next(); a != nil; a = st.after() {
		parts, err := a.encode()
		if err == nil {
			err = st.str.SendMsg(parts)
		}
		if err != nil {
			quiet.End(st.str.Context(), status.Convert(err).Err())
		}
	}
}

// next gives the answer that is to be sent now, or nil. With one, sending is held.
func (st *stream) next() *answer {
	st.mu.Lock()
	defer st.mu.Unlock()
	if !st.waiting {
		return nil
	}
	if !st.sending.TryLock() {
		st.missed = true
		return nil
	}
	a := st.answer()
	if a == nil {
		st.sending.Unlock()
	}
	return a
}

// after gives the answer that is to be sent after one that was.
func (st *stream) after() *answer {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.missed {
		if st.missed = false; st.waiting {
			if a := st.answer(); a != nil {
				return a
			}
		}
	}
	st.sending.Unlock()
	return nil
}

// answer makes the answer for an agent that waits, if there is news. The first one of a
// stream is sent in any case: it tells the agent that it is up to date.
func (st *stream) answer() *answer {
	view, ok := st.server.cfg.View(st.node)
	if !ok {
		return nil
	}
	now, tempo := time.Now(), st.server.tempo()
	a, held := st.difference(view, tempo, now)
	if held {
		st.server.later(tempo, now)
	}
	if len(a.changed)+len(a.removed) == 0 && st.answered {
		return nil
	}
	st.nonce++
	a.typeURL, a.nonce, a.from = st.server.cfg.TypeURL, strconv.FormatUint(st.nonce, 10), st.server.cfg.Identity
	st.hold(a)
	if st.names, st.made = a.names(), now; st.answered { // what a stream begins with is no change
		st.pace.spend(st.names, tempo, now)
	}
	st.waiting, st.answered = false, true
	st.server.cfg.Sent(a.bytes)
	return a
}

// close has nothing sent afterwards: gRPC forbids it.
func (st *stream) close() {
	quiet.End(st.str.Context(), nil) // so that whoever sends does not wait any more
	st.sending.Lock()
	st.mu.Lock()
	defer st.mu.Unlock()
	st.waiting = false
}

// difference compares a view with what the agent holds. Changes beyond the size
// of one answer are left for the next, which the acknowledgement brings, and those
// of what changes too often for later: then held is true.
func (st *stream) difference(view []*Resource, t tempo, now time.Time) (r *answer, held bool) {
	r = &answer{}
	there := 0 // of what is held: where that is all, as nearly always, nothing is to be removed
	for _, res := range view {
		if !st.wanted.has(res.Name) {
			continue
		}
		version, holds := st.held[res.Name]
		if holds {
			there++
		}
		if res.Body == nil {
			continue
		}
		if holds && (version == res.Version || res.Newcomers) {
			continue
		}
		if !st.pace.may(res.Name, t, now) {
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
	if there == len(st.held) {
		return r, held
	}
	stays := make(map[string]bool, len(view))
	for _, res := range view {
		stays[res.Name] = st.wanted.has(res.Name)
	}
	for name := range st.held {
		switch {
		case stays[name]:
		case st.pace.may(name, t, now):
			r.removed = append(r.removed, name)
		default:
			held = true
		}
	}
	slices.Sort(r.removed)
	return r, held
}

// hold counts an answer as arrived: answers are sent in order, or the stream ends.
func (st *stream) hold(a *answer) {
	for _, res := range a.changed {
		st.held[res.Name] = res.Version
	}
	for _, name := range a.removed {
		delete(st.held, name)
	}
}

// wanted is what an agent subscribes to. A stream that begins without a name wants all,
// until it names something, and then that too.
type wanted struct {
	begun bool
	all   bool
	names map[string]struct{} // nil: none
}

func (w *wanted) has(name string) bool {
	if w.all {
		return true
	}
	_, ok := w.names[name]
	return ok
}

// update takes in what a request says.
func (w *wanted) update(subscribe, unsubscribe []string) {
	if !w.begun && len(subscribe) == 0 {
		w.all = true
	}
	w.begun = true
	for _, name := range subscribe {
		switch {
		case name == wildcard:
			w.all = true
		case w.names == nil:
			w.names = map[string]struct{}{name: {}}
		default:
			w.names[name] = struct{}{}
		}
	}
	for _, name := range unsubscribe {
		if name == wildcard {
			w.all = false
		}
		delete(w.names, name)
	}
}

// wildcard is the name of all resources.
const wildcard = "*"
