package agent

import (
	"maps"
	"slices"
	"time"

	"chandler.dev/chandler"
)

// A plugin can be taken out on its machine, by an order that holds whatever the
// control plane says and until it is taken back. Nothing stands in for it, not
// even a denial: whoever gives the order wants requests to pass by the plugin. What
// was good of it stays on disk, so that it is in force again at once.

// bypass takes the orders in that hold from now on.
func (s *State) bypass(orders []chandler.Bypass) {
	s.bypassed = make(map[chandler.Key]chandler.Bypass, len(orders))
	for _, b := range orders {
		s.bypassed[b.Key] = b
	}
}

// bypasses tells whether a plugin, which is wanted, is taken out.
func (s *State) bypasses(p *plugin) bool {
	_, ok := s.bypassed[p.want.Key]
	return ok
}

// bypassesIn tells whether some plugin of a slot is taken out. That is done also
// where the slot would else wait for the control plane.
func (s *State) bypassesIn(sl *slot) bool {
	for _, p := range s.plugins {
		if p.want != nil && s.bypasses(p) && sl.Holds(&p.want.Attachment) {
			return true
		}
	}
	return false
}

// Bypassed gives the orders that hold, in the order of their plugins.
func (s *State) Bypassed() []chandler.Bypass {
	return slices.SortedFunc(maps.Values(s.bypassed), func(a, b chandler.Bypass) int { return a.Key.Compare(b.Key) })
}

func bypassWords(b chandler.Bypass) string {
	return "it was taken out on this machine at " + b.At.UTC().Format(time.RFC3339) + ": " + b.Reason
}
