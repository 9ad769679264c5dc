//go:build upgrade

package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

// A control plane of the last release and one of what is built here stand over one folder
// with a lock file, and have the same agents, which are of both versions, too. Each dies in
// turn, and what it was changes meanwhile, by way of the other: its agents go there and get
// the change, and it agrees when it is back. The lock file is written by either. No request
// fails, and no connection ends.
func TestSkewTwoControlPlanes(t *testing.T) {
	older, newer := last(t), current()
	one := uncontrolled(t, "--no-vet")
	one.upstream.Close()
	one.upstream = httptest.NewServer(http.HandlerFunc(steadyUpstream))
	t.Cleanup(one.upstream.Close)
	one.program = older.control
	url := one.push("append:v1", module.Append())
	n, guard := 0, &guard{}
	edit := func(url string) { one.edit("p", plugin("p", url, tag(fmt.Sprint("n", n)))) }
	edit(url)
	one.lock(older)
	one.startControl()
	two := one.beside(newer.control)
	one.push("append:v1", build(1)) // moved, and nobody is to notice
	agree := func(when string) {
		t.Helper()
		eventually(t, 20*time.Second, when+" both say what is locked", func() (bool, string) {
			here, there, locked := one.meaning(), two.meaning(), lockedDigest.FindStringSubmatch(one.locks())
			return locked != nil && strings.HasPrefix(here["p"], locked[1]) && maps.Equal(here, there), fmt.Sprint(here, there, locked)
		})
	}
	agree("at first")

	ports := []int{freePort(t), freePort(t)}
	gateway := func(i int) string {
		return one.gateway(listener{port: ports[i], name: "in", upgrades: "[{upgrade_type: websocket}]"})
	}
	left := one.agent(node{name: "left", binary: newer.agent, flags: dialsInTurn(one, two)}, gateway(0))
	right := one.agent(node{name: "right", binary: older.agent, flags: dialsInTurn(two, one)}, gateway(1))
	one.inForce("left")
	two.inForce("right")
	asked := ask{begin: guard.begin, right: guard.passed}
	loads := []*steady{startSteady(t, ports[0], asked), startSteady(t, ports[1], asked)}
	before := []counters{proxyStats(t, left), proxyStats(t, right)}

	change := func(url string) {
		t.Helper()
		n++
		guard.last.Add(1)
		edit(url)
		for _, port := range ports {
			eventually(t, 30*time.Second, fmt.Sprintf("n%d is in force", n), func() (bool, string) {
				a, err := request(http.DefaultClient, http.MethodGet, port, "/", nil) // by a connection that stays
				return err == nil && slices.Equal(appended(a), []string{fmt.Sprint("n", n)}), fmt.Sprint(a, err)
			})
		}
		guard.settled.Add(1)
	}
	change(url)
	for i, turn := range []struct {
		dies, stays *world
		by          programs
	}{{one, two, newer}, {two, one, older}} {
		turn.dies.control.kill(t)
		turn.stays.inForce("left", "right")
		name := fmt.Sprint("append:alone", i)
		url := one.push(name, build(2+i))
		change(url)
		one.lock(turn.by)
		one.push(name, build(4+i))
		turn.dies.startControl()
		agree(turn.by.version + " was alone, and")
		change(url)
	}

	// What the one has locked, the other leaves as it is.
	one.lock(newer)
	was := one.locks()
	for _, b := range []programs{older, newer} {
		one.lock(b)
		if now := one.locks(); now != was {
			t.Errorf("locked by %s it is\n%s\nand was\n%s", b, now, was)
		}
	}
	agree("at last")
	for i, p := range []*proxy{left, right} {
		after := proxyStats(t, p) // before the load ends its streams
		loads[i].end(t)
		if after.harm != before[i].harm {
			t.Errorf("listeners or connections were touched: before %+v, after %+v", before[i].harm, after.harm)
		}
		t.Logf("%d requests, %d exchanges", loads[i].answers.Load(), loads[i].exchanged.Load())
	}
}

var lockedDigest = regexp.MustCompile(`digest: (sha256:\S+)`)

// locks is the lock file of the folder.
func (w *world) locks() string {
	w.t.Helper()
	text, err := os.ReadFile(filepath.Join(w.plugins, "chandler.lock"))
	if err != nil {
		w.t.Fatal(err)
	}
	return string(text)
}

// lock has a version's command write the lock file.
func (w *world) lock(b programs) {
	w.t.Helper()
	if out, err := exec.Command(b.control, "lock", "-f", w.plugins).CombinedOutput(); err != nil {
		w.t.Fatalf("lock by %s: %v\n%s", b, err, out)
	}
}
