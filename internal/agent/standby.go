package agent

import (
	"maps"
	"time"

	"chandler.dev/chandler"
)

// standby gives the modules worth having on disk besides those that are needed,
// with their origins. When the store is too full for what is needed there are
// none, which gives their room back.
func (s *State) standby(needed map[Source][]string) map[Source][]string {
	for src := range needed {
		if l := s.loads[src]; l != nil && !l.ready && l.problem != nil && l.problem.Code == chandler.CodeCacheFull {
			return nil
		}
	}
	standby := map[Source][]string{}
	for _, p := range s.plugins {
		if p.want == nil || s.lacks(p.want) != "" || !s.belongs(p.want) {
			continue
		}
		for _, m := range p.want.Standby {
			src := Source{Digest: m.Digest}
			if _, ok := needed[src]; !ok {
				standby[src] = m.Origins
			}
		}
	}
	return standby
}

// settleStandby starts the load of one standby module when no needed one is on its
// way, and cancels it when one is. Of what cannot be had nothing is said: nobody
// waits for it, and it is tried again as seldom as a permanent error is.
func (s *State) settleStandby(needed, standby map[Source][]string, now time.Time) []Effect {
	busy := false
	for src := range needed {
		busy = busy || s.loads[src].running
	}
	var effects []Effect
	running := false
	for _, src := range sortedSources(maps.Keys(standby)) {
		l := s.loads[src]
		if l == nil {
			l = &load{}
			s.loads[src] = l
		}
		l.standby = true
		if l.running && busy {
			l.running, l.nextTry = false, time.Time{}
			effects = append(effects, CancelLoad{src})
		}
		running = running || l.running
	}
	for _, src := range sortedSources(maps.Keys(standby)) {
		l := s.loads[src]
		if l.ready || l.running || l.nextTry.After(now) {
			continue
		}
		if l.nextTry = (time.Time{}); busy || running {
			continue // its turn comes with the end of what runs
		}
		l.running, running = true, true
		l.attempt++
		effects = append(effects, Load{Source: src, Origins: standby[src], Attempt: l.attempt})
	}
	return effects
}

// want makes a load that was standby a needed one, which is due at once.
func (l *load) want() {
	if !l.standby {
		return
	}
	l.standby, l.problem = false, nil
	if !l.running {
		l.attempt, l.nextTry = 0, time.Time{}
	}
}
