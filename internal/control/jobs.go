package control

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"golang.org/x/sync/errgroup"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/resolve"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/vet"
)

// How many plugins are worked on at a time.
const (
	// maxJobs resolve. Nearly all of them wait for the network, and a few that trickle
	// must not hold up the others.
	maxJobs = 32
	// maxJobsOfNamespace leaves room for others; it is more than maxJobsOfHost, so that
	// a host that does not answer leaves room in its namespace too.
	maxJobsOfNamespace = maxJobs * 3 / 4
	// maxAtVet are being tried beside those, or wait for it, and maxNewAtVet are how many
	// plugins of one namespace that never had a release may be.
	maxAtVet    = 512
	maxNewAtVet = 16
)

// job is work on one plugin beside the loop: to resolve it, or to bring a module
// of its release back into the store. Its input is its own.
type job struct {
	id      string
	cancel  context.CancelFunc
	plugin  *chandler.Plugin
	have    *chandler.Release
	rollout *record.Rollout   // the one to go on from; nil: the first
	before  *chandler.Release // that is everyone's; nil: none
	legacy  *legacy           // of which nothing was rolled out; nil: it begins with nothing
	secrets secrets
	gate    Gate                  // nil: everything may be
	restore chandler.ModuleDigest // what is to be in the store; empty: it is to resolve
	judge   bool                  // only judge what there is
	older   bool                  // and that is of no resource as it is written now
	atVet   atomic.Bool           // it has done the rest
}

// newcomer tells whether the plugin never had a release.
func (j *job) newcomer() bool { return j.have == nil || j.have.UID != j.plugin.UID }

func resolveID(uid string) string              { return "resolve " + uid }
func restoreID(d chandler.ModuleDigest) string { return "restore " + string(d) }
func judgeID(r *chandler.Release) string       { return "judge " + string(r.ID) }

func (j *job) gateHash() string {
	if j.gate == nil {
		return ""
	}
	return j.gate.Hash()
}

// wanted tells whether what a job is about to find out is still of use: for the
// very generation, or for one that asks for the same module.
func (j *job) wanted(o *source.Object) bool {
	if o == nil || o.Plugin == nil {
		return false
	}
	a, b := j.plugin, o.Plugin
	if a.Wasm == nil || b.Wasm == nil {
		return a.Generation == b.Generation
	}
	return a.Wasm.Locked == b.Wasm.Locked && (a.Generation == b.Generation ||
		a.Wasm.Reference == b.Wasm.Reference && a.Wasm.SHA256 == b.Wasm.SHA256 && a.Wasm.PullSecret == b.Wasm.PullSecret)
}

// outcome is what a job came to.
type outcome struct {
	job     *job
	err     error
	release chandler.Release
	config  []byte // of the release, with its secrets; nil: it has none
	// rollout is the rollout record as it is stored: moved to release, or by
	// somebody else to another when err is record.ErrConflict.
	rollout *record.Rollout
	lease   *store.Lease
	// schema is what the plugin's configuration was to be judged by, also when it was
	// found wrong.
	schema *chandler.ConfigSchema
	// against: the error is that of judging the release that is there.
	against bool
}

// start begins the jobs that are due, as far as there is room, and cancels those
// that are overtaken, by another gate too. It gives the time until the next is due.
func (l *loop) start(ctx context.Context) time.Duration {
	leads := l.c.leads()
	for _, j := range l.jobs {
		if o := l.byUID[j.plugin.UID]; j.older && !(leads && j.gate == l.gate) ||
			!j.older && (o == nil || j.restore == "" && !(leads && j.wanted(o) && j.gate == l.gate)) {
			j.cancel()
		}
	}
	now, terms := l.c.cfg.Now(), l.c.cfg.Policy
	terms.Gate = l.gateHash()
	next := time.Hour
	later := func(at time.Time) {
		if !at.IsZero() {
			next = min(next, max(at.Sub(now), time.Millisecond))
		}
	}
	var due []*job
	for i := range l.snapshot.Objects {
		o := &l.snapshot.Objects[i]
		have := l.meant(o.UID)
		if against := l.ruled(o.Plugin).against; leads && len(against) > 0 && have != nil && have.Generation == o.Plugin.Generation && l.denial(have) == nil {
			l.found(have, &against[0])
		}
		terms.Denied = have != nil && l.denial(have) != nil
		d := resolve.Due(o.Plugin, secrets(l.snapshot.Secrets).current(o.Plugin, have), l.attempts[o.UID], terms, now)
		decides := leads && !l.behind(o) && len(l.ruled(o.Plugin).against) == 0
		if decides {
			later(d.At)
		}
		if decides && d.Now && (d.Judge || !held(o.Plugin)) && l.jobs[resolveID(o.UID)] == nil {
			j := l.newJob(resolveID(o.UID), o, have)
			j.judge = d.Judge
			due = append(due, j)
		}
		needs, n := l.needs(o)
		for _, need := range needs[:n] {
			digest := need.digest
			if at := l.restores[digest]; l.leases[digest] == nil && l.jobs[restoreID(digest)] == nil {
				if at.After(now) {
					later(at)
					continue
				}
				j := l.newJob(restoreID(digest), o, need.release)
				j.restore = digest
				due = append(due, j)
			}
		}
	}
	if leads && l.gate != nil {
		due = append(due, l.unjudged(now, later)...)
	}
	// Who has waited longest comes first, and who was never tried before all: a
	// few that fail again and again do not hold up the rest.
	slices.SortStableFunc(due, func(a, b *job) int {
		return l.attempts[a.plugin.UID].Next.Compare(l.attempts[b.plugin.UID].Next)
	})
	room := l.room()
	for _, j := range due {
		if !room.any() {
			break // an outcome brings us back here
		}
		if l.jobs[j.id] != nil || !room.has(j) {
			continue
		}
		if ok, at := l.admits(j, now); ok {
			l.launch(ctx, j)
			room.add(j)
		} else {
			later(at)
		}
	}
	return next
}

// room counts the jobs, to tell whether there is room for one more. Whoever has many
// plugins resolved or tried waits for his own.
type room struct {
	working, atVet int
	workingOf      map[string]int // by namespace
	newAtVetOf     map[string]int
}

func (l *loop) room() *room {
	r := &room{workingOf: map[string]int{}, newAtVetOf: map[string]int{}}
	for _, j := range l.jobs {
		r.add(j)
	}
	return r
}

func (r *room) add(j *job) {
	switch ns := j.plugin.Namespace; {
	case !j.atVet.Load():
		r.working++
		r.workingOf[ns]++
	case j.newcomer():
		r.newAtVetOf[ns]++
		fallthrough
	default:
		r.atVet++
	}
}

func (r *room) any() bool { return r.working < maxJobs && r.working+r.atVet < maxJobs+maxAtVet }

func (r *room) has(j *job) bool {
	ns := j.plugin.Namespace
	return r.any() && r.workingOf[ns] < maxJobsOfNamespace && (j.restore != "" || !j.newcomer() || r.newAtVetOf[ns] < maxNewAtVet)
}

// behind tells whether another replica has seen a newer generation of a plugin than
// this one, which must not take its record back then.
func (l *loop) behind(o *source.Object) bool {
	return l.c.cfg.Election != nil && o.Plugin != nil && l.at(o.UID).Generation > o.Plugin.Generation
}

// need is something that has to be in the store, and the release that it is of.
type need struct {
	digest  chandler.ModuleDigest
	release *chandler.Release
}

// needs gives what has to be in the store for a plugin, by its last publication: the modules
// that agents may ask for, of the release that its rollout is at and of the others, and the
// schema of the former.
func (l *loop) needs(o *source.Object) (all [3]need, n int) {
	e := l.entries[o.Key]
	if o.Plugin == nil || e == nil || e.object.UID != o.UID {
		return all, 0
	}
	add := func(d chandler.ModuleDigest, of ...*chandler.Release) {
		for _, r := range of {
			if r == nil || r.Program.Module == nil || r.Program.Module.Digest != d && (r.Schema == nil || chandler.ModuleDigest(r.Schema.Digest) != d) {
				continue
			}
			if !slices.ContainsFunc(all[:n], func(have need) bool { return have.digest == d }) {
				all[n], n = need{d, r}, n+1
			}
			return
		}
	}
	for _, v := range e.variants() {
		for _, d := range v.modules {
			add(d, e.target, l.other(o.UID))
		}
	}
	if e.target != nil && e.target.Schema != nil {
		add(chandler.ModuleDigest(e.target.Schema.Digest), e.target)
	}
	return all, n
}

func (l *loop) newJob(id string, o *source.Object, have *chandler.Release) *job {
	j := &job{id: id, plugin: o.Plugin, have: have, secrets: l.snapshot.Secrets, gate: l.gate}
	if ro := l.rollouts[o.UID]; ro != nil {
		j.rollout, j.before = ro, l.known(o.UID, everyones(ro).Release)
		if l.barred(j.before, o.Plugin, everyones(ro).Scope) != nil {
			j.before = nil // nobody has it
		}
	}
	if j.legacy = l.legacy(o.UID, l.c.plan(o.Plugin)); j.legacy != nil {
		j.before = j.legacy.base
	}
	return j
}

func (l *loop) launch(ctx context.Context, j *job) {
	ctx, j.cancel = context.WithCancel(ctx)
	l.jobs[j.id] = j
	if j.have == nil {
		j.have = l.pinned(j.plugin.Key, j.plugin.UID)
	}
	go func() {
		defer j.cancel()
		o := outcome{job: j}
		switch {
		case j.restore != "":
			o.lease, o.err = l.c.restore(ctx, j)
		case j.older:
			o.err = j.judgeOlder(ctx, &o)
		default:
			o.err = l.c.resolve(l.c.journeys.carry(ctx, j.plugin), j, &o)
		}
		l.c.outcomes <- o // has room for all jobs
	}()
}

// resolve finds out what a plugin means, has it judged and vetted, and records it. The
// records are on disk before any agent hears of them.
func (c *Control) resolve(ctx context.Context, j *job, o *outcome) (err error) {
	creds, err := j.secrets.credentials(j.plugin)
	if err != nil {
		return err
	}
	if o.config, err = j.secrets.merge(j.plugin); err != nil {
		return err
	}
	r, err := c.meaning(ctx, j, creds)
	if err != nil {
		return err
	}
	if same := j.have != nil && j.have.ID == r.ID; r.Program.Module != nil && !(j.judge && same) {
		if o.lease, err = c.cfg.Store.Acquire(r.Program.Module.Digest); err != nil {
			return err
		}
	}
	if j.gate != nil {
		verify, done := c.journeys.step(ctx, "verify")
		verdicts, err := j.gate.Trust(verify, j.plugin, &r, creds)
		done(err)
		if err != nil {
			o.against = j.have != nil && j.have.ID == r.ID
			return err
		}
		r.Verdicts = append(r.Verdicts, verdicts...)
	}
	conform, done := c.journeys.step(ctx, "conform")
	err = c.conform(conform, j, &r, o)
	if done(err); err != nil {
		return err
	}
	if j.have != nil && j.have.ID == r.ID {
		o.release = r
		return nil // it means what it meant
	}
	if err := c.vet(ctx, j, &r, o); err != nil {
		return err
	}
	ctx, done = c.journeys.step(ctx, "record")
	defer func() { done(err) }()
	o.release = r
	if j.rollout != nil && j.rollout.Meant() == r.ID && j.rollout.Revision != 0 {
		o.rollout = j.rollout // only the release's own record is not here yet, or lost
		return c.cfg.Records.PutRelease(ctx, r)
	}
	if j.legacy != nil && j.legacy.base != nil {
		if err := c.cfg.Records.PutRelease(ctx, *j.legacy.base); err != nil {
			return err
		}
	}
	// Side by side, for each waits for the disk. A rollout without its release is
	// as good as none.
	var g errgroup.Group
	g.Go(func() error { return c.cfg.Records.PutRelease(ctx, r) })
	g.Go(func() (err error) { o.rollout, err = c.adopt(ctx, j, &r); return err })
	return g.Wait()
}

// maxSwaps is how often a record that others move too is moved on from where it is.
const maxSwaps = 5

// adopt records what a plugin means now. When its rollout was moved meanwhile, and still
// means what it meant, that is gone on from.
func (c *Control) adopt(ctx context.Context, j *job, r *chandler.Release) (*record.Rollout, error) {
	old, from := j.rollout, j.rollout
	if j.legacy != nil {
		from = j.legacy.onto(old)
	}
	for n := 1; ; n++ {
		next := adopted(from, adoption{release: r, plugin: j.plugin, plan: c.plan(j.plugin), before: j.before, now: c.cfg.Now().UTC()})
		stored, err := c.swap(ctx, old, next)
		if !errors.Is(err, record.ErrConflict) || n == maxSwaps || old == nil || stored == nil || stored.Revision == 0 || stored.Meant() != old.Meant() {
			return stored, err
		}
		old, from = stored, stored
	}
}

// meaning gives the release that a plugin means, under the gate's terms: resolved, or
// the one it has when that is only to be judged.
func (c *Control) meaning(ctx context.Context, j *job, creds *fetch.Credentials) (r chandler.Release, err error) {
	if j.judge {
		r = *j.have
		r.Verdicts = slices.DeleteFunc(slices.Clone(r.Verdicts), func(v chandler.Verdict) bool {
			return v.Judge != chandler.JudgeStatic && v.Judge != chandler.JudgeSchema
		})
	} else {
		began := time.Now()
		ctx, done := c.journeys.step(ctx, "resolve", attribute.String("chandler.registry", c.metrics.registry(j.plugin)))
		r, err = c.cfg.Resolver.Resolve(ctx, resolve.Request{Plugin: j.plugin, Have: j.have, Credentials: creds, ConfigFrom: j.secrets.versions(j.plugin)})
		c.metrics.resolved(j.plugin, time.Since(began), err)
		done(err)
	}
	if err != nil {
		return r, err
	}
	if j.gate != nil {
		r.Capabilities = j.gate.Terms(j.plugin).Capabilities
	}
	if h := j.have; h != nil && sameSchema(h.Schema, r.Schema) && bytes.Equal(h.Config, r.Config) {
		r.SecretConfig = h.SecretConfig // as it was found then
	}
	return r.WithID(), nil
}

// vet adds to a release what was said of it, with the secrets of its configuration
// where it has any.
func (c *Control) vet(ctx context.Context, j *job, r *chandler.Release, o *outcome) error {
	if c.cfg.Vetter == nil {
		return nil
	}
	whole := *r
	if len(r.ConfigFrom) > 0 {
		whole.Config = o.config
	}
	req := vet.Request{Release: &whole, Probes: j.plugin.Probes, Settled: !j.newcomer()}
	if o.lease != nil {
		req.Path = o.lease.Path()
	}
	j.atVet.Store(true)
	select {
	case c.parked <- struct{}{}:
	default: // the loop will look anyway
	}
	ctx, done := c.journeys.step(ctx, "vet")
	verdicts, err := c.cfg.Vetter.Vet(ctx, req)
	done(err)
	switch {
	case err != nil && (r.SecretConfig || len(r.ConfigFrom) > 0):
		return kept(err)
	case err != nil:
		return err
	}
	r.Verdicts = append(r.Verdicts, verdicts...)
	return nil
}

// swap moves a rollout record on, and gives it as it is then. When it is not what
// it was thought to be, nothing is written: the error is record.ErrConflict, and
// what it is instead is to be gone on from.
func (c *Control) swap(ctx context.Context, old *record.Rollout, next record.Rollout) (*record.Rollout, error) {
	stored, err := c.swapExactly(ctx, old, next)
	if errors.Is(err, record.ErrConflict) && stored != nil && stored.Revision != 0 && stored.Meant() == next.Meant() {
		return stored, nil // another replica came to the same
	}
	return stored, err
}

// restore leases a module or a schema, fetching it again if the store lost it.
func (c *Control) restore(ctx context.Context, j *job) (*store.Lease, error) {
	lease, err := c.cfg.Store.Acquire(j.restore)
	if !errors.Is(err, fs.ErrNotExist) {
		return lease, err
	}
	if c.fromPeers(ctx, j.restore) == nil {
		return c.cfg.Store.Acquire(j.restore)
	}
	creds, err := j.secrets.credentials(j.plugin)
	if err != nil {
		return nil, err
	}
	if err := c.cfg.Resolver.Restore(ctx, j.plugin, j.have, creds); err != nil {
		return nil, err
	}
	return c.cfg.Store.Acquire(j.restore)
}

// finished takes an outcome in.
func (l *loop) finished(o outcome) {
	j, now := o.job, l.c.cfg.Now()
	delete(l.jobs, j.id)
	if j.older {
		l.judgedOlder(o, now)
		return
	}
	key := j.plugin.Key
	log := l.c.log.With("plugin", key.String())
	if o.lease != nil {
		l.lease(o.lease)
	}
	if o.rollout != nil {
		l.keep(*o.rollout)
	}
	if o.rollout != nil && o.err == nil {
		if j.legacy != nil && j.legacy.base != nil {
			l.released(j.legacy.base)
			if j.legacy.config != nil {
				l.configs[j.legacy.base.ID] = j.legacy.config
			}
		}
		r := o.release // alone: as a part of the outcome it would hold the job, and by it all releases before
		l.released(&r)
		l.c.tellResolved(&o.release, o.rollout.Sequence)
		log.Info("new release", "release", o.release.ID.Short(), "generation", o.release.Generation, "sequence", o.rollout.Sequence, "reference", o.release.ShownReference())
		if j.rollout == nil || j.rollout.Meant() != o.release.ID {
			l.begun(o.rollout)
		}
	}
	cancelled := errors.Is(o.err, context.Canceled) && !(l.c.leads() && j.wanted(l.byUID[j.plugin.UID])) ||
		o.err != nil && j.restore == "" && j.gate != l.gate // it is judged by another now
	if o.schema != nil {
		l.schemas[j.plugin.UID] = o.schema
	}
	if o.err == nil && o.config != nil {
		l.configs[o.release.ID] = o.config
	}
	switch {
	case j.restore != "":
		if o.err != nil {
			l.restores[j.restore] = now.Add(restoreFailed)
			log.Warn("a module, or its schema, is not in the store and cannot be fetched", "digest", j.restore, "error", o.err)
		}
	case o.err == nil && j.judge:
		l.found(j.have, nil)
		l.attempts[j.plugin.UID] = l.attempts[j.plugin.UID].Judged(j.plugin, j.gateHash())
	case o.err == nil:
		l.found(&o.release, nil)
		l.attempts[j.plugin.UID] = resolve.Succeeded(j.plugin, j.gateHash(), now)
	case !cancelled:
		a := l.attempts[j.plugin.UID].After(j.plugin, o.err, now, rand.Float64())
		a.Judging = j.judge
		if why := resolve.Refusal(o.err); o.against && why != nil {
			l.found(j.have, why)
		}
		l.c.tellFailed(key, l.attempts[j.plugin.UID], a)
		l.attempts[j.plugin.UID] = a
		log.Warn("cannot be resolved", "code", a.Problem.Code, "error", a.Problem.Error(), "attempt", a.Failed, "retry_in", a.Next.Sub(now).Round(time.Millisecond))
	}
	if !cancelled && !(j.judge && o.err == nil) { // to judge, nobody need have been asked
		l.answered(j, o.err, now)
	}
	if l.byUID[j.plugin.UID] == nil {
		delete(l.attempts, j.plugin.UID)
	}
	l.stale[key] = true
}

// released takes note of a release, the newest of its plugin.
func (l *loop) released(r *chandler.Release) {
	l.releases[r.ID] = r
	ids := slices.DeleteFunc(l.history[r.UID], func(id chandler.ReleaseID) bool { return id == r.ID })
	l.history[r.UID] = append(ids, r.ID)
}

// lease keeps a module from being dropped while it is attached.
func (l *loop) lease(lease *store.Lease) {
	if old := l.leases[lease.Digest()]; old != nil {
		old.Release()
	}
	l.leases[lease.Digest()] = lease
}
