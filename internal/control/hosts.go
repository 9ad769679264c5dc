package control

import (
	"math/rand/v2"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/resolve"
)

// maxJobsOfHost bounds the jobs that wait for one host at a time, so that a host
// which does not answer leaves room for the others.
const maxJobsOfHost = maxJobs / 2

// host is one that gave no answer. One plugin at a time asks it again; all the
// others fare as that one does, and are tried at once when it answers.
type host struct {
	asked  resolve.Attempts // of the one that asked last
	behind map[string]bool  // uids that fare as it does
}

// hostOf is the host that a plugin's module comes from; empty: none.
func hostOf(p *chandler.Plugin) string {
	if p == nil || p.Wasm == nil {
		return ""
	}
	return p.Wasm.Reference.Host
}

// admits tells whether a job that is due may ask its host now, and else notes
// why the plugin waits and gives the time of the next try.
func (l *loop) admits(j *job, now time.Time) (ok bool, at time.Time) {
	name := hostOf(j.plugin)
	if name == "" || j.judge || j.restore != "" && l.c.cfg.Peers != nil { // others are asked first, or nobody
		return true, now
	}
	asking := 0
	for _, other := range l.jobs {
		if hostOf(other.plugin) == name && !other.atVet.Load() {
			asking++
		}
	}
	h := l.hosts[name]
	switch {
	case h == nil:
		return asking < maxJobsOfHost, time.Time{} // an outcome brings us back
	case asking == 0 && !h.asked.Next.After(now):
		return true, now
	}
	if asking == 0 {
		at = h.asked.Next // else an outcome brings us back
	}
	if uid := j.plugin.UID; j.restore == "" && !h.behind[uid] {
		h.behind[uid] = true
		l.attempts[uid] = l.attempts[uid].Behind(j.plugin, h.asked)
		l.stale[j.plugin.Key] = true
	}
	return false, at
}

// answered takes in what a job found out about its host.
func (l *loop) answered(j *job, err error, now time.Time) {
	name := hostOf(j.plugin)
	h := l.hosts[name]
	if name == "" || h == nil && !resolve.HostWide(err) {
		return
	}
	if resolve.HostWide(err) {
		asked := l.attempts[j.plugin.UID]
		if j.restore != "" {
			asked = asked.After(j.plugin, err, now, rand.Float64())
		}
		l.hosts[name] = &host{asked: asked, behind: map[string]bool{}}
		return
	}
	delete(l.hosts, name) // it answers
	for uid, a := range l.attempts {
		if a.Failed > 0 && a.Problem == h.asked.Problem {
			a.Next = now
			l.attempts[uid] = a
		}
	}
}
