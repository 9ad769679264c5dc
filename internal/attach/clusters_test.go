package attach

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"chandler.dev/chandler/internal/testenv/module"
)

func leadsTo(typeURL string, body []byte) (all []string) {
	Clusters(typeURL, body, func(name string) { all = append(all, name) })
	slices.Sort(all)
	return all
}

// hostTo leads to clusters by each way that there is.
func hostTo(one, first, second string) *routev3.VirtualHost {
	to := func(a *routev3.RouteAction) *routev3.Route {
		return &routev3.Route{Action: &routev3.Route_Route{Route: a}}
	}
	return &routev3.VirtualHost{Name: "h", Routes: []*routev3.Route{
		to(&routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: one}}),
		to(&routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_ClusterHeader{ClusterHeader: "x-cluster"}}),
		to(&routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_WeightedClusters{WeightedClusters: &routev3.WeightedCluster{
			Clusters: []*routev3.WeightedCluster_ClusterWeight{{Name: first}, {ClusterHeader: "x-cluster"}, {Name: second}}}}}),
		{Action: &routev3.Route_Redirect{Redirect: &routev3.RedirectAction{HostRedirect: "x.example"}}},
		{Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 404}}},
	}}
}

// mirrorsTo are policies, of which one without a name goes by a header.
func mirrorsTo(clusters ...string) (all []*routev3.RouteAction_RequestMirrorPolicy) {
	for _, name := range clusters {
		all = append(all, &routev3.RouteAction_RequestMirrorPolicy{Cluster: name})
	}
	return all
}

// leadingListener leads to clusters by routes of its own and by connections.
func leadingListener() *listenerv3.Listener {
	manager := &hcmv3.HttpConnectionManager{RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
		RequestMirrorPolicies: mirrorsTo("f"), VirtualHosts: []*routev3.VirtualHost{hostTo("a", "b", "c")}}}}
	l := listenerWith(chainWith(typedFilter(packed(manager))),
		chainWith(typedFilter(packed(&tcpproxyv3.TcpProxy{ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: "d"}}))))
	l.DefaultFilterChain = chainWith(typedFilter(packed(&tcpproxyv3.TcpProxy{ClusterSpecifier: &tcpproxyv3.TcpProxy_WeightedClusters{
		WeightedClusters: &tcpproxyv3.TcpProxy_WeightedCluster{Clusters: []*tcpproxyv3.TcpProxy_WeightedCluster_ClusterWeight{{Name: "e"}}}}})))
	return l
}

// Routes lead to clusters wherever they stand, and so do connections.
func TestClusters(t *testing.T) {
	t.Parallel()
	table := &routev3.RouteConfiguration{Name: "r", VirtualHosts: []*routev3.VirtualHost{hostTo("a", "b", "c"), hostTo("d", "e", "f")}}
	for name, c := range map[string]struct {
		typeURL string
		body    []byte
		want    string
	}{
		"a route table":  {routeType, packed(table).Value, "a b c d e f"},
		"a virtual host": {hostType, packed(hostTo("a", "b", "c")).Value, "a b c"},
		"a listener":     {listenerType, packed(leadingListener()).Value, "a b c d e f"},
		"mirrors": {routeType, packed(&routev3.RouteConfiguration{RequestMirrorPolicies: mirrorsTo("a"), VirtualHosts: []*routev3.VirtualHost{{RequestMirrorPolicies: mirrorsTo("b", ""),
			Routes: []*routev3.Route{{Action: &routev3.Route_Route{Route: &routev3.RouteAction{RequestMirrorPolicies: mirrorsTo("c", "d")}}}}}}}).Value, "a b c d"},
		"of another type":       {clusterType, packed(table).Value, ""},
		"no message":            {routeType, []byte("\xff\xff"), ""},
		"routes from elsewhere": {listenerType, packed(listenerWith(chainWith(managerOf(router)))).Value, ""},
	} {
		if got := strings.Join(leadsTo(c.typeURL, c.body), " "); got != c.want {
			t.Errorf("%s leads to %q, want %q", name, got, c.want)
		}
	}
}

// Mirrors count because Envoy refuses a listener with a route table of its own that names one
// which is not there, wherever it does.
func TestEnvoyRefusesMirrors(t *testing.T) {
	t.Parallel()
	envoy := module.Envoy(t)
	for at, table := range map[string]*routev3.RouteConfiguration{
		"a route":        {VirtualHosts: []*routev3.VirtualHost{mirrored(nil, mirrorsTo("gone"))}},
		"a virtual host": {VirtualHosts: []*routev3.VirtualHost{mirrored(mirrorsTo("gone"), nil)}},
		"a table":        {RequestMirrorPolicies: mirrorsTo("gone"), VirtualHosts: []*routev3.VirtualHost{mirrored(nil, nil)}},
		"":               {VirtualHosts: []*routev3.VirtualHost{mirrored(mirrorsTo("there"), nil)}},
	} {
		l := listenerWith(chainWith(typedFilter(packed(&hcmv3.HttpConnectionManager{StatPrefix: "s", HttpFilters: []*hcmv3.HttpFilter{router},
			RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: table}}))))
		l.Name, l.Address = "l", &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: filepath.Join(t.TempDir(), "l")}}}
		text, err := protojson.Marshal(&bootstrapv3.Bootstrap{StaticResources: &bootstrapv3.Bootstrap_StaticResources{
			Listeners: []*listenerv3.Listener{l}, Clusters: []*clusterv3.Cluster{{Name: "there", LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: "there"}}}}})
		file := filepath.Join(t.TempDir(), "envoy.json")
		if err := errors.Join(err, os.WriteFile(file, text, 0o600)); err != nil {
			t.Fatal(err)
		}
		if ok, log := validate(t, envoy, file); ok != (at == "") || !ok && !strings.Contains(log, "unknown shadow cluster 'gone'") {
			t.Errorf("with a mirror of %q that is not there it takes it: %v\n%s", at, ok, log)
		}
	}
}

// mirrored is a host with one route, to a cluster that is there.
func mirrored(host, route []*routev3.RouteAction_RequestMirrorPolicy) *routev3.VirtualHost {
	return &routev3.VirtualHost{Name: "h", Domains: []string{"*"}, RequestMirrorPolicies: host, Routes: []*routev3.Route{{
		Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "there"}, RequestMirrorPolicies: route}}}}}
}

// FuzzClusters: whatever the bytes, where they lead stands in them.
func FuzzClusters(f *testing.F) {
	f.Add(packed(leadingListener()).Value)
	f.Add(packed(&routev3.RouteConfiguration{Name: "r", VirtualHosts: []*routev3.VirtualHost{hostTo("a", "b", "c")}}).Value)
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, typeURL := range []string{listenerType, routeType, hostType} {
			for _, name := range leadsTo(typeURL, body) {
				if name == "" || !bytes.Contains(body, []byte(name)) {
					t.Errorf("%q is not in it", name)
				}
			}
		}
	})
}
