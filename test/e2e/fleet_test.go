package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

// What diff foretells of the order in a slot is what requests then meet, what node shows
// of it is that too, and why says so of each plugin.
func TestForetold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	in, out := freePort(t), freePort(t)
	w.agent(node{name: "a", labels: []string{"app=edge"}}, w.gateway(listener{port: in, name: "in", direction: "INBOUND"}, listener{port: out, name: "out"}))
	url := w.push("append:v1", module.Append())
	w.apply(plugin("low", url, tag("low"), "phase: AUTHN") + "---\n" + plugin("mid", url, tag("mid"), "phase: AUTHN", "priority: 3"))
	sees(t, in, "mid", "low")

	// The agent tells of its listeners at the latest a second after they opened.
	next := plugin("high", url, tag("high"), "phase: AUTHN", "priority: 7", "match: [{mode: SERVER}]")
	eventually(t, 5*time.Second, "a plugin is foretold", func() (bool, string) {
		told, _ := w.cli(next, "diff", "-f", "-")
		return strings.Contains(told, "proxy edge/a: attach") && strings.Contains(told, fmt.Sprintf("slot chandler/authn/server/%d\n      before: edge/mid -> edge/low\n      after:  edge/high -> edge/mid -> edge/low\n", in)) &&
			!strings.Contains(told, fmt.Sprintf("/client/%d", out)), told
	})
	sees(t, in, "mid", "low") // nothing was changed
	w.apply(next)
	sees(t, in, "high", "mid", "low")
	sees(t, out, "mid", "low")
	// Each with a slot of its own, where Envoy knows no slots that are shared.
	stands := regexp.MustCompile(fmt.Sprintf(`(?s)\n *in .* SERVER, port %[1]d\n *chandler/authn/server/%[1]d.* edge/high  release .* edge/mid  release .* edge/low  release .*\n *out .*edge/mid  release .* edge/low  release `, in))
	eventually(t, 5*time.Second, "node shows what stands", func() (bool, string) {
		shown, ok := w.cli("", "node", "edge/a")
		return ok && stands.MatchString(shown) && strings.Count(shown, "edge/high  release ") == 1 && strings.Contains(shown, "3 desired, 3 in force, 0 failed"), shown
	})
	if why, ok := w.cli("", "why", "high", "-n", "edge", "--node", "a"); !ok || !strings.Contains(why, "is in force") || !strings.Contains(why, fmt.Sprintf("(SERVER, port %d); not out (CLIENT, port %d): its match entries want another mode or port", in, out)) {
		t.Errorf("why: %s", why)
	}

	// A move within the order, and out of it again.
	moved := plugin("high", url, tag("high"), "phase: AUTHN", "priority: 1")
	told, _ := w.cli(moved, "diff", "-f", "-")
	for _, s := range []string{"proxy edge/a: move", "after:  edge/mid -> edge/high -> edge/low", fmt.Sprintf("slot chandler/authn/client/%d\n      before: edge/mid -> edge/low\n", out)} {
		if !strings.Contains(told, s) {
			t.Errorf("of a move it lacks %q: %s", s, told)
		}
	}
	w.apply(moved)
	sees(t, in, "mid", "high", "low")
	sees(t, out, "mid", "high", "low")
	if told, ok := w.cli(moved, "diff", "-f", "-"); !ok || told != "" {
		t.Errorf("of what is so it foretells: %s", told)
	}
}
