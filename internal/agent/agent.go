package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/xds/envoyads"
)

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
	adopted    bool      // the process was left behind by the agent before
	begun      time.Time // the process
	unfollow   func()    // ends followListeners
	group      int       // that may read what Envoy needs, or noGroup
	// Of an Envoy that somebody else starts: here, it is there; first, it was so from the
	// beginning; parting, something may still come of the one before; next came
	// meanwhile; absent, why there is none; lookNow, it may have gone.
	here, parting bool
	first, next   *sighting
	absent        atomic.Pointer[string]
	lookNow       chan struct{}
	restarts      restarts
	lastExit      *ExitError
	restartAt     time.Time   // zero: none is due
	draining      atomic.Bool // the agent is to end
	// listeners is the file that Envoy begins with, relistings are those that take
	// its place.
	listeners  listenersFile
	relistings chan listenersFile

	lastGood Restored
	restored bool // lastGood was on disk

	state   *State
	store   *store.Store
	loader  *loader
	ads     slotServer // of the present Envoy; see serveSlots
	socket  string     // where it listens
	unserve func()     // ends it
	// upstreams are the control planes of Envoy's configuration, relayed the listeners
	// that come from one; nil: they come from a file.
	upstreams []*controlPlane
	relayed   *relayedListeners
	remote    *remoteWasm // what those name; nil: there are none
	reporter  *reporter
	failures  failures // that the log told of
	metrics   *metrics
	inbox     chan message
	// leases keep modules on disk that a composition names or may name.
	leases map[chandler.ModuleDigest]*store.Lease
	// bypasses are looked at by watchBypasses once that runs.
	bypasses bypassDir
	// unsaved is the last good set that could not be written; due again at saveAt.
	unsaved *SaveLastGood
	saveAt  time.Time
	// assignedAt is when a plugin's newest version came, until it is pushed.
	assignedAt map[chandler.Key]time.Time
	// attaching are the newest versions, until they are in force.
	attaching map[chandler.Key]attaching
	// logMark is the place in Envoy's log behind which stands what Envoy says of
	// the push that is under way.
	logMark atomic.Int64
	// known are the versions of the assigned resources, for reconnects.
	known atomic.Pointer[map[string]string]
	view  atomic.Pointer[view]
	// discreet: words that may be of a plugin whose configuration holds secrets are
	// not repeated.
	discreet atomic.Bool
	// control is the connection to the control plane as it is now.
	control atomic.Pointer[ControlStatus]
}

// message is an event for the goroutine that owns the state, with the lease
// that a Loaded brings.
type message struct {
	event Event
	lease *store.Lease
	fatal error
	// parted: nothing more comes of the Envoy that ended.
	parted bool
	// seen: an Envoy that somebody else started is there; lost, why it is not any more.
	seen *sighting
	lost string
}

// view is what the admin handlers show.
type view struct {
	report  []chandler.AttachmentState
	unready []string
	envoy   EnvoyStatus
	facts   *chandler.Facts // never changed
	// pushing: a push awaits Envoy's answer; counted: see State.Counted.
	pushing, counted bool
	open             bool // all listeners are, or were, active
}

// Run runs Envoy and keeps its plugins until ctx ends, which drains Envoy and
// gives nil, or until Envoy ends by itself and is not to be started anew, which
// gives an *ExitError. All that it started has ended when it returns.
func (a *Agent) Run(ctx context.Context) error {
	lock, err := a.openDirectory()
	if err != nil {
		return err
	}
	defer lock.Unlock()
	if a.cfg.NoChild || a.group != noGroup {
		if err := a.shareDirectory(); err != nil {
			return err
		}
	}
	a.store, err = store.Open(store.Config{Dir: modulesDir(a.cfg.Data), FS: a.shared(), MaxBytes: a.cfg.StoreMax, Log: a.log})
	if err != nil {
		return err
	}
	defer a.store.Close()
	a.metrics = newMetrics(a.cfg.Metrics, a.store)
	for _, c := range a.cfg.Collectors {
		if err := a.cfg.Metrics.Register(c); err != nil {
			return err
		}
	}
	if err := a.describe(ctx); err != nil {
		return err
	}
	defer a.closeUpstreams()
	if len(a.upstreams) > 0 {
		if err := a.recallUpstreams(); err != nil {
			return err
		}
		registerUpstreams(a.cfg.Metrics, a.upstreamStatus)
		a.remote = newRemoteWasm(a.store, a.cfg, a.metrics, aboutUpstream{starting: a.opening, changed: a.changedUpstream, find: a.findUpstream})
	}
	if !a.binary.Slots {
		a.log.Warn("this Envoy has no filter chain filter (1.39 and newer have it): to attach or detach a plugin drains the listener's connections", "version", a.binary.Version)
	}
	a.cfg.Node.EnvoyVersion = a.binary.Version
	return a.run(ctx)
}

// describe tells which Envoy it is, and with what it runs.
func (a *Agent) describe(ctx context.Context) error {
	if a.cfg.NoChild {
		return a.describeSeparate(ctx)
	}
	var err error
	if a.binary, err = probeEnvoy(ctx, a.cfg.Envoy, filepath.Join(a.envoyDir(), "probe.json")); err != nil {
		return err
	}
	sockets, err := socketDir(a.envoyDir())
	if err != nil {
		return err
	}
	return a.derive(sockets)
}

func (a *Agent) envoyDir() string { return filepath.Join(a.cfg.Data, "envoy") }

func (a *Agent) openDirectory() (*durable.DirLock, error) {
	if err := os.MkdirAll(a.envoyDir(), 0o700); err != nil {
		return nil, err
	}
	lock, err := durable.Lock(a.cfg.Data)
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{a.cfg.Data, a.envoyDir()} {
		if err := durable.Sweep(durable.OS(), dir); err != nil {
			a.log.Warn("what a crash left behind stays", "error", err)
		}
	}
	return lock, nil
}

// run starts everything and owns the state until the end.
func (a *Agent) run(ctx context.Context) error {
	a.cfg.Node.Features = []string{chandler.FeatureHTTP, chandler.FeatureNetwork, chandler.FeatureLua, chandler.FeatureFile, chandler.FeatureSecretConfig}
	if a.binary.Slots {
		a.cfg.Node.Features = append(a.cfg.Node.Features, chandler.FeatureSlots)
	}
	var err error
	if a.lastGood, a.restored, err = loadLastGood(durable.OS(), a.cfg.Data); err != nil {
		a.log.Error("last good set", "error", err)
	}
	known := map[string]string{}
	for _, v := range append(slices.Clone(a.lastGood.Versions), a.lastGood.Denied...) {
		known[v.Key.String()] = v.Version
	}
	a.known.Store(&known)
	a.reporter = newReporter(a.cfg.Node)
	a.loader = newLoader(a.store, a.cfg, a.metrics)
	defer a.loader.close()

	// Everything below ends with the services' context; Envoy is stopped first.
	services, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	g, services := errgroup.WithContext(services)
	a.loader.done = func(ev Loaded, lease *store.Lease) {
		if !a.send(services, message{event: ev, lease: lease}) && lease != nil {
			lease.Release()
		}
	}
	if err := a.startServices(services, g); err != nil {
		cancel()
		_ = g.Wait()
		return err
	}
	err = a.loop(ctx, services, g)
	cancel()
	a.loader.wait()
	if waitErr := g.Wait(); err == nil && !errors.Is(waitErr, context.Canceled) {
		err = waitErr
	}
	a.releaseAll()
	return err
}

// releaseAll gives every lease up: those held, and those of modules that came too
// late.
func (a *Agent) releaseAll() {
	for _, lease := range a.leases {
		lease.Release()
	}
	for len(a.inbox) > 0 {
		if m := <-a.inbox; m.lease != nil {
			m.lease.Release()
		}
	}
}

func (a *Agent) startServices(ctx context.Context, g *errgroup.Group) error {
	a.envoyLog = a.openEnvoyLog()
	if a.cfg.Admin != "" {
		lis, err := net.Listen("tcp", a.cfg.Admin)
		if err != nil {
			return fmt.Errorf("admin address: %w", err)
		}
		g.Go(func() error { return serveHTTP(ctx, lis, a.adminHandler(a.cfg.Metrics)) })
	}
	take := func() error { return a.takeEnvoy(ctx, g) }
	if a.cfg.NoChild {
		take = func() error { return a.takeSeparate(ctx) }
	}
	if err := take(); err != nil {
		return err
	}
	g.Go(func() error { a.envoyLog.run(ctx); return nil })
	g.Go(func() error { a.watchTraps(ctx); return nil })
	g.Go(func() error { a.watchTraffic(ctx); return nil })
	g.Go(func() error { a.watchBypasses(ctx); return nil })
	for _, u := range a.upstreams {
		g.Go(func() error { u.store.Run(ctx, u.lastTaken); return nil })
	}
	if a.remote != nil {
		g.Go(func() error { a.remote.run(ctx); return nil })
	}
	if a.cfg.NoChild {
		g.Go(func() error { a.watchSeparate(ctx); return nil })
	} else {
		a.followListeners(ctx, g)
	}
	g.Go(func() error {
		a.store.Scrub(ctx, a.cfg.Scrub, func(d chandler.ModuleDigest) {
			if a.remote != nil {
				a.remote.lost(d)
			}
			a.send(ctx, message{event: Lost{Digest: d}})
		})
		return nil
	})
	if a.cfg.Beside != nil {
		g.Go(func() error { return a.cfg.Beside(ctx) })
	}
	if len(a.cfg.Control) > 0 {
		g.Go(func() error { return a.followControl(ctx) })
	}
	return nil
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

// loop owns the state. It returns when Envoy has ended for good.
func (a *Agent) loop(ctx, services context.Context, g *errgroup.Group) error {
	if a.cfg.NoChild {
		if err := a.beginSeparate(services, g); err != nil {
			return err
		}
	} else {
		a.envoyUp(services)
	}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(a.untilWake())
		select {
		case m := <-a.inbox:
			switch {
			case m.fatal != nil && a.cfg.NoChild: // to end it is not ours
				a.log.Error("envoy serves none of them, or only what it had; its own log says why", "error", m.fatal)
			case a.cfg.NoChild && (m.seen != nil || m.lost != "" || m.parted):
				if err := a.separate(services, g, m); err != nil {
					return err
				}
			case m.fatal != nil:
				a.stopEnvoy(time.Millisecond)
				return fmt.Errorf("%w:\n%s", m.fatal, strings.Join(a.envoyLog.tail(12), "\n"))
			case m.parted:
				a.envoyDown(services)
			default:
				a.step(services, m)
			}
		case <-timer.C:
			a.step(services, message{event: Tick{}})
		case <-services.Done(): // one of them failed, and Run tells with what
			a.stopEnvoy(a.cfg.Drain)
			return nil
		case <-a.ended():
			if err := a.envoyEnded(services, g); err != nil {
				return err
			}
		case s := <-a.cfg.Signals:
			if a.process != nil {
				_ = a.process.proc.Signal(s)
			}
		case <-ctx.Done():
			a.leave()
			return nil
		}
		if err := a.restart(services, g); err != nil {
			return err
		}
	}
}

// leave ends the work with Envoy when the agent is to end.
func (a *Agent) leave() {
	if a.process != nil && a.cfg.LeaveEnvoy {
		a.log.Info("envoy is left running", "pid", a.process.proc.Pid)
		return
	}
	if a.cfg.NoChild {
		a.log.Info("the agent ends; Envoy goes on with what it has")
		return
	}
	a.draining.Store(true)
	a.log.Info("draining envoy", "at most", a.cfg.Drain)
	a.stopEnvoy(a.cfg.Drain)
}

// untilWake is how long nothing is to do unless something happens.
func (a *Agent) untilWake() time.Duration {
	wait := time.Hour
	if at := a.state.Wake(); !at.IsZero() {
		wait = max(0, time.Until(at))
	}
	if a.unsaved != nil {
		wait = min(wait, saveRetry)
	}
	if !a.restartAt.IsZero() {
		wait = max(0, min(wait, time.Until(a.restartAt)))
	}
	return wait
}

// step feeds one event to the state and runs the effects.
func (a *Agent) step(ctx context.Context, m message) {
	now := time.Now()
	a.observe(m.event, now)
	quiet := !a.state.Pushing()
	effects := a.state.Step(m.event, now)
	if m.lease != nil {
		a.keep(m.lease)
	}
	if quiet && a.state.Pushing() {
		a.logMark.Store(a.envoyLog.mark()) // what was logged before is not about these
	}
	for _, effect := range effects {
		a.run1(ctx, effect, now)
	}
	if a.unsaved != nil && !now.Before(a.saveAt) {
		a.save(*a.unsaved, now)
	}
	a.releaseUnused()
	a.attached(now)
	a.publish()
}

// observe keeps what the metrics need to know of events.
func (a *Agent) observe(ev Event, now time.Time) {
	switch ev := ev.(type) {
	case ListenersOpen: // what is good is leased now
		if err := a.store.Trim(); err != nil {
			a.log.Warn("store is over its limit", "error", err)
		}
	case Assigned:
		a.attaches(ev, now)
		for _, v := range ev.Changed {
			a.assignedAt[v.Key] = now
		}
		for _, key := range ev.Removed {
			delete(a.assignedAt, key)
		}
	case Loaded:
		if ev.Err != nil {
			a.metrics.conversions.WithLabelValues(conversionFetchFailure).Inc()
		}
	}
}

// run1 runs one effect.
func (a *Agent) run1(ctx context.Context, effect Effect, now time.Time) {
	switch e := effect.(type) {
	case Load:
		if e.Attempt > 1 {
			a.metrics.retries.Inc()
		}
		a.loader.start(ctx, e.Source, e.Origins)
	case CancelLoad:
		a.loader.cancel(e.Source)
	case Push:
		a.push(e, now)
	case WriteListeners:
		a.relist(e)
	case AdmitListeners:
		a.changedUpstream(listenerType, a.relayed.admit(e.Slots, e.Sites)...)
	case SaveLastGood:
		a.save(e, now)
	}
}

// saveRetry is how soon a last good set that could not be written is tried again.
const saveRetry = 5 * time.Second

// save writes the last good set. On a full disk the newest one waits.
func (a *Agent) save(e SaveLastGood, now time.Time) {
	a.unsaved = nil
	if err := saveLastGood(durable.OS(), a.cfg.Data, e); err != nil {
		a.log.Error("last good set not written", "error", err, "retry_in", saveRetry)
		a.unsaved, a.saveAt = &e, now.Add(saveRetry)
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

// publish shows the state on the admin page, in the metrics, in the log and to the control
// plane, in that order: who has been told of it finds it here.
func (a *Agent) publish() {
	a.discreet.Store(a.state.Discreet())
	report, facts := a.state.Report(), a.facts()
	v := &view{
		unready: a.state.Readiness(), report: []chandler.AttachmentState{}, facts: facts,
		pushing: a.state.Pushing(), counted: a.state.Counted(), open: a.state.open, envoy: a.envoyStatus(),
	}
	for _, key := range a.state.sortedKeys() {
		if st, ok := report[key]; ok {
			v.report = append(v.report, st)
		}
	}
	a.view.Store(v)
	known := a.state.Known()
	a.known.Store(&known)
	a.metrics.states(report)
	a.metrics.bypassed.Set(float64(len(facts.Bypassed)))
	a.failures.tell(a.log, report)
	a.reporter.set(report, facts)
}

// lookSoon has an Envoy that somebody else starts looked for at once: it may have gone.
func (a *Agent) lookSoon() {
	select {
	case a.lookNow <- struct{}{}:
	default: // it will look anyway
	}
}

// envoyEvent passes on what Envoy did. A NACK waits for the reason in the log;
// no other push is under way meanwhile.
func (a *Agent) envoyEvent(ctx context.Context, ev envoyads.Event) {
	switch ev := ev.(type) {
	case envoyads.Disconnected:
		a.lookSoon()
	case envoyads.Subscribed:
		a.send(ctx, message{event: Subscribed{Slot: ev.Slot, Version: ev.Version}})
	case envoyads.Unsubscribed:
		if slot, ok := attach.ParseSlot(ev.Slot); ok && !slot.Shared() {
			a.ads.Drop(ev.Slot)
		}
		a.send(ctx, message{event: Unsubscribed{Slot: ev.Slot}})
	case envoyads.Acked:
		a.logMark.Store(a.envoyLog.mark())
		a.send(ctx, message{event: Acked{Slot: ev.Slot, Version: ev.Version}})
	case envoyads.Nacked:
		reason := a.envoyLog.reason(ctx, a.logMark.Load(), ev.Message)
		a.logMark.Store(a.envoyLog.mark())
		if reason == "" && a.envoyLog.path == "" {
			reason = unheard(ev.Message)
		}
		if a.discreet.Load() && !named(ev.Message) {
			reason = "" // nobody knows whose words they are
		}
		if a.discreet.Load() {
			a.log.Warn("envoy refused a composition", "slot", ev.Slot)
		} else {
			a.log.Warn("envoy refused a composition", "slot", ev.Slot, "message", ev.Message, "reason", reason)
		}
		if slot, ok := attach.ParseSlot(ev.Slot); ok {
			a.metrics.nacks.WithLabelValues(cmp.Or(string(slot.Phase), unspecified)).Inc()
		}
		a.send(ctx, message{event: Nacked{Slot: ev.Slot, Version: ev.Version, Message: ev.Message, Reason: reason}})
	}
}
