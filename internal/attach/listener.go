package attach

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler"
)

// Names of types that decide how a listener is read.
const (
	hcmType             = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
	hcmTypeSuffix       = "HttpConnectionManager" // kin of it, which hold one inside
	filterChainType     = "envoy.extensions.filters.http.filter_chain.v3.FilterChainConfig"
	tcpProxyType        = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
	matcherType         = "envoy.extensions.common.matching.v3.ExtensionWithMatcher"
	udpaTypedStruct     = "udpa.type.v1.TypedStruct"
	xdsTypedStruct      = "xds.type.v3.TypedStruct"
	typeURLPrefix       = "type.googleapis.com/"
	hcmFilterName       = "envoy.filters.network.http_connection_manager"
	hcmFilterNameBefore = "envoy.http_connection_manager"
)

// editor puts slots into listeners that are trees.
type editor struct {
	plan
	udp  bool                // of the listener at hand
	read map[*yaml.Node]bool // connection managers that have got theirs
}

// listener gives slots to every connection manager of a listener. One that it
// does not understand is refused: it would let requests pass by every plugin.
func (e *editor) listener(l item) error {
	if dynamic, err := field(l.Node, l.path, "fcds_config"); err != nil {
		return err
	} else if dynamic != nil {
		return problem(sub(l.path, "fcds_config"), "write the filter chains out", "filter chains that come from elsewhere cannot be given plugins")
	}
	udp, err := field(l.Node, l.path, "udp_listener_config")
	if err != nil {
		return err
	}
	if e.udp = udp != nil; e.udp {
		e.warnDatagrams(l.path)
	}
	mode, err := listenerMode(l)
	if err != nil {
		return err
	}
	port, err := listenerPort(l)
	if err != nil {
		return err
	}
	chains, err := messages(l.Node, l.path, "filter_chains")
	if err != nil {
		return err
	}
	chain, err := message(l.Node, l.path, "default_filter_chain")
	if err != nil {
		return err
	}
	if chain != nil {
		chains = append(chains, item{chain, sub(l.path, "default_filter_chain")})
	}
	if err := e.enterTree(l, mode, port); err != nil {
		return err
	}
	e.read = map[*yaml.Node]bool{}
	for _, c := range chains {
		if err := e.filterChain(c, mode, port); err != nil {
			return err
		}
	}
	return e.noneLeft(l.Node, l.path)
}

// filterChain gives slots to the connection managers of a chain. The port that
// the chain's match names wins: behind an interception all ports share a listener.
func (e *editor) filterChain(c item, mode chandler.Mode, port uint32) error {
	match, err := message(c.Node, c.path, "filter_chain_match")
	if err != nil {
		return err
	}
	if match != nil {
		own, err := number(match, sub(c.path, "filter_chain_match"), "destination_port")
		if err != nil {
			return err
		}
		if own != 0 {
			port = own
		}
	}
	filters, err := messages(c.Node, c.path, "filters")
	if err != nil {
		return err
	}
	terminal := len(filters) - 1
	managers := make([]item, len(filters))
	var whys []string
	for i, f := range filters {
		if managers[i], err = connectionManager(f); err != nil {
			return err
		}
		if managers[i].Node != nil {
			terminal = i
			whys = append(whys, asideTree(managers[i], e.layout[len(e.layout)-1].Name))
		}
	}
	e.begin(whys, func() string { return c.path })
	for _, hcm := range managers {
		if hcm.Node == nil {
			continue
		}
		e.read[hcm.Node] = true
		if err := e.countedTree(hcm, mode, port); err != nil {
			return err
		}
		if err := e.connectionManager(hcm, mode, port); err != nil {
			return err
		}
	}
	if terminal < 0 || e.udp {
		return nil // a chain without filters closes every connection
	}
	return e.networkFilters(c, filters, terminal, mode, port)
}

// networkFilters puts the slots of NETWORK plugins before a chain's connection
// manager or terminal filter.
func (e *editor) networkFilters(c item, filters []item, terminal int, mode chandler.Mode, port uint32) error {
	slots := e.inNetwork(mode, port)
	if len(slots) == 0 {
		return nil
	}
	list := newSequence()
	for i, f := range filters {
		if i == terminal {
			list.Content = append(list.Content, e.slotFilters(slots)...)
		}
		list.Content = append(list.Content, f.Node)
	}
	return set(c.Node, c.path, "filters", list)
}

func (e *editor) slotFilters(slots []Slot) []*yaml.Node {
	filters := make([]*yaml.Node, len(slots))
	for i, s := range slots {
		filters[i] = slotFilter(s)
	}
	return filters
}

// connectionManager finds the connection manager that a network filter is; one
// without a node when it is another filter.
func connectionManager(f item) (item, error) {
	discovery, err := message(f.Node, f.path, "config_discovery")
	if err != nil {
		return item{}, err
	}
	if discovery != nil {
		if types, err := typeURLs(discovery, sub(f.path, "config_discovery")); err != nil {
			return item{}, err
		} else if !mayBeManager(types) {
			return item{}, nil
		}
		return item{}, problem(sub(f.path, "config_discovery"), "write its configuration into the file",
			"a connection manager whose configuration comes from elsewhere cannot be given plugins")
	}
	name, err := scalarText(f.Node, f.path, "name")
	if err != nil {
		return item{}, err
	}
	typed, err := message(f.Node, f.path, "typed_config")
	if err != nil {
		return item{}, err
	}
	path := sub(f.path, "typed_config")
	if typed == nil {
		if name == hcmFilterName || name == hcmFilterNameBefore {
			return item{}, problem(path, "", "the connection manager has no configuration of a known type")
		}
		return item{}, nil
	}
	body, kind, err := unwrap(item{typed, path})
	if err != nil || kind != hcmType {
		return item{}, err
	}
	if body.Node == nil {
		return item{}, problem(body.path, "", "the connection manager is empty")
	}
	return body, nil
}

// isManagerType tells whether a type is, or holds, a connection manager.
func isManagerType(typeURL string) bool { return strings.HasSuffix(typeName(typeURL), hcmTypeSuffix) }

// mayBeManager tells whether a configuration from elsewhere of one of these types may
// be a connection manager's; without a type it may be anything.
func mayBeManager(types []string) bool {
	return len(types) == 0 || slices.ContainsFunc(types, isManagerType)
}

// unwrap gives a message and the name of its type, looking into a TypedStruct,
// whose body may be missing.
func unwrap(typed item) (item, string, error) {
	kind, err := scalarText(typed.Node, typed.path, "@type")
	if err != nil {
		return item{}, "", err
	}
	kind = typeName(kind)
	if kind != udpaTypedStruct && kind != xdsTypedStruct {
		return typed, kind, nil
	}
	inner, err := scalarText(typed.Node, typed.path, "type_url")
	if err != nil {
		return item{}, "", err
	}
	value, err := message(typed.Node, typed.path, "value")
	return item{value, sub(typed.path, "value")}, typeName(inner), err
}

// connectionManager puts the four slots into a connection manager, and into the
// filters of its upgrades that have a list of their own and would pass by.
func (e *editor) connectionManager(hcm item, mode chandler.Mode, port uint32) error {
	if err := e.chain(hcm, "http_filters", mode, port); err != nil {
		return err
	}
	upgrades, err := messages(hcm.Node, hcm.path, "upgrade_configs")
	if err != nil {
		return err
	}
	for _, u := range upgrades {
		own, err := messages(u.Node, u.path, "filters")
		if err != nil {
			return err
		}
		if len(own) == 0 {
			continue // it goes through the manager's own filters
		}
		if err := e.chain(u, "filters", mode, port); err != nil {
			return err
		}
	}
	return nil
}

// chain puts the slots into the list of HTTP filters that is the field name of m.
func (e *editor) chain(m item, name string, mode chandler.Mode, port uint32) error {
	filters, err := messages(m.Node, m.path, name)
	if err != nil {
		return err
	}
	if len(filters) == 0 {
		e.warnEmpty(sub(m.path, name))
		return nil
	}
	chain := make([]Filter, len(filters))
	for i, f := range filters {
		if chain[i], err = httpFilter(f); err != nil {
			return err
		}
		if strings.HasPrefix(chain[i].Name, slotPrefix) {
			return problem(sub(f.path, "name"), "start the agent with the original configuration", "the name %s belongs to a slot", chandler.Quote(chain[i].Name))
		}
	}
	before := e.inHTTP(chain, mode, port)
	list := newSequence()
	for i, f := range filters {
		list.Content = append(list.Content, e.slotFilters(before[i])...)
		list.Content = append(list.Content, f.Node)
	}
	return set(m.Node, m.path, name, list)
}

// slotFilter is the filter that is a slot. Its listener waits, without end,
// until the agent has filled it: it must not open before what protects it is in
// force. If Envoy refuses what one slot is filled with it waits no longer for any
// of them: those that are empty still then deny, where without a default they
// would answer 500.
func slotFilter(s Slot) *yaml.Node {
	source := object{"resource_api_version": "V3", "initial_fetch_timeout": "0s", "ads": object{}}
	discovery := object{"config_source": source, "type_urls": slotTypes(s)}
	deny := object{"@type": typeURLPrefix + rbacType, "rules": object{}}
	switch {
	case s.Network: // without a configuration it closes connections anyway
	case s.Shared():
		discovery["default_config"] = object{
			"@type":                typeURLPrefix + filterChainType,
			"default_filter_chain": object{"filters": []any{object{"name": denyName, "typed_config": deny}}},
		}
	default:
		discovery["default_config"] = deny
	}
	return fromObject(object{"name": s.Name(), "config_discovery": discovery})
}

// denyName is the name of the denial in a slot that holds nothing yet.
const denyName = "deny"

// slotTypes are the types of all that a slot may hold.
func slotTypes(s Slot) []string {
	types := []string{filterChainType}
	switch {
	case s.Network:
		types = []string{networkRBACType, networkWasmType}
	case !s.Shared():
		types = []string{luaType, rbacType, wasmType}
	}
	for i := range types {
		types[i] = typeURLPrefix + types[i]
	}
	return types
}

// httpFilter reads what decides on a filter's place.
func httpFilter(f item) (Filter, error) {
	name, err := scalarText(f.Node, f.path, "name")
	if err != nil {
		return Filter{}, err
	}
	discovery, err := message(f.Node, f.path, "config_discovery")
	if err != nil {
		return Filter{}, err
	}
	if discovery != nil {
		types, err := typeURLs(discovery, sub(f.path, "config_discovery"))
		return Filter{name, strings.Join(types[:min(len(types), 1)], "")}, err
	}
	typed, err := message(f.Node, f.path, "typed_config")
	if err != nil || typed == nil {
		return Filter{Name: name}, err
	}
	body, kind, err := unwrap(item{typed, sub(f.path, "typed_config")})
	if err != nil || kind != matcherType || body.Node == nil {
		return Filter{name, kind}, err
	}
	// A filter that runs only for some requests is still a filter of its family.
	inner, err := message(body.Node, body.path, "extension_config")
	if err != nil || inner == nil {
		return Filter{name, kind}, err
	}
	typed, err = message(inner, sub(body.path, "extension_config"), "typed_config")
	if err != nil || typed == nil {
		return Filter{name, kind}, err
	}
	_, kind, err = unwrap(item{typed, sub(body.path, "extension_config.typed_config")})
	return Filter{name, kind}, err
}

func typeURLs(discovery *yaml.Node, path string) ([]string, error) {
	list, err := fieldOf(yaml.SequenceNode, discovery, path, "type_urls")
	if err != nil || list == nil {
		return nil, err
	}
	types := make([]string, len(list.Content))
	for i, n := range list.Content {
		types[i] = n.Value
	}
	return types, nil
}

// noneLeft refuses a connection manager in a place that was not looked into, for
// instance inside another filter.
func (e *editor) noneLeft(n *yaml.Node, path string) error {
	if n.Kind == yaml.SequenceNode {
		for i, c := range n.Content {
			if err := e.noneLeft(c, fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
		return nil
	}
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i].Value, n.Content[i+1]
		switch key {
		case "@type", "type_url", "typeUrl":
			if value.Kind == yaml.ScalarNode && isManagerType(value.Value) && !e.read[n] && !e.readInside(n) {
				return problem(path, "", "a connection manager of type %s stands where it cannot be given plugins", chandler.Quote(typeName(value.Value)))
			}
		}
		if err := e.noneLeft(value, sub(path, key)); err != nil {
			return err
		}
	}
	return nil
}

// readInside tells whether a TypedStruct's value was read.
func (e *editor) readInside(typedStruct *yaml.Node) bool {
	value, err := field(typedStruct, "", "value")
	return err == nil && value != nil && e.read[value]
}

func listenerMode(l item) (chandler.Mode, error) {
	direction, err := scalarText(l.Node, l.path, "traffic_direction")
	return modeOf(direction == "INBOUND" || direction == "1"), err
}

// listenerPort is the port of a listener's address; 0 when it has none.
func listenerPort(l item) (uint32, error) {
	socket, path, err := socketAddress(l)
	if err != nil || socket == nil {
		return 0, err
	}
	return number(socket, path, "port_value")
}

func socketAddress(l item) (*yaml.Node, string, error) {
	path := sub(l.path, "address")
	address, err := message(l.Node, l.path, "address")
	if err != nil || address == nil {
		return nil, path, err
	}
	socket, err := message(address, path, "socket_address")
	return socket, sub(path, "socket_address"), err
}

// listenerAddress is a listener's address as a part of its name.
func listenerAddress(l item) (string, error) {
	socket, path, err := socketAddress(l)
	if err != nil {
		return "", err
	}
	if socket == nil {
		return "local", nil
	}
	host, err := scalarText(socket, path, "address")
	if err != nil {
		return "", err
	}
	port, err := number(socket, path, "port_value")
	return fmt.Sprintf("%s_%d", host, port), err
}

// number reads a port in any form in which Envoy reads it; an absent one is 0.
func number(m *yaml.Node, path, name string) (uint32, error) {
	text, err := scalarText(m, path, name)
	if err != nil || text == "" {
		return 0, err
	}
	if n, err := strconv.ParseUint(text, 0, 32); err == nil {
		return uint32(n), nil
	}
	if f, err := strconv.ParseFloat(text, 64); err == nil && f >= 0 && f == math.Trunc(f) && f <= math.MaxUint32 {
		return uint32(f), nil
	}
	return 0, problem(sub(path, name), "", "%s is not a port", chandler.Quote(text))
}
