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
	admin := newAdminClient(adminAddress{network: "unix", address: filepath.Join(dir, "admin")})
	t.Cleanup(admin.http.CloseIdleConnections)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
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

// Envoy 1.40's own lines about a Go plugin that panics under FAIL_OPEN, and others.
func TestFaultsInTheLog(t *testing.T) {
	t.Parallel()
	const (
		head  = "[2026-11-28 10:37:34.788][4983]"
		other = "[2026-11-28 10:37:34.788][4984]"
		said  = "[error][wasm] [source/extensions/common/wasm/context.cc:1157] wasm log WasmPlugin/ns/"
		fails = "[error][wasm] [source/extensions/common/wasm/wasm_vm.cc:38] Function: proxy_on_request_headers failed: Uncaught RuntimeError: unreachable"
	)
	key := func(name string) chandler.Key {
		return chandler.Key{Kind: "WasmPlugin", Namespace: "ns", Name: name}
	}
	for what, c := range map[string]struct {
		lines   []string
		named   map[chandler.Key]uint64
		unnamed uint64
	}{
		"Go": {[]string{head + said + "a WasmPlugin/ns/a: panic: ", head + said + "a WasmPlugin/ns/a: assignment to entry in nil map", head + said + "a WasmPlugin/ns/a: ",
			head + fails, "Proxy-Wasm plugin in-VM backtrace:", "  0:  0x12f016 - runtime.abort"}, map[chandler.Key]uint64{key("a"): 1}, 0},
		"Rust":                 {[]string{head + said + "r: panicked at 'boom', src/lib.rs:7:1", head + fails}, map[chandler.Key]uint64{key("r"): 1}, 0},
		"no words":             {[]string{head + fails, head + fails}, nil, 2},
		"ordinary words":       {[]string{head + said + "a: no such user", head + fails}, nil, 1},
		"of another plugin":    {[]string{head + said + "a: panic: ", head + said + "b: hello", head + fails}, nil, 1},
		"of another thread":    {[]string{other + said + "a: panic: ", head + fails}, nil, 1},
		"threads between":      {[]string{head + said + "a: panic: ", other + said + "b: panic: ", head + fails, other + fails}, map[chandler.Key]uint64{key("a"): 1, key("b"): 1}, 0},
		"something between":    {[]string{head + said + "a: panic: ", head + "[info][main] [x.cc:1] else", head + fails}, nil, 1},
		"as it is configured":  {[]string{head + strings.Replace(fails, "proxy_on_request_headers", "proxy_validate_configuration", 1)}, nil, 0},
		"a plugin pretends to": {[]string{head + said + "a: panic: Function: proxy_on_tick failed: no", head + said + "a: [x][1][error][wasm] [y] Function: proxy_on_tick failed: no"}, nil, 0},
	} {
		l := &envoyLog{}
		l.take([]byte(strings.Join(c.lines, "\n") + "\n"))
		if got := l.faulted(); !got.equal(loggedFaults{c.named, c.unnamed}) {
			t.Errorf("%s: %+v, want %v and %d", what, got, c.named, c.unnamed)
		}
	}
}

// Of the log counts only what nobody else counts, and of no name only what can be of
// one plugin alone.
func TestLoggedFaultsAreNotGuessed(t *testing.T) {
	t.Parallel()
	p, open, shut := serving(t), version("a", strategy(chandler.FailOpen)), version("b", strategy(chandler.FailClose))
	logged := func(n uint64, named map[chandler.Key]uint64, wantOpen, wantShut uint64) {
		t.Helper()
		p.step(Trapped{Logged: loggedFaults{named, n}})
		r := p.s.Report()
		if r[open.Key].VMTraps != wantOpen || r[shut.Key].VMTraps != wantShut {
			t.Errorf("%d and %d traps, want %d and %d", r[open.Key].VMTraps, r[shut.Key].VMTraps, wantOpen, wantShut)
		}
	}
	p.assign(open)
	p.loaded(open)
	p.ackAll()
	logged(2, nil, 2, 0)
	logged(2, nil, 2, 0)
	logged(2, map[chandler.Key]uint64{open.Key: 3}, 5, 0)
	p.assign(shut)
	p.loaded(shut)
	p.ackAll()
	logged(9, map[chandler.Key]uint64{open.Key: 3, shut.Key: 4}, 5, 0)
	p.wantState(open, chandler.StateInForce, string(open.Release), chandler.StandInNone, chandler.CodeVMTrap)
}
