//go:build faults && linux

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/strace"
)

// faulty starts an agent again, under a fault. strace stays beside it and its
// Envoy for as long as they run.
func (p *proxy) faulty(f strace.Fault) {
	p.w.t.Helper()
	plain := p.cmd
	command := strace.Beside(p.w.t, f, filepath.Join(p.dir, "strace.log"), append([]string{plain.Path}, plain.Args[1:]...)...)
	p.process = start(p.w.t, p.log, command[0], command[1:]...)
	p.cmd.Path, p.cmd.Args = plain.Path, plain.Args // what restart starts
}

// killedOr waits until the fault has killed the agent, and tells that, or until
// something else holds.
func (p *proxy) killedOr(what string, holds func() (bool, string)) (killed bool) {
	p.w.t.Helper()
	eventually(p.w.t, 30*time.Second, "killed, or "+what, func() (bool, string) {
		select {
		case <-p.done:
			killed = true
			return true, ""
		default:
			return holds()
		}
	})
	if killed {
		p.err = nil
	}
	return killed
}

// envoys counts the Envoys that run on the agent's bootstrap.
func (p *proxy) envoys(t *testing.T) int {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, path := range all {
		b, _ := os.ReadFile(path) // it may be gone
		args := bytes.Split(b, []byte{0})
		if filepath.Base(string(args[0])) == filepath.Base(envoyBinary(t)) && bytes.Contains(b, []byte(filepath.Join(p.dir, "data", "envoy", "bootstrap"))) {
			n++
		}
	}
	return n
}

// saved tells whether the last good set on disk has a word in it.
func (p *proxy) saved(word string) (bool, string) {
	b, err := os.ReadFile(filepath.Join(p.dir, "data", "lastgood"))
	return err == nil && bytes.Contains(b, []byte(word)), fmt.Sprintf("%q is not in the last good set (%v)", word, err)
}

// The calls that put a file of the agent in its place. strace counts them for each
// thread, and Go moves work between threads: so a call is killed as the first of
// its thread, as the second, until none gets that far.
var committing = []string{"openat", "fsync", "renameat"}

const mostCalls = 6

// The agent is killed at the calls that put its files in place while it starts
// Envoy and while it takes an edit. The next one goes on without a hand: one
// Envoy, the newest edit in force, nothing partial.
func TestFault_F2_F3_AgentKilledAtItsCalls(t *testing.T) {
	t.Parallel()
	for _, call := range committing {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			port := freePort(t)
			p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
			word := w.version(0)
			sees(t, port, word)
			kills := 0
			for n := 1; n <= mostCalls; n++ {
				p.awaitSaved(word)
				p.killAll(t)
				p.faulty(strace.Fault{Call: call, When: n, What: strace.Kill})
				killed := p.killedOr("ready", func() (bool, string) { return status("http://" + p.admin + "/healthz/ready") })
				word = w.version(n)
				if !killed {
					killed = p.killedOr("saved", func() (bool, string) { return p.saved(word) })
				}
				if killed {
					kills++
					p.restart()
				}
				p.awaitReady()
				heals(t, port, word)
				if n := p.envoys(t); n != 1 {
					t.Fatalf("%d Envoys run", n)
				}
				wholeModules(t, p.modules())
			}
			t.Logf("killed %d times", kills)
			if kills == 0 {
				t.Error("no call was reached")
			}
		})
	}
}

// The agent is killed at the moment in which each of its files would get its
// name; of those that it writes as it starts, before and after Envoy began.
func TestFault_F3_F4_AgentKilledAtEachFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	word := w.version(0)
	for n, file := range []string{"envoy/listeners.yaml", "envoy/bootstrap.yaml", "envoy/process.json", "lastgood"} {
		p.awaitSaved(word)
		p.killAll(t)
		p.faulty(strace.Fault{Call: "renameat", When: 1, What: strace.Kill, Path: filepath.Join(p.dir, "data", file)})
		word = w.version(n + 1)
		if !p.killedOr("never", func() (bool, string) { return false, file + " is not written" }) {
			continue // it has failed
		}
		p.restart()
		p.awaitReady()
		heals(t, port, word)
		eventually(t, 10*time.Second, "one Envoy runs after "+file, func() (bool, string) {
			n := p.envoys(t)
			return n == 1, fmt.Sprintf("%d run", n)
		})
	}
}

// version edits the plugin to a version of its own; the word that it gives is what
// requests see, and in the last good set.
func (w *world) version(n int) string {
	w.t.Helper()
	word := fmt.Sprintf("n%d", n)
	w.submit(plugin("p", w.push("append:"+word, build(n)), tag(word)))
	return word
}

func (p *proxy) awaitSaved(word string) {
	p.w.t.Helper()
	eventually(p.w.t, 20*time.Second, "the last good set is saved", func() (bool, string) { return p.saved(word) })
}
