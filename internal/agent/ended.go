package agent

import (
	"time"

	"chandler.dev/chandler"
)

// crashPause is how long a version stays away that was being put in force when
// Envoy ended; it doubles with every time up to rejectedInterval. The first is
// short, as it may not have been the version's fault.
const crashPause = 10 * time.Second

// envoyEnded goes back to what is so before an Envoy is started: nothing is in
// force, and its listeners are written before it reads them.
func (s *State) envoyEnded(ev EnvoyEnded, now time.Time) {
	suspects := s.suspects()
	s.set.Running = false
	s.envoy, s.open, s.left, s.awaiting, s.keepUntil = "", false, false, false, time.Time{}
	s.down = ev
	s.forgetEnvoy()
	s.shut = s.seeded || len(s.set.Slots) == 0
	for key, v := range suspects {
		p := s.plugins[key]
		p.rejects++
		p.attempt++
		p.rejected, p.reason = v.Version, chandler.CodeRejected
		p.message = "Envoy ended while this version was being put in force: " + ev.Message
		p.nextTry = now.Add(backoff(p.attempt, crashPause, rejectedInterval))
		if p.good == nil {
			p.standIn = contract(v)
		}
	}
	for _, p := range s.plugins {
		p.vms = vmFaults{} // the next one counts from zero
	}
}

// forgetEnvoy forgets what an Envoy had: another one has nothing, and a version
// that was refused is worth another try.
func (s *State) forgetEnvoy() {
	s.listing, s.relistAt = nil, time.Time{}
	s.freshSlots()
	for _, p := range s.plugins {
		p.rejected = ""
	}
}

// suspects are the versions that were on their way into a slot and never were in
// force before: an Envoy that ends then would end again with them.
func (s *State) suspects() map[chandler.Key]*Version {
	found := map[chandler.Key]*Version{}
	for _, sl := range s.slots {
		if sl.sent == nil {
			continue
		}
		for _, key := range changes(sl.acked, sl.sent.members) {
			m, ok := sl.sent.members[key]
			p := s.plugins[key]
			if !ok || m.standIn != chandler.StandInNone || p == nil || p.want == nil || p.want.Version != m.version.Version {
				continue
			}
			if p.good == nil || p.good.Version != m.version.Version {
				found[key] = m.version
			}
		}
	}
	return found
}
