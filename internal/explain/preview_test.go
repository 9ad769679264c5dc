package explain_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/explain"
)

func everyone(chandler.Node) bool { return true }

// plugin is one of namespace edge that runs.
func plugin(name string, edit func(*chandler.Plugin)) *chandler.Plugin {
	p := &chandler.Plugin{
		Key: chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "edge", Name: name}, UID: "u-" + name, Generation: 1, Created: time.Unix(100, 0),
		Type: chandler.HTTP, Wasm: &chandler.Wasm{URL: "oci://r/" + name, FailStrategy: chandler.FailClose},
	}
	if edit != nil {
		edit(p)
	}
	return p
}

func running(p *chandler.Plugin) explain.Object {
	return explain.Object{Generation: p.Generation, Plugin: p, Release: &chandler.Release{
		ID: chandler.ReleaseID("r-" + p.Name), Key: p.Key, UID: p.UID, Generation: p.Generation,
		Behaviour: chandler.Behaviour{Type: p.Type, Phase: p.Phase, Priority: p.Priority, Match: p.Match, FailStrategy: p.Wasm.FailStrategy, Config: p.Wasm.Config},
	}}
}

func proxy(name string, ports ...uint32) explain.Proxy {
	p := explain.Proxy{Node: chandler.Node{Namespace: "edge", Name: name, Labels: map[string]string{"name": name}}, Connected: true, Facts: &chandler.Facts{Slots: true}}
	for _, port := range ports {
		p.Facts.Listeners = append(p.Facts.Listeners, chandler.Listener{Name: fmt.Sprint("l", port), Mode: chandler.ModeClient, Port: port, Slots: []chandler.Slot{{Type: chandler.HTTP}}})
	}
	return p
}

// told is an effect in a few words.
func told(e explain.Effect) string {
	var lines []string
	names := func(keys []chandler.Key) string {
		var all []string
		for _, k := range keys {
			all = append(all, k.Name)
		}
		return strings.Join(all, ",")
	}
	for _, p := range e.Proxies {
		line := p.Node + " " + string(p.Change)
		for _, s := range p.Slots {
			line += fmt.Sprintf(" [%s %s>%s]", s.Slot, names(s.Before), names(s.After))
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func TestApply(t *testing.T) {
	t.Parallel()
	seven := int32(7)
	authn := func(p *chandler.Plugin) { p.Phase = chandler.PhaseAuthn }
	for _, c := range []struct {
		name string
		p    *chandler.Plugin
		want string
	}{
		{"a new one stands behind those that are there", plugin("new", authn), "edge/n1 attach [chandler/authn/client/8080 a,b>a,b,new] [chandler/authn/client/9090 a,b>a,b,new]\nedge/n2 attach"},
		{"priority goes first", plugin("new", func(p *chandler.Plugin) { p.Phase, p.Priority = chandler.PhaseAuthn, &seven }), "edge/n1 attach [chandler/authn/client/8080 a,b>new,a,b] [chandler/authn/client/9090 a,b>new,a,b]\nedge/n2 attach"},
		{"only where it matches", plugin("new", func(p *chandler.Plugin) { p.Match = []chandler.Match{{Ports: []uint32{9090}}} }), "edge/n1 attach [chandler/unspecified/client/9090 >new]\nedge/n2 attach"},
		{"only whom it selects", plugin("new", func(p *chandler.Plugin) { p.Selector = map[string]string{"name": "n2"} }), "edge/n2 attach"},
		{"nothing new", plugin("a", authn), ""},
		{"another configuration", plugin("a", func(p *chandler.Plugin) { p.Phase, p.Wasm.Config = chandler.PhaseAuthn, []byte(`{"x":1}`) }), "edge/n1 update [chandler/authn/client/8080 a,b>a,b] [chandler/authn/client/9090 a,b>a,b]\nedge/n2 update"},
		{"another module", plugin("b", func(p *chandler.Plugin) { p.Phase, p.Wasm.URL = chandler.PhaseAuthn, "oci://r/c" }), "edge/n1 update [chandler/authn/client/8080 a,b>a,b] [chandler/authn/client/9090 a,b>a,b]\nedge/n2 update"},
		{"another phase", plugin("a", nil), "edge/n1 move [chandler/authn/client/8080 a,b>b] [chandler/unspecified/client/8080 >a] [chandler/authn/client/9090 a,b>b] [chandler/unspecified/client/9090 >a]\nedge/n2 move"},
		{"another place in the order", plugin("b", func(p *chandler.Plugin) { p.Phase, p.Priority = chandler.PhaseAuthn, &seven }), "edge/n1 move [chandler/authn/client/8080 a,b>b,a] [chandler/authn/client/9090 a,b>b,a]\nedge/n2 move"},
		{"fewer ports", plugin("a", func(p *chandler.Plugin) {
			p.Phase, p.Match = chandler.PhaseAuthn, []chandler.Match{{Ports: []uint32{9090}}}
		}), "edge/n1 move [chandler/authn/client/8080 a,b>b]\nedge/n2 move"},
		{"no port", plugin("a", func(p *chandler.Plugin) {
			p.Phase, p.Match = chandler.PhaseAuthn, []chandler.Match{{Ports: []uint32{1}}}
		}), "edge/n1 detach [chandler/authn/client/8080 a,b>b] [chandler/authn/client/9090 a,b>b]\nedge/n2 move"},
		{"fewer proxies", plugin("a", func(p *chandler.Plugin) { p.Phase, p.Selector = chandler.PhaseAuthn, map[string]string{"name": "n2"} }), "edge/n1 detach [chandler/authn/client/8080 a,b>b] [chandler/authn/client/9090 a,b>b]"},
	} {
		silent := proxy("n2") // its agent has not told of its listeners
		silent.Facts = nil
		f := explain.NewFleet("istio-system", []explain.Proxy{proxy("n1", 8080, 9090), silent, {Node: chandler.Node{Namespace: "shop", Name: "n3"}}},
			[]explain.Object{running(plugin("a", authn)), running(plugin("b", authn))})
		e := f.Apply(c.p, time.Unix(200, 0), everyone)
		if got := told(e); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.want)
		}
		if again := f.Apply(c.p, time.Unix(300, 0), everyone); len(again.Proxies) > 0 {
			t.Errorf("%s: applied once more it changes %s", c.name, told(again))
		}
	}
}

// A manifest's objects come on top of each other, what may not be seen is not told, and
// of many proxies some are.
func TestApplyMany(t *testing.T) {
	t.Parallel()
	var proxies []explain.Proxy
	for i := range explain.MaxProxies + 20 {
		proxies = append(proxies, proxy(fmt.Sprintf("n%03d", i), 8080))
	}
	f := explain.NewFleet("", proxies, nil)
	e := f.Apply(plugin("a", nil), time.Unix(1, 0), everyone)
	if len(e.Proxies) != explain.MaxProxies || !e.More {
		t.Errorf("%d proxies, more: %t", len(e.Proxies), e.More)
	}
	e = f.Apply(plugin("b", nil), time.Unix(2, 0), func(n chandler.Node) bool { return n.Name == "n001" })
	if told(e) != "edge/n001 attach [chandler/unspecified/client/8080 a>a,b]" || e.More {
		t.Error(told(e), e.More)
	}
}

// Whatever is applied, the plugins of a slot are those before with the one plugin put in,
// taken out or moved, and no other.
func TestApplyTouchesOne(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		make := func(name string) *chandler.Plugin {
			return plugin(name, func(p *chandler.Plugin) {
				p.Phase = rapid.SampledFrom(chandler.Phases()).Draw(t, "phase")
				p.Created = time.Unix(int64(rapid.IntRange(0, 3).Draw(t, "created")), 0)
				if rapid.Bool().Draw(t, "ranked") {
					n := int32(rapid.IntRange(0, 2).Draw(t, "priority"))
					p.Priority = &n
				}
				if rapid.Bool().Draw(t, "matched") {
					p.Match = []chandler.Match{{Ports: []uint32{uint32(rapid.IntRange(1, 3).Draw(t, "port"))}}}
				}
			})
		}
		var objects []explain.Object
		for i := range rapid.IntRange(0, 5).Draw(t, "plugins") {
			objects = append(objects, running(make(fmt.Sprint("p", i))))
		}
		f := explain.NewFleet("", []explain.Proxy{proxy("n1", 1, 2, 3)}, objects)
		p := make(rapid.SampledFrom([]string{"p0", "p1", "new"}).Draw(t, "name"))
		without := func(keys []chandler.Key) []chandler.Key {
			return slices.DeleteFunc(slices.Clone(keys), func(k chandler.Key) bool { return k == p.Key })
		}
		for _, one := range f.Apply(p, time.Unix(9, 0), everyone).Proxies {
			for _, s := range one.Slots {
				if !slices.Equal(without(s.Before), without(s.After)) {
					t.Fatalf("others change: %v > %v", s.Before, s.After)
				}
				if !slices.Contains(s.Before, p.Key) && !slices.Contains(s.After, p.Key) {
					t.Fatalf("a slot is told of in which it is not: %v", s)
				}
			}
		}
	})
}

func TestDiff(t *testing.T) {
	t.Parallel()
	live := []byte("# a comment\nkind: WasmPlugin\nmetadata:\n  name: p\n  namespace: edge\n  uid: x\n  annotations: {kubectl.kubernetes.io/last-applied-configuration: '{}'}\nspec: {url: a, phase: AUTHN}\nstatus: {x: y}\n")
	if d := explain.Diff("p", "edge", live, []byte("spec: {phase: AUTHN, url: a}\nkind: WasmPlugin\nmetadata: {name: p}\n")); d != "" {
		t.Errorf("the same differs: %s", d)
	}
	d := explain.Diff("p", "edge", live, []byte("kind: WasmPlugin\nmetadata: {name: p}\nspec: {url: b, phase: AUTHN}\n"))
	if !strings.Contains(d, "\n-    url: a\n+    url: b\n") || !strings.Contains(d, "--- live/p\n+++ merged/p\n") || strings.Contains(d, "uid") {
		t.Error(d)
	}
	if d := explain.Diff("p", "edge", nil, []byte("kind: WasmPlugin\n")); !strings.Contains(d, "+kind: WasmPlugin") {
		t.Error(d)
	}
}
