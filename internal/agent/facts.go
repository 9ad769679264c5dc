package agent

import (
	"maps"
	"slices"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

// Listeners tells what stands in the listeners of a layout: in each slot that
// serves, what Envoy acknowledged last.
func (s *State) Listeners(layout []attach.Listener) []chandler.Listener {
	list := make([]chandler.Listener, 0, len(layout))
	for i := range layout {
		l := &layout[i]
		told := chandler.Listener{Name: l.Name, Address: l.Address, Port: l.Port, Mode: l.Mode}
		for _, place := range l.InOrder(s.listed) {
			sl := s.find(place)
			if sl == nil || !sl.present {
				continue
			}
			kind := chandler.HTTP
			if place.Network {
				kind = chandler.Network
			}
			told.Slots = append(told.Slots, chandler.Slot{Name: sl.name, Type: kind, Phase: place.Phase, Members: sl.acked.list()})
		}
		list = append(list, told)
	}
	return list
}

// list gives the members in the order in which requests meet them. It is made once,
// and whoever gets it must not change it.
func (c *composition) list() []chandler.SlotMember {
	if c == nil {
		return nil
	}
	if c.told == nil && len(c.members) > 0 {
		members := slices.SortedFunc(maps.Values(c.members), func(a, b member) int {
			return a.version.CompareOrder(&b.version.Attachment)
		})
		c.told = make([]chandler.SlotMember, 0, len(members))
		for _, m := range members {
			told := chandler.SlotMember{Key: m.version.Key, StandIn: m.standIn}
			if m.standIn == chandler.StandInNone {
				told.Release = m.version.Release
			}
			c.told = append(c.told, told)
		}
	}
	return c.told
}

// layout is that of the listeners as they are now.
func (a *Agent) layout() []attach.Listener {
	if a.relayed != nil {
		return a.relayed.layout()
	}
	return a.derived.Layout
}

// facts is for the goroutine that owns the state.
func (a *Agent) facts() *chandler.Facts {
	f := &chandler.Facts{Slots: a.binary.Slots, Listeners: a.state.Listeners(a.layout()), Bypassed: a.state.Bypassed()}
	f.Store.Modules, f.Store.Bytes = a.store.Stats()
	f.Store.Limit = a.store.MaxBytes
	return f
}
