package attach

import (
	"slices"

	yaml "go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protowire"
)

// Some connection managers serve no requests of anybody's: to deny one there would take
// the proxy out of service, or shut a tunnel whose requests are met elsewhere. They get
// no slots, and neither do their chains. Which they are is told by what they do, as far
// as that stands in the listener itself, so that none can be named so that it passes by:
//
//   - One that has the health_check filter, and a route table of its own that leads
//     to no cluster: whatever is asked, it answers itself.
//   - That of Istio's listener "connect_terminate" whose own routes are all for CONNECT: what
//     comes out of the tunnels goes through the listener "main_internal".
//
// A route table from elsewhere (RDS) may lead anywhere, so it decides for slots.

const (
	healthCheckType  = "envoy.extensions.filters.http.health_check.v3.HealthCheck"
	connectTerminate = "connect_terminate"
)

// purpose is what of a connection manager tells whether it stands aside.
type purpose struct {
	health bool // it has the health_check filter
	// own: its routes stand in the listener. Then answers, tunnels and others count them:
	// those that answer themselves, those for CONNECT, and the rest.
	own                      bool
	answers, tunnels, others int
}

// aside tells why a connection manager of a listener gets no slots; empty: it gets them.
func (p purpose) aside(listener string) string {
	switch {
	case !p.own || p.others > 0:
	case p.health && p.tunnels == 0:
		return "answers health checks only"
	case listener == connectTerminate && p.tunnels > 0 && p.answers == 0:
		return "ends tunnels, and what comes out of them goes through another listener"
	}
	return ""
}

// asideTree tells it of a connection manager in a tree. What cannot be read is for Envoy
// to refuse.
func asideTree(hcm item, listener string) string {
	var p purpose
	filters, _ := messages(hcm.Node, hcm.path, "http_filters")
	p.health = slices.ContainsFunc(filters, func(f item) bool {
		known, err := httpFilter(f)
		return err == nil && typeName(known.TypeURL) == healthCheckType
	})
	table, err := message(hcm.Node, hcm.path, "route_config")
	if err != nil || table == nil || given(table, "vhds") || given(hcm.Node, "rds") || given(hcm.Node, "scoped_routes") {
		return ""
	}
	hosts, err := messages(table, "", "virtual_hosts")
	p.own = err == nil
	for _, h := range hosts {
		routes, err := messages(h.Node, "", "routes")
		if err != nil || given(h.Node, "matcher") {
			p.others++
		}
		for _, r := range routes {
			match, err := message(r.Node, "", "match")
			p.count(given(r.Node, "direct_response"), err == nil && match != nil && given(match, "connect_matcher"))
		}
	}
	return p.aside(listener)
}

// given tells whether a field is there.
func given(m *yaml.Node, name string) bool {
	value, err := field(m, "", name)
	return err != nil || value != nil
}

func (p *purpose) count(answers, connects bool) {
	switch {
	case answers:
		p.answers++
	case connects:
		p.tunnels++
	default:
		p.others++
	}
}

// The fields of route tables that are read, by their numbers.
const (
	managerRDS, managerRoutes, managerScopes        protowire.Number = 3, 4, 31
	tableHosts, tableVHDS, hostRoutes, hostMatcher  protowire.Number = 2, 9, 3, 21
	routeMatch, routeTo, routeRedirect, routeAnswer protowire.Number = 1, 2, 3, 7
	routeFilter, routeOfServer, matchConnect        protowire.Number = 17, 18, 12
)

// asideWire tells it of a connection manager in the wire format.
func asideWire(manager []byte, listener string) string {
	var p purpose
	var table []byte
	s := scan(manager, nil)
	for s.next() {
		switch s.num {
		case managerRoutes:
			table = s.one("route_config")
		case managerRDS, managerScopes:
			return ""
		}
	}
	if table == nil || s.err != nil {
		return ""
	}
	if p.own = p.countTable(table); !p.own || p.others > 0 {
		return ""
	}
	s = scan(manager, nil)
	for s.next() {
		if s.num == managerFilters {
			f, err := readFilter(s.bytes("http_filters"), nil)
			p.health = p.health || err == nil && typeName(f.TypeURL) == healthCheckType
		}
	}
	return p.aside(listener)
}

// countTable counts routes until there is one that leads on; false: it does not have them
// all, or they cannot be read.
func (p *purpose) countTable(table []byte) bool {
	s := scan(table, nil)
	for p.others == 0 && s.next() {
		switch s.num {
		case tableVHDS:
			return false
		case tableHosts:
			host := scan(s.bytes("virtual_hosts"), nil)
			for p.others == 0 && host.next() {
				switch host.num {
				case hostMatcher:
					p.others++
				case hostRoutes:
					p.countRoute(host.bytes("routes"))
				}
			}
			if host.err != nil {
				return false
			}
		}
	}
	return s.err == nil
}

// countRoute counts a route by the last of its actions, as that one holds.
func (p *purpose) countRoute(route []byte) {
	var answers, connects bool
	s := scan(route, nil)
	for s.next() {
		switch s.num {
		case routeMatch:
			match, err := child(s.bytes("match"), matchConnect, nil, "connect_matcher")
			connects = err == nil && match != nil
		case routeTo, routeRedirect, routeAnswer, routeFilter, routeOfServer:
			answers = s.num == routeAnswer
		}
	}
	p.count(s.err == nil && answers, s.err == nil && connects)
}
