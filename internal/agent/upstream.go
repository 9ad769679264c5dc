package agent

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/remotewasm"
	"chandler.dev/chandler/internal/xds/relay"
	"chandler.dev/chandler/internal/xds/relay/edge"
	"chandler.dev/chandler/internal/xds/upstream"
	"chandler.dev/chandler/internal/xds/viewstore"
)

// An Envoy whose configuration names a control plane reaches it through the agent: each
// has a socket on which the agent stands for it, and a connection to it. What Envoy took of
// it is kept in memory for the next Envoy, and on disk for the next agent.

// controlPlane is one that Envoy's configuration names, its upstream.
type controlPlane struct {
	name   string // for people
	socket string
	views  string // the folder of what Envoy took
	way    string // how it is reached
	conn   *upstream.Conn
	link   *upstreamLink
	held   heldListeners
	wasm   remotewasm.Clusters // what Envoy took has it
	store  *viewstore.Store
	log    *slog.Logger

	mu         sync.Mutex
	edge       *edge.Edge   // of the present Envoy; nil: there was none yet
	remembered []relay.View // of the agent before, until then
}

// openUpstreams gets ready to reach the control planes. It connects to none of them.
func (a *Agent) openUpstreams() error {
	for _, cp := range a.derived.ControlPlanes {
		name := cmp.Or(cp.Cluster, "the target of "+cp.Service.Path)
		log := a.log.With("control_plane", name)
		conn, err := upstream.New(cp, upstream.Options{Log: log})
		if err != nil {
			a.closeUpstreams()
			return fmt.Errorf("envoy configuration: %w", err)
		}
		for _, warning := range conn.Warnings {
			log.Warn("envoy configuration", "warning", warning)
		}
		a.upstreams = append(a.upstreams, &controlPlane{
			name: name, socket: cp.Socket, views: filepath.Join(a.envoyDir(), viewsPrefix+digest(cp.Service.Path)), conn: conn, log: log,
			way: way(cp), link: newUpstreamLink(log),
		})
	}
	if a.derived.UpstreamListeners {
		a.relayed = newRelayedListeners(a.derived.PlaceSlots)
	}
	return nil
}

func (a *Agent) closeUpstreams() {
	for _, u := range a.upstreams {
		_ = u.conn.Close()
	}
	a.upstreams = nil
}

// viewsPrefix begins the names of the folders of what Envoy took. The rest is of the place in
// Envoy's configuration where the control plane is named: whichever is named there, what the
// one before said is good until it answers.
const viewsPrefix = "upstream-"

// digest is short for a text, and the same at every start.
func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

// way is the same for a control plane as long as it is reached in the same way. By another
// one, versions of resources may mean something else.
func way(cp attach.ControlPlane) string {
	return digest(fmt.Sprintf("%q %q %v", cp.Cluster, cp.Service.JSON, cp.Endpoints))
}

// recallUpstreams reads what Envoy took before, and drops what came by a place that its
// configuration has no more.
func (a *Agent) recallUpstreams() error {
	known := map[string]bool{}
	for _, u := range a.upstreams {
		known[u.views] = true
		store, views, problems, err := viewstore.Open(viewstore.Config{Dir: u.views, Source: u.way, Log: u.log})
		if err != nil {
			return fmt.Errorf("what Envoy takes of its control plane cannot be kept: %w", err)
		}
		for _, p := range problems {
			u.log.Error("what is kept of Envoy's control plane cannot be read", "error", p)
		}
		u.store, u.remembered = store, views
	}
	dirs, _ := filepath.Glob(filepath.Join(a.envoyDir(), viewsPrefix+"*"))
	for _, dir := range dirs {
		if !known[dir] {
			_ = os.RemoveAll(dir) // else it stays unread
		}
	}
	return nil
}

// lastTaken is what Envoy took, as it is kept on disk: without pull secrets. A time in its
// place is when to ask again.
func (u *controlPlane) lastTaken() ([]relay.View, time.Time) {
	u.mu.Lock()
	e, views := u.edge, u.remembered
	u.mu.Unlock()
	if e != nil {
		var until time.Time
		if views, until = e.Taken(); !until.IsZero() {
			return nil, until
		}
	}
	u.wasm.Look(views, u.log)
	views = slices.Clone(views)
	for i, v := range views {
		if v.Type == attach.ExtensionConfigType || v.Type == listenerType {
			views[i] = v.Edited(func(body []byte) []byte {
				kept, _ := remotewasm.Discreet(v.Type, body)
				return kept
			})
		}
	}
	return views, time.Time{}
}

// changed has Envoy told of resources that go on in another form by now.
func (u *controlPlane) changed(typeURL string, names ...string) {
	u.mu.Lock()
	e := u.edge
	u.mu.Unlock()
	if e != nil {
		e.Changed(typeURL, names...)
	}
}

// findUpstream gives what one of the control planes has of a type under a name.
func (a *Agent) findUpstream(typeURL, name string) (body []byte, ok bool) {
	for _, u := range a.upstreams {
		u.mu.Lock()
		e := u.edge
		u.mu.Unlock()
		if e == nil {
			continue
		}
		if body, ok = e.Find(typeURL, name); ok {
			return body, true
		}
	}
	return nil, false
}

// serveUpstreams stands for the control planes towards the Envoy that is there or is
// started next, until ctx ends. another: none before it was the same process.
func (a *Agent) serveUpstreams(ctx context.Context, start func(serve func() error), local map[string]relay.Local, another bool) error {
	if another && a.relayed != nil {
		a.relayed.another()
	}
	if another && a.remote != nil {
		a.remote.another()
	}
	for _, u := range a.upstreams {
		lis, err := a.listen(u.socket)
		if err != nil {
			return err
		}
		hooks := a.hooks(u)
		hooks.Local = local
		e := u.newEdge(hooks, a.lookSoon, another)
		start(func() error { return e.Serve(ctx, lis) })
	}
	return nil
}

// newEdge gives one for an Envoy, with what those before it took.
func (u *controlPlane) newEdge(hooks relay.Hooks, ended func(), another bool) *edge.Edge {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.edge != nil {
		u.remembered = u.edge.Views()
	}
	u.edge = edge.New(edge.Config{
		Hooks: hooks, Upstream: u.conn, Remembered: u.remembered, Took: u.store.Changed, Linked: u.link.word, Log: u.log,
		Ended: func(method string) {
			u.link.ended(method)
			ended()
		},
	})
	u.remembered = nil
	if another {
		u.held.another()
		u.edge.Another()
	}
	return u.edge
}

// hooks are what the agent adds to what passes.
func (a *Agent) hooks(u *controlPlane) relay.Hooks {
	h := relay.Hooks{Node: a.introduce, Names: attach.Names, Clusters: attach.Clusters, ListenersTimeout: a.derived.ListenersTimeout, Transforms: map[string]relay.Transform{
		attach.ExtensionConfigType: a.remote.extensions.Transform,
		listenerType:               a.transformListener,
	}}
	h.Tell = func(ev relay.Event) {
		a.remote.tell(ev)
		if a.relayed != nil {
			a.relayed.tell(ev)
		}
		if held := u.held.tell(ev); len(held) > 0 {
			u.log.Warn("envoy begins without listeners that wait for a module or for what belongs in them, and may count as ready", "of", len(held), "first", held[0])
		}
	}
	if a.relayed != nil {
		h.Amend = map[string]func(string, bool, string) bool{listenerType: a.amendListener}
	}
	return h
}

// transformListener has the modules in a listener on disk before there are slots in it.
func (a *Agent) transformListener(r relay.Resource) (body []byte, ready bool) {
	body, ready = a.remote.listeners.Transform(r)
	if !ready || a.relayed == nil {
		return body, ready
	}
	r.Body = body
	return a.relayed.transform(r)
}

// amendListener has a listener that Envoy refuses tried without slots, unless it refuses it
// for a module: what stands in for that comes by itself.
func (a *Agent) amendListener(name string, ours bool, words string) bool {
	if attach.RefusesModule(words, name) && a.remote.listeners.Gave(name) {
		return false
	}
	return a.relayed.amend(name, ours, words)
}

// opening tells whether Envoy's listeners are not open yet.
func (a *Agent) opening() bool {
	v := a.view.Load()
	return v == nil || !v.open
}

// introduce adds to Envoy's node who stands between it and its control plane. What Envoy
// says stays byte for byte: a message in pieces is one, and so is its metadata.
func (a *Agent) introduce(node []byte) []byte {
	const nodeMetadata, structFields, mapKey, mapValue, valueString, valueStruct protowire.Number = 3, 1, 1, 2, 3, 5
	piece := func(b []byte, num protowire.Number, content []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), content)
	}
	field := func(b []byte, name string, value []byte) []byte {
		return piece(b, structFields, piece(piece(nil, mapKey, []byte(name)), mapValue, value))
	}
	var own []byte
	for _, f := range [][2]string{{"agent_version", a.cfg.Node.AgentVersion}, {"node", a.cfg.Node.Namespace + "/" + a.cfg.Node.Name}} {
		own = field(own, f[0], piece(nil, valueString, []byte(strings.ToValidUTF8(f[1], "?"))))
	}
	return piece(slices.Clone(node), nodeMetadata, field(nil, nodeMetadataKey, piece(nil, valueStruct, own)))
}

// nodeMetadataKey is under which a control plane finds that in the node's metadata.
const nodeMetadataKey = "CHANDLER"

// listen makes a socket for Envoy.
func (a *Agent) listen(socket string) (net.Listener, error) {
	_ = os.Remove(socket) // of an agent that is gone: the directory is locked
	lis, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	err = os.Chmod(socket, 0o600)
	if err == nil {
		err = a.share(socket, 0o660)
	}
	if err != nil {
		return nil, errors.Join(err, lis.Close())
	}
	return lis, nil
}

// upstreamLink is how the streams to a control plane are: one that is lost is begun anew
// until Envoy wants it no more.
type upstreamLink struct {
	log *slog.Logger

	mu       sync.Mutex
	streams  map[string]string // by method: why it is lost; empty: it is there
	since    time.Time
	lost     uint64
	toldLost time.Time
	told     bool // that it is lost
}

// linkWords is how often is logged at most that a link is lost.
const linkWords = 10 * time.Second

func newUpstreamLink(log *slog.Logger) *upstreamLink {
	return &upstreamLink{log: log, streams: map[string]string{}, since: time.Now()}
}

// word is the edge's, of each stream.
func (l *upstreamLink) word(method string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	first, before, now := len(l.streams) == 0, l.up(), time.Now()
	l.streams[method] = ""
	if err != nil {
		l.streams[method] = chandler.Printable(err.Error(), reasonLimit)
		l.lost++
	}
	up := l.up()
	if up == before && !first {
		return
	}
	l.since = now
	switch {
	case up:
		if l.told || l.toldLost.IsZero() {
			l.log.Info("connected to Envoy's control plane")
		}
		l.told = false
	case now.Sub(l.toldLost) > linkWords:
		l.told, l.toldLost = true, now
		l.log.Warn("there is no stream to Envoy's control plane; Envoy goes on with what that one sent last", "method", method, "error", l.streams[method])
	}
}

// ended is the edge's: Envoy wants the stream no more.
func (l *upstreamLink) ended(method string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.up()
	delete(l.streams, method)
	if l.up() != before {
		l.since = time.Now()
	}
}

// up tells whether all streams are there that Envoy wants; mu is held.
func (l *upstreamLink) up() bool {
	for _, why := range l.streams {
		if why != "" {
			return false
		}
	}
	return len(l.streams) > 0
}

// status is what is shown of it.
func (l *upstreamLink) status(name string) UpstreamStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := UpstreamStatus{Name: name, Connected: l.up(), Since: l.since, Lost: l.lost}
	for _, method := range slices.Sorted(maps.Keys(l.streams)) {
		if why := l.streams[method]; why != "" && st.Error == "" {
			st.Error = method + ": " + why
		}
	}
	return st
}
