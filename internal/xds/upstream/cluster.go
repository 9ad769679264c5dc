package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

// Types of resources.
const (
	ClusterType    = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	assignmentType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	secretType     = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
)

// The transport socket of plain connections.
const (
	rawBuffer     = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
	rawBufferName = "envoy.transport_sockets.raw_buffer"
)

// ErrNotYet is for what a control plane names and may send soon.
var ErrNotYet = errors.New("the control plane has not sent all of a cluster")

// maxEndpoints are those of a cluster that one connection is tried with.
const maxEndpoints = 8

// Cluster sends requests to a cluster that a control plane has, whatever host they name, as
// Envoy would: to its endpoints, with its transport socket. It keeps no connection.
type Cluster struct {
	endpoints []attach.Endpoint
	patience  time.Duration // with a connection
	tls       *handshaker   // nil: plain
	transport *http.Transport
}

// NewCluster reads the cluster of that name, of a control plane that find tells of, for
// requests with that authority. It connects to nothing yet. Not ok: there is no such
// cluster. What Envoy would do and the agent cannot is refused: the error is a
// *chandler.Problem, with the field of the cluster. ErrNotYet is that endpoints or a secret
// have not been sent yet.
func NewCluster(name, authority string, find Find, o Options) (c *Cluster, ok bool, err error) {
	o = o.withDefaults()
	body, ok := find(ClusterType, name)
	if !ok {
		return nil, false, nil
	}
	var cluster clusterv3.Cluster
	if err := proto.Unmarshal(body, &cluster); err != nil {
		return nil, true, problem("", "", "the cluster %s cannot be read: %s", chandler.Quote(name), chandler.Printable(err.Error(), 256))
	}
	c = &Cluster{patience: cmp.Or(cluster.GetConnectTimeout().AsDuration(), connectTimeout)}
	endpoints, socket, err := endpointsOf(&cluster, find)
	if err != nil {
		return nil, true, err
	}
	c.endpoints = endpoints
	options := httpOptionsOf(&cluster)
	if err := c.secure(&cluster, socket, options, authority, find, o); err != nil {
		return nil, true, err
	}
	c.transport = &http.Transport{
		DialContext: c.dial, DialTLSContext: c.dial, DisableKeepAlives: true, DisableCompression: true,
		MaxResponseHeaderBytes: 64 << 10, Protocols: &http.Protocols{},
	}
	c.transport.Protocols.SetHTTP1(c.tls != nil || !options.http2)
	c.transport.Protocols.SetHTTP2(true)
	c.transport.Protocols.SetUnencryptedHTTP2(options.http2)
	return c, true, nil
}

// RoundTrip implements http.RoundTripper. Whether TLS is spoken is a matter of the cluster,
// not of the URL.
func (c *Cluster) RoundTrip(req *http.Request) (*http.Response, error) {
	out := req.Clone(req.Context())
	out.URL.Scheme = "http"
	if c.tls != nil {
		out.URL.Scheme = "https"
	}
	resp, err := c.transport.RoundTrip(out)
	if resp != nil {
		resp.Request = req
	}
	return resp, err
}

// CloseIdleConnections ends what is left of connections.
func (c *Cluster) CloseIdleConnections() { c.transport.CloseIdleConnections() }

// dial connects to one of the endpoints.
func (c *Cluster) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	var errs []error
	for _, e := range c.endpoints {
		conn, err := c.connect(ctx, e)
		if err == nil {
			return conn, nil
		}
		if errs = append(errs, err); ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

func (c *Cluster) connect(ctx context.Context, e attach.Endpoint) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, e.Network, e.Address)
	if err != nil || c.tls == nil {
		return conn, err
	}
	secure, err := c.tls.handshake(ctx, e.Hostname, conn)
	if err != nil {
		return nil, err // and no *tls.Conn that is nil
	}
	return secure, nil
}

// secure reads how the connections of a cluster are made safe, by which of its sockets.
func (c *Cluster) secure(cluster *clusterv3.Cluster, by int, options httpOptions, authority string, find Find, o Options) error {
	socket, path := cluster.GetTransportSocket(), "transport_socket.typed_config"
	if by != ownSocket {
		socket, path = cluster.GetTransportSocketMatches()[by].GetTransportSocket(), fmt.Sprintf("transport_socket_matches[%d].%s", by, path)
	}
	if kind := socket.GetTypedConfig().MessageName(); socket == nil || kind == rawBuffer || kind == "" && socket.GetName() == rawBufferName {
		return nil
	}
	var context tlsv3.UpstreamTlsContext
	if err := socket.GetTypedConfig().UnmarshalTo(&context); err != nil {
		return problem(path, "use TLS, or no transport socket", "the agent cannot speak to a cluster in this way")
	}
	s, err := newSecure(&context, path, find)
	if err != nil {
		return err
	}
	if len(context.GetCommonTlsContext().GetAlpnProtocols()) == 0 {
		s.next = options.next()
	}
	if err := s.names(options.names, "typed_extension_protocol_options.upstream_http_protocol_options", authority); err != nil {
		return err
	}
	for _, warning := range s.warnings {
		o.Log.Debug("a cluster of the control plane", "cluster", cluster.GetName(), "warning", warning)
	}
	for _, needed := range s.secrets() {
		if _, ok := find(secretType, needed.name); !ok && needed.find != nil {
			return fmt.Errorf("%w: it has sent no secret %s", ErrNotYet, chandler.Quote(needed.name))
		}
	}
	c.tls = &handshaker{secure: s, now: o.Now, log: o.Log}
	return nil
}

// ownSocket is a cluster's transport_socket; others are of transport_socket_matches.
const ownSocket = -1

// socketOf tells which transport socket an endpoint has: the first one that matches what is
// said of the endpoint, else of its locality.
func socketOf(cluster *clusterv3.Cluster, metadata ...*corev3.Metadata) int {
	for _, m := range metadata {
		labels := m.GetFilterMetadata()["envoy.transport_socket_match"].GetFields()
		for i, match := range cluster.GetTransportSocketMatches() {
			fits := true
			for name, value := range match.GetMatch().GetFields() {
				fits = fits && proto.Equal(value, labels[name])
			}
			if fits {
				return i
			}
		}
	}
	return ownSocket
}

// endpointsOf gives where a cluster is, in the order in which its endpoints are tried: those
// of the first priority first, otherwise by chance; of those that have another transport
// socket than the first one, none.
func endpointsOf(cluster *clusterv3.Cluster, find Find) (endpoints []attach.Endpoint, socket int, err error) {
	if cluster.GetTransportSocketMatcher() != nil {
		return nil, 0, problem("transport_socket_matcher", "use transport_socket_matches", "the agent does not choose a transport socket in this way")
	}
	assignment, path, err := assignmentOf(cluster, find)
	if err != nil {
		return nil, 0, err
	}
	localities := slices.Clone(assignment.GetEndpoints())
	slices.SortStableFunc(localities, func(a, b *endpointv3.LocalityLbEndpoints) int { return cmp.Compare(a.GetPriority(), b.GetPriority()) })
	type candidate struct {
		attach.Endpoint
		socket int
	}
	var all []candidate
	for _, l := range localities {
		from := len(all)
		for _, e := range l.GetLbEndpoints() {
			if at, ok := endpointOf(e.GetEndpoint()); ok {
				all = append(all, candidate{at, socketOf(cluster, e.GetMetadata(), l.GetMetadata())})
			}
		}
		rand.Shuffle(len(all)-from, func(i, j int) { all[from+i], all[from+j] = all[from+j], all[from+i] })
	}
	switch {
	case len(all) == 0 && len(localities) == 0 && path == edsPath:
		return nil, 0, fmt.Errorf("%w: the cluster %s has no endpoints", ErrNotYet, chandler.Quote(cluster.GetName()))
	case len(all) == 0:
		return nil, 0, problem(path, "give it endpoints by address or name, with a port", "the cluster %s has none that the agent can connect to", chandler.Quote(cluster.GetName()))
	}
	for _, c := range all {
		if c.socket == all[0].socket && len(endpoints) < maxEndpoints {
			endpoints = append(endpoints, c.Endpoint)
		}
	}
	return endpoints, all[0].socket, nil
}

const edsPath = "eds_cluster_config"

// assignmentOf gives the endpoints of a cluster, and the field that says where they are.
func assignmentOf(cluster *clusterv3.Cluster, find Find) (*endpointv3.ClusterLoadAssignment, string, error) {
	if cluster.GetType() != clusterv3.Cluster_EDS || cluster.GetClusterType() != nil {
		return cluster.GetLoadAssignment(), "load_assignment", nil
	}
	assignment := &endpointv3.ClusterLoadAssignment{}
	body, ok := find(assignmentType, cmp.Or(cluster.GetEdsClusterConfig().GetServiceName(), cluster.GetName()))
	if !ok || proto.Unmarshal(body, assignment) != nil {
		return nil, "", fmt.Errorf("%w: it has sent no endpoints of the cluster %s", ErrNotYet, chandler.Quote(cluster.GetName()))
	}
	return assignment, edsPath, nil
}

func endpointOf(e *endpointv3.Endpoint) (attach.Endpoint, bool) {
	if path := e.GetAddress().GetPipe().GetPath(); path != "" {
		return attach.Endpoint{Network: "unix", Address: path, Hostname: e.GetHostname()}, true
	}
	socket := e.GetAddress().GetSocketAddress()
	if socket.GetAddress() == "" || socket.GetPortValue() == 0 || socket.GetProtocol() != corev3.SocketAddress_TCP {
		return attach.Endpoint{}, false
	}
	address := net.JoinHostPort(socket.GetAddress(), strconv.FormatUint(uint64(socket.GetPortValue()), 10))
	return attach.Endpoint{Network: "tcp", Address: address, Hostname: e.GetHostname()}, true
}

// httpOptions are what a cluster says of its HTTP.
type httpOptions struct {
	http2, auto bool // auto: as the other side likes
	names       *corev3.UpstreamHttpProtocolOptions
}

// next are the protocols that TLS asks for.
func (o httpOptions) next() []string {
	switch {
	case o.http2:
		return []string{"h2"}
	case o.auto:
		return []string{"h2", "http/1.1"}
	}
	return []string{"http/1.1"}
}

const httpOptionsName = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// httpOptionsOf reads as much of them as is needed; the whole message would bring all of
// Envoy's HTTP into the agent.
func httpOptionsOf(cluster *clusterv3.Cluster) httpOptions {
	const names, explicit, auto, explicitHTTP2 protowire.Number = 2, 3, 5, 2
	//lint:ignore SA1019 Control planes still set them.
	o := httpOptions{http2: cluster.GetHttp2ProtocolOptions() != nil, names: cluster.GetUpstreamHttpProtocolOptions()}
	eachField(cluster.GetTypedExtensionProtocolOptions()[httpOptionsName].GetValue(), func(num protowire.Number, content []byte) {
		switch num {
		case names:
			o.names = &corev3.UpstreamHttpProtocolOptions{}
			_ = proto.Unmarshal(content, o.names) // Envoy takes no such cluster
		case explicit:
			eachField(content, func(num protowire.Number, _ []byte) { o.http2 = num == explicitHTTP2 })
		case auto:
			o.auto = true
		}
	})
	return o
}

// eachField goes over the messages in a message.
func eachField(b []byte, do func(num protowire.Number, content []byte)) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeField(b)
		if n < 0 {
			return
		}
		if typ == protowire.BytesType {
			_, _, tag := protowire.ConsumeTag(b)
			content, _ := protowire.ConsumeBytes(b[tag:])
			do(num, content)
		}
		b = b[n:]
	}
}
