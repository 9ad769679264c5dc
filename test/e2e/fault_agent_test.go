package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

// signal sends the process a signal.
func (p *process) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// killAll ends an agent and its Envoy as the machine's end would.
func (p *proxy) killAll(t testing.TB) {
	t.Helper()
	envoy := p.envoy(t)
	p.kill(t)
	if err := syscall.Kill(envoy, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	stopped(t, envoy)
}

// modules is where an agent keeps what it fetched.
func (p *proxy) modules() string { return filepath.Join(p.dir, "data", "modules") }

// The control plane is killed again and again while the plugin is edited: no
// request sees anything but a version, none an older one after a newer, and the
// last edit is in force in the end.
func TestFault_F5_ControlPlaneKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	urls := []string{w.push("append:v0", build(0)), w.push("append:v1", build(1))}
	edit := func(n int) {
		t.Helper()
		w.edit("p", plugin("p", urls[n/2%2], tag(fmt.Sprintf("n%d", n))))
	}
	edit(0)
	sees(t, port, "n0")
	o := watchOrder(port)
	random := rand.New(rand.NewPCG(1, 2))
	const rounds = 8
	for n := 1; n <= rounds; n++ {
		edit(n)
		<-time.After(time.Duration(random.IntN(150)) * time.Millisecond) // somewhere in the update
		w.control.kill(t)
		w.startControl()
	}
	heals(t, port, fmt.Sprintf("n%d", rounds))
	o.check(t)
}

// The agent stands still while updates come and the control plane is replaced.
// When it goes on, the newest is in force and nothing older comes back.
func TestFault_F8_AgentStandsStill(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("append:v1", module.Append())
	w.apply(plugin("p", url, tag("n0")))
	o := watchOrder(port)
	stopped := time.Now()
	p.signal(t, syscall.SIGSTOP)
	defer p.signal(t, syscall.SIGCONT)
	for i := range 3 {
		w.submit(plugin("p", url, tag(fmt.Sprintf("n%d", i+1))))
	}
	has(t, port, "n0")
	w.control.kill(t)
	w.startControl()
	w.submit(plugin("p", url, tag("n4")))
	has(t, port, "n0")
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for time.Since(stopped) < standStill {
		has(t, port, "n0")
		<-look.C
	}
	p.signal(t, syscall.SIGCONT)
	heals(t, port, "n4")
	o.check(t)
}

// A bit of a stored module flips while nobody looks. The next start finds it,
// keeps the file aside and fetches the module again; no request passes without
// the plugin meanwhile.
func TestFault_F17_FlippedBit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("p", w.push("append:v1", module.Append()), tag("p")))
	asked := w.registry.Counts()
	p.killAll(t)
	stored := wholeModules(t, p.modules())
	if len(stored) != 1 {
		t.Fatalf("stored: %v", stored)
	}
	b, err := os.ReadFile(stored[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.Chmod(stored[0], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stored[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	p.restart()
	eventually(t, 20*time.Second, "the plugin answers", func() (bool, string) {
		a, err := request(fresh, http.MethodGet, port, "/", nil)
		if err != nil {
			return false, err.Error()
		}
		if a.code == http.StatusOK && len(appended(a)) == 0 {
			t.Fatal("a request passed without the plugin")
		}
		return a.code == http.StatusOK, fmt.Sprint(a.code)
	})
	p.awaitReady()
	has(t, port, "p")
	if got := wholeModules(t, p.modules()); len(got) != 1 {
		t.Errorf("stored: %v", got)
	}
	aside, err := filepath.Glob(filepath.Join(p.modules(), "quarantine", "*"))
	if err != nil || len(aside) != 1 {
		t.Errorf("kept aside: %v, %v", aside, err)
	}
	if w.registry.Counts() != asked {
		t.Error("the registry was asked; the control plane has the module")
	}
}

// A stored module is deleted while its plugin runs. Traffic notices nothing, not
// when the agent is started anew either, which fetches it again.
func TestFault_F18_DeletedFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("append:v1", module.Append())
	w.apply(plugin("p", url, tag("n0")))
	o := watchOrder(port)
	remove := func() {
		t.Helper()
		for _, file := range wholeModules(t, p.modules()) {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
	}
	fetched := func() {
		t.Helper()
		eventually(t, 20*time.Second, "the module is there again", func() (bool, string) {
			return len(wholeModules(t, p.modules())) == 1, "it is not"
		})
	}
	remove()
	p.kill(t)
	p.restart()
	p.awaitReady()
	fetched()
	has(t, port, "n0")
	w.inForce("a")
	w.apply(plugin("p", url, tag("n1")))
	has(t, port, "n1")
	o.check(t)

	remove()
	p.killAll(t)
	p.restart()
	p.awaitReady()
	fetched()
	has(t, port, "n1")
}

// The folders in which the agent and the control plane have their modules are removed while
// a plugin runs. Traffic notices nothing, another module comes into force, and what runs is
// fetched again, without anybody being started anew.
func TestFault_F18_DeletedFolder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a", flags: []string{"--scrub", "100ms"}}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("append:v1", build(1))
	w.apply(plugin("p", url, tag("n0")))
	kept := wholeModules(t, p.modules())
	if len(kept) != 1 {
		t.Fatalf("stored: %v", kept)
	}
	remove := func() {
		t.Helper()
		away := t.TempDir() // in one step, as they may be written to
		for _, dir := range []string{p.modules(), filepath.Join(w.dir, "control", "modules")} {
			if err := os.Rename(dir, filepath.Join(away, filepath.Base(filepath.Dir(dir)))); err != nil {
				t.Fatal(err)
			}
		}
	}
	o := watchOrder(port)
	for n, image := range []string{w.push("append:v2", build(2)), url} {
		remove()
		tags := fmt.Sprintf("n%d", n+1)
		w.apply(plugin("p", image, tag(tags)))
		has(t, port, tags)
	}
	remove()
	eventually(t, 20*time.Second, "the module that runs is there again", func() (bool, string) {
		now, err := filepath.Glob(filepath.Join(p.modules(), "*.wasm"))
		return slices.Contains(now, kept[0]), fmt.Sprintf("%v, %v", now, err)
	})
	o.check(t)
	has(t, port, "n2")
}

// No control plane when the node boots: the last good set is in force within two
// seconds, and what comes later finds its way when there is one.
func TestFault_F67_BootsAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("append:v1", module.Append())
	w.apply(plugin("p", url, tag("one")))
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	w.submit(plugin("p", url, tag("two")))
	if err := w.control.stop(); err != nil {
		t.Fatal(err)
	}
	p.restart()
	p.awaitReady()
	has(t, port, "one")
	w.startControl()
	heals(t, port, "two")
}

// Plugins go under load, one of two and then the other: no request is refused
// and none sees a plugin that it should not.
func TestFault_F59_RemovedUnderLoad(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("append:v1", module.Append())
	const keep = 6
	l := startLoad(port, keep, 2, func(a answer) error {
		if a.code != http.StatusOK {
			return fmt.Errorf("status %d", a.code)
		}
		return nil
	})
	for range 5 {
		w.apply(plugin("p", url, tag("p"), "phase: AUTHN") + "---\n" + plugin("q", url, tag("q")))
		has(t, port, "p", "q")
		for i, rest := range [][]string{{"q"}, nil} {
			if out, ok := w.cli("", "delete", "wasmplugin", []string{"p", "q"}[i], "-n", "edge"); !ok {
				t.Fatal(out)
			}
			heals(t, port, rest...)
		}
	}
	l.end()
	if len(l.wrong) > 0 || l.closed.Load() > 0 {
		t.Errorf("of %d requests %d ended a kept connection; wrong: %v",
			l.answers.Load(), l.closed.Load(), l.wrong)
	}
}

// Envoy refuses a version: the one before stays and is what status tells, the
// refusal is told with Envoy's reason, and a neighbour's updates do not send the
// refused one again.
func TestFault_F61_Refused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("append:v1", module.Append())
	w.apply(plugin("p", url, tag("p"), "phase: AUTHN") + "---\n" + plugin("q", url, tag("q0")))
	out, ok := w.cli(plugin("p", w.push("bad:v1", module.RefuseConfigure("too sour")), "phase: AUTHN"), "apply", "-f", "-", "--wait", "--timeout", "60s")
	if ok || !strings.Contains(out, "Rejected") {
		t.Errorf("a refused version: %s", out)
	}
	w.tells("p", "Rejected", "too sour")
	for i := range 3 {
		has(t, port, "p", fmt.Sprintf("q%d", i))
		w.apply(plugin("q", url, tag(fmt.Sprintf("q%d", i+1))))
	}
	has(t, port, "p", "q3")
	const refusals = `pilot_total_xds_rejects{type="type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"}`
	if metrics := fetchText(t, "http://"+w.admin+"/metrics"); !strings.Contains(metrics, refusals+" 1\n") {
		t.Errorf("refusals: %s", grep(metrics, refusals))
	}
	w.apply(plugin("p", url, tag("mended"), "phase: AUTHN"))
	has(t, port, "mended", "q3")
}

// One bad plugin among fifty that come at once: the others are in force.
func TestFault_F63_OneBadAmongFifty(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	good, bad := w.push("append:v1", module.Append()), w.push("bad:v1", module.RefuseConfigure("no"))
	var all, want []string
	for i := range 50 {
		name := fmt.Sprintf("p%02d", i)
		if i == 17 {
			all = append(all, plugin(name, bad, "failStrategy: FAIL_OPEN"))
			continue
		}
		all, want = append(all, plugin(name, good, tag(name))), append(want, name)
	}
	w.submit(strings.Join(all, "---\n"))
	sees(t, port, want...)
	w.tells("p17", "Rejected")
	has(t, port, want...)
}
