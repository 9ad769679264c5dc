package control

import (
	"github.com/prometheus/client_golang/prometheus"

	"chandler.dev/chandler"
)

// proxyStates are the values of the label state, in the order of a plugin's way.
var proxyStates = [...]string{"desired", "fetching", "ready", "in_force", "rejected", "failed"}

// standing is what of a plugin's status is counted.
type standing struct {
	proxies    [len(proxyStates)]int
	conditions map[chandler.ConditionType]bool // those that are True
}

// rolloutStates are the values of the label state of rollouts.
var rolloutStates = [...]chandler.RolloutState{
	chandler.RolloutHealthy, chandler.RolloutProgressing, chandler.RolloutPaused, chandler.RolloutDegraded,
}

// standingOf counts the proxies that are connected.
func standingOf(s *chandler.Status) standing {
	st := standing{conditions: map[chandler.ConditionType]bool{}}
	st.proxies[0], st.proxies[3] = s.Desired, s.InForce
	for i := range s.Proxies {
		if !s.Proxies[i].Connected {
			continue
		}
		switch s.Proxies[i].State {
		case chandler.StateFetching:
			st.proxies[1]++
		case chandler.StateReady:
			st.proxies[2]++
		case chandler.StateRejected:
			st.proxies[4]++
		case chandler.StateFailed:
			st.proxies[5]++
		}
	}
	for _, c := range s.Conditions {
		st.conditions[c.Type] = c.Status == chandler.True
	}
	return st
}

// add joins what is said of two kinds of one name: they count together, and what is
// true is so of both.
func (st standing) add(other standing) standing {
	for i := range st.proxies {
		st.proxies[i] += other.proxies[i]
	}
	both := map[chandler.ConditionType]bool{}
	for t, holds := range st.conditions {
		both[t] = holds && other.conditions[t]
	}
	st.conditions = both
	return st
}

// pluginCollector gives what the status says of every plugin. To be asked costs no
// look at the proxies: what the board has is brought up to date (see transit), which
// is work only where something was said since.
type pluginCollector struct {
	c                                               *Control
	proxies, condition, release, bypassed, disabled *prometheus.Desc
	rollout, step, steps                            *prometheus.Desc
}

func newPluginCollector(c *Control) *pluginCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, append([]string{"namespace", "name"}, labels...), nil)
	}
	return &pluginCollector{
		c: c,
		proxies: desc("chandler_plugin_proxies",
			"Connected proxies that a plugin is for (desired), and what they say of it (fetching, ready, in_force, rejected, failed).", "state"),
		condition: desc("chandler_plugin_condition",
			"1 while a condition of a plugin (Accepted, ResolvedRefs, Programmed, Ready) is True, else 0.", "type"),
		release: desc("chandler_plugin_release_info",
			"The release of a plugin that is being put in force, and the digest of its module, if it has one.", "release", "digest"),
		bypassed: desc("chandler_plugin_bypassed_proxies",
			"Connected proxies on which somebody took a plugin out by hand (chandler-agent bypass)."),
		disabled: desc("chandler_plugin_disabled",
			"Orders by which a plugin is taken out (chandler disable)."),
		rollout: desc("chandler_rollout_state",
			"1 for the state that the rollout of a plugin is in (Healthy, Progressing, Paused, Degraded), 0 for the others.", "state"),
		step: desc("chandler_rollout_step",
			"The step that the rollout of a plugin with a plan is at, from 0; as many as there are when it is over."),
		steps: desc("chandler_rollout_steps",
			"How many steps the rollout of a plugin with a plan has."),
	}
}

// Describe implements prometheus.Collector.
func (p *pluginCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- p.proxies
	ch <- p.condition
	ch <- p.release
	ch <- p.bypassed
	ch <- p.disabled
	ch <- p.rollout
	ch <- p.step
	ch <- p.steps
}

// named is how metrics name a plugin: without its kind.
type named struct{ namespace, name string }

// Collect implements prometheus.Collector.
func (p *pluginCollector) Collect(ch chan<- prometheus.Metric) {
	p.c.transit()
	published := p.c.published.Load()
	if published == nil {
		return // nothing is known yet
	}
	gauge := func(d *prometheus.Desc, value int, n named, more ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value), append([]string{n.namespace, n.name}, more...)...)
	}
	all, rollouts := map[named]standing{}, map[named]RolloutView{}
	for _, e := range published.entries {
		st, ok := p.c.board.standing(e.id())
		if !ok {
			continue // it came this moment
		}
		n := named{e.object.Namespace, e.object.Name}
		if other, ok := all[n]; ok {
			st = st.add(other)
		}
		all[n] = st
		if ro := p.c.rollout(e, nil, false); rollouts[n].State != chandler.RolloutProgressing { // of two kinds
			rollouts[n] = ro
		}
		if r := e.target; r != nil {
			digest := ""
			if r.Program.Module != nil {
				digest = string(r.Program.Module.Digest)
			}
			gauge(p.release, 1, n, string(r.ID), digest)
		}
	}
	bypassed := p.c.fleet.bypassed()
	for n, st := range all {
		gauge(p.bypassed, bypassed[n], n)
		ro := rollouts[n]
		gauge(p.disabled, len(ro.Disabled), n)
		for _, state := range rolloutStates {
			gauge(p.rollout, one(ro.State == state), n, string(state))
		}
		if ro.Plan != nil {
			gauge(p.step, ro.Step, n)
			gauge(p.steps, len(ro.Plan.Steps), n)
		}
		for i, state := range proxyStates {
			gauge(p.proxies, st.proxies[i], n, state)
		}
		for t, holds := range st.conditions {
			gauge(p.condition, one(holds), n, string(t))
		}
	}
}

func one(holds bool) int {
	if holds {
		return 1
	}
	return 0
}
