package agent

import (
	"crypto/tls"
	"crypto/x509"
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
	c.Http2ProtocolOptions = &core.Http2ProtocolOptions{}
	return upstream.Resources{c, upstream.Backend("modules", s.Listener.Addr().String()),
		&tlsv3.Secret{Name: "client", Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline(client.Cert), PrivateKey: inline(client.Key)}}}}
}

// filter is Wasm in a listener, with a module of the server's.
func (s *moduleServer) filter(path string, content []byte) *hcm.HttpFilter {
	config := &wasm.Wasm{Config: &wasmv3.PluginConfig{Name: "own", Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{
		Runtime: "envoy.wasm.runtime.v8",
		Code: &core.AsyncDataSource{Specifier: &core.AsyncDataSource_Remote{Remote: &core.RemoteDataSource{
			HttpUri: &core.HttpUri{Uri: "https://modules.internal" + path, HttpUpstreamType: &core.HttpUri_Cluster{Cluster: "modules"}},
			Sha256:  chandler.Digest[chandler.ModuleDigest](content).Hex(),
		}}},
	}}}}
	return &hcm.HttpFilter{Name: "own", ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: anyOf(s.t, config)}}
}

// A real Envoy under a control plane whose listeners have Wasm in them, that is served by a
// cluster of its own with certificates of its own: modules are on disk before Envoy has the
// listener, what cannot be had leaves it as it is, and a restart needs nobody.
func TestRemoteWasmInListeners(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "chandler") // short: paths of sockets are bounded
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
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
	time.Sleep(time.Second)
	s.answers("two", 425)
	if n := served.asked.Load(); n < 4 {
		t.Errorf("what is not there was not asked for")
	}

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
// anything else the slots are tried without.
func TestRelayedListenerOfModules(t *testing.T) {
	t.Parallel()
	l := newRelayedListeners(func(a *anypb.Any, own []attach.Slot) (attach.Placed, error) { return attach.PlaceSlots(a, own, false) })
	body := httpListener(t, "l", 8080, "web").Value
	refused := relay.Event{Type: listenerType, Refused: []string{"l"}, Words: "l: Unable to create Wasm plugin own"}
	for _, modules := range [][]string{{"l"}, nil} {
		slotted, _ := l.transform(relay.Resource{Type: listenerType, Name: "l", Body: body})
		if !hasSlot(slotted, "chandler/") {
			t.Fatal("there are no slots in it")
		}
		l.tell(refused, modules...)
		if again := l.look().again; len(modules) == len(again) {
			t.Errorf("refused for the modules of %q, these are sent in another form: %q", modules, again)
		}
	}
	if plain, _ := l.transform(relay.Resource{Type: listenerType, Name: "l", Body: body}); hasSlot(plain, "chandler/") {
		t.Error("slots were not tried without")
	}
}
