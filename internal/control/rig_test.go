package control_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/resolve"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/testenv/fed"
	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/wire"
	"chandler.dev/chandler/internal/xds/deltaclient"
)

func TestMain(m *testing.M) { leaks.Main(m) }

// registry is a Fetcher with tags, by the URL's repository and tag.
type registry struct {
	mu      sync.Mutex
	mods    map[string][]byte
	schemas map[chandler.ArtifactDigest]string
	err     error
	away    map[string]error // by host
	calls   int
}

func (r *registry) find(req fetch.Request) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	if r.err != nil {
		return nil, r.err
	}
	if err := r.away[req.Reference.Host]; err != nil {
		return nil, err
	}
	for name, mod := range r.mods {
		if d := artifactOf(mod); req.Reference.Digest == d || req.Reference.Digest == "" && name == req.Reference.Repository+":"+req.Reference.Tag {
			return mod, nil
		}
	}
	return nil, &fetch.Error{Problem: chandler.Problem{Code: chandler.CodeNotFound, Message: "no such tag"}}
}

func artifactOf(mod []byte) chandler.ArtifactDigest {
	return chandler.Digest[chandler.ArtifactDigest](append([]byte("manifest of "), mod...))
}

func (r *registry) Resolve(_ context.Context, req fetch.Request) (fetch.Resolved, error) {
	mod, err := r.find(req)
	if err != nil {
		return fetch.Resolved{}, err
	}
	return fetch.Resolved{Digest: artifactOf(mod)}, nil
}

func (r *registry) Pull(_ context.Context, req fetch.Request, sink fetch.Sink) (fetch.Artifact, error) {
	mod, err := r.find(req)
	if err != nil {
		return fetch.Artifact{}, err
	}
	d, size, err := sink.Ingest(bytes.NewReader(mod), "")
	return fetch.Artifact{Digest: artifactOf(mod), Module: d, Size: size}, err
}

// schema is what package resolve asks for schemas.
func (r *registry) schema(_ context.Context, req fetch.Request) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	if r.err != nil {
		return nil, r.err
	}
	return []byte(r.schemas[req.Reference.Digest]), r.away[req.Reference.Host]
}

// carry puts a module there, with a schema.
func (r *registry) carry(name string, mod []byte, schema string) {
	r.set(name, mod)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.schemas == nil {
		r.schemas = map[chandler.ArtifactDigest]string{}
	}
	r.schemas[artifactOf(mod)] = schema
}

func (r *registry) set(name string, mod []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mods[name] = mod
}

func (r *registry) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

func (r *registry) hostFails(host string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away == nil {
		r.away = map[string]error{}
	}
	r.away[host] = err
}

func (r *registry) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls
}

type trust struct{}

func (trust) Authenticate(_ context.Context, n chandler.Node) (chandler.Node, error) {
	return n.Take(nil), nil
}

// rig is a control plane whose disk outlives it.
type rig struct {
	t testing.TB
	*registry
	fetcher resolve.Fetcher // in place of the registry, from the next start on
	settle  func(*control.Config)
	records record.Store
	dir     string
	objects map[string]source.Object
	secrets map[source.SecretName]source.Secret
	root    string
	// of a replica
	election control.Election
	peers    *control.Peers

	*control.Control
	metrics *prometheus.Registry
	source  fed.Source
	stop    func()
	// line leads to whichever is running: agents outlive a restart.
	line atomic.Pointer[bufconn.Listener]
}

func (r *rig) dial(ctx context.Context) (net.Conn, error) { return r.line.Load().DialContext(ctx) }

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{
		t: t, registry: &registry{mods: map[string][]byte{}}, records: record.NewMemory(), dir: t.TempDir(),
		objects: map[string]source.Object{},
	}
	r.start()
	return r
}

func (r *rig) start() {
	r.t.Helper()
	s, err := store.Open(store.Config{Dir: r.dir})
	if err != nil {
		r.t.Fatal(err)
	}
	l := bufconn.Listen(1 << 20)
	r.line.Store(l)
	r.source, r.metrics = make(fed.Source), prometheus.NewRegistry()
	fetcher := r.fetcher
	if fetcher == nil {
		fetcher = r.registry
	}
	cfg := control.Config{
		Source: r.source, Records: r.records, Store: s, Listener: l, Authenticator: trust{}, Registerer: r.metrics,
		Resolver:      resolve.New(resolve.Config{Fetcher: fetcher, Store: s, Schemas: r.schema}),
		RootNamespace: r.root, Election: r.election, Peers: r.peers,
	}
	if r.settle != nil {
		r.settle(&cfg)
	}
	r.Control, err = control.New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
		s.Close()
	})
	r.t.Cleanup(r.stop)
}

func (r *rig) restart() {
	r.t.Helper()
	r.stop()
	r.start()
}

// deliver hands the objects over.
func (r *rig) deliver() {
	r.t.Helper()
	s := source.Snapshot{Secrets: maps.Clone(r.secrets)}
	for _, name := range slices.Sorted(maps.Keys(r.objects)) {
		s.Objects = append(s.Objects, r.objects[name])
	}
	select {
	case r.source <- s:
	case <-time.After(time.Minute):
		r.t.Fatal("the snapshot is not taken")
	}
}

// apply puts a plugin in the root namespace; edit may be nil.
func (r *rig) apply(name, url string, edit func(*chandler.Plugin)) {
	r.t.Helper()
	r.put(name, url, edit)
	r.deliver()
}

// put is apply before the delivery.
func (r *rig) put(name, url string, edit func(*chandler.Plugin)) {
	r.t.Helper()
	ref, p := chandler.ParseReference(url)
	if p != nil {
		r.t.Fatal(p)
	}
	o := r.objects[name]
	if o.UID == "" {
		o.Key = chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "istio-system", Name: name}
		o.UID, o.Created = "uid-"+name+fmt.Sprint(time.Now().UnixNano()), time.Unix(1000, 0)
	}
	o.Generation++
	o.Problems = nil
	o.Plugin = &chandler.Plugin{
		Key: o.Key, UID: o.UID, Generation: o.Generation, Created: o.Created, Type: chandler.HTTP,
		Wasm: &chandler.Wasm{URL: url, Reference: ref, FailStrategy: chandler.FailClose},
	}
	if edit != nil {
		edit(o.Plugin)
	}
	r.objects[name] = o
}

// putIn puts a plugin with a configuration into a namespace, before the delivery.
func (r *rig) putIn(namespace, name, url, config string) {
	r.t.Helper()
	r.put(name, url, func(p *chandler.Plugin) { p.Namespace, p.Wasm.Config = namespace, []byte(config) })
	o := r.objects[name]
	o.Namespace = namespace
	r.objects[name] = o
}

func (r *rig) status(name string) chandler.Status {
	r.t.Helper()
	views, err := r.Objects(r.t.Context())
	if err != nil {
		return chandler.Status{} // not ready
	}
	for _, v := range views {
		if v.Name == name {
			return v.Status
		}
	}
	return chandler.Status{}
}

// reason gives a condition as "Status Reason".
func (r *rig) reason(name string, typ chandler.ConditionType) string {
	r.t.Helper()
	for _, c := range r.status(name).Conditions {
		if c.Type == typ {
			return string(c.Status) + " " + string(c.Reason)
		}
	}
	return ""
}

func (r *rig) await(name string, typ chandler.ConditionType, want string) {
	r.t.Helper()
	eventually(r.t, func() bool { return r.reason(name, typ) == want }, func() string { return r.reason(name, typ) })
}

// agent is the real delta client with a scripted head: it reports what the test
// says.
type agent struct {
	t     testing.TB
	node  chandler.Node
	stop  func()
	conns chan *grpc.ClientConn

	mu       sync.Mutex
	held     map[string]string
	attached map[string]chandler.Attachment
	firm     bool // takes nothing older, as a real one
	updates  int
	bytes    int
	lost     []error           // why streams, and tries, ended
	options  []grpc.DialOption // in place of the rig's
}

func (r *rig) options() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return r.dial(ctx) }),
	}
}

func (r *rig) join(node chandler.Node) *agent {
	return r.joinWith(node, nil)
}

// joinWith is join with other credentials.
func (r *rig) joinWith(node chandler.Node, options []grpc.DialOption) *agent {
	a := &agent{t: r.t, node: node, held: map[string]string{}, attached: map[string]chandler.Attachment{}, options: options}
	a.connect(r)
	return a
}

// connect joins, with what is held from before.
func (a *agent) connect(r *rig) {
	a.conns = make(chan *grpc.ClientConn, 10)
	options := a.options
	if options == nil {
		options = r.options()
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	client := deltaclient.New(deltaclient.Config{
		Targets: []string{"passthrough:///control"}, Dial: options, TypeURL: wire.AttachmentTypeURL,
		Node:    wire.NodeToXDS(a.node),
		Known:   func() map[string]string { a.mu.Lock(); defer a.mu.Unlock(); return maps.Clone(a.held) },
		Handle:  a.handle,
		Session: func(ctx context.Context, conn *grpc.ClientConn) { a.conns <- conn; <-ctx.Done() },
		Connected: func(up bool, _ string, err error) {
			a.mu.Lock()
			defer a.mu.Unlock()
			if !up {
				a.lost = append(a.lost, err)
			}
		},
	})
	go func() { defer close(done); _ = client.Run(ctx) }()
	a.stop = sync.OnceFunc(func() { cancel(); <-done })
	a.t.Cleanup(a.stop)
}

func (a *agent) handle(u deltaclient.Update) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.updates++
	for _, c := range u.Changed {
		a.bytes += len(c.Body)
		att, err := wire.UnmarshalAttachment(c.Body)
		if err != nil {
			return err
		}
		a.held[c.Name] = c.Version
		if before, ok := a.attached[c.Name]; ok && a.firm && before.UID == att.UID && att.Sequence < before.Sequence {
			continue
		}
		a.attached[c.Name] = att
	}
	for _, name := range u.Removed {
		delete(a.held, name)
		delete(a.attached, name)
	}
	return nil
}

// has waits until the agent has a plugin for which ok holds, and gives it.
func (a *agent) has(name string, ok func(chandler.Attachment) bool) chandler.Attachment {
	a.t.Helper()
	var att chandler.Attachment
	eventually(a.t, func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		var there bool
		att, there = a.attached[chandler.KindWasmPlugin+"/istio-system/"+name]
		return there && ok(att)
	}, func() string { return fmt.Sprintf("%+v", att) })
	return att
}

func runs(mod []byte) func(chandler.Attachment) bool {
	d := chandler.Digest[chandler.ModuleDigest](mod)
	return func(a chandler.Attachment) bool { return a.Program.Module != nil && a.Program.Module.Digest == d }
}

func (a *agent) conn() *grpc.ClientConn {
	a.t.Helper()
	select {
	case c := <-a.conns:
		a.conns <- c
		return c
	case <-time.After(time.Minute):
		a.t.Fatal("not connected")
		return nil
	}
}

func eventually(t testing.TB, ok func() bool, what func() string) {
	t.Helper()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("did not come to pass: %s", what())
		case <-time.After(time.Millisecond):
		}
	}
}

var gateway = chandler.Node{Namespace: "istio-system", Name: "gw", Labels: map[string]string{"istio": "ingressgateway"}}

// gauge gives the value of the only series of a metric with the given label.
func gauge(t testing.TB, reg *prometheus.Registry, name string, label ...string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			match := len(label) == 0
			for _, l := range m.GetLabel() {
				match = match || l.GetName() == label[0] && l.GetValue() == label[1]
			}
			if match {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return -1
}
