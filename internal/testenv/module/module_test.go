package module_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

func TestInt(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "00", 63: "3f", 64: "c000", -1: "7f", -64: "40", -65: "bf7f", 65536: "808004"} {
		if got := fmt.Sprintf("%x", module.Int(n)); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
}

func TestSectionChangesTheBytes(t *testing.T) {
	t.Parallel()
	if bytes.Equal(module.Append(), module.Append(module.WithSection("v", []byte("2")))) {
		t.Error("the same bytes")
	}
}

// TestWhatEnvoySays holds the promise of every ready-made module: loads or not,
// and which line of Envoy's log says why.
func TestWhatEnvoySays(t *testing.T) {
	t.Parallel()
	envoy := module.Envoy(t)
	for name, c := range map[string]struct {
		module        []byte
		configuration string
		loads         bool
		log           string
	}{
		"append":            {module.Append(), "a", true, ""},
		"append empty":      {module.Append(), "", true, ""},
		"append big":        {module.Append(), strings.Repeat("c", 100_000), true, ""},
		"append 0.2.0":      {module.Append(module.ABI("0.2.0")), "a", true, ""},
		"append 0.1.0":      {module.Append(module.ABI("0.1.0")), "a", true, ""},
		"section":           {module.Append(module.WithSection("v", []byte("2"))), "a", true, ""},
		"deny":              {module.Deny(403), "", true, ""},
		"trap request":      {module.TrapRequest(), "", true, ""},
		"refused text":      {module.Append(), "!not today", false, "!not today"},
		"refuse configure":  {module.RefuseConfigure("the moon is wrong"), "", false, "the moon is wrong"},
		"trap start":        {module.TrapStart(), "", false, "Function: _initialize failed: Uncaught RuntimeError: unreachable"},
		"missing import":    {module.MissingImport(), "", false, "due to a missing import: env.proxy_no_such_call"},
		"bad ABI":           {module.BadABI(), "", false, "Missing or unknown Proxy-Wasm ABI version"},
		"no malloc":         {module.NoMalloc(), "", false, "missing malloc function"},
		"truncated":         {module.Truncate(module.Append()), "", false, "Failed to parse corrupted Wasm module"},
		"ABI export absent": {module.Append(module.Without("proxy_abi_version_0_2_1")), "", false, "Missing or unknown Proxy-Wasm ABI version"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			loads, log, err := module.Validate(t, envoy, c.module, c.configuration, time.Minute)
			if err != nil || loads != c.loads || !strings.Contains(log, c.log) {
				t.Errorf("loads: %v, want %v (%v)\nwant in the log: %s\n%s", loads, c.loads, err, c.log, log)
			}
		})
	}
}

func TestLoopConfigureNeverEnds(t *testing.T) {
	t.Parallel()
	_, log, err := module.Validate(t, module.Envoy(t), module.LoopConfigure(), "", 3*time.Second)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it ended: %v\n%s", err, log)
	}
}

// TestServing runs a live Envoy with one listener for each chain of plugins.
func TestServing(t *testing.T) {
	t.Parallel()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, strings.Join(r.Header.Values("x-plugins"), ","))
	}))
	t.Cleanup(upstream.Close)
	dir := t.TempDir()
	plugin := func(name string, mod []byte, configuration string) string {
		path := filepath.Join(dir, name+".wasm")
		if err := os.WriteFile(path, mod, 0o600); err != nil {
			t.Fatal(err)
		}
		return module.Filter(name, path, configuration)
	}
	base := start(t, dir, upstream.Listener.Addr().String(), map[string][]string{
		"append": {
			plugin("a", module.Append(), "first"),
			plugin("b", module.Append(module.ABI("0.1.0")), "second"),
		},
		"deny": {plugin("d", module.Deny(418), "")},
		"trap": {plugin("t", module.TrapRequest(), "")},
	})
	get := func(listener string) (int, string, []string) {
		t.Helper()
		res, err := http.Get(base[listener])
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b), res.Header.Values("x-plugins-response")
	}
	for range 5000 { // often enough for the heap to start again
		if status, body, response := get("append"); status != 200 || body != "first,second" || !slices.Equal(response, []string{"second", "first"}) {
			t.Fatalf("append: %d %q %v", status, body, response)
		}
	}
	if status, body, _ := get("deny"); status != 418 || body != module.DenyBody {
		t.Errorf("deny: %d %q", status, body)
	}
	if status, _, _ := get("trap"); status != 503 {
		t.Errorf("trap: %d", status)
	}
}

// start runs Envoy with a listener for each chain and gives their base URLs.
func start(t *testing.T, dir, upstream string, chains map[string][]string) map[string]string {
	t.Helper()
	host, port, _ := net.SplitHostPort(upstream)
	var listeners []string
	for name, chain := range chains {
		listeners = append(listeners, fmt.Sprintf(`{"name": %q, "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
		"filter_chains": [{"filters": [{"name": "hcm", "typed_config": {
			"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
			"stat_prefix": %q, "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "up"}}]}]},
			"http_filters": [%s, {"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]}]}`,
			name, name, strings.Join(chain, ",")))
	}
	config := fmt.Sprintf(`{"admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
		"static_resources": {"listeners": [%s], "clusters": [{"name": "up", "type": "STATIC", "load_assignment": {"cluster_name": "up", "endpoints": [
			{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": %q, "port_value": %s}}}}]}]}}]}}`,
		strings.Join(listeners, ","), host, port)
	bootstrap, adminFile := filepath.Join(dir, "envoy.json"), filepath.Join(dir, "admin")
	if err := os.WriteFile(bootstrap, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(module.Envoy(t), "-c", bootstrap, "--use-dynamic-base-id", "--concurrency", "1",
		"--admin-address-path", adminFile, "-l", "warning")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("Envoy's log:\n%s", b)
		}
	})
	deadline := time.Now().Add(time.Minute)
	for ; time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		admin, err := os.ReadFile(adminFile)
		if err != nil || len(admin) == 0 {
			continue
		}
		if bases := ready(string(admin)); bases != nil {
			return bases
		}
	}
	t.Fatal("Envoy is not ready after a minute")
	return nil
}

// ready gives the listeners' base URLs once Envoy is live, and nil before.
func ready(admin string) map[string]string {
	res, err := http.Get("http://" + admin + "/ready")
	if err != nil {
		return nil
	}
	_ = res.Body.Close()
	if res.StatusCode != 200 {
		return nil
	}
	if res, err = http.Get("http://" + admin + "/listeners?format=json"); err != nil {
		return nil
	}
	defer res.Body.Close()
	var list struct {
		Statuses []struct {
			Name  string `json:"name"`
			Local struct {
				Socket struct {
					Port int `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if json.NewDecoder(res.Body).Decode(&list) != nil {
		return nil
	}
	bases := map[string]string{}
	for _, l := range list.Statuses {
		bases[l.Name] = fmt.Sprintf("http://127.0.0.1:%d/", l.Local.Socket.Port)
	}
	return bases
}
