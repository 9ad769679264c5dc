package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

// An Envoy dies in the very moment in which it has found the agent that began anew beside
// it, so that its last words may be heard after its end. The next Envoy has all its plugins
// at once, whenever in that moment it was.
func TestEnvoyDiesAsItFindsItsAgent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a", flags: []string{"--restart", "on-failure"}}, w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("p", w.push("append:v1", module.Append()), tag("p")))
	sees(t, port, "p")
	socket := filepath.Join(p.dir, "data", "envoy", "ads.sock")
	for round := range 12 {
		envoy := p.envoy(t)
		p.kill(t)
		eventually(t, 20*time.Second, "the connection has ended", func() (bool, string) { return !connected(t, socket), "" })
		p.restart()
		for until := time.Now().Add(time.Minute); !connected(t, socket); {
			if time.Now().After(until) {
				t.Fatal("Envoy does not find its agent")
			}
		}
		<-time.After(time.Duration(round) * 30 * time.Microsecond)
		if err := syscall.Kill(envoy, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, "another Envoy runs", func() (bool, string) { return p.envoy(t) != envoy, "it is " + p.tail() })
		sees(t, port, "p")
		p.awaitReady()
	}
}

// connected tells whether a connection to a Unix socket is there, accepted or not.
func connected(t testing.TB, socket string) bool {
	t.Helper()
	const listens = "00010000" // the flag of a socket that does
	sockets, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(sockets)) {
		if fields := strings.Fields(line); len(fields) == 8 && fields[7] == socket && fields[3] != listens {
			return true
		}
	}
	return false
}
