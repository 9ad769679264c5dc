package relay

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// For every interleaving of what the upstream, Envoy and the owner of the transforms do,
// and of their messages, Envoy has in the end what the upstream has, with transforms.
func TestEnvoyHasWhatTheUpstreamHas(t *testing.T) {
	t.Parallel()
	for _, delta := range []bool{false, true} {
		t.Run(fmt.Sprintf("delta=%v", delta), func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(t *rapid.T) { interleave(t, delta) })
		})
	}
}

func interleave(t *rapid.T, delta bool) {
	w := newWorld(fatal{t: t}, delta)
	w.up.storms = rapid.Bool().Draw(t, "storms")
	types := []string{clusterType, listenerType, routeType, extensionType}
	name := rapid.SampledFrom([]string{"a", "b", "c"})
	some := rapid.SliceOfNDistinct(name, 1, 3, rapid.ID[string])
	own := rapid.SampledFrom([]string{localPrefix + "a", localPrefix + "b"})
	owns := rapid.SliceOfNDistinct(own, 0, 2, rapid.ID[string])
	count, blamed := 0, false
	content := func(kind string) string {
		count++
		return fmt.Sprint(kind, count)
	}
	w.envoy.want(clusterType)
	w.envoy.want(listenerType)
	if rapid.Bool().Draw(t, "slots") {
		w.own.gives[localPrefix+"a"], w.own.gives[localPrefix+"b"] = "good", "good"
		w.envoy.want(extensionType, localPrefix+"a", localPrefix+"b")
		w.settle()
	}
	t.Repeat(map[string]func(*rapid.T){
		"set": func(t *rapid.T) {
			w.up.set(rapid.SampledFrom(types).Draw(t, "type"), name.Draw(t, "name"), content("good"))
		},
		"set bad": func(t *rapid.T) {
			typeURL := rapid.SampledFrom(types).Draw(t, "type")
			blamed = blamed || typeURL == listenerType
			w.up.set(typeURL, name.Draw(t, "name"), content("bad"))
		},
		"remove": func(t *rapid.T) {
			w.up.remove(rapid.SampledFrom(types).Draw(t, "type"), name.Draw(t, "name"))
		},
		"subscribe": func(t *rapid.T) {
			typeURL, names := rapid.SampledFrom(types[2:]).Draw(t, "type"), some.Draw(t, "names")
			if typeURL == extensionType {
				names = append(names, owns.Draw(t, "own names")...)
				names = names[rapid.IntRange(0, len(names)-1).Draw(t, "of them"):]
			}
			w.envoy.want(typeURL, names...)
		},
		"the owner says something": func(t *rapid.T) {
			n := own.Draw(t, "name")
			if w.own.set(n, rapid.SampledFrom([]string{"good", "good too", "bad", "bad too"}).Draw(t, "content")) {
				w.relay.Changed(extensionType, n)
			}
		},
		"the owner says one after the other": func(t *rapid.T) {
			n := own.Draw(t, "name")
			for _, content := range rapid.SliceOfN(rapid.SampledFrom([]string{"good", "good too", "bad", "bad too"}), 2, 4).Draw(t, "contents") {
				if w.own.set(n, content) {
					w.relay.Changed(extensionType, n)
				}
				w.envoyHears()
				w.envoyHears()
				if rapid.Bool().Draw(t, "answered") {
					w.envoySpeaks()
				}
			}
		},
		"the owner says all again": func(*rapid.T) { w.relay.Changed(extensionType) },
		"connect":                  func(*rapid.T) { w.connect() },
		"disconnect":               func(*rapid.T) { w.disconnect() },
		"Envoy's stream ends":      func(*rapid.T) { w.reopen(false) },
		"Envoy restarts":           func(*rapid.T) { w.reopen(true) },
		"the agent restarts": func(t *rapid.T) {
			w.restart()
			w.reopen(rapid.Bool().Draw(t, "Envoy too"))
		},
		"slots change": func(t *rapid.T) {
			w.slots = rapid.SampledFrom([]string{"", "+one", "+two", "+bad"}).Draw(t, "slots")
			w.relay.Changed(listenerType)
		},
		"a module goes":  func(t *rapid.T) { w.held[name.Draw(t, "name")] = true },
		"a module comes": func(t *rapid.T) { n := name.Draw(t, "name"); delete(w.held, n); w.relay.Changed(extensionType, n) },
		"time": func(t *rapid.T) {
			w.now = w.now.Add(time.Duration(rapid.IntRange(1, 100_000).Draw(t, "ms")) * time.Millisecond)
			w.relay.Trim(w.now)
		},
		"messages move": func(t *rapid.T) {
			for _, move := range rapid.SliceOfN(rapid.IntRange(0, 3), 1, 16).Draw(t, "moves") {
				[]func(){w.envoySpeaks, w.envoyHears, w.upstreamHears, w.upstreamSpeaks}[move]()
			}
		},
		"a listener is held, or no more": func(t *rapid.T) {
			n := name.Draw(t, "name")
			w.shut[n] = !w.shut[n]
			w.relay.Changed(listenerType, n)
		},
		"all settles": func(*rapid.T) {
			if w.settle() {
				w.checkListeners()
			}
		},
		"": func(t *rapid.T) {
			if no := w.up.noes[listenerType]; no != "" && !blamed {
				t.Fatalf("the upstream is told %q of listeners that are good", no)
			}
		},
	})
	// What is the owner's comes without an upstream.
	w.disconnect()
	w.finish(t)
	w.checkLocal()
	// Everything comes, also to the upstream what is bad, and that harms nothing else.
	if w.slots == "+bad" {
		w.slots = "+three"
	}
	clear(w.held)
	clear(w.shut)
	w.relay.Changed(listenerType)
	w.relay.Changed(extensionType)
	w.connect()
	w.finish(t)
	w.check(false)
	w.checkTold(t)
	// In the end all is good.
	for _, typeURL := range types {
		for n, c := range w.up.resources[typeURL] {
			if c[0] == 'b' {
				w.up.set(typeURL, n, content("good"))
			}
		}
	}
	w.finish(t)
	w.check(true)
	w.checkLocal()
	w.checkMemory(t)
}

// finish lets time pass until nothing is to be expected any more.
func (w *world) finish(t *rapid.T) {
	for range 4 {
		if !w.settle() {
			t.Fatal("it never settles")
		}
		w.now = w.now.Add(maxPause)
	}
}

// checkTold: the upstream knows on its present stream of what is bad.
func (w *world) checkTold(t *rapid.T) {
	for typeURL, e := range w.envoy.types {
		for n, c := range w.up.resources[typeURL] {
			if c[0] == 'b' && (e.all || slices.Contains(e.names, n)) && w.up.stream.types[typeURL].noes == 0 {
				t.Fatalf("the upstream was not told that %s of %s is bad", n, typeURL)
			}
		}
	}
}

// checkMemory: what is remembered of listeners and clusters is what the upstream has.
func (w *world) checkMemory(t *rapid.T) {
	for _, typeURL := range []string{listenerType, clusterType} {
		items := w.relay.shelf(shelfKey{typeURL, w.delta}).items
		for n, c := range w.up.resources[typeURL] {
			if k := items[n]; k == nil || contentOf(k.item.body(w.delta)) != c {
				t.Fatalf("%s is not remembered as %q", n, c)
			}
		}
		if len(items) != len(w.up.resources[typeURL]) {
			t.Fatalf("%d are remembered of %d", len(items), len(w.up.resources[typeURL]))
		}
	}
	size := 0
	for _, f := range w.stream.feeds {
		for _, e := range f.entries {
			if e.up != nil {
				size += len(e.up.Raw)
			}
		}
	}
	if size != w.stream.size {
		t.Fatalf("%d bytes are counted as %d", size, w.stream.size)
	}
}

// fatal lets a model end a property's run.
type fatal struct {
	testing.TB
	t *rapid.T
}

func (f fatal) Helper()                      {}
func (f fatal) Fatal(args ...any)            { f.t.Fatal(args...) }
func (f fatal) Fatalf(form string, a ...any) { f.t.Fatalf(form, a...) }
