package upstream

import (
	"fmt"
	"net"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// xdsCluster is the cluster of the control plane in every bootstrap.
const xdsCluster = "xds"

// Bootstrap gives the file in YAML with which an Envoy takes everything from this
// control plane: as that node, with its admin interface on the socket at that path.
func (u *Upstream) Bootstrap(node, adminSocket string) string {
	v := u.config.Variant
	dynamic := ""
	if !v.Separate {
		dynamic = "  ads_config: " + inline(v.service()) + "\n"
	}
	host, port, _ := net.SplitHostPort(u.Addr) // of a listener
	return fmt.Sprintf(`node: {id: %q, cluster: testers, metadata: {LABELS: {app: tested}}, locality: {zone: here}}
admin: {address: {pipe: {path: %q}}}
dynamic_resources:
%s  lds_config: %s
  cds_config: %s
%sstatic_resources:
  clusters:
  - name: %s
    type: STATIC
    connect_timeout: 1s
    circuit_breakers: {thresholds: [{max_requests: 10000, max_pending_requests: 10000}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment:
      cluster_name: %s
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: %s, port_value: %s}}}
%s`, node, adminSocket, dynamic, inline(v.Source()), inline(v.Source()), u.runtime(), xdsCluster, xdsCluster, host, port, u.transport())
}

// runtime is what takes a layer of runtime from here, if any does.
func (u *Upstream) runtime() string {
	if u.config.Runtime == "" {
		return ""
	}
	return fmt.Sprintf("layered_runtime: {layers: [{name: %q, rtds_layer: {name: %q, rtds_config: %s}}, {name: admin, admin_layer: {}}]}\n",
		u.config.Runtime, u.config.Runtime, inline(u.config.Variant.Source()))
}

// transport is the cluster's transport socket; nothing without TLS.
func (u *Upstream) transport() string {
	if u.config.Authority == nil {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, `    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context:
          validation_context:
            trusted_ca: {filename: %q}
            match_typed_subject_alt_names: [{san_type: IP_ADDRESS, matcher: {exact: 127.0.0.1}}]
`, u.config.Authority.File)
	if u.config.Mutual {
		fmt.Fprintf(&b, `          tls_certificates:
          - certificate_chain: {filename: %q}
            private_key: {filename: %q}
`, u.Client.Cert, u.Client.Key)
	}
	return b.String()
}

// inline is JSON, which YAML is, with the names of fields as people write them.
func inline(m proto.Message) string {
	return protojson.MarshalOptions{UseProtoNames: true}.Format(m)
}
