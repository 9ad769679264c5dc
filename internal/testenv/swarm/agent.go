package swarm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/testenv/swarm/lite"
	"chandler.dev/chandler/internal/wire"
	"chandler.dev/chandler/internal/xds/deltaclient"
)

// Agent is one of a swarm.
type Agent struct {
	swarm   *Swarm
	node    chandler.Node
	changed atomic.Bool // there may be something to tell

	mu        sync.Mutex
	envoy     envoy
	conn      *lite.Conn // nil: there is none
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
		swarm: s, node: n, history: map[chandler.Key][]chandler.ReleaseID{},
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
			a.stay(stay)
		}
		leave()
		if away != nil {
			select {
			case <-away:
			case <-ctx.Done():
			}
		}
	}
}

// stay connects, and connects again, until ctx ends.
func (a *Agent) stay(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; failures++ {
		began, s := time.Now(), newSession(a)
		_ = s.serve(ctx) // why is the control plane's matter, which the test asks
		a.mu.Lock()
		a.connected = false
		a.mu.Unlock()
		if s.answered && time.Since(began) >= deltaclient.MaxBackoff {
			failures = 0
		}
		select {
		case <-ctx.Done():
		case <-time.After(deltaclient.Delay(failures, 1, rand.Float64())):
		}
	}
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

// handle takes an answer in.
func (a *Agent) handle(resp *discoveryv3.DeltaDiscoveryResponse) error {
	var errs []error
	for _, r := range resp.GetResources() {
		att, err := a.swarm.understand(r.GetResource().GetValue())
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", r.GetName(), err))
			continue
		}
		conduct := a.swarm.cfg.Conduct(a.node, att)
		a.mu.Lock()
		a.keep(att.Key, att.UID)
		a.envoy.assign(att, r.GetVersion(), conduct, a.swarm.cfg.Fetch, a.swarm.cfg.Now())
		a.mu.Unlock()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, name := range resp.GetRemovedResources() {
		if key, ok := chandler.ParseKey(name); ok {
			a.keep(key, "")
			a.envoy.remove(key, a.swarm.cfg.Now())
		}
	}
	a.changed.Store(true)
	return errors.Join(errs...)
}

// keep remembers what was told of a plugin that is about to go, or of another one of its
// name.
func (a *Agent) keep(key chandler.Key, next string) {
	if p := a.envoy.plugins[key]; p != nil && p.UID != next && len(a.history[key]) < maxTold {
		a.history[key] = append(a.history[key], p.told...)
	}
}

// tell has it look for something to tell.
func (a *Agent) tell() {
	a.changed.Store(true)
	a.mu.Lock()
	conn := a.conn
	a.mu.Unlock()
	if conn != nil {
		conn.Wake()
	}
}

// reported is what the control plane was told on a stream.
type reported struct {
	sequence uint64
	states   map[chandler.Key]chandler.AttachmentState
	facts    *chandler.Facts
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

// lacks gives a plugin whose module is not there yet, or nil.
func (a *Agent) lacks() (next *plugin) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.envoy.plugins {
		if !p.fetched {
			next = p
		}
	}
	return next
}

// arrived notes that a plugin's module is there, if it is still the one that it needs.
func (a *Agent) arrived(p *plugin, d chandler.ModuleDigest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if m := p.Program.Module; m != nil && m.Digest == d {
		a.envoy.arrived(p, a.swarm.cfg.Now())
	}
	a.changed.Store(true)
}
