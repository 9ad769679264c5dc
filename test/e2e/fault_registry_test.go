package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/module"
)

// The registry wants to be left alone for a while: it is, and then the plugin is
// in force without an edit.
func TestFault_F25_RetryAfter(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	g := w.gate()
	const hint = 2 * time.Second
	var mu sync.Mutex
	var times []time.Time
	g.rule.Store(&rule{all: true, answer: func(rw http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		times = append(times, time.Now())
		mu.Unlock()
		rw.Header().Set("Retry-After", "2")
		http.Error(rw, "{}", http.StatusTooManyRequests)
	}})
	w.submit(plugin("p", g.url(w, w.push("append:v1", module.Append())), tag("p")))
	w.tells("p", "429", "next in")
	has(t, port)
	g.awaitAsked(t, 1)
	mu.Lock()
	for i := range times[1:] {
		if gap := times[i+1].Sub(times[i]); gap < hint-100*time.Millisecond {
			t.Errorf("asked again after %s; the registry said %s", gap, hint)
		}
	}
	mu.Unlock()
	g.open()
	heals(t, port, "p")
}

// The registry fails in every way that may pass: what is in force stays, and
// the update follows when it is well again, without an edit.
func TestFault_F26_RegistryFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	var before []string
	for i, status := range []int{503, 500, 502, 0} {
		url := w.push(fmt.Sprintf("append:v%d", i), build(i))
		var asked atomic.Int64
		w.registry.Fail(func(*http.Request) (int, bool) { asked.Add(1); return status, true })
		now := fmt.Sprintf("n%d", i)
		w.submit(plugin("p", url, tag(now)))
		eventually(t, 20*time.Second, "it is tried again", func() (bool, string) {
			return asked.Load() >= 3, fmt.Sprintf("%d requests", asked.Load())
		})
		w.tells("p", "FetchFailed", "next in")
		has(t, port, before...)
		w.registry.Fail(nil)
		heals(t, port, now)
		before = []string{now}
	}
}

// Bodies that break off, with a reset or with too few bytes: nothing of them is
// kept, what is in force stays, and the update follows by itself.
func TestFault_F28_F29_BrokenBodies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	g := w.gate()
	w.apply(plugin("p", g.url(w, w.push("append:first", module.Append())), tag("first")))
	before := "first"
	for i, reset := range []bool{true, false} {
		mod := build(i)
		url := g.url(w, w.push(fmt.Sprintf("append:v%d", i), mod))
		g.rule.Store(&rule{answer: breakOff(mod, reset)})
		now := fmt.Sprintf("n%d", i)
		w.submit(plugin("p", url, tag(now)))
		g.awaitAsked(t, 3)
		w.tells("p", "next in")
		has(t, port, before)
		if got := wholeModules(t, filepath.Join(w.dir, "control", "modules")); len(got) != i+1 {
			t.Errorf("%d modules in the store after %d were whole: %v", len(got), i+1, got)
		}
		g.open()
		heals(t, port, now)
		before = now
	}
}

// The registry is away for good. Control plane and agents restart, an agent
// joins: all run what was resolved.
func TestFault_F38_RegistryAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one, two := freePort(t), freePort(t)
	a := w.agent(node{name: "a"}, w.gateway(listener{port: one, name: "in"}))
	url := w.push("append:v1", module.Append())
	w.apply(plugin("p", url, tag("one")))
	w.registry.Close()
	w.control.kill(t)
	w.startControl()
	w.agent(node{name: "b"}, w.gateway(listener{port: two, name: "in"}))
	has(t, two, "one")
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	a.restart()
	a.awaitReady()
	has(t, one, "one")
	w.inForce("a", "b") // it is ready before it is back
	w.apply(plugin("p", url, tag("two")))
	has(t, one, "two")
	has(t, two, "two")
}

// A tag moves: the fleet goes on with the one digest that was resolved, late
// agents and edits included, until the policy says to ask again.
func TestFault_F39_TagMoves(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one, two := freePort(t), freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: one, name: "in"}))
	url := w.push("append:v1", module.Append())
	w.apply(plugin("p", url, tag("one")))
	w.push("append:v1", module.Deny(http.StatusTeapot))
	w.agent(node{name: "b"}, w.gateway(listener{port: two, name: "in"}))
	has(t, one, "one")
	has(t, two, "one")
	w.apply(plugin("p", url, tag("two")))
	has(t, one, "two")
	has(t, two, "two")
	w.apply(plugin("p", url, tag("two"), "imagePullPolicy: Always"))
	for _, port := range []int{one, two} {
		if a := get(t, port, "/"); a.code != http.StatusTeapot {
			t.Errorf("asked anew, the module is another; status %d", a.code)
		}
	}
}

// The registry lost the module. It stays in force, also through a change of
// configuration and for an agent that joins; asking again fails, and is told.
func TestFault_F40_DeletedAtTheRegistry(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one, two := freePort(t), freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: one, name: "in"}))
	url, digest := w.pushDigest("append:v1", module.Append())
	w.apply(plugin("p", url, tag("one")))
	for _, id := range []string{"v1", string(digest)} {
		if err := w.registry.Delete("plugins/append", id); err != nil {
			t.Fatal(err)
		}
	}
	w.apply(plugin("p", url, tag("two")))
	has(t, one, "two")
	out, ok := w.cli(plugin("p", url, tag("three"), "imagePullPolicy: Always"), "apply", "-f", "-", "--wait", "--timeout", "60s")
	if ok || !strings.Contains(out, "NotFound") {
		t.Errorf("a module that is nowhere: %s", out)
	}
	has(t, one, "two")
	w.agent(node{name: "b"}, w.gateway(listener{port: two, name: "in"}))
	has(t, two, "two")
	w.apply(plugin("p", url, tag("four")))
	has(t, one, "four")
	has(t, two, "four")
}

// Asked to end while a module downloads, the control plane does; the next one
// fetches it, and nothing is left of the half that came.
func TestFault_F9_EndsDuringADownload(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	g := w.gate()
	var gone atomic.Int64
	g.rule.Store(&rule{answer: stall(&gone)})
	w.submit(plugin("p", g.url(w, w.push("append:v1", module.Append())), tag("p")))
	g.awaitAsked(t, 1)
	began := time.Now()
	if err := w.control.stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > patience(healed) {
		t.Errorf("it took %s to end", took)
	}
	if left := wholeModules(t, filepath.Join(w.dir, "control", "modules")); len(left) > 0 {
		t.Errorf("there are modules: %v", left)
	}
	g.open()
	w.startControl()
	heals(t, port, "p")
}

// A plugin is deleted while its module downloads: the download ends, and nothing
// comes into force.
func TestFault_F57_DeletedWhileDownloading(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	g := w.gate()
	var gone atomic.Int64
	g.rule.Store(&rule{answer: stall(&gone)})
	w.submit(plugin("p", g.url(w, w.push("append:v1", module.Append())), tag("p")))
	g.awaitAsked(t, 1)
	if out, ok := w.cli("", "delete", "wasmplugin", "p", "-n", "edge"); !ok {
		t.Fatal(out)
	}
	eventually(t, healed, "the download is cancelled", func() (bool, string) {
		return gone.Load() == g.asked.Load(), fmt.Sprintf("%d of %d", gone.Load(), g.asked.Load())
	})
	g.open()
	w.apply(plugin("other", w.push("other:v1", build(2)), tag("other")))
	has(t, port, "other")
}

// Updated again and again while its module downloads: there is one download, and
// the last one wins.
func TestFault_F58_UpdatesDuringADownload(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	w.edit("p", plugin("p", w.push("append:v1", module.Append()), tag("n0")))
	sees(t, port, "n0")
	g := w.gate()
	release := make(chan struct{})
	mod := bulky(2, 2<<20) // four minutes of it
	g.rule.Store(&rule{blob: string(chandler.Digest[chandler.BlobDigest](mod)), answer: func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Length", fmt.Sprint(len(mod)))
		tick := time.NewTicker(250 * time.Millisecond) // it goes on: one that is too slow is given up
		defer tick.Stop()
		for rest := mod; ; {
			_, _ = rw.Write(rest[:2<<10])
			rest = rest[2<<10:]
			rw.(http.Flusher).Flush()
			select {
			case <-release:
				_, _ = rw.Write(rest)
				return
			case <-r.Context().Done():
				return
			case <-tick.C:
			}
		}
	}})
	o := watchOrder(port)
	url := g.url(w, w.push("append:v2", mod))
	w.edit("p", plugin("p", url, tag("n1")))
	g.awaitAsked(t, 1)
	for i := range 5 {
		now := fmt.Sprintf("n%d", i+2)
		w.edit("p", plugin("p", url, tag(now)))
		eventually(t, healed, "the edit is seen", func() (bool, string) {
			out, _ := w.cli("", "get", "wasmplugin", "p", "-n", "edge", "-o", "yaml")
			return strings.Contains(out, now), out
		})
	}
	has(t, port, "n0")
	close(release)
	heals(t, port, "n6")
	o.check(t)
	if n := g.asked.Load(); n != 1 {
		t.Errorf("%d downloads", n)
	}
}
