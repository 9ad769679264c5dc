package e2e

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

// The tests of this file are the failure contract on the real Envoy: what requests
// see, one after the other and nothing else, while a plugin cannot run. (That a
// fresh node without anything keeps its listeners shut is TestFreshNodeKeepsShut,
// that a control plane without its registry serves all it had resolved is
// TestFault_F38_RegistryAway.)

// What requests can see of a lane's plugin.
const (
	asBefore = "200 []"
	denied   = "403 []"
	inForce  = "200 [p]"
)

// The fetch deadlines of these tests: one that is to pass, and one before which there is
// time to see what is so until then, or to fetch.
const (
	deadline = 3 * time.Second
	lateOne  = 15 * time.Second
)

func contractWorld(t *testing.T, deadline time.Duration) (*world, *controlGate, node) {
	w := newWorld(t, "--fetch-deadline", deadline.String())
	g := w.controlGate()
	return w, g, node{name: "a", flags: g.flags()}
}

// under makes a manifest deny from the moment of attach.
func under(deny bool, manifest string) string {
	if deny {
		return strings.Replace(manifest, "namespace: edge}", "namespace: edge, annotations: {chandler.dev/first-attach: deny}}", 1)
	}
	return manifest
}

// A plugin is new to a proxy that serves, and something fails.
func TestContract_FirstAttach(t *testing.T) {
	t.Parallel()
	w, g, n := contractWorld(t, deadline)
	patient, patientGate, patientNode := contractWorld(t, lateOne)
	// Each stage makes the plugin's manifest, tells what status must say in turn, and
	// takes the cause away.
	type broken struct {
		manifest string
		told     [][]string
		mend     func()
	}
	unresolved := func(l lane, strategy string, deny bool) broken {
		mod := build(l.port)
		url := l.push(l.name+":other", mod)
		b := broken{
			manifest: l.plugin(strings.Replace(url, ":other", ":v1", 1), tag("p"), strategy),
			told:     [][]string{{"ResolvedRefs  False", "NotFound", "proxies are as they were"}},
			mend:     func() { l.push(l.name+":v1", mod) },
		}
		if deny {
			b.told[0][2] = "requests are refused meanwhile"
		}
		return b
	}
	unfetched := func(g *controlGate, rule func(opened <-chan struct{}) http.HandlerFunc, code string) func(l lane, strategy string, deny bool) broken {
		return func(l lane, strategy string, _ bool) broken {
			mod, opened := build(l.port), make(chan struct{})
			open := g.shut(mod, rule(opened))
			told := "requests are refused there"
			if strings.HasSuffix(strategy, "FAIL_OPEN") {
				told = "left out there"
			}
			return broken{
				manifest: l.plugin(l.push(l.name+":v1", mod), tag("p"), strategy),
				told:     [][]string{{"ResolvedRefs  True"}, {"Programmed    False   " + code, told}},
				mend:     func() { open(); close(opened) },
			}
		}
	}
	fails := func(<-chan struct{}) http.HandlerFunc { return failsToRead }
	failing := unfetched(g, fails, "FetchFailed")
	hanging := unfetched(g, func(opened <-chan struct{}) http.HandlerFunc {
		return func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-opened:
				panic(http.ErrAbortHandler)
			case <-r.Context().Done():
			}
		}
	}, "DeadlinePassed")
	refused := func(l lane, strategy string, _ bool) broken {
		return broken{
			manifest: l.plugin(l.push(l.name+":bad", module.RefuseConfigure("not with me")), tag("p"), strategy),
			told:     [][]string{{"Programmed    False   Rejected", "not with me"}},
			mend:     func() { l.submit(l.plugin(l.push(l.name+":v1", build(l.port)), tag("p"), strategy)) },
		}
	}
	type cell struct {
		strategy string
		stage    func(l lane, strategy string, deny bool) broken
		deny     bool
		seen     []string // between "as before" and "in force"
	}
	holds := func(l lane, c cell) {
		b := c.stage(l, "failStrategy: "+c.strategy, c.deny)
		s := watchPort(l.port)
		s.sees(l.t, asBefore)
		began := time.Now()
		l.submit(under(c.deny, b.manifest))
		for _, texts := range b.told {
			l.tells(texts...)
		}
		// What is awaited between is seen by now, or will be.
		eventually(l.t, healed, fmt.Sprintf("requests see %q", c.seen), func() (bool, string) {
			last := s.last()
			return last == append([]string{asBefore}, c.seen...)[len(c.seen)], last
		})
		held := time.Since(began)
		if len(b.told) > 1 && !c.deny && held < deadline {
			l.t.Errorf("the deadline passed after %s", held)
		}
		b.mend()
		l.healsIn("p")
		s.wantSeen(l.t, append(append([]string{asBefore}, c.seen...), inForce)...)
		l.programmed(l.name)
	}
	lanes(t, w, n, map[string]cell{
		"failing FAIL_OPEN":             {"FAIL_OPEN", failing, false, nil},
		"failing FAIL_CLOSE":            {"FAIL_CLOSE", failing, false, []string{denied}},
		"failing FAIL_RELOAD":           {"FAIL_RELOAD", failing, false, []string{denied}},
		"failing FAIL_CLOSE under deny": {"FAIL_CLOSE", failing, true, []string{denied}},
		"hanging FAIL_OPEN":             {"FAIL_OPEN", hanging, false, nil},
		"hanging FAIL_CLOSE":            {"FAIL_CLOSE", hanging, false, []string{denied}},
		"refused FAIL_OPEN":             {"FAIL_OPEN", refused, false, nil},
		"refused FAIL_CLOSE":            {"FAIL_CLOSE", refused, false, []string{denied}},
		"refused FAIL_RELOAD":           {"FAIL_RELOAD", refused, false, []string{denied}},
	}, holds)
	lanes(t, patient, patientNode, map[string]cell{
		"unresolved FAIL_OPEN":            {"FAIL_OPEN", unresolved, false, nil},
		"unresolved FAIL_CLOSE":           {"FAIL_CLOSE", unresolved, false, nil},
		"unresolved FAIL_OPEN under deny": {"FAIL_OPEN", unresolved, true, []string{denied}},
		"failing FAIL_OPEN under deny":    {"FAIL_OPEN", unfetched(patientGate, fails, "FetchFailed"), true, []string{denied, asBefore}},
	}, holds)
}

// An update, whatever fails: the old version answers every request, also under
// deny and when the deadline has long passed.
func TestContract_UpdateKeepsLastGood(t *testing.T) {
	t.Parallel()
	w, g, n := contractWorld(t, deadline)
	unfetched := func(l lane) (string, []string) {
		mod := build(l.port + 100_000) // another one than any lane's
		g.shut(mod, failsToRead)
		return l.push(l.name+":v2", mod), []string{"Programmed    False   FetchFailed", "the disk is broken", "stays in force there"}
	}
	refused := func(l lane) (string, []string) {
		return l.push(l.name+":v2", module.RefuseConfigure("not with me")), []string{"Programmed    False   Rejected", "not with me", "stays in force there"}
	}
	unresolved := func(l lane) (string, []string) {
		return l.registry.Addr + "/plugins/none:v1", []string{"ResolvedRefs  False   NotFound", "generation 1 stays assigned"}
	}
	type cell struct {
		strategy string
		update   func(lane) (string, []string)
		deny     bool
	}
	lanes(t, w, n, map[string]cell{
		"unfetched FAIL_OPEN":              {"FAIL_OPEN", unfetched, false},
		"unfetched FAIL_CLOSE":             {"FAIL_CLOSE", unfetched, false},
		"unfetched FAIL_RELOAD":            {"FAIL_RELOAD", unfetched, false},
		"unfetched FAIL_CLOSE under deny":  {"FAIL_CLOSE", unfetched, true},
		"refused FAIL_OPEN":                {"FAIL_OPEN", refused, false},
		"refused FAIL_CLOSE":               {"FAIL_CLOSE", refused, false},
		"refused FAIL_RELOAD under deny":   {"FAIL_RELOAD", refused, true},
		"unresolved FAIL_CLOSE under deny": {"FAIL_CLOSE", unresolved, true},
	}, func(l lane, c cell) {
		strategy := "failStrategy: " + c.strategy
		l.apply(under(c.deny, l.plugin(l.push(l.name+":v1", build(l.port)), tag("p"), strategy)))
		s := watchPort(l.port)
		url, told := c.update(l)
		l.submit(under(c.deny, l.plugin(url, tag("new"), strategy)))
		l.tells(told...)
		if strings.HasPrefix(l.title, "unfetched") {
			l.tried(6) // that is after the deadline: the pauses are of half of 0.2, 0.4, 0.8, 1.6 and 3 s at least
		}
		if out, ok := l.cli("", "status", l.name, "-n", "edge"); ok {
			l.t.Errorf("status finds it well:\n%s", out)
		}
		s.wantSeen(l.t, inForce)
	})
}

// A proxy starts. What it never had in force is stood in for from the first
// request on, and it is not ready; what it had is in force from the first request
// on, though all else is down by then.
func TestContract_Starting(t *testing.T) {
	t.Parallel()
	w, g, n := contractWorld(t, deadline)
	ports, sightings := map[string]int{}, map[string]*sighting{}
	var listeners []listener
	for _, name := range []string{"open", "close", "reload", "refused"} {
		ports[name] = freePort(t)
		listeners = append(listeners, listener{port: ports[name], name: name})
	}
	mod, opened := build(1), make(chan struct{})
	open := g.shut(mod, func(http.ResponseWriter, *http.Request) {
		<-opened
		panic(http.ErrAbortHandler)
	})
	url := w.push("append:v1", mod)
	w.submit(join(
		plugin("open", url, tag("p"), on(ports["open"]), "failStrategy: FAIL_OPEN"),
		plugin("close", url, tag("p"), on(ports["close"])),
		plugin("reload", url, tag("p"), on(ports["reload"]), "failStrategy: FAIL_RELOAD"),
		plugin("refused", w.push("bad:v1", module.RefuseConfigure("not with me")), on(ports["refused"]))))
	for _, name := range []string{"open", "close", "reload", "refused"} {
		w.tells(name, "ResolvedRefs  True")
	}
	watch := func() {
		for name, port := range ports {
			sightings[name] = watchPort(port)
		}
	}
	watch()
	p := w.startAgent(n, w.gateway(listeners...))
	eventually(t, 20*time.Second, "the agent is not ready for its plugins", func() (bool, string) {
		ok, why := status("http://" + p.admin + "/healthz/ready")
		return !ok && strings.Contains(why, "edge/close is ") && strings.Contains(why, "edge/reload is ") && !strings.Contains(why, "edge/open"), why
	})
	w.tells("refused", "Rejected", "not with me", "requests are refused there")
	for name, s := range sightings {
		eventually(t, healed, "requests to "+name, func() (bool, string) { return s.last() != "", "no answer" })
	}
	open()
	close(opened)
	for _, name := range []string{"open", "close", "reload"} {
		heals(t, ports[name], "p")
	}
	w.programmed("open", "close", "reload")
	sightings["open"].wantSeen(t, asBefore, inForce)
	sightings["close"].wantSeen(t, denied, inForce)
	sightings["reload"].wantSeen(t, denied, inForce)
	sightings["refused"].wantSeen(t, denied)

	// All else is gone, and agent and Envoy start again.
	w.control.kill(t)
	w.registry.Close()
	p.killAll(t)
	watch()
	p.restart()
	for name, s := range sightings {
		eventually(t, 20*time.Second, "requests to "+name, func() (bool, string) { return s.last() != "", "no answer" })
	}
	eventually(t, 20*time.Second, "all but the denied one is ready", func() (bool, string) {
		_, why := status("http://" + p.admin + "/healthz/ready")
		return strings.Contains(why, "edge/refused is ") && !strings.Contains(why, "edge/close") && !strings.Contains(why, "edge/reload"), why
	})
	w.startControl()
	w.programmed("open", "close", "reload")
	for _, name := range []string{"open", "close", "reload"} {
		sightings[name].wantSeen(t, inForce)
	}
	sightings["refused"].wantSeen(t, denied)
}

// A plugin's VM traps while it serves. Under FAIL_OPEN one request a worker is
// lost, and then all pass; under FAIL_CLOSE all are refused until another version
// comes; under FAIL_RELOAD Envoy makes the VM anew, which status tells.
func TestContract_ServingFault(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	url := w.push("traps:v1", module.TrapRequest())
	lanes(t, w, node{name: "a"}, map[string][]string{
		"FAIL_OPEN":   {"503 []", asBefore, inForce},
		"FAIL_CLOSE":  {"503 []", inForce},
		"FAIL_RELOAD": {"503 []", inForce},
	}, func(l lane, seen []string) {
		strategy := "failStrategy: " + l.title
		l.apply(l.plugin(url, strategy))
		s := watchPort(l.port)
		eventually(l.t, healed, "the fault shows", func() (bool, string) { return s.last() == seen[len(seen)-2], s.last() })
		if l.title == "FAIL_RELOAD" {
			l.tells("VMTrap")
		}
		l.submit(l.plugin(l.push(l.name+":v2", build(l.port)), tag("p"), strategy))
		l.healsIn("p")
		s.wantSeen(l.t, seen...)
	})
}

// A file of the proxy's machine that is not there: told, stood in for by the
// failStrategy at the deadline, and in force when it is there at the next look, which
// an edit makes one.
func TestContract_FileOfTheMachine(t *testing.T) {
	t.Parallel()
	w, _, n := contractWorld(t, deadline)
	lanes(t, w, n, map[string][]string{
		"FAIL_OPEN":  {asBefore},
		"FAIL_CLOSE": {asBefore, denied},
	}, func(l lane, seen []string) {
		file := l.t.TempDir() + "/plugin.wasm"
		s := watchPort(l.port)
		s.sees(l.t, asBefore)
		l.submit(l.plugin("file://"+file, tag("p"), "failStrategy: "+l.title))
		l.tells("FileMissing", "Programmed    False")
		eventually(l.t, healed, "requests see the failStrategy", func() (bool, string) { return s.last() == seen[len(seen)-1], s.last() })
		if err := os.WriteFile(file, build(l.port), 0o600); err != nil {
			l.t.Fatal(err)
		}
		l.submit(l.plugin("file://"+file, tag("p"), "failStrategy: "+l.title, "priority: 1"))
		l.healsIn("p")
		s.wantSeen(l.t, append(seen, inForce)...)
	})
}
