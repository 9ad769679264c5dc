package control

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"reflect"
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
	names    map[chandler.Key]bool   // of the snapshot
	entries  map[chandler.Key]*entry // of the last publication
	stale    map[chandler.Key]bool   // entries to make anew

	rollouts map[string]*record.Rollout // by uid; see keep
	none     record.Rollout             // stands for those that there are not
	ahead    map[string]record.Rollout  // by uid; their releases are yet to come
	releases map[chandler.ReleaseID]*chandler.Release
	configs  map[chandler.ReleaseID][]byte   // with secrets in them; see config
	history  map[string][]chandler.ReleaseID // by uid, oldest first
	attempts map[string]resolve.Attempts     // by uid

	schemas map[string]*chandler.ConfigSchema // last come upon, by uid: of a try that failed too

	gate    Gate              // nil: everything may be
	rulings map[string]ruling // by uid
	// objections are what it has against releases by how they were written.
	objections map[chandler.ReleaseID]objected
	// verdicts are what the gate said of releases while this replica leads, nil where that
	// was nothing; judging are the judgements of those that no resource means any more, and
	// unsaid are the uids whose record may not have all of it yet.
	verdicts map[chandler.ReleaseID]*record.Denial
	judging  map[chandler.ReleaseID]resolve.Attempts
	unsaid   map[string]bool
	// recordNext is not before when records are to be moved to say it.
	recordNext time.Time

	partings  map[string]record.Kept // of plugins with a plan that are gone, by uid
	unsettled map[string]bool        // uids whose rollouts are under way
	watching  map[string]watched     // by uid, those of them that this replica saw
	moving    map[string]bool        // uids whose record is being moved
	asked     string                 // about whom proxies say what they answer
	looked    time.Time              // at those that are under way
	kicked    bool                   // somebody has given an order: look at once

	gone map[string]time.Time // when a plugin of a rollout was first missed, by uid
	from map[string]string    // uids of plugins that went, by those of their heirs; see succeed

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
		c:          c,
		byUID:      map[string]*source.Object{},
		names:      map[chandler.Key]bool{},
		entries:    map[chandler.Key]*entry{},
		stale:      map[chandler.Key]bool{},
		rollouts:   map[string]*record.Rollout{},
		ahead:      map[string]record.Rollout{},
		releases:   map[chandler.ReleaseID]*chandler.Release{},
		configs:    map[chandler.ReleaseID][]byte{},
		history:    map[string][]chandler.ReleaseID{},
		attempts:   map[string]resolve.Attempts{},
		schemas:    map[string]*chandler.ConfigSchema{},
		gate:       c.cfg.Gate,
		rulings:    map[string]ruling{},
		objections: map[chandler.ReleaseID]objected{},
		verdicts:   map[chandler.ReleaseID]*record.Denial{}, judging: map[chandler.ReleaseID]resolve.Attempts{}, unsaid: map[string]bool{},
		partings: map[string]record.Kept{}, unsettled: map[string]bool{}, watching: map[string]watched{}, moving: map[string]bool{},
		gone:     map[string]time.Time{},
		from:     map[string]string{},
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
		l.keep(r)
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
	pulse := time.NewTimer(beat)
	defer pulse.Stop()
	defer l.end()
	var taken []chan<- struct{} // closed when the snapshot is published
	_, elected := l.c.office.holder()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-elected: // also while the loop was at something else
			_, elected = l.c.office.holder()
			clear(l.verdicts) // the records have what was said before
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
		case m := <-l.c.moved:
			l.hasMoved(m)
		case ro := <-l.c.steered:
			l.keep(ro)
			l.kicked = true
		case <-transit.C:
			l.c.transit()
			continue
		case <-pulse.C:
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
		if !time.Now().Before(l.quiet) {
			l.publishPaced()
			for _, c := range taken {
				close(c)
			}
			taken = nil
		}
		next := l.start(ctx)
		next = min(next, l.recordDenials(ctx))
		l.collect(ctx)
		if pause := l.advance(ctx); pause > 0 {
			pulse.Reset(pause)
		}
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
	for len(l.moving) > 0 {
		delete(l.moving, (<-l.c.moved).uid)
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
	before, first := l.snapshot, !l.seen
	l.snapshot, l.seen = s, true
	if !first {
		l.tellTaken(before)
	}
	if l.c.broken.Store(&s.Broken); !reflect.DeepEqual(before.Broken, s.Broken) {
		l.c.fleet.wake() // there may be nothing to publish
	}
	was := map[string]*chandler.Plugin{}
	for uid, o := range l.byUID {
		was[uid] = o.Plugin
	}
	clear(l.byUID)
	clear(l.names)
	for i := range s.Objects {
		o := &s.Objects[i]
		l.byUID[o.UID], l.names[o.Key] = o, true
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
	l.parted(was)
	l.succeed(was, first)
	for uid := range l.rollouts {
		l.consider(uid)
	}
	l.c.journeys.seen(s, func(uid string, generation int64) bool {
		return !l.c.leads() || l.at(uid).Generation >= generation
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

// known is a release of a plugin by its id, or nil.
func (l *loop) known(uid string, id chandler.ReleaseID) *chandler.Release {
	if r := l.releases[id]; r != nil && r.UID == uid {
		return r
	}
	return nil
}

// at is where the rollout of a plugin is; one that there is not has no uid. It is not to
// be changed.
func (l *loop) at(uid string) *record.Rollout {
	if ro := l.rollouts[uid]; ro != nil {
		return ro
	}
	return &l.none
}

// other is the release of those that are not chosen, while a rollout is under way, and
// else the one before; nil: none.
func (l *loop) other(uid string) *chandler.Release {
	ro := l.at(uid)
	if ro.Stage != nil {
		return l.known(uid, ro.Stage.Base.Release)
	}
	return l.known(uid, ro.Previous)
}

// target is the release that a plugin's rollout is at, or the one before when the
// record of that was lost; nil when there is none.
func (l *loop) target(uid string) *chandler.Release {
	ro := l.at(uid)
	if r := l.known(uid, ro.Release); r != nil || ro.Release == "" {
		return r
	}
	return l.known(uid, ro.Previous)
}

// meant is the release that a plugin's resource means, also where another is to be in
// force.
func (l *loop) meant(uid string) *chandler.Release {
	if ro := l.at(uid); ro.Wanted != nil {
		return l.known(uid, ro.Wanted.Release)
	}
	return l.target(uid)
}

// course is where a plugin's rollout is. By the recorded scope goes who has a plan, or a
// rollout that is not at what its resource means; for all others the resource says whom
// the plugin is for. Of the module that a change to the other side would need, or an undo,
// those who do not run it have the bytes stand by.
func (l *loop) course(uid string, plan *chandler.RolloutPlan) course {
	ro := l.at(uid)
	scope := ro.Scope
	if plan == nil && !ro.Held() {
		scope = nil
	}
	c := course{rollout: ro, side: l.side(l.target(uid), ro.Sequence, scope)}
	c.nothing = ro.Release == "" && ro.Sequence > 0
	before := l.other(uid)
	if st := ro.Stage; st != nil {
		others := l.side(before, st.Base.Sequence, st.Base.Scope)
		others.nothing = st.Base.Release == ""
		others.standBy(&c.side)
		c.others = &others
		c.standBy(&others)
	} else {
		c.standBy(&side{target: before, denial: l.barred(before, l.plugin(uid), scope)})
	}
	return c
}

// side is what the proxies are to have whose release is target.
func (l *loop) side(target *chandler.Release, sequence uint64, scope *record.Scope) side {
	config, ok := l.config(target)
	s := side{target: target, config: config, withheld: !ok, sequence: sequence, scope: scope}
	if target != nil {
		s.denial = l.barred(target, l.plugin(target.UID), scope)
	}
	return s
}

// standBy has the module of the other side's release stand by, where it is another one and
// may be on proxies.
func (s *side) standBy(other *side) {
	if s.target == nil || other.target == nil || other.denial != nil || other.target.Program.Module == nil {
		return
	}
	if m := s.target.Program.Module; m == nil || m.Digest != other.target.Program.Module.Digest {
		s.standby = other.target.Program.Module
	}
}

// plugin is a resource as it is written now; nil: it is gone, or was never valid.
func (l *loop) plugin(uid string) *chandler.Plugin {
	if o := l.byUID[uid]; o != nil {
		return o.Plugin
	}
	return nil
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
			e = l.entry(o, e)
		}
		entries = append(entries, e)
		next[o.Key] = e
	}
	ghosts := l.ghosts()
	l.entries = next
	clear(l.stale)
	l.c.published.Store(newPublication(entries, ghosts))
	l.c.fleet.touch()
	l.c.server.Refresh()
	l.unlease()
	l.forgetConfigs()
}

// entry makes the entry of an object. before is its last one, or nil.
func (l *loop) entry(o source.Object, before *entry) *entry {
	plan, ruling := l.c.plan(o.Plugin), l.ruled(o.Plugin)
	course := l.course(o.UID, plan)
	if course.target == nil && plan != nil {
		// Those whom its first step is not for are not denied anything, and who is chosen
		// is not known yet.
		ruling.terms.FirstAttach = chandler.FirstAttachHold
	}
	e, err := newEntry(o, course, ruling, l.attempts[o.UID], l.c.cfg.FetchDeadline, before)
	if err != nil {
		l.c.log.Error("an attachment cannot be marshalled", "plugin", o.Key.String(), "error", err)
	}
	e.met, e.meant, e.history = l.schemas[o.UID], l.meant(o.UID), l.recent(o.UID)
	e.incomplete, e.gate, e.denials = l.incomplete(o.UID), l.gate, l.denials(o.UID)
	return e
}

// unlease gives back the leases of modules that nothing names any more.
func (l *loop) unlease() {
	named := map[chandler.ModuleDigest]bool{}
	for _, e := range l.entries {
		for _, v := range e.variants() {
			for _, d := range v.modules {
				named[d] = true
			}
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
	delete(l.objections, r.ID)
	delete(l.verdicts, r.ID)
	delete(l.judging, r.ID)
	ids := slices.DeleteFunc(l.history[r.UID], func(id chandler.ReleaseID) bool { return id == r.ID })
	if l.history[r.UID] = ids; len(ids) == 0 {
		delete(l.history, r.UID)
	}
}

// recent gives the releases of a plugin, oldest first.
func (l *loop) recent(uid string) []*chandler.Release {
	all := make([]*chandler.Release, 0, len(l.history[uid]))
	for _, id := range l.history[uid] {
		all = append(all, l.releases[id])
	}
	return all
}
