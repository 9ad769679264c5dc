package main

import (
	"fmt"
	"strings"

	"chandler.dev/chandler/bench/table"
)

// benchmark is one of Go's, by the folder of its package and its name.
type benchmark struct {
	dir, name string
	// times is how often it runs, as Go's -benchtime; empty: for a second.
	times  string
	prefix string // of its values
	// pulls: it takes the artifact from the run's registry, where downloads are
	// counted; pulledBefore is how many of them are not a part of it.
	pulls        bool
	pulledBefore float64
}

// plan is all that is run, in this order.
var plan = []benchmark{
	{dir: "internal/agent", name: "Convert/cached", pulls: true},
	{dir: "bench/peer", name: "Convert/cached", prefix: "peer/", pulls: true},
	{dir: "internal/agent", name: "Convert/step", pulls: true},
	{dir: "internal/agent", name: "Convert/one", times: "20x", pulls: true, pulledBefore: 1},
	{dir: "bench/peer", name: "Convert/one", times: "20x", prefix: "peer/", pulls: true},
	{dir: "internal/agent", name: "Convert/ten", times: "20x", pulls: true, pulledBefore: 1},
	{dir: "bench/peer", name: "Convert/ten", times: "20x", prefix: "peer/", pulls: true},
	{dir: "internal/xds/relay/edge", name: "Push/delta=false", times: "60x", prefix: "relay/"},
	{dir: "internal/xds/relay/edge", name: "Push/delta=true", times: "60x", prefix: "relay/"},
	{dir: "internal/xds/relay/edge", name: "Memory/delta=false", times: "3x", prefix: "relay/"},
	{dir: "internal/xds/relay/edge", name: "Memory/delta=true", times: "3x", prefix: "relay/"},
	{dir: "test/e2e", name: "ConfigChange", times: "50x"},
	{dir: "test/e2e", name: "ModuleChange/go", times: "7x"},
	{dir: "test/e2e", name: "ModuleChange/small", times: "20x"},
	{dir: "test/e2e", name: "Harm", times: "5x"},
	{dir: "test/e2e", name: "WrongTag", times: "1x"},
	{dir: "test/e2e", name: "OfflineRestart", times: "7x"},
	{dir: "test/e2e", name: "RegistryReturns", times: "5x"},
	{dir: "test/e2e", name: "RegistryRequests/agents=1", times: "1x"},
	{dir: "test/e2e", name: "RegistryRequests/agents=10", times: "1x"},
	{dir: "test/e2e", name: "RegistryRequests/agents=100", times: "1x"},
	{dir: "test/e2e", name: "TenPlugins", times: "10x"},
	{dir: "test/e2e", name: "AgentMemory", times: "2x"},
	{dir: "test/e2e", name: "Managers", times: "20x"},
	{dir: "test/e2e", name: "Traffic", times: "5x"},
}

// ledger makes figures of values. What was not measured has no figure.
type ledger struct {
	values
	all []table.Figure
}

// add gives the figure of a value, for more to be said of it; factor is what the value
// is multiplied with.
func (l *ledger) add(value string, factor float64, name, unit string) *table.Figure {
	v, ok := l.values[value]
	if !ok {
		return &table.Figure{} // to write to, and in nobody's table
	}
	l.all = append(l.all, table.Figure{Name: name, Unit: unit, Measured: v * factor})
	return &l.all[len(l.all)-1]
}

// limit sets what a figure must not exceed, and the rule that this comes from.
func limit(f *table.Figure, most float64, rule string) {
	*f = f.Limited(most)
	f.Target = rule
}

// recorded sets what the peer was once measured at.
func recorded(f *table.Figure, peer float64, note string) {
	*f = f.Against(peer)
	f.Recorded, f.Note = true, note
}

// against sets what the peer was measured at in this run.
func (l *ledger) against(f *table.Figure, peer string, factor float64) {
	if v, ok := l.values[peer]; ok {
		*f = f.Against(v * factor)
	}
}

// peerCached is what the peer's cached conversion took, in nanoseconds, on the machine
// that the targets are from.
const peerCached = 29_000

// atTargets says what a time would be on the machine that the targets are from, where it
// is over its limit here and nothing but the cores decide it. beyond is a part of it that
// Envoy needs in any case.
func (l *ledger) atTargets(f *table.Figure, beyond float64) {
	slower := l.values["peer/Convert/cached/ns/op"] / peerCached
	if slower == 0 || f.Reached() {
		return
	}
	note := fmt.Sprintf("this machine takes %.2f x the time of the one that the target is from: %.3g there", slower, (f.Measured-beyond)/slower)
	if beyond > 0 {
		note += " beside Envoy's own"
	}
	f.Note = strings.TrimPrefix(f.Note+"; "+note, "; ")
}

// figures are the lines of the table, from DESIGN.md's targets and the issue's.
func (v values) figures() []table.Figure {
	l := &ledger{values: v}
	l.changes()
	l.harm()
	l.registry()
	l.conversion()
	l.memory()
	l.relay()
	l.gateways()
	return l.all
}

// changes: from apply to enforced.
func (l *ledger) changes() {
	envoy := l.values["ConfigChange/envoy-ms"]
	f := l.add("ConfigChange/chandler-ms", 1, "configuration changed, to enforced", "ms")
	limit(f, envoy+10, fmt.Sprintf("Envoy's own %.1f + 10", envoy))
	recorded(f, 108, "")
	l.atTargets(f, envoy)
	f = l.add("ConfigChange/vetted-ms", 1, "configuration changed, tried first, to enforced", "ms")
	limit(f, 2*envoy+20, "2 x Envoy's own + 20")
	recorded(f, 108, "")
	l.atTargets(f, 2*envoy)
	for _, size := range []struct {
		name, what string
		peer       float64
	}{{"go", "Go, %.1f MB", 1730}, {"small", "as C, %.3f MB", 0}} {
		at := "ModuleChange/" + size.name + "/"
		envoy, fetch := l.values[at+"envoy-ms"], l.values[at+"fetch-ms"]
		what := fmt.Sprintf(size.what, l.values[at+"module-bytes"]/1e6)
		f = l.add(at+"chandler-ms", 1, "new module ("+what+"), to enforced", "ms")
		limit(f, fetch+1.1*envoy, fmt.Sprintf("fetch %.1f + 1.1 x Envoy's own %.1f", fetch, envoy))
		if size.peer > 0 {
			recorded(f, size.peer, "")
		}
		f.Note = "the plugin, its record and the module, here and there, are each synced to disk first"
		f = l.add(at+"vetted-ms", 1, "new module ("+what+"), tried first, to enforced", "ms")
		limit(f, fetch+2.1*envoy, "one load more")
		if size.peer > 0 {
			recorded(f, size.peer, "")
		}
		f.Note = fmt.Sprintf("a module is tried in an Envoy that is started for it: envoy --mode validate alone takes %.0f ms", l.values[at+"validate-ms"])
	}
}

// harm: what requests notice.
func (l *ledger) harm() {
	note := fmt.Sprintf("of %.0f, while attached, updated and detached", l.values["Harm/requests"])
	f := l.add("Harm/failed", 1, "requests failed by changes", "")
	limit(f, 0, "")
	recorded(f, 0, note)
	f = l.add("Harm/closed", 1, "connections closed by changes", "")
	limit(f, 0, "")
	recorded(f, 20, "the peer: 20 of 20")
	f = l.add("WrongTag/failed", 1, "requests failed by a tag that does not exist", "")
	limit(f, 0, "")
	recorded(f, 946, fmt.Sprintf("of %.0f; the peer: in 1.85 s, and all after", l.values["WrongTag/requests"]))
	envoy := l.values["OfflineRestart/envoy-ms"]
	f = l.add("OfflineRestart/agent-ms", 1, "restart with nobody there, to the first right answer", "ms")
	limit(f, envoy+500, fmt.Sprintf("Envoy with a static file %.0f + 500", envoy))
	f.Note = "the peer: 403, for ever"
	f = l.add("RegistryReturns/worst-ms", 0.001, "registry is back, to enforced, worst", "s")
	limit(f, 5, "")
	f.Note = fmt.Sprintf("median %.1f s; the peer: 403 a minute later", l.values["RegistryReturns/median-ms"]/1000)
}

// registry: what it is asked.
func (l *ledger) registry() {
	for _, agents := range []float64{1, 10, 100} {
		at := fmt.Sprintf("RegistryRequests/agents=%.0f/", agents)
		f := l.add(at+"downloads", 1, fmt.Sprintf("downloads of the module for %.0f agents", agents), "")
		limit(f, 1, "")
		recorded(f, agents, fmt.Sprintf("%.1f MB", l.values[at+"MB"]))
		f = l.add(at+"requests", 1, fmt.Sprintf("registry requests for %.0f agents", agents), "")
		recorded(f, 2*agents, "the peer: 2 to 3 an agent")
	}
}

// conversion: from what the control plane sent to what Envoy is sent.
func (l *ledger) conversion() {
	both := func(value string, factor float64, name, unit string) *table.Figure {
		f := l.add(value, factor, name, unit)
		l.against(f, "peer/"+value, factor)
		return f
	}
	const micro, milli, mega = 1e-3, 1e-6, 1e-6
	f := both("Convert/cached/ns/op", micro, "conversion of one resource, cached", "us")
	limit(f, 10, "")
	l.atTargets(f, 0)
	both("Convert/cached/allocs/op", 1, "conversion of one resource, allocations", "")
	f = l.add("Convert/step/ns/op", micro, "one resource, all that the agent does", "us")
	l.against(f, "peer/Convert/cached/ns/op", micro)
	both("Convert/one/ns/op", milli, "one plugin, cold, fetched and converted", "ms")
	f = both("Convert/ten/ns/op", milli, "ten plugins of one url, cold", "ms")
	limit(f, 25, "")
	l.atTargets(f, 0)
	both("Convert/ten/B/op", mega, "ten plugins of one url, cold, allocated", "MB")
	limit(both("Convert/ten/downloads", 1, "ten plugins of one url, cold, downloads", ""), 1, "")
	f = l.add("TenPlugins/median-ms", 1, "ten of one url, from apply to all enforced", "ms")
	f.Note = "with control plane and Envoy"
	limit(l.add("TenPlugins/downloads", 1, "ten of one url, from apply, downloads", ""), 1, "")
}

// memory of the agent.
func (l *ledger) memory() {
	f := l.add("AgentMemory/idle-MB", 1, "agent, resident, idle", "MB")
	limit(f, 30, "")
	recorded(f, 42, "the peer: 42 to 48 MB")
	f = l.add("AgentMemory/pulling-MB", 1, "agent, resident, at most while it pulls 63 MiB", "MB")
	f.Note = "more than idle is what the module's size must not decide"
}

// relay: what it costs that the agent stands in the stream of Envoy's own control plane.
func (l *ledger) relay() {
	for _, c := range []struct{ name, what string }{{"false", "state of the world"}, {"true", "deltas"}} {
		at := "relay/Push/delta=" + c.name + "/"
		f := l.add(at+"median-ms-added", 1, "1,000 clusters pushed through the agent, "+c.what+", added", "ms")
		limit(f, 1, "")
		f.Note = fmt.Sprintf("%.2g x the time without; of the fastest tenth %.2g ms", l.values[at+"median-ratio"], l.values[at+"fast-ms-added"])
		l.atTargets(f, 0)
		f = l.add("relay/Memory/delta="+c.name+"/B/B", 1, "kept of them, "+c.what+", for a byte of resources", "B")
		limit(f, 2, "")
	}
}

// gateways: large ones, and what plugins cost requests.
func (l *ledger) gateways() {
	for _, managers := range []int{1, 10, 40} {
		for _, plugins := range []int{1, 10} {
			l.add(fmt.Sprintf("Managers/managers=%d/plugins=%d/change-ms", managers, plugins), 1,
				fmt.Sprintf("configuration changed, %d connection managers, %d in the slot", managers, plugins), "ms")
		}
	}
	for _, c := range []struct{ name, what string }{
		{"plain", "an Envoy as it is"}, {"empty", "with empty slots"}, {"slot", "with a Go plugin in a slot"}, {"listener", "with it in the listener"},
	} {
		note := ""
		if plain := l.values["Traffic/plain-rps"]; plain > 0 && c.name != "plain" {
			note = fmt.Sprintf("%.1f %% of the plain Envoy's", 100*l.values["Traffic/"+c.name+"-rps"]/plain)
		}
		l.add("Traffic/"+c.name+"-rps", 1e-3, "throughput, "+c.what, "k/s").Note = note
		l.add("Traffic/"+c.name+"-p50-us", 1, "latency, median, "+c.what, "us").Note =
			fmt.Sprintf("99 of 100: %.0f us", l.values["Traffic/"+c.name+"-p99-us"])
	}
}
