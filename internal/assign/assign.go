// Package assign decides which plugins a proxy gets and what it is told of each.
// It is pure: whole input to whole output, no clock, no memory. How an
// attachment travels, and to whom, is not its matter.
package assign

import (
	"slices"
	"time"

	"chandler.dev/chandler"
)

// Candidate is a plugin with what there is to attach of it.
type Candidate struct {
	Plugin *chandler.Plugin
	// Release decides how the plugin runs; it may be of an older generation than
	// Plugin, which then only says who gets it.
	Release  *chandler.Release
	Sequence uint64
	// Deny: there is no release, and the plugin wants refusal meanwhile.
	Deny bool
	// Config is the whole configuration of a release that has some of it from secrets.
	// Withheld: those are not to be had, so the release cannot run.
	Config   []byte
	Withheld bool
	// Standby are modules worth having on disk besides the release's own.
	Standby []chandler.Module
	// FetchDeadline is how long agents may take to fetch the module before
	// failStrategy applies; zero: the agents' default.
	FetchDeadline time.Duration
}

const groupGateway = "gateway.networking.k8s.io"

// Selects tells whether p is for n. A proxy gets plugins of its own namespace
// and of the root namespace (none when root is empty); a waypoint gets none.
func Selects(p *chandler.Plugin, n chandler.Node, root string) bool {
	return !n.Waypoint() && Means(p, n, root)
}

// Means is Selects of a proxy that can run plugins or not.
func Means(p *chandler.Plugin, n chandler.Node, root string) bool {
	if p.Namespace != n.Namespace && (root == "" || p.Namespace != root) {
		return false
	}
	if len(p.TargetRefs) > 0 {
		return slices.ContainsFunc(p.TargetRefs, func(r chandler.TargetRef) bool {
			return targets(r, p.Namespace, n, root)
		})
	}
	return chandler.HasLabels(n.Labels, p.Selector)
}

// targets tells whether a reference made in a namespace means n: a Gateway by
// its name in that very namespace, a GatewayClass only from the root namespace, a
// Service in that namespace where the proxy declares that it stands before it. Service
// entries are reached through waypoints, so no proxy of its own is meant by them.
func targets(r chandler.TargetRef, namespace string, n chandler.Node, root string) bool {
	if r.Name == "" {
		return false
	}
	switch (schema{r.Group, r.Kind}) {
	case schema{groupGateway, "Gateway"}:
		return namespace == n.Namespace && n.Gateway() == r.Name
	case schema{groupGateway, "GatewayClass"}:
		return root != "" && namespace == root && n.GatewayClass() == r.Name
	case schema{"", "Service"}, schema{"core", "Service"}:
		return namespace == n.Namespace && n.Labels[chandler.LabelService] == r.Name
	}
	return false
}

type schema struct{ group, kind string }

// Declares gives of a proxy's labels those that targetRefs go by.
func Declares(n chandler.Node) map[string]string {
	declared := map[string]string{}
	for _, name := range chandler.TargetLabels() {
		if value, ok := n.Labels[name]; ok {
			declared[name] = value
		}
	}
	return declared
}

// Attach says what a proxy is told of a candidate, the same for every proxy.
func Attach(c Candidate) chandler.Attachment {
	a := chandler.Attachment{
		Key:         c.Plugin.Key,
		UID:         c.Plugin.UID,
		Generation:  c.Plugin.Generation,
		Sequence:    c.Sequence,
		Created:     c.Plugin.Created,
		FirstAttach: c.Plugin.FirstAttach,
		Standby:     c.Standby,

		FetchDeadline: c.FetchDeadline,
	}
	switch r := c.Release; {
	case r == nil:
		a.Program, a.Behaviour = chandler.Program{Deny: true}, Behaviour(c.Plugin)
	case c.Withheld:
		a.Generation, a.Program, a.Behaviour = r.Generation, chandler.Program{Deny: true}, r.Behaviour
	default:
		a.Generation, a.Release = r.Generation, r.ID
		a.Program, a.Behaviour, a.Capabilities = r.Program, r.Behaviour, r.Capabilities
		a.SecretConfig = r.SecretConfig || len(r.ConfigFrom) > 0
		if len(r.ConfigFrom) > 0 {
			a.Config = c.Config
		}
	}
	a.Requires = requires(&a)
	return a
}

// Behaviour is how a plugin wants to run, as releases hold it.
func Behaviour(p *chandler.Plugin) chandler.Behaviour {
	b := chandler.Behaviour{Type: p.Type, Phase: p.Phase, Priority: p.Priority, Match: p.Match}
	if b.Type == "" {
		b.Type = chandler.HTTP
	}
	if w := p.Wasm; w != nil {
		b.FailStrategy, b.RootID, b.Config, b.Env = w.FailStrategy, w.RootID, w.Config, w.Env
	}
	return b
}

// requires names what not every agent can do.
func requires(a *chandler.Attachment) []string {
	var features []string
	if a.Type == chandler.Network {
		features = append(features, chandler.FeatureNetwork)
	}
	if a.Program.Lua != nil {
		features = append(features, chandler.FeatureLua)
	}
	if a.Program.File != nil {
		features = append(features, chandler.FeatureFile)
	}
	if a.SecretConfig {
		features = append(features, chandler.FeatureSecretConfig)
	}
	return features
}
