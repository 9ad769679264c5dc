package swarm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/wire"
	"chandler.dev/chandler/internal/xds/deltaclient"
)

// Agent is one of a swarm.
type Agent struct {
	swarm   *Swarm
	node    chandler.Node
	changed chan struct{} // capacity 1: there is something to tell

	mu        sync.Mutex
	envoy     envoy
	connected bool
	away      chan struct{}                         // closed when it is to come back; nil: it is not away
	leave     context.CancelFunc                    // ends the connection; nil: there is none
	history   map[chandler.Key][]chandler.ReleaseID // of plugins that are gone
}

func newAgent(s *Swarm, i int) *Agent {
	c, now := &s.cfg, s.cfg.Now()
	n := c.Node(i)
	n.Features = slices.Concat(n.Features, []string{chandler.FeatureHTTP, chandler.FeatureNetwork, chandler.FeatureLua, chandler.FeatureFile, chandler.FeatureSecretConfig, chandler.FeatureSlots})
	return &Agent{
		swarm: s, node: n, changed: make(chan struct{}, 1), history: map[chandler.Key][]chandler.ReleaseID{},
		envoy: envoy{
			mode: c.Mode, port: c.Port, rate: c.Rate, usual: c.Usual, history: c.History, at: now, began: now,
			plugins: map[chandler.Key]*plugin{},
		},
	}
}

// Node is who it is.
func (a *Agent) Node() chandler.Node { return a.node }

// Told gives the releases of a plugin that it was ever told of, in their order. "" is
// an attachment without a release.
func (a *Agent) Told(key chandler.Key) []chandler.ReleaseID {
	a.mu.Lock()
	defer a.mu.Unlock()
	told := slices.Clone(a.history[key])
	if p := a.envoy.plugins[key]; p != nil {
		told = append(told, p.told...)
	}
	return told
}

// InForce gives the release of a plugin that decides requests now; empty: none.
func (a *Agent) InForce(key chandler.Key) chandler.ReleaseID {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.envoy.advance(a.swarm.cfg.Now())
	if p := a.envoy.plugins[key]; p != nil && p.good != nil {
		return p.good.Release
	}
	return ""
}

// Traffic gives what it has answered.
func (a *Agent) Traffic() []chandler.Traffic {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.envoy.advance(a.swarm.cfg.Now())
	return a.envoy.traffic()
}

// Restart has its Envoy begin anew, so that it counts from zero.
func (a *Agent) Restart() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.envoy.restart(a.swarm.cfg.Now())
}

// Away takes it from the control plane, or has it come back. Its Envoy goes on.
func (a *Agent) Away(away bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case away && a.away == nil:
		if a.away = make(chan struct{}); a.leave != nil {
			a.leave()
		}
	case !away && a.away != nil:
		close(a.away)
		a.away = nil
	}
}

// run keeps it connected until ctx ends, but while it is away.
func (a *Agent) run(ctx context.Context) {
	for ctx.Err() == nil {
		a.mu.Lock()
		away := a.away
		stay, leave := context.WithCancel(ctx)
		a.leave = leave
		a.mu.Unlock()
		if away == nil {
			_ = a.client().Run(stay) // nil, or a mistake in this package
		}
		leave()
		a.mu.Lock()
		a.connected = false
		a.mu.Unlock()
		if away != nil {
			select {
			case <-away:
			case <-ctx.Done():
			}
		}
	}
}

func (a *Agent) client() *deltaclient.Client {
	return deltaclient.New(deltaclient.Config{
		Targets: []string{a.swarm.cfg.Target}, Dial: a.swarm.cfg.Dial, TypeURL: wire.AttachmentTypeURL,
		Node: wire.NodeToXDS(a.node), Known: a.known, Handle: a.handle, Session: a.session,
		Connected: func(ok bool, _ string, _ error) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.connected = ok
		},
	})
}

func (a *Agent) known() map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	known := make(map[string]string, len(a.envoy.plugins))
	for key, p := range a.envoy.plugins {
		known[key.String()] = p.version
	}
	return known
}

// handle takes an update in.
func (a *Agent) handle(u deltaclient.Update) error {
	var errs []error
	for _, r := range u.Changed {
		att, err := a.swarm.understand(r.Body)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", r.Name, err))
			continue
		}
		conduct := a.swarm.cfg.Conduct(a.node, att)
		a.mu.Lock()
		a.keep(att.Key, att.UID)
		a.envoy.assign(att, r.Version, conduct, a.swarm.cfg.Fetch, a.swarm.cfg.Now())
		a.mu.Unlock()
	}
	a.mu.Lock()
	for _, name := range u.Removed {
		if key, ok := chandler.ParseKey(name); ok {
			a.keep(key, "")
			a.envoy.remove(key, a.swarm.cfg.Now())
		}
	}
	a.mu.Unlock()
	a.tell()
	return errors.Join(errs...)
}

// keep remembers what was told of a plugin that is about to go, or of another one of its
// name.
func (a *Agent) keep(key chandler.Key, next string) {
	if p := a.envoy.plugins[key]; p != nil && p.UID != next && len(a.history[key]) < maxTold {
		a.history[key] = append(a.history[key], p.told...)
	}
}

func (a *Agent) tell() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// again is how soon a report stream that broke is opened anew.
const again = 100 * time.Millisecond

// session reports over a connection until ctx ends.
func (a *Agent) session(ctx context.Context, conn *grpc.ClientConn) {
	for ctx.Err() == nil {
		_ = a.report(ctx, conn) // why is the control plane's matter, which the test asks
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
}

// reported is what the control plane was told on a stream.
type reported struct {
	sequence uint64
	states   map[chandler.Key]chandler.AttachmentState
	facts    *chandler.Facts
}

// report tells everything, and then what changes, until the stream ends.
func (a *Agent) report(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := chandlerv1.NewReportsClient(conn).Report(ctx)
	if err != nil {
		return err
	}
	asked, ended := make(chan *chandlerv1.ReportResponse), make(chan error, 1)
	var receiving sync.WaitGroup
	receiving.Go(func() { ended <- listen(ctx, stream, asked) })
	defer receiving.Wait()
	defer cancel()

	var told reported
	var interval, spread time.Duration
	var due time.Time // when traffic is to be told, if an interval is
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		traffic := interval > 0 && !time.Now().Before(due)
		msg, wait := a.message(&told, traffic)
		if msg != nil {
			if err := stream.Send(msg); err != nil {
				return err
			}
		}
		if traffic {
			due = time.Now().Add(interval)
		}
		if more, err := a.fetch(ctx, conn); err != nil {
			return err
		} else if more {
			continue
		}
		if interval > 0 {
			wait = min(wait, time.Until(due))
		}
		timer.Reset(wait)
		select {
		case err := <-ended:
			return err
		case resp := <-asked:
			spread = wire.SpreadFromProto(resp.GetSpread())
			if every := wire.IntervalFromProto(resp.GetTrafficInterval()); every != interval {
				interval, due = every, time.Now()
			}
		case <-a.changed:
			select {
			case <-time.After(rand.N(spread + 1)):
			case <-ctx.Done():
			}
		case <-timer.C:
		}
	}
}

// listen passes on what is asked, until the stream ends.
func listen(ctx context.Context, stream grpc.BidiStreamingClient[chandlerv1.ReportRequest, chandlerv1.ReportResponse], asked chan<- *chandlerv1.ReportResponse) error {
	for {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case asked <- resp:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// trapEvery is how often faults of VMs are looked at.
const trapEvery = time.Second

// message gives what is to be told, or nil, and how long nothing else is.
func (a *Agent) message(told *reported, traffic bool) (*chandlerv1.ReportRequest, time.Duration) {
	if told.sequence > 0 && a.swarm.hushed.Load() {
		return nil, time.Hour
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.swarm.cfg.Now()
	a.envoy.advance(now)
	states, facts := a.envoy.report(), a.envoy.facts()
	r := wire.Report{Sequence: told.sequence + 1, Silent: told.sequence%4 != 0}
	if told.sequence == 0 {
		r.Node, r.Full = &a.node, true
	}
	for key, s := range states {
		if before, ok := told.states[key]; !ok || before != s {
			r.States = append(r.States, s)
		}
	}
	for key := range told.states {
		if _, ok := states[key]; !ok {
			r.Removed = append(r.Removed, key)
		}
	}
	if !reflect.DeepEqual(facts, told.facts) {
		r.Facts = facts
	}
	if traffic {
		r.Traffic = a.envoy.traffic()
	}
	wait := time.Hour
	if next, ok := a.envoy.due(); ok {
		wait = max(next.Sub(now), time.Millisecond)
	}
	for _, p := range a.envoy.plugins {
		if p.behaves.Traps > 0 {
			wait = min(wait, trapEvery)
		}
	}
	if !r.Full && len(r.States)+len(r.Removed) == 0 && r.Facts == nil && !traffic {
		return nil, wait
	}
	*told = reported{r.Sequence, states, facts}
	return wire.ReportToProto(r), wait
}

// fetch reads a module that is not there yet, and tells whether there was one.
func (a *Agent) fetch(ctx context.Context, conn *grpc.ClientConn) (bool, error) {
	a.mu.Lock()
	var next *plugin
	var module chandler.Module
	for _, p := range a.envoy.plugins {
		if !p.fetched {
			next, module = p, *p.Program.Module
		}
	}
	a.mu.Unlock()
	if next == nil {
		return false, nil
	}
	if err := a.readModule(ctx, conn, module); err != nil {
		return false, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if m := next.Program.Module; m != nil && m.Digest == module.Digest {
		a.envoy.arrived(next, a.swarm.cfg.Now())
	}
	return true, nil
}

// readModule reads a module and holds it against its digest.
func (a *Agent) readModule(ctx context.Context, conn *grpc.ClientConn, m chandler.Module) error {
	stream, err := chandlerv1.NewModulesClient(conn).Read(ctx, &chandlerv1.ReadRequest{Node: wire.NodeToProto(a.node), Digest: string(m.Digest), Zstd: true})
	if err != nil {
		return err
	}
	sum, plain := sha256.New(), []byte(nil)
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		sum.Write(chunk.GetChunk())
		if plain, err = a.swarm.zstd.DecodeAll(chunk.GetZstd(), plain[:0]); err != nil {
			return err
		}
		sum.Write(plain)
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != string(m.Digest) {
		return fmt.Errorf("module %s came as %s", m.Digest, got)
	}
	return nil
}
