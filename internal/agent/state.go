// Package agent runs beside one Envoy: it holds what the control plane assigned,
// brings modules to local disk, and puts plugins in force through slots, never
// letting go of what works before what follows it is acknowledged.
//
// One goroutine owns State; State.Step is the whole of the decisions and does no
// input or output, reads no clock and writes no log. The shell around it runs
// the effects (fetches, pushes to Envoy, writes) and feeds what they give back
// in as events. The package is not a control plane: it resolves no tags and
// judges no module.
package agent

import (
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

// Version is an attachment with the version of its xDS resource, which is the
// hash of its content: two versions are the same if those are.
type Version struct {
	chandler.Attachment
	Version string
	// From is the identity of the control plane that said it, of which nobody need know
	// any more when the agent starts anew.
	From string `json:"-"`
	// Pinned is, of a local file that was in force, the digest of what it held
	// then: what it holds later does not matter.
	Pinned chandler.ModuleDigest `json:",omitempty"`
}

// Settings are what a State needs to know and does not change.
type Settings struct {
	// Slots are the shared ones of the listeners that Envoy was given, and Sites
	// where slots of one plugin can enter them.
	Slots []attach.Slot
	Sites []attach.Site
	// Listed are the slots of one plugin that stand in the listeners already, of an
	// Envoy that is Running. Shut: there are no listeners yet, until WriteListeners.
	Listed        []attach.Slot
	Running, Shut bool
	// Upstream: the listeners come from another control plane, and Laid tells of them.
	Upstream bool
	// OwnModules: the user's configuration may run modules of its own.
	OwnModules bool
	// HostEnv are the agent's own environment variables, for plugins that copy
	// one.
	HostEnv map[string]string
	// Features of this agent; an attachment that requires another is refused.
	Features []string
	// Jitter gives a number in [0, 1); nil means no jitter.
	Jitter func() float64
}

// DefaultFetchDeadline bounds the first fetch of a plugin before its
// failStrategy applies.
const DefaultFetchDeadline = 30 * time.Second

// goodPatience bounds how long a starting Envoy's listeners wait for the last
// good modules to be read from disk.
const goodPatience = 5 * time.Second

// How long to wait between tries.
const (
	minBackoff       = 200 * time.Millisecond
	maxBackoff       = 3 * time.Second // network and registry
	minPermanent     = 5 * time.Second
	maxPermanent     = 5 * time.Minute // answers that will hardly change by themselves
	rejectedInterval = 5 * time.Minute
)

// trapMemory is how long a fault while serving is held against a plugin.
const trapMemory = 5 * time.Minute

// State is all the agent knows. Only Step changes it.
type State struct {
	set     Settings
	plugins map[chandler.Key]*plugin
	slots   []*slot
	at      map[attach.Slot]*slot // the same
	loads   map[Source]*load

	// seeded: there is a set to serve, from disk or from the control plane.
	// Until then no slot is answered, and Envoy's listeners stay shut.
	seeded bool
	// open: all of Envoy's listeners are active. Until then only what this
	// Envoy binary has acknowledged before, and stand-ins, may be sent: a NACK
	// would end the warming of every listener.
	open bool
	// envoy is the digest of the running binary, and goodEnvoy that of the one
	// that acknowledged the last good set.
	envoy, goodEnvoy string
	envoySince       time.Time
	waiting          string     // what its listeners wait for
	down             EnvoyEnded // why there is none
	awaiting         bool       // modules of the last good set, before the first pushes
	// left: this Envoy was left behind by the agent before and serves. heard: the
	// control plane has told of its set.
	left, heard bool
	heardAt     time.Time
	// keepUntil is when the first slot that is kept as Envoy has it is so no more;
	// zero: none is, or there is no end to it.
	keepUntil time.Time

	// listed are the slots of one plugin in the listeners as they were last
	// written, in order; listing is set until Envoy has taken that in. relisting: a
	// change is due and waits for pushes to be answered.
	listed    []attach.Slot
	listing   *listing
	relisting bool
	relistAt  time.Time
	shut      bool // there are no listeners yet
	upstreamListeners

	// bypassed are plugins that somebody on this machine took out.
	bypassed map[chandler.Key]chandler.Bypass

	faults  loggedFaults // that are counted
	dirty   bool         // the last good set must be written
	denying []string     // versions that the written set says are denied
}

// plugin is one assigned plugin.
type plugin struct {
	want *Version // nil: removed, and leaving its slots
	good *Version // the last version that all its slots acknowledged
	// before was on its way into slots when another was wanted in its place. It goes on
	// until that one can run, is good once it is in force, and is nothing once no slot
	// has it.
	before *Version

	rejected string    // version that Envoy refused
	nextTry  time.Time // of the rejected version
	attempt  uint32
	reason   chandler.Code
	message  string
	told     refusal
	since    time.Time // of the present state
	state    chandler.State
	deadline time.Time // of the first fetch; zero once a version was good
	overdue  bool      // the deadline has passed
	// standIn stays in the plugin's place, once it had to be put there, until a
	// version is in force: an edit must not open what was closed.
	standIn   chandler.StandIn
	rejects   uint64
	failCount uint64
	traps     uint64
	vms       vmFaults
	trapped   time.Time // when traps grew
	drains    uint64    // changes of the listeners for it
}

// refusal is what Envoy said when it refused a plugin. It does so in words only once:
// the same again it refuses without a look.
type refusal struct{ version, reason string }

// slot is one of Envoy's config discovery filters.
type slot struct {
	attach.Slot
	name string
	// present: it stands in the listeners that serve.
	present    bool
	subscribed bool
	// serves: traffic has met it, with Envoy's word or as Envoy was left behind with it.
	serves bool
	// runs is the version that an Envoy left behind says it has; nothing is acked yet.
	runs   string
	acked  *composition // in force; nil: Envoy has nothing yet
	sent   *composition // awaits ACK or NACK
	revert bool         // sent is acked again, after a NACK
	// careful: a NACK named no plugin, so changes go one plugin at a time. bare: so
	// did one of what is good, before anything was in force.
	careful, bare bool
}

// composition is the content of a slot.
type composition struct {
	version string
	config  *corev3.TypedExtensionConfig
	members map[chandler.Key]member
	told    []chandler.SlotMember // see list
}

// member is what stands in a composition for a plugin.
type member struct {
	version *Version
	standIn chandler.StandIn
}

func (m member) equal(o member) bool {
	return m.standIn == o.standIn && m.version.Version == o.version.Version
}

// Source is where a module's bytes come from: the control plane, by digest, or
// a file on this machine.
type Source struct {
	Digest chandler.ModuleDigest
	Path   string
	// Version distinguishes files, which are read anew for each new version of
	// an attachment and then pinned: to Pinned, after a restart.
	Version string
	Pinned  chandler.ModuleDigest
}

// load is a module on its way to, or on, local disk.
type load struct {
	ready   bool
	running bool
	path    string
	digest  chandler.ModuleDigest
	attempt uint32
	nextTry time.Time
	problem *chandler.Problem
	size    int64
	// lost is when the file was missed: zero once Envoy has found it, if it was Envoy
	// that missed it, or once it is there again.
	lost   time.Time
	missed bool // by Envoy
	// standby: no version needs it now, one may later.
	standby bool
}

// Event is something that happened.
type Event interface{ isEvent() }

type (
	// Restored gives the last good set that was on disk, which the Envoy binary
	// of digest Envoy acknowledged.
	Restored struct {
		Envoy            string
		Versions, Denied []Version
	}
	// Assigned is an update from the control plane.
	Assigned struct {
		Changed []Version
		Removed []chandler.Key
	}
	// Loaded ends a Load. Path and Digest are set unless Err is.
	Loaded struct {
		Source Source
		Path   string
		Digest chandler.ModuleDigest
		Size   int64
		Err    *LoadError
	}
	// EnvoyStarted tells that an Envoy of this binary digest is there. Open: it
	// serves already, and was left behind by the agent before.
	EnvoyStarted struct {
		Envoy string
		Open  bool
	}
	// EnvoyEnded tells that it ended, in words, or that another could not be
	// started, and when the next try is: EnvoyStarted or EnvoyEnded follows.
	EnvoyEnded struct {
		Message string
		Attempt uint32
		Next    time.Time
	}
	// Waiting tells what its listeners wait for that are not active, in Envoy's words; empty:
	// nothing that it names.
	Waiting struct{ For string }
	// ListenersOpen tells that all its listeners are active.
	ListenersOpen struct{}
	// Laid gives the places of all listeners that another control plane sent, in place of
	// those before, and the listeners that run without plugins.
	Laid struct {
		Slots []attach.Slot
		Sites []attach.Site
		Bare  []Bare
	}
	// Subscribed tells that Envoy asks for a slot. Version is what it already
	// holds, empty if nothing.
	Subscribed struct{ Slot, Version string }
	// Unsubscribed tells that it does not any more.
	Unsubscribed struct{ Slot string }
	// ListenersTaken ends a WriteListeners: Envoy serves with them or, while it
	// starts, waits for their slots. ListenersRefused ends it too: it goes on with
	// those it had.
	ListenersTaken   struct{}
	ListenersRefused struct{ Reason string }
	// Acked tells that a pushed composition is in force.
	Acked struct{ Slot, Version string }
	// Nacked tells that it was refused: Envoy's message, and the reason read
	// from its log.
	Nacked struct{ Slot, Version, Message, Reason string }
	// Lost tells that the file of a module is gone from the disk, or corrupt.
	Lost struct{ Digest chandler.ModuleDigest }
	// Trapped tells what Envoy has counted of plugins' VMs that failed, and what its log
	// told of them.
	Trapped struct {
		Counts map[chandler.Key]VMFaults
		Logged loggedFaults
	}
	// Bypassed gives all the plugins that are taken out on this machine, in place of
	// those before.
	Bypassed struct{ Plugins []chandler.Bypass }
	// Tick tells that time has passed.
	Tick struct{}
)

func (Restored) isEvent()         {}
func (Assigned) isEvent()         {}
func (Loaded) isEvent()           {}
func (EnvoyStarted) isEvent()     {}
func (EnvoyEnded) isEvent()       {}
func (Waiting) isEvent()          {}
func (ListenersOpen) isEvent()    {}
func (Laid) isEvent()             {}
func (Subscribed) isEvent()       {}
func (Unsubscribed) isEvent()     {}
func (ListenersTaken) isEvent()   {}
func (ListenersRefused) isEvent() {}
func (Acked) isEvent()            {}
func (Nacked) isEvent()           {}
func (Lost) isEvent()             {}
func (Trapped) isEvent()          {}
func (Bypassed) isEvent()         {}
func (Tick) isEvent()             {}

// LoadError says why a module is not on disk.
type LoadError struct {
	Problem chandler.Problem
	// Temporary errors are tried again within seconds, others within minutes.
	Temporary  bool
	RetryAfter time.Duration
}

// Effect is something the shell must do.
type Effect interface{ isEffect() }

type (
	// Load asks for a module; the answer is one Loaded. Origins are where it can
	// be had beside the control plane, by digest.
	Load struct {
		Source  Source
		Origins []string
		Attempt uint32 // 1 is the first
	}
	// CancelLoad ends a Load that nobody wants any more; no Loaded is due.
	CancelLoad struct{ Source Source }
	// Push sends a slot's composition to Envoy; the answer is Acked or Nacked,
	// or EnvoyStarted.
	Push struct {
		Slot, Version string
		Config        *corev3.TypedExtensionConfig
		// Wasm are the plugins in it that run a module.
		Wasm []chandler.Key
	}
	// WriteListeners writes the listeners with these slots of one plugin in them.
	// The answer is ListenersTaken or ListenersRefused, but for those written
	// before Envoy is started.
	WriteListeners struct{ Own []attach.Slot }
	// AdmitListeners lets Envoy have the listeners of another control plane whose places
	// are all among these: it is decided by now which slots of one plugin stand in them.
	AdmitListeners struct {
		Slots []attach.Slot
		Sites []attach.Site
	}
	// SaveLastGood writes the last good set.
	SaveLastGood struct {
		Envoy    string
		Versions []Version
		// Denied never were in force and refuse requests: the next agent must not
		// take them for new and let traffic pass.
		Denied []Version
	}
)

func (Load) isEffect()           {}
func (CancelLoad) isEffect()     {}
func (Push) isEffect()           {}
func (WriteListeners) isEffect() {}
func (AdmitListeners) isEffect() {}
func (SaveLastGood) isEffect()   {}

// NewState gives the state of an agent that knows nothing yet.
func NewState(set Settings) *State {
	s := &State{
		set:     set,
		plugins: map[chandler.Key]*plugin{},
		loads:   map[Source]*load{},
	}
	if s.set.Jitter == nil {
		s.set.Jitter = func() float64 { return 0 }
	}
	s.listed, s.shut = set.Listed, set.Shut
	s.freshSlots()
	return s
}

// freshSlots are those in the listeners, of which nothing is known.
func (s *State) freshSlots() {
	s.slots, s.at = nil, map[attach.Slot]*slot{}
	for _, list := range [][]attach.Slot{s.set.Slots, s.listed} {
		for _, sl := range list {
			s.enter(&slot{Slot: sl, name: sl.Name(), present: true})
		}
	}
}
