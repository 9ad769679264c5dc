package control

import (
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/resolve"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/wire"
)

// crowd is a control plane with plugins and with proxies that have them all in force.
// say has one of them say something of a plugin.
func crowd(t testing.TB, proxies, plugins int) (c *Control, reg *prometheus.Registry, say func(plugin int, state chandler.State)) {
	t.Helper()
	modules, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { modules.Close() })
	reg = prometheus.NewRegistry()
	c, err = New(Config{Store: modules, Registerer: reg, RootNamespace: "ns"})
	if err != nil {
		t.Fatal(err)
	}
	var entries []*entry
	states := map[chandler.Key]chandler.AttachmentState{}
	for i := range plugins {
		key := chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: fmt.Sprint("p", i)}
		uid := fmt.Sprint("u", i)
		r := chandler.Release{Key: key, UID: uid, Generation: 1}.WithID()
		p := &chandler.Plugin{Key: key, UID: uid, Generation: 1, Type: chandler.HTTP, Wasm: &chandler.Wasm{}}
		e, err := newEntry(source.Object{Key: key, UID: uid, Generation: 1, Plugin: p}, course{side: side{target: &r, sequence: 1}, rollout: &record.Rollout{}}, ruling{}, resolve.Attempts{}, time.Second, nil)
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
		states[key] = chandler.AttachmentState{Key: key, UID: uid, Release: r.ID, State: chandler.StateInForce, InForce: r.ID}
	}
	c.published.Store(newPublication(entries, nil))
	for i := range proxies {
		c.fleet.connected(node(i), true)
		c.fleet.members[node(i).ID()].states = states
	}
	str, err := c.fleet.begin(node(0), nil)
	if err != nil {
		t.Fatal(err)
	}
	sequence := uint64(0)
	say = func(plugin int, state chandler.State) {
		s := states[entries[plugin].object.Key]
		s.State = state
		sequence++
		if err := c.fleet.take(str, wire.Report{Sequence: sequence, Full: sequence == 1, States: []chandler.AttachmentState{s}}); err != nil {
			t.Fatal(err)
		}
	}
	c.fleet.touch()
	return c, reg, say
}

// value gives a series' value.
func value(t *testing.T, reg *prometheus.Registry, name string, labels ...string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			has := map[string]bool{}
			for _, l := range m.GetLabel() {
				has[l.GetName()+"="+l.GetValue()] = true
			}
			match := f.GetName() == name
			for _, l := range labels {
				match = match && has[l]
			}
			if match {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("no %s%v", name, labels)
	return 0
}

// What was said a moment ago is counted, and to be asked again costs no look at the
// proxies, however many there are.
func TestScrapeLooksWhereSomethingWasSaid(t *testing.T) {
	cost := func(proxies int) float64 {
		_, reg, say := crowd(t, proxies, 4)
		if got := value(t, reg, "chandler_plugin_proxies", "name=p1", "state=in_force"); got != float64(proxies) {
			t.Fatalf("%v in force of %d", got, proxies)
		}
		say(0, chandler.StateInForce) // it is full: the others are unsaid
		say(1, chandler.StateRejected)
		if got := value(t, reg, "chandler_plugin_proxies", "name=p1", "state=rejected"); got != 1 {
			t.Errorf("%v rejected", got)
		}
		if got := value(t, reg, "chandler_plugin_condition", "name=p1", "type=Programmed"); got != 0 {
			t.Errorf("it counts as programmed")
		}
		if got := value(t, reg, "chandler_plugin_condition", "name=p0", "type=Programmed"); got != 1 {
			t.Errorf("a neighbour does not count as programmed any more")
		}
		return testing.AllocsPerRun(20, func() { _, _ = reg.Gather() })
	}
	if few, many := cost(10), cost(2000); many > 1.2*few {
		t.Errorf("a scrape allocates %v times with 2,000 proxies and %v with 10", many, few)
	}
}

// Who asked for a status before something was said, and comes to its end after that was
// counted, does not take the count back.
func TestSlowLookCountsForNothing(t *testing.T) {
	t.Parallel()
	c, reg, say := crowd(t, 3, 1)
	before := c.fleet.list()
	say(0, chandler.StateRejected)
	rejected := func() float64 { return value(t, reg, "chandler_plugin_proxies", "name=p0", "state=rejected") }
	if got := rejected(); got != 1 {
		t.Fatalf("%v rejected", got)
	}
	c.join(c.published.Load().entries[0], before)
	if got := rejected(); got != 1 {
		t.Errorf("%v rejected, after somebody's look that began before", got)
	}
}

// Of two kinds with one name what is counted is the sum, and what is true is so of both.
func TestKindsOfOneName(t *testing.T) {
	t.Parallel()
	a := standingOf(&chandler.Status{Desired: 3, InForce: 3, Conditions: []chandler.Condition{{Type: chandler.ConditionReady, Status: chandler.True}}})
	b := standingOf(&chandler.Status{Desired: 2, InForce: 1, Conditions: []chandler.Condition{{Type: chandler.ConditionReady, Status: chandler.False}}})
	if got := a.add(b); got.proxies[0] != 5 || got.proxies[3] != 4 || got.conditions[chandler.ConditionReady] {
		t.Errorf("%+v", got)
	}
}

// Registries are named by whoever writes resources; their names do not grow without end.
func TestRegistriesAreBounded(t *testing.T) {
	t.Parallel()
	m := newMetrics(&Control{})
	for i := range 10 * maxRegistries {
		p := &chandler.Plugin{Wasm: &chandler.Wasm{Reference: chandler.Reference{Host: fmt.Sprint(i, ".example")}}}
		m.resolved(p, time.Second, nil)
	}
	ch := make(chan prometheus.Metric, 20*maxRegistries)
	m.resolves.Collect(ch)
	if n := len(ch); n != maxRegistries+1+2 { // other, and none
		t.Errorf("%d series of registries", n)
	}
}

// BenchmarkScrape has 10,000 proxies and 20 plugins: asked again, with one report in
// between.
func BenchmarkScrape(b *testing.B) {
	_, reg, say := crowd(b, 10_000, 20)
	say(0, chandler.StateInForce)
	for name, between := range map[string]func(){"unchanged": func() {}, "one report": func() { say(1, chandler.StateRejected) }} {
		b.Run(name, func(b *testing.B) {
			_, _ = reg.Gather()
			b.ReportAllocs()
			for b.Loop() {
				between()
				if _, err := reg.Gather(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
