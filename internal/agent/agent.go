package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/wire"
	"chandler.dev/chandler/internal/xds/deltaclient"
	"chandler.dev/chandler/internal/xds/envoyads"
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
	// Drain bounds the time from a request to stop to Envoy's end; default 10 s.
	Drain time.Duration
	// LeaveEnvoy leaves Envoy running when Run ends, for the next agent.
	LeaveEnvoy bool
	// DialOptions are used towards the control plane; default: no TLS.
	DialOptions []grpc.DialOption
	// EnvoyLog gets a copy of Envoy's log; nil: nobody.
	EnvoyLog io.Writer
	Log      *slog.Logger
	// Metrics are registered on and served from it; default: a new one.
	Metrics *prometheus.Registry
}

// Agent runs beside one Envoy.
type Agent struct {
	cfg Config
	log *slog.Logger

	binary     envoyBinary
	derived    attach.Derived
	envoyArgs  envoyArgs
	envoyAdmin *adminClient
	envoyLog   *envoyLog
	process    *envoyProcess
	adopted    bool // the process was left behind by the agent before

	lastGood Restored
	restored bool // lastGood was on disk

	state    *State
	store    *store.Store
	loader   *loader
	ads      *envoyads.Server
	reporter *reporter
	metrics  *metrics
	inbox    chan message
	// leases keep modules on disk that a composition names or may name.
	leases map[chandler.ModuleDigest]*store.Lease
	// assignedAt is when a plugin's newest version came, until it is pushed.
	assignedAt map[chandler.Key]time.Time
	// logMark is the place in Envoy's log where the last push was answered.
	logMark atomic.Int64
	// known are the versions of the assigned resources, for reconnects.
	known atomic.Pointer[map[string]string]
	view  atomic.Pointer[view]
}

// message is an event for the goroutine that owns the state, with the lease
// that a Loaded brings.
type message struct {
	event Event
	lease *store.Lease
	fatal error
}

// view is what the admin handlers show.
type view struct {
	report  []chandler.AttachmentState
	unready []string
}

// ExitError carries Envoy's exit code to the caller of Run.
type ExitError struct {
	Code int
	Log  []string // Envoy's last lines
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("envoy ended with exit code %d", e.Code)
}

// New checks the configuration. It starts nothing and writes nothing.
func New(cfg Config) (*Agent, error) {
	if cfg.Node.Name == "" || cfg.Node.Namespace == "" {
		return nil, errors.New("a node needs a name and a namespace")
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
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = prometheus.NewRegistry()
	}
	return &Agent{
		cfg: cfg, log: cfg.Log, envoyArgs: args,
		inbox:      make(chan message, 256),
		leases:     map[chandler.ModuleDigest]*store.Lease{},
		assignedAt: map[chandler.Key]time.Time{},
	}, nil
}

// Run runs Envoy and keeps its plugins until ctx ends, which drains Envoy and
// gives nil, or until Envoy ends by itself, which gives an *ExitError. All that
// it started has ended when it returns.
func (a *Agent) Run(ctx context.Context) error {
	lock, err := a.openDirectory()
	if err != nil {
		return err
	}
	defer lock.Unlock()
	a.store, err = store.Open(store.Config{Dir: filepath.Join(a.cfg.Data, "modules")})
	if err != nil {
		return err
	}
	defer a.store.Close()
	a.metrics = newMetrics(a.cfg.Metrics, a.store)
	if a.binary, err = probeEnvoy(ctx, a.cfg.Envoy); err != nil {
		return err
	}
	if !a.binary.slots {
		return fmt.Errorf("the Envoy %s at %s has no filter chain filter (envoy.filters.http.filter_chain); use 1.39 or newer", a.binary.version, a.binary.path)
	}
	a.cfg.Node.EnvoyVersion = a.binary.version
	sockets, err := socketDir(a.envoyDir())
	if err != nil {
		return err
	}
	if err := a.derive(sockets); err != nil {
		return err
	}
	return a.run(ctx, filepath.Join(sockets, "ads.sock"))
}

func (a *Agent) envoyDir() string { return filepath.Join(a.cfg.Data, "envoy") }

func (a *Agent) openDirectory() (*durable.DirLock, error) {
	if err := os.MkdirAll(a.envoyDir(), 0o700); err != nil {
		return nil, err
	}
	return durable.Lock(a.cfg.Data)
}

// derive makes the bootstrap that Envoy will run: the user's, with its listeners
// moved to a file and slots put into them.
func (a *Agent) derive(sockets string) error {
	var file []byte
	if a.envoyArgs.configPath != "" {
		var err error
		if file, err = os.ReadFile(a.envoyArgs.configPath); err != nil {
			return fmt.Errorf("envoy configuration: %w", err)
		}
	}
	config, err := attach.MergeConfig(a.envoyArgs.configPath, file, a.envoyArgs.configYAML)
	if err != nil {
		return fmt.Errorf("envoy configuration: %w", err)
	}
	a.derived, err = attach.Derive(config, a.deriveConfig(sockets))
	if err != nil {
		return fmt.Errorf("envoy configuration: %w", err)
	}
	for _, warning := range a.derived.Warnings {
		a.log.Warn("envoy configuration", "warning", warning)
	}
	a.envoyAdmin = newAdminClient(a.derived.Admin.Network, a.derived.Admin.Address)
	return nil
}

// deriveConfig leaves the node's id and cluster out where the command line
// gives them.
func (a *Agent) deriveConfig(sockets string) attach.DeriveConfig {
	dc := attach.DeriveConfig{
		ADSSocket:     filepath.Join(sockets, "ads.sock"),
		AdminSocket:   filepath.Join(sockets, "admin.sock"),
		ListenersFile: filepath.Join(a.envoyDir(), "listeners"),
	}
	if a.envoyArgs.serviceNode == "" {
		dc.NodeID = a.cfg.Node.ID()
	}
	if a.envoyArgs.serviceCluster == "" {
		dc.Cluster = a.cfg.Node.Namespace
	}
	return dc
}

func (a *Agent) bootstrapPath() string {
	return filepath.Join(a.envoyDir(), "bootstrap"+a.derived.Extension)
}

// run starts everything and owns the state until the end.
func (a *Agent) run(ctx context.Context, socket string) error {
	a.state = NewState(Settings{
		Slots:    a.derived.Slots,
		HostEnv:  a.cfg.HostEnv,
		Features: []string{chandler.FeatureHTTP, chandler.FeatureLua, chandler.FeatureFile},
		Jitter:   rand.Float64,
	})
	a.cfg.Node.Features = a.state.set.Features
	var err error
	if a.lastGood, a.restored, err = loadLastGood(a.cfg.Data); err != nil {
		a.log.Error("last good set", "error", err)
	}
	known := make(map[string]string, len(a.lastGood.Versions))
	for _, v := range a.lastGood.Versions {
		known[v.Key.String()] = v.Version
	}
	a.known.Store(&known)
	a.reporter = &reporter{node: wire.NodeToProto(a.cfg.Node), changed: make(chan struct{}, 1)}
	a.loader = &loader{
		store: a.store, node: wire.NodeToProto(a.cfg.Node), metrics: a.metrics,
		slots: semaphore.NewWeighted(maxLoads), running: map[Source]context.CancelFunc{},
	}

	// Everything below ends with the services' context; Envoy is stopped first.
	services, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	g, services := errgroup.WithContext(services)
	a.loader.done = func(ev Loaded, lease *store.Lease) {
		if !a.send(services, message{event: ev, lease: lease}) && lease != nil {
			lease.Release()
		}
	}
	if err := a.startServices(services, g, socket); err != nil {
		cancel()
		_ = g.Wait()
		return err
	}
	err = a.loop(ctx, services)
	cancel()
	a.loader.wait()
	if waitErr := g.Wait(); err == nil && !errors.Is(waitErr, context.Canceled) {
		err = waitErr
	}
	for _, lease := range a.leases {
		lease.Release()
	}
	return err
}

func (a *Agent) startServices(ctx context.Context, g *errgroup.Group, socket string) error {
	_ = os.Remove(socket) // of an agent that is gone: the directory is locked
	ads, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	a.ads = envoyads.New(envoyads.Config{Log: a.log, Events: func(ev envoyads.Event) { a.envoyEvent(ctx, ev) }})
	a.envoyLog = a.openEnvoyLog()
	g.Go(func() error { return a.ads.Serve(ctx, ads) })
	if a.cfg.Admin != "" {
		lis, err := net.Listen("tcp", a.cfg.Admin)
		if err != nil {
			return fmt.Errorf("admin address: %w", err)
		}
		g.Go(func() error { return serveHTTP(ctx, lis, a.adminHandler(a.cfg.Metrics)) })
	}
	if err := a.takeEnvoy(); err != nil {
		return err
	}
	g.Go(func() error { a.envoyLog.run(ctx); return nil })
	g.Go(func() error {
		switch err := a.envoyAdmin.awaitListeners(ctx, 20*time.Millisecond); {
		case err == nil:
			a.send(ctx, message{event: ListenersOpen{}})
		case errors.Is(err, errListenersRefused):
			a.send(ctx, message{fatal: err})
		}
		return nil
	})
	if len(a.cfg.Control) > 0 {
		g.Go(func() error { return a.followControl(ctx) })
	}
	return nil
}

// openEnvoyLog follows Envoy's log from where it ends now.
func (a *Agent) openEnvoyLog() *envoyLog {
	l := &envoyLog{path: a.envoyArgs.logPath, out: a.cfg.EnvoyLog}
	if l.path == "" {
		l.path, l.own = filepath.Join(a.envoyDir(), "envoy.log"), true
	}
	if st, err := os.Stat(l.path); err == nil {
		l.offset = st.Size()
	}
	return l
}

// takeEnvoy gets an Envoy: the one that the agent before left behind, if it is
// of the same program and configuration and there is a last good set to go on
// with; else a new one, after that has ended.
func (a *Agent) takeEnvoy() error {
	config := string(chandler.Digest[string](append(append([]byte(nil), a.derived.Bootstrap...), a.derived.Listeners...)))
	record, process := leftBehind(a.envoyDir())
	if process != nil {
		if a.restored && record.Binary == a.binary.digest && record.Config == config {
			a.process, a.adopted = process, true
			a.log.Info("envoy adopted", "version", a.binary.version, "pid", record.PID)
			return nil
		}
		a.log.Info("an Envoy of another program or configuration is stopped first", "pid", record.PID)
		process.stop(newAdminClient(record.AdminNetwork, record.AdminAddress), a.cfg.Drain)
	}
	for path, content := range map[string][]byte{a.derived.ListenersFile: a.derived.Listeners, a.bootstrapPath(): a.derived.Bootstrap} {
		if err := durable.Write(durable.OS(), path, content); err != nil {
			return err
		}
	}
	drain := strconv.Itoa(max(1, int(a.cfg.Drain/time.Second)))
	started, err := startEnvoy(a.binary, a.envoyArgs.commandLine(a.bootstrapPath(), drain), a.envoyLog.path)
	if err != nil {
		return err
	}
	a.process = started
	pid := started.proc.Pid
	a.log.Info("envoy started", "version", a.binary.version, "pid", pid)
	begun, ok := processStart(pid)
	if !ok {
		return nil // it has ended, or this system cannot tell: nothing to adopt later
	}
	return saveProcess(a.envoyDir(), processRecord{
		PID: pid, Started: begun, Binary: a.binary.digest, Config: config,
		AdminNetwork: a.derived.Admin.Network, AdminAddress: a.derived.Admin.Address,
	})
}

// send hands a message to the goroutine that owns the state.
func (a *Agent) send(ctx context.Context, m message) bool {
	select {
	case a.inbox <- m:
		return true
	case <-ctx.Done():
		return false
	}
}

// loop owns the state. It returns when Envoy has ended.
func (a *Agent) loop(ctx, services context.Context) error {
	if a.restored {
		a.step(services, message{event: a.lastGood})
	}
	a.step(services, message{event: EnvoyStarted{Envoy: a.binary.digest, Open: a.adopted}})
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if at := a.state.Wake(); !at.IsZero() {
			timer.Reset(max(0, time.Until(at)))
		} else {
			timer.Reset(time.Hour)
		}
		select {
		case m := <-a.inbox:
			if m.fatal != nil {
				a.process.stop(a.envoyAdmin, time.Millisecond)
				return fmt.Errorf("%w:\n%s", m.fatal, strings.Join(a.envoyLog.tail(12), "\n"))
			}
			a.step(services, m)
		case <-timer.C:
			a.step(services, message{event: Tick{}})
		case <-a.process.done:
			return &ExitError{Code: a.process.exitCode(), Log: a.envoyLog.tail(20)}
		case <-ctx.Done():
			if a.cfg.LeaveEnvoy {
				a.log.Info("envoy is left running", "pid", a.process.proc.Pid)
				return nil
			}
			a.log.Info("draining envoy", "at most", a.cfg.Drain)
			a.process.stop(a.envoyAdmin, a.cfg.Drain)
			return nil
		}
	}
}

// step feeds one event to the state and runs the effects.
func (a *Agent) step(ctx context.Context, m message) {
	now := time.Now()
	if ev, ok := m.event.(Assigned); ok {
		for _, v := range ev.Changed {
			a.assignedAt[v.Key] = now
		}
	}
	effects := a.state.Step(m.event, now)
	if m.lease != nil {
		a.keep(m.lease)
	}
	for _, effect := range effects {
		a.run1(ctx, effect, now)
	}
	a.releaseUnused()
	a.publish()
}

// run1 runs one effect.
func (a *Agent) run1(ctx context.Context, effect Effect, now time.Time) {
	switch e := effect.(type) {
	case Load:
		a.loader.start(ctx, e.Source)
	case CancelLoad:
		a.loader.cancel(e.Source)
	case Push:
		a.push(e, now)
	case SaveLastGood:
		if err := saveLastGood(durable.OS(), a.cfg.Data, e); err != nil {
			a.log.Error("last good set not written", "error", err)
		}
	}
}

func (a *Agent) push(p Push, now time.Time) {
	a.ads.Set(p.Slot, p.Version, attach.Body(p.Config))
	for _, key := range p.Wasm {
		if at, ok := a.assignedAt[key]; ok {
			a.metrics.converted(conversionSuccess, now.Sub(at))
			delete(a.assignedAt, key)
		}
	}
}

// keep takes a lease over; a digest needs only one.
func (a *Agent) keep(lease *store.Lease) {
	if _, ok := a.leases[lease.Digest()]; ok {
		lease.Release()
		return
	}
	a.leases[lease.Digest()] = lease
}

// releaseUnused gives the leases up that the state no longer counts on.
func (a *Agent) releaseUnused() {
	needed := a.state.Modules()
	for digest, lease := range a.leases {
		if !needed[digest] {
			lease.Release()
			delete(a.leases, digest)
		}
	}
}

// publish shows the state to the control plane, the metrics and the admin page.
func (a *Agent) publish() {
	report := a.state.Report()
	a.reporter.set(report)
	a.metrics.states(report)
	v := &view{unready: a.state.Readiness()}
	for _, key := range a.state.sortedKeys() {
		if st, ok := report[key]; ok {
			v.report = append(v.report, st)
		}
	}
	a.view.Store(v)
	known := a.state.Known()
	a.known.Store(&known)
}

// envoyEvent passes on what Envoy did. A NACK waits for the reason in the log;
// no other push is under way meanwhile.
func (a *Agent) envoyEvent(ctx context.Context, ev envoyads.Event) {
	switch ev := ev.(type) {
	case envoyads.Subscribed:
		a.send(ctx, message{event: Subscribed{Slot: ev.Slot}})
	case envoyads.Acked:
		a.logMark.Store(a.envoyLog.mark())
		a.send(ctx, message{event: Acked{Slot: ev.Slot, Version: ev.Version}})
	case envoyads.Nacked:
		reason := a.envoyLog.reason(ctx, a.logMark.Load())
		a.logMark.Store(a.envoyLog.mark())
		a.log.Warn("envoy refused a composition", "slot", ev.Slot, "message", ev.Message, "reason", reason)
		if slot, ok := attach.ParseSlot(ev.Slot); ok {
			a.metrics.nacks.WithLabelValues(cmp.Or(string(slot.Phase), "UNSPECIFIED")).Inc()
		}
		a.send(ctx, message{event: Nacked{Slot: ev.Slot, Version: ev.Version, Message: ev.Message, Reason: reason}})
	}
}

// followControl keeps the stream to a control plane until ctx ends.
func (a *Agent) followControl(ctx context.Context) error {
	client := deltaclient.New(deltaclient.Config{
		Targets: a.cfg.Control,
		Dial:    a.cfg.DialOptions,
		Node:    wire.NodeToXDS(a.cfg.Node),
		TypeURL: wire.AttachmentTypeURL,
		Known:   func() map[string]string { return *a.known.Load() },
		Handle:  func(u deltaclient.Update) error { return a.assigned(ctx, u) },
		Session: func(ctx context.Context, conn *grpc.ClientConn) {
			a.loader.conn.Store(conn)
			defer a.loader.conn.CompareAndSwap(conn, nil)
			a.report(ctx, conn)
		},
		Connected: func(up bool, target string, _ error) {
			if up {
				a.metrics.connected.Set(1)
				a.log.Info("connected to control plane", "address", target)
			} else {
				a.metrics.connected.Set(0)
			}
		},
		Log: a.log,
	})
	return client.Run(ctx)
}

// report keeps the report stream of a connection; the connection's end is its
// end too.
func (a *Agent) report(ctx context.Context, conn *grpc.ClientConn) {
	for ctx.Err() == nil {
		if err := a.reporter.run(ctx, conn); ctx.Err() == nil {
			a.log.Warn("report stream ended", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(reportRetry):
		}
	}
}

// reportRetry is how soon a broken report stream is opened again.
const reportRetry = time.Second

// assigned takes an update in. What cannot be read is refused by name and the
// rest is taken: one plugin must not hold up the others.
func (a *Agent) assigned(ctx context.Context, u deltaclient.Update) error {
	var ev Assigned
	var errs []error
	for _, r := range u.Changed {
		att, err := wire.UnmarshalAttachment(r.Body)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", chandler.Quote(r.Name), err))
			continue
		}
		ev.Changed = append(ev.Changed, Version{Attachment: att, Version: r.Version})
	}
	for _, name := range u.Removed {
		if key, ok := chandler.ParseKey(name); ok {
			ev.Removed = append(ev.Removed, key)
		}
	}
	if !a.send(ctx, message{event: ev}) {
		return ctx.Err()
	}
	return errors.Join(errs...)
}
