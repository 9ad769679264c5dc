package attach

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// waitsFor gives what Names tells, as "kind name".
func waitsFor(typeURL string, body []byte) (all []string) {
	Names(typeURL, body, func(typeURL, name string) {
		all = append(all, typeURL[strings.LastIndexByte(typeURL, '.')+1:]+" "+name)
	})
	return all
}

// namingListener has a route, filters of both kinds and a secret from elsewhere, each from
// that source.
func namingListener(t testing.TB, source *corev3.ConfigSource) []byte {
	discovery := &corev3.ExtensionConfigSource{ConfigSource: source, TypeUrls: []string{"type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer"}}
	manager := packAny(t, &hcmv3.HttpConnectionManager{
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: source, RouteConfigName: "r"}},
		HttpFilters:    []*hcmv3.HttpFilter{{Name: "http", ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{ConfigDiscovery: discovery}}},
	})
	tls := packAny(t, &tlsv3.DownstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{Name: "certificate", SdsConfig: source}},
		ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: "authority", SdsConfig: source}}},
	}})
	chain := &listenerv3.FilterChain{
		Filters: []*listenerv3.Filter{{Name: "network", ConfigType: &listenerv3.Filter_ConfigDiscovery{ConfigDiscovery: discovery}},
			{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: manager}}},
		TransportSocket: &corev3.TransportSocket{Name: "tls", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: tls}},
	}
	return packAny(t, &listenerv3.Listener{Name: "l", FilterChains: []*listenerv3.FilterChain{chain}, DefaultFilterChain: &listenerv3.FilterChain{
		Filters: []*listenerv3.Filter{{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packAny(t, &hcmv3.HttpConnectionManager{
			RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: source, RouteConfigName: "other"}}})}}}}}).Value
}

func packAny(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Listeners and clusters name what Envoy will ask its control plane for, and not what comes
// from files or from a source of secrets of their own.
func TestNames(t *testing.T) {
	t.Parallel()
	ads := &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}
	api := &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_ApiConfigSource{ApiConfigSource: &corev3.ApiConfigSource{ApiType: corev3.ApiConfigSource_GRPC}}}
	file := &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_PathConfigSource{PathConfigSource: &corev3.PathConfigSource{Path: "/x"}}}
	cluster := func(source *corev3.ConfigSource, service string, kind clusterv3.Cluster_DiscoveryType) []byte {
		return packAny(t, &clusterv3.Cluster{Name: "c", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: kind},
			EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: source, ServiceName: service}}).Value
	}
	for name, c := range map[string]struct {
		typeURL string
		body    []byte
		want    []string
	}{
		"over ADS": {listenerType, namingListener(t, ads), []string{"TypedExtensionConfig network", "RouteConfiguration r", "TypedExtensionConfig http",
			"Secret certificate", "Secret authority", "RouteConfiguration other"}},
		"by streams of their own":    {listenerType, namingListener(t, api), []string{"TypedExtensionConfig network", "RouteConfiguration r", "TypedExtensionConfig http", "RouteConfiguration other"}},
		"from files":                 {listenerType, namingListener(t, file), nil},
		"endpoints":                  {clusterType, cluster(ads, "", clusterv3.Cluster_EDS), []string{"ClusterLoadAssignment c"}},
		"endpoints of another name":  {clusterType, cluster(api, "s", clusterv3.Cluster_EDS), []string{"ClusterLoadAssignment s"}},
		"endpoints of a file":        {clusterType, cluster(file, "", clusterv3.Cluster_EDS), nil},
		"a cluster with endpoints":   {clusterType, cluster(ads, "", clusterv3.Cluster_STATIC), nil},
		"of another type":            {routeType, namingListener(t, ads), nil},
		"what is no message at all":  {listenerType, []byte("\xff\xff\xff"), nil},
		"a slot is nobody's to send": {listenerType, placedIn(t, namingListener(t, file)), nil},
	} {
		got := waitsFor(c.typeURL, c.body)
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func placedIn(t *testing.T, listener []byte) []byte {
	placed, err := PlaceSlots(&anypb.Any{TypeUrl: listenerType, Value: listener}, nil, false)
	if err != nil || bytes.Equal(placed.Resource.Value, listener) {
		t.Fatal("no slots are in it: ", err)
	}
	return placed.Resource.Value
}

// FuzzNames: whatever the bytes, what is named stands in them.
func FuzzNames(f *testing.F) {
	ads := &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}
	f.Add(namingListener(f, ads))
	f.Add(packAny(f, &clusterv3.Cluster{Name: "c", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads}}).Value)
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, typeURL := range []string{listenerType, clusterType} {
			Names(typeURL, body, func(kind, name string) {
				if !bytes.Contains(body, []byte(name)) {
					t.Errorf("%s %q is not in it", kind, name)
				}
			})
		}
	})
}
