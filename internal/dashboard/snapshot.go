package dashboard

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/assign"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/source"
)

// shortest is the time from one snapshot to the next, at least: however many look and
// however much happens, statuses are joined so often only.
const shortest = 200 * time.Millisecond

// snapshot is the fleet at one moment. It is immutable, and shared by all who look.
type snapshot struct {
	// version is another whenever the snapshot is.
	version string
	plugins []*plugin // in the order of their keys
	proxies []*proxy  // by namespace and name
	broken  []source.Broken
	events  []chandler.Event // oldest first
	partial string           // what is not known here; empty: nothing

	byKey  map[chandler.Key]*plugin
	byNode map[string]*proxy
	taken  time.Time
	// changed or more is closed when it is not so any more.
	changed, more <-chan struct{}
	// rendered are pages of this snapshot; those that leave something out share it.
	rendered *rendered
}

// plugin is an object with how it fares on each proxy.
type plugin struct {
	*control.ObjectView
	Rollout *chandler.Rollout // nil: none is known
	// Gone: the resource is there no more; there is a rollout alone.
	Gone     bool
	releases []*chandler.Release
	// marks and lines are by proxy.index.
	marks  []mark
	lines  []*chandler.ProxyStatus // nil: not selected
	Counts counts
}

// proxy is a node with how the plugins fare on it.
type proxy struct {
	control.ProxyView
	index int
}

// disabledOn tells whether an order keeps the plugin, which would be for a proxy, off it.
func (p *plugin) disabledOn(of *proxy, root string) bool {
	return p.Rollout != nil && p.Plugin != nil && len(p.Rollout.Disabled) > 0 && assign.Selects(p.Plugin, of.Node, root) &&
		slices.ContainsFunc(p.Rollout.Disabled, func(d chandler.Disablement) bool { return d.Holds(of.Node) })
}

// board takes snapshots and keeps the last one.
type board struct {
	cfg  Config
	mark string // of this process, so that its versions are no other's

	mu    sync.Mutex
	last  *snapshot
	count uint64
}

func newBoard(cfg Config) *board {
	b := make([]byte, 4)
	rand.Read(b)
	return &board{cfg: cfg, mark: hex.EncodeToString(b)}
}

// look gives the fleet as it is, or was less than shortest ago.
func (b *board) look(ctx context.Context) (*snapshot, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last != nil && (!b.last.stale() || b.due(b.last) > 0) {
		return b.last, nil
	}
	// Whatever happens from here on makes the snapshot stale.
	s := &snapshot{taken: b.cfg.Now(), changed: b.cfg.Fleet.Changed(), rendered: &rendered{}}
	s.events, s.more = b.cfg.Fleet.Events(0)
	s.partial = b.cfg.Fleet.Partial()
	views, err := b.cfg.Fleet.Objects(ctx)
	if err != nil {
		return nil, err
	}
	var rollouts []control.RolloutView
	if b.cfg.Rollouts != nil {
		if rollouts, err = b.cfg.Rollouts.Rollouts(ctx); err != nil {
			return nil, err
		}
	}
	s.broken = b.cfg.Fleet.Broken()
	s.fill(views, b.cfg.Fleet.Proxies(), rollouts, b.cfg.Fleet.RootNamespace())
	b.count++
	s.version = fmt.Sprintf("%s-%d", b.mark, b.count)
	b.last = s
	return s, nil
}

// due is how long it is until there may be another snapshot.
func (b *board) due(s *snapshot) time.Duration { return shortest - b.cfg.Now().Sub(s.taken) }

// stale tells whether something happened since the snapshot was taken.
func (s *snapshot) stale() bool {
	select {
	case <-s.changed:
	case <-s.more:
	default:
		return false
	}
	return true
}

// rest waits for a time.
func rest(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fill joins what is known of plugins with the proxies.
func (s *snapshot) fill(views []control.ObjectView, proxies []control.ProxyView, rollouts []control.RolloutView, root string) {
	s.byKey = make(map[chandler.Key]*plugin, len(views))
	s.byNode = make(map[string]*proxy, len(proxies))
	for i := range proxies {
		p := &proxy{ProxyView: proxies[i], index: i}
		s.proxies = append(s.proxies, p)
		s.byNode[p.ID()] = p
	}
	for i := range views {
		s.add(&plugin{ObjectView: &views[i]})
	}
	for i := range rollouts {
		r := &rollouts[i]
		p := s.byKey[r.Key]
		if p == nil {
			p = s.add(&plugin{ObjectView: &control.ObjectView{Object: source.Object{Key: r.Key}}, Gone: true})
		}
		p.Rollout, p.releases = &r.Rollout, r.Releases
	}
	for _, p := range s.plugins {
		p.count(s, root)
	}
	slices.SortFunc(s.plugins, func(a, b *plugin) int { return a.Key.Compare(b.Key) })
}

func (s *snapshot) add(p *plugin) *plugin {
	s.plugins = append(s.plugins, p)
	s.byKey[p.Key] = p
	return p
}

// count finds how a plugin fares on each proxy.
func (p *plugin) count(s *snapshot, root string) {
	p.marks, p.lines = make([]mark, len(s.proxies)), make([]*chandler.ProxyStatus, len(s.proxies))
	next := 0 // lines and proxies are mostly in the same order
	for n := range p.Status.Proxies {
		line := &p.Status.Proxies[n]
		if next < len(s.proxies) && s.proxies[next].Name == line.Node && s.proxies[next].Namespace == line.Namespace {
			p.lines[next] = line
			next++
		} else if on := s.byNode[line.Namespace+"/"+line.Node]; on != nil {
			p.lines[on.index] = line
			next = on.index + 1
		}
	}
	for _, on := range s.proxies {
		m := markOf(p, p.lines[on.index], on, p.disabledOn(on, root))
		if _, has := on.States[p.Key]; has && p.Gone {
			m = onItsWay // out
		}
		p.marks[on.index] = m
		p.Counts[m]++
	}
}
