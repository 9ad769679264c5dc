// Package upstream reaches the control plane that somebody else's bootstrap names, as
// Envoy would: with the endpoints, the transport socket and the credentials of the
// cluster or google_grpc service. What Envoy would do and the agent cannot is refused
// with the field that asks for it, and never left out in silence. Clusters that such a
// control plane sends are reached in the same way (cluster.go).
//
// It gives connections and knows nothing of what is said over them.
package upstream

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

const (
	// MinPing is how often a connection is pinged at most, whatever the file says: there
	// are servers that end connections which are pinged more often.
	MinPing = 15 * time.Second
	// MaxBackoff is how long a control plane that cannot be reached is left alone at
	// most.
	MaxBackoff = 3 * time.Second

	firstBackoff   = 100 * time.Millisecond
	connectTimeout = 5 * time.Second // Envoy's
	pingTimeout    = 20 * time.Second
	// maxMessage bounds what a control plane says at once; Envoy itself has no bound.
	maxMessage = 128 << 20
	// window is what may be on its way unread. A fixed one needs no pings to find out.
	window = 1 << 20
)

// Options are how a control plane is reached, beside what the bootstrap says.
type Options struct {
	Log *slog.Logger
	// Now is the clock for certificates; default time.Now.
	Now func() time.Time
}

func (o Options) withDefaults() Options {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Conn is a connection to a control plane, made when it is first used and again
// whenever it is lost; see grpc.ClientConn.
type Conn struct {
	*grpc.ClientConn
	// Warnings are sentences for a person.
	Warnings []string
}

// plan is what a bootstrap asks for.
type plan struct {
	endpoints []attach.Endpoint
	authority string
	headers   []string // keys and values in turn
	token     *token   // nil: none
	tls       *secure  // nil: plain
	ping      keepalive.ClientParameters
	connect   time.Duration
	receive   int
	warnings  []string
}

// New reads how a control plane is reached. It connects to nothing yet and needs none
// of the files to be there: they are read for each connection. Errors are
// *chandler.Problem, with the field of the bootstrap.
func New(cp attach.ControlPlane, o Options) (*Conn, error) {
	o = o.withDefaults()
	p, err := readPlan(cp)
	if err != nil {
		return nil, err
	}
	cc, err := grpc.NewClient("upstream:///control-plane", p.options(o)...)
	if err != nil {
		return nil, problem(cp.Service.Path, "", "the control plane cannot be dialled: %s", chandler.Printable(err.Error(), 256))
	}
	return &Conn{cc, p.warnings}, nil
}

func readPlan(cp attach.ControlPlane) (*plan, error) {
	var service corev3.GrpcService
	if err := decode(cp.Service, &service); err != nil {
		return nil, err
	}
	p := &plan{connect: cp.ConnectTimeout, receive: maxMessage}
	var err error
	if p.headers, err = headers(&service, cp.Service.Path); err != nil {
		return nil, err
	}
	if google := service.GetGoogleGrpc(); google != nil {
		return p, p.google(google, cp.Service.Path+".google_grpc")
	}
	envoy := service.GetEnvoyGrpc()
	p.endpoints = cp.Endpoints
	if p.authority = envoy.GetAuthority(); p.authority == "" {
		p.authority = cp.Cluster
	}
	if limit := envoy.GetMaxReceiveMessageLength().GetValue(); limit > 0 {
		p.receive = int(min(limit, maxMessage))
	}
	if err := p.pings(cp.Keepalive); err != nil {
		return nil, err
	}
	if cp.TLS.JSON == nil {
		return p, nil
	}
	if p.tls, err = readTLS(cp.TLS); err != nil {
		return nil, err
	}
	p.warnings = append(p.warnings, p.tls.warnings...)
	return p, p.tls.ofHTTP(cp.HTTP, p.authority)
}

// pings reads how a cluster's connections are kept alive; without it nothing is said
// on a quiet connection, which the system's own keepalive watches.
func (p *plan) pings(part attach.Part) error {
	if part.JSON == nil {
		return nil
	}
	var k corev3.KeepaliveSettings
	if err := decode(part, &k); err != nil {
		return err
	}
	if interval := k.GetInterval().AsDuration(); interval > 0 {
		p.pingEvery(interval, k.GetTimeout().AsDuration())
	}
	return nil
}

func (p *plan) pingEvery(interval, timeout time.Duration) {
	if timeout <= 0 {
		timeout = pingTimeout
	}
	p.ping = keepalive.ClientParameters{Time: max(interval, MinPing), Timeout: timeout, PermitWithoutStream: true}
}

func (p *plan) options(o Options) []grpc.DialOption {
	byName := map[string]attach.Endpoint{}
	var state resolver.State
	for _, e := range p.endpoints {
		name := e.Network + " " + e.Address
		byName[name] = e
		address := resolver.Address{Addr: name}
		if p.tls != nil {
			address.Attributes = address.Attributes.WithValue(hostnameKey{}, e.Hostname)
		}
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{address}})
	}
	names := manual.NewBuilderWithScheme("upstream")
	names.InitialState(state)
	connect := p.connect
	if connect <= 0 {
		connect = connectTimeout
	}
	var transport credentials.TransportCredentials = insecure.NewCredentials()
	if p.tls != nil {
		transport = &handshaker{secure: p.tls, now: o.Now, log: o.Log}
	}
	options := []grpc.DialOption{
		grpc.WithResolvers(names),
		grpc.WithDisableServiceConfig(),
		grpc.WithAuthority(p.authority),
		grpc.WithTransportCredentials(transport),
		grpc.WithContextDialer(func(ctx context.Context, name string) (net.Conn, error) {
			e := byName[name]
			return (&net.Dialer{}).DialContext(ctx, e.Network, e.Address)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstBackoff, Multiplier: 2, Jitter: 0.2, MaxDelay: MaxBackoff},
			MinConnectTimeout: connect,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(p.receive)),
		grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(window),
		grpc.WithIdleTimeout(0),
	}
	if p.ping.Time > 0 {
		options = append(options, grpc.WithKeepaliveParams(p.ping))
	}
	if p.token != nil {
		options = append(options, grpc.WithPerRPCCredentials(p.token))
	}
	if len(p.headers) > 0 {
		options = append(options, grpc.WithStreamInterceptor(p.stream), grpc.WithUnaryInterceptor(p.unary))
	}
	return options
}

func (p *plan) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return open(metadata.AppendToOutgoingContext(ctx, p.headers...), desc, cc, method, opts...)
}

func (p *plan) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(metadata.AppendToOutgoingContext(ctx, p.headers...), method, req, reply, cc, opts...)
}

// headers are the service's initial metadata.
func headers(service *corev3.GrpcService, path string) ([]string, error) {
	var list []string
	for i, h := range service.GetInitialMetadata() {
		value := h.GetValue()
		if raw := h.GetRawValue(); len(raw) > 0 {
			value = string(raw)
		}
		plain := strings.ReplaceAll(value, "%%", "")
		if strings.Contains(plain, "%") {
			return nil, problem(fmt.Sprintf("%s.initial_metadata[%d].value", path, i), "write the value itself; %% is a percent sign", "the agent cannot fill in what only Envoy knows")
		}
		list = append(list, strings.ToLower(h.GetKey()), strings.ReplaceAll(value, "%%", "%"))
	}
	return list, nil
}

// decode reads a part of the bootstrap. A field that is not known here may be one that
// makes a connection safer, and is refused.
func decode(part attach.Part, m proto.Message) error {
	if err := protojson.Unmarshal(part.JSON, m); err != nil {
		said := strings.TrimPrefix(chandler.Printable(err.Error(), 256), "proto: ")
		return problem(part.Path, "", "it cannot be read: %s", said)
	}
	return nil
}

func problem(field, hint, format string, args ...any) error {
	return chandler.Problemf(chandler.CodeEnvoyConfig, field, hint, format, args...)
}
