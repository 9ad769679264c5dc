//go:build authors

package e2e

import (
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"testing"

	author "chandler.dev/chandler/internal/author/build"
	"chandler.dev/chandler/internal/testenv/compilers"
)

// What the README tells a new author, in one line and every language: from an empty
// folder to the registry. Then a WasmPlugin attaches it.
func TestAuthors(t *testing.T) {
	environ := compilers.Environ(t, "go", "cargo", "rustc", "zig", "node", "npm")
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	for _, l := range author.Languages() {
		t.Run(string(l), func(t *testing.T) {
			name := "hello-" + string(l)
			cmd := exec.CommandContext(t.Context(), "sh", "-ec", fmt.Sprintf(`PATH=$0:$PATH
chandler new %[1]s --lang %[2]s && cd %[1]s && chandler build && chandler test --engine both --envoy "$1" && chandler push %[3]s/%[1]s:v1`,
				name, l, w.registry.Addr), built, envoyBinary(t))
			cmd.Dir, cmd.Env = t.TempDir(), environ
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			w.apply(plugin(name, "oci://"+filepath.Join(w.registry.Addr, name)+":v1", "pluginConfig: {header: x-"+string(l)+", value: world}"))
			if a := get(t, port, "/"); a.code != http.StatusOK || a.headers.Get("x-"+string(l)) != "world" {
				t.Errorf("status %d, header %v", a.code, a.headers)
			}
		})
	}
}
