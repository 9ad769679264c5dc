// Package upstream is a control plane of somebody else's for tests: an xDS server on
// loopback, made of go-control-plane's cache and servers, that serves what a test
// gives it to whoever connects, and tells what clients said.
//
// It behaves as such servers do, their faults included: one of the state-of-the-world
// variants sends a version that was refused again at once, for as long as it is
// the newest.
package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"maps"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	clusterservice "github.com/envoyproxy/go-control-plane/envoy/service/cluster/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	endpointservice "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	extensionservice "github.com/envoyproxy/go-control-plane/envoy/service/extension/v3"
	listenerservice "github.com/envoyproxy/go-control-plane/envoy/service/listener/v3"
	routeservice "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	runtimeservice "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	secretservice "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/log"
	"github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	xds "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"chandler.dev/chandler/internal/testenv/authority"
	"chandler.dev/chandler/internal/testenv/ports"
)

// bound is how long anything is waited for: a thousand listeners take an Envoy
// seconds of processor time.
const bound = time.Minute

// Variant is how a control plane speaks. The zero value is the state of the world
// on one aggregated stream.
type Variant struct {
	// Delta says only what changed.
	Delta bool
	// Separate is a service and a stream for each type, named where the type is used.
	Separate bool
}

// Variants are all there are.
var Variants = []Variant{{}, {Delta: true}, {Separate: true}, {Delta: true, Separate: true}}

func (v Variant) String() string {
	name := "sotw"
	if v.Delta {
		name = "delta"
	}
	if v.Separate {
		return name + "-separate"
	}
	return name + "-ads"
}

// Config is what a control plane is started with.
type Config struct {
	Variant
	// Authority makes it speak TLS only; Mutual asks clients for a certificate of it.
	Authority *authority.Authority
	Mutual    bool
	// Runtime is the layer of runtime that Envoys take from it; empty: none.
	Runtime string
	// Record is told what is sent and cut; it may be nil.
	Record *Recorder
}

// Upstream is a control plane. Every client is served the same resources, whatever
// its node. Its methods may be called at any time, but Start, Stop, Cut and Set by one
// goroutine only.
type Upstream struct {
	// Addr is where it listens, also after a restart.
	Addr string
	// Server and Client are the files of the certificates, which may be renewed; a
	// renewed one of the server's is served from the next start on.
	Server, Client authority.Pair

	t        testing.TB
	config   Config
	cache    cache.SnapshotCache
	snapshot *cache.Snapshot
	xds      xds.Server
	running  *running

	mu     sync.Mutex
	ledger // what clients said, under mu
}

// running is what there is between Start and Stop.
type running struct {
	server *grpc.Server
	conns  *listener
	done   chan error
}

// everyone is the one node that the cache knows.
type everyone struct{}

func (everyone) ID(*nodeID) string { return "" }

// New starts a control plane that has nothing to serve yet, and stops it when the
// test ends. A client waits until Set was called.
func New(t testing.TB, config Config) *Upstream {
	t.Helper()
	addr, err := ports.Free()
	if err != nil {
		t.Fatal(err)
	}
	u := &Upstream{t: t, config: config, Addr: addr, ledger: newLedger()}
	if a := config.Authority; a != nil {
		u.Server = a.Issue(authority.Leaf{IP: "127.0.0.1"})
		u.Client = a.Issue(authority.Leaf{DNS: []string{"client"}})
	}
	ctx, cancel := context.WithCancel(context.Background())
	// The cache's own order would hold back what belongs to something refused; Set
	// keeps an order without that.
	u.cache = cache.NewSnapshotCache(false, everyone{}, log.NewDefaultLogger())
	u.snapshot = &cache.Snapshot{VersionMap: map[string]map[string]string{}}
	u.xds = xds.NewServer(ctx, u.cache, callbacks{u}, sotw.WithOrderedADS())
	u.Start()
	t.Cleanup(func() {
		u.Stop()
		cancel()
	})
	return u
}

// Start listens, again at the same address; what was set is still there. It is not to
// be called of one that runs.
func (u *Upstream) Start() {
	u.t.Helper()
	lis, err := net.Listen("tcp", u.Addr)
	if err != nil {
		u.t.Fatal(err)
	}
	r := &running{grpc.NewServer(u.options()...), &listener{Listener: lis, open: map[net.Conn]bool{}}, make(chan error, 1)}
	u.register(r.server)
	u.running = r
	go func() { r.done <- r.server.Serve(r.conns) }()
}

// Stop ends all streams and listens no more, as a control plane that is killed. A
// second time does nothing.
func (u *Upstream) Stop() {
	if u.running == nil {
		return
	}
	u.running.server.Stop()
	<-u.running.done
	u.running = nil
}

// Cut ends all connections of one that runs; clients may come again at once.
func (u *Upstream) Cut() {
	if r := u.config.Record; r != nil {
		r.note(step{})
	}
	u.running.conns.cut()
}

// order is that in which a change is told: what is named before what names it.
var order = []types.ResponseType{types.Cluster, types.Endpoint, types.Listener, types.Route, types.ExtensionConfig, types.Secret, types.Runtime}

// Set replaces everything that is served, under a version. State-of-the-world clients
// are sent all types of a new version, delta clients the resources that changed.
// Versions must not come back with another content.
func (u *Upstream) Set(version string, resources Resources) {
	u.t.Helper()
	next, err := cache.NewSnapshot(version, resources.byType())
	if err != nil {
		u.t.Fatal(err)
	}
	if err := next.ConstructVersionMap(); err != nil {
		u.t.Fatal(err)
	}
	for _, kind := range order {
		url, _ := cache.GetResponseTypeURL(kind) // of order, each has one
		step := &cache.Snapshot{Resources: u.snapshot.Resources, VersionMap: maps.Clone(u.snapshot.VersionMap)}
		step.Resources[kind], step.VersionMap[url] = next.Resources[kind], next.VersionMap[url]
		if err := u.cache.SetSnapshot(context.Background(), "", step); err != nil {
			u.t.Fatal(err)
		}
		u.snapshot = step
	}
}

// options are those of its gRPC server, with the certificates as they are now.
func (u *Upstream) options() []grpc.ServerOption {
	u.t.Helper()
	options := []grpc.ServerOption{grpc.WaitForHandlers(true)}
	if r := u.config.Record; r != nil {
		options = append(options, grpc.StreamInterceptor(r.intercept))
	}
	if u.config.Authority == nil {
		return options
	}
	cert, err := tls.LoadX509KeyPair(u.Server.Cert, u.Server.Key)
	if err != nil {
		u.t.Fatal(err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if u.config.Mutual {
		pem, err := os.ReadFile(u.config.Authority.File)
		if err != nil {
			u.t.Fatal(err)
		}
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
		c.ClientCAs.AppendCertsFromPEM(pem)
	}
	return append(options, grpc.Creds(credentials.NewTLS(c)))
}

// register adds the services of the variant, and no others.
func (u *Upstream) register(s *grpc.Server) {
	if !u.config.Separate {
		discovery.RegisterAggregatedDiscoveryServiceServer(s, u.xds)
		return
	}
	clusterservice.RegisterClusterDiscoveryServiceServer(s, u.xds)
	endpointservice.RegisterEndpointDiscoveryServiceServer(s, u.xds)
	listenerservice.RegisterListenerDiscoveryServiceServer(s, u.xds)
	routeservice.RegisterRouteDiscoveryServiceServer(s, u.xds)
	secretservice.RegisterSecretDiscoveryServiceServer(s, u.xds)
	runtimeservice.RegisterRuntimeDiscoveryServiceServer(s, u.xds)
	extensionservice.RegisterExtensionConfigDiscoveryServiceServer(s, u.xds)
}

// listener remembers its connections, so that they can be cut.
type listener struct {
	net.Listener
	mu   sync.Mutex
	open map[net.Conn]bool
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[c] = true
	return conn{c, l}, nil
}

func (l *listener) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.open {
		_ = c.Close()
	}
}

type conn struct {
	net.Conn
	of *listener
}

func (c conn) Close() error {
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	delete(c.of.open, c.Conn)
	return c.Conn.Close()
}
