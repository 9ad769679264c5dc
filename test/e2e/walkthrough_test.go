package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/fetch"
)

// sample is the module of plugins/basicauth.
func sample(t testing.TB) []byte {
	t.Helper()
	mod, err := os.ReadFile(filepath.Join("..", "..", "bin", "basicauth.wasm"))
	if err != nil {
		t.Fatalf("%v: run make bin/basicauth.wasm", err)
	}
	return mod
}

// theSamplesHost has the image of the example in the world's registry, and gives the
// folder by which the registry stands in for the host that the example names.
func (w *world) theSamplesHost() (hostsDir string) {
	w.t.Helper()
	client := fetch.New(fetch.Config{Dir: w.dir})
	defer client.Close()
	const image = "/istio-ecosystem/wasm-extensions/basic_auth:1.12.0"
	if _, err := client.Push(w.t.Context(), w.registry.Addr+image, sample(w.t), fetch.PushOptions{Layout: fetch.LayoutCompat}); err != nil {
		w.t.Fatal(err)
	}
	name := filepath.Join("hosts", "ghcr.io", "hosts.toml")
	written, err := os.ReadFile(filepath.Join("..", "..", "examples", "bookinfo", name))
	if err != nil {
		w.t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(filepath.Join(w.dir, name)), 0o755); err != nil {
		w.t.Fatal(err)
	}
	text := strings.ReplaceAll(string(written), "127.0.0.1:5000", w.registry.Addr)
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
	return filepath.Join(w.dir, "hosts")
}

// theSamplesGateway is what the example is for: a gateway of its namespace and label.
var theSamplesGateway = node{name: "gateway", namespace: "istio-system", labels: []string{"istio=ingressgateway"}}

// theSamplesWorld is a world that has the module of the example.
func theSamplesWorld(t *testing.T) *world {
	t.Helper()
	w := uncontrolled(t)
	w.flags = append(w.flags, "--hosts-dir", w.theSamplesHost())
	w.startControl()
	return w
}

// The walkthrough of the README: the resource of Istio's task, to the letter, on a
// gateway of its namespace and label.
func TestWalkthrough(t *testing.T) {
	t.Parallel()
	w := theSamplesWorld(t)
	port := freePort(t)
	p := w.agent(theSamplesGateway, w.gateway(listener{port: port, name: "ingress"}))
	walkthrough(t, p, port)
}

// walkthrough takes its steps at a port of the sample's gateway, wherever that has its
// listeners from: applied, changed, refused, deleted.
func walkthrough(t *testing.T, p *proxy, port int) {
	t.Helper()
	w := p.w
	written, err := os.ReadFile(filepath.Join("..", "..", "examples", "bookinfo", "basic-auth.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	manifest := string(written)
	if !strings.Contains(manifest, "\n  url: oci://ghcr.io/istio-ecosystem/wasm-extensions/basic_auth:1.12.0\n") {
		t.Fatal("the example does not name the module of Istio's task")
	}

	decides := func(when string, method, path, authorization string, want int) {
		t.Helper()
		a, err := request(fresh, method, port, path, http.Header{"Authorization": {authorization}})
		if err != nil || a.code != want {
			t.Errorf("%s: %s %s with %q: %d, %v; want %d", when, method, path, authorization, a.code, err, want)
		}
		if want == 401 && a.headers.Get("Www-Authenticate") != "Basic realm=istio" {
			t.Errorf("%s: the denial has the headers %v", when, a.headers)
		}
	}
	const encoded, clear, other = "Basic YWRtaW4zOmFkbWluMw==", "Basic b2s6dGVzdA==", "Basic b2s6b3RoZXI="
	guarded := func(when string) {
		t.Helper()
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			decides(when, method, "/productpage", "", 401)
			decides(when, method, "/productpage", encoded, 200)
			decides(when, method, "/productpage", clear, 200)
			decides(when, method, "/productpage", "Basic b2s6d3Jvbmc=", 401)
		}
		decides(when, http.MethodDelete, "/productpage", "", 200)
		decides(when, http.MethodGet, "/details/0", "", 200)
	}

	decides("before", http.MethodGet, "/productpage", "", 200)
	w.apply(manifest)
	guarded("applied")
	metrics := p.statistics(t)
	for _, sample := range []string{
		"istio_agent_wasm_cache_entries 1",
		`istio_agent_wasm_cache_lookup_count{hit="false"} 1`,
		`istio_agent_wasm_remote_fetch_count{result="success"} 1`,
		`istio_agent_wasm_config_conversion_count{result="success"} 1`,
		"istio_agent_wasm_config_conversion_duration_count 1",
	} {
		if !strings.Contains(metrics, "\n"+sample+"\n") {
			t.Errorf("the metrics lack %s; there is %s", sample, grep(metrics, strings.Fields(strings.Split(sample, "{")[0])[0]))
		}
	}

	w.apply(strings.Replace(manifest, "ok:test", "ok:other", 1))
	decides("changed", http.MethodGet, "/productpage", clear, 401)
	decides("changed", http.MethodGet, "/productpage", other, 200)
	w.apply(manifest)
	guarded("changed back")

	broken := strings.Replace(manifest, "request_methods:", "request_method:", 1)
	if out, ok := w.cli(broken, "apply", "-f", "-", "--wait", "--timeout", "60s"); ok || !strings.Contains(out, "request_methods") {
		t.Errorf("a configuration that the plugin refuses: %s", out)
	}
	guarded("after a refused update")
	if out, ok := w.cli("", "delete", "wasmplugins.extensions.istio.io", "-n", "istio-system", "basic-auth"); !ok {
		t.Fatal(out)
	}
	eventually(t, 10*time.Second, "no password after it was deleted", func() (bool, string) {
		a, err := request(fresh, http.MethodPost, port, "/productpage", nil)
		return err == nil && a.code == 200, fmt.Sprint(a.code, err)
	})
}
