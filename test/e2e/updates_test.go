package e2e

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/api/chandler/v1/chandlerv1connect"
	"chandler.dev/chandler/internal/testenv/module"
)

var updateCount = flag.Int("updates", 60, "how many updates TestUpdates makes under load")

// Updates of every kind, one after the other under a constant load, on an Envoy
// with two workers: no request fails, no connection, stream or WebSocket is
// closed, and no request begun once an update is in force is answered as before.
func TestUpdates(t *testing.T) {
	w := newWorld(t)
	w.upstream.Close()
	w.upstream = httptest.NewServer(http.HandlerFunc(steadyUpstream))
	t.Cleanup(w.upstream.Close)
	port := freePort(t)
	p := w.agent(node{name: "a", workers: 2}, w.gateway(listener{port: port, name: "in", upgrades: "[{upgrade_type: websocket}]"}))
	u := newUpdater(w)
	for i, name := range []string{"front", "left", "right"} {
		p := placed{name: name, module: "A", priority: i}
		if name == "front" {
			p.phase = chandler.PhaseAuthn
		}
		u.put(name, u.fresh(p))
	}
	u.begin()
	s := startSteady(t, port, ask{
		begin: func() int { return int(u.settled.Load()) },
		right: u.right,
	})
	eventually(t, 60*time.Second, "the load runs", func() (bool, string) {
		n := s.answers.Load()
		return float64(n) > 5*steadyRate, fmt.Sprintf("%d requests", n)
	})
	p50, p99, _ := s.latency()
	before := proxyStats(t, p)

	begin := time.Now()
	counts, changes := map[string]int{}, 0 // of slots
	dice := rand.New(rand.NewPCG(1, 4))
	for range *updateCount {
		kind, name, next := u.choose(dice)
		counts[kind]++
		changes += u.announce(name, next)
		u.put(name, next)
		if kind == "detach" || kind == "move" { // status does not tell of what has left a slot, but Envoy counts
			eventually(t, 20*time.Second, "it has left", func() (bool, string) {
				n := proxyStats(t, p).reloads - before.reloads
				return n >= float64(changes), fmt.Sprintf("%v changes of %d", n, changes)
			})
		}
		u.settle()
		seen := s.answers.Load() + steadyCallers
		eventually(t, 60*time.Second, "requests see the update", func() (bool, string) {
			return s.answers.Load() >= seen, "the load stands still"
		})
	}
	took := time.Since(begin)
	during50, during99, n := s.latency()
	after := proxyStats(t, p)
	s.end(t)

	if n := after.reloads - before.reloads; n != float64(changes) {
		t.Errorf("slots were changed %v times, and %d were due", n, changes)
	}
	if before.harm != after.harm {
		t.Errorf("listeners or connections were touched: before %+v, after %+v", before.harm, after.harm)
	}
	eventually(t, 20*time.Second, "VMs of versions that were are gone", func() (bool, string) {
		vms := proxyStats(t, p).vms // of a plugin: one a thread, and the one that the others are made from
		return vms <= float64(len(u.now))*(2+before.workers), fmt.Sprint(vms)
	})
	if before.workers != 2 {
		t.Errorf("Envoy has %v workers", before.workers)
	}
	if n < *updateCount*steadyCallers {
		t.Errorf("only %d requests: the load noticed little", n)
	}
	t.Logf("%d updates in %v (%v), %.1f a second; %d requests, %.0f a second, %d exchanges",
		*updateCount, took.Round(time.Second), counts, float64(*updateCount)/took.Seconds(), n, float64(n)/took.Seconds(), s.exchanged.Load())
	t.Logf("latency p50 %v, %.2f times that without updates; p99 %v, %.2f times",
		during50, float64(during50)/float64(p50), during99, float64(during99)/float64(p99))
}

// placed is one plugin as it is applied. Each configuration has a tag of its own.
type placed struct {
	name     string
	module   string // A or B
	tag      string
	phase    chandler.Phase
	priority int
}

// updater applies plugins and knows what requests must see of them.
type updater struct {
	*world
	admin chandlerv1connect.AdminClient
	urls  map[string]string
	now   map[string]placed
	tags  int

	// chains are what requests may have seen, in the order in which it came into
	// force. One that was begun when chain i was settled must see i or a later
	// one, up to the last that was announced.
	chains             []atomic.Pointer[string]
	settled, announced atomic.Int64
}

func newUpdater(w *world) *updater {
	u := &updater{
		world: w, now: map[string]placed{}, chains: make([]atomic.Pointer[string], 2**updateCount+1),
		admin: w.client(),
	}
	u.urls = map[string]string{"A": w.push("a:v1", module.Append()), "B": w.push("b:v1", module.Append(marking("B")))}
	return u
}

// marking makes a module write a mark before its tag.
func marking(mark string) module.Option {
	return func(m *module.Module) {
		const at, add, drop = 256, "proxy_add_header_map_value", 0x1a
		name := m.Strings[0]
		m.Strings = append(m.Strings, module.String{At: at, Text: mark})
		for i := range m.Funcs {
			if m.Funcs[i].Name != "proxy_on_request_headers" {
				continue
			}
			tag := m.Funcs[i].Body
			m.Funcs[i].Body = func(c *module.Code) {
				c.Const(0, int64(name.At), int64(len(name.Text)), at, int64(len(mark)))
				c.Call(add)
				c.Op(drop)
				tag(c)
			}
		}
	}
}

// fresh gives a plugin a tag that none had.
func (u *updater) fresh(p placed) *placed {
	u.tags++
	p.tag = "t" + strconv.Itoa(u.tags)
	return &p
}

// choose picks an update that is possible now. "front" stays in a phase of its
// own, and the other two move between two.
func (u *updater) choose(dice *rand.Rand) (kind, name string, next *placed) {
	name = []string{"front", "left", "right"}[dice.IntN(3)]
	other := u.now[map[string]string{"left": "right", "right": "left"}[name]]
	p, ok := u.now[name]
	if !ok {
		p = placed{name: name, module: []string{"A", "B"}[dice.IntN(2)], priority: other.priority + 1 - 2*dice.IntN(2)}
		if name == "front" {
			p.phase = chandler.PhaseAuthn
		}
		return "attach", name, u.fresh(p)
	}
	switch dice.IntN(5) {
	case 0:
		p.module = map[string]string{"A": "B", "B": "A"}[p.module]
		return "module " + p.module, name, &p
	case 1:
		if other.name != "" && other.phase == p.phase {
			p.priority = other.priority + cmp.Compare(other.priority, p.priority)
			return "reorder", name, &p
		}
	case 2:
		if len(u.now) > 1 {
			return "detach", name, nil
		}
	case 3:
		if name != "front" {
			p.phase = map[chandler.Phase]chandler.Phase{"": chandler.PhaseStats, chandler.PhaseStats: ""}[p.phase]
			return "move", name, &p
		}
	}
	return "configuration", name, u.fresh(p)
}

// put applies a plugin and waits until it is in force, or deletes it.
func (u *updater) put(name string, p *placed) {
	u.t.Helper()
	if p == nil {
		delete(u.now, name)
		u.remove(name)
		return
	}
	u.now[name] = *p
	lines := []string{tag(p.tag), fmt.Sprintf("priority: %d", p.priority)}
	if p.phase != "" {
		lines = append(lines, "phase: "+string(p.phase))
	}
	generation := u.write(name, plugin(name, u.urls[p.module], lines...))
	eventually(u.t, 30*time.Second, name+" is in force", func() (bool, string) {
		st := u.get(name).GetStatus()
		ready := slices.ContainsFunc(st.GetConditions(), func(c *chandlerv1.Condition) bool {
			return c.Type == string(chandler.ConditionReady) && c.Status == string(chandler.True)
		})
		return ready && st.ObservedGeneration == generation && st.InForce == 1, st.String()
	})
}

// write changes "front" as an editor does, in the plugins' directory, and others
// through the control plane. It gives the generation that this makes.
func (u *updater) write(name, manifest string) int64 {
	u.t.Helper()
	if name == "front" {
		before := u.get(name)
		u.edit(name, manifest)
		return before.GetGeneration() + 1
	}
	res, err := u.admin.Apply(u.t.Context(), connect.NewRequest(&chandlerv1.ApplyRequest{Manifest: []byte(manifest)}))
	if err != nil || len(res.Msg.Results[0].Problems) > 0 {
		u.t.Fatal(res, err)
	}
	return res.Msg.Results[0].Generation
}

func (u *updater) remove(name string) {
	u.t.Helper()
	if name == "front" {
		if err := os.Remove(filepath.Join(u.plugins, name+".yaml")); err != nil {
			u.t.Fatal(err)
		}
		return
	}
	res, err := u.admin.Delete(u.t.Context(), connect.NewRequest(&chandlerv1.DeleteRequest{
		Refs: []*chandlerv1.ObjectRef{{Kind: chandler.KindWasmPlugin, Namespace: "edge", Name: name}},
	}))
	if err != nil || res.Msg.Results[0].Action != chandlerv1.Action_ACTION_DELETED {
		u.t.Fatal(res, err)
	}
}

// get gives a plugin as the control plane has it; nil when it has none.
func (u *updater) get(name string) *chandlerv1.Object {
	u.t.Helper()
	list, err := u.admin.List(u.t.Context(), connect.NewRequest(&chandlerv1.ListRequest{Name: name}))
	if err != nil {
		u.t.Fatal(err)
	}
	for _, o := range list.Msg.Objects {
		return o
	}
	return nil
}

// chain tells what a request sees while these plugins are in force.
func chain(plugins ...placed) string {
	slices.SortFunc(plugins, func(a, b placed) int {
		phase := func(p placed) int { return slices.Index(chandler.Phases(), p.phase) }
		return cmp.Or(cmp.Compare(phase(a), phase(b)), cmp.Compare(b.priority, a.priority))
	})
	var tags []string
	for _, p := range plugins {
		if p.module == "B" {
			tags = append(tags, "B")
		}
		tags = append(tags, p.tag)
	}
	return strings.Join(tags, " ")
}

// begin makes what is in force the first chain.
func (u *updater) begin() {
	first := chain(slices.Collect(maps.Values(u.now))...)
	u.chains[0].Store(&first)
}

// announce tells what requests may see from now on, and gives in how many steps
// it comes. A plugin that moves runs in both places between the two.
func (u *updater) announce(name string, p *placed) (steps int) {
	step := func(plugins []placed) {
		seen := chain(plugins...)
		u.chains[u.announced.Load()+1].Store(&seen)
		u.announced.Add(1)
		steps++
	}
	next := maps.Clone(u.now)
	if before, there := next[name]; there && p != nil && before.phase != p.phase {
		step(append(slices.Collect(maps.Values(next)), *p))
	}
	delete(next, name)
	if p != nil {
		next[name] = *p
	}
	step(slices.Collect(maps.Values(next)))
	return steps
}

// settle tells that requests see nothing older from now on.
func (u *updater) settle() { u.settled.Store(u.announced.Load()) }

// right judges an answer.
func (u *updater) right(a answer, begun int) error {
	last := int(u.announced.Load())
	if a.code != http.StatusOK || a.size == 0 {
		return fmt.Errorf("status %d with %d bytes", a.code, a.size)
	}
	got := strings.Join(appended(a), " ")
	for i := begun; i <= last; i++ {
		if *u.chains[i].Load() == got {
			return nil
		}
	}
	return fmt.Errorf("begun after step %d and answered before %d, a request saw %q; then in force was %q",
		begun, last+1, got, *u.chains[begun].Load())
}

// counters are statistics of Envoy.
type counters struct {
	workers, vms      float64
	received, reloads float64 // slots that came, and that were taken
	harm              harm
}

// harm counts what updates must not do.
type harm struct {
	added, modified, inPlace, removed, draining   float64 // listeners
	drained, ended, resetByUs, resetByThem, fails float64 // connections, streams, slots
}

// statistics are the agent's and Envoy's, which may be too busy to tell them.
func (p *proxy) statistics(t testing.TB) (page string) {
	t.Helper()
	eventually(t, 20*time.Second, "Envoy tells its statistics", func() (bool, string) {
		page = fetchText(t, "http://"+p.admin+"/stats/prometheus")
		return !strings.Contains(page, "# Envoy's own statistics are missing"), page
	})
	return page
}

// proxyStats reads them.
func proxyStats(t testing.TB, p *proxy) counters {
	t.Helper()
	var c counters
	names := map[string]*float64{
		"envoy_wasm_wasm_vm_count":                         &c.vms,
		"envoy_server_concurrency":                         &c.workers,
		"envoy_listener_manager_listener_added":            &c.harm.added,
		"envoy_listener_manager_listener_modified":         &c.harm.modified,
		"envoy_listener_manager_listener_in_place_updated": &c.harm.inPlace,
		"envoy_listener_manager_listener_removed":          &c.harm.removed,
		"envoy_listener_manager_total_listeners_draining":  &c.harm.draining,
		"envoy_http_downstream_cx_drain_close":             &c.harm.drained,
		"envoy_http_downstream_rq_tx_reset":                &c.harm.resetByUs,
		"envoy_http_downstream_rq_rx_reset":                &c.harm.resetByThem,
		"envoy_http_downstream_cx_destroy_local":           &c.harm.ended,
	}
	for line := range strings.Lines(p.statistics(t)) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		name, _, _ := strings.Cut(series, "{")
		to := names[name]
		switch {
		case strings.HasPrefix(name, "envoy_extension_config_discovery") && strings.HasSuffix(name, "config_reload"):
			to = &c.reloads
		case strings.HasPrefix(name, "envoy_extension_config_discovery") && strings.HasSuffix(name, "update_success"):
			to = &c.received
		case strings.HasPrefix(name, "envoy_extension_config_discovery") && strings.HasSuffix(name, "config_fail"):
			to = &c.harm.fails
		}
		if to == nil {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		*to += n
	}
	return c
}
