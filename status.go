package chandler

import "time"

// State is where an attachment is on one proxy.
type State string

// The states of an attachment. Pending, Fetching, Ready and InForce follow each
// other; Rejected and Failed are left by the next try.
const (
	StatePending   State = "Pending"
	StateFetching  State = "Fetching"
	StateReady     State = "Ready"     // on disk and verified, not yet ACKed
	StateInForce   State = "InForce"   // this release decides requests
	StateRejected  State = "Rejected"  // Envoy refused it
	StateFailed    State = "Failed"    // cannot be fetched, or cannot be done here
	StateUnmatched State = "Unmatched" // concerns no listener of this proxy
)

// Failing tells whether the state is a failure, to be counted and named as one.
func (s State) Failing() bool { return s == StateRejected || s == StateFailed }

// StandIn is what decides requests in place of a plugin that has no good
// version on a proxy.
type StandIn string

// The stand-ins.
const (
	StandInNone StandIn = ""     // nothing stands in: a version is in force, or traffic is held as before
	StandInPass StandIn = "pass" // left out
	StandInDeny StandIn = "deny" // refuses
)

// AttachmentState is what an agent says of one plugin.
type AttachmentState struct {
	Key
	UID        string
	Generation int64
	// Release and Sequence are what is wanted; InForce is what decides requests
	// now (empty: none).
	Release  ReleaseID
	Sequence uint64
	State    State
	InForce  ReleaseID
	StandIn  StandIn

	// Reason is empty while nothing is wrong.
	Reason  Code
	Message string
	// Attempt counts tries of the present step; NextTry is zero when none is due.
	Attempt uint32
	NextTry time.Time
	Since   time.Time

	// Rejections counts refusals by this node's Envoy, and fetches that failed,
	// since the agent began; VMTraps faults while serving.
	Rejections uint64
	VMTraps    uint64
}

// Condition follows the Kubernetes convention.
type Condition struct {
	Type               ConditionType
	Status             ConditionStatus
	Reason             Code
	Message            string
	ObservedGeneration int64
	LastTransition     time.Time
}

// ConditionType is one of the four conditions of a plugin.
type ConditionType string

// The conditions. Ready sums the others up.
const (
	ConditionAccepted     ConditionType = "Accepted"
	ConditionResolvedRefs ConditionType = "ResolvedRefs"
	ConditionProgrammed   ConditionType = "Programmed"
	ConditionReady        ConditionType = "Ready"
)

// ConditionStatus is True, False or Unknown.
type ConditionStatus string

// The values of a condition.
const (
	True    ConditionStatus = "True"
	False   ConditionStatus = "False"
	Unknown ConditionStatus = "Unknown"
)

// Status is what is known of one plugin, derived from its object, its releases
// and rollout, and the nodes' reports alone.
type Status struct {
	ObservedGeneration int64
	Conditions         []Condition
	// Release is the one that is being put in force; nil before the first.
	Release *Release
	// Attempt and NextTry tell of the control plane's own tries to resolve.
	Attempt uint32
	NextTry time.Time

	Desired, InForce, Failed int
	// Proxies has a line for every proxy that the plugin is assigned to, by node.
	Proxies []ProxyStatus

	Problems []Problem
	Warnings []Problem

	// Rollout is where the plugin's rollout is; nil: there is no more to say than that
	// Release is for everyone.
	Rollout *Rollout
}

// MaxFailures is how many failing proxies a status names.
const MaxFailures = 10

// ProxyStatus is one proxy's line in the status of a plugin.
type ProxyStatus struct {
	Node      string
	Namespace string
	// Connected false: what follows is the last the node said.
	Connected bool
	// AgentVersion and EnvoyVersion are what the agent says of itself.
	AgentVersion, EnvoyVersion string
	// Wanted is the release that it is to have; empty: there is none yet. Nothing: it is
	// to have none now.
	Wanted  ReleaseID `json:",omitempty"`
	Nothing bool      `json:",omitempty"`
	AttachmentState
}
