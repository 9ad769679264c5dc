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
	var old rubbish
	for uid, ro := range l.rollouts {
		if l.byUID[uid] == nil && l.jobs[resolveID(uid)] == nil && !l.isGhost(uid) && !l.remembered(uid, now) {
			old.rollouts = append(old.rollouts, *ro)
		}
	}
	for uid, ids := range l.history {
		keep := keepReleases
		if l.byUID[uid] == nil && l.jobs[resolveID(uid)] == nil && !l.isGhost(uid) {
			keep = 0
		}
		ro, more := l.at(uid), len(ids)-keep
		for _, id := range ids {
			if more > 0 && (keep == 0 || !ro.Remembers(id)) {
				old.releases = append(old.releases, l.releases[id])
				more--
			}
		}
	}
	if len(old.rollouts) == 0 && len(old.releases) == 0 {
		return
	}
	l.collecting = true
	go func() { l.c.collected <- old.remove(ctx, l.c.cfg.Records) }() // has room for it
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
