package e2e

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"chandler.dev/chandler/internal/testenv/module"
)

// openFiles counts the descriptors of a process.
func openFiles(t *testing.T, p *process) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// limitFiles lets a process have no descriptor but those it has, and gives a
// function that takes it back.
func limitFiles(t *testing.T, p *process) (back func()) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Prlimit(p.cmd.Process.Pid, unix.RLIMIT_NOFILE, nil, &was); err != nil {
		t.Fatal(err)
	}
	now := unix.Rlimit{Cur: 3, Max: was.Max} // bounds the numbers of new ones, and lower ones are taken
	if err := unix.Prlimit(p.cmd.Process.Pid, unix.RLIMIT_NOFILE, &now, nil); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := unix.Prlimit(p.cmd.Process.Pid, unix.RLIMIT_NOFILE, &was, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// An agent, and then the control plane, have no descriptor left: what is in force
// stays, what cannot be done is done when there are some again, and none leaks.
func TestFault_F11_NoDescriptorsLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("p", w.push("append:v0", build(0)), tag("n0")))
	o := watchOrder(port)
	before := openFiles(t, p.process)

	back := limitFiles(t, p.process)
	w.submit(plugin("p", w.push("append:v1", build(1)), tag("n1")))
	has(t, port, "n0")
	back()
	heals(t, port, "n1")

	control := openFiles(t, w.control)
	back = limitFiles(t, w.control)
	w.edit("q", plugin("q", w.push("append:v2", build(2)), tag("q"), "selector: {matchLabels: {app: none}}"))
	w.edit("p", plugin("p", w.push("append:v3", build(3)), tag("n2")))
	has(t, port, "n1")
	back()
	heals(t, port, "n2")
	o.check(t)
	eventually(t, healed, "descriptors are given back", func() (bool, string) {
		agent, plane := openFiles(t, p.process), openFiles(t, w.control)
		return agent <= before+3 && plane <= control+3, fmt.Sprintf("agent %d, before %d; control plane %d, before %d", agent, before, plane, control)
	})
}

// Two plugins of one module, of which one traps: the other runs on in a machine of
// its own.
func TestFault_F75_OneOfTwoTraps(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("trap:v1", module.TrapUnconfigured())
	w.apply(plugin("whole", url, tag("whole"), "priority: 2") + "---\n" + plugin("traps", url, "failStrategy: FAIL_OPEN"))
	refused := 0
	for range 50 {
		switch a := get(t, port, "/"); {
		case a.code == http.StatusServiceUnavailable:
			refused++
		case a.code != http.StatusOK || !slices.Equal(appended(a), []string{"whole"}):
			t.Errorf("status %d, tags %v", a.code, appended(a))
		}
	}
	if refused != 1 { // a worker's VM fails at one request, and then passes
		t.Errorf("%d requests were refused for the one that traps, want 1", refused)
	}
}
