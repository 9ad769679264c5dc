package attach

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"chandler.dev/chandler"
)

// Slot is a place for plugins that connection managers of one mode and port
// share: one filter with config discovery for each phase.
type Slot struct {
	Phase chandler.Phase
	// Mode is ModeClient or ModeServer.
	Mode chandler.Mode
	// Port is 0 for listeners without one, for instance on a pipe.
	Port uint32
}

// slotPrefix begins the name of every slot.
const slotPrefix = "chandler/"

// Name is "chandler/<phase>/<mode>/<port>" in lower case. It never depends on
// which plugins exist: a new name would drain the listener.
func (s Slot) Name() string {
	return fmt.Sprintf("%s%s/%s/%d", slotPrefix, phaseName(s.Phase), strings.ToLower(string(s.Mode)), s.Port)
}

func phaseName(p chandler.Phase) string {
	if p == chandler.PhaseUnspecified {
		return "unspecified"
	}
	return strings.ToLower(string(p))
}

// ParseSlot reads what Name wrote.
func ParseSlot(name string) (Slot, bool) {
	parts := strings.Split(name, "/")
	if len(parts) != 4 {
		return Slot{}, false
	}
	port, err := strconv.ParseUint(parts[3], 10, 32)
	if err != nil {
		return Slot{}, false
	}
	for _, phase := range chandler.Phases() {
		for _, mode := range []chandler.Mode{chandler.ModeClient, chandler.ModeServer} {
			if s := (Slot{Phase: phase, Mode: mode, Port: uint32(port)}); s.Name() == name {
				return s, true
			}
		}
	}
	return Slot{}, false
}

// Compare orders slots by mode, port and phase, phases as they stand in a chain.
func (s Slot) Compare(o Slot) int {
	rank := func(p chandler.Phase) int { return slices.Index(chandler.Phases(), p) }
	return cmp.Or(
		cmp.Compare(s.Mode, o.Mode),
		cmp.Compare(s.Port, o.Port),
		cmp.Compare(rank(s.Phase), rank(o.Phase)),
	)
}

// Holds tells whether a belongs into the slot: an HTTP plugin of the phase, one
// of whose match entries agrees in mode and in port (BEHAVIOUR 5). Without match
// entries all traffic is meant.
func (s Slot) Holds(a *chandler.Attachment) bool {
	if a.Type == chandler.Network || a.Phase != s.Phase {
		return false
	}
	return len(a.Match) == 0 || slices.ContainsFunc(a.Match, func(m chandler.Match) bool {
		return (m.Mode == chandler.ModeAny || m.Mode == s.Mode) &&
			(len(m.Ports) == 0 || slices.Contains(m.Ports, s.Port))
	})
}
