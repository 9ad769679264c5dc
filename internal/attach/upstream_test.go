package attach

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	matchingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	basicauthv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/basic_auth/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	yaml "go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"

	"chandler.dev/chandler"
)

// A listener gets the same slots whether it comes from a file or from a control plane.
func TestPlaceSlotsAsDerive(t *testing.T) {
	t.Parallel()
	compared := 0
	for _, path := range inputs(t, "derive") {
		if filepath.Base(path) == "typedstruct.yaml" {
			continue // a manager as a struct is edited in files only
		}
		for _, older := range []bool{false, true} {
			dc := testConfig
			dc.NoSharedSlots = older
			d, err := derive(t, path, dc)
			if err != nil {
				t.Fatal(err)
			}
			own := everywhere(d)
			text, _, err := d.ListenersWith(own)
			if err != nil {
				t.Fatal(err)
			}
			var want struct {
				Resources []map[string]any `yaml:"resources"`
			}
			if err := yaml.Unmarshal(text, &want); err != nil {
				t.Fatal(err)
			}
			for i, template := range d.templates {
				var plain map[string]any
				if err := template.Decode(&plain); err != nil {
					t.Fatal(err)
				}
				from, ok := fromTree(plain)
				if !ok {
					continue // it holds types that only its Envoy knows
				}
				placed, err := PlaceSlots(packed(from), own, older)
				if err != nil {
					t.Fatalf("%s: %v", path, err)
				}
				expected, ok := fromTree(want.Resources[i])
				if got := asTree(t, placed.Resource); !ok || !reflect.DeepEqual(got, asTree(t, packed(expected))) {
					t.Errorf("%s: listener %d is\n%v\nfrom a file\n%v", path, i, got, asTree(t, packed(expected)))
				}
				for _, l := range []*Listener{&placed.Layout, &d.Layout[i]} {
					slices.SortStableFunc(l.Sites, Site.Compare)
				}
				if !reflect.DeepEqual(placed.Layout, d.Layout[i]) {
					t.Errorf("%s: layout of listener %d is\n%+v\nfrom a file\n%+v", path, i, placed.Layout, d.Layout[i])
				}
				compared++
			}
		}
	}
	if compared < 8 {
		t.Errorf("only %d listeners could be compared", compared)
	}
}

func fromTree(tree map[string]any) (*listenerv3.Listener, bool) {
	delete(tree, "@type")
	text, err := json.Marshal(tree)
	if err != nil {
		return nil, false
	}
	l := &listenerv3.Listener{}
	return l, protojson.Unmarshal(text, l) == nil
}

func asTree(t *testing.T, listener *anypb.Any) (tree any) {
	t.Helper()
	text, err := protojson.Marshal(listener)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	return tree
}

// Small pieces of listeners.

func httpFilterOf(m proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: "some name", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: packed(m)}}
}

func typedFilter(config *anypb.Any) *listenerv3.Filter {
	return &listenerv3.Filter{Name: "some name", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: config}}
}

func managerOf(filters ...*hcmv3.HttpFilter) *listenerv3.Filter {
	return typedFilter(packed(&hcmv3.HttpConnectionManager{StatPrefix: "web", HttpFilters: filters}))
}

func chainWith(filters ...*listenerv3.Filter) *listenerv3.FilterChain {
	return &listenerv3.FilterChain{Filters: filters}
}

func listenerWith(chains ...*listenerv3.FilterChain) *listenerv3.Listener {
	return &listenerv3.Listener{
		Name: "l", FilterChains: chains, TrafficDirection: corev3.TrafficDirection_INBOUND,
		Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: "::", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 8080},
		}}},
	}
}

var router = httpFilterOf(&routerv3.Router{})

// namesIn are the HTTP filters of a listener's first connection manager: the names of
// slots, the types of others.
func namesIn(t *testing.T, listener *anypb.Any) (names []string) {
	t.Helper()
	var l listenerv3.Listener
	if err := listener.UnmarshalTo(&l); err != nil {
		t.Fatal(err)
	}
	for _, f := range l.FilterChains[0].Filters {
		var m hcmv3.HttpConnectionManager
		if f.GetTypedConfig() == nil {
			names = append(names, f.Name)
		} else if f.GetTypedConfig().UnmarshalTo(&m) == nil {
			for _, f := range m.HttpFilters {
				if f.GetTypedConfig() != nil {
					names = append(names, typeName(f.GetTypedConfig().TypeUrl))
				} else {
					names = append(names, f.Name)
				}
			}
		}
	}
	return names
}

// A filter is known by its type also inside of a TypedStruct, of a condition and of both.
func TestPlaceSlotsKnowsFilters(t *testing.T) {
	t.Parallel()
	struct_ := func(kind string) *anypb.Any {
		value := protowire.AppendTag(nil, 1, protowire.BytesType)
		return &anypb.Any{TypeUrl: typeURLPrefix + xdsTypedStruct, Value: protowire.AppendString(value, typeURLPrefix+kind)}
	}
	under := func(config *anypb.Any) *anypb.Any {
		return packed(&matchingv3.ExtensionWithMatcher{ExtensionConfig: &corev3.TypedExtensionConfig{Name: "x", TypedConfig: config}})
	}
	for name, config := range map[string]*anypb.Any{
		"plain":              packed(&rbacv3.RBAC{}),
		"struct":             struct_(rbacType),
		"matcher":            under(packed(&rbacv3.RBAC{})),
		"struct in matcher":  under(struct_(rbacType)),
		"discovered":         nil,
		"with unknown bytes": {TypeUrl: typeURLPrefix + rbacType, Value: []byte("not a message")},
	} {
		filter := &hcmv3.HttpFilter{Name: "f", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: config}}
		if config == nil {
			filter.ConfigType = &hcmv3.HttpFilter_ConfigDiscovery{ConfigDiscovery: &corev3.ExtensionConfigSource{TypeUrls: []string{typeURLPrefix + rbacType}}}
		}
		placed, err := PlaceSlots(packed(listenerWith(chainWith(managerOf(httpFilterOf(&basicauthv3.BasicAuth{}), filter, router)))), nil, false)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		names := namesIn(t, placed.Resource)
		if at := slices.Index(names, "chandler/authz/server/8080"); len(names) != 7 || at != 2 || names[0] != "chandler/authn/server/8080" || names[4] != "chandler/stats/server/8080" {
			t.Errorf("%s: %q", name, names)
		}
	}
}

// What cannot be given slots passes as the very resource that came, with the field and
// the reason.
func TestPlaceSlotsRefuses(t *testing.T) {
	t.Parallel()
	good := managerOf(router)
	twice := func(l *listenerv3.Listener) *anypb.Any {
		a := packed(l)
		chain := packed(chainWith(good)).Value
		for range 2 {
			a.Value = protowire.AppendBytes(protowire.AppendTag(a.Value, listenerDefaultChain, protowire.BytesType), chain)
		}
		return a
	}
	named := &hcmv3.HttpFilter{Name: "chandler/authn/server/8080", ConfigType: router.ConfigType}
	discovered := &listenerv3.Filter{Name: "x", ConfigType: &listenerv3.Filter_ConfigDiscovery{ConfigDiscovery: &corev3.ExtensionConfigSource{}}}
	api := listenerWith(chainWith(good))
	api.ApiListener = &listenerv3.ApiListener{ApiListener: packed(&hcmv3.HttpConnectionManager{HttpFilters: []*hcmv3.HttpFilter{router}})}
	elsewhere := listenerWith(chainWith(good))
	elsewhere.FcdsConfig = &listenerv3.Listener_FcdsConfig{}
	for name, c := range map[string]struct {
		listener *anypb.Any
		says     string
	}{
		"another type":        {packed(&corev3.Address{}), "envoy.config.core.v3.Address"},
		"no message":          {&anypb.Any{TypeUrl: listenerType, Value: []byte{0xff}}, "no message of protocol buffers"},
		"API":                 {packed(api), "api_listener: "},
		"chains of elsewhere": {packed(elsewhere), "fcds_config: "},
		"a chain twice":       {twice(listenerWith()), "default_filter_chain: the field is given twice"},
		"a manager that cannot be decoded": {packed(listenerWith(chainWith(good), chainWith(typedFilter(&anypb.Any{TypeUrl: typeURLPrefix + hcmType, Value: []byte{0x2a, 0xff}})))),
			"filter_chains[1].filters[0].typed_config: "},
		"a filter that cannot be decoded": {packed(listenerWith(chainWith(managerOf(router, &hcmv3.HttpFilter{Name: "m", ConfigType: &hcmv3.HttpFilter_TypedConfig{
			TypedConfig: &anypb.Any{TypeUrl: typeURLPrefix + matcherType, Value: []byte{0xff}}}})))), "filter_chains[0].filters[0].typed_config.http_filters[1].typed_config: "},
		"a manager as a struct": {packed(listenerWith(chainWith(typedFilter(&anypb.Any{TypeUrl: typeURLPrefix + udpaTypedStruct,
			Value: protowire.AppendString([]byte{1<<3 | 2}, typeURLPrefix+hcmType)})))), "filter_chains[0].filters[0].typed_config: "},
		"a kin of the manager": {packed(listenerWith(chainWith(typedFilter(&anypb.Any{TypeUrl: typeURLPrefix + "envoy.x.v3.MobileHttpConnectionManager"})))), "MobileHttpConnectionManager"},
		"a manager elsewhere":  {packed(listenerWith(chainWith(discovered))), "filter_chains[0].filters[0].config_discovery: "},
		"a manager of no type": {packed(listenerWith(chainWith(&listenerv3.Filter{Name: hcmFilterName}))), "filter_chains[0].filters[0].typed_config: "},
		"a slot's name":        {packed(listenerWith(chainWith(managerOf(named, router)))), "http_filters[0].name: "},
	} {
		placed, err := PlaceSlots(c.listener, everySlot, false)
		var p *chandler.Problem
		if !errors.As(err, &p) || p.Code != chandler.CodeEnvoyConfig || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
		if placed.Resource != c.listener || len(placed.Layout.Slots) > 0 || len(placed.Layout.Sites) > 0 {
			t.Errorf("%s: it does not pass as it is: %+v", name, placed)
		}
	}
}

// A listener into which nothing belongs is the very resource that came.
func TestPlaceSlotsNothing(t *testing.T) {
	t.Parallel()
	tcp := packed(listenerWith(chainWith(typedFilter(packed(&tcpproxyv3.TcpProxy{StatPrefix: "x"})))))
	placed, err := PlaceSlots(tcp, nil, false)
	if err != nil || placed.Resource != tcp || len(placed.Layout.Sites) != 1 || placed.Layout.Address != "[::]:8080" {
		t.Errorf("%+v, %v", placed, err)
	}
	bare := packed(listenerWith(chainWith(managerOf())))
	placed, err = PlaceSlots(bare, nil, false)
	if err != nil || placed.Resource != bare || len(placed.Warnings) != 1 || !strings.Contains(placed.Warnings[0], "filter_chains[0].filters[0].typed_config.http_filters") {
		t.Errorf("%+v, %v", placed, err)
	}
	datagrams := listenerWith(chainWith(managerOf(router)))
	datagrams.UdpListenerConfig = &listenerv3.UdpListenerConfig{}
	placed, err = PlaceSlots(packed(datagrams), everySlot, false)
	if got := namesIn(t, placed.Resource); err != nil || len(got) != 5 || len(placed.Layout.Sites) != 0 || len(placed.Warnings) != 1 {
		t.Errorf("of datagrams: %q %+v, %v", got, placed, err)
	}
}

// The port of a chain's match wins over the listener's, and slots of NETWORK plugins stand
// before the connection manager even if something follows it. An upgrade without a
// list of its own is nothing to warn of.
func TestPlaceSlotsOfChain(t *testing.T) {
	t.Parallel()
	manager := typedFilter(packed(&hcmv3.HttpConnectionManager{HttpFilters: []*hcmv3.HttpFilter{router},
		UpgradeConfigs: []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}}}))
	other := typedFilter(packed(&tcpproxyv3.TcpProxy{}))
	chain := chainWith(other, manager, other)
	chain.FilterChainMatch = &listenerv3.FilterChainMatch{DestinationPort: wrapperspb.UInt32(9090)}
	own := everySlot[0]
	own.Port = 9090
	placed, err := PlaceSlots(packed(listenerWith(chain)), []Slot{own, everySlot[0]}, false)
	if err != nil || len(placed.Warnings) > 0 {
		t.Fatal(placed.Warnings, err)
	}
	want := []string{own.Name()}
	for _, phase := range chandler.Phases() {
		want = append(want, Slot{Phase: phase, Mode: chandler.ModeServer, Port: 9090}.Name())
	}
	if got := namesIn(t, placed.Resource); !slices.Equal(got, append(want, "envoy.extensions.filters.http.router.v3.Router")) {
		t.Errorf("%q", got)
	}
	var l listenerv3.Listener
	if err := placed.Resource.UnmarshalTo(&l); err != nil || l.FilterChains[0].Filters[1].Name != own.Name() {
		t.Errorf("%v, %v", l.FilterChains[0].Filters, err)
	}
}

// Fields in another order than Envoy's libraries write them, unknown ones and lengths
// that are written too long stay as they are.
func TestPlaceSlotsKeepsBytes(t *testing.T) {
	t.Parallel()
	field := func(num protowire.Number, content []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), content)
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	long := []byte{0x1a, 0x83, 0x80, 0x00, 0x3a, 0x01, 'n'} // a chain that has a name only
	unknown := field(5000, []byte("unknown"))
	filter := field(managerFilters, packed(router).Value)
	manager := func(slots ...[]byte) []byte {
		return join(unknown, field(managerStats, []byte("s")), join(slots...), filter, unknown)
	}
	listener := func(m []byte) []byte {
		typed := join(field(anyValue, m), field(anyType, []byte(typeURLPrefix+hcmType)))
		chain := field(listenerChains, join(unknown, field(chainFilters, join(field(filterTyped, typed), unknown)), unknown))
		return join(field(4999, []byte("x")), chain, unknown, long, field(listenerName, []byte("name")))
	}
	var slots [][]byte
	for _, phase := range chandler.Phases() {
		slots = append(slots, field(managerFilters, wireSlot(Slot{Phase: phase, Mode: chandler.ModeClient})))
	}
	placed, err := PlaceSlots(&anypb.Any{TypeUrl: listenerType, Value: listener(manager())}, nil, false)
	if err != nil || !bytes.Equal(placed.Resource.Value, listener(manager(slots...))) {
		t.Errorf("%v\n%q, want\n%q", err, placed.Resource.Value, listener(manager(slots...)))
	}
}

var everySlot = []Slot{
	{Phase: chandler.PhaseStats, Mode: chandler.ModeServer, Port: 8080, Network: true, Plugin: chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: "n"}},
	{Phase: chandler.PhaseAuthz, Mode: chandler.ModeServer, Port: 8080, Plugin: chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: "h"}},
	{Phase: chandler.PhaseAuthn, Mode: chandler.ModeServer, Port: 8080, Plugin: chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: "h2"}},
}

// drawListener makes up a listener.
func drawListener(t *rapid.T) *listenerv3.Listener {
	unknown := func(m proto.Message) {
		if rapid.Bool().Draw(t, "unknown") {
			b := protowire.AppendTag(nil, 9000, protowire.BytesType)
			m.ProtoReflect().SetUnknown(protowire.AppendBytes(b, rapid.SliceOf(rapid.Byte()).Draw(t, "bytes")))
		}
	}
	kinds := []string{rbacType, wasmType, "x.jwt_authn.v3.Jwt", "stats.PluginConfig", "x.cors.v3.Cors"}
	httpFilters := func(least int) (filters []*hcmv3.HttpFilter) {
		for range rapid.IntRange(least, 5).Draw(t, "filters") {
			f := &hcmv3.HttpFilter{Name: rapid.StringMatching("[a-z/]*").Draw(t, "name"), IsOptional: rapid.Bool().Draw(t, "optional")}
			kind := typeURLPrefix + rapid.SampledFrom(kinds).Draw(t, "kind")
			if rapid.Bool().Draw(t, "discovered") {
				f.ConfigType = &hcmv3.HttpFilter_ConfigDiscovery{ConfigDiscovery: &corev3.ExtensionConfigSource{TypeUrls: []string{kind}}}
			} else {
				f.ConfigType = &hcmv3.HttpFilter_TypedConfig{TypedConfig: &anypb.Any{TypeUrl: kind, Value: rapid.SliceOf(rapid.Byte()).Draw(t, "config")}}
			}
			unknown(f)
			filters = append(filters, f)
		}
		return filters
	}
	chain := func() *listenerv3.FilterChain {
		c := &listenerv3.FilterChain{Name: rapid.StringMatching("[a-z]*").Draw(t, "chain")}
		if port := rapid.Uint32Range(0, 2).Draw(t, "port"); port > 0 {
			c.FilterChainMatch = &listenerv3.FilterChainMatch{DestinationPort: wrapperspb.UInt32(port)}
		}
		for range rapid.IntRange(0, 3).Draw(t, "network filters") {
			f := typedFilter(&anypb.Any{TypeUrl: typeURLPrefix + "x.v3.Other", Value: rapid.SliceOf(rapid.Byte()).Draw(t, "config")})
			if rapid.Bool().Draw(t, "manager") {
				m := &hcmv3.HttpConnectionManager{StatPrefix: rapid.StringMatching("[a-z]*").Draw(t, "stats"), HttpFilters: httpFilters(0)}
				for range rapid.IntRange(0, 2).Draw(t, "upgrades") {
					m.UpgradeConfigs = append(m.UpgradeConfigs, &hcmv3.HttpConnectionManager_UpgradeConfig{UpgradeType: "w", Filters: httpFilters(0)})
				}
				unknown(m)
				f = typedFilter(packed(m))
			}
			unknown(f)
			c.Filters = append(c.Filters, f)
		}
		unknown(c)
		return c
	}
	l := listenerWith()
	for range rapid.IntRange(0, 3).Draw(t, "chains") {
		l.FilterChains = append(l.FilterChains, chain())
	}
	if rapid.Bool().Draw(t, "default") {
		l.DefaultFilterChain = chain()
	}
	unknown(l)
	return l
}

// withoutSlots takes the slots out again, by Envoy's own messages.
func withoutSlots(t *rapid.T, listener *anypb.Any) []byte {
	var l listenerv3.Listener
	if err := listener.UnmarshalTo(&l); err != nil {
		t.Fatal(err)
	}
	isSlot := func(f *hcmv3.HttpFilter) bool { return strings.HasPrefix(f.Name, slotPrefix) }
	chains := l.FilterChains
	if l.DefaultFilterChain != nil {
		chains = append(slices.Clone(chains), l.DefaultFilterChain)
	}
	for _, c := range chains {
		c.Filters = slices.DeleteFunc(c.Filters, func(f *listenerv3.Filter) bool { return strings.HasPrefix(f.Name, slotPrefix) })
		for _, f := range c.Filters {
			var m hcmv3.HttpConnectionManager
			if f.GetTypedConfig().UnmarshalTo(&m) != nil {
				continue
			}
			m.HttpFilters = slices.DeleteFunc(m.HttpFilters, isSlot)
			for _, u := range m.UpgradeConfigs {
				u.Filters = slices.DeleteFunc(u.Filters, isSlot)
			}
			f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: packed(&m)}
		}
	}
	return packed(&l).Value
}

// Whatever the listener: without the slots it is byte for byte what came; to put slots
// in twice is to put them in once; and slots of other plugins take the places of those
// that are there.
func TestPlaceSlotsHolds(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		listener := packed(drawListener(t))
		noShared := rapid.Bool().Draw(t, "no shared slots")
		before := bytes.Clone(listener.Value)
		once, err := PlaceSlots(listener, everySlot, noShared)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(listener.Value, before) {
			t.Fatal("what came was written to")
		}
		if got := withoutSlots(t, once.Resource); !bytes.Equal(got, listener.Value) {
			t.Fatalf("without slots\n%q, came\n%q", got, listener.Value)
		}
		twice, err := PlaceSlots(once.Resource, everySlot, noShared)
		if err != nil || !bytes.Equal(twice.Resource.Value, once.Resource.Value) || !reflect.DeepEqual(twice.Layout, once.Layout) {
			t.Fatalf("twice\n%+v, once\n%+v, %v", twice, once, err)
		}
		fewer, err := PlaceSlots(listener, everySlot[:1], !noShared)
		if err != nil {
			t.Fatal(err)
		}
		again, err := PlaceSlots(once.Resource, everySlot[:1], !noShared)
		if err != nil || !bytes.Equal(again.Resource.Value, fewer.Resource.Value) {
			t.Fatalf("anew\n%+v, afresh\n%+v, %v", again, fewer, err)
		}
	})
}

// FuzzPlaceSlots: any bytes pass as they are with a reason, or come out as a listener
// that comes out the same the second time.
func FuzzPlaceSlots(f *testing.F) {
	f.Add(packed(listenerWith(chainWith(managerOf(httpFilterOf(&rbacv3.RBAC{}), router)), chainWith(typedFilter(packed(&tcpproxyv3.TcpProxy{}))))).Value)
	slotted, err := PlaceSlots(packed(listenerWith(chainWith(managerOf(router)))), everySlot, false)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(slotted.Resource.Value)
	f.Add([]byte{0x1a, 0x83, 0x80, 0x00, 0x3a, 0x01, 'n'})
	f.Fuzz(func(t *testing.T, value []byte) {
		in := &anypb.Any{TypeUrl: listenerType, Value: value}
		placed, err := PlaceSlots(in, everySlot, false)
		if err != nil {
			var p *chandler.Problem
			if !errors.As(err, &p) || p.Message == "" || len(p.Error()) > 8<<10 || placed.Resource != in {
				t.Fatalf("not named, or changed: %v", err)
			}
			return
		}
		again, err := PlaceSlots(placed.Resource, everySlot, false)
		if err != nil || !bytes.Equal(again.Resource.Value, placed.Resource.Value) {
			t.Fatalf("the second time %v\n%q, first\n%q", err, again.Resource.Value, placed.Resource.Value)
		}
		var l listenerv3.Listener
		if proto.Unmarshal(value, &l) == nil && proto.Unmarshal(placed.Resource.Value, &l) != nil {
			t.Fatalf("no listener any more: %q", placed.Resource.Value)
		}
	})
}

// A listener of 1,000 chains, as one behind an interception has them.
func BenchmarkPlaceSlots(b *testing.B) {
	var chains []*listenerv3.FilterChain
	for i := range 1000 {
		m := &hcmv3.HttpConnectionManager{StatPrefix: fmt.Sprintf("inbound_%d", i), HttpFilters: []*hcmv3.HttpFilter{httpFilterOf(&rbacv3.RBAC{}), router}}
		c := chainWith(typedFilter(packed(m)))
		c.FilterChainMatch = &listenerv3.FilterChainMatch{DestinationPort: wrapperspb.UInt32(uint32(i%10 + 1))}
		chains = append(chains, c)
	}
	listener := packed(listenerWith(chains...))
	b.ReportAllocs()
	var placed Placed
	for b.Loop() {
		var err error
		if placed, err = PlaceSlots(listener, nil, false); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(listener.Value)), "bytes-in")
	b.ReportMetric(float64(len(placed.Resource.Value)), "bytes-out")
}
