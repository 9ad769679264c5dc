package control

import (
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/record"
)

// maxRemembered bounds how many plugins that are gone are remembered; of more, it
// is those that went last.
const maxRemembered = 1000

// pin is what of a release is worth keeping longer than the release: what the url
// turned out to be.
func pin(r chandler.Release) *chandler.Release {
	if r.Program.Module == nil {
		return nil
	}
	r.ID, r.Behaviour, r.ConfigFrom, r.SecretConfig, r.Verdicts = "", chandler.Behaviour{}, nil, false, nil
	return &r
}

// pinned finds what a plugin without a release once was resolved to: by its own
// rollout, whose releases were lost, or by the last that bore its key and is gone.
func (l *loop) pinned(k chandler.Key, uid string) *chandler.Release {
	if p := l.at(uid).Pin; p != nil {
		return p
	}
	var last record.Rollout
	for id := range l.gone {
		if ro := l.at(id); ro.Key == k && ro.UpdatedAt.After(last.UpdatedAt) {
			last = *ro
		}
	}
	return last.Pin
}

// missed notes when plugins went, and that they are back.
func (l *loop) missed() {
	now := l.c.cfg.Now()
	for uid := range l.rollouts {
		if _, ok := l.gone[uid]; !ok && l.byUID[uid] == nil {
			l.gone[uid] = now
		}
	}
	for uid := range l.gone {
		if _, ok := l.rollouts[uid]; !ok || l.byUID[uid] != nil {
			delete(l.gone, uid)
		}
	}
	for len(l.gone) > maxRemembered {
		first, at := "", now
		for uid, t := range l.gone {
			if first == "" || t.Before(at) {
				first, at = uid, t
			}
		}
		delete(l.gone, first)
	}
}

// remembered tells whether the rollout of a plugin that is gone is still of use:
// nobody took its place, and it went not long ago.
func (l *loop) remembered(uid string, now time.Time) bool {
	went, ok := l.gone[uid]
	if !ok || now.Sub(went) >= l.c.cfg.Remember || l.at(uid).Pin == nil {
		return false
	}
	e := l.entries[l.at(uid).Key]
	return e == nil || e.object.UID == uid || e.target == nil
}
