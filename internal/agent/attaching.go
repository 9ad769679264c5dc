package agent

import (
	"time"

	"chandler.dev/chandler"
)

// attaching is a version on its way into force.
type attaching struct {
	version string
	kind    string // of chandler_agent_attach_duration_seconds
	at      time.Time
}

// attaches notes, before the state takes them in, which versions are new here.
func (a *Agent) attaches(ev Assigned, now time.Time) {
	for i := range ev.Changed {
		v := &ev.Changed[i]
		kind, p := attachedModule, a.state.plugins[v.Key]
		if p != nil && p.want != nil && p.want.Version == v.Version {
			continue
		}
		if p != nil && p.good != nil && source(p.good).Digest == source(v).Digest {
			kind = attachedConfig
		}
		a.attaching[v.Key] = attaching{v.Version, kind, now}
	}
}

// attached measures those that are in force by now, and forgets those that never will
// be.
func (a *Agent) attached(now time.Time) {
	for key, on := range a.attaching {
		p := a.state.plugins[key]
		switch {
		case p == nil || p.want == nil || p.want.Version != on.version || p.state == chandler.StateUnmatched:
		case p.state == chandler.StateInForce:
			a.metrics.attached.WithLabelValues(on.kind).Observe(now.Sub(on.at).Seconds())
		default:
			continue
		}
		delete(a.attaching, key)
	}
}
