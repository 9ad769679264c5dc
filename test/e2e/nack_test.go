package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/executable"
	"chandler.dev/chandler/internal/testenv/module"
)

// choosy makes a module refuse configurations of more than 64 bytes, saying why.
func choosy(m *module.Module) {
	onConfigure(m, "too long a tag", func(c *module.Code, refuse func()) {
		const unsignedGreater = 0x4b
		c.Param(1) // the configuration's size
		c.Const(64)
		c.Op(unsignedGreater)
		c.If(refuse)
	})
}

// moody makes a module refuse every configuration when it has an environment.
func moody(m *module.Module) {
	m.Imports = append(m.Imports, module.Import{
		Module: "wasi_snapshot_preview1", Name: "environ_sizes_get", Params: []byte{module.I32, module.I32}, Results: []byte{module.I32},
	})
	onConfigure(m, "the moon is wrong", func(c *module.Code, refuse func()) {
		const count, size, drop = 0, 4, 0x1a
		c.Const(count, size)
		c.Call("environ_sizes_get")
		c.Op(drop)
		c.Load(count)
		c.If(refuse)
	})
}

// onConfigure puts a check before what a module does with its configuration.
func onConfigure(m *module.Module, why string, check func(c *module.Code, refuse func())) {
	const at, levelError, drop = 256, 4, 0x1a
	m.Strings = append(m.Strings, module.String{At: at, Text: why})
	for i := range m.Funcs {
		if m.Funcs[i].Name != "proxy_on_configure" {
			continue
		}
		configure := m.Funcs[i].Body
		m.Funcs[i].Body = func(c *module.Code) {
			check(c, func() {
				c.Const(levelError, at, int64(len(why)))
				c.Call("proxy_log")
				c.Op(drop)
				c.Return(0)
			})
			configure(c)
		}
	}
}

// tooLong is a tag that a choosy module refuses.
var tooLong = strings.Repeat("long", 20)

// script is a Lua plugin in the namespace "edge".
func script(name, code string, more ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: extensions.istio.io/v1alpha1\nkind: TrafficExtension\nmetadata: {name: %s, namespace: edge}\nspec:\n", name)
	for _, line := range more {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	fmt.Fprintf(&b, "  lua:\n    inlineCode: |\n      %s\n", strings.ReplaceAll(code, "\n", "\n      "))
	return b.String()
}

// luaTag is a script that adds a tag as the appending module does.
func luaTag(tag string) string {
	return fmt.Sprintf("function envoy_on_request(handle)\n  handle:headers():add(\"x-plugins\", '{\"tag\":%q}')\nend", tag)
}

// five are the manifests of five plugins of one slot, p0 to p4, with those tags.
func five(url string, tags ...string) []string {
	var all []string
	for i, s := range tags {
		all = append(all, plugin(fmt.Sprintf("p%d", i), url, tag(s), fmt.Sprintf("priority: %d", 10-i)))
	}
	return all
}

func join(manifests ...string) string { return strings.Join(manifests, "---\n") }

// metric gives the sum of a metric's series that hold all of these texts.
func metric(t *testing.T, addr, name string, labels ...string) (sum float64) {
	t.Helper()
	for line := range strings.Lines(fetchText(t, "http://"+addr+"/metrics")) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if series != name && !strings.HasPrefix(series, name+"{") ||
			slices.ContainsFunc(labels, func(s string) bool { return !strings.Contains(series, s) }) {
			continue
		}
		var n float64
		if _, err := fmt.Sscan(value, &n); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		sum += n
	}
	return sum
}

// nacks is how often the agent's Envoy refused a composition.
func (p *proxy) nacks(t *testing.T) float64 {
	t.Helper()
	return metric(t, p.admin, "chandler_agent_nack_total")
}

// check ends a load of which no answer may be wrong.
func (l *load) check(t *testing.T) {
	t.Helper()
	l.end()
	if len(l.wrong) > 0 || l.closed.Load() > 0 {
		t.Errorf("of %d requests some went wrong: %s; %d kept connections were ended",
			l.answers.Load(), strings.Join(l.wrong, "; "), l.closed.Load())
	}
	if l.answers.Load() == 0 {
		t.Error("there was no request")
	}
}

// matching judges answers by their tags, joined by a space.
func matching(pattern string) func(answer) error {
	re := regexp.MustCompile("^(" + pattern + ")$")
	return func(a answer) error {
		if tags := strings.Join(appended(a), " "); a.code != http.StatusOK || !re.MatchString(tags) {
			return fmt.Errorf("status %d, tags %q", a.code, tags)
		}
		return nil
	}
}

// One of five plugins of a slot is updated to what Envoy refuses, and two of its
// neighbours change at the same time: they are in force, it stays as it was, and
// Envoy's reason is told.
func TestNack_UpdateOfOneAmongFive(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("append:v1", module.Append(choosy))
	w.apply(join(five(url, "p0", "p1-0", "p2", "p3-0", "p4")...))
	has(t, port, "p0", "p1-0", "p2", "p3-0", "p4")
	l := startLoad(port, 2, 1, matching(`p0 p1-\d p2 p3-\d p4`))
	for i, c := range []struct{ name, url, tag, reason string }{
		{"its configuration is refused", url, tooLong, "too long a tag"},
		{"its module refuses", w.push("bad:refuses", module.RefuseConfigure("no thanks")), "x", "no thanks"},
		{"its module traps", w.push("bad:traps", module.TrapStart()), "x", "unreachable"},
	} {
		before := p.nacks(t)
		one, three := fmt.Sprintf("p1-%d", i+1), fmt.Sprintf("p3-%d", i+1)
		all := five(url, "p0", one, "p2", three, "p4")
		all[2] = plugin("p2", c.url, tag(c.tag), "priority: 8")
		w.submit(join(all...))
		heals(t, port, "p0", one, "p2", three, "p4")
		w.tells("p2", "Rejected", c.reason, "stays in force")
		w.programmed("p0", "p1", "p3", "p4")
		if n := p.nacks(t) - before; n != 1 {
			t.Errorf("%s: Envoy refused %v compositions; it names the plugin, so one is enough", c.name, n)
		}
		has(t, port, "p0", one, "p2", three, "p4")
	}
	l.check(t)
	w.apply(join(five(url, "p0", "p1-9", "p2-9", "p3-9", "p4")...))
	has(t, port, "p0", "p1-9", "p2-9", "p3-9", "p4")
}

// A plugin that Envoy refuses joins four: under FAIL_OPEN it is left out, else
// requests are denied; the four are in force either way, their changes too.
func TestNack_FirstAttachAmongFive(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("append:v1", module.Append(choosy))
	w.apply(join(slices.Delete(five(url, "p0-0", "p1", "p2", "p3", "p4"), 2, 3)...))
	for i, strategy := range []string{"FAIL_OPEN", "FAIL_CLOSE", "FAIL_RELOAD"} {
		zero := fmt.Sprintf("p0-%d", i+1)
		all := five(url, zero, "p1", tooLong, "p3", "p4")
		all[2] += "  failStrategy: " + strategy + "\n"
		w.submit(join(all...))
		w.tells("p2", "Rejected", "too long a tag")
		w.programmed("p0", "p1", "p3", "p4")
		if a := get(t, port, "/"); strategy != "FAIL_OPEN" && a.code != http.StatusForbidden {
			t.Errorf("%s: status %d, tags %v", strategy, a.code, appended(a))
		}
		if strategy == "FAIL_OPEN" {
			has(t, port, zero, "p1", "p3", "p4")
		}
		if out, ok := w.cli("", "delete", "wasmplugin", "p2", "-n", "edge"); !ok {
			t.Fatal(out)
		}
		heals(t, port, zero, "p1", "p3", "p4")
	}
}

// Of a Lua script that does not compile Envoy does not say whose it is. It is
// found among four others that change at the same time, by one change after the
// other; the others are in force.
func TestNack_LuaNamesNobody(t *testing.T) {
	t.Parallel()
	const broken = "function envoy_on_request(handle)\n  this is no lua\nend"
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("append:v1", module.Append())
	with := func(n int, lua string) string {
		all := five(url, fmt.Sprintf("p0-%d", n), fmt.Sprintf("p1-%d", n), "", fmt.Sprintf("p3-%d", n), fmt.Sprintf("p4-%d", n))
		all[2] = script("script", lua, "priority: 8")
		return join(all...)
	}
	w.apply(with(0, luaTag("lua")))
	has(t, port, "p0-0", "p1-0", "lua", "p3-0", "p4-0")

	// All changes come at once, as the agent stands still meanwhile.
	l := startLoad(port, 2, 1, matching(`p0-\d p1-\d lua p3-\d p4-\d`))
	p.kill(t)
	w.submit(with(1, broken))
	for _, name := range []string{"p0", "p1", "p3", "p4"} {
		w.tells(name, "ResolvedRefs  True")
	}
	p.restart()
	p.awaitReady()
	heals(t, port, "p0-1", "p1-1", "lua", "p3-1", "p4-1")
	w.describes("trafficextension", "script", "Rejected", "script load error", "stays in force")
	l.check(t)
	if n := p.nacks(t); n < 1 || n > 2 {
		t.Errorf("Envoy refused %v compositions; one with all, one with the script alone", n)
	}

	// As a newcomer it has nothing to go back to. Its failStrategy is the default.
	if out, ok := w.cli("", "delete", "trafficextension", "script", "-n", "edge"); !ok {
		t.Fatal(out)
	}
	heals(t, port, "p0-1", "p1-1", "p3-1", "p4-1")
	w.submit(with(2, broken))
	w.describes("trafficextension", "script", "Rejected", "script load error")
	w.programmed("p0", "p1", "p3", "p4")
	if a := get(t, port, "/"); a.code != http.StatusForbidden {
		t.Errorf("a script that does not compile, first attached: status %d", a.code)
	}
	w.apply(with(3, luaTag("mended")))
	has(t, port, "p0-3", "p1-3", "mended", "p3-3", "p4-3")
}

// Rule 1: Envoy refuses one of the last good compositions while it starts, which
// ends the waiting of every listener. None answers without its slots.
func TestNack_WhileEnvoyStarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one, two := freePort(t), freePort(t)
	// An agent whose environment changes between its starts.
	full := filepath.Join(w.dir, "full-moon")
	agent := filepath.Join(w.dir, "agent.sh")
	text := fmt.Sprintf("#!/bin/sh\n[ -e %q ] && export MOON=full\nexec %q \"$@\"\n", full, filepath.Join(built, "chandler-agent"))
	executable.Write(t, agent, text)
	p := w.agent(node{name: "a", binary: agent}, w.gateway(listener{port: one, name: "one"}, listener{port: two, name: "two"}))
	url := w.push("append:v1", module.Append())
	changes := w.push("moody:v1", module.Append(moody))
	const env = "vmConfig: {env: [{name: MOON, valueFrom: HOST}]}"
	w.apply(join(
		plugin("open", changes, tag("open"), on(one), env, "priority: 1", "phase: AUTHN", "failStrategy: FAIL_OPEN"),
		plugin("beside", url, tag("beside"), on(one), "phase: AUTHN"),
		plugin("after", url, tag("after"), on(one)),
		plugin("close", changes, tag("close"), on(two), env, "phase: STATS"),
		plugin("before", url, tag("before"), on(two), "phase: AUTHN")))
	has(t, one, "open", "beside", "after")
	has(t, two, "before", "close")

	p.killAll(t)
	if err := os.WriteFile(full, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s1, s2 := watchPort(one), watchPort(two)
	p.restart()
	w.tells("open", "Rejected", "the moon is wrong")
	w.tells("close", "Rejected", "the moon is wrong")
	w.programmed("beside", "after", "before")
	has(t, one, "beside", "after")
	if a := get(t, two, "/"); a.code != http.StatusForbidden {
		t.Errorf("status %d while a FAIL_CLOSE plugin is refused", a.code)
	}
	seen1, seen2 := s1.end(), s2.end()
	t.Logf("seen: %v, %v", seen1, seen2)
	for _, got := range seen1 {
		if got != "200 [beside after]" && got != "403 []" {
			t.Errorf("port one answered %s", got)
		}
	}
	for _, got := range seen2 {
		if got != "403 []" {
			t.Errorf("port two answered %s", got)
		}
	}
}

// Rule 2: what Envoy refused is refused again when it is applied again, however
// that comes about, and never counts as in force.
func TestNack_TheSameTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("append:v1", module.Append(choosy))
	good, bad := plugin("p", url, tag("good")), plugin("p", url, tag(tooLong))
	w.apply(good + "---\n" + plugin("q", url, tag("q0")))
	l := startLoad(port, 1, 1, matching(`good q\d`))
	apply := func(reason string) {
		t.Helper()
		out, ok := w.cli(bad, "apply", "-f", "-", "--wait", "--timeout", "60s")
		if ok || !strings.Contains(out, "Rejected") || !strings.Contains(out, reason) {
			t.Errorf("what was refused is applied: %s", out)
		}
	}
	apply("too long a tag")
	// Unchanged; changed and changed back; beside a neighbour's change.
	apply("too long a tag")
	if n := p.nacks(t); n != 1 {
		t.Errorf("Envoy refused %v times what was sent once", n)
	}
	w.apply(good)
	apply("too long a tag")
	if n := p.nacks(t); n != 2 {
		t.Errorf("Envoy refused %v times; it was asked twice", n)
	}
	w.apply(plugin("q", url, tag("q1")))
	has(t, port, "good", "q1")
	w.tells("p", "Rejected", "stays in force")
	// The next agent does not know that it was refused, and Envoy told why but once.
	p.kill(t)
	p.restart()
	p.awaitReady()
	eventually(t, 20*time.Second, "Envoy refuses it again", func() (bool, string) {
		n := p.nacks(t)
		return n == 1, fmt.Sprint(n)
	})
	w.tells("p", "Rejected", "Unable to create Wasm plugin", "stays in force")
	apply("Unable to create Wasm plugin")
	has(t, port, "good", "q1")
	l.check(t)
	if out, ok := w.cli("", "status", "p", "-n", "edge"); ok {
		t.Errorf("status finds it well:\n%s", out)
	}
}

// Rule 3: plugins of all phases go at once and come back, and no request gets an
// answer from a slot that is not there.
func TestNack_RemovedUnderLoad(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a", workers: 2}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("append:v1", module.Append())
	var all []string
	names := []string{"n", "z", "s", "u"}
	for i, phase := range []string{"AUTHN", "AUTHZ", "STATS", "UNSPECIFIED_PHASE"} {
		all = append(all, plugin(names[i], url, tag(names[i]), "phase: "+phase))
	}
	l := startLoad(port, 3, 1, matching(`(n ?)?(z ?)?(s ?)?u?`))
	for range 4 {
		w.edit("all", join(all...))
		heals(t, port, names...)
		if err := os.Remove(filepath.Join(w.plugins, "all.yaml")); err != nil {
			t.Fatal(err)
		}
		heals(t, port)
	}
	l.check(t)
}

// Rule 4: the file of a module is gone behind the agent's back, which shows when a
// neighbour changes, or the plugin itself; and Envoy names the path only. The plugin
// is found by it, what runs goes on, and the file is fetched again.
func TestNack_MissingFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("append:v1", module.Append())
	w.apply(join(five(url, "p0", "p1", "p2", "p3", "p4")...))
	kept := wholeModules(t, p.modules())
	all := five(url, "p0", "p1", "p2", "p3", "p4")
	url2 := w.push("append:v2", build(2))
	all[2] = plugin("p2", url2, tag("p2"), "priority: 8")
	w.apply(join(all...))
	remove := func() {
		t.Helper()
		for _, file := range wholeModules(t, p.modules()) {
			if slices.Contains(kept, file) {
				continue
			}
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove()
	l := startLoad(port, 2, 1, matching(`p0 p1(-1)? p2(-1)? p3 p4`))
	w.apply(plugin("p1", url, tag("p1-1"), "priority: 9"))
	heals(t, port, "p0", "p1-1", "p2", "p3", "p4")
	w.programmed("p2")
	remove()
	all[2] = plugin("p2", url2, tag("p2-1"), "priority: 8")
	w.apply(all[2])
	has(t, port, "p0", "p1-1", "p2-1", "p3", "p4")
	l.check(t)
	if got := wholeModules(t, p.modules()); len(got) != 2 {
		t.Errorf("stored: %v", got)
	}
}
