//go:build upgrade

package e2e

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

// Control plane and registry are away, and agent and Envoy end: an agent of every
// release begins with what that of today has kept, and that of today with what each of
// them has kept then. What was in force is in force each time.
func TestUpgradeOffline(t *testing.T) {
	t.Parallel()
	w := controlled(t, current())
	port := freePort(t)
	p := w.skewed(t, "a", current(), w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("p", w.push("append:v1", module.Append()), tag("one")) + "---\n" + script("l", luaTag("lua"), "phase: AUTHN"))
	sees(t, port, "lua", "one")
	if err := w.control.stop(); err != nil {
		t.Fatal(err)
	}
	w.registry.Close()
	t.Cleanup(func() { _ = syscall.Kill(p.envoy(t), syscall.SIGTERM) }) // the last of those to come
	for _, b := range releases(t) {
		for _, next := range []programs{b, current()} {
			envoy := p.envoy(t)
			if err := p.stop(); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(envoy, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			stopped(t, envoy)
			p.build, p.cmd.Path = next, next.agent
			p.restart()
			hasAll(t, port, "lua", "one")
			p.resumed()
			if now := p.envoy(t); now == envoy {
				t.Errorf("with %s Envoy is still %d", next, now)
			}
		}
	}
	w.startControl()
	eventually(t, 30*time.Second, "the control plane hears of it", func() (bool, string) {
		out, ok := w.cli("", "status", "-A")
		return ok, fmt.Sprint(out)
	})
}
