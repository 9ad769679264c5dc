package attach

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"chandler.dev/chandler"
)

// Slot is a filter with config discovery that holds plugins.
//
// A shared slot stands once for each phase in every connection manager of its
// mode and port, and holds all the HTTP plugins of the phase: plugins come and go
// in it without a change of the listener. A slot of one plugin stands in the
// listener for as long as the plugin does: among the filters of a chain for a
// NETWORK plugin, and among the HTTP filters where Envoy knows no shared slots.
type Slot struct {
	Phase chandler.Phase
	// Mode is ModeClient or ModeServer.
	Mode chandler.Mode
	// Port is 0 for listeners without one, for instance on a pipe.
	Port uint32
	// Network: it stands among network filters.
	Network bool
	// Plugin is the one that it is for; zero: it is shared.
	Plugin chandler.Key
}

// Site is where slots of one plugin can enter: the connection managers or, for
// Network, the filter chains of one mode and port.
type Site struct {
	Mode    chandler.Mode
	Port    uint32
	Network bool
}

// Slot gives the slot of its own that a plugin has at the site; false when it is
// not meant for the site's traffic.
func (s Site) Slot(a *chandler.Attachment) (Slot, bool) {
	slot := Slot{Phase: a.Phase, Mode: s.Mode, Port: s.Port, Network: s.Network, Plugin: a.Key}
	return slot, slot.Holds(a)
}

// Compare orders sites by kind, mode and port.
func (s Site) Compare(o Site) int {
	kind := func(s Site) string { return filterKind(s.Network) }
	return cmp.Or(cmp.Compare(kind(s), kind(o)), cmp.Compare(s.Mode, o.Mode), cmp.Compare(s.Port, o.Port))
}

// slotPrefix begins the name of every slot.
const slotPrefix = "chandler/"

// Shared tells whether the slot is there for all plugins of its phase.
func (s Slot) Shared() bool { return s.Plugin == chandler.Key{} }

// Name is "chandler/<phase>/<mode>/<port>" in lower case; the name of a slot of
// one plugin goes on with "/http/" or "/network/" and the plugin's key. The name
// of a shared slot never depends on which plugins exist: a new name would drain
// the listener.
func (s Slot) Name() string {
	name := fmt.Sprintf("%s%s/%s/%d", slotPrefix, phaseName(s.Phase), strings.ToLower(string(s.Mode)), s.Port)
	if s.Shared() {
		return name
	}
	return name + "/" + filterKind(s.Network) + "/" + s.Plugin.String()
}

func filterKind(network bool) string {
	if network {
		return "network"
	}
	return "http"
}

func phaseName(p chandler.Phase) string {
	if p == chandler.PhaseUnspecified {
		return "unspecified"
	}
	return strings.ToLower(string(p))
}

// ParseSlot reads what Name wrote.
func ParseSlot(name string) (Slot, bool) {
	parts := strings.SplitN(name, "/", 6)
	if len(parts) != 4 && len(parts) != 6 {
		return Slot{}, false
	}
	port, err := strconv.ParseUint(parts[3], 10, 32)
	if err != nil {
		return Slot{}, false
	}
	found := Slot{Port: uint32(port)}
	if len(parts) == 6 {
		found.Network = parts[4] == filterKind(true)
		found.Plugin, _ = chandler.ParseKey(parts[5])
	}
	for _, found.Phase = range chandler.Phases() {
		for _, found.Mode = range []chandler.Mode{chandler.ModeClient, chandler.ModeServer} {
			if found.Name() == name {
				return found, true
			}
		}
	}
	return Slot{}, false
}

// Compare orders slots by mode, port and phase, phases as they stand in a chain,
// and then by plugin.
func (s Slot) Compare(o Slot) int {
	rank := func(p chandler.Phase) int { return slices.Index(chandler.Phases(), p) }
	return cmp.Or(
		cmp.Compare(s.Mode, o.Mode),
		cmp.Compare(s.Port, o.Port),
		cmp.Compare(rank(s.Phase), rank(o.Phase)),
		cmp.Compare(filterKind(s.Network), filterKind(o.Network)),
		s.Plugin.Compare(o.Plugin),
	)
}

// Holds tells whether a belongs into the slot: a plugin of its kind and phase, one
// of whose match entries agrees in mode and in port (BEHAVIOUR 5), and of the
// slot's key if that is for one. Without match entries all traffic is meant.
func (s Slot) Holds(a *chandler.Attachment) bool {
	if (a.Type == chandler.Network) != s.Network || a.Phase != s.Phase || !s.Shared() && s.Plugin != a.Key {
		return false
	}
	return len(a.Match) == 0 || slices.ContainsFunc(a.Match, func(m chandler.Match) bool {
		return (m.Mode == chandler.ModeAny || m.Mode == s.Mode) &&
			(len(m.Ports) == 0 || slices.Contains(m.Ports, s.Port))
	})
}
