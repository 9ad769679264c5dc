package attach

import "chandler.dev/chandler"

// Slot is a place for plugins that connection managers of one mode and port
// share: one filter with config discovery for each phase.
type Slot struct {
	Phase chandler.Phase
	// Mode is ModeClient or ModeServer.
	Mode chandler.Mode
	// Port is 0 for listeners without one, for instance on a pipe.
	Port uint32
}

// Name is "chandler/<phase>/<mode>/<port>" in lower case. It never depends on
// which plugins exist: a new name would drain the listener.
func (s Slot) Name() string { return "" }

// ParseSlot reads what Name wrote.
func ParseSlot(name string) (Slot, bool) { return Slot{}, false }

// Compare orders slots by mode, port and phase, phases as they stand in a chain.
func (s Slot) Compare(o Slot) int { return 0 }

// Holds tells whether a belongs into the slot: an HTTP plugin of the phase, one
// of whose match entries agrees in mode and in port (BEHAVIOUR 5).
func (s Slot) Holds(a *chandler.Attachment) bool { return false }
