package control

import (
	"cmp"
	"context"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/resolve"
	"chandler.dev/chandler/internal/status"
)

// Whether a release may be on proxies is decided by the release under the terms in force,
// and not by what its resource says by now: an edit, a rollout, an order, a restart or a
// resource that is made anew put nothing back that was taken out.
//
// What a release was asked for as, and whom it is for, is judged by every replica each time
// it would be assigned. What else there is to judge, signatures above all, the leader judges
// beside the loop, once for each gate. What it finds is in the plugin's record and holds until
// it is found otherwise.

// maxDenialMoves bounds how many records are moved at a time to say what is denied.
const maxDenialMoves = 32

// denialOf is a problem as records have it.
func denialOf(r *chandler.Release, p *chandler.Problem) *record.Denial {
	return &record.Denial{Release: r.ID, Reason: p.Code, Message: chandler.Printable(p.Error(), maxWord)}
}

// written is a resource as it was when a release was made of it, as far as that is recorded.
// now is what stands for it at present; nil: nothing does.
//
// That a lock file named the module is not recorded. Of a release that was not denied it is
// taken to have, unless the resource has no pin now either: to take out what was allowed
// would open a proxy. What was denied does not gain by that.
func written(r *chandler.Release, now *chandler.Plugin, scope *record.Scope, denied bool) *chandler.Plugin {
	p := &chandler.Plugin{
		Key: r.Key, UID: r.UID, Generation: r.Generation,
		Phase: r.Phase, Priority: r.Priority, Match: r.Match, Type: r.Type, Lua: r.Program.Lua,
	}
	if now != nil {
		p.Selector, p.TargetRefs = now.Selector, now.TargetRefs
	}
	if p = scoped(p, scope); p.Lua != nil {
		return p
	}
	url, pin, _ := strings.Cut(cmp.Or(r.Asked, r.Reference), " ")
	ref, _ := chandler.ParseReference(url) // it was one when it was recorded
	w := &chandler.Wasm{
		URL: url, Reference: ref, SHA256: pin,
		Config: r.Config, RootID: r.RootID, FailStrategy: r.FailStrategy, Env: r.Env,
	}
	p.Wasm = w
	if now != nil && now.Wasm != nil && ref.Scheme == chandler.SchemeOCI {
		w.PullSecret = now.Wasm.PullSecret
	}
	if m := r.Program.Module; m != nil && !denied && !w.Pinned() && (now == nil || now.Wasm == nil || now.Wasm.Pinned()) {
		w.Locked = strings.TrimPrefix(cmp.Or(string(r.Artifact), string(m.Digest)), "sha256:")
	}
	return p
}

// objection is what a gate has against a release, by how it was written. denied: so it was
// at the last judgement.
func objection(g Gate, r *chandler.Release, now *chandler.Plugin, scope *record.Scope, denied bool) *record.Denial {
	p := now
	if p == nil || p.UID != r.UID || p.Generation != r.Generation {
		p = written(r, now, scope, denied)
	}
	if against := g.Admit(p); len(against) > 0 {
		return denialOf(r, &against[0])
	}
	return nil
}

// barred is why a release is not to be on proxies, where the operator wants it to be taken
// out then; nil: it may be. now is the resource that it would be assigned for.
func (l *loop) barred(r *chandler.Release, now *chandler.Plugin, scope *record.Scope) *record.Denial {
	if r == nil || l.gate == nil || !l.gate.Detaches() {
		return nil
	}
	if d := l.denial(r); d != nil {
		return d
	}
	return l.objection(r, now, scope, false)
}

// objected is what came of an objection to a release, and what that rests on.
type objected struct {
	now    *chandler.Plugin
	scope  *record.Scope
	denied bool
	denial *record.Denial
}

// objection is that of the gate in force, which there is. It is asked for at every turn of
// the loop.
func (l *loop) objection(r *chandler.Release, now *chandler.Plugin, scope *record.Scope, denied bool) *record.Denial {
	if o, ok := l.objections[r.ID]; ok && o.now == now && o.scope == scope && o.denied == denied {
		return o.denial
	}
	d := objection(l.gate, r, now, scope, denied)
	l.objections[r.ID] = objected{now, scope, denied, d}
	return d
}

// denial is what the last judgement of a release found against it; nil: nothing.
func (l *loop) denial(r *chandler.Release) *record.Denial {
	if l.gate == nil {
		return nil
	}
	if d, ok := l.verdicts[r.ID]; ok {
		return d
	}
	return l.at(r.UID).Denial(r.ID)
}

// denials are those of the releases of a plugin that are recorded.
func (l *loop) denials(uid string) map[chandler.ReleaseID]*record.Denial {
	var all map[chandler.ReleaseID]*record.Denial
	for _, id := range l.history[uid] {
		if d := l.denial(l.releases[id]); d != nil {
			if all == nil {
				all = map[chandler.ReleaseID]*record.Denial{}
			}
			all[id] = d
		}
	}
	return all
}

// found takes in what the gate says of a release; nil: it has nothing against it.
func (l *loop) found(r *chandler.Release, against *chandler.Problem) {
	if l.gate == nil {
		return
	}
	var d *record.Denial
	if against != nil {
		d = denialOf(r, against)
	}
	if before, ok := l.verdicts[r.ID]; ok && reflect.DeepEqual(before, d) {
		return
	}
	l.verdicts[r.ID] = d
	l.stale[r.Key], l.unsaid[r.UID] = true, true
}

// recordDenials has what was found written into the records, where they do not say it. It
// gives the time until it is to be tried again.
func (l *loop) recordDenials(ctx context.Context) time.Duration {
	if wait := l.recordNext.Sub(l.c.cfg.Now()); wait > 0 && len(l.unsaid) > 0 {
		return wait
	}
	for uid := range l.unsaid {
		ro := l.at(uid)
		if ro.UID == "" || !l.c.leads() {
			delete(l.unsaid, uid)
			continue
		}
		if l.moving[uid] {
			continue
		}
		var denied []record.Denial
		for _, r := range l.recent(uid) {
			if d := l.denial(r); d != nil && ro.Remembers(r.ID) {
				denied = append(denied, *d)
			}
		}
		if slices.Equal(denied, ro.Denied) {
			delete(l.unsaid, uid)
			continue
		}
		if len(l.moving) >= maxDenialMoves {
			break // the end of a move brings us back
		}
		next := *ro
		if w, ok := l.watching[uid]; ok && w.revision == ro.Revision && ro.Stage.Order == "" {
			next = staged(next, w.state)
		}
		next.Denied = denied
		l.move(ctx, next, nil)
	}
	return time.Hour
}

// unjudged gives jobs for the releases that proxies have, or would go back to, of which no
// resource says any more what it says of them, and which the gate has not judged.
func (l *loop) unjudged(now time.Time, later func(time.Time)) (due []*job) {
	terms := resolve.Policy{Gate: l.gateHash()}
	consider := func(r *chandler.Release, scope *record.Scope) {
		if r == nil || l.jobs[judgeID(r)] != nil {
			return
		}
		p := l.plugin(r.UID)
		if p != nil && p.Generation == r.Generation {
			return // it is judged with its resource
		}
		terms.Denied = l.denial(r) != nil
		d := resolve.Due(&chandler.Plugin{UID: r.UID, Generation: r.Generation}, r, l.judging[r.ID], terms, now)
		later(d.At)
		if d.Now && l.objection(r, p, scope, terms.Denied) == nil {
			due = append(due, &job{id: judgeID(r), plugin: written(r, p, scope, terms.Denied), have: r, secrets: l.snapshot.Secrets, gate: l.gate, judge: true, older: true})
		}
	}
	each := func(e *entry) {
		consider(e.target, e.course.scope)
		scope := e.course.scope
		if e.course.others != nil {
			scope = e.course.others.scope
		}
		consider(l.other(e.object.UID), scope)
	}
	for _, e := range l.entries {
		each(e)
	}
	if p := l.c.published.Load(); p != nil {
		for _, e := range p.ghosts {
			each(e)
		}
	}
	return due
}

// judgeOlder has the gate judge a release of an earlier time.
func (j *job) judgeOlder(ctx context.Context, o *outcome) error {
	creds, err := j.secrets.credentials(j.plugin)
	if err != nil {
		return err
	}
	_, err = j.gate.Trust(ctx, j.plugin, j.have, creds)
	o.against = err != nil
	return err
}

// judgedOlder takes in what came of that.
func (l *loop) judgedOlder(o outcome, now time.Time) {
	j, r := o.job, o.job.have
	a := l.judging[r.ID]
	switch {
	case j.gate != l.gate || l.releases[r.ID] == nil || !l.c.leads():
	case o.err == nil:
		l.judging[r.ID] = a.Judged(j.plugin, j.gateHash())
		l.found(r, nil)
	default:
		a = a.After(j.plugin, o.err, now, rand.Float64())
		a.Judging = true
		l.judging[r.ID] = a
		if why := resolve.Refusal(o.err); o.against && why != nil {
			l.found(r, why)
		}
		l.c.log.Warn("a release of before cannot be judged good", "plugin", r.Key.String(), "release", r.ID.Short(), "code", a.Problem.Code, "error", a.Problem.Error(), "retry_in", a.Next.Sub(now).Round(time.Millisecond))
	}
}

// detachments are the releases that proxies are to have of an entry and that are taken out.
func (e *entry) detachments() (all []status.Detached) {
	if d := e.course.denial; d != nil {
		all = append(all, status.Detached{Release: e.target, Why: chandler.Problem{Code: d.Reason, Message: d.Message}, Whole: e.others == nil, Chosen: true})
	}
	if o := e.course.others; o != nil && o.denial != nil {
		all = append(all, status.Detached{Release: o.target, Why: chandler.Problem{Code: o.denial.Reason, Message: o.denial.Message}})
	}
	return all
}

// denial is what the gate has against a release of the plugin, also where it takes nothing
// out; nil: nothing.
func (e *entry) denial(id chandler.ReleaseID) *record.Denial {
	at := slices.IndexFunc(e.history, func(r *chandler.Release) bool { return r.ID == id })
	if at < 0 || e.gate == nil {
		return nil
	}
	if d := e.denials[id]; d != nil {
		return d
	}
	now := e.object.Plugin
	if e.kept != nil {
		now = nil // what stands for a resource that is gone says little
	}
	return objection(e.gate, e.history[at], now, nil, false)
}

// objects says why a release is not to be given to more proxies; empty: it may be.
func (e *entry) objects(id chandler.ReleaseID) string {
	d := e.denial(id)
	if d == nil {
		return ""
	}
	return releaseText(id) + " is against the operator's policy: " + d.Message
}
