package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	wasm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/testenv/authority"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/upstream"
	"chandler.dev/chandler/internal/xds/relay"
)

// moduleServer serves modules to those alone who have a certificate, as Envoy Gateway does,
// and counts what was asked for.
type moduleServer struct {
	*httptest.Server
	t       *testing.T
	roots   *authority.Authority
	modules map[string][]byte
	asked   atomic.Int32
}

func startModuleServer(t *testing.T, modules map[string][]byte) *moduleServer {
	t.Helper()
	s := &moduleServer{t: t, roots: authority.New(t), modules: modules}
	own := s.roots.Issue(authority.Leaf{DNS: []string{"modules.internal"}})
	certificate, err := tls.LoadX509KeyPair(own.Cert, own.Key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(readAll(t, s.roots.File))
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		s.asked.Add(1)
		content, ok := s.modules[req.URL.Path]
		if !ok || req.ProtoMajor != 2 || req.Host != "modules.internal" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = w.Write(content)
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, NextProtos: []string{"h2"}}
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func readAll(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// resources are what is served of it: a cluster "modules" and the secret that it wants.
func (s *moduleServer) resources(v upstream.Variant) upstream.Resources {
	client := s.roots.Issue(authority.Leaf{DNS: []string{"envoy"}})
	inline := func(file string) *core.DataSource {
		return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: readAll(s.t, file)}}
	}
	c := v.Cluster("modules")
	c.TransportSocket = &core.TransportSocket{Name: "envoy.transport_sockets.tls", ConfigType: &core.TransportSocket_TypedConfig{
		TypedConfig: anyOf(s.t, &tlsv3.UpstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{Name: "client", SdsConfig: v.Source()}},
			ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
				TrustedCa: &core.DataSource{Specifier: &core.DataSource_Filename{Filename: s.roots.File}}}},
		}})}}
	const options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions" // of HTTP/2, explicitly
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{options: {TypeUrl: "type.googleapis.com/" + options, Value: []byte{0x1a, 2, 0x12, 0}}}
	return upstream.Resources{c, upstream.Backend("modules", s.Listener.Addr().String()),
		&tlsv3.Secret{Name: "client", Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline(client.Cert), PrivateKey: inline(client.Key)}}}}
}

// filter is Wasm in a listener, with a module of the server's.
func (s *moduleServer) filter(path string, content []byte) *hcm.HttpFilter {
	return remoteFilter(s.t, "https://modules.internal"+path, "modules", content)
}

func remoteFilter(t *testing.T, url, cluster string, content []byte) *hcm.HttpFilter {
	config := &wasm.Wasm{Config: &wasmv3.PluginConfig{Name: "own", Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{
		Runtime: "envoy.wasm.runtime.v8",
		Code: &core.AsyncDataSource{Specifier: &core.AsyncDataSource_Remote{Remote: &core.RemoteDataSource{
			HttpUri: &core.HttpUri{Uri: url, HttpUpstreamType: &core.HttpUri_Cluster{Cluster: cluster}},
			Sha256:  chandler.Digest[chandler.ModuleDigest](content).Hex(),
		}}},
	}}}}
	return &hcm.HttpFilter{Name: "own", ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: anyOf(t, config)}}
}

// A real Envoy under a control plane whose listeners have Wasm in them, that is served by a
// cluster of its own with certificates of its own: modules are on disk before Envoy has the
// listener, what cannot be had leaves it as it is, and a restart needs nobody.
func TestRemoteWasmInListeners(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	backend := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(backend.Close)
	first, second, refused := module.Deny(418), module.Deny(425), module.RefuseConfigure("it is no day for it")
	served := startModuleServer(t, map[string][]byte{"/first": first, "/second": second, "/refused": refused, "/other": second})
	v := upstream.Variant{Delta: true}
	s := &remoteSite{T: t, Upstream: upstream.New(t, upstream.Config{Variant: v}), dir: dir}
	set := func(version string, one, two *hcm.HttpFilter) {
		s.Set(version, append(served.resources(v),
			v.Listener("one", filepath.Join(dir, "one"), "r", one), v.Listener("two", filepath.Join(dir, "two"), "r", two),
			v.Cluster("c"), upstream.Route("r", "c", "x"), upstream.Backend("c", backend.Listener.Addr().String())))
	}
	s.startAgent(nil)
	s.startEnvoy()
	defer func() { s.stopEnvoy(); s.stopAgent() }()

	set("1", served.filter("/first", first), served.filter("/refused", refused))
	s.answers("one", 418)
	s.answers("two", 403) // the stand-in
	if _, dump := s.get("admin", "/config_dump?resource=dynamic_listeners"); strings.Contains(dump, "modules.internal") || !strings.Contains(dump, dir) {
		t.Errorf("Envoy has code that is remote, or none: %s", dump)
	}
	set("2", served.filter("/first", first), served.filter("/second", second))
	s.answers("two", 425)
	if n := served.asked.Load(); n != 3 {
		t.Errorf("modules were asked for %d times, want 3", n)
	}
	set("3", served.filter("/other", second), served.filter("/none", []byte("none")))
	s.answers("one", 425)
	within(t, "what is not there is asked for", func() bool { return served.asked.Load() >= 4 })
	time.Sleep(time.Second) // what was answered has come as far as it can
	s.answers("two", 425)

	set("4", served.filter("/other", second), served.filter("/first", first))
	s.answers("two", 418)
	s.Await("Envoy's answer", func() bool { return s.Acked(upstream.Listeners, "4") })
	s.Stop()
	served.Close()
	remembered := s.edge.Views()
	s.stopEnvoy()
	s.stopAgent()
	s.startAgent(remembered)
	s.startEnvoy()
	s.answers("one", 425)
	s.answers("two", 418)
}

// A listener that Envoy refuses for a module of its control plane's keeps its slots; for
// anything else it is tried without them, and its modules stay.
func TestRefusedListenerOfModules(t *testing.T) {
	t.Parallel()
	r := newRemoting(t)
	content := module.Prefix()
	ready := make(chan struct{}, 1)
	w := newRemoteWasm(r.store, Config{Data: t.TempDir(), Log: slog.New(slog.DiscardHandler)}, newMetrics(prometheus.NewRegistry(), r.store), aboutUpstream{
		changed: func(string, ...string) {
			select {
			case ready <- struct{}{}:
			default:
			}
		}})
	a := &Agent{remote: w, relayed: newRelayedListeners(func(a *anypb.Any, own []attach.Slot) (attach.Placed, error) { return attach.PlaceSlots(a, own, false) })}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.run(ctx) }()
	defer func() { cancel(); <-done }()
	filter := remoteFilter(t, r.files.Put("m.wasm", content), "none", content)
	listener := upstream.Variant{}.Listener("l", "127.0.0.1:8080", "r", filter)
	gets := func() (modules, slots bool) {
		body, _ := a.transformListener(relay.Resource{Type: listenerType, Name: "l", Body: anyOf(t, listener).Value})
		return bytes.Contains(body, []byte(chandler.Digest[chandler.ModuleDigest](content).Hex()+".wasm")), hasSlot(body, "chandler/")
	}
	if modules, slots := gets(); modules || slots {
		t.Error("a listener goes on without its modules")
	}
	<-ready
	for _, words := range []string{"", "l: Unable to create Wasm plugin own", "l: Didn't find a registered implementation"} {
		if words != "" && a.amendListener("l", false, words) != strings.Contains(words, "registered") {
			t.Errorf("refused with %q", words)
		}
		if modules, slots := gets(); !modules || slots == strings.Contains(words, "registered") {
			t.Errorf("after %q: modules %v, slots %v", words, modules, slots)
		}
	}
}
