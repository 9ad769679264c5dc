package control

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chandler.dev/chandler"
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
			Help: "Tries to find out what a plugin means, by outcome (success, failure) and registry.",
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
			Name: "chandler_module_bytes_sent_total", Help: "Bytes of modules sent to agents.",
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
	agents := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "chandler_agents", Help: "Connected agents.",
	}, func() float64 { return float64(c.fleet.size()) })
	m.collectors = []prometheus.Collector{rejects, m.resolves, m.duration, m.push, m.assigned, m.sent, m.asked, m.failures, agents, newPluginCollector(c)}
	return m
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

// pluginCollector gives what the status says of every plugin, when it is asked.
type pluginCollector struct {
	c                *Control
	proxies, release *prometheus.Desc
}

func newPluginCollector(c *Control) *pluginCollector {
	return &pluginCollector{
		c: c,
		proxies: prometheus.NewDesc("chandler_plugin_proxies",
			"Proxies that a plugin is for, by what they say of it.", []string{"namespace", "name", "state"}, nil),
		release: prometheus.NewDesc("chandler_plugin_release_info",
			"The release of a plugin that is being put in force.", []string{"namespace", "name", "release", "digest"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (p *pluginCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- p.proxies
	ch <- p.release
}

// Collect implements prometheus.Collector. Two kinds of one name count together.
func (p *pluginCollector) Collect(ch chan<- prometheus.Metric) {
	views, err := p.c.Objects(context.Background())
	if err != nil {
		return // nothing is known yet
	}
	type name struct{ namespace, name string }
	counts := map[name]map[string]int{}
	for i := range views {
		v := &views[i]
		n := name{v.Namespace, v.Name}
		if counts[n] == nil {
			counts[n] = map[string]int{"desired": 0, "fetching": 0, "ready": 0, "in_force": 0, "rejected": 0, "failed": 0}
		}
		count(counts[n], &v.Status)
		if r := v.Status.Release; r != nil {
			digest := ""
			if r.Program.Module != nil {
				digest = string(r.Program.Module.Digest)
			}
			ch <- prometheus.MustNewConstMetric(p.release, prometheus.GaugeValue, 1, n.namespace, n.name, string(r.ID), digest)
		}
	}
	for n, states := range counts {
		for state, count := range states {
			ch <- prometheus.MustNewConstMetric(p.proxies, prometheus.GaugeValue, float64(count), n.namespace, n.name, state)
		}
	}
}

func count(into map[string]int, s *chandler.Status) {
	into["desired"] += s.Desired
	into["in_force"] += s.InForce
	states := map[chandler.State]string{
		chandler.StateFetching: "fetching", chandler.StateReady: "ready",
		chandler.StateRejected: "rejected", chandler.StateFailed: "failed",
	}
	for i := range s.Proxies {
		if state, ok := states[s.Proxies[i].State]; ok && s.Proxies[i].Connected {
			into[state]++
		}
	}
}
