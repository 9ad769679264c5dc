package agent

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	wasm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/remotewasm"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/registry"
	"chandler.dev/chandler/internal/testenv/upstream"
	"chandler.dev/chandler/internal/xds/relay"
	"chandler.dev/chandler/internal/xds/relay/edge"
)

// remoting is a fetcher of remote modules with a store of its own, and where they are.
type remoting struct {
	*remoteFetcher
	t        *testing.T
	reg      *prometheus.Registry
	registry *registry.Registry
	files    *registry.Files
}

func newRemoting(t *testing.T) *remoting {
	t.Helper()
	modules := openStore(t, store.Config{MaxModule: 1 << 20})
	r := &remoting{t: t, reg: prometheus.NewRegistry(), registry: startRegistry(t)}
	var err error
	if r.files, err = registry.StartFiles(""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.files.Close)
	w := newRemoteWasm(modules, Config{Data: t.TempDir(), Log: slog.New(slog.DiscardHandler)}, newMetrics(r.reg, modules), aboutUpstream{changed: func(string, ...string) {}})
	r.remoteFetcher = w.fetcher
	t.Cleanup(w.client.Close)
	return r
}

func startRegistry(t *testing.T) *registry.Registry {
	t.Helper()
	reg, err := registry.Start(registry.Config{Username: "user", Password: "hunter2"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reg.Close)
	return reg
}

// pushModule puts a module into the registry and gives its url.
func pushModule(t *testing.T, reg *registry.Registry, tag string, content []byte) string {
	t.Helper()
	if _, err := reg.PutArtifact("plugins/p", tag, "application/vnd.oci.image.manifest.v1+json", "application/vnd.module.wasm.config.v1+json",
		"application/vnd.module.wasm.content.layer.v1+wasm", string(content)); err != nil {
		t.Fatal(err)
	}
	return "oci://" + reg.Addr + "/plugins/p:" + tag
}

// dockerConfig is a pull secret for a host.
func dockerConfig(host, password string) []byte {
	text, _ := json.Marshal(map[string]any{"auths": map[string]any{host: map[string]string{
		"auth": base64.StdEncoding.EncodeToString([]byte("user:" + password))}}})
	return text
}

func (r *remoting) fetchFrom(url, sha256 string, secret []byte) (chandler.ModuleDigest, *remotewasm.Failure) {
	r.t.Helper()
	ref, p := chandler.ParseReference(url)
	if p != nil {
		r.t.Fatal(p)
	}
	m, why := r.Fetch(r.t.Context(), &remotewasm.Request{Name: "ns.p", Reference: ref, SHA256: sha256, PullSecret: secret})
	if why != nil {
		if strings.Contains(why.Problem.Error(), "hunter2") || why.Problem.Message == "" {
			r.t.Errorf("words: %v", &why.Problem)
		}
		return "", why
	}
	defer m.Release()
	if got, err := os.ReadFile(m.Path()); err != nil || chandler.Digest[chandler.ModuleDigest](got) != m.Digest() {
		r.t.Errorf("%s is not at %s: %v", m.Digest(), m.Path(), err)
	}
	return m.Digest(), nil
}

// A remote module is fetched with what the resource shows, judged, and refused in words.
func TestRemoteFetch(t *testing.T) {
	t.Parallel()
	r := newRemoting(t)
	good, large := module.Prefix(), append(module.Prefix(), make([]byte, 1<<20)...)
	digest := chandler.Digest[chandler.ModuleDigest](good)
	url := pushModule(t, r.registry, "v1", good)
	for name, tc := range map[string]struct {
		url, sha256 string
		secret      []byte
		code        chandler.Code // empty: it comes
		words       string
		temporary   bool
	}{
		"with the secret":       {url: url, secret: dockerConfig(r.registry.Addr, "hunter2")},
		"without a secret":      {url: url, code: chandler.CodeUnauthorized},
		"with another":          {url: url, secret: dockerConfig(r.registry.Addr, "else"), code: chandler.CodeUnauthorized},
		"for another host":      {url: url, secret: dockerConfig("other.example", "hunter2"), code: chandler.CodeUnauthorized},
		"secret of no use":      {url: url, secret: []byte(`{"auths": hunter2}`), code: chandler.CodeSecretJSON, words: `pull secret of "ns.p"`},
		"empty secret":          {url: url, secret: []byte{}, code: chandler.CodeSecretType, words: `pull secret of "ns.p"`},
		"not there":             {url: url + "x", secret: dockerConfig(r.registry.Addr, "hunter2"), code: chandler.CodeNotFound},
		"http":                  {url: r.files.Put("good.wasm", good), secret: []byte("is not asked for")},
		"http, pinned":          {url: r.files.Put("pinned.wasm", good), sha256: digest.Hex()},
		"http, checksum":        {url: r.files.Put("sum.wasm", append(module.Prefix(), 0, 1, 0)), sha256: strings.Repeat("0", 64), code: chandler.CodeDigestMismatch},
		"not a module":          {url: r.files.Put("page.html", []byte("<!DOCTYPE html>")), code: chandler.CodeWasmMagic},
		"no Proxy-Wasm":         {url: r.files.Put("abi.wasm", module.BadABI()), code: chandler.CodeWasmABI},
		"too large":             {url: r.files.Put("large.wasm", large), code: chandler.CodeModuleTooLarge},
		"nobody there":          {url: "http://127.0.0.1:1/x.wasm", code: chandler.CodeFetchFailed, temporary: true},
		"a file of the machine": {url: "file:///etc/passwd", code: chandler.CodeURLScheme},
	} {
		t.Run(name, func(t *testing.T) {
			got, why := r.fetchFrom(tc.url, tc.sha256, tc.secret)
			switch {
			case tc.code == "" && (why != nil || got != digest):
				t.Errorf("got %s, %+v", got, why)
			case tc.code != "" && (why == nil || why.Problem.Code != tc.code || why.Temporary != tc.temporary || !strings.Contains(why.Problem.Message, tc.words)):
				t.Errorf("got %s, %+v; want %s", got, why, tc.code)
			}
		})
	}
	for result, want := range map[string]float64{fetchSuccess: 2, fetchChecksum: 1, fetchNoModule: 3, fetchDownload: 8, fetchManifest: 0} {
		if got := counted(t, r.reg, "istio_agent_wasm_remote_fetch_count", result); result != fetchSuccess && got != want || got < 1 && want > 0 {
			t.Errorf("%s was counted %v times, want %v", result, got, want)
		}
	}
}

// A tag that is asked about again and means the same costs no download; nor does an unfit
// module. Whoever names a digest has to show that he may have it.
func TestRemoteFetchAgain(t *testing.T) {
	t.Parallel()
	r := newRemoting(t)
	secret := dockerConfig(r.registry.Addr, "hunter2")
	url, bad := pushModule(t, r.registry, "v1", module.Prefix()), pushModule(t, r.registry, "bad", module.BadABI())
	for range 3 {
		if _, why := r.fetchFrom(url, "", secret); why != nil {
			t.Fatal(why.Problem)
		}
		if _, why := r.fetchFrom(bad, "", secret); why == nil || why.Problem.Code != chandler.CodeWasmABI {
			t.Fatal(why)
		}
	}
	if n := r.registry.Counts().BlobGet; n != 2 {
		t.Errorf("%d downloads of 2 modules", n)
	}
	for artifact := range r.known {
		if _, why := r.fetchFrom(url+"@"+string(artifact), "", nil); why == nil || why.Problem.Code != chandler.CodeUnauthorized {
			t.Errorf("by its digest: %+v", why)
		}
	}
	m, why := r.Hold(chandler.Digest[chandler.ModuleDigest](module.Prefix()))
	if why != nil {
		t.Fatal(why.Problem)
	}
	m.Release()
	if _, why := r.Hold(chandler.Digest[chandler.ModuleDigest]([]byte("x"))); why == nil || !why.Lost {
		t.Errorf("what is not there: %+v", why)
	}
	if hits, misses := counted(t, r.reg, "istio_agent_wasm_cache_lookup_count", "true"), counted(t, r.reg, "istio_agent_wasm_cache_lookup_count", "false"); hits < 5 || misses < 3 {
		t.Errorf("%v hits and %v misses", hits, misses)
	}
}

// A file that several resources pin is downloaded once, wherever they say that it is: those
// who come while it is under way wait for it, and if it does not come try theirs.
func TestRemoteFetchTogether(t *testing.T) {
	t.Parallel()
	r := newRemoting(t)
	content := module.Prefix()
	digest := chandler.Digest[chandler.ModuleDigest](content)
	urls := []string{r.files.Put("0.wasm", content), "http://127.0.0.1:1/gone.wasm"}
	for i := range 6 {
		urls = append(urls, r.files.Put(fmt.Sprintf("%d.wasm", i+1), content))
	}
	r.files.Delay(50 * time.Millisecond)
	var all sync.WaitGroup
	for _, url := range urls {
		all.Go(func() {
			if got, why := r.fetchFrom(url, digest.Hex(), nil); got != digest && (why == nil || !strings.Contains(url, "gone")) {
				t.Errorf("%s: %s, %+v", url, got, why)
			}
		})
	}
	all.Wait()
	if n := counted(t, r.reg, "istio_agent_wasm_remote_fetch_count", fetchSuccess); n != 1 {
		t.Errorf("it was downloaded %v times", n)
	}
	if len(r.pulling) > 0 {
		t.Errorf("%d downloads go on", len(r.pulling))
	}
}

// A download that trickles ends with the resource's own patience.
func TestRemoteFetchTimeout(t *testing.T) {
	t.Parallel()
	r := newRemoting(t)
	ref, _ := chandler.ParseReference(r.files.Put("slow.wasm", module.Prefix()))
	r.files.Delay(time.Minute)
	began := time.Now()
	_, why := r.Fetch(t.Context(), &remotewasm.Request{Reference: ref, Timeout: time.Millisecond})
	if why == nil || !why.Temporary || time.Since(began) > 20*time.Second {
		t.Errorf("after %s: %+v", time.Since(began), why)
	}
}

// remoteSite is a control plane, the agent's relay with its remote modules, and an Envoy.
type remoteSite struct {
	*testing.T
	*upstream.Upstream
	dir       string
	edge      *edge.Edge
	stopAgent func()
	stopEnvoy func()
}

func (s *remoteSite) startAgent(remembered []relay.View) {
	s.Helper()
	cfg := Config{Data: s.dir, Log: slog.New(slog.DiscardHandler)}
	modules, err := store.Open(store.Config{Dir: modulesDir(s.dir)})
	if err != nil {
		s.Fatal(err)
	}
	remote := newRemoteWasm(modules, cfg, newMetrics(prometheus.NewRegistry(), modules), aboutUpstream{
		changed: func(typeURL string, names ...string) { s.edge.Changed(typeURL, names...) },
		find:    func(typeURL, name string) ([]byte, bool) { return s.edge.Find(typeURL, name) },
	})
	remote.another()
	conn, err := grpc.NewClient(s.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.Fatal(err)
	}
	config := edge.Config{Upstream: conn, Hooks: relay.Hooks{
		Transforms: map[string]relay.Transform{attach.ExtensionConfigType: remote.extensions.Transform, listenerType: remote.listeners.Transform}, Tell: remote.tell}}
	config.Remembered = remembered
	s.edge = edge.New(config)
	lis, err := net.Listen("unix", filepath.Join(s.dir, "xds"))
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served, ran := make(chan error, 1), make(chan struct{})
	go func() { served <- s.edge.Serve(ctx, lis) }()
	go func() { defer close(ran); remote.run(ctx) }()
	s.stopAgent = func() {
		cancel()
		<-ran
		if err := <-served; err != nil {
			s.Error(err)
		}
		_ = conn.Close()
		_ = modules.Close()
	}
}

func (s *remoteSite) startEnvoy() {
	s.Helper()
	_, port, _ := net.SplitHostPort(s.Addr)
	text := strings.ReplaceAll(s.Bootstrap("tester", filepath.Join(s.dir, "admin")),
		"{socket_address: {address: 127.0.0.1, port_value: "+port+"}}", "{pipe: {path: "+filepath.Join(s.dir, "xds")+"}}")
	bootstrap := filepath.Join(s.dir, "bootstrap.yaml")
	if err := os.WriteFile(bootstrap, []byte(text), 0o600); err != nil {
		s.Fatal(err)
	}
	var log strings.Builder
	cmd := exec.Command(module.Envoy(s.T), "-c", bootstrap, "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	s.stopEnvoy = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if s.Failed() {
			s.Logf("the log of Envoy:\n%.8000s", log.String())
		}
	}
}

// get asks on a socket; 0: there is no answer.
func (s *remoteSite) get(socket, path string) (status int, body string) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(s.dir, socket))
	}}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Get("http://envoy" + path)
	if err != nil {
		return 0, ""
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(text)
}

func (s *remoteSite) answers(socket string, want int) {
	s.Helper()
	got := 0
	for until := time.Now().Add(2 * time.Minute); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		if got, _ = s.get(socket, "/"); got == want {
			return
		}
	}
	s.Fatalf("%s answers %d, want %d", socket, got, want)
}

// A real Envoy under a control plane that names modules in a registry, with a pull secret,
// as Istio does: they are in force, nobody sees the secret, a bad one harms nobody, and a
// restart without registry and control plane serves them.
func TestRemoteWasmInEnvoy(t *testing.T) {
	t.Parallel()
	const httpWasm, httpRBAC = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm", "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"
	dir := shortDir(t)
	backend := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(backend.Close)
	reg := startRegistry(t)
	v := upstream.Variant{Delta: true}
	s := &remoteSite{T: t, Upstream: upstream.New(t, upstream.Config{Variant: v}), dir: dir}
	extension := func(name, url string) *core.TypedExtensionConfig {
		return upstream.Extension(name, &wasm.Wasm{Config: &wasmv3.PluginConfig{Name: name, Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{
			Runtime: "envoy.wasm.runtime.v8",
			Code:    &core.AsyncDataSource{Specifier: &core.AsyncDataSource_Remote{Remote: &core.RemoteDataSource{HttpUri: &core.HttpUri{Uri: url}}}},
			EnvironmentVariables: &wasmv3.EnvironmentVariables{KeyValues: map[string]string{
				"ISTIO_META_WASM_IMAGE_PULL_SECRET": string(dockerConfig(reg.Addr, "hunter2")), "ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION": "1"}},
		}}}})
	}
	set := func(version, one, two string) {
		s.Set(version, upstream.Resources{
			v.Listener("one", filepath.Join(dir, "one"), "r", v.Discovered("one", httpWasm, httpRBAC)),
			v.Listener("two", filepath.Join(dir, "two"), "r", v.Discovered("two", httpWasm, httpRBAC)),
			v.Cluster("c"), upstream.Route("r", "c", "x"), upstream.Backend("c", backend.Listener.Addr().String()),
			extension("one", one), extension("two", two),
		})
	}
	good, page := pushModule(t, reg, "good", module.Deny(418)), pushModule(t, reg, "page", []byte("<!DOCTYPE html>"))
	refused := pushModule(t, reg, "refused", module.RefuseConfigure("it is no day for it"))
	s.startAgent(nil)
	s.startEnvoy()
	defer func() { s.stopEnvoy(); s.stopAgent() }()

	set("1", good, refused)
	s.answers("one", 418)
	s.answers("two", 403) // the stand-in
	for _, secret := range []string{"ISTIO_META", "hunter2", "auths"} {
		if _, dump := s.get("admin", "/config_dump?include_eds"); !strings.Contains(dump, "one") || strings.Contains(dump, secret) {
			t.Errorf("Envoy shows %s, or nothing", secret)
		}
	}
	set("2", page, good)
	s.answers("two", 418)
	s.answers("one", 418)
	within(t, "Envoy's word that it has the module", func() (taken bool) {
		for _, v := range s.edge.Views() {
			v.Each(func(name string, body []byte) { taken = taken || name == "two" && bytes.Contains(body, []byte(good)) })
		}
		return taken
	})

	s.Stop()
	reg.Close()
	remembered := s.edge.Views()
	s.stopEnvoy()
	s.stopAgent()
	s.startAgent(remembered)
	s.startEnvoy()
	s.answers("one", 418)
	s.answers("two", 418)
}
