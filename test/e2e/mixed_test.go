package e2e

import (
	"cmp"
	"flag"
	"fmt"
	"path/filepath"
	"syscall"
	"testing"

	"chandler.dev/chandler/internal/testenv/module"
)

var olderFlag = flag.String("older", "", "folder with an older chandler and chandler-agent, by its path from the repository's root; without it TestFault_F78 takes those under test for older ones, too")

// The control plane and the agent are replaced by older ones, one after the other,
// and then by newer ones, each on what the one before has left on disk: the plugin
// stays in force, nothing is sent to Envoy again, and whoever is there then takes a
// change.
func TestFault_F78_MixedVersions(t *testing.T) {
	t.Parallel()
	older := cmp.Or(*olderFlag, built)
	if !filepath.IsAbs(older) {
		older = filepath.Join("..", "..", older)
	}
	folder := map[string]string{"new": built, "old": older}
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a", flags: []string{"--leave-envoy"}}, w.gateway(listener{port: port, name: "in"}))
	envoy := p.envoy(t)
	t.Cleanup(func() { _ = syscall.Kill(envoy, syscall.SIGTERM) }) // the last agent leaves it
	url := w.push("append:v1", module.Append())
	w.apply(plugin("p", url, tag("n0")))
	now := struct{ control, agent string }{"new", "new"}
	for i, next := range []struct{ control, agent string }{{"old", "new"}, {"old", "old"}, {"new", "old"}, {"new", "new"}, {"old", "old"}, {"new", "new"}} {
		what := fmt.Sprintf("control plane %s, agent %s", next.control, next.agent)
		received := proxyStats(t, p).received
		if next.control != now.control {
			if err := w.control.stop(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			w.program = filepath.Join(folder[next.control], "chandler")
			w.startControl()
		}
		if next.agent != now.agent {
			if err := p.stop(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			p.cmd.Path = filepath.Join(folder[next.agent], "chandler-agent")
			p.restart()
			p.awaitReady()
		}
		now = next
		p.resumed()
		has(t, port, fmt.Sprint("n", i))
		if again := proxyStats(t, p).received - received; again != 0 || p.envoy(t) != envoy {
			t.Errorf("%s: Envoy was sent %v slots again; it is %d and was %d", what, again, p.envoy(t), envoy)
		}
		w.apply(plugin("p", url, tag(fmt.Sprint("n", i+1))))
		sees(t, port, fmt.Sprint("n", i+1))
	}
	if t.Failed() {
		t.Logf("older is %s", cmp.Or(*olderFlag, "the build under test"))
	}
}
