package main

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/identity"
	"chandler.dev/chandler/internal/policy"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/resolve"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/trust"
	"chandler.dev/chandler/internal/vet"
	"chandler.dev/chandler/internal/web"
)

// garbage is how much of it there may be beside what is in use, in percent. Most of what
// is in use with thousands of agents is theirs and stays, so that less than Go's 100 costs
// little; GOGC in the environment goes before it.
const garbage = 80

// serveFlags are the flags of "chandler serve".
type serveFlags struct {
	plugins, data, listen  string
	config                 string
	rootNamespace          string
	resolveInterval, scrub time.Duration
	fetchDeadline          time.Duration
	storeMax               store.Size
	fetch                  fetchFlags
	vet                    vetFlags
	logLevel               string
	tls                    tlsFlags
	enrol                  enrolFlags
	admin                  adminFlags
	kube                   kubeFlags
	traceEndpoint          string
}

func serveCommand(e *env) *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the control plane",
		Long: `Run the control plane: read plugins, resolve and check their modules, and send
them to the agents.

Plugins come from the folder given by --plugins, which is only read, and from
"chandler apply"; or, with --kube, from a Kubernetes cluster. Agents connect to --listen, the other commands to --admin; both
are for this machine unless you say otherwise; agents on other machines need TLS
(--tls-cert, --tls-key) and certificates of their own (--client-ca). Commands of
this user need nothing; who else may change what is said in docs/machines.md. Registry credentials are those of
docker's configuration (DOCKER_CONFIG), and the pull secrets beside the plugins.`,
		Example: `  chandler serve --plugins ./plugins --data ./data
  chandler serve --kube --kubeconfig ~/.kube/config`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return e.serve(cmd.Context(), f, givenFlags(cmd.Flags())) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.plugins, "plugins", "", "folder of plugin YAML; it is watched and never written")
	flags.StringVar(&f.data, "data", "chandler-data", "folder for records, modules and applied plugins")
	flags.StringVar(&f.listen, "listen", "127.0.0.1:9910", "address for agents; unix:///PATH is a socket for this user alone")
	flags.StringVar(&f.rootNamespace, "root-namespace", control.DefaultRootNamespace, "namespace whose plugins are for proxies of every namespace; - for none")
	flags.DurationVar(&f.resolveInterval, "resolve-interval", 0, "resolve tags with pull policy Always again after this time; 0 for only when the resource changes")
	f.storeMax = store.DefaultMaxBytes
	flags.Var(&f.storeMax, "store-max", "how much the modules on disk may take, for example 500MiB; those longest unused go first, and none that is attached")
	flags.DurationVar(&f.scrub, "scrub", store.DefaultScrub, "period within which every stored module is hashed again")
	flags.DurationVar(&f.fetchDeadline, "fetch-deadline", 30*time.Second, "how long an agent may take to fetch a new plugin's module before the plugin's failStrategy applies on its proxy; fetching goes on")
	f.fetch.add(flags)
	flags.StringVar(&f.config, "config", "", "file of what plugins may do, whose signatures they must have and more (docs/config.md); read again when it changes")
	f.vet.add(flags)
	f.tls.add(flags)
	f.enrol.add(flags)
	f.admin.add(flags)
	f.kube.add(flags)
	flags.StringVar(&f.traceEndpoint, "trace-endpoint", "", "collector of traces that speaks OTLP over HTTP, for example http://127.0.0.1:4318; each change of a plugin is a trace, from apply to in force everywhere")
	flags.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}

func (e *env) serve(ctx context.Context, f serveFlags, given []string) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.logLevel)); err != nil {
		return usagef("--log-level: %v", err)
	}
	log := slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: level}))
	// Whoever reads the log may go (a pipe into tee): that takes nothing but the lines.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	if f.fetchDeadline <= 0 {
		return usagef("--fetch-deadline: %s is not a time to wait", f.fetchDeadline)
	}
	if err := f.kube.check(f.plugins); err != nil {
		return err
	}
	if err := f.enrol.check(&f); err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbage)
	}
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	op, err := openOperator(f.config, metrics, log)
	if err != nil {
		return err
	}
	data, err := filepath.Abs(f.data)
	if err != nil {
		return err
	}
	if err := durable.Mkdir(durable.OS(), data); err != nil {
		return err
	}
	lock, err := durable.Lock(data)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	modules, err := store.Open(store.Config{Dir: filepath.Join(data, "modules"), MaxBytes: int64(f.storeMax), Log: log})
	if err != nil {
		return err
	}
	defer modules.Close()
	vetter, err := f.vet.open(ctx, filepath.Join(data, "vet"), metrics, log)
	if err != nil {
		return err
	}
	defer vetter.Close()
	traces, end, err := openTraces(f.traceEndpoint, metrics, log)
	if err != nil {
		return err
	}
	defer end()
	plane, inCluster, shown, err := newControl(f, data, op, modules, vetter, traces, metrics, log)
	if err != nil {
		return err
	}
	shown.Metrics, shown.Tracer, shown.Setup = metrics, traces, op.setup(given, time.Now())
	return e.run(ctx, f, data, op, plane, inCluster, shown, log)
}

// newControl puts the control plane together, and says what of it the admin port
// shows; the cluster is nil without --kube. The listener it opens is closed by the control plane's Run.
func newControl(f serveFlags, data string, op *operator, modules *store.Store, vetter *vet.Vetter, traces trace.Tracer, metrics *prometheus.Registry, log *slog.Logger) (*control.Control, *cluster, web.Config, error) {
	f.fetch.strict = op.strict
	client, err := f.fetch.open(log)
	if err != nil {
		return nil, nil, web.Config{}, err
	}
	op.verifier = trust.New(trust.Config{Registry: client, Dir: filepath.Join(data, "signatures"), Registerer: metrics, Log: log})
	op.ground = policy.Ground{Insecure: f.fetch.insecure}
	if f.rootNamespace != control.NoRootNamespace {
		op.ground.RootNamespace = cmp.Or(f.rootNamespace, control.DefaultRootNamespace)
	}
	cfg := control.Config{
		Store:    modules,
		Resolver: resolve.New(resolve.Config{Fetcher: client, Store: modules, Schemas: schemasBy(client), Log: log}),
		Policy:   resolve.Policy{Interval: f.resolveInterval},
		Vetter:   vetter,
		Gate:     op.gate(op.file.Load()), RequireEnvoyVersions: op.requireVersions,
		Rollouts:      func(p *chandler.Plugin) *chandler.RolloutPlan { return op.file.Load().RolloutFor(p) },
		RootNamespace: f.rootNamespace, FetchDeadline: f.fetchDeadline, Scrub: f.scrub, Tracer: traces, Registerer: metrics, Log: log,
	}
	var shown web.Config
	var reviewer identity.Reviewer
	var inCluster *cluster
	if f.kube.on {
		if inCluster, err = f.kube.connect(log); err != nil {
			return nil, nil, shown, err
		}
		cfg.Remember = rememberGone
		cfg.Source, cfg.Records, reviewer, shown.ReadOnly = inCluster.source, inCluster.records, inCluster.tokens, readOnly
		shown.Reviewer = inCluster.admins
	} else {
		records, err := record.OpenDirectory(durable.OS(), filepath.Join(data, "records"), log)
		if err != nil {
			return nil, nil, shown, err
		}
		plugins, err := source.OpenDirectory(source.DirectoryConfig{Dir: f.plugins, Data: data, Now: time.Now, Log: log})
		if err != nil {
			return nil, nil, shown, err
		}
		cfg.Source, cfg.Records, shown.Editor = plugins, records, plugins
	}
	agents, err := f.tls.open(f.listen, reviewer, f.enrol.in(filepath.Join(data, "nodes")), metrics, log)
	if err != nil {
		return nil, nil, shown, err
	}
	f.fetch.own.add(agents.listener)
	cfg.Listener, cfg.Authenticator = agents.listener, agents.agents
	if agents.tls != nil {
		cfg.Credentials = agents.tls
	}
	if err := op.identify(agents.agents); err != nil {
		agents.listener.Close()
		return nil, nil, shown, err
	}
	if agents.roll != nil {
		cfg.Services = append(cfg.Services, agents.enrolment)
		shown.Nodes = agents.roll
	}
	var plane *control.Control
	if err = f.kube.replicas.join(&cfg, inCluster, log); err == nil {
		plane, err = control.New(cfg)
	}
	if err != nil {
		agents.listener.Close()
		return nil, nil, shown, err
	}
	shown.Control, shown.Rollouts, shown.Grants, shown.Admit = plane, plane, op.grants, op.admit
	shown.Imports = importsOf(modules)
	return plane, inCluster, shown, nil
}

// run serves until ctx ends.
func (e *env) run(ctx context.Context, f serveFlags, data string, op *operator, plane *control.Control, inCluster *cluster, shown web.Config, log *slog.Logger) error {
	admin, err := f.admin.open(e, data, &shown, log)
	if err != nil {
		return err
	}
	f.fetch.own.add(admin.listeners...)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return plane.Run(ctx) })
	g.Go(func() error {
		op.watch(ctx, plane)
		return nil
	})
	if inCluster != nil {
		g.Go(func() error { return inCluster.statuses(plane, log).Run(ctx) })
	}
	g.Go(func() error { return admin.serve(ctx, web.Handler(shown), log) })
	log.Info("serving", "agents", f.listen, "admin", f.admin.listen, "version", version)
	return g.Wait()
}
