package dashboard

import (
	"cmp"
	"slices"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/source"
)

// Bounds of what a page lists before it refers to another.
const (
	maxLatest  = 12 // events of an overview
	maxBroken  = 20
	maxPlugins = 500 // of an overview
)

// verdict is a word about a plugin with its reason.
type verdict struct {
	Word, Class string
	Reason      chandler.Code
	Message     string
}

// condition gives one of the four.
func (p *plugin) condition(t chandler.ConditionType) chandler.Condition {
	for _, c := range p.Status.Conditions {
		if c.Type == t {
			return c
		}
	}
	return chandler.Condition{Type: t, Status: chandler.Unknown}
}

// State is how a plugin fares, in a word. What somebody did to it comes before what
// came so.
func (p *plugin) State() verdict {
	ready := p.condition(chandler.ConditionReady)
	v := verdict{Reason: ready.Reason, Message: ready.Message}
	switch r := p.Rollout; {
	case p.DisabledEverywhere():
		d := r.Disabled[slices.IndexFunc(r.Disabled, everywhere)]
		v.Word, v.Class, v.Reason, v.Message = "Disabled", "out", "", d.Reason
	case r != nil && r.State == chandler.RolloutDegraded:
		v.Word, v.Class, v.Reason, v.Message = "Degraded", "rejected", r.Reason, r.Message
	case p.pinned():
		v.Word, v.Class, v.Reason, v.Message = "Pinned", "way", r.Reason, r.Message
	case r != nil && r.State == chandler.RolloutPaused:
		v.Word, v.Class, v.Reason, v.Message = "Paused", "way", r.Reason, r.Message
	case p.Counts[rejected]+p.Counts[failed]+p.Counts[faulting] > 0:
		v.Word, v.Class = "Failing", "rejected"
	case r != nil && r.State == chandler.RolloutProgressing:
		v.Word, v.Class = "Progressing", "way"
	case ready.Status == chandler.True:
		v.Word, v.Class = "Ready", "force"
	case ready.Status == chandler.False:
		v.Word, v.Class = "Not ready", "failed"
	case p.Gone:
		v.Word, v.Class, v.Message = "Being taken out", "way", "the resource is there no more"
	default:
		v.Word, v.Class = "Waiting", "way"
	}
	return v
}

func everywhere(d chandler.Disablement) bool { return d.Node == "" && len(d.Labels) == 0 }

// DisabledEverywhere tells whether somebody took the plugin out for all.
func (p *plugin) DisabledEverywhere() bool {
	return p.Rollout != nil && slices.ContainsFunc(p.Rollout.Disabled, everywhere)
}

// Looks tells whether somebody should look at a plugin.
func (p *plugin) Looks() bool {
	v := p.State()
	return v.Class == "rejected" || v.Class == "failed" || v.Class == "out" || v.Word == "Paused"
}

// Under tells whether a rollout goes on, or waits for somebody.
func (p *plugin) Under() bool {
	r := p.Rollout
	return r != nil && !p.pinned() && (r.State == chandler.RolloutProgressing || r.State == chandler.RolloutPaused)
}

// pinned tells whether an undo holds the plugin where it is, and nothing else goes on.
func (p *plugin) pinned() bool {
	return p.Rollout != nil && p.Rollout.Pinned && p.Rollout.State == chandler.RolloutPaused
}

// PhaseWord is where the plugin stands in the chain.
func (p *plugin) PhaseWord() string {
	if p.Plugin == nil {
		return "–"
	}
	return cmp.Or(string(p.Plugin.Phase), "UNSPECIFIED")
}

// Digest is that of what runs.
func (p *plugin) Digest() chandler.ModuleDigest {
	if r := p.Status.Release; r != nil && r.Program.Module != nil {
		return r.Program.Module.Digest
	}
	return ""
}

// connected counts the proxies that are.
func (s *snapshot) connected() int {
	n := 0
	for _, p := range s.proxies {
		if p.Connected {
			n++
		}
	}
	return n
}

// summary says in a sentence how the fleet is.
func (s *snapshot) summary() string {
	look, under := 0, 0
	for _, p := range s.plugins {
		if p.Looks() {
			look++
		}
		if p.Under() {
			under++
		}
	}
	parts := []string{plural(len(s.plugins), "plugin", "plugins")}
	switch {
	case look == 1:
		parts = append(parts, "1 needs a look")
	case look > 1:
		parts = append(parts, number(look)+" need a look")
	case len(s.plugins) > 0:
		parts = append(parts, "none needs a look")
	}
	parts = append(parts, number(s.connected())+" of "+plural(len(s.proxies), "proxy", "proxies")+" connected")
	if under > 0 {
		parts = append(parts, plural(under, "rollout", "rollouts")+" under way")
	}
	if s.partial != "" {
		parts = append(parts, s.partial)
	}
	return strings.Join(parts, " · ")
}

// overview is the first page.
func (d *dashboard) overview(v *view) (string, string, any, error) {
	type content struct {
		Plugins                      []*plugin
		More                         int
		Ready, Look, Under, Warnings int
		Proxies, Connected           int
		Envoys                       []tally
		Rollouts                     []*plugin
		Broken                       []source.Broken
		Events                       []event
	}
	c := content{Plugins: v.plugins, Proxies: len(v.proxies), Connected: v.connected(), Envoys: v.envoys()}
	for _, p := range v.plugins {
		if p.condition(chandler.ConditionReady).Status == chandler.True && !p.Looks() {
			c.Ready++
		}
		if p.Looks() {
			c.Look++
		}
		if p.Under() {
			c.Under++
			c.Rollouts = append(c.Rollouts, p)
		}
	}
	if len(c.Plugins) > maxPlugins {
		c.Plugins, c.More = c.Plugins[:maxPlugins], len(c.Plugins)-maxPlugins
	}
	c.Broken = v.broken[:min(len(v.broken), maxBroken)]
	c.Events = v.latest(maxLatest, func(*chandler.Event) bool { return true })
	return "overview", "Fleet", c, nil
}

// tally is a word with how many there are.
type tally struct {
	Word  string
	Count int
}

// envoys counts connected proxies by version of Envoy, the most first.
func (s *snapshot) envoys() []tally {
	byVersion := map[string]int{}
	for _, p := range s.proxies {
		if p.Connected {
			byVersion[cmp.Or(p.EnvoyVersion, "unknown")]++
		}
	}
	var all []tally
	for word, n := range byVersion {
		all = append(all, tally{word, n})
	}
	slices.SortFunc(all, func(a, b tally) int { return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Word, b.Word)) })
	return all[:min(len(all), 5)]
}
