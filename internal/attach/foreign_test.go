package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	matcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_web/v3"
	healthcheckv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/health_check/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	yaml "go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"chandler.dev/chandler"
)

// The listeners of other control planes, as these send them; the golden file shows the
// chains with the slots that they get.
func TestForeignListenersGolden(t *testing.T) {
	t.Parallel()
	for _, path := range inputs(t, "foreign") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			var b strings.Builder
			for _, l := range foreignListeners(t, path) {
				placed, err := PlaceSlots(packed(l), networkPlugins(l), false)
				if err != nil {
					t.Fatal(err)
				}
				var slotted listenerv3.Listener
				if err := placed.Resource.UnmarshalTo(&slotted); err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&b, "%s %s %s\n", l.Name, placed.Layout.Address, placed.Layout.Mode)
				for _, w := range placed.Warnings {
					fmt.Fprintf(&b, "warning: %s\n", w)
				}
				chains := slotted.FilterChains
				if slotted.DefaultFilterChain != nil {
					chains = append(slices.Clone(chains), slotted.DefaultFilterChain)
				}
				for _, c := range chains {
					describeChain(t, &b, c)
				}
			}
			golden(t, strings.TrimSuffix(path, ".yaml")+".golden", b.String())
		})
	}
}

// networkPlugins are slots of a NETWORK plugin for every site of a listener.
func networkPlugins(l *listenerv3.Listener) (own []Slot) {
	placed, err := PlaceSlots(packed(l), nil, false)
	if err != nil {
		return nil
	}
	for _, site := range placed.Layout.Sites {
		if site.Network {
			own = append(own, Slot{Mode: site.Mode, Port: site.Port, Network: true, Phase: chandler.PhaseAuthn, Plugin: everySlot[0].Plugin})
		}
	}
	return own
}

func describeChain(t *testing.T, b *strings.Builder, c *listenerv3.FilterChain) {
	t.Helper()
	fmt.Fprintf(b, "  chain %s port %d\n", c.Name, c.GetFilterChainMatch().GetDestinationPort().GetValue())
	for _, f := range c.Filters {
		var m hcmv3.HttpConnectionManager
		if f.GetTypedConfig() == nil || f.GetTypedConfig().UnmarshalTo(&m) != nil {
			fmt.Fprintf(b, "    %s\n", f.Name)
			continue
		}
		fmt.Fprintf(b, "    %s\n", f.Name)
		for _, h := range m.HttpFilters {
			fmt.Fprintf(b, "      %s\n", h.Name)
		}
	}
}

// foreignListeners reads a list of listeners.
func foreignListeners(t *testing.T, path string) (list []*listenerv3.Listener) {
	t.Helper()
	var trees []any
	if err := yaml.Unmarshal(read(t, path), &trees); err != nil {
		t.Fatal(err)
	}
	for _, tree := range trees {
		text, err := json.Marshal(tree)
		if err != nil {
			t.Fatal(err)
		}
		l := &listenerv3.Listener{}
		if err := (protojson.UnmarshalOptions{Resolver: shapes{protoregistry.GlobalTypes}}).Unmarshal(text, l); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		list = append(list, l)
	}
	return list
}

// shapes knows the types that are linked, and takes all others for messages of the shape
// of a TypedStruct: of Istio's own nothing but the name is needed.
type shapes struct{ *protoregistry.Types }

func (s shapes) FindMessageByURL(url string) (protoreflect.MessageType, error) {
	if known, err := s.Types.FindMessageByURL(url); err == nil {
		return known, nil
	}
	name := protoreflect.FullName(typeName(url))
	optional := descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String(string(name)), Package: proto.String(string(name.Parent())), Syntax: proto.String("proto3"),
		Dependency: []string{"google/protobuf/struct.proto"},
		MessageType: []*descriptorpb.DescriptorProto{{Name: proto.String(string(name.Name())), Field: []*descriptorpb.FieldDescriptorProto{
			{Name: proto.String("type_url"), Number: proto.Int32(1), Label: optional, Type: descriptorpb.FieldDescriptorProto_TYPE_STRING.Enum()},
			{Name: proto.String("value"), Number: proto.Int32(2), Label: optional, Type: descriptorpb.FieldDescriptorProto_TYPE_MESSAGE.Enum(), TypeName: proto.String(".google.protobuf.Struct")},
		}}},
	}, protoregistry.GlobalFiles)
	if err != nil {
		return nil, err
	}
	return dynamicpb.NewMessageType(file.Messages().Get(0)), nil
}

// In a waypoint's listeners nothing stands, and it is said why.
func TestWaypointListeners(t *testing.T) {
	t.Parallel()
	dc := upstreamConfig
	dc.Waypoint = true
	d, err := derive(t, "testdata/upstream/istio.json", dc)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range foreignListeners(t, "testdata/foreign/istio-hbone.yaml") {
		came := packed(l)
		placed, err := d.PlaceSlots(came, everySlot)
		var p *chandler.Problem
		if !errors.As(err, &p) || p.Code != chandler.CodeUnsupportedTarget || placed.Resource != came || placed.Layout.Name != l.Name || len(placed.Layout.Slots)+len(placed.Layout.Sites) > 0 {
			t.Errorf("%s: %+v, %v", l.Name, placed, err)
		}
	}
}

// A connection manager stands aside only if all that it can be asked it answers itself.
func TestAside(t *testing.T) {
	t.Parallel()
	answer := &routev3.Route{Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 200}}}
	onward := &routev3.Route{Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "c"}}}}
	tunnel := &routev3.Route{Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_ConnectMatcher_{ConnectMatcher: &routev3.RouteMatch_ConnectMatcher{}}}, Action: onward.Action}
	health, rdsOnly := httpFilterOf(&healthcheckv3.HealthCheck{}), &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: "r"}}
	table := func(routes ...*routev3.Route) *hcmv3.HttpConnectionManager {
		return &hcmv3.HttpConnectionManager{HttpFilters: []*hcmv3.HttpFilter{health, router}, StatPrefix: "s",
			RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{VirtualHosts: []*routev3.VirtualHost{
				{Name: "a", Domains: []string{"a"}}, {Name: "b", Domains: []string{"*"}, Routes: routes}}}}}
	}
	without := table(answer)
	without.HttpFilters = without.HttpFilters[1:]
	elsewhere := table(answer)
	elsewhere.RouteSpecifier = rdsOnly
	more := table(answer)
	more.GetRouteConfig().Vhds = &routev3.Vhds{}
	matched := table(answer)
	matched.GetRouteConfig().VirtualHosts[1].Matcher = &matcherv3.Matcher{}
	for name, c := range map[string]struct {
		manager  *hcmv3.HttpConnectionManager
		listener string
		aside    bool
	}{
		"answers all":                {table(answer, answer), "l", true},
		"has no routes":              {table(), "l", true},
		"one route leads on":         {table(answer, onward), "l", false},
		"it checks no health":        {without, "l", false},
		"routes from elsewhere":      {elsewhere, "l", false},
		"hosts from elsewhere":       {more, "l", false},
		"routes by a matcher":        {matched, "l", false},
		"Istio's tunnels":            {table(tunnel), "connect_terminate", true},
		"tunnels and other requests": {table(tunnel, onward), "connect_terminate", false},
		"somebody else's tunnels":    {table(tunnel), "l", false},
		"no tunnels":                 {without, "connect_terminate", false},
	} {
		l := listenerWith(chainWith(typedFilter(packed(c.manager))))
		l.Name = c.listener
		placed, err := PlaceSlots(packed(l), everySlot, false)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if aside := len(placed.Layout.Slots)+len(placed.Layout.Sites)+len(placed.Layout.Counted) == 0; aside != c.aside || aside != (len(placed.Warnings) == 1) {
			t.Errorf("%s: aside %t, want %t: %+v", name, aside, c.aside, placed)
		}
		if tree := asideTree(item{hcmTree(t, c.manager), ""}, c.listener); (tree != "") != c.aside {
			t.Errorf("%s in a file: %q", name, tree)
		}
	}
	// Beside one that serves it gets slots too: they share the chain.
	placed, err := PlaceSlots(packed(listenerWith(chainWith(typedFilter(packed(table(answer))), managerOf(router)))), nil, false)
	if err != nil || len(placed.Layout.Slots) != 4 {
		t.Errorf("%+v, %v", placed, err)
	}
}

func hcmTree(t *testing.T, m *hcmv3.HttpConnectionManager) *yaml.Node {
	t.Helper()
	text, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	root, _, err := parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return root
}
