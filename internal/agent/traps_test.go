package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/module"
)

// What the real Envoy counts by plugin, and what it does not.
func TestTrapsOfTheRealEnvoy(t *testing.T) {
	dir := t.TempDir()
	wasm, config := filepath.Join(dir, "trap.wasm"), filepath.Join(dir, "envoy.json")
	writeFile(t, wasm, module.TrapRequest())
	listener := func(name, policy string) string {
		var filter map[string]any
		if err := json.Unmarshal([]byte(module.Filter("WasmPlugin/ns/"+name, wasm, "")), &filter); err != nil {
			t.Fatal(err)
		}
		filter["typed_config"].(map[string]any)["config"].(map[string]any)["failure_policy"] = policy
		b, err := json.Marshal(filter)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf(`{"name": %[1]q, "address": {"pipe": {"path": %[2]q}}, "filter_chains": [{"filters": [{"name": "hcm", "typed_config": {
			"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": "l",
			"route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}]}]},
			"http_filters": [%[3]s, {"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]}]}`,
			name, filepath.Join(dir, name), b)
	}
	writeFile(t, config, fmt.Appendf(nil, `{"admin": {"address": {"pipe": {"path": %q}}}, "static_resources": {"listeners": [%s, %s]}}`,
		filepath.Join(dir, "admin"), listener("reload.1", "FAIL_RELOAD"), listener("close", "FAIL_CLOSED")))
	cmd := exec.Command(module.Envoy(t), "-c", config, "--use-dynamic-base-id", "--concurrency", "1", "-l", "off")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() })
	admin := newAdminClient("unix", filepath.Join(dir, "admin"))
	t.Cleanup(admin.http.CloseIdleConnections)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		_, err := admin.get(ctx, "/ready")
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}

	reload, closed := chandler.Key{Kind: "WasmPlugin", Namespace: "ns", Name: "reload.1"}, chandler.Key{Kind: "WasmPlugin", Namespace: "ns", Name: "close"}
	if counts, err := admin.traps(ctx); err != nil || len(counts) != 0 {
		t.Errorf("before traffic: %v, %v", counts, err)
	}
	for {
		wantStatus(t, filepath.Join(dir, "close"), http.StatusServiceUnavailable)
		wantStatus(t, filepath.Join(dir, "reload.1"), http.StatusServiceUnavailable)
		counts, err := admin.traps(ctx)
		if err != nil {
			t.Fatalf("it never counts: %v", err)
		}
		if counts[closed] != (VMFaults{}) {
			t.Error("Envoy counts by plugin what stays dead: report it")
		}
		if counts[reload].Reloads > 0 {
			return
		}
	}
}

func wantStatus(t *testing.T, socket string, want int) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	resp, err := client.Get("http://listener/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != want {
		t.Errorf("status %d, want %d", resp.StatusCode, want)
	}
}

// Envoy is asked slowly, and never while a push is under way.
func TestWatchTraps(t *testing.T) {
	stats := "wasm.WasmPlugin/ns/a.b.vm_reload_success: 2\nwasm.WasmPlugin/ns/a.b.vm_reload_failure: 1\nwasm.WasmPlugin/ns/c.vm_reload_success: 0\nwasm.WasmPlugin/ns/a.b.vm_reload_backoff: 9\nwasm.else.vm_reload_success: 5\n"
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		a := &Agent{inbox: make(chan message, 1), envoyLog: &envoyLog{}, envoyAdmin: &adminClient{base: "http://envoy", http: http.Client{
			Transport: roundTrip(func(*http.Request) string { asked++; return stats }),
		}}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); a.watchTraps(ctx) }()

		for _, v := range []*view{nil, {}, {pushing: true, counted: true}} {
			a.view.Store(v)
			time.Sleep(10 * trapInterval) // of the bubble's clock
			synctest.Wait()
			if asked != 0 {
				t.Fatalf("Envoy was asked with %+v", v)
			}
		}
		a.view.Store(&view{counted: true})
		began := time.Now()
		m := <-a.inbox
		counts := m.event.(Trapped).Counts
		if len(counts) != 1 || counts[chandler.Key{Kind: "WasmPlugin", Namespace: "ns", Name: "a.b"}] != (VMFaults{Reloads: 3, Refused: 9}) {
			t.Errorf("counted: %v", counts)
		}
		if time.Since(began) > trapInterval {
			t.Errorf("it took %v", time.Since(began))
		}
		cancel()
		<-done
	})
}

// roundTrip answers requests with a text.
type roundTrip func(*http.Request) string

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(f(r))), Request: r}, nil
}

// A fault is counted once: when requests are refused for it, or when the VM is made
// anew, whatever comes first.
func TestFaultsAreCountedOnce(t *testing.T) {
	t.Parallel()
	one, two := &Version{}, &Version{}
	var f vmFaults
	total := uint64(0)
	for i, c := range []struct {
		seen    VMFaults
		inForce *Version
		want    uint64
	}{
		{VMFaults{}, one, 0},
		{VMFaults{0, 3}, one, 1},  // dead
		{VMFaults{0, 9}, one, 1},  // still
		{VMFaults{1, 9}, one, 1},  // made anew
		{VMFaults{1, 10}, one, 2}, // dead again
		{VMFaults{1, 10}, two, 2}, // another version
		{VMFaults{1, 11}, two, 3}, // which dies, too
		{VMFaults{4, 11}, two, 5}, // made anew three times
		{VMFaults{4, 12}, nil, 5}, // nothing in force
		{VMFaults{2, 0}, two, 7},  // another Envoy
	} {
		if total += f.grown(c.seen, c.inForce); total != c.want {
			t.Errorf("%d: %d faults, want %d", i, total, c.want)
		}
	}
}
