package control_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/resolve"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/wire"
	"chandler.dev/chandler/internal/xds/deltaclient"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// registry is a Fetcher with tags, by the URL's repository and tag.
type registry struct {
	mu    sync.Mutex
	mods  map[string][]byte
	err   error
	calls int
}

func (r *registry) find(req fetch.Request) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	if r.err != nil {
		return nil, r.err
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

func (r *registry) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls
}

// edits is a Source that the test feeds.
type edits struct{ c chan source.Snapshot }

func (e edits) Run(ctx context.Context, deliver func(source.Snapshot)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case s := <-e.c:
			deliver(s)
		}
	}
}

type trust struct{}

func (trust) Authenticate(_ context.Context, n chandler.Node) (chandler.Node, error) { return n, nil }

// rig is a control plane whose disk outlives it.
type rig struct {
	t *testing.T
	*registry
	records record.Store
	dir     string
	objects map[string]source.Object
	secrets map[source.SecretName]source.Secret

	*control.Control
	metrics *prometheus.Registry
	source  edits
	dial    func(context.Context) (net.Conn, error)
	stop    func()
}

func newRig(t *testing.T) *rig {
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
	r.dial, r.source, r.metrics = l.DialContext, edits{make(chan source.Snapshot)}, prometheus.NewRegistry()
	r.Control, err = control.New(control.Config{
		Source: r.source, Records: r.records, Store: s, Listener: l, Authenticator: trust{}, Registerer: r.metrics,
		Resolver: resolve.New(resolve.Config{Fetcher: r.registry, Store: s}),
	})
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
	case r.source.c <- s:
	case <-time.After(10 * time.Second):
		r.t.Fatal("the snapshot is not taken")
	}
}

// apply puts a plugin in the root namespace; edit may be nil.
func (r *rig) apply(name, url string, edit func(*chandler.Plugin)) {
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
	r.deliver()
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
	t     *testing.T
	node  chandler.Node
	stop  func()
	conns chan *grpc.ClientConn

	mu       sync.Mutex
	held     map[string]string
	attached map[string]chandler.Attachment
	updates  int
	bytes    int
}

func (r *rig) options() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return r.dial(ctx) }),
	}
}

func (r *rig) join(node chandler.Node) *agent {
	a := &agent{t: r.t, node: node, held: map[string]string{}, attached: map[string]chandler.Attachment{}}
	a.connect(r)
	return a
}

// connect joins, with what is held from before.
func (a *agent) connect(r *rig) {
	a.conns = make(chan *grpc.ClientConn, 10)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	client := deltaclient.New(deltaclient.Config{
		Targets: []string{"passthrough:///control"}, Dial: r.options(), TypeURL: wire.AttachmentTypeURL,
		Node:    wire.NodeToXDS(a.node),
		Known:   func() map[string]string { a.mu.Lock(); defer a.mu.Unlock(); return maps.Clone(a.held) },
		Handle:  a.handle,
		Session: func(ctx context.Context, conn *grpc.ClientConn) { a.conns <- conn; <-ctx.Done() },
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
		a.held[c.Name], a.attached[c.Name] = c.Version, att
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
	case <-time.After(10 * time.Second):
		a.t.Fatal("not connected")
		return nil
	}
}

func eventually(t *testing.T, ok func() bool, what func() string) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("did not come to pass: %s", what())
		case <-time.After(time.Millisecond):
		}
	}
}

var gateway = chandler.Node{Namespace: "istio-system", Name: "gw", Labels: map[string]string{"istio": "ingressgateway"}}

func TestApplyEditDelete(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	one, two := module.Append(), module.Deny(401)
	r.set("auth:v1", one)
	r.set("auth:v2", two)
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	first := a.has("auth", runs(one))
	if first.Generation != 1 || first.Sequence != 1 || first.Release == "" {
		t.Errorf("attachment %+v", first)
	}
	r.await("auth", chandler.ConditionResolvedRefs, "True Resolved")

	r.apply("auth", "oci://reg.example/auth:v2", nil)
	if second := a.has("auth", runs(two)); second.Sequence != 2 || second.UID != first.UID {
		t.Errorf("attachment %+v", second)
	}
	delete(r.objects, "auth")
	r.deliver()
	eventually(t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.attached) == 0 }, func() string { return "removal" })
	eventually(t, func() bool {
		releases, _ := r.records.Releases(t.Context())
		rollouts, _ := r.records.Rollouts(t.Context())
		return len(releases)+len(rollouts) == 0
	}, func() string { return "records of the deleted plugin go" })
}

func TestOtherNodesAndLateOnes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	r.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Selector = map[string]string{"istio": "ingressgateway"} })
	r.await("auth", chandler.ConditionResolvedRefs, "True Resolved")
	late := r.join(gateway)
	late.has("auth", runs(mod))
	other := r.join(chandler.Node{Namespace: "shop", Name: "cart"})
	eventually(t, func() bool { other.mu.Lock(); defer other.mu.Unlock(); return other.updates == 1 }, func() string { return "first answer" })
	if len(other.attached) != 0 {
		t.Errorf("a node that is not selected got %v", other.held)
	}
}

// A working plugin whose URL is edited to what does not exist stays as it was,
// and the status says why.
func TestUnresolvableKeepsTheLastRelease(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	a.has("auth", runs(mod))

	r.apply("auth", "oci://reg.example/auth:v9", nil)
	r.await("auth", chandler.ConditionResolvedRefs, "False NotFound")
	if s := r.status("auth"); s.Attempt == 0 || s.NextTry.IsZero() || s.Release == nil || s.Release.Generation != 1 {
		t.Errorf("status %+v", s)
	}
	r.set("auth:v8", []byte("not a module"))
	r.apply("auth", "oci://reg.example/auth:v8", nil)
	r.await("auth", chandler.ConditionResolvedRefs, "False WasmMagic")
	if att := a.has("auth", runs(mod)); att.Generation != 1 {
		t.Errorf("attachment %+v", att)
	}
	// It heals without an edit.
	next := module.Deny(403)
	r.set("auth:v8", next)
	a.has("auth", runs(next))
	r.await("auth", chandler.ConditionResolvedRefs, "True Resolved")
}

func TestFirstAttachDeny(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a := r.join(gateway)
	deny := func(p *chandler.Plugin) { p.FirstAttach = chandler.FirstAttachDeny }
	r.apply("auth", "oci://reg.example/auth:v1", deny)
	a.has("auth", func(att chandler.Attachment) bool { return att.Program.Deny })
	r.await("auth", chandler.ConditionResolvedRefs, "False NotFound")
	mod := module.Append()
	r.set("auth:v1", mod)
	a.has("auth", runs(mod))
	// An update is never denied.
	r.apply("auth", "oci://reg.example/auth:v2", deny)
	r.await("auth", chandler.ConditionResolvedRefs, "False NotFound")
	a.has("auth", runs(mod))
}

func TestInvalidEditKeepsTheLastRelease(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	a.has("auth", runs(mod))
	o := r.objects["auth"]
	o.Generation++
	o.Problems = []chandler.Problem{{Code: chandler.CodeSpecEnum, Field: "spec.phase", Message: "phase is not known"}}
	r.objects["auth"] = o
	r.deliver()
	r.await("auth", chandler.ConditionAccepted, "False SpecEnum")
	a.has("auth", runs(mod))
}

// A restart with nothing to fetch from: the same versions, no resource bytes, and
// nobody is answered before the resources are read.
func TestRestartWithoutRegistry(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	before := a.has("auth", runs(mod))
	a.stop()

	r.fail(errors.New("the registry is away"))
	calls := r.count()
	r.restart()
	a.mu.Lock()
	held := maps.Clone(a.held)
	a.updates, a.bytes = 0, 0
	a.mu.Unlock()
	a.connect(r)
	eventually(t, func() bool { return gauge(t, r.metrics, "chandler_agents") == 1 }, func() string { return "connected" })
	if r.Ready() == nil || a.updates != 0 {
		t.Error("answered before the resources were read")
	}
	r.deliver()
	eventually(t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.updates == 1 }, func() string { return "first answer" })
	if a.bytes != 0 || !maps.Equal(a.held, held) {
		t.Errorf("%d bytes; held %v, before %v", a.bytes, a.held, held)
	}
	fresh := r.join(chandler.Node{Namespace: "istio-system", Name: "gw2"})
	if after := fresh.has("auth", runs(mod)); after.Sequence != before.Sequence || after.Release != before.Release {
		t.Errorf("after the restart %+v, before %+v", after, before)
	}
	if r.count() != calls {
		t.Error("the restart asked the registry")
	}
	// A change of configuration alone needs no registry either.
	r.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Wasm.Config = []byte(`{"a":1}`) })
	fresh.has("auth", func(att chandler.Attachment) bool {
		return string(att.Config) == `{"a":1}` && att.Sequence == before.Sequence+1
	})
}

// Records that are lost make no agent detach: it keeps what it has until there is
// a release again.
func TestLostRecordsDetachNobody(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	a.has("auth", runs(mod))
	a.stop()
	r.fail(errors.New("the registry is away"))
	r.records, r.dir = record.NewMemory(), t.TempDir()
	r.restart()
	a.updates = 0
	a.connect(r)
	r.deliver()
	eventually(t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.updates >= 1 }, func() string { return "first answer" })
	a.has("auth", runs(mod))
	r.await("auth", chandler.ConditionResolvedRefs, "False Internal")
	if s := r.status("auth"); s.InForce != 0 {
		t.Error("claims to be in force what is not known")
	}
	r.fail(nil)
	r.await("auth", chandler.ConditionResolvedRefs, "True Resolved")
	a.has("auth", runs(mod))
}

func (a *agent) report() grpc.BidiStreamingClient[chandlerv1.ReportRequest, chandlerv1.ReportResponse] {
	a.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	a.t.Cleanup(cancel)
	str, err := chandlerv1.NewReportsClient(a.conn()).Report(ctx)
	if err != nil {
		a.t.Fatal(err)
	}
	return str
}

func say(t *testing.T, str grpc.BidiStreamingClient[chandlerv1.ReportRequest, chandlerv1.ReportResponse], rep wire.Report) error {
	t.Helper()
	if err := str.Send(wire.ReportToProto(rep)); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	resp, err := str.Recv()
	if err == nil && resp.GetSequence() != rep.Sequence {
		t.Errorf("report %d was answered as %d", rep.Sequence, resp.GetSequence())
	}
	return err
}

func stateOf(att chandler.Attachment, state chandler.State, rejections uint64) chandler.AttachmentState {
	s := chandler.AttachmentState{
		Key: att.Key, UID: att.UID, Generation: att.Generation, Release: att.Release, Sequence: att.Sequence,
		State: state, Rejections: rejections,
	}
	switch state {
	case chandler.StateInForce:
		s.InForce = att.Release
	case chandler.StateRejected:
		s.Reason, s.Message = chandler.CodeRejected, "Unable to create Wasm plugin"
	}
	return s
}

func TestReportsBecomeStatusAndMetrics(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	att := a.has("auth", runs(mod))
	r.await("auth", chandler.ConditionReady, "False Progressing")

	str := a.report()
	node := a.node
	if err := say(t, str, wire.Report{Node: &node, Sequence: 1, Full: true, States: []chandler.AttachmentState{stateOf(att, chandler.StateRejected, 2)}}); err != nil {
		t.Fatal(err)
	}
	r.await("auth", chandler.ConditionReady, "False Rejected")
	if got := gauge(t, r.metrics, "pilot_total_xds_rejects"); got != 2 {
		t.Errorf("%v rejects, want 2", got)
	}
	if err := say(t, str, wire.Report{Sequence: 2, States: []chandler.AttachmentState{stateOf(att, chandler.StateInForce, 3)}}); err != nil {
		t.Fatal(err)
	}
	r.await("auth", chandler.ConditionReady, "True Ready")
	if s := r.status("auth"); s.Desired != 1 || s.InForce != 1 || s.Failed != 0 || !s.Proxies[0].Connected {
		t.Errorf("status %+v", s)
	}
	// The agent begins anew: its counter does too.
	again := a.report()
	if err := say(t, again, wire.Report{Node: &node, Sequence: 1, Full: true, States: []chandler.AttachmentState{stateOf(att, chandler.StateInForce, 1)}}); err != nil {
		t.Fatal(err)
	}
	if got := gauge(t, r.metrics, "pilot_total_xds_rejects"); got != 4 {
		t.Errorf("%v rejects, want 2 + 1 + 1", got)
	}
	if err := say(t, str, wire.Report{Sequence: 3, States: []chandler.AttachmentState{stateOf(att, chandler.StateRejected, 9)}}); status.Code(err) != codes.Aborted {
		t.Errorf("the older stream still counts: %v", err)
	}
	if got := gauge(t, r.metrics, "chandler_plugin_proxies", "state", "in_force"); got != 1 {
		t.Errorf("chandler_plugin_proxies in_force is %v", got)
	}
	if got := gauge(t, r.metrics, "chandler_plugin_release_info", "release", string(att.Release)); got != 1 {
		t.Errorf("chandler_plugin_release_info is %v", got)
	}

	since := r.status("auth").Conditions[3].LastTransition
	a.stop()
	eventually(t, func() bool { return !r.status("auth").Proxies[0].Connected }, func() string { return "shown as away" })
	s := r.status("auth")
	if s.Desired != 0 || s.InForce != 0 || s.Conditions[3].Status == chandler.True {
		t.Errorf("counts who is away: %+v", s)
	}
	if !s.Conditions[3].LastTransition.After(since) {
		t.Error("the condition changed and its time did not")
	}
}

func TestReportsThatAreRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.deliver()
	a := r.join(gateway)
	node, other := a.node, chandler.Node{Namespace: "x", Name: "y"}
	for name, reports := range map[string][]wire.Report{
		"no node":         {{Sequence: 1, Full: true}},
		"not full":        {{Node: &node, Sequence: 1}},
		"node changes":    {{Node: &node, Sequence: 1, Full: true}, {Node: &other, Sequence: 2}},
		"sequence stands": {{Node: &node, Sequence: 5, Full: true}, {Sequence: 5}},
	} {
		str := a.report()
		var err error
		for _, rep := range reports {
			err = say(t, str, rep)
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func (a *agent) read(digest string, offset uint64) ([]byte, error) {
	a.t.Helper()
	str, err := chandlerv1.NewModulesClient(a.conn()).Read(a.t.Context(), &chandlerv1.ReadRequest{Node: wire.NodeToProto(a.node), Digest: digest, Offset: offset})
	if err != nil {
		return nil, err
	}
	var got []byte
	for first := true; ; first = false {
		m, err := str.Recv()
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err != nil {
			return got, err
		}
		if first != (m.GetSize() > 0) {
			a.t.Error("the size belongs in the first message and no other")
		}
		got = append(got, m.GetChunk()...)
	}
}

func TestModulesAreForTheirNodesOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append(module.WithSection("pad", make([]byte, 200<<10)))
	r.set("auth:v1", mod)
	a, stranger := r.join(gateway), r.join(chandler.Node{Namespace: "shop", Name: "cart"})
	r.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Selector = gateway.Labels })
	digest := string(a.has("auth", runs(mod)).Program.Module.Digest)

	if got, err := a.read(digest, 0); err != nil || !bytes.Equal(got, mod) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if got, err := a.read(digest, 150_000); err != nil || !bytes.Equal(got, mod[150_000:]) {
		t.Errorf("from the middle %d bytes, %v", len(got), err)
	}
	if got, err := a.read(digest, uint64(len(mod))); err != nil || len(got) != 0 {
		t.Errorf("from the end %d bytes, %v", len(got), err)
	}
	if _, err := a.read(digest, uint64(len(mod))+1); status.Code(err) != codes.OutOfRange {
		t.Errorf("past the end: %v", err)
	}
	_, denied := stranger.read(digest, 0)
	_, unknown := stranger.read("sha256:"+strings.Repeat("0", 64), 0)
	_, malformed := stranger.read("../../etc/passwd", 0)
	if status.Code(denied) != codes.NotFound || denied.Error() != unknown.Error() || denied.Error() != malformed.Error() {
		t.Errorf("answers differ: %v; %v; %v", denied, unknown, malformed)
	}
	if got := gauge(t, r.metrics, "chandler_module_bytes_sent_total"); got != float64(2*len(mod)-150_000) {
		t.Errorf("%v bytes counted", got)
	}
}

// The store was emptied while the control plane was down: the module comes back
// by its digest, unasked.
func TestMissingModuleIsFetchedAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	r.await("auth", chandler.ConditionResolvedRefs, "True Resolved")
	r.set("auth:v1", module.Deny(500)) // the tag moved meanwhile
	r.set("auth:old", mod)
	r.dir = t.TempDir()
	r.restart()
	a := r.join(gateway)
	r.deliver()
	digest := string(a.has("auth", runs(mod)).Program.Module.Digest)
	eventually(t, func() bool {
		got, err := a.read(digest, 0)
		if err != nil && status.Code(err) != codes.Unavailable {
			t.Fatal(err)
		}
		return bytes.Equal(got, mod)
	}, func() string { return "the module is back" })
}

func TestPullSecretMustBeThere(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.set("auth:v1", module.Append())
	r.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Wasm.PullSecret = "s" })
	r.await("auth", chandler.ConditionResolvedRefs, "False SecretType")
	r.secrets = map[source.SecretName]source.Secret{{Namespace: "istio-system", Name: "s"}: {DockerConfigJSON: []byte(`{"auths":{}}`)}}
	began := time.Now()
	r.deliver()
	r.await("auth", chandler.ConditionResolvedRefs, "True Resolved")
	if time.Since(began) > 5*time.Second {
		t.Error("a secret that came was not tried at once")
	}
}

// F58, and the hundred edits of the walkthrough: the last one wins.
func TestManyEditsTheLastOneWins(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	a := r.join(gateway)
	for i := range 100 {
		r.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Wasm.Config = fmt.Appendf(nil, `{"n":%d}`, i) })
	}
	a.has("auth", func(att chandler.Attachment) bool { return string(att.Config) == `{"n":99}` })
	eventually(t, func() bool {
		releases, err := r.records.Releases(t.Context())
		return err == nil && len(releases) <= 11
	}, func() string { return "old releases go" })
	if calls := r.count(); calls > 10 {
		t.Errorf("a hundred configurations of one module made %d requests", calls)
	}
}

func TestManyPluginsAndOneThatHangs(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	a := r.join(gateway)
	for i := range 50 {
		url := "oci://reg.example/auth:v1"
		if i%2 == 0 {
			url = "oci://reg.example/missing:v1"
		}
		r.apply(fmt.Sprintf("p%02d", i), url, nil)
	}
	eventually(t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.attached) == 25 }, func() string { return "25 plugins" })
}

func TestLoopbackBelievesThisMachineOnly(t *testing.T) {
	t.Parallel()
	// bufconn's peer has no address of this machine.
	r := newRig(t)
	s, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, test := range []struct {
		network, addr string
		want          codes.Code
	}{{"tcp", "127.0.0.1:0", codes.Unavailable}, {"bufconn", "", codes.Unauthenticated}} {
		var l net.Listener
		dial := r.options()
		if test.network == "tcp" {
			if l, err = net.Listen("tcp", test.addr); err != nil {
				t.Fatal(err)
			}
			dial = []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
		} else {
			b := bufconn.Listen(1 << 16)
			l = b
			dial = []grpc.DialOption{
				grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return b.DialContext(ctx) }),
			}
		}
		c, err := control.New(control.Config{
			Source: edits{make(chan source.Snapshot)}, Records: record.NewMemory(), Store: s, Listener: l,
			Resolver: resolve.New(resolve.Config{Fetcher: r.registry, Store: s}),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		conn, err := grpc.NewClient("passthrough:///"+l.Addr().String(), dial...)
		if err != nil {
			t.Fatal(err)
		}
		str, err := chandlerv1.NewModulesClient(conn).Read(ctx, &chandlerv1.ReadRequest{Node: wire.NodeToProto(gateway), Digest: "x"}, grpc.WaitForReady(true))
		if err == nil {
			_, err = str.Recv()
		}
		if status.Code(err) != test.want {
			t.Errorf("%s: %v", test.network, err)
		}
		conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// gauge gives the value of the only series of a metric with the given label.
func gauge(t *testing.T, reg *prometheus.Registry, name string, label ...string) float64 {
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
