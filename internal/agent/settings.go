package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/wire"
)

// Config is what an agent needs to be told. Zero values mean the default named
// with the field.
type Config struct {
	// Control are addresses of control planes, tried in turn.
	Control []string
	// Node is who this proxy claims to be.
	Node chandler.Node
	// Data is the agent's own directory; one agent at a time.
	Data string
	// Admin is the address of health and metrics; empty: none.
	Admin string
	// Envoy is the path of the binary; default "envoy", looked up in PATH.
	Envoy string
	// EnvoyArgs is what a user would have given to Envoy.
	EnvoyArgs []string
	// HostEnv are the variables a plugin may copy from the agent's environment.
	HostEnv map[string]string
	// Drain bounds the time from a request to stop to Envoy's end; default 10 s. Less
	// than a millisecond is none: Envoy is told to end at once, and how long listeners
	// that are replaced drain is left to it.
	Drain time.Duration
	// LeaveEnvoy leaves Envoy running when Run ends, for the next agent. DieTogether is
	// the opposite: the kernel kills Envoy when this process ends, however it ends.
	LeaveEnvoy, DieTogether bool
	// NoChild: somebody else starts Envoy, with what WriteBootstrap wrote for the same
	// Data and EnvoyArgs.
	NoChild bool
	// EnvoyAdmin is where the admin interface of such an Envoy is reached from here,
	// HOST:PORT or unix:///PATH; default: where its configuration says.
	EnvoyAdmin string
	// DataGroup is the group, by its name or number, that may read modules and
	// configuration in Data, and connect to its sockets; empty: nobody but the owner.
	DataGroup string
	// Signals are for Envoy: each is handed on to it. Nil: none are.
	Signals <-chan os.Signal
	// Restart says what becomes of an Envoy that ends by itself: RestartNever, the
	// default, or RestartOnFailure.
	Restart string
	// StoreMax bounds the modules on disk, in bytes; default store.DefaultMaxBytes.
	StoreMax int64
	// FetchFrom says where modules are fetched from: FromControl, the default,
	// FromMirror or FromOrigin.
	FetchFrom string
	// Hosts has the mirrors for FromMirror, which needs it, and for FromOrigin.
	Hosts fetch.Hosts
	// DockerConfig is a directory whose config.json has this node's credentials for
	// either; empty: anonymously.
	DockerConfig string
	// Scrub is the period within which every stored module is hashed again; default
	// store.DefaultScrub.
	Scrub time.Duration
	// DialOptions are used towards the control plane; default: no TLS.
	DialOptions []grpc.DialOption
	// Beside, when set, runs as long as Envoy is looked after, within Data; an error of
	// it ends the agent.
	Beside func(ctx context.Context) error
	// EnvoyLog gets a copy of Envoy's log; nil: nobody.
	EnvoyLog io.Writer
	Log      *slog.Logger
	// Metrics are registered on and served from it; default: a new one.
	Metrics *prometheus.Registry
	// Collectors are further metrics.
	Collectors []prometheus.Collector
}

// Where modules can be fetched from. An origin and its mirrors, or the mirrors alone,
// are asked by digest, and the control plane is asked for what none of them has.
const (
	FromControl = "control"
	FromMirror  = "mirror"
	FromOrigin  = "origin"
)

// New checks the configuration. It starts nothing and writes nothing.
func New(cfg Config) (*Agent, error) {
	if cfg.Node.Name == "" || cfg.Node.Namespace == "" {
		return nil, errors.New("a node needs a name and a namespace")
	}
	if err := wire.CheckNode(cfg.Node); err != nil {
		return nil, err // else every control plane would say so, for ever
	}
	if cfg.Drain < 0 {
		return nil, fmt.Errorf("%s is not a time for which Envoy may drain", cfg.Drain)
	}
	if cfg.Data == "" {
		return nil, errors.New("the agent needs a directory of its own")
	}
	args, err := parseEnvoyArgs(cfg.EnvoyArgs)
	if err != nil {
		return nil, err
	}
	if cfg.Envoy == "" {
		cfg.Envoy = "envoy"
	}
	if cfg.Drain == 0 {
		cfg.Drain = 10 * time.Second
	}
	if cfg.DialOptions == nil {
		cfg.DialOptions = []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	}
	switch cfg.FetchFrom {
	case "":
		cfg.FetchFrom = FromControl
	case FromControl, FromMirror, FromOrigin:
	default:
		return nil, fmt.Errorf("modules are fetched from %q, %q or %q, not from %s", FromControl, FromMirror, FromOrigin, chandler.Quote(cfg.FetchFrom))
	}
	if cfg.FetchFrom == FromMirror && cfg.Hosts == nil || cfg.FetchFrom == FromControl && cfg.Hosts != nil {
		return nil, fmt.Errorf("a folder of mirrors is for modules that are fetched from %q, which needs one, or %q", FromMirror, FromOrigin)
	}
	switch cfg.Restart {
	case "":
		cfg.Restart = RestartNever
	case RestartNever, RestartOnFailure:
	default:
		return nil, fmt.Errorf("an Envoy that ends is started anew %q or %q, not %s", RestartNever, RestartOnFailure, chandler.Quote(cfg.Restart))
	}
	group, err := lookupGroup(cfg.DataGroup)
	if err != nil {
		return nil, err
	}
	if err := cfg.checkNoChild(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = prometheus.NewRegistry()
		cfg.Metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	}
	return &Agent{
		cfg: cfg, log: cfg.Log, envoyArgs: args, group: group,
		inbox:      make(chan message, 256),
		relistings: make(chan listenersFile, 1),
		lookNow:    make(chan struct{}, 1),
		leases:     map[chandler.ModuleDigest]*store.Lease{},
		assignedAt: map[chandler.Key]time.Time{},
		attaching:  map[chandler.Key]attaching{},
		failures:   failures{},
	}, nil
}
