package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/testenv/module"
)

// remedy takes the cause of a fault away.
type remedy func()

// Whatever keeps the control plane from a module: traffic goes on as before the
// first attach, the error, the attempt and the next try are told, and when the
// cause has gone the plugin is in force without a hand.
func TestHeal_FirstAttach(t *testing.T) {
	t.Parallel()
	gated := func(all bool, answer func(mod []byte) http.HandlerFunc) func(lane, []byte, string) (string, remedy) {
		return func(l lane, mod []byte, url string) (string, remedy) {
			g := l.gate()
			g.rule.Store(&rule{all: all, answer: answer(mod)})
			return g.url(l.world, url), g.open
		}
	}
	status := func(code int, header ...string) func([]byte) http.HandlerFunc {
		return func([]byte) http.HandlerFunc {
			return func(rw http.ResponseWriter, _ *http.Request) {
				if len(header) > 0 {
					rw.Header().Set(header[0], header[1])
				}
				http.Error(rw, "{}", code)
			}
		}
	}
	broken := func(reset bool) func([]byte) http.HandlerFunc {
		return func(mod []byte) http.HandlerFunc { return breakOff(mod, reset) }
	}
	type fault struct {
		put  func(l lane, mod []byte, url string) (string, remedy)
		told string
		// tries is how often it fails, so that the interval between tries has grown.
		tries int
	}
	lanes(t, newWorld(t), node{name: "a"}, map[string]fault{
		"registry stopped": {func(l lane, _ []byte, url string) (string, remedy) {
			f := l.front()
			f.down()
			return f.url(l.world, url), func() { f.up(l.t) }
		}, "connection is refused", 6},
		"429":       {gated(true, status(http.StatusTooManyRequests, "Retry-After", "1")), "429", 2},
		"503":       {gated(true, status(http.StatusServiceUnavailable)), "503", 2},
		"reset":     {gated(false, broken(true)), "broke off", 2},
		"truncated": {gated(false, broken(false)), "sent 332", 2},
		// Such names are never asked for on the network.
		"name does not resolve": {func(l lane, _ []byte, url string) (string, remedy) {
			return strings.Replace(url, l.registry.Addr, "registry.onion", 1), func() {
				l.submit(l.plugin(url, tag("p")))
			}
		}, "has no address", 2},
	}, func(l lane, f fault) {
		mod := build(l.port)
		url, remedy := f.put(l, mod, l.push(fmt.Sprintf("%s:v1", l.name), mod))
		load := startLoad(l.port, 1, 1, matching("p?"))
		l.submit(l.plugin(url, tag("p")))
		l.tried(f.tries)
		l.tells(f.told, "Attempt:", "next in", "proxies are as they were")
		if out, _ := l.cli("", l.statusCommand()...); !strings.Contains(out, "control plane") || !strings.Contains(out, f.told) {
			l.t.Errorf("status does not tell:\n%s", out)
		}
		has(l.t, l.port)
		remedy()
		l.healsIn("p")
		load.check(l.t)
		l.programmed(l.name)
	})
}

// The control plane goes while an agent fetches from it, and comes back.
func TestHeal_ControlPlaneGoneWhileFetching(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "--fetch-deadline", "10m") // the plugin that is fetched refuses requests after it
	port := freePort(t)
	g := w.controlGate()
	p := w.agent(node{name: "a", flags: g.flags()}, w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("first", w.push("append:v0", build(0)), tag("first")))
	mod := build(1)
	gone := make(chan struct{})
	open := g.shut(mod, func(_ http.ResponseWriter, _ *http.Request) {
		<-gone
		panic(http.ErrAbortHandler)
	})
	w.submit(plugin("second", w.push("append:v1", mod), tag("second")))
	eventually(t, healed, "the agent fetches", func() (bool, string) { return g.asked.Load() > 0, "it does not" })
	l := startLoad(port, 2, 1, matching("first( second)?"))
	w.control.kill(t)
	open()
	close(gone)
	eventually(t, healed, "the agent tells that nobody is there", func() (bool, string) {
		report := fetchText(t, "http://"+p.admin+"/report")
		return strings.Contains(report, "ControlUnreachable") && strings.Contains(report, "first"), report
	})
	has(t, port, "first")
	w.startControl()
	lane{world: w, t: t, port: port}.healsIn("first", "second")
	l.check(t)
}

// Updates that cannot come into force, at whatever stage: the old version answers
// every request, and status says that it does and why the new one does not.
func TestHeal_UpdatesThatFailChangeNothing(t *testing.T) {
	t.Parallel()
	module1 := func(mod []byte) func(l lane, old string) string {
		return func(l lane, _ string) string { return l.plugin(l.push(l.name+":bad", mod), tag("new")) }
	}
	type update struct {
		make  func(l lane, old string) string
		told  string
		stays string
	}
	const assigned, running = "stays assigned, in force on 1 of 1 proxy", "stays in force there"
	lanes(t, newWorld(t), node{name: "a"}, map[string]update{
		"truncated":         {module1(module.Truncate(build(1))), "Wasm", assigned},
		"of another ABI":    {module1(module.BadABI()), "WasmABI", assigned},
		"refused by itself": {module1(module.RefuseConfigure("not today")), "not today", running},
		"trapping":          {module1(module.TrapStart()), "Rejected", running},
		"of no tag": {func(l lane, old string) string {
			return l.plugin(strings.Replace(old, ":v1", ":none", 1), tag("new"))
		}, "NotFound", assigned},
		"deleted from the registry": {func(l lane, old string) string {
			mod := build(l.port)
			_, digest := l.pushDigest(l.name+":v1", mod)
			for _, id := range []string{"v1", string(digest)} {
				if err := l.registry.Delete("plugins/"+l.name, id); err != nil {
					l.t.Fatal(err)
				}
			}
			return l.plugin(old, tag("new"), "imagePullPolicy: Always")
		}, "NotFound", assigned},
		"unreachable": {func(l lane, old string) string {
			f := l.front()
			f.down()
			return l.plugin(f.url(l.world, old), tag("new"))
		}, "connection is refused", assigned},
		"of no host": {func(l lane, old string) string {
			return l.plugin(strings.Replace(old, l.registry.Addr, "registry.onion", 1), tag("new"))
		}, "has no address", assigned},
	}, func(l lane, u update) {
		old := l.push(l.name+":v1", build(l.port))
		l.apply(l.plugin(old, tag("old")))
		load := startLoad(l.port, 1, 1, matching("old"))
		next := u.make(l, old)
		l.submit(next)
		l.tells(u.told, u.stays)
		seen := load.answers.Load()
		eventually(l.t, healed, "more requests", func() (bool, string) { return load.answers.Load() > seen+20, "" })
		load.check(l.t)
		l.apply(l.plugin(l.push(l.name+":v2", build(l.port+100_000)), tag("mended")))
		has(l.t, l.port, "mended")
	})
}
