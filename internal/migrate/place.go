package migrate

import (
	"slices"
	"strings"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler"
)

// placed is a resource with its place in the chain.
type placed struct {
	made    *made
	of      *envoyFilter
	patch   *patch
	phase   chandler.Phase
	network bool
	front   bool // it goes before those of its phase that were put in earlier
}

// insert puts p where Istio would have, among those that are there already.
func (p *placed) insert(chain []*placed) []*placed {
	if p.front {
		return slices.Insert(chain, 0, p)
	}
	return append(chain, p)
}

// rootNamespace is the one whose plugins are for proxies of every namespace,
// unless an operator says otherwise.
const rootNamespace = "istio-system"

func (p *placed) namespace() string {
	if n := field(field(p.made.root, "metadata"), "namespace"); n != nil {
		return n.Value
	}
	return ""
}

// rank gives priorities to resources that share a phase and may meet on a proxy,
// so that their order stays what it was.
func rank(chain []*placed) {
	type group struct {
		phase   chandler.Phase
		network bool
	}
	members, in := map[group]int{}, map[group]map[string]int{}
	for _, p := range chain {
		g := group{p.phase, p.network}
		members[g]++
		if in[g] == nil {
			in[g] = map[string]int{}
		}
		in[g][p.namespace()]++
	}
	place := map[group]int{}
	for _, p := range chain {
		g, ns := group{p.phase, p.network}, p.namespace()
		priority := 10 * (members[g] - place[g])
		place[g]++
		others := in[g][ns] - 1
		if ns == rootNamespace {
			others = members[g] - 1
		} else {
			others += in[g][rootNamespace]
		}
		if others == 0 {
			continue
		}
		put(field(p.made.root, "spec"), "priority", num(priority))
		p.of.note(Differs, p.patch.value.get("patch").get("operation").at, "give other plugins of this phase priorities that fit",
			"priority %d keeps the order of the filters that now share a phase", priority)
	}
}

// family says what a filter of a chain does, by the names that Istio and Envoy
// give their own.
type family int

const (
	unknown family = iota
	early          // before authentication
	authn
	authz
	stats
	terminal
)

func familyOf(name string) family {
	known := map[string]family{
		"metadata_exchange": early,
		"jwt_authn":         authn, "authn": authn, "oauth2": authn, "basic_auth": authn, "api_key_auth": authn, "gcp_authn": authn,
		"rbac": authz, "ext_authz": authz,
		"stats": stats, "grpc_stats": stats, "stackdriver": stats,
		"router": terminal, "tcp_proxy": terminal, "http_connection_manager": terminal,
	}
	for _, prefix := range []string{"envoy.filters.http.", "envoy.filters.network.", "envoy.", "istio."} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			name = rest
			break
		}
	}
	return known[strings.TrimPrefix(name, "istio_")]
}

// place finds the phase that fits an operation best. exact: it means the same.
func place(operation, reference string) (phase chandler.Phase, front, exact bool) {
	f := familyOf(reference)
	switch operation {
	case "INSERT_FIRST":
		return chandler.PhaseAuthn, true, false
	case "INSERT_BEFORE":
		switch {
		case reference == "":
			return chandler.PhaseAuthn, true, false
		case f == early || f == authn:
			return chandler.PhaseAuthn, false, false
		case f == authz:
			return chandler.PhaseAuthz, false, false
		case f == stats:
			return chandler.PhaseStats, false, false
		}
		return chandler.PhaseUnspecified, false, f == terminal
	case "INSERT_AFTER":
		switch f {
		case early:
			return chandler.PhaseAuthn, true, false
		case authn:
			return chandler.PhaseAuthz, true, false
		case authz:
			return chandler.PhaseStats, true, false
		}
		return chandler.PhaseUnspecified, reference != "" && f != terminal, false
	}
	return chandler.PhaseUnspecified, false, false
}

// stands says where a phase is.
func stands(p chandler.Phase) string {
	return map[chandler.Phase]string{
		chandler.PhaseAuthn:       "phase AUTHN: before the first filter of authentication, authorization or statistics",
		chandler.PhaseAuthz:       "phase AUTHZ: after the last filter of authentication, before authorization",
		chandler.PhaseStats:       "phase STATS: after the last filter of authorization, before statistics",
		chandler.PhaseUnspecified: "no phase: directly before the last filter",
	}[p]
}

// place reads operation and reference of a patch.
func (b *builder) place(p *patch) (*placed, bool) {
	body := p.value.get("patch")
	op := body.get("operation")
	operation := op.text()
	filter := p.value.get("match").get("listener").get("filter_chain").get("filter")
	name := filter.get("name")
	reference := name
	if p.applyTo == toHTTP {
		reference = filter.get("sub_filter").get("name")
		if n := name.text(); n != "" && familyOf(n) != terminal {
			b.refuse(name.at, "name envoy.filters.network.http_connection_manager, or leave it out", "HTTP filters are not in %s", chandler.Quote(n))
		}
	}
	class := body.get("filter_class")
	if !slices.Contains([]string{"ADD", "INSERT_BEFORE", "INSERT_AFTER", "INSERT_FIRST"}, operation) {
		b.refuse(op.at, "translate what adds the filter; what changes it later is a change of the resource", "operation %s puts no filter into a chain", chandler.Quote(operation))
		return nil, false
	}
	where := &placed{network: p.applyTo == toNetwork}
	var exact bool
	where.phase, where.front, exact = place(operation, reference.text())
	switch c := class.text(); c {
	case "", "UNSPECIFIED":
		if !exact {
			b.of.note(Differs, op.at, "see whether that is the place; phase says otherwise", "%s puts it in %s", describe(operation, reference.text()), stands(where.phase))
		}
	case "AUTHN", "AUTHZ", "STATS":
		where.phase, where.front = chandler.Phase(c), false
	default:
		b.refuse(class.at, "write AUTHN, AUTHZ or STATS", "filterClass %s is not known", chandler.Quote(c))
	}
	b.put("phase", nodeOf(string(where.phase)), op.at)
	return where, true
}

func describe(operation, reference string) string {
	if reference == "" {
		return operation
	}
	return operation + " " + chandler.Quote(reference)
}

// nodeOf is nil for an empty text.
func nodeOf(s string) *yaml.Node {
	if s == "" {
		return nil
	}
	return str(s)
}
