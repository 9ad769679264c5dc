//go:build upgrade

package e2e

import (
	"os"
	"testing"

	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/pages"
)

// The page on upgrades, in the midst of one: the control plane is replaced, and of two
// agents one.
func TestUpgradePage(t *testing.T) {
	older, newer := last(t), current()
	w := controlled(t, newer)
	for name, b := range map[string]programs{"edge-1": newer, "edge-2": older} {
		w.agent(node{name: name, binary: b.agent}, w.gateway(listener{port: freePort(t), name: "in"}))
	}
	w.apply(plugin("basic-auth", w.push("append:v1", module.Append()), tag("n0")))
	env := append(os.Environ(), "CHANDLER_SERVER="+w.admin, "PATH="+built+":"+os.Getenv("PATH"))
	pages.Open(t, "docs/upgrades.md").In(&pages.World{
		Shells: map[string]*pages.Shell{"": {Dir: t.TempDir(), Env: env}},
		Names:  []string{"v0.3.0", newer.version, "v0.2.0", older.version},
	})
}
