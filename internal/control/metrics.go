package control

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/xds/deltaserver"
)

// RejectsTypeURL is the label under which refusals by a proxy are counted, as
// Istio's page on its metrics has it.
const RejectsTypeURL = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"

// maxRegistries bounds a label that comes from resources; the rest are "other".
const maxRegistries = 100

type metrics struct {
	rejects  prometheus.Counter
	resolves *prometheus.CounterVec
	duration prometheus.Histogram
	push     prometheus.Histogram
	assigned prometheus.Counter
	sent     prometheus.Counter
	asked    *prometheus.CounterVec
	failures *prometheus.CounterVec

	collectors []prometheus.Collector

	mu         sync.Mutex
	registries map[string]bool
}

func newMetrics(c *Control) *metrics {
	rejects := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "pilot_total_xds_rejects",
		Help: "Configurations that a proxy refused, or whose module it could not get.",
	}, []string{"type"})
	m := &metrics{
		rejects: rejects.WithLabelValues(RejectsTypeURL),
		resolves: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chandler_resolve_total",
			Help: "Tries to find out what a plugin means, by outcome (success, failure) and registry: its host, none for Lua and files, other for those behind the first hundred.",
		}, []string{"result", "registry"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "chandler_resolve_duration_seconds", Help: "Time of such a try, download included.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}),
		push: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "chandler_xds_push_duration_seconds", Help: "Time from the making of an answer to an agent to its acknowledgement.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}),
		assigned: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "chandler_xds_resource_bytes_sent_total", Help: "Bytes of attachments sent to agents; one that is up to date gets none.",
		}),
		sent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "chandler_module_bytes_sent_total", Help: "Bytes of modules sent to agents, as they were sent: compressed to those who read that.",
		}),
		asked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chandler_agents_asked_total",
			Help: "Names that agents asked for: all that is for their node, something that is (own), or something that is not, whether it is there or not (other); they get what is for their node.",
		}, []string{"what"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chandler_rollout_gate_failures_total", Help: "Gates that did not hold, by gate.",
		}, []string{"gate"}),
		registries: map[string]bool{},
	}
	for _, result := range []string{"success", "failure"} {
		m.resolves.WithLabelValues(result, "none") // there from the start
	}
	for _, g := range chandler.Gates() {
		m.failures.WithLabelValues(string(g))
	}
	for _, what := range []deltaserver.Asked{deltaserver.AskedAll, deltaserver.AskedOwn, deltaserver.AskedOther} {
		m.asked.WithLabelValues(string(what))
	}
	m.collectors = append([]prometheus.Collector{rejects, m.resolves, m.duration, m.push, m.assigned, m.sent, m.asked, m.failures, newPluginCollector(c)}, levels(c)...)
	return m
}

// levels are looked up when they are asked for.
func levels(c *Control) []prometheus.Collector {
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	return []prometheus.Collector{
		gauge("chandler_agents", "Connected agents.", func() float64 { return float64(c.fleet.size()) }),
		gauge("chandler_agents_disconnected", "Agents that were connected within a day and are not now.", func() float64 { return float64(c.fleet.away()) }),
		gauge("chandler_module_reads_waiting", "Agents' reads of modules that wait for their turn.", func() float64 { return float64(c.turns.length()) }),
		gauge("chandler_leader", "1 while this control plane resolves plugins and moves rollouts; of several replicas one does.", func() float64 {
			return float64(one(c.leads()))
		}),
		gauge("chandler_store_bytes", "Bytes of the modules in the control plane's store.", func() float64 {
			_, bytes := c.cfg.Store.Stats()
			return float64(bytes)
		}),
		gauge("chandler_store_limit_bytes", "How many bytes the control plane's store may take.", func() float64 { return float64(c.cfg.Store.MaxBytes) }),
	}
}

func (m *metrics) register(r prometheus.Registerer) error {
	for _, c := range m.collectors {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

// gates counts those that failed.
func (m *metrics) gates(measures []chandler.Measure) {
	for i := range measures {
		if measures[i].Result == chandler.GateFailed {
			m.failures.WithLabelValues(string(measures[i].Gate)).Inc()
		}
	}
}

// resolved counts a try.
func (m *metrics) resolved(p *chandler.Plugin, d time.Duration, err error) {
	result := "success"
	if err != nil {
		result = "failure"
	}
	m.resolves.WithLabelValues(result, m.registry(p)).Inc()
	m.duration.Observe(d.Seconds())
}

func (m *metrics) registry(p *chandler.Plugin) string {
	if p.Wasm == nil || p.Wasm.Reference.Host == "" {
		return "none"
	}
	host := p.Wasm.Reference.Host
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.registries[host] && len(m.registries) >= maxRegistries {
		return "other"
	}
	m.registries[host] = true
	return host
}
