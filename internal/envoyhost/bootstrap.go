package envoyhost

import (
	"encoding/json"
	"strconv"
)

type object = map[string]any

func typed(name, kind string, config object) object {
	config["@type"] = "type.googleapis.com/envoy.extensions." + kind
	return object{"name": name, "typed_config": config}
}

// pipe is an address in the Envoy's folder.
func (p *process) pipe(name string) object { return object{"pipe": object{"path": p.path(name)}} }

// cluster is one whose only endpoint is a socket of ours. A connection is for one
// request: what a plugin sends behind the end of its body would be the next one's begin.
func (p *process) cluster(name, socket string, http2 bool) object {
	const options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	protocol := object{"http_protocol_options": object{"enable_trailers": true}}
	requests := 1
	if http2 {
		protocol, requests = object{"http2_protocol_options": object{}}, 0
	}
	return object{
		"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
		"name":  name, "type": "STATIC", "connect_timeout": "5s",
		"typed_extension_protocol_options": object{options: object{
			"@type": "type.googleapis.com/" + options, "explicit_http_config": protocol,
			"common_http_protocol_options": object{"max_requests_per_connection": requests},
		}},
		"load_assignment": object{"cluster_name": name, "endpoints": []any{object{"lb_endpoints": []any{object{"endpoint": object{"address": p.pipe(socket)}}}}}},
	}
}

// static is a cluster where its type is known.
func static(cluster object) object {
	delete(cluster, "@type")
	return cluster
}

// discovery is the file with the clusters that call-outs go to.
func (p *process) discovery() ([]byte, error) {
	resources := []any{}
	for name, n := range p.clusters {
		resources = append(resources, p.cluster(name, callSocket(n), false))
	}
	return json.Marshal(object{"version_info": strconv.Itoa(len(p.clusters)), "resources": resources})
}

func callSocket(n int) string { return "call" + strconv.Itoa(n) }

// bootstrap is an Envoy with three listeners: the plugin's, whose filter comes over
// the stream, one that keeps the compiled module in the process between two plugins, and
// one that answers by itself, to see that all before has been done.
func (p *process) bootstrap() ([]byte, error) {
	slot := func(name string) object {
		return object{"name": name, "config_discovery": object{
			"config_source": object{"ads": object{}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"},
			"type_urls":     []string{wasmURL, nothingURL},
		}}
	}
	listener := func(name string, route object, filters ...any) object {
		filters = append(filters, typed("router", "filters.http.router.v3.Router", object{}))
		route["match"] = object{"prefix": "/"}
		hcm := object{
			"stat_prefix": name, "codec_type": "HTTP1", "delayed_close_timeout": "0s", "http_protocol_options": object{"enable_trailers": true},
			"http_filters": filters,
			"route_config": object{"virtual_hosts": []any{object{"name": "all", "domains": []string{"*"}, "routes": []any{
				route, object{"match": object{"path": "*"}, "route": route["route"]},
			}}}},
		}
		if route["route"] == nil {
			hcm["route_config"] = object{"virtual_hosts": []any{object{"name": "all", "domains": []string{"*"}, "routes": []any{route}}}}
		}
		return object{"name": name, "address": p.pipe(name), "filter_chains": []any{object{
			"filters": []any{typed("http", "filters.network.http_connection_manager.v3.HttpConnectionManager", hcm)},
		}}}
	}
	answer := func() object { return object{"direct_response": object{"status": 200}} }
	return json.Marshal(object{
		"node":  object{"id": "chandler-test", "cluster": "chandler-test"},
		"admin": object{"address": p.pipe("admin")},
		"dynamic_resources": object{
			"ads_config": object{
				"api_type": "DELTA_GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
				"grpc_services": []any{object{"envoy_grpc": object{"cluster_name": "ads"}}},
			},
			"cds_config": object{"path_config_source": object{"path": p.path("clusters.json")}, "resource_api_version": "V3"},
		},
		"static_resources": object{
			"clusters": []any{static(p.cluster("ads", "ads", true)), static(p.cluster(upstreamCluster, "upstream", false))},
			"listeners": []any{
				listener("plugin", object{"route": object{"cluster": upstreamCluster, "timeout": "10s"}}, slot(trySlot)),
				listener("keep", answer(), slot(keepSlot)),
				listener("barrier", answer()),
			},
		},
	})
}
