package envoyads

// Event is something that Envoy did.
type Event interface{ isEvent() }

type (
	// Connected begins a stream. Version is Envoy's, such as "1.40.0".
	Connected struct{ Version string }
	// Subscribed tells that Envoy asks for a slot. Version is what it says it
	// holds, from a stream before; empty: nothing.
	Subscribed struct{ Slot, Version string }
	// Unsubscribed tells that it does not want the slot any more.
	Unsubscribed struct{ Slot string }
	// Acked tells that the version is in force. Current means that nothing had to
	// be sent, because Envoy had it already.
	Acked struct {
		Slot, Version string
		Current       bool
	}
	// Nacked tells that Envoy refused the version, in its own words, made
	// printable and bounded; what was in force stays. It is also told, in rare
	// cases, of a version that was under way when a stream broke.
	Nacked struct{ Slot, Version, Message string }
	// Disconnected ends a stream. What was sent and not answered will be answered
	// after the next Connected. Err may be nil.
	Disconnected struct{ Err error }
)

func (Connected) isEvent()    {}
func (Subscribed) isEvent()   {}
func (Unsubscribed) isEvent() {}
func (Acked) isEvent()        {}
func (Nacked) isEvent()       {}
func (Disconnected) isEvent() {}
