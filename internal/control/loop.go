package control

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/resolve"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/store"
)

const (
	keepReleases  = 10              // of each plugin
	transitEvery  = time.Second     // how exact the times of conditions are
	restoreFailed = 5 * time.Second // between tries to bring a module back
	maxChanges    = 256             // of records, that wait for the loop
)

// loop owns the plugins' state. Only its goroutine touches it.
type loop struct {
	c *Control

	seen     bool // a snapshot
	snapshot source.Snapshot
	byUID    map[string]*source.Object
	entries  map[chandler.Key]*entry // of the last publication
	stale    map[chandler.Key]bool   // entries to make anew

	rollouts map[string]record.Rollout // by uid
	ahead    map[string]record.Rollout // by uid; their releases are yet to come
	releases map[chandler.ReleaseID]*chandler.Release
	configs  map[chandler.ReleaseID][]byte   // with secrets in them; see config
	history  map[string][]chandler.ReleaseID // by uid, oldest first
	attempts map[string]resolve.Attempts     // by uid

	schemas map[string]*chandler.ConfigSchema // last come upon, by uid: of a try that failed too

	gate    Gate              // nil: everything may be
	rulings map[string]ruling // by uid

	gone map[string]time.Time // when a plugin of a rollout was first missed, by uid

	leases   map[chandler.ModuleDigest]*store.Lease // of what is attached
	restores map[chandler.ModuleDigest]time.Time    // not before

	jobs        map[string]*job
	hosts       map[string]*host // those that do not answer
	collecting  bool             // records are being deleted
	collectNext time.Time        // not before
	quiet       time.Time        // no publication before
}

// load reads the records.
func (c *Control) load(ctx context.Context) (*loop, error) {
	l := &loop{
		c:        c,
		byUID:    map[string]*source.Object{},
		entries:  map[chandler.Key]*entry{},
		stale:    map[chandler.Key]bool{},
		rollouts: map[string]record.Rollout{},
		ahead:    map[string]record.Rollout{},
		releases: map[chandler.ReleaseID]*chandler.Release{},
		configs:  map[chandler.ReleaseID][]byte{},
		history:  map[string][]chandler.ReleaseID{},
		attempts: map[string]resolve.Attempts{},
		schemas:  map[string]*chandler.ConfigSchema{},
		gate:     c.cfg.Gate,
		rulings:  map[string]ruling{},
		gone:     map[string]time.Time{},
		leases:   map[chandler.ModuleDigest]*store.Lease{},
		restores: map[chandler.ModuleDigest]time.Time{},
		jobs:     map[string]*job{},
		hosts:    map[string]*host{},
	}
	releases, err := c.cfg.Records.Releases(ctx)
	if err != nil {
		return nil, fmt.Errorf("read releases: %w", err)
	}
	slices.SortStableFunc(releases, func(a, b chandler.Release) int {
		return cmp.Or(cmp.Compare(a.Generation, b.Generation), a.ResolvedAt.Compare(b.ResolvedAt))
	})
	for i := range releases {
		r := &releases[i]
		l.releases[r.ID] = r
		l.history[r.UID] = append(l.history[r.UID], r.ID)
	}
	rollouts, err := c.cfg.Records.Rollouts(ctx)
	if err != nil {
		return nil, fmt.Errorf("read rollouts: %w", err)
	}
	for _, r := range rollouts {
		l.rollouts[r.UID] = r
	}
	c.cfg.Resolver.Know(releases)
	if c.cfg.Vetter != nil {
		c.cfg.Vetter.Know(releases)
	}
	return l, nil
}

// run is the loop: take in what happened, then bring everything else in line
// with it.
func (l *loop) run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	transit := time.NewTicker(transitEvery)
	defer transit.Stop()
	defer l.end()
	var taken []chan<- struct{} // closed when the snapshot is published
	for {
		_, elected := l.c.office.holder()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-elected:
		case ch := <-l.c.changes:
			l.recorded(ch)
		case d := <-l.c.snapshots:
			l.taken(d.snapshot)
			taken = append(taken, d.taken)
		case g := <-l.c.gates:
			l.governed(g)
		case o := <-l.c.outcomes:
			l.finished(o)
		case <-l.c.parked:
		case done := <-l.c.collected:
			l.swept(done)
		case d := <-l.c.missing:
			l.lost(d)
		case <-transit.C:
			l.c.transit()
			continue
		case <-timer.C:
		}
		for len(l.c.outcomes) > 0 { // of a burst, all at once
			l.finished(<-l.c.outcomes)
		}
		for len(l.c.changes) > 0 {
			l.recorded(<-l.c.changes)
		}
		if !l.seen {
			continue
		}
		if time.Now().After(l.quiet) {
			l.publishPaced()
			for _, c := range taken {
				close(c)
			}
			taken = nil
		}
		next := l.start(ctx)
		l.collect(ctx)
		if len(l.stale) > 0 || len(taken) > 0 {
			next = max(0, time.Until(l.quiet))
		}
		timer.Reset(next)
	}
}

// publishPaced publishes, and then leaves the machine to others for a few times as
// long as that took: at once where there is little, and seldom enough where ten
// thousand resources change one by one.
func (l *loop) publishPaced() {
	const share = 4
	began := time.Now()
	l.publish()
	took := time.Since(began)
	l.quiet = time.Now().Add(min(share*took, time.Second))
}

// end waits for the jobs, whose context has ended, and gives the leases back.
func (l *loop) end() {
	for len(l.jobs) > 0 {
		o := <-l.c.outcomes
		delete(l.jobs, o.job.id)
		if o.lease != nil {
			o.lease.Release()
		}
	}
	if l.collecting {
		<-l.c.collected
	}
	for _, lease := range l.leases {
		lease.Release()
	}
}

// taken takes a snapshot in.
func (l *loop) taken(s source.Snapshot) {
	before := l.snapshot
	l.snapshot, l.seen = s, true
	l.c.broken.Store(&s.Broken)
	was := map[string]*chandler.Plugin{}
	for uid, o := range l.byUID {
		was[uid] = o.Plugin
	}
	clear(l.byUID)
	for i := range s.Objects {
		o := &s.Objects[i]
		l.byUID[o.UID] = o
		l.stale[o.Key] = true
		if o.Plugin == nil {
			continue
		}
		a := l.attempts[o.UID]
		if a.Failed > 0 && !(secrets(before.Secrets).same(s.Secrets, o.Plugin) && locked(o.Plugin) == locked(was[o.UID])) {
			l.attempts[o.UID] = a.Soon()
		}
	}
	maps.DeleteFunc(l.schemas, func(uid string, _ *chandler.ConfigSchema) bool { return l.byUID[uid] == nil })
	for uid := range l.attempts {
		if l.byUID[uid] == nil {
			delete(l.attempts, uid)
		}
	}
	for uid := range l.rulings {
		if l.byUID[uid] == nil {
			delete(l.rulings, uid)
		}
	}
	l.missed()
	l.c.journeys.seen(s, func(uid string, generation int64) bool {
		return !l.c.leads() || l.rollouts[uid].Generation >= generation
	})
}

// locked is what a lock file says of a plugin's url.
func locked(p *chandler.Plugin) string {
	if p == nil || p.Wasm == nil {
		return ""
	}
	return p.Wasm.Locked
}

// held tells whether nobody is to be asked what a plugin's url means.
func held(p *chandler.Plugin) bool { return p != nil && p.Wasm != nil && p.Wasm.Held }

// target is the release that a plugin's rollout is at, or the one before when the
// record of that was lost; nil when there is none.
func (l *loop) target(uid string) *chandler.Release {
	ro := l.rollouts[uid]
	for _, id := range []chandler.ReleaseID{ro.Release, ro.Previous} {
		if r := l.releases[id]; r != nil && r.UID == uid {
			return r
		}
	}
	return nil
}

// course is where a plugin's rollout is. The module of the release before stands by
// for an undo, where it is another one.
func (l *loop) course(uid string) course {
	ro := l.rollouts[uid]
	c := course{target: l.target(uid), sequence: ro.Sequence}
	config, ok := l.config(c.target)
	c.config, c.withheld = config, !ok
	before := l.releases[ro.Previous]
	if c.target == nil || before == nil || before.UID != uid || before.Program.Module == nil {
		return c
	}
	if m := c.target.Program.Module; m == nil || m.Digest != before.Program.Module.Digest {
		c.standby = before.Program.Module
	}
	return c
}

// publish makes what changed visible: to agents, and to whoever asks.
func (l *loop) publish() {
	before := l.c.published.Load()
	if len(l.stale) == 0 && before != nil && len(before.entries) == len(l.snapshot.Objects) {
		return
	}
	entries := make([]*entry, 0, len(l.snapshot.Objects))
	next := make(map[chandler.Key]*entry, len(l.snapshot.Objects))
	for _, o := range l.snapshot.Objects {
		e := l.entries[o.Key]
		if e == nil || l.stale[o.Key] {
			course, ruling := l.course(o.UID), l.ruled(o.Plugin)
			if l.detached(ruling, course.target) {
				course.detached = true
			}
			var err error
			if e, err = newEntry(o, course, ruling, l.attempts[o.UID], l.c.cfg.FetchDeadline, e); err != nil {
				l.c.log.Error("an attachment cannot be marshalled", "plugin", o.Key.String(), "error", err)
			}
			e.met = l.schemas[o.UID]
		}
		entries = append(entries, e)
		next[o.Key] = e
	}
	l.entries = next
	clear(l.stale)
	l.c.published.Store(newPublication(entries))
	l.c.fleet.touch()
	l.c.server.Refresh()
	l.unlease()
	l.forgetConfigs()
}

// unlease gives back the leases of modules that nothing names any more.
func (l *loop) unlease() {
	named := map[chandler.ModuleDigest]bool{}
	for _, e := range l.entries {
		for _, d := range e.modules {
			named[d] = true
		}
		for _, s := range e.schemas() {
			named[chandler.ModuleDigest(s.Digest)] = true
		}
	}
	for d, lease := range l.leases {
		if !named[d] {
			lease.Release()
			delete(l.leases, d)
		}
	}
	for d := range l.restores {
		if !named[d] {
			delete(l.restores, d)
		}
	}
}

// lost notes that a module that should be in the store is not.
func (l *loop) lost(d chandler.ModuleDigest) {
	if lease := l.leases[d]; lease != nil {
		lease.Release()
		delete(l.leases, d)
	}
}

// forgetRelease drops a release that is recorded no more.
func (l *loop) forgetRelease(r *chandler.Release) {
	delete(l.releases, r.ID)
	ids := slices.DeleteFunc(l.history[r.UID], func(id chandler.ReleaseID) bool { return id == r.ID })
	if l.history[r.UID] = ids; len(ids) == 0 {
		delete(l.history, r.UID)
	}
}
