package upstream

import (
	"fmt"
	"net"
	"strconv"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// The type URLs of what is served.
const (
	Listeners = resource.ListenerType
	Routes    = resource.RouteType
	Clusters  = resource.ClusterType
	Endpoints = resource.EndpointType
	Secrets   = resource.SecretType
	Runtimes  = resource.RuntimeType
	// Extensions are filters by ECDS.
	Extensions = resource.ExtensionConfigType
)

// Resources are Listeners, RouteConfigurations, Clusters, ClusterLoadAssignments,
// Secrets, Runtimes and TypedExtensionConfigs, in any order.
type Resources []types.Resource

// byType gives also types without a resource: a client must be told that there is none.
func (r Resources) byType() map[string][]types.Resource {
	all := map[string][]types.Resource{Listeners: nil, Routes: nil, Clusters: nil, Endpoints: nil, Secrets: nil, Runtimes: nil, Extensions: nil}
	for _, m := range r {
		url := resource.APITypePrefix + string(proto.MessageName(m))
		all[url] = append(all[url], m)
	}
	return all
}

// Source is how a resource of the variant names another one's place, for example an
// RDS route's in a listener.
func (v Variant) Source() *core.ConfigSource {
	source := &core.ConfigSource{ResourceApiVersion: core.ApiVersion_V3}
	if v.Separate {
		source.ConfigSourceSpecifier = &core.ConfigSource_ApiConfigSource{ApiConfigSource: v.service()}
	} else {
		source.ConfigSourceSpecifier = &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}}
	}
	return source
}

// service names the static cluster of the bootstrap.
func (v Variant) service() *core.ApiConfigSource {
	api := core.ApiConfigSource_GRPC
	if v.Delta {
		api = core.ApiConfigSource_DELTA_GRPC
	}
	return &core.ApiConfigSource{
		ApiType: api, TransportApiVersion: core.ApiVersion_V3, SetNodeOnFirstMessageOnly: true,
		GrpcServices: []*core.GrpcService{{TargetSpecifier: &core.GrpcService_EnvoyGrpc_{
			EnvoyGrpc: &core.GrpcService_EnvoyGrpc{ClusterName: xdsCluster},
		}}},
	}
}

// Listener listens at the address, which is host:port or the path of a socket, has
// those HTTP filters and takes its routes by RDS under that name.
func (v Variant) Listener(name, address, routes string, filters ...*hcm.HttpFilter) *listenerv3.Listener {
	return &listenerv3.Listener{
		Name: name, Address: addressOf(address),
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name: "envoy.filters.network.http_connection_manager",
			ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed(&hcm.HttpConnectionManager{
				StatPrefix:     name,
				RouteSpecifier: &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{RouteConfigName: routes, ConfigSource: v.Source()}},
				HttpFilters: append(filters, &hcm.HttpFilter{
					Name: "envoy.filters.http.router", ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: packed(&router.Router{})},
				}),
			})},
		}}}},
	}
}

// Discovered is an HTTP filter whose configuration comes by ECDS under its name, and is
// of one of those types.
func (v Variant) Discovered(name string, typeURLs ...string) *hcm.HttpFilter {
	return &hcm.HttpFilter{Name: name, ConfigType: &hcm.HttpFilter_ConfigDiscovery{
		ConfigDiscovery: &core.ExtensionConfigSource{ConfigSource: v.Source(), TypeUrls: typeURLs},
	}}
}

// Extension is the configuration of a filter that is Discovered.
func Extension(name string, config proto.Message) *core.TypedExtensionConfig {
	return &core.TypedExtensionConfig{Name: name, TypedConfig: packed(config)}
}

// Route sends everything to a cluster; answers tell the mark in the header x-mark.
func Route(name, to, mark string) *route.RouteConfiguration {
	return &route.RouteConfiguration{
		Name: name,
		ResponseHeadersToAdd: []*core.HeaderValueOption{{
			Header: &core.HeaderValue{Key: "x-mark", Value: mark},
		}},
		VirtualHosts: []*route.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: []*route.Route{{
			Match:  &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: "/"}},
			Action: &route.Route_Route{Route: &route.RouteAction{ClusterSpecifier: &route.RouteAction_Cluster{Cluster: to}}},
		}}}},
	}
}

// Cluster takes its endpoints by EDS under its name.
func (v Variant) Cluster(name string) *cluster.Cluster {
	return &cluster.Cluster{
		Name: name, ConnectTimeout: durationpb.New(time.Second),
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS},
		EdsClusterConfig:     &cluster.Cluster_EdsClusterConfig{EdsConfig: v.Source()},
	}
}

// Backend gives a cluster its one endpoint.
func Backend(name, address string) *endpoint.ClusterLoadAssignment {
	return &endpoint.ClusterLoadAssignment{
		ClusterName: name,
		Endpoints: []*endpoint.LocalityLbEndpoints{{LbEndpoints: []*endpoint.LbEndpoint{{
			HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: addressOf(address)}},
		}}}},
	}
}

// addressOf reads host:port; anything else is the path of a socket.
func addressOf(address string) *core.Address {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return &core.Address{Address: &core.Address_Pipe{Pipe: &core.Pipe{Path: address}}}
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		panic(fmt.Sprintf("upstream: no port in %q", address))
	}
	return &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
		Address: host, PortSpecifier: &core.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

func packed(m proto.Message) *anypb.Any {
	a := new(anypb.Any)
	if err := anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		panic(fmt.Sprintf("upstream: %v", err)) // of a test's own message
	}
	return a
}
