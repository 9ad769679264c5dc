package attach

import (
	"bytes"
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterchainv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/filter_chain/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"chandler.dev/chandler"
)

// Placed is a listener of an upstream with slots in it.
type Placed struct {
	// Resource is the listener to hand on. It is the very one that came when nothing
	// belongs into it, or when it cannot be given slots.
	Resource *anypb.Any
	// Layout are its places; for one that cannot be given slots it has none.
	Layout Listener
	// Warnings are sentences for a person about what gets no plugins in it.
	Warnings []string
}

// PlaceSlots puts slots into a listener that another control plane sent, by the same
// rules as Derive does into those of a file: shared ones unless noShared is set, and
// those of one plugin in own, at their sites and in their order there.
//
// The listener is read only as far as its lists of filters. Everything else stays
// byte for byte as it is, fields and extensions that nobody here knows included. The
// same bytes give the same bytes, and slots that are there already are put anew: a
// listener that went through once comes out as it came in.
//
// A listener that cannot be given slots with certainty passes as it is, and the error,
// a *chandler.Problem with the path of the field, says why: it runs no plugins, and to
// tell that is the caller's matter. So does an API listener, which Envoy keeps for
// libraries, and one whose filter chains come from elsewhere.
func PlaceSlots(listener *anypb.Any, own []Slot, noShared bool) (Placed, error) {
	placed := Placed{Resource: listener}
	if typeName(listener.GetTypeUrl()) != typeName(listenerType) {
		return placed, problem("", "", "a resource of type %s is no listener", chandler.Quote(typeName(listener.GetTypeUrl())))
	}
	e := &wireEditor{plan: newPlan(!noShared, own), filters: map[Slot][]byte{}}
	edited, err := e.listener(listener.GetValue())
	if len(e.layout) > 0 {
		placed.Layout = e.layout[0]
	}
	if err != nil {
		placed.Layout.Slots, placed.Layout.Sites, placed.Layout.Counted = nil, nil, nil
		return placed, err
	}
	placed.Warnings = e.warnings
	if !bytes.Equal(edited, listener.GetValue()) {
		placed.Resource = &anypb.Any{TypeUrl: listener.GetTypeUrl(), Value: edited}
	}
	return placed, nil
}

// The fields that are read, by their numbers. A filter of a chain and an HTTP filter
// have the same ones.
const (
	listenerName, listenerAddressField, listenerChains, listenerDirection protowire.Number = 1, 2, 3, 16
	listenerUDP, listenerAPI, listenerDefaultChain, listenerFCDS          protowire.Number = 18, 19, 25, 36

	chainMatch, chainFilters, matchPort          protowire.Number = 1, 3, 8
	filterName, filterTyped, filterDiscovery     protowire.Number = 1, 4, 5
	discoveryTypes, extensionTyped, matcherInner protowire.Number = 4, 2, 2
	anyType, anyValue                            protowire.Number = 1, 2 // a TypedStruct's, too

	managerStats, managerFilters, managerUpgrades, upgradeFilters protowire.Number = 2, 5, 23, 2
	listenerLogs, managerLogs, tcpProxyLogs                       protowire.Number = 22, 13, 5
)

// wireEditor puts slots into a listener that is protobuf.
type wireEditor struct {
	plan
	udp     bool
	filters map[Slot][]byte // each slot as a filter, made once
}

func (e *wireEditor) listener(b []byte) ([]byte, error) {
	mode, port, err := e.head(b)
	if err != nil {
		return nil, err
	}
	chains := 0
	return rewrite(b, nil, func(s *scanner, out []byte) ([]byte, error) {
		var at *place
		switch s.num {
		case listenerChains:
			at = s.at.item("filter_chains", chains)
			chains++
		case listenerDefaultChain:
			at = s.at.field("default_filter_chain")
		default:
			return s.keep(out), nil
		}
		chain, err := e.filterChain(s.bytes(at.name), at, mode, port)
		return s.replace(out, chain), err
	})
}

// head reads what holds for the whole listener, and refuses those that get no slots.
func (e *wireEditor) head(b []byte) (chandler.Mode, uint32, error) {
	l := Listener{Mode: modeOf(false)}
	var address corev3.Address
	var refused error
	s := scan(b, nil)
	for s.next() {
		switch s.num {
		case listenerName:
			l.Name = string(s.one("name"))
		case listenerAddressField:
			if err := proto.Unmarshal(s.one("address"), &address); err != nil {
				s.fail("address", "the address cannot be read")
			}
		case listenerDirection:
			l.Mode = modeOf(s.number("traffic_direction") == uint64(corev3.TrafficDirection_INBOUND))
		case listenerChains:
			s.bytes("filter_chains")
		case listenerDefaultChain:
			s.one("default_filter_chain")
		case listenerUDP:
			e.udp = true
		case listenerAPI:
			refused = problem("api_listener", "", "an API listener runs no plugins")
		case listenerFCDS:
			refused = problem("fcds_config", "", "filter chains that come from elsewhere cannot be given plugins")
		}
	}
	l.Port = address.GetSocketAddress().GetPortValue()
	l.Address = address.GetPipe().GetPath()
	if socket := address.GetSocketAddress(); socket != nil {
		l.Address = hostPort(socket.GetAddress(), strconv.FormatUint(uint64(l.Port), 10))
	}
	e.enter(l)
	if s.err != nil || refused != nil {
		return "", 0, firstOf(s.err, refused)
	}
	if e.udp {
		e.warnDatagrams("the listener")
	}
	return l.Mode, l.Port, nil
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// filterChain gives slots to a chain. The port that its match names wins: behind an
// interception all ports share a listener.
func (e *wireEditor) filterChain(b []byte, at *place, mode chandler.Mode, port uint32) ([]byte, error) {
	var filters []wireFilter
	var whys []string
	s := scan(b, at)
	for s.next() {
		switch s.num {
		case chainMatch:
			own, err := destinationPort(s.one("filter_chain_match"), at.field("filter_chain_match"))
			if err != nil {
				return nil, err
			}
			if own != 0 {
				port = own
			}
		case chainFilters:
			at := at.item("filters", len(filters))
			f, err := readFilter(s.bytes("filters"), at)
			if err == nil {
				err = f.checkManager(at)
			}
			if err != nil {
				return nil, err
			}
			filters = append(filters, f)
			if f.manager() {
				whys = append(whys, asideWire(f.config, e.layout[len(e.layout)-1].Name))
			}
		}
	}
	if s.err != nil {
		return nil, s.err
	}
	e.begin(whys, at.String)
	return e.chainOf(b, at, filters, mode, port)
}

// chainOf writes a chain anew whose filters are read.
func (e *wireEditor) chainOf(b []byte, at *place, filters []wireFilter, mode chandler.Mode, port uint32) ([]byte, error) {
	terminal := -1
	for i, f := range filters {
		if !f.slot && (terminal < 0 || f.manager() || !filters[terminal].manager()) {
			terminal = i
		}
	}
	i := 0
	return rewrite(b, at, func(s *scanner, out []byte) ([]byte, error) {
		if s.num != chainFilters {
			return s.keep(out), nil
		}
		f, at := filters[i], at.item("filters", i)
		if i == terminal && !e.udp {
			out = e.put(out, chainFilters, e.inNetwork(mode, port))
		}
		i++
		switch {
		case f.slot:
			return out, nil
		case !f.manager():
			return s.keep(out), nil
		}
		edited, err := f.edit(s.bytes("filters"), at, func(manager []byte, at *place) ([]byte, error) {
			return e.manager(manager, at, mode, port)
		})
		return s.replace(out, edited), err
	})
}

// manager gives slots to a connection manager, and to the filters of its upgrades that
// have a list of their own and would pass by.
func (e *wireEditor) manager(b []byte, at *place, mode chandler.Mode, port uint32) ([]byte, error) {
	upgrades := 0
	s := scan(b, at)
	for s.next() {
		switch s.num {
		case managerStats:
			e.counted(string(s.one("stat_prefix")), mode, port)
		case managerUpgrades:
			upgrades++
		}
	}
	if s.err != nil {
		return nil, s.err
	}
	b, err := e.httpFilters(b, managerFilters, at, "http_filters", mode, port, false)
	if err != nil || upgrades == 0 {
		return b, err
	}
	upgrades = 0
	return rewrite(b, at, func(s *scanner, out []byte) ([]byte, error) {
		if s.num != managerUpgrades {
			return s.keep(out), nil
		}
		at := at.item("upgrade_configs", upgrades)
		upgrades++
		upgrade := s.bytes("upgrade_configs")
		if s.err != nil {
			return nil, s.err
		}
		edited, err := e.httpFilters(upgrade, upgradeFilters, at, "filters", mode, port, true)
		return s.replace(out, edited), err
	})
}

// httpFilters puts slots into the list of HTTP filters that is a field of message b. An
// optional list that is empty says that another one holds.
func (e *wireEditor) httpFilters(b []byte, num protowire.Number, at *place, name string, mode chandler.Mode, port uint32, optional bool) ([]byte, error) {
	var chain []Filter
	var slots []bool
	s := scan(b, at)
	for s.next() {
		if s.num != num {
			continue
		}
		f, err := readFilter(s.bytes(name), at.item(name, len(slots)))
		if err != nil {
			return nil, err
		}
		if slots = append(slots, f.slot); !f.slot {
			chain = append(chain, f.Filter)
		}
	}
	if s.err != nil {
		return nil, s.err
	}
	if len(chain) == 0 && !optional {
		e.warnEmpty(at.field(name).String())
	}
	if len(slots) == 0 {
		return b, nil
	}
	before := e.inHTTP(chain, mode, port)
	i, user := 0, 0
	return rewrite(b, at, func(s *scanner, out []byte) ([]byte, error) {
		if s.num != num {
			return s.keep(out), nil
		}
		if i++; slots[i-1] {
			return out, nil
		}
		out = e.put(out, num, before[user])
		user++
		return s.keep(out), nil
	})
}

// put appends slots as filters of the list num.
func (e *wireEditor) put(out []byte, num protowire.Number, slots []Slot) []byte {
	for _, slot := range slots {
		if e.filters[slot] == nil {
			e.filters[slot] = wireSlot(slot)
		}
		out = protowire.AppendTag(out, num, protowire.BytesType)
		out = protowire.AppendBytes(out, e.filters[slot])
	}
	return out
}

// wireSlot is the filter that is a slot: what slotFilter is in a tree.
func wireSlot(s Slot) []byte {
	source := &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
		InitialFetchTimeout:   durationpb.New(0),
	}
	discovery := &corev3.ExtensionConfigSource{ConfigSource: source, TypeUrls: slotTypes(s)}
	switch {
	case s.Network:
	case s.Shared():
		discovery.DefaultConfig = packed(&filterchainv3.FilterChainConfig{DefaultFilterChain: &filterchainv3.FilterChain{
			Filters: []*corev3.TypedExtensionConfig{{Name: denyName, TypedConfig: denyAll()}},
		}})
	default:
		discovery.DefaultConfig = denyAll()
	}
	filter := protowire.AppendTag(nil, filterName, protowire.BytesType)
	filter = protowire.AppendString(filter, s.Name())
	filter = protowire.AppendTag(filter, filterDiscovery, protowire.BytesType)
	return protowire.AppendBytes(filter, packed(discovery).Value)
}
