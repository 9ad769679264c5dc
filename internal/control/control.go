// Package control is the control plane's loop. It takes snapshots of the
// resources in, has them resolved into releases, records those, and serves every
// agent the attachments that are for it, the bytes of the modules they name, and
// an ear for its reports.
//
// One goroutine, the loop, owns the plugins' state and publishes it as a whole,
// immutable; what the services and Objects read is always one such publication.
// The nodes and what they report are kept apart (fleet), since they change far
// more often and decide nothing. It neither decodes resources nor talks to
// registries or to Envoy, and has no face for people.
package control

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/resolve"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/vet"
	"chandler.dev/chandler/internal/wire"
	"chandler.dev/chandler/internal/xds/deltaserver"
	"chandler.dev/chandler/internal/xds/quiet"
)

// DefaultRootNamespace is the namespace whose plugins reach every namespace;
// NoRootNamespace is for none to do so.
const (
	DefaultRootNamespace = "istio-system"
	NoRootNamespace      = "-"
)

// Config is what a control plane works with.
type Config struct {
	Source   source.Source
	Records  record.Store
	Store    *store.Store
	Resolver *resolve.Resolver
	Policy   resolve.Policy
	// Vetter has releases tried before they are recorded; nil: nobody has.
	Vetter *vet.Vetter
	// RequireEnvoyVersions tells whether a release is withheld from proxies in whose
	// version of Envoy it was not tried; they keep what they have. Nil: it is not. What
	// it says may change: Reconsider then.
	RequireEnvoyVersions func() bool
	// Gate is what plugins and releases are judged by at first (see Govern); nil:
	// everything may be.
	Gate Gate
	// Listener takes the agents' connections; Run closes it.
	Listener net.Listener
	// Credentials make the agents' port safe; nil: it is not. Services adds services;
	// they decide themselves whom to answer.
	Credentials credentials.TransportCredentials
	Services    []interface{ Register(grpc.ServiceRegistrar) }

	// Rollouts gives the plan of plugins that have none of their own; nil: they have
	// none, and a change of them goes to everyone at once. What it says may change.
	Rollouts func(*chandler.Plugin) *chandler.RolloutPlan

	// RootNamespace is DefaultRootNamespace when empty. Who may write there is a
	// matter of whoever keeps the resources; NoRootNamespace is the switch against it.
	RootNamespace string
	// FetchDeadline is how long an agent may take to fetch a plugin's first module
	// before failStrategy applies on its proxy; zero: the agents' default.
	FetchDeadline time.Duration
	// Remember is how long the rollout record of a plugin that is gone is kept, so
	// that a resource which comes back, with another uid, finds its digests; zero:
	// not at all.
	Remember time.Duration
	// Scrub is the period within which every stored module is hashed again; zero
	// means store.DefaultScrub.
	Scrub time.Duration
	// Authenticator decides who an agent is; nil is Loopback.
	Authenticator Authenticator
	// Recheck is the period within which the Authenticator is asked again about
	// every agent that stays connected; a minute when zero. Loopback is not.
	Recheck time.Duration
	// Election tells which of several replicas leads, and Peers how they reach each
	// other. Their Records are a record.Watcher. Nil: there is only this one.
	Election Election
	Peers    *Peers
	// Tracer gets a trace of every change of a plugin; nil: nobody does.
	Tracer trace.Tracer
	// Registerer takes the metrics; nil keeps them to ourselves.
	Registerer prometheus.Registerer
	// Now is the clock, time.Now when nil. Waiting goes by the real one.
	Now func() time.Time
	Log *slog.Logger
}

// Control is a control plane. New starts nothing; Run does.
type Control struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	fleet   *fleet
	server  *deltaserver.Server
	board   board
	journal journal
	hands   hands
	// told and byHand are what was told of; transit's.
	told     map[string]*told                   // by entry
	byHand   map[chandler.Key]map[string]string // why plugins are taken out on machines, by node
	schemas  *schemas
	office   office
	journeys *journeys
	begun    time.Time   // Run
	lowered  atomic.Bool // this replica is cut off

	published atomic.Pointer[publication]     // nil before the first snapshot
	gauges    atomic.Pointer[gauges]          // what was measured last; nil: nothing
	broken    atomic.Pointer[[]source.Broken] // of the newest snapshot
	turns     *turns                          // of those who read modules
	encodings *encodings

	snapshots chan delivery
	gates     chan Gate
	outcomes  chan outcome
	parked    chan struct{} // a job has room for another one made
	collected chan rubbish
	changes   chan record.Change
	moved     chan moved
	steered   chan record.Rollout        // records that were moved by an order
	missing   chan chandler.ModuleDigest // modules that were asked for and are not in the store
}

// New gives a control plane and registers its metrics. The error is one of the
// registerer.
func New(cfg Config) (*Control, error) {
	switch cfg.RootNamespace {
	case "":
		cfg.RootNamespace = DefaultRootNamespace
	case NoRootNamespace:
		cfg.RootNamespace = "" // as package assign has it
	}
	switch cfg.Authenticator.(type) {
	case nil, Loopback:
		cfg.Authenticator, cfg.Recheck = Loopback{}, 0
	default:
		cfg.Recheck = cmp.Or(cfg.Recheck, time.Minute)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Control{
		cfg: cfg, log: cfg.Log,
		turns:     &turns{free: maxReads},
		encodings: newEncodings(maxEncoded),
		snapshots: make(chan delivery),
		gates:     make(chan Gate),
		outcomes:  make(chan outcome, maxJobs+maxAtVet),
		parked:    make(chan struct{}, 1),
		collected: make(chan rubbish, 1),
		changes:   make(chan record.Change, maxChanges),
		moved:     make(chan moved),
		steered:   make(chan record.Rollout),
		missing:   make(chan chandler.ModuleDigest, 16),
	}
	c.schemas = &schemas{store: cfg.Store, known: map[chandler.SchemaDigest]compiled{}}
	c.board.transitions, c.board.standings, c.told = map[string]chandler.Status{}, map[string]standing{}, map[string]*told{}
	c.journal.now = cfg.Now
	c.journeys = newJourneys(cfg.Tracer, cfg.Now)
	c.metrics = newMetrics(c)
	if cfg.Registerer != nil {
		if err := c.metrics.register(cfg.Registerer); err != nil {
			return nil, fmt.Errorf("control: %w", err)
		}
	}
	c.fleet = newFleet(cfg.Now, c.metrics.rejects)
	c.server = deltaserver.New(deltaserver.Config{
		TypeURL:      wire.AttachmentTypeURL,
		Identity:     identity(cfg.Election),
		Claimed:      claimed,
		Authenticate: c.admit,
		View:         c.view,
		Connected:    c.fleet.connected,
		Nacked: func(n chandler.Node, names []string, detail string) {
			c.log.Warn("an agent cannot read what it was sent", "node", n.ID(), "plugins", names, "reason", detail)
		},
		Pushed: func(d time.Duration) { c.metrics.push.Observe(d.Seconds()) },
		Sent:   func(bytes int) { c.metrics.assigned.Add(float64(bytes)) },
		Asked: func(what deltaserver.Asked, names int) {
			c.metrics.asked.WithLabelValues(string(what)).Add(float64(names))
		},
		Log: cfg.Log,
	})
	return c, nil
}

// identity names whose sequences agents are told. Replicas share their records, and what
// one of them says late is old. Records of one process alone may be those of a back-up,
// and what they say now counts, however far agents have come.
func identity(shared Election) string {
	if shared != nil {
		return ""
	}
	return rand.Text()
}

// Ready tells why agents are not answered; nil when they are.
func (c *Control) Ready() error {
	if c.lowered.Load() {
		return errCutOff
	}
	if c.published.Load() == nil {
		return errors.New("the resources have not been read yet")
	}
	return nil
}

// Run serves until ctx ends, and returns when all that it started has ended. The
// error is that of the records at start, of the source, or of the listener; nil
// when ctx ended it.
func (c *Control) Run(ctx context.Context) error {
	c.begun = c.cfg.Now()
	l, err := c.load(ctx)
	if err != nil {
		return errors.Join(err, c.cfg.Listener.Close())
	}
	server := c.newServer()
	c.server.Register(server)
	chandlerv1.RegisterReportsServer(server, &reports{c: c})
	chandlerv1.RegisterModulesServer(server, &modules{c: c})
	healthv1.RegisterHealthServer(server, &health{c: c})
	for _, s := range c.cfg.Services {
		s.Register(server)
	}

	g, gctx := errgroup.WithContext(ctx)
	c.replicate(gctx, g.Go)
	g.Go(func() error {
		return c.cfg.Source.Run(gctx, func(s source.Snapshot) { c.deliver(gctx, s) })
	})
	g.Go(func() error { return l.run(gctx) })
	if c.cfg.Tracer != nil {
		g.Go(func() error { c.follow(gctx); return nil })
	}
	if c.cfg.Recheck > 0 {
		g.Go(func() error { c.server.Recheck(gctx, c.cfg.Recheck); return nil })
	}
	g.Go(func() error {
		c.cfg.Store.Scrub(gctx, c.cfg.Scrub, func(d chandler.ModuleDigest) {
			select {
			case c.missing <- d:
			case <-gctx.Done():
			}
		})
		return nil
	})
	g.Go(func() error { return server.Serve(c.cfg.Listener) })
	g.Go(func() error { <-gctx.Done(); server.Stop(); return gctx.Err() })
	err = g.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// delivery is a snapshot on its way to the loop, which closes taken when what is
// in it is visible.
type delivery struct {
	snapshot source.Snapshot
	taken    chan struct{}
}

// deliver hands a snapshot to the loop and waits until it is visible, so that who
// has applied something finds it afterwards.
func (c *Control) deliver(ctx context.Context, s source.Snapshot) {
	d := delivery{s, make(chan struct{})}
	select {
	case c.snapshots <- d:
	case <-ctx.Done():
		return
	}
	select {
	case <-d.taken:
	case <-ctx.Done():
	}
}

// newServer gives the agents' server. An agent that is gone without a word is noticed in
// half a minute; one that is there asks first, so that its ping is the only one.
func (c *Control) newServer() *quiet.Server {
	return quiet.NewServer(quiet.Config{
		Credentials: c.cfg.Credentials, Unknown: unknown,
		MaxMessage: 8 << 20,  // a full report of a thousand plugins with long reasons
		MaxHeaders: 64 << 10, // a token of 16 KiB at most
		MaxStreams: 64, MaxConnections: 2 * MaxNodes,
	})
}

// unknown refuses what is not served.
func unknown(method string) error {
	return wire.Refusal(codes.Unimplemented, chandler.CodeXDSPath, "%s is not served on the agents' port", chandler.Quote(method))
}

// claimed reads who says what of himself on an xDS stream.
func claimed(n *corev3.Node) (chandler.Node, error) {
	claim, err := wire.NodeFromXDS(n)
	if err != nil {
		return claim, wire.Refusal(codes.InvalidArgument, chandler.CodeXDSNode, "%s", err)
	}
	return claim, nil
}

// admit decides who opens an xDS stream.
func (c *Control) admit(ctx context.Context, claim chandler.Node) (chandler.Node, error) {
	if c.lowered.Load() {
		return chandler.Node{}, status.Error(codes.Unavailable, errCutOff.Error())
	}
	n, err := c.cfg.Authenticator.Authenticate(ctx, claim)
	if err != nil {
		return chandler.Node{}, err
	}
	return n, c.fleet.admit(n)
}

// authenticate decides who sends a report or reads a module.
func (c *Control) authenticate(ctx context.Context, claimed *chandlerv1.Node) (chandler.Node, error) {
	n, err := wire.NodeFromProto(claimed)
	if err != nil {
		return chandler.Node{}, wire.Refusal(codes.InvalidArgument, chandler.CodeXDSNode, "%s", err)
	}
	return c.cfg.Authenticator.Authenticate(ctx, n)
}

// board keeps the last status of every plugin, for the times at which its
// conditions changed, and for metrics.
type board struct {
	round       sync.Mutex // one transit at a time
	mu          sync.Mutex
	transitions map[string]chandler.Status // by uid; without proxies
	standings   map[string]standing
}
