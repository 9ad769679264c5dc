//go:build upgrade

package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

// A control plane of every release and that of today, each with an agent of all of
// them: plugins come, change and go on every proxy, a version that Envoy refuses is told
// with Envoy's words and the one before stays, and the status is what is so, by the
// command of every release, too.
func TestSkewMatrix(t *testing.T) {
	t.Parallel()
	all := append(releases(t), current())
	for _, control := range all {
		t.Run("control plane "+control.version, func(t *testing.T) {
			t.Parallel()
			w := controlled(t, control)
			ports := make([]int, len(all))
			for i, b := range all {
				ports[i] = freePort(t)
				w.agent(node{name: b.version, binary: b.agent}, w.gateway(listener{port: ports[i], name: "in"}))
			}
			everywhere := func(tags ...string) {
				t.Helper()
				for _, port := range ports {
					sees(t, port, tags...)
				}
			}
			url, choose := w.push("append:v1", module.Append()), w.push("choosy:v1", module.Append(choosy))
			w.apply(plugin("p", url, tag("one")) + "---\n" + script("l", luaTag("lua"), "phase: AUTHN"))
			w.apply(plugin("q", choose, tag("q"), "phase: STATS"))
			everywhere("lua", "q", "one")
			for _, b := range all {
				w.runs(b.version, b.version)
			}

			w.apply(plugin("p", url, tag("two")))
			w.submit(plugin("q", choose, tag(tooLong), "phase: STATS"))
			for _, b := range all {
				w.describesProxy("q", b.version, "Rejected", "too long a tag")
			}
			everywhere("lua", "q", "two")
			w.apply(plugin("q", choose, tag("q2"), "phase: STATS"))
			everywhere("lua", "q2", "two")
			for _, b := range all {
				if out, err := exec.Command(b.control, "status", "-A", "--server", w.admin).CombinedOutput(); err != nil {
					t.Errorf("chandler status of %s: %v\n%s", b, err, out)
				}
			}
			for _, name := range []string{"p", "q"} {
				if out, ok := w.cli("", "delete", "wasmplugin", name, "-n", "edge"); !ok {
					t.Fatalf("delete: %s", out)
				}
			}
			everywhere("lua")
		})
	}
}

// describesProxy waits until a plugin is described with these texts in the line of one
// proxy.
func (w *world) describesProxy(name, proxy string, texts ...string) {
	w.t.Helper()
	eventually(w.t, 30*time.Second, fmt.Sprintf("%s on %s has %q", name, proxy, texts), func() (bool, string) {
		out, _ := w.cli("", "describe", "wasmplugin", name, "-n", "edge")
		line := grep(out, "edge/"+proxy)
		for _, text := range texts {
			if !strings.Contains(line, text) {
				return false, out
			}
		}
		return true, ""
	})
}
