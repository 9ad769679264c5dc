package upstream

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/authority"
	"chandler.dev/chandler/internal/testenv/ports"
)

// resources are those of a control plane, by their names.
type resources map[string]proto.Message

func (p resources) find(typeURL, name string) ([]byte, bool) {
	m, ok := p[name]
	if !ok || typeURL != "type.googleapis.com/"+string(proto.MessageName(m)) {
		return nil, false
	}
	b, err := proto.Marshal(m)
	return b, err == nil
}

func packed(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// assignment has endpoints, host:port or paths of sockets.
func assignment(t *testing.T, addresses ...string) *endpointv3.ClusterLoadAssignment {
	t.Helper()
	a := &endpointv3.ClusterLoadAssignment{}
	for priority, address := range addresses {
		at := &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: address}}}
		if host, port, err := net.SplitHostPort(address); err == nil {
			var n uint32
			if _, err := fmt.Sscan(port, &n); err != nil {
				t.Fatal(err)
			}
			at = &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: n}}}}
		}
		a.Endpoints = append(a.Endpoints, &endpointv3.LocalityLbEndpoints{Priority: uint32(priority), LbEndpoints: []*endpointv3.LbEndpoint{{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: at, Hostname: "endpoint.internal"}}}}})
	}
	return a
}

// speaking tells of the server how it was spoken to.
func speaking(w http.ResponseWriter, req *http.Request) {
	sni := "plain"
	if req.TLS != nil {
		sni = "tls " + req.TLS.ServerName
		for _, c := range req.TLS.PeerCertificates {
			sni += " by " + c.DNSNames[0]
		}
	}
	fmt.Fprintf(w, "%s %s %s", req.Proto, req.Host, sni)
}

// ask asks the cluster "c" for http://asked.internal/.
func (p resources) ask(t *testing.T, scheme string) (string, error) {
	t.Helper()
	p["c"].(*clusterv3.Cluster).ConnectTimeout = durationpb.New(bound)
	c, ok, err := NewCluster("c", "asked.internal", p.find, Options{})
	if err != nil || !ok {
		t.Fatalf("the cluster is there: %v, %v", ok, err)
	}
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, scheme+"://asked.internal/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// Clusters without TLS are reached wherever their endpoints are, in the protocol that they
// speak, whatever the URL says.
func TestClusterPlain(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(speaking))
	server.Config.Protocols = &http.Protocols{}
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	address := server.Listener.Addr().String()
	gone, err := ports.Free()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "chandler")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	pipe, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	piped := &http.Server{Handler: http.HandlerFunc(speaking)}
	done := make(chan struct{})
	go func() { defer close(done); _ = piped.Serve(pipe) }()
	t.Cleanup(func() { _ = piped.Close(); <-done })

	options := func(fields ...byte) map[string]*anypb.Any {
		return map[string]*anypb.Any{httpOptionsName: {Value: fields}}
	}
	for name, tc := range map[string]struct {
		plane resources
		want  string
	}{
		"static":         {resources{"c": &clusterv3.Cluster{Name: "c", LoadAssignment: assignment(t, address)}}, "HTTP/1.1 asked.internal plain"},
		"of a socket":    {resources{"c": &clusterv3.Cluster{Name: "c", LoadAssignment: assignment(t, pipe.Addr().String())}}, "HTTP/1.1 asked.internal plain"},
		"the second one": {resources{"c": &clusterv3.Cluster{Name: "c", LoadAssignment: assignment(t, gone, address)}}, "HTTP/1.1 asked.internal plain"},
		"by EDS": {resources{"c": &clusterv3.Cluster{Name: "c", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{ServiceName: "e"}}, "e": assignment(t, address)}, "HTTP/1.1 asked.internal plain"},
		"HTTP/2": {resources{"c": &clusterv3.Cluster{Name: "c", LoadAssignment: assignment(t, address),
			TypedExtensionProtocolOptions: options(0x1a, 2, 0x12, 0)}}, "HTTP/2.0 asked.internal plain"},
		"HTTP/1, explicitly": {resources{"c": &clusterv3.Cluster{Name: "c", LoadAssignment: assignment(t, address),
			TypedExtensionProtocolOptions: options(0x1a, 2, 0x0a, 0)}}, "HTTP/1.1 asked.internal plain"},
	} {
		for _, scheme := range []string{"http", "https"} {
			if got, err := tc.plane.ask(t, scheme); got != tc.want || err != nil {
				t.Errorf("%s, %s: %q, %v; want %q", name, scheme, got, err, tc.want)
			}
		}
	}
}

// Clusters with TLS are reached with their certificates, from secrets of the control plane's
// too, and are who they say that they are.
func TestClusterTLS(t *testing.T) {
	t.Parallel()
	roots, others := authority.New(t), authority.New(t)
	pair := roots.Issue(authority.Leaf{DNS: []string{"modules.internal"}})
	own, err := tls.LoadX509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(roots.File)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	server := httptest.NewUnstartedServer(http.HandlerFunc(speaking))
	server.Config.ErrorLog = nil
	server.EnableHTTP2 = true
	server.TLS = &tls.Config{Certificates: []tls.Certificate{own}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool}
	server.StartTLS()
	t.Cleanup(server.Close)
	client := roots.Issue(authority.Leaf{DNS: []string{"envoy"}})
	file := func(name string) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: name}}
	}
	ads := &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}
	secret := &tlsv3.Secret{Name: "client", Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{CertificateChain: file(client.Cert), PrivateKey: file(client.Key)}}}
	trust := func(a *authority.Authority, names ...string) *tlsv3.CertificateValidationContext {
		c := &tlsv3.CertificateValidationContext{TrustedCa: file(a.File)}
		for _, name := range names {
			c.MatchTypedSubjectAltNames = append(c.MatchTypedSubjectAltNames, &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_DNS,
				Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: name}}})
		}
		return c
	}
	with := func(c *tlsv3.UpstreamTlsContext, options map[string]*anypb.Any) *clusterv3.Cluster {
		return &clusterv3.Cluster{Name: "c", LoadAssignment: assignment(t, server.Listener.Addr().String()), TypedExtensionProtocolOptions: options,
			TransportSocket: &corev3.TransportSocket{Name: "tls", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: packed(t, c)}}}
	}
	common := func(c *tlsv3.CertificateValidationContext, secrets ...string) *tlsv3.CommonTlsContext {
		all := &tlsv3.CommonTlsContext{ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: c}}
		for _, name := range secrets {
			all.TlsCertificateSdsSecretConfigs = append(all.TlsCertificateSdsSecretConfigs, &tlsv3.SdsSecretConfig{Name: name, SdsConfig: ads})
		}
		return all
	}
	served := &tlsv3.CommonTlsContext{ValidationContextType: &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{
		ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: "roots", SdsConfig: ads}}}
	lacking := resources{"c": with(&tlsv3.UpstreamTlsContext{CommonTlsContext: common(trust(roots), "client")}, nil)}
	if _, ok, err := NewCluster("c", "h", lacking.find, Options{}); !ok || !errors.Is(err, ErrNotYet) || !strings.Contains(err.Error(), `secret "client"`) {
		t.Errorf("without its secret: %v, %v", ok, err)
	}
	h2 := map[string]*anypb.Any{httpOptionsName: {Value: []byte{0x1a, 2, 0x12, 0}}}
	auto := map[string]*anypb.Any{httpOptionsName: {Value: []byte{0x2a, 0, 0x12, 4, 8, 1, 16, 0}}} // with auto_sni
	for name, tc := range map[string]struct {
		plane resources
		want  string // or in the error
	}{
		"HTTP/1": {resources{"c": with(&tlsv3.UpstreamTlsContext{Sni: "modules.internal", CommonTlsContext: common(trust(roots))}, nil)}, "HTTP/1.1 asked.internal tls modules.internal"},
		"HTTP/2": {resources{"c": with(&tlsv3.UpstreamTlsContext{CommonTlsContext: common(trust(roots, "modules.internal"))}, h2)}, "HTTP/2.0 asked.internal tls "},
		"auto":   {resources{"c": with(&tlsv3.UpstreamTlsContext{CommonTlsContext: common(trust(roots))}, auto)}, "HTTP/2.0 asked.internal tls asked.internal"},
		"the endpoint's name": {resources{"c": with(&tlsv3.UpstreamTlsContext{AutoHostSni: true, CommonTlsContext: common(trust(roots))}, nil)},
			"HTTP/1.1 asked.internal tls endpoint.internal"},
		"by a secret": {resources{"c": with(&tlsv3.UpstreamTlsContext{CommonTlsContext: common(trust(roots), "client")}, h2), "client": secret}, "HTTP/2.0 asked.internal tls  by envoy"},
		"roots by a secret": {resources{"c": with(&tlsv3.UpstreamTlsContext{CommonTlsContext: served}, nil),
			"roots": &tlsv3.Secret{Name: "roots", Type: &tlsv3.Secret_ValidationContext{ValidationContext: trust(others)}}}, "error: not trusted"},
		"another authority": {resources{"c": with(&tlsv3.UpstreamTlsContext{CommonTlsContext: common(trust(others))}, nil)}, "error: not trusted"},
		"another name":      {resources{"c": with(&tlsv3.UpstreamTlsContext{CommonTlsContext: common(trust(roots, "x.internal"))}, nil)}, "error: none of that"},
	} {
		got, err := tc.plane.ask(t, "https")
		if err != nil {
			got = "error: " + err.Error()
		}
		if words, isError := strings.CutPrefix(tc.want, "error: "); got != tc.want && !(isError && err != nil && strings.Contains(got, words)) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// An endpoint has the first transport socket whose labels are all among its own, else among
// those of its locality; without any it has the cluster's.
func TestSocketOf(t *testing.T) {
	t.Parallel()
	labels := func(pairs ...string) *structpb.Struct {
		s := &structpb.Struct{Fields: map[string]*structpb.Value{}}
		for i := 0; i < len(pairs); i += 2 {
			s.Fields[pairs[i]] = structpb.NewStringValue(pairs[i+1])
		}
		return s
	}
	said := func(pairs ...string) *corev3.Metadata {
		return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"envoy.transport_socket_match": labels(pairs...), "other": labels("a", "1", "b", "1")}}
	}
	istios := []*structpb.Struct{labels("tlsMode", "istio"), labels()}
	three := []*structpb.Struct{labels("a", "1", "b", "1"), labels("a", "1"), labels("c", "1")}
	for name, tc := range map[string]struct {
		matches            []*structpb.Struct
		endpoint, locality *corev3.Metadata
		want               int
	}{
		"none":                        {nil, said("a", "1"), nil, ownSocket},
		"Istio's":                     {istios, said("tlsMode", "istio", "x", "y"), nil, 0},
		"of another value":            {istios, said("tlsMode", "disabled"), nil, 1},
		"nothing is said":             {istios, nil, nil, 1},
		"all labels must fit":         {three, said("a", "1", "b", "2"), nil, 1},
		"the first one wins":          {three, said("b", "1", "a", "1", "c", "1"), nil, 0},
		"the endpoint wins":           {three, said("c", "1"), said("a", "1"), 2},
		"the locality's":              {three, said("d", "1"), said("c", "1"), 2},
		"neither":                     {three, said("d", "1"), said("a", "2"), ownSocket},
		"said under another key":      {three, &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"other": labels("a", "1")}}, nil, ownSocket},
		"empty before the locality's": {append(istios, labels("a", "1")), said("d", "1"), said("tlsMode", "istio"), 1},
	} {
		c := &clusterv3.Cluster{}
		for _, m := range tc.matches {
			c.TransportSocketMatches = append(c.TransportSocketMatches, &clusterv3.Cluster_TransportSocketMatch{Match: m})
		}
		if got := socketOf(c, tc.endpoint, tc.locality); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
}

// Of endpoints with several transport sockets those are tried that have the first one's.
func TestClusterOfSeveralSockets(t *testing.T) {
	t.Parallel()
	plain := httptest.NewServer(http.HandlerFunc(speaking))
	t.Cleanup(plain.Close)
	secure := httptest.NewTLSServer(http.HandlerFunc(speaking))
	t.Cleanup(secure.Close)
	insecure := &tlsv3.UpstreamTlsContext{Sni: "modules.internal", CommonTlsContext: &tlsv3.CommonTlsContext{}}
	matches := []*clusterv3.Cluster_TransportSocketMatch{
		{Name: "tls", Match: &structpb.Struct{Fields: map[string]*structpb.Value{"tls": structpb.NewBoolValue(true)}},
			TransportSocket: &corev3.TransportSocket{Name: "tls", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: packed(t, insecure)}}},
		{Name: "plain", Match: &structpb.Struct{}, TransportSocket: &corev3.TransportSocket{Name: rawBufferName}},
	}
	for want, addresses := range map[string][2]string{
		"HTTP/1.1 asked.internal tls modules.internal": {secure.Listener.Addr().String(), plain.Listener.Addr().String()},
		"HTTP/1.1 asked.internal plain":                {plain.Listener.Addr().String(), secure.Listener.Addr().String()},
	} {
		at := assignment(t, addresses[0], addresses[1])
		for _, l := range at.Endpoints {
			e := l.LbEndpoints[0]
			if socket := e.GetEndpoint().GetAddress().GetSocketAddress(); fmt.Sprint(socket.GetPortValue()) == secure.URL[strings.LastIndexByte(secure.URL, ':')+1:] {
				e.Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"envoy.transport_socket_match": matches[0].Match}}
			}
		}
		p := resources{"c": &clusterv3.Cluster{Name: "c", LoadAssignment: at, TransportSocketMatches: matches}}
		if got, err := p.ask(t, "http"); got != want || err != nil {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
		c, _, err := NewCluster("c", "asked.internal", p.find, Options{})
		if err != nil || len(c.endpoints) != 1 || c.endpoints[0].Address != addresses[0] {
			t.Errorf("tried are %+v, %v", c.endpoints, err)
		}
	}
}

// What the agent cannot do as Envoy would is refused, with the field.
func TestClusterRefuses(t *testing.T) {
	t.Parallel()
	at := assignment(t, "127.0.0.1:1")
	newer := &tlsv3.UpstreamTlsContext{}
	newer.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 9000, protowire.VarintType), 1))
	socket := func(m proto.Message) *corev3.TransportSocket {
		return &corev3.TransportSocket{Name: "x", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: packed(t, m)}}
	}
	for field, c := range map[string]*clusterv3.Cluster{
		"transport_socket_matcher": {LoadAssignment: at, TransportSocketMatcher: &xdsmatcherv3.Matcher{}},
		"transport_socket_matches[0].transport_socket.typed_config": {LoadAssignment: at, TransportSocketMatches: []*clusterv3.Cluster_TransportSocketMatch{
			{Name: "m", TransportSocket: socket(&corev3.Address{})}}},
		"transport_socket.typed_config": {LoadAssignment: at, TransportSocket: socket(&corev3.Address{})},
		"transport_socket.typed_config.common_tls_context.tls_certificate_provider_instance": {LoadAssignment: at, TransportSocket: socket(&tlsv3.UpstreamTlsContext{
			CommonTlsContext: &tlsv3.CommonTlsContext{TlsCertificateProviderInstance: &tlsv3.CertificateProviderPluginInstance{InstanceName: "i"}}})},
		"load_assignment": {},
	} {
		_, ok, err := NewCluster("c", "h", resources{"c": c}.find, Options{})
		var p *chandler.Problem
		if !ok || !errors.As(err, &p) || p.Field != field || p.Message == "" {
			t.Errorf("%s: %v, %v", field, ok, err)
		}
	}
	if _, ok, err := NewCluster("c", "h", resources{"c": &clusterv3.Cluster{LoadAssignment: at, TransportSocket: socket(newer)}}.find, Options{}); !ok || err == nil || !strings.Contains(err.Error(), "does not know") {
		t.Errorf("a field that is newer: %v, %v", ok, err)
	}
	later := &clusterv3.Cluster{Name: "c", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}, EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{ServiceName: "e"}}
	for name, there := range map[string]resources{"no answer": {"c": later}, "none": {"c": later, "e": &endpointv3.ClusterLoadAssignment{}}} {
		var p *chandler.Problem
		if _, ok, err := NewCluster("c", "h", there.find, Options{}); !ok || !errors.Is(err, ErrNotYet) || errors.As(err, &p) {
			t.Errorf("endpoints that come later, %s: %v, %v", name, ok, err)
		}
	}
	if c, ok, err := NewCluster("c", "h", resources{}.find, Options{}); c != nil || ok || err != nil {
		t.Errorf("no cluster: %v, %v, %v", c, ok, err)
	}
}
