package remotewasm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	wasmfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	networkv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/xds/relay"
)

func TestMain(m *testing.M) { leaks.Main(m) }

// plugin is a resource as Istio sends it.
type plugin struct {
	name, url       string
	sha256          string
	secret          *string
	policy, version string
	strategy        wasmv3.FailurePolicy
	network         bool
	config          string
	local           bool
	more            []string // urls of further modules: it is a listener, even with an empty one
}

// kind is the type of the resource.
func (p plugin) kind() string {
	if p.more != nil {
		return ListenerType
	}
	return attach.ExtensionConfigType
}

// urls are those of all its modules.
func (p plugin) urls() []string {
	return slices.DeleteFunc(append([]string{p.url}, p.more...), func(url string) bool { return url == "" })
}

// tester is a testing.TB, or a rapid.T.
type tester interface {
	Errorf(format string, args ...any)
	Fatal(args ...any)
}

func (p plugin) body(t tester) []byte {
	if p.more != nil {
		return p.listener(t)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&corev3.TypedExtensionConfig{Name: p.name, TypedConfig: p.filter(t)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// listener is a listener with a filter for each module.
func (p plugin) listener(t tester) []byte {
	manager := &hcmv3.HttpConnectionManager{StatPrefix: p.config}
	for _, url := range p.urls() {
		one := p
		one.url = url
		manager.HttpFilters = append(manager.HttpFilters, &hcmv3.HttpFilter{Name: url, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: one.filter(t)}})
	}
	typed := &anypb.Any{}
	err := anypb.MarshalFrom(typed, manager, proto.MarshalOptions{Deterministic: true})
	if err != nil {
		t.Fatal(err)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&listenerv3.Listener{Name: p.name, FilterChains: []*listenerv3.FilterChain{{
		Filters: []*listenerv3.Filter{{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: typed}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// filter is the configuration of its filter.
func (p plugin) filter(t tester) *anypb.Any {
	env := map[string]string{"MINE": "1"}
	for name, value := range map[string]string{"ISTIO_META_WASM_IMAGE_PULL_POLICY": p.policy, "ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION": p.version} {
		if value != "" {
			env[name] = value
		}
	}
	if p.secret != nil {
		env["ISTIO_META_WASM_IMAGE_PULL_SECRET"] = *p.secret
	}
	code := &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Remote{Remote: &corev3.RemoteDataSource{
		HttpUri: &corev3.HttpUri{Uri: p.url}, Sha256: p.sha256}}}
	if p.local {
		code = &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Local{Local: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: p.url}}}}
	}
	config := &wasmv3.PluginConfig{
		Name: p.name, RootId: p.config, FailurePolicy: p.strategy,
		Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{Code: code, EnvironmentVariables: &wasmv3.EnvironmentVariables{KeyValues: env}}},
	}
	var filter proto.Message = &wasmfilterv3.Wasm{Config: config}
	if p.network {
		filter = &networkv3.Wasm{Config: config}
	}
	typed := &anypb.Any{}
	if err := anypb.MarshalFrom(typed, filter, proto.MarshalOptions{Deterministic: true}); err != nil {
		t.Fatal(err)
	}
	return typed
}

// depot has modules at urls, and a disk.
type depot struct {
	t       tester
	mu      sync.Mutex
	modules map[string]string   // contents by url
	failing map[string]*Failure // urls
	slow    time.Duration
	disk    map[chandler.ModuleDigest]bool
	held    map[chandler.ModuleDigest]int
	asked   []string
	flying  int
	most    int
}

func newDepot(t tester) *depot {
	return &depot{t: t, modules: map[string]string{}, failing: map[string]*Failure{}, disk: map[chandler.ModuleDigest]bool{}, held: map[chandler.ModuleDigest]int{}}
}

type lease struct {
	depot    *depot
	digest   chandler.ModuleDigest
	released bool
}

func (l *lease) Path() string                  { return "/store/" + l.digest.Hex() + ".wasm" }
func (l *lease) Digest() chandler.ModuleDigest { return l.digest }
func (l *lease) Release() {
	l.depot.mu.Lock()
	defer l.depot.mu.Unlock()
	if l.released {
		l.depot.t.Errorf("%s is released twice", l.digest)
	}
	l.released = true
	l.depot.held[l.digest]--
}

func digestOf(content string) chandler.ModuleDigest {
	return chandler.Digest[chandler.ModuleDigest]([]byte(content))
}

var away = &Failure{Problem: chandler.Problem{Code: chandler.CodeFetchFailed, Message: "the connection is refused"}, Temporary: true}

func (d *depot) Fetch(ctx context.Context, q *Request) (Module, *Failure) {
	d.mu.Lock()
	d.asked = append(d.asked, q.Reference.String())
	d.flying++
	d.most = max(d.most, d.flying)
	slow := d.slow
	d.mu.Unlock()
	select {
	case <-time.After(slow):
	case <-ctx.Done():
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flying--
	content, ok := d.modules[q.Reference.String()]
	switch why := d.failing[q.Reference.String()]; {
	case ctx.Err() != nil:
		return nil, away
	case why != nil:
		return nil, why
	case !ok:
		return nil, &Failure{Problem: chandler.Problem{Code: chandler.CodeNotFound, Message: "it is not there"}}
	}
	d.disk[digestOf(content)] = true
	d.held[digestOf(content)]++
	return &lease{depot: d, digest: digestOf(content)}, nil
}

func (d *depot) Hold(digest chandler.ModuleDigest) (Module, *Failure) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.disk[digest] {
		return nil, &Failure{Problem: chandler.Problem{Code: chandler.CodeNotFound, Message: "it is not on disk"}, Lost: true}
	}
	d.held[digest]++
	return &lease{depot: d, digest: digest}, nil
}

func (d *depot) put(url, content string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.modules[url] = content
}

func (d *depot) fails(why *Failure, urls ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, url := range urls {
		d.failing[url] = why
	}
}

func (d *depot) tries() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.asked)
}

func (d *depot) inUse() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, held := range d.held {
		n += held
	}
	return n
}

// world is an upstream, a keeper, and an Envoy behind a relay.
type world struct {
	*testing.T
	depot    *depot
	dir      string
	starting bool
	gone     bool // Envoy asks for nothing
	keeper   *Keeper
	stop     func()
	counts   map[string]int

	mu      sync.Mutex
	bodies  map[string][]byte // of the upstream
	envoy   map[string]string // what Envoy has: see shown
	refuses map[string]bool
	updates int
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, depot: newDepot(t), dir: t.TempDir(), bodies: map[string][]byte{}, envoy: map[string]string{}, refuses: map[string]bool{}}
	w.start()
	return w
}

// start is of agent and Envoy, begin of the agent.
func (w *world) start() {
	w.begin()
	w.keeper.Another()
}

func (w *world) begin() {
	w.counts = map[string]int{}
	ctx, cancel := context.WithCancel(w.Context())
	w.keeper = New(Config{
		Type: attach.ExtensionConfigType, Fetcher: w.depot, Dir: w.dir, Starting: func() bool { return w.starting },
		Changed: func(names ...string) {
			for _, name := range names {
				w.deliver(name)
			}
		},
		Converted: func(result string, _ time.Duration) { w.counts[result]++ },
	})
	done := make(chan struct{})
	go func() { defer close(done); w.keeper.Run(ctx) }()
	w.stop = func() {
		cancel()
		<-done
		if n := w.depot.inUse(); n != 0 {
			w.Errorf("%d modules are kept after the end", n)
		}
	}
}

// restart is of agent and Envoy.
func (w *world) restart() {
	w.stop()
	w.envoy = map[string]string{}
	w.start()
}

// says is the upstream's newest word.
func (w *world) says(p plugin) {
	w.Helper()
	w.mu.Lock()
	w.bodies[p.name] = p.body(w)
	w.mu.Unlock()
	w.deliver(p.name)
}

// deliver is what a relay does: it asks what Envoy gets, and hands it on.
func (w *world) deliver(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone {
		return
	}
	body, ready := w.keeper.Transform(relay.Resource{Type: attach.ExtensionConfigType, Name: name, Body: w.bodies[name]})
	if !ready {
		return
	}
	if bytes.Contains(body, []byte("ISTIO_META")) {
		w.Errorf("%s: Envoy gets what is private", name)
	}
	got := shown(w, body)
	if got == w.envoy[name] {
		return
	}
	ev := relay.Event{Type: attach.ExtensionConfigType}
	if w.refuses[got] {
		ev.Refused = []string{name}
	} else {
		w.envoy[name] = got
		w.updates++
		ev.Acked = []string{name}
	}
	w.keeper.Tell(ev)
}

// shown is a form in words: its stand-in, or the content at the end of the path.
func shown(t testing.TB, body []byte) string {
	config := &corev3.TypedExtensionConfig{}
	if err := proto.Unmarshal(body, config); err != nil {
		t.Fatal(err)
	}
	plugin := &wasmv3.PluginConfig{}
	switch kind := config.TypedConfig.TypeUrl; {
	case strings.HasSuffix(kind, "http.wasm.v3.Wasm"):
		filter := &wasmfilterv3.Wasm{}
		if err := config.TypedConfig.UnmarshalTo(filter); err != nil {
			t.Fatal(err)
		}
		plugin = filter.Config
	case strings.HasSuffix(kind, "network.wasm.v3.Wasm"):
		filter := &networkv3.Wasm{}
		if err := config.TypedConfig.UnmarshalTo(filter); err != nil {
			t.Fatal(err)
		}
		plugin = filter.Config
	case strings.Contains(kind, "rbac") && bytes.Contains(config.TypedConfig.Value, []byte{0x0a, 0x00}):
		return "denies"
	case strings.Contains(kind, "rbac"), strings.Contains(kind, "FilterChainConfig"):
		if len(config.TypedConfig.Value) > 0 && strings.Contains(kind, "network") {
			return "denies or passes: " + fmt.Sprintf("%x", config.TypedConfig.Value)
		}
		return "passes"
	default:
		t.Fatalf("Envoy gets a %s", kind)
	}
	return plugin.RootId + "@" + filepath.Base(plugin.GetVmConfig().GetCode().GetLocal().GetFilename())
}

// file is how shown shows a module.
func file(config, content string) string { return config + "@" + digestOf(content).Hex() + ".wasm" }

// has holds what Envoy has after a time.
func (w *world) has(after time.Duration, name, want string) {
	w.Helper()
	time.Sleep(after)
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if got := w.envoy[name]; got != want {
		w.Errorf("Envoy has %q for %s, want %q", got, name, want)
	}
}

func (w *world) tried(want int) {
	w.Helper()
	if got := w.depot.tries(); got != want {
		w.Errorf("%d modules were asked for, want %d: %v", got, want, w.depot.asked)
	}
}

// in runs a test in its own time.
func in(t *testing.T, test func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		test(w)
	})
}

const (
	one   = "oci://registry.example/one:v1"
	other = "oci://registry.example/one:v2"
)

func TestFirstIsHeldUntilItIsHere(t *testing.T) {
	in(t, func(w *world) {
		w.depot.put(one, "1")
		w.depot.slow = 3 * time.Second
		w.says(plugin{name: "a", url: one, version: "7"})
		w.has(2*time.Second, "a", "")
		w.has(2*time.Second, "a", file("", "1"))
		if w.counts[Success] != 1 {
			t.Errorf("counted: %v", w.counts)
		}
		if s := w.keeper.Status(); len(s) != 1 || !s[0].InForce || s[0].Digest != digestOf("1") || s[0].Module != one {
			t.Errorf("status: %+v", s)
		}
	})
}

// What cannot be had has an end, by failStrategy; and heals.
func TestStandIn(t *testing.T) {
	for _, tc := range []struct {
		strategy wasmv3.FailurePolicy
		starting bool
		network  bool
		after    time.Duration
		want     string
	}{
		{strategy: wasmv3.FailurePolicy_FAIL_CLOSED, after: servingPatience, want: "denies"},
		{strategy: wasmv3.FailurePolicy_FAIL_RELOAD, after: servingPatience, want: "denies"},
		{strategy: wasmv3.FailurePolicy_UNSPECIFIED, after: servingPatience, want: "denies"},
		{strategy: wasmv3.FailurePolicy_FAIL_OPEN, after: servingPatience, want: "passes"},
		{strategy: wasmv3.FailurePolicy_FAIL_CLOSED, starting: true, after: startingPatience, want: "denies"},
	} {
		t.Run(fmt.Sprint(tc.strategy, tc.starting), func(t *testing.T) {
			in(t, func(w *world) {
				w.starting = tc.starting
				w.depot.put(one, "1")
				w.depot.fails(away, one)
				w.says(plugin{name: "a", url: one, strategy: tc.strategy})
				w.has(tc.after-time.Second, "a", "")
				w.has(2*time.Second, "a", tc.want)
				if s := w.keeper.Status()[0]; s.InForce || !s.StandIn || s.Problem == nil || s.Tries < 2 {
					t.Errorf("status: %+v", s)
				}
				w.depot.fails(nil, one)
				w.has(maxTemporary, "a", file("", "1"))
			})
		})
	}
}

// An edit does not hold a listener for longer, and the newest edit decides what stands in.
func TestDeadlineIsNotPutOff(t *testing.T) {
	in(t, func(w *world) {
		for i := range 4 {
			w.says(plugin{name: "a", url: fmt.Sprint(one, i)})
			w.has(9*time.Second, "a", map[bool]string{true: "", false: "denies"}[i < 3])
		}
		w.says(plugin{name: "a", url: one, strategy: wasmv3.FailurePolicy_FAIL_OPEN})
		w.has(0, "a", "passes")
	})
}

// What works stays, however long what follows cannot be had.
func TestLastGoodStays(t *testing.T) {
	in(t, func(w *world) {
		w.depot.put(one, "1")
		w.says(plugin{name: "a", url: one, config: "x"})
		w.has(time.Second, "a", file("x", "1"))
		w.says(plugin{name: "a", url: other, config: "y"})
		w.has(24*time.Hour, "a", file("x", "1"))
		tries := w.depot.tries()
		if tries > 24*12*3 || tries < 24*12 {
			t.Errorf("%d tries in a day", tries)
		}
		if s := w.keeper.Status()[0]; !s.InForce || s.Problem.Code != chandler.CodeNotFound {
			t.Errorf("status: %+v", s)
		}
		w.depot.put(other, "2")
		w.has(maxLasting, "a", file("y", "2"))
		w.has(keepLeft+time.Second, "a", file("y", "2"))
		if n := w.depot.inUse(); n != 1 {
			t.Errorf("%d modules are kept", n)
		}
	})
}

// Of many edits during a download only the last reaches Envoy.
func TestNewestWins(t *testing.T) {
	in(t, func(w *world) {
		w.depot.slow = 5 * time.Second
		for i := range 10 {
			url := fmt.Sprint(one, i)
			w.depot.put(url, url)
			w.says(plugin{name: "a", url: url})
			time.Sleep(100 * time.Millisecond)
		}
		w.has(10*time.Second, "a", file("", one+"9"))
		if w.updates != 1 {
			t.Errorf("%d updates", w.updates)
		}
		if n := w.depot.inUse(); n > maxWanted {
			t.Errorf("%d modules are kept", n)
		}
	})
}

func TestPullPolicy(t *testing.T) {
	const pin = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for name, tc := range map[string]struct {
		first, second plugin
		again         bool
	}{
		"default":         {plugin{url: one, version: "1"}, plugin{url: one, version: "2"}, false},
		"if not present":  {plugin{url: one, version: "1", policy: "IfNotPresent"}, plugin{url: one, version: "2", policy: "IfNotPresent"}, false},
		"latest, kept":    {plugin{url: "oci://r.example/a:latest", version: "1", policy: "IfNotPresent"}, plugin{url: "oci://r.example/a:latest", version: "2", policy: "IfNotPresent"}, false},
		"always":          {plugin{url: one, version: "1", policy: "Always"}, plugin{url: one, version: "2", policy: "Always"}, true},
		"always, same":    {plugin{url: one, version: "1", policy: "Always"}, plugin{url: one, version: "1", policy: "Always", config: "x"}, false},
		"latest":          {plugin{url: "oci://r.example/a:latest", version: "1"}, plugin{url: "oci://r.example/a:latest", version: "2"}, true},
		"no tag":          {plugin{url: "oci://r.example/a", version: "1"}, plugin{url: "oci://r.example/a", version: "2"}, true},
		"no version told": {plugin{url: one, policy: "Always"}, plugin{url: one, policy: "Always", config: "x"}, true},
		"pinned":          {plugin{url: one + "@" + pin, version: "1", policy: "Always"}, plugin{url: one + "@" + pin, version: "2", policy: "Always"}, false},
		"http":            {plugin{url: "https://h.example/a.wasm?t=1", version: "1"}, plugin{url: "https://h.example/a.wasm?t=1", version: "2"}, false},
		"http, always":    {plugin{url: "https://h.example/a.wasm", version: "1", policy: "Always"}, plugin{url: "https://h.example/a.wasm", version: "2", policy: "Always"}, true},
		"another query":   {plugin{url: "https://h.example/a.wasm?t=1"}, plugin{url: "https://h.example/a.wasm?t=2"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(w *world) {
				tc.first.name, tc.second.name = "a", "a"
				w.depot.put(tc.first.url, "1")
				w.depot.put(tc.second.url, "1")
				w.says(tc.first)
				w.has(time.Second, "a", file("", "1"))
				w.tried(1)
				w.says(tc.second)
				w.has(time.Second, "a", file(tc.second.config, "1"))
				w.tried(map[bool]int{false: 1, true: 2}[tc.again])
			})
		})
	}
}

// Resources that show the same secret share a module; others do not, and a secret that
// changes costs no download.
func TestSecrets(t *testing.T) {
	in(t, func(w *world) {
		mine, yours, empty := `{"auths":{"mine":{}}}`, `{"auths":{"yours":{}}}`, ""
		w.depot.put(one, "1")
		w.says(plugin{name: "a", url: one, secret: &mine})
		w.says(plugin{name: "b", url: one, secret: &mine})
		w.has(time.Second, "a", file("", "1"))
		w.has(0, "b", file("", "1"))
		w.tried(1)
		w.says(plugin{name: "a", url: one, secret: &yours})
		w.has(time.Second, "a", file("", "1"))
		w.tried(1)
		w.depot.fails(&Failure{Problem: chandler.Problem{Code: chandler.CodeUnauthorized}}, one)
		w.says(plugin{name: "c", url: one, secret: &yours})
		w.has(servingPatience+time.Second, "c", "denies")
		// The upstream found no secret: nobody is asked without one.
		tries := w.depot.tries()
		w.says(plugin{name: "d", url: one, secret: &empty})
		w.has(servingPatience+time.Second, "d", "denies")
		i := slices.IndexFunc(w.keeper.Status(), func(s Status) bool { return s.Name == "d" })
		if p := w.keeper.Status()[i].Problem; p == nil || p.Code != chandler.CodeSecretType {
			t.Errorf("d: %v", p)
		}
		w.says(plugin{name: "c", url: other}) // which is asked for no more
		w.depot.mu.Lock()
		for _, url := range w.depot.asked[tries:] {
			if url != one {
				t.Errorf("asked for %s", url)
			}
		}
		w.depot.mu.Unlock()
		file, err := os.ReadFile(filepath.Join(w.dir, recordsFiles[attach.ExtensionConfigType]))
		if err != nil || bytes.Contains(file, []byte("auths")) || bytes.Contains(file, []byte("registry.example")) {
			t.Errorf("on disk: %v, %s", err, file)
		}
	})
}

func TestDiscreet(t *testing.T) {
	secret := `{"auths":{"mine":{"password":"pw"}}}`
	with, without := plugin{name: "a", url: one, secret: &secret}.body(t), plugin{name: "a", url: one}.body(t)
	kept, had := Discreet(attach.ExtensionConfigType, with)
	if !had || bytes.Contains(kept, []byte("pw")) {
		t.Errorf("kept %q", kept)
	}
	if same, had := Discreet(attach.ExtensionConfigType, without); had || !bytes.Equal(same, without) {
		t.Error("what has no secret is not kept as it is")
	}
	if same, had := Discreet("type.googleapis.com/some.Other", with); had || !bytes.Equal(same, with) {
		t.Error("what is of another type is not kept as it is")
	}
}

// After a restart without registry and upstream all is served that was in force, also of
// what is kept without its secret.
func TestRestart(t *testing.T) {
	in(t, func(w *world) {
		secret := `{"auths":{"mine":{}}}`
		w.depot.put(one, "1")
		good := plugin{name: "a", url: one, secret: &secret, policy: "Always", config: "x"}
		w.says(good)
		w.says(plugin{name: "b", url: one, config: "b"})
		w.has(time.Second, "a", file("x", "1"))
		w.says(plugin{name: "a", url: other, secret: &secret})
		w.has(time.Hour, "a", file("x", "1"))
		w.depot.fails(away, one, other)
		for range 2 {
			w.restart()
			w.bodies["a"], _ = Discreet(attach.ExtensionConfigType, good.body(t)) // the relay remembers what Envoy took
			w.deliver("a")
			w.deliver("b")
			w.has(time.Second, "a", file("x", "1"))
			w.has(0, "b", file("b", "1"))
			w.says(plugin{name: "a", url: other, secret: &secret})
			w.has(time.Hour, "a", file("x", "1"))
		}
		// Without the file the module is asked for again, and not without its secret.
		w.stop()
		clear(w.depot.disk)
		w.envoy = map[string]string{}
		w.start()
		tries := w.depot.tries()
		w.bodies["a"], _ = Discreet(attach.ExtensionConfigType, good.body(t))
		w.deliver("a")
		w.has(servingPatience+time.Second, "a", "denies")
		if n := w.depot.tries(); n != tries {
			t.Errorf("asked %d times without the secret", n-tries)
		}
		w.depot.fails(nil, one)
		w.says(good)
		w.has(time.Second, "a", file("x", "1"))
	})
}

// An Envoy that comes late finds what was in force.
func TestLastGoodWaitsForEnvoy(t *testing.T) {
	in(t, func(w *world) {
		w.depot.put(one, "1")
		w.says(plugin{name: "a", url: one})
		w.has(time.Second, "a", file("", "1"))
		w.depot.fails(away, one)
		w.gone = true
		w.restart()
		w.has(24*time.Hour, "a", "")
		w.gone = false
		w.deliver("a")
		w.has(time.Second, "a", file("", "1"))
		w.keeper.Another()
		w.has(24*time.Hour, "a", file("", "1"))
		w.envoy = map[string]string{}
		w.deliver("a")
		w.has(time.Second, "a", file("", "1"))
	})
}

// A module that Envoy refuses has its stand-in where nothing else is in force, and is
// offered again now and then.
func TestEnvoyRefuses(t *testing.T) {
	in(t, func(w *world) {
		w.depot.put(one, "bad")
		w.depot.put(other, "good")
		w.refuses[file("", "bad")] = true
		w.says(plugin{name: "a", url: one})
		w.has(time.Second, "a", "denies")
		if s := w.keeper.Status()[0]; s.InForce || !s.StandIn || !s.Refused {
			t.Errorf("status: %+v", s)
		}
		w.has(2*refusedPause, "a", "denies")
		w.says(plugin{name: "a", url: other})
		w.has(time.Second, "a", file("", "good"))
		w.says(plugin{name: "a", url: one})
		w.has(time.Hour, "a", file("", "good"))
		if s := w.keeper.Status()[0]; !s.InForce || s.StandIn {
			t.Errorf("status: %+v", s)
		}
		// Another Envoy may think otherwise.
		w.says(plugin{name: "b", url: one})
		w.has(time.Second, "b", "denies")
		clear(w.refuses)
		w.keeper.Another()
		w.envoy = map[string]string{}
		w.deliver("b")
		w.has(time.Second, "b", file("", "bad"))
	})
}

// An Envoy that goes on with what it had under an agent before does not say so: it is not
// taken for one that has nothing.
func TestAdoptedEnvoyKeepsWhatItHas(t *testing.T) {
	in(t, func(w *world) {
		w.depot.put(one, "1")
		w.depot.put(other, "bad")
		w.says(plugin{name: "a", url: one})
		w.has(time.Second, "a", file("", "1"))
		w.stop()
		w.begin()
		w.deliver("a")
		w.says(plugin{name: "a", url: other + "x"})
		w.has(time.Hour, "a", file("", "1"))
		w.refuses[file("", "bad")] = true
		w.says(plugin{name: "a", url: other})
		w.has(time.Hour, "a", file("", "1"))
	})
}

func TestBounds(t *testing.T) {
	in(t, func(w *world) {
		w.depot.slow = time.Second
		for i := range maxNames {
			url := fmt.Sprintf("oci://registry.example/p%d:v1", i)
			w.depot.put(url, url)
			w.says(plugin{name: fmt.Sprint("n", i), url: url})
		}
		w.has(time.Second*(maxNames/maxFetches+1), "n4095", file("", "oci://registry.example/p4095:v1"))
		if w.depot.most > maxFetches {
			t.Errorf("%d fetches at a time", w.depot.most)
		}
		w.depot.put(one, "1")
		w.says(plugin{name: "a", url: one})
		w.has(time.Hour, "a", "denies")
		w.says(plugin{name: strings.Repeat("x", maxName+1), url: one, strategy: wasmv3.FailurePolicy_FAIL_OPEN})
		w.has(0, strings.Repeat("x", maxName+1), "passes")
		w.keeper.Tell(relay.Event{Type: attach.ExtensionConfigType, Left: []string{"n1"}}) // makes room
		w.says(plugin{name: "a", url: one})
		w.has(2*time.Second, "a", file("", "1"))
	})
}

// What nobody asks for is let go of, in a while.
func TestForget(t *testing.T) {
	in(t, func(w *world) {
		w.depot.put(one, "1")
		w.says(plugin{name: "a", url: one})
		w.says(plugin{name: "b", url: one, config: "b"})
		w.has(time.Second, "a", file("", "1"))
		w.keeper.Tell(relay.Event{Type: attach.ExtensionConfigType, Removed: []string{"a"}})
		w.has(keepLeft-2*time.Second, "b", file("b", "1"))
		delete(w.envoy, "a")
		w.deliver("a")
		w.has(time.Second, "a", file("", "1"))
		w.tried(1)
		w.keeper.Tell(relay.Event{Type: attach.ExtensionConfigType, Left: []string{"a", "b", "nobody"}})
		w.has(keepLeft+time.Second, "a", file("", "1"))
		if n := w.depot.inUse(); n != 0 {
			t.Errorf("%d modules are kept", n)
		}
		if kept, err := Kept(w.keeper.cfg.FS, w.dir); err != nil || len(kept) != 0 {
			t.Errorf("kept: %v, %v", kept, err)
		}
	})
}

// A file that is lost comes again, and Envoy goes on meanwhile.
func TestLost(t *testing.T) {
	in(t, func(w *world) {
		w.depot.put(one, "1")
		w.says(plugin{name: "a", url: one})
		w.has(time.Second, "a", file("", "1"))
		if kept, err := Kept(w.keeper.cfg.FS, w.dir); err != nil || !slices.Equal(kept[digestOf("1")], []string{"a"}) {
			t.Errorf("kept: %v, %v", kept, err)
		}
		clear(w.depot.disk)
		w.depot.fails(away, one)
		w.keeper.Lost(digestOf("1"))
		w.has(time.Hour, "a", file("", "1"))
		w.depot.fails(nil, one)
		w.has(2*maxTemporary, "a", file("", "1"))
		if w.updates != 1 || w.depot.inUse() != 1 {
			t.Errorf("%d updates, %d in use", w.updates, w.depot.inUse())
		}
	})
}

// All else goes on as it is.
func TestAsItIs(t *testing.T) {
	in(t, func(w *world) {
		for name, body := range map[string][]byte{
			"local": plugin{name: "local", url: "/x.wasm", local: true}.body(t), "unreadable": {0xff}, "empty": nil,
		} {
			got, ready := w.keeper.Transform(relay.Resource{Type: attach.ExtensionConfigType, Name: name, Body: body})
			if !ready || !bytes.Equal(got, body) {
				t.Errorf("%s: %q, %v", name, got, ready)
			}
		}
		secret := "hunter2"
		got, ready := w.keeper.Transform(relay.Resource{Type: attach.ExtensionConfigType, Name: "local", Body: plugin{name: "local", url: "/x.wasm", local: true, secret: &secret}.body(t)})
		if !ready || bytes.Contains(got, []byte("hunter2")) || !bytes.Contains(got, []byte("/x.wasm")) {
			t.Errorf("local, with a secret: %q, %v", got, ready)
		}
		if w.counts[NoRemoteLoad] != 2 || w.counts[UnreadableWasm] != 1 {
			t.Errorf("counted: %v", w.counts)
		}
		w.says(plugin{name: "nowhere"})
		w.has(servingPatience+time.Second, "nowhere", "denies")
		if w.counts[NoPlaceToFetch] != 1 {
			t.Errorf("counted: %v", w.counts)
		}
		w.depot.put(one, "1")
		w.says(plugin{name: "net", url: one, network: true})
		w.has(time.Second, "net", file("", "1"))
		w.tried(1)
	})
}

// What cannot be written is written later.
func TestDiskThatFails(t *testing.T) {
	in(t, func(w *world) {
		path := filepath.Join(w.dir, recordsFiles[attach.ExtensionConfigType])
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		w.depot.put(one, "1")
		w.says(plugin{name: "a", url: one})
		w.has(time.Minute, "a", file("", "1"))
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		w.has(saveRetry+time.Second, "a", file("", "1"))
		if kept, err := Kept(w.keeper.cfg.FS, w.dir); err != nil || len(kept) != 1 {
			t.Errorf("kept: %v, %v", kept, err)
		}
	})
}

// A file of records that cannot be read is no reason not to start.
func TestRecordsOfNoUse(t *testing.T) {
	for name, text := range map[string]string{
		"json": "{", "digest": `{"resources":[{"name":"a","modules":[{"what":"` + strings.Repeat("0", 64) + `","digest":"sha256:../x"}]}]}`,
		"what": `{"resources":[{"name":"a","modules":[{"what":"xyz","digest":"` + string(digestOf("1")) + `"}]}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(w *world) {
				w.stop()
				if err := os.WriteFile(filepath.Join(w.dir, recordsFiles[attach.ExtensionConfigType]), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				w.start()
				w.depot.put(one, "1")
				w.says(plugin{name: "a", url: one})
				w.has(time.Second, "a", file("", "1"))
			})
		})
	}
}

func FuzzRecords(f *testing.F) {
	f.Add([]byte(`{"resources":[{"name":"a","modules":[{"what":"` + strings.Repeat("0", 64) + `","digest":"` + string(digestOf("1")) + `"}]}]}`))
	f.Add([]byte(`{"resources":null}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, recordsFiles[attach.ExtensionConfigType]), text, 0o600); err != nil {
			t.Fatal(err)
		}
		d := newDepot(t)
		k := New(Config{Type: attach.ExtensionConfigType, Fetcher: d, Dir: dir, Changed: func(...string) {}})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		k.Run(ctx)
		for name, e := range k.state.names {
			if name != e.name || len(e.wanted) == 0 || len(e.wanted) > maxWanted {
				t.Errorf("%q: %+v", name, e)
			}
		}
	})
}

// BenchmarkTransform is a resource whose module is here.
func BenchmarkTransform(b *testing.B) {
	d := newDepot(b)
	k := New(Config{Type: attach.ExtensionConfigType, Fetcher: d, Changed: func(...string) {}})
	res := relay.Resource{Type: attach.ExtensionConfigType, Name: "a", Body: plugin{name: "a", url: one, version: "1", config: strings.Repeat("x", 1000)}.body(b)}
	k.Transform(res)
	for _, s := range k.state.sources {
		k.state.flying++
		k.state.fetched(s, &lease{depot: d, digest: digestOf("1")}, nil, time.Now())
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, ready := k.Transform(res); !ready {
			b.Fatal("it is not here")
		}
	}
}
