package control

import (
	"context"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/record"
)

// collectEvery is how long after a record could not be deleted it is tried again.
const collectEvery = 10 * time.Second

// rubbish is records that nothing needs any more: those to delete, and, when that
// is over, those that were.
type rubbish struct {
	rollouts []record.Rollout
	releases []*chandler.Release
	err      error
}

// collect has the records of plugins that are gone deleted, and the oldest of more
// releases than are kept. That goes on beside the loop, for the store may not answer
// for long; what cannot be deleted now is tried again later, and does no harm.
func (l *loop) collect(ctx context.Context) {
	now := l.c.cfg.Now()
	if l.collecting || now.Before(l.collectNext) || !l.c.leads() {
		return
	}
	old := l.rubbish(now)
	if len(old.rollouts) == 0 && len(old.releases) == 0 {
		return
	}
	l.collecting = true
	go func() { l.c.collected <- old.remove(ctx, l.c.cfg.Records) }() // has room for it
}

// rubbish finds what nothing needs any more, now.
func (l *loop) rubbish(now time.Time) (old rubbish) {
	needed := func(uid string) bool {
		return l.byUID[uid] != nil || l.jobs[resolveID(uid)] != nil || l.survives(uid)
	}
	for uid, ro := range l.rollouts {
		if !needed(uid) && !l.remembered(uid, now) {
			old.rollouts = append(old.rollouts, *ro)
		}
	}
	for uid, ids := range l.history {
		if !needed(uid) {
			old.releases = append(old.releases, l.recent(uid)...)
			continue
		}
		ro, more := l.at(uid), len(ids)-keepReleases
		for _, r := range l.recent(uid) {
			if more > 0 && !ro.Remembers(r.ID) && !l.coming(ro, r) {
				old.releases = append(old.releases, r)
				more--
			}
		}
	}
	return old
}

// coming tells whether a release may be about to be named by its rollout: both are
// written side by side, by this replica or another, and the release may be seen first.
func (l *loop) coming(ro *record.Rollout, r *chandler.Release) bool {
	return l.jobs[resolveID(r.UID)] != nil || !r.ResolvedAt.Before(ro.UpdatedAt)
}

// remove deletes one by one, until something cannot be deleted.
func (old rubbish) remove(ctx context.Context, records record.Store) (done rubbish) {
	for _, ro := range old.rollouts {
		if done.err = records.DeleteRollout(ctx, ro.UID); done.err != nil {
			return done
		}
		done.rollouts = append(done.rollouts, ro)
	}
	for _, r := range old.releases {
		if done.err = records.DeleteRelease(ctx, r.ID); done.err != nil {
			return done
		}
		done.releases = append(done.releases, r)
	}
	return done
}

// swept takes in what was deleted.
func (l *loop) swept(done rubbish) {
	l.collecting = false
	for _, ro := range done.rollouts {
		l.rolloutLost(ro)
		if l.at(ro.UID).UID == "" {
			delete(l.gone, ro.UID)
		}
	}
	for _, r := range done.releases {
		if ro := l.at(r.UID); !ro.Names(r.ID) || l.byUID[r.UID] == nil {
			l.forgetRelease(r)
		}
	}
	if done.err != nil {
		l.collectNext = l.c.cfg.Now().Add(collectEvery)
		l.c.log.Warn("records of a deleted plugin cannot be removed yet", "error", done.err)
	}
}
