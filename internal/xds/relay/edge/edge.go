// Package edge stands between an Envoy and its control plane with the streams of
// internal/xds/relay: a gRPC server to which all comes that Envoy says to the cluster of
// its control plane, and the streams to that one, its upstream, on a connection that is
// given. It decides nothing; it moves messages, and begins streams to the upstream anew.
//
// What is not xDS, for instance load reports, is handed on as it comes.
package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"chandler.dev/chandler/internal/xds/relay"
)

const (
	// maxMessage bounds one message, of either side.
	maxMessage = 256 << 20
	// maxStreams bounds what Envoy has open at a time: without an aggregated stream it
	// has one for the endpoints of each cluster.
	maxStreams = 1 << 16
	// window is how many bytes may be under way to the relay. One that follows the
	// bandwidth would begin too small for a first push.
	window = 1 << 20
)

// Config is the configuration of an Edge.
type Config struct {
	// Hooks are the relay's. Those that are asked something are called with a lock held: they
	// must not block, nor call the Edge. Those that are told something may do both; one is
	// told after the other, in order, and while it blocks Envoy's streams wait. They must not
	// block any more once the context of Serve has ended.
	Hooks relay.Hooks
	// Upstream is the connection to the control plane. Required.
	Upstream grpc.ClientConnInterface
	// Metadata gives the headers of a stream to the upstream, from those of Envoy's; nil:
	// the same.
	Metadata func(envoys metadata.MD) metadata.MD
	// Remembered is what a relay before this one remembered.
	Remembered []relay.View
	// Took is told that Views would give something new. Linked is told of each stream to
	// the upstream: with nil when something came on it, or it is there for a while without
	// that, with the reason when it was lost or could not be begun. Neither may block. Both may be nil, as may Log.
	Took   func()
	Linked func(method string, err error)
	// Ended is told that a stream of Envoy's has ended; Envoy may have. It may be nil.
	Ended func(method string)
	Log   *slog.Logger
}

// Edge serves one Envoy.
type Edge struct {
	config Config
	codec  codec

	telling sync.Mutex // held while the owner is told; never taken with mu held

	mu    sync.Mutex
	relay *relay.Relay
	open  map[*passage]bool
	news  []func() // what the owner is to be told
}

// New gives an edge that serves nothing yet.
func New(config Config) *Edge {
	if config.Metadata == nil {
		config.Metadata = func(m metadata.MD) metadata.MD { return m }
	}
	if config.Took == nil {
		config.Took = func() {}
	}
	if config.Linked == nil {
		config.Linked = func(string, error) {}
	}
	if config.Ended == nil {
		config.Ended = func(string) {}
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	e := &Edge{config: config, codec: newCodec(), open: map[*passage]bool{}}
	e.relay = relay.New(e.later(config.Hooks))
	e.relay.Restore(config.Remembered)
	return e
}

// later gives hooks that note what the owner is to be told.
func (e *Edge) later(hooks relay.Hooks) relay.Hooks {
	if tell := hooks.Tell; tell != nil {
		hooks.Tell = func(ev relay.Event) { e.news = append(e.news, func() { tell(ev) }) }
	}
	local := make(map[string]relay.Local, len(hooks.Local))
	for typeURL, l := range hooks.Local {
		if tell := l.Tell; tell != nil {
			l.Tell = func(ev relay.LocalEvent) { e.news = append(e.news, func() { tell(ev) }) }
		}
		local[typeURL] = l
	}
	hooks.Local = local
	return hooks
}

// tell tells the owner what is news.
func (e *Edge) tell() {
	e.telling.Lock()
	defer e.telling.Unlock()
	for {
		e.mu.Lock()
		news := e.news
		e.news = nil
		e.mu.Unlock()
		if len(news) == 0 {
			return
		}
		for _, tell := range news {
			tell()
		}
	}
}

// Serve answers on ln until ctx ends; all that it started has ended when it returns. It
// closes ln. The error is nil when ctx was the reason. It must be called once.
func (e *Edge) Serve(ctx context.Context, ln net.Listener) error {
	var started sync.WaitGroup
	server := grpc.NewServer(
		grpc.WaitForHandlers(true), grpc.ForceServerCodecV2(e.codec), grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxStreams), grpc.StaticStreamWindowSize(window), grpc.StaticConnWindowSize(window),
		grpc.UnknownServiceHandler(func(_ any, rpc grpc.ServerStream) error { return e.handle(rpc, &started) }))
	until, cancel := context.WithCancel(ctx)
	started.Go(func() {
		<-until.Done()
		server.Stop() // and waits for the streams
	})
	err := server.Serve(ln)
	cancel()
	started.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve Envoy in the place of its control plane: %w", err)
}

// Changed says that the transform of a type, or its Local.Get, may give something else now
// for those names, or for all.
func (e *Edge) Changed(typeURL string, names ...string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.relay.Changed(typeURL, names...)
	for p := range e.open {
		select {
		case p.wake <- struct{}{}:
		default: // it will look anyway
		}
	}
}

// Another says that Envoy is another process from now on; best before it is started.
func (e *Edge) Another() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.relay.Another()
}

// Views gives what Envoy acknowledged last, to be kept and to be given to the next
// relay.
func (e *Edge) Views() []relay.View {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.relay.Trim(time.Now())
	return e.relay.Views()
}

// Find gives what the upstream has of a type under a name; see relay.Relay.
func (e *Edge) Find(typeURL, name string) (body []byte, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.relay.Find(typeURL, name)
}

// Taken is Views of a moment ago as they are worth keeping on disk; a time in their place is
// when to ask again at the latest, as it is not sure yet that they belong together.
func (e *Edge) Taken() ([]relay.View, time.Time) { return e.taken(time.Now()) }

func (e *Edge) taken(now time.Time) ([]relay.View, time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.relay.Trim(now)
	return e.relay.Settled(now)
}

// handle is one call of Envoy's.
func (e *Edge) handle(rpc grpc.ServerStream, started *sync.WaitGroup) error {
	method, ok := grpc.MethodFromServerStream(rpc)
	if !ok {
		return errors.New("a call without a method")
	}
	headers := e.headers(rpc.Context())
	if kind, ok := kindOf(method); ok {
		return e.pass(rpc, method, kind, headers, started)
	}
	return e.splice(rpc, method, headers, started)
}

// headers are those of the stream to the upstream: Envoy's, without what belongs to the
// connection or is written anew.
func (e *Edge) headers(ctx context.Context) metadata.MD {
	in, _ := metadata.FromIncomingContext(ctx)
	out := metadata.MD{}
	for k, v := range in {
		switch {
		case strings.HasPrefix(k, ":"), strings.HasPrefix(k, "grpc-"), k == "content-type", k == "te", k == "user-agent", k == "host":
		default:
			out[k] = v
		}
	}
	return e.config.Metadata(out)
}

// services are those of discovery, each with its type if it has only one.
var services = map[string]string{
	"envoy.service.cluster.v3.ClusterDiscoveryService":           "envoy.config.cluster.v3.Cluster",
	"envoy.service.endpoint.v3.EndpointDiscoveryService":         "envoy.config.endpoint.v3.ClusterLoadAssignment",
	"envoy.service.endpoint.v3.LocalityEndpointDiscoveryService": "envoy.config.endpoint.v3.LbEndpoint",
	"envoy.service.extension.v3.ExtensionConfigDiscoveryService": "envoy.config.core.v3.TypedExtensionConfig",
	"envoy.service.listener.v3.ListenerDiscoveryService":         "envoy.config.listener.v3.Listener",
	"envoy.service.route.v3.RouteDiscoveryService":               "envoy.config.route.v3.RouteConfiguration",
	"envoy.service.route.v3.ScopedRoutesDiscoveryService":        "envoy.config.route.v3.ScopedRouteConfiguration",
	"envoy.service.route.v3.VirtualHostDiscoveryService":         "envoy.config.route.v3.VirtualHost",
	"envoy.service.runtime.v3.RuntimeDiscoveryService":           "envoy.service.runtime.v3.Runtime",
	"envoy.service.secret.v3.SecretDiscoveryService":             "envoy.extensions.transport_sockets.tls.v3.Secret",
	"envoy.service.discovery.v3.AggregatedDiscoveryService":      "",
}

// kindOf says what a method is like; not ok: it is no stream of xDS.
func kindOf(method string) (relay.Kind, bool) {
	service, name, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	typeURL, known := services[service]
	if typeURL != "" {
		typeURL = "type.googleapis.com/" + typeURL
	}
	kind := relay.Kind{Delta: strings.HasPrefix(name, "Delta"), Type: typeURL}
	return kind, known && (kind.Delta || strings.HasPrefix(name, "Stream"))
}
