package chandler

import (
	"strings"
	"time"
)

// Facts are what an agent says of its proxy as a whole.
type Facts struct {
	// Slots: plugins of type HTTP come and go in slots; false: in the listeners.
	Slots     bool
	Listeners []Listener
	// More: there are more listeners, slots or members than are told of.
	More  bool
	Store StoreUse
	// Bypassed are plugins that somebody took out on this machine.
	Bypassed []Bypass
}

// Bypass gives the order by which a plugin is taken out on the machine itself; nil: there
// is none, or, of nil Facts, nobody knows.
func (f *Facts) Bypass(key Key) *Bypass {
	if f == nil {
		return nil
	}
	for i := range f.Bypassed {
		if f.Bypassed[i].Key == key {
			return &f.Bypassed[i]
		}
	}
	return nil
}

// Listener is one of a proxy's, with what is attached to it.
type Listener struct {
	Name    string
	Address string // "host:port", or a socket's path
	Port    uint32 // by which plugins match
	Mode    Mode
	Slots   []Slot
}

// Slot is a place for plugins in a listener, in the order of its chain.
type Slot struct {
	Name  string // of the resource that Envoy has for it
	Type  FilterType
	Phase Phase
	// Members are in the order in which requests meet them, as Envoy acknowledged them.
	Members []SlotMember
}

// SlotMember is what stands for a plugin in a slot.
type SlotMember struct {
	Key
	Release ReleaseID // empty: StandIn says what stands there
	StandIn StandIn
}

// StoreUse is how full a store of modules is.
type StoreUse struct {
	Modules      int
	Bytes, Limit int64
}

// Bypass is an order given on a machine itself, that holds whatever the control plane
// says.
type Bypass struct {
	Key
	Reason string
	At     time.Time
}

// Traffic counts what the listeners of one mode and port answered.
type Traffic struct {
	Mode Mode
	Port uint32
	// Now counts since Epoch, which is another one when the counters began anew; Hour is
	// what was counted in the hour before this was told.
	Epoch string
	Now   Answers
	Hour  Answers
}

// LatencyBounds are the upper bounds of the buckets of Answers.Latency, the last of
// which has no bound.
func LatencyBounds() []time.Duration {
	bounds := make([]time.Duration, 0, LatencyBuckets-1)
	for _, ms := range []float64{0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000} {
		bounds = append(bounds, time.Duration(ms*float64(time.Millisecond)))
	}
	return bounds
}

// LatencyBuckets is how many there are; Envoy's histograms of time have these bounds.
const LatencyBuckets = 16

// Answers are counts of answered requests: by class, [0] being 1xx, and by the time
// that they took.
type Answers struct {
	Classes [5]uint64
	Latency [LatencyBuckets]uint64
}

// Add counts more answers.
func (a *Answers) Add(more *Answers) {
	for i, n := range more.Classes {
		a.Classes[i] += n
	}
	for i, n := range more.Latency {
		a.Latency[i] += n
	}
}

// Since gives what was counted since before; false: some count is below what it was, so
// the counters began anew.
func (a Answers) Since(before *Answers) (grown Answers, ok bool) {
	for i, n := range before.Classes {
		if a.Classes[i] < n {
			return Answers{}, false
		}
		a.Classes[i] -= n
	}
	for i, n := range before.Latency {
		if a.Latency[i] < n {
			return Answers{}, false
		}
		a.Latency[i] -= n
	}
	return a, true
}

// Event is something that happened, for people to read in order.
type Event struct {
	ID  uint64 // grows
	At  time.Time
	Key Key // empty: it is about no plugin
	// Node is "namespace/name"; empty: it is about no proxy.
	Node   string
	Reason EventReason
	// Warning: somebody should look.
	Warning bool
	Message string
	// By is who did it; empty: nobody, it came so.
	By string
}

// Namespace is whose the event is: its plugin's, or else its proxy's; empty: nobody's.
func (e *Event) Namespace() string {
	if e.Key != (Key{}) {
		return e.Key.Namespace
	}
	namespace, _, _ := strings.Cut(e.Node, "/")
	return namespace
}

// EventReason says what kind of event it is.
type EventReason string

// The kinds of events.
const (
	EventApplied        EventReason = "Applied"
	EventDeleted        EventReason = "Deleted"
	EventResolved       EventReason = "Resolved"
	EventNotResolved    EventReason = "NotResolved"
	EventInForce        EventReason = "InForceEverywhere"
	EventRejected       EventReason = "Rejected" // by a proxy
	EventTrapped        EventReason = "VMTrap"
	EventRolloutStarted EventReason = "RolloutStarted"
	EventRolloutStep    EventReason = "RolloutStep"
	EventRolloutPaused  EventReason = "RolloutPaused"
	EventRolledBack     EventReason = "RolledBack"
	EventRolloutDone    EventReason = "RolloutDone"
	EventSteered        EventReason = "Steered" // promote, abort, undo, retry, unpin
	EventDisabled       EventReason = "Disabled"
	EventEnabled        EventReason = "Enabled"
	EventBypassed       EventReason = "Bypassed"
	EventConnected      EventReason = "Connected"
	EventDisconnected   EventReason = "Disconnected"
	EventDenied         EventReason = "AccessDenied"
	EventPolicy         EventReason = "PolicyChanged"
	EventTokenMade      EventReason = "NodeTokenMade"
	EventRevoked        EventReason = "NodeRevoked"
)
