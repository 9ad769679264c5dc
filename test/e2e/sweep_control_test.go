//go:build faults && linux

package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/strace"
)

// The control plane is killed at the calls that commit what it is told and what it
// resolved, and started again: what requests see never goes back, and an edit
// that was sent while it died is in force once it was sent to a live one.
func TestFault_F3_F5_ControlPlaneKilledAtItsCalls(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"fsync", "renameat", "unlinkat"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			port := freePort(t)
			w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
			sees(t, port, w.version(0))
			o := watchOrder(port)
			kills := 0
			for n := 1; n <= mostCalls; n++ {
				word := fmt.Sprintf("n%d", n)
				manifest := plugin("p", w.push("append:"+word, build(n)), tag(word))
				w.control.kill(t)
				command := strace.Beside(t, strace.Fault{Call: call, When: n, What: strace.Kill},
					filepath.Join(w.dir, "strace.log"), w.control.cmd.Args...)
				w.control = start(t, w.control.log, command[0], command[1:]...)
				if w.killedOr(port, manifest, word) {
					kills++
				} else {
					w.control.kill(t)
				}
				w.startControl()
				w.submit(manifest)
				heals(t, port, word)
				if got := len(wholeModules(t, filepath.Join(w.dir, "control", "modules"))); got != n+1 {
					t.Errorf("%d modules after %d were resolved", got, n+1)
				}
			}
			o.check(t)
			t.Logf("killed %d times", kills)
			if kills == 0 {
				t.Error("no call was reached")
			}
		})
	}
}

// killedOr applies a manifest until the control plane was killed, and tells that,
// or until it is in force.
func (w *world) killedOr(port int, manifest, word string) (killed bool) {
	w.t.Helper()
	applied := false
	eventually(w.t, 30*time.Second, "killed, or in force", func() (bool, string) {
		select {
		case <-w.control.done:
			w.control.err = nil
			killed = true
			return true, ""
		default:
		}
		if !applied {
			_, applied = w.cli(manifest, "apply", "-f", "-", "--timeout", "5s")
			return false, "not applied"
		}
		a, err := request(fresh, "GET", port, "/", nil)
		return err == nil && slices.Equal(appended(a), []string{word}), fmt.Sprintf("%v, %v", appended(a), err)
	})
	return killed
}
