package attach

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/testenv/module"
)

// The bootstrap of docs/any-control-plane.md is turned over to the agent, and Envoy takes
// what becomes of it.
func TestPageBootstrap(t *testing.T) {
	t.Parallel()
	page := string(read(t, "../../docs/any-control-plane.md"))
	_, rest, ok := strings.Cut(page, "```yaml\nnode:\n")
	text, _, end := strings.Cut(rest, "```")
	if !ok || !end {
		t.Fatal("the page has no bootstrap")
	}
	config, err := MergeConfig("envoy.yaml", []byte("node:\n"+text), "")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	d, err := Derive(config, DeriveConfig{
		ADSSocket: filepath.Join(dir, "ads"), UpstreamSocket: filepath.Join(dir, "up"),
		ListenersFile: filepath.Join(dir, "listeners"), AdminSocket: filepath.Join(dir, "admin"),
	})
	if err != nil || len(d.ControlPlanes) != 1 || !d.UpstreamListeners || len(d.Warnings) > 0 {
		t.Fatalf("%+v, %v", d, err)
	}
	file := filepath.Join(dir, "bootstrap"+d.Extension)
	if err := os.WriteFile(file, d.Bootstrap, 0o600); err != nil {
		t.Fatal(err)
	}
	if ok, log := validate(t, module.Envoy(t), file); !ok {
		t.Error(log)
	}
}
