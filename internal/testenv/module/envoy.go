package module

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Envoy gives the path of the real Envoy, .tools/envoy at the repository's root.
// Without one the test fails: a test that skips proves nothing.
func Envoy(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test's directory")
		}
	}
	envoy := filepath.Join(dir, ".tools", "envoy")
	if _, err := os.Stat(envoy); err != nil {
		t.Fatalf("no Envoy at %s: run make tools", envoy)
	}
	return envoy
}

// Filter gives the configuration of an HTTP filter in YAML's JSON form that runs
// the module at path under that plugin name.
func Filter(name, path, configuration string) string {
	q := func(s string) string { b, _ := json.Marshal(s); return string(b) }
	return fmt.Sprintf(`{"name": %[1]s, "typed_config": {
		"@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
		"config": {"name": %[1]s,
			"configuration": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": %[3]s},
			"vm_config": {"vm_id": %[1]s, "runtime": "envoy.wasm.runtime.v8", "code": {"local": {"filename": %[2]s}}}}}}`,
		q(name), q(path), q(configuration))
}

// Validate asks the real Envoy whether it would load the module with that
// configuration, and gives its log. loads is false also when it did not answer
// within the deadline, and then the error is context.DeadlineExceeded.
func Validate(t testing.TB, envoy string, mod []byte, configuration string, deadline time.Duration) (loads bool, log string, err error) {
	t.Helper()
	dir := t.TempDir()
	path, bootstrap := filepath.Join(dir, "plugin.wasm"), filepath.Join(dir, "envoy.json")
	config := fmt.Sprintf(`{"static_resources": {"listeners": [{"name": "l", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
		"filter_chains": [{"filters": [{"name": "hcm", "typed_config": {
			"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
			"stat_prefix": "l", "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}]}]},
			"http_filters": [%s, {"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]}]}]}}`,
		Filter("under-test", path, configuration))
	if err := errors.Join(os.WriteFile(path, mod, 0o600), os.WriteFile(bootstrap, []byte(config), 0o600)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, envoy, "--mode", "validate", "-c", bootstrap, "--use-dynamic-base-id",
		"--concurrency", "1", "-l", "warning", "--component-log-level", "wasm:info")
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	switch exit := (*exec.ExitError)(nil); {
	case ctx.Err() != nil:
		return false, out.String(), ctx.Err()
	case err == nil:
		return true, out.String(), nil
	case errors.As(err, &exit):
		return false, out.String(), nil
	}
	t.Fatalf("run Envoy: %v", err)
	return false, "", nil
}
