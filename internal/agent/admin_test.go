package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/testenv/leaks"
)

// fakeEnvoyAdmin answers on a Unix socket as Envoy's admin interface would.
func fakeEnvoyAdmin(t *testing.T, answers map[string]string) *adminClient {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "admin.sock")
	lis, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.Method+" "+r.URL.RequestURI()]
		if !ok {
			answer, ok = answers[r.Method+" "+r.URL.Path]
		}
		if !ok {
			http.Error(w, "no such page", http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, answer)
	})}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(lis) }()
	client := newAdminClient(adminAddress{network: "unix", address: socket})
	t.Cleanup(func() { client.http.CloseIdleConnections(); srv.Close(); <-served })
	return client
}

func adminAgent(t *testing.T) (*Agent, *httptest.Server) {
	t.Helper()
	modules, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	a := &Agent{metrics: newMetrics(reg, modules), envoyAdmin: newAdminClient(adminAddress{network: "unix", address: filepath.Join(t.TempDir(), "nobody")})}
	srv := httptest.NewServer(a.adminHandler(reg))
	t.Cleanup(func() { srv.Close(); modules.Close() })
	return a, srv
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestAdminHealth(t *testing.T) {
	t.Parallel()
	a, srv := adminAgent(t)
	want := func(path string, status int, text string) {
		t.Helper()
		if code, body := get(t, srv.URL+path); code != status || !strings.Contains(body, text) {
			t.Errorf("%s: %d %q, want %d %q", path, code, body, status, text)
		}
	}
	want("/healthz/live", 200, "live")
	want("/healthz/ready", 503, "starting")
	want("/report", 200, "[]")
	a.view.Store(&view{unready: []string{"WasmPlugin/ns/a is Fetching", "WasmPlugin/ns/b is Rejected"}})
	want("/healthz/live", 200, "live")
	want("/healthz/ready", 503, "WasmPlugin/ns/a is Fetching\nWasmPlugin/ns/b is Rejected")
	st := chandler.AttachmentState{Key: version("a").Key, State: chandler.StateInForce}
	a.view.Store(&view{report: []chandler.AttachmentState{st}})
	want("/healthz/ready", 200, "ready")

	_, body := get(t, srv.URL+"/report")
	var report []chandler.AttachmentState
	if err := json.Unmarshal([]byte(body), &report); err != nil || len(report) != 1 || report[0] != st {
		t.Errorf("the report is %s, error %v", body, err)
	}
	want("/nothing", 404, "")
	if resp, err := http.Post(srv.URL+"/healthz/ready", "", nil); err != nil || resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("a POST is answered %v, %v", resp, err)
	} else {
		resp.Body.Close()
	}
}

func TestAdminMergedStats(t *testing.T) {
	t.Parallel()
	a, srv := adminAgent(t)
	a.metrics.lookup(true)
	const own = `istio_agent_wasm_cache_lookup_count{hit="true"} 1`
	code, body := get(t, srv.URL+"/stats/prometheus")
	if code != 200 || !strings.Contains(body, "\n"+own+"\n") || !strings.HasPrefix(body, "# Envoy's own statistics are missing: ") {
		t.Errorf("without Envoy: %d\n%s", code, body)
	}
	a.envoyAdmin = fakeEnvoyAdmin(t, map[string]string{"GET /stats/prometheus": "# TYPE envoy_x counter\nenvoy_x{} 7\n"})
	code, body = get(t, srv.URL+"/stats/prometheus")
	if code != 200 || !strings.Contains(body, "\n"+own+"\n") || !strings.HasPrefix(body, "# TYPE envoy_x counter\nenvoy_x{} 7\n") {
		t.Errorf("with Envoy: %d\n%s", code, body)
	}
	if code, body := get(t, srv.URL+"/metrics"); code != 200 || !strings.Contains(body, own) || strings.Contains(body, "envoy_x") {
		t.Errorf("its own alone: %d\n%s", code, body)
	}
}

func TestServeHTTPEndsWithItsContext(t *testing.T) {
	leaks.Check(t)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serveHTTP(ctx, lis, http.NotFoundHandler()) }()
	client := &http.Client{Transport: &http.Transport{}}
	resp, err := client.Get("http://" + lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	client.CloseIdleConnections()
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("it ends with %v", err)
	}
}

func TestAdminClient(t *testing.T) {
	leaks.Check(t)
	c := fakeEnvoyAdmin(t, map[string]string{
		"GET /stats": "listener.a.downstream_cx_active: 2\nlistener.admin.downstream_cx_active: 9\nlistener.b.downstream_cx_active: 1\nsome.text: \"x\"\n",
	})
	if n, err := c.activeConnections(t.Context()); n != 3 || err != nil {
		t.Errorf("%d connections are active, error %v", n, err)
	}
	if _, err := c.get(t.Context(), "/nothing"); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("a page that is not there: %v", err)
	}
}

func TestAdminListeners(t *testing.T) {
	leaks.Check(t)
	c := fakeEnvoyAdmin(t, map[string]string{
		"GET /stats": "listener_manager.lds.update_rejected: 2\nlistener_manager.lds.version_text: \"a1\"\nlistener_manager.total_listeners_warming: 1\n",
	})
	if st, err := c.listeners(t.Context()); err != nil || st != (listenersStat{version: "a1", refused: 2, warming: 1}) {
		t.Errorf("%+v, %v", st, err)
	}
}

// What listeners wait for is named as Envoy names it, some of it where there is much.
func TestAdminWaits(t *testing.T) {
	leaks.Check(t)
	manager := func(name string, targets ...string) string {
		return fmt.Sprintf(`{"name": %q, "target_names": ["%s"]}`, "init manager Listener-local-init-manager "+name+" 784311957", strings.Join(targets, `", "`))
	}
	rds, filter := "shared target RdsRouteConfigSubscription RDS init r 1", "shared target FilterConfigSubscription init slot"
	for dump, want := range map[string]string{
		"":   "",
		"{}": "",
		`{"unready_targets_dumps": [` + manager("web 1", rds, filter) + `]}`:                                               `the listener "web 1" waits for "RdsRouteConfigSubscription RDS init r 1", "FilterConfigSubscription init slot"`,
		`{"unready_targets_dumps": [{"name": "x", "target_names": []}]}`:                                                   "",
		`{"unready_targets_dumps": [{"name": "x\u001b", "target_names": ["target y"]}]}`:                                   `the listener "x\x1b" waits for "y"`,
		`{"unready_targets_dumps": [` + manager("a", rds, rds, rds, rds, rds) + `]}`:                                       `"RdsRouteConfigSubscription RDS init r 1", and 2 more`,
		`{"unready_targets_dumps": [` + strings.Repeat(manager("a", rds)+",", 50)[:50*len(manager("a", rds)+",")-1] + `]}`: "; and 47 more",
	} {
		c := fakeEnvoyAdmin(t, map[string]string{"GET /init_dump?mask=listener": dump})
		if got, err := c.waits(t.Context()); err != nil || !strings.HasSuffix(got, want) || want == "" && got != "" {
			t.Errorf("%.200s: %q, %v, want %q", dump, got, err, want)
		}
	}
	if got, err := fakeEnvoyAdmin(t, map[string]string{"GET /init_dump?mask=listener": "<html>"}).waits(t.Context()); err == nil {
		t.Errorf("another page: %q", got)
	}
}

func TestMetricsOfStates(t *testing.T) {
	t.Parallel()
	modules, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { modules.Close() })
	reg := prometheus.NewRegistry()
	m := newMetrics(reg, modules)
	want := func(n float64, name string, labels ...string) {
		t.Helper()
		if got := counted(t, reg, name, labels...); got != n {
			t.Errorf("%s%v is %v, want %v", name, labels, got, n)
		}
	}
	a, b := version("a").Key, version("b").Key
	m.states(map[chandler.Key]chandler.AttachmentState{a: {State: chandler.StateInForce, VMTraps: 2}, b: {State: chandler.StateInForce}})
	want(2, "chandler_agent_attachments", "InForce")
	want(0, "chandler_agent_attachments", "Rejected")
	want(2, "chandler_agent_plugin_vm_traps_total", "a", "ns") // labels by name
	m.states(map[chandler.Key]chandler.AttachmentState{a: {State: chandler.StateRejected, VMTraps: 3}})
	want(0, "chandler_agent_attachments", "InForce")
	want(1, "chandler_agent_attachments", "Rejected")
	want(3, "chandler_agent_plugin_vm_traps_total", "a", "ns")
	m.states(nil)
	want(0, "chandler_agent_plugin_vm_traps_total", "a", "ns")
}

// A name that was turned to this machine, and a page of another server.
func TestAdminIsForThisServer(t *testing.T) {
	_, srv := adminAgent(t)
	for _, c := range []struct {
		method, path, host, origin string
		code                       int
	}{
		{http.MethodGet, "/healthz/live", "", "", http.StatusOK},
		{http.MethodGet, "/metrics", "localhost:1", "", http.StatusOK},
		{http.MethodGet, "/metrics", "evil.example", "", http.StatusForbidden},
		{http.MethodGet, "/status", "evil.example:9912", "", http.StatusForbidden},
		{http.MethodGet, "/status", "", "http://evil.example", http.StatusForbidden},
		{http.MethodPost, "/store/verify", "evil.example", "", http.StatusForbidden},
		{http.MethodPost, "/store/trim", "", "null", http.StatusForbidden},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, srv.URL+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = c.host
		if c.origin != "" {
			req.Header.Set("Origin", c.origin)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != c.code {
			t.Errorf("%s %s, host %q, origin %q: %d", c.method, c.path, c.host, c.origin, resp.StatusCode)
		}
	}
}
