package agent

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/store"
)

// metrics are the agent's own. The five that begin with istio_agent_wasm keep
// Istio's names, labels and buckets, so that dashboards go on working.
type metrics struct {
	lookups     *prometheus.CounterVec
	fetches     *prometheus.CounterVec
	conversions *prometheus.CounterVec
	duration    prometheus.Histogram
	attachments *prometheus.GaugeVec
	nacks       *prometheus.CounterVec
	retries     prometheus.Counter
	listings    prometheus.Counter
	restarts    prometheus.Counter
	connected   prometheus.Gauge
	bypassed    prometheus.Gauge
	attached    *prometheus.HistogramVec
	traps       *prometheus.CounterVec
	trapped     map[chandler.Key]uint64 // what traps has counted
}

// Values of the label result of istio_agent_wasm_config_conversion_count.
const (
	conversionSuccess          = "success"
	conversionFetchFailure     = "fetch_failure"
	conversionUnmarshalFailure = "unmarshal_failure"
)

// Values of the label result of istio_agent_wasm_remote_fetch_count.
const (
	fetchSuccess  = "success"
	fetchDownload = "download_failure"
	fetchManifest = "manifest_failure"
	fetchChecksum = "checksum_mismatched"
	fetchNoModule = "fetch_failure"
)

// unspecified is the value of the label phase of a plugin that names none.
const unspecified = "UNSPECIFIED"

// Values of the label kind of chandler_agent_attach_duration_seconds.
const (
	attachedModule = "module"
	attachedConfig = "config"
)

func newMetrics(reg prometheus.Registerer, modules *store.Store) *metrics {
	m := &metrics{
		lookups: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "istio_agent_wasm_cache_lookup_count", Help: "Look-ups of modules in the local store."}, []string{"hit"}),
		fetches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "istio_agent_wasm_remote_fetch_count", Help: "Fetches of modules by their result."}, []string{"result"}),
		conversions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "istio_agent_wasm_config_conversion_count", Help: "Attachments made into Envoy configuration, by result."}, []string{"result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "istio_agent_wasm_config_conversion_duration", Help: "Milliseconds from an assignment to its Envoy configuration, fetch included.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 15)}),
		attachments: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "chandler_agent_attachments", Help: "Plugins assigned to this proxy, by state."}, []string{"state"}),
		nacks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chandler_agent_nack_total", Help: "Compositions that Envoy refused, by phase of the slot."}, []string{"phase"}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "chandler_agent_fetch_retries_total", Help: "Loads of modules begun again after a failure."}),
		listings: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "chandler_agent_listener_changes_total", Help: "Changes of the listeners for a plugin, each of which drained their connections."}),
		restarts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "chandler_agent_envoy_restarts_total", Help: "Envoys started anew after one that ended by itself."}),
		connected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "chandler_agent_control_connected", Help: "1 while there is a stream to a control plane."}),
		bypassed: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "chandler_agent_bypassed", Help: "Plugins that somebody took out on this machine."}),
		attached: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "chandler_agent_attach_duration_seconds", Help: "From an assignment to its being in force: of another module, or of another configuration alone.",
			Buckets: prometheus.ExponentialBuckets(0.004, 2, 16)}, []string{"kind"}),
	}
	m.trapped = map[chandler.Key]uint64{}
	m.traps = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "chandler_agent_plugin_vm_traps_total", Help: "Faults of plugins' VMs while serving, as far as Envoy tells of which plugin."}, []string{"namespace", "name"})
	entries := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "istio_agent_wasm_cache_entries", Help: "Modules in the local store."},
		func() float64 { n, _ := modules.Stats(); return float64(n) })
	bytes := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "chandler_agent_store_bytes", Help: "Bytes of the modules in the local store."},
		func() float64 { _, b := modules.Stats(); return float64(b) })
	limit := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "chandler_agent_store_limit_bytes", Help: "How many bytes the local store may take."},
		func() float64 { return float64(modules.MaxBytes) })
	evictions := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "chandler_agent_store_evictions_total", Help: "Modules dropped from the local store for want of room."},
		func() float64 { return float64(modules.Evictions()) })
	reg.MustRegister(m.lookups, m.fetches, m.conversions, m.duration, m.attachments, m.nacks, m.retries, m.listings, m.restarts, m.connected, m.traps,
		m.bypassed, m.attached, entries, bytes, limit, evictions)
	m.begin()
	return m
}

// registerUpstreams adds what is counted of the control planes in Envoy's configuration.
func registerUpstreams(reg prometheus.Registerer, status func() []UpstreamStatus) {
	connected := func() float64 {
		for _, st := range status() {
			if !st.Connected {
				return 0
			}
		}
		return 1
	}
	since := func() float64 {
		var last time.Time
		for _, st := range status() {
			if st.Since.After(last) {
				last = st.Since
			}
		}
		return float64(last.UnixMilli()) / 1000
	}
	lost := func() float64 {
		n := uint64(0)
		for _, st := range status() {
			n += st.Lost
		}
		return float64(n)
	}
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "chandler_agent_upstream_connected", Help: "1 while all streams are there that Envoy wants to the control planes of its own configuration."}, connected),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "chandler_agent_upstream_since_seconds", Help: "When such a control plane was connected or lost last, in seconds since 1970."}, since),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "chandler_agent_upstream_lost_total", Help: "Streams to such control planes that were lost or could not be begun."}, lost))
}

// begin makes the series whose labels are known, so that they are there from the start.
func (m *metrics) begin() {
	for _, kind := range []string{attachedModule, attachedConfig} {
		m.attached.WithLabelValues(kind)
	}
	for _, hit := range []string{"true", "false"} {
		m.lookups.WithLabelValues(hit)
	}
	for _, result := range []string{fetchSuccess, fetchDownload, fetchManifest, fetchChecksum, fetchNoModule} {
		m.fetches.WithLabelValues(result)
	}
	for _, result := range []string{conversionSuccess, conversionFetchFailure, conversionUnmarshalFailure} {
		m.conversions.WithLabelValues(result)
	}
	for _, phase := range []string{"AUTHN", "AUTHZ", "STATS", unspecified} {
		m.nacks.WithLabelValues(phase)
	}
	m.states(nil)
}

func (m *metrics) lookup(hit bool) {
	if hit {
		m.lookups.WithLabelValues("true").Inc()
	} else {
		m.lookups.WithLabelValues("false").Inc()
	}
}

// fetched counts a fetch by how it ended.
func (m *metrics) fetched(err error) {
	result := fetchSuccess
	var problem *chandler.Problem
	switch {
	case err == nil:
	case errors.As(err, &problem):
		result = fetchResult(problem.Code)
	default:
		result = fetchDownload
	}
	m.fetches.WithLabelValues(result).Inc()
}

// fetchResult files a code under the results that Istio counts.
func fetchResult(code chandler.Code) string {
	begins := func(prefixes ...string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(string(code), p) })
	}
	switch {
	case code == chandler.CodeDigestMismatch:
		return fetchChecksum
	case begins("Manifest", "Index", "Desc", "ConfigBlob"):
		return fetchManifest
	case begins("Layer", "Tar", "Wasm", "ModuleTooLarge"):
		return fetchNoModule
	}
	return fetchDownload
}

// converted counts an attachment that became Envoy configuration.
func (m *metrics) converted(result string, took time.Duration) {
	m.conversions.WithLabelValues(result).Inc()
	m.duration.Observe(float64(took) / float64(time.Millisecond))
}

// states shows how many plugins are in which state, and their faults. It is for
// one goroutine.
func (m *metrics) states(report map[chandler.Key]chandler.AttachmentState) {
	counts := map[chandler.State]int{}
	for _, st := range report {
		counts[st.State]++
	}
	for key, st := range report {
		if n := m.trapped[key]; st.VMTraps > n {
			m.traps.WithLabelValues(key.Namespace, key.Name).Add(float64(st.VMTraps - n))
			m.trapped[key] = st.VMTraps
		}
	}
	for key := range m.trapped {
		if _, ok := report[key]; !ok {
			m.traps.DeleteLabelValues(key.Namespace, key.Name)
			delete(m.trapped, key)
		}
	}
	for _, state := range []chandler.State{
		chandler.StatePending, chandler.StateFetching, chandler.StateReady, chandler.StateInForce,
		chandler.StateRejected, chandler.StateFailed, chandler.StateUnmatched,
	} {
		m.attachments.WithLabelValues(string(state)).Set(float64(counts[state]))
	}
}
