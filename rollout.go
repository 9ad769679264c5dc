package chandler

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Annotations that say how a change of a plugin reaches its proxies.
const (
	// AnnotationRollout has the steps, with commas between: "10%", "2" (proxies), or
	// labels of some, "canary=true" or "canary=true+zone=a". The last step is always
	// everyone.
	AnnotationRollout = "chandler.dev/rollout"
	// AnnotationRolloutInterval is how long each step is watched at least, for
	// instance "5m".
	AnnotationRolloutInterval = "chandler.dev/rollout-interval"
	// AnnotationRolloutOnFailure is "rollback" (the default) or "pause".
	AnnotationRolloutOnFailure = "chandler.dev/rollout-on-failure"
)

// RolloutPlan says in which steps a change of a plugin reaches its proxies, and what
// has to hold before the next one.
type RolloutPlan struct {
	// Steps are never none; the last one is everyone.
	Steps     []RolloutStep
	Interval  time.Duration
	OnFailure OnFailure
	Margins   Margins
}

// RolloutStep says who has the new release. Exactly one field is set.
type RolloutStep struct {
	Percent int               `json:",omitempty"` // of the proxies, 1 to 100; rounded up
	Count   int               `json:",omitempty"` // proxies
	Labels  map[string]string `json:",omitempty"` // of proxies, all of which they have
}

// Everyone tells whether nobody is left out.
func (s RolloutStep) Everyone() bool { return s.Percent >= 100 }

// String gives the step as it is written: "10%", "2", "canary=true+zone=a".
func (s RolloutStep) String() string {
	switch {
	case s.Percent > 0:
		return strconv.Itoa(s.Percent) + "%"
	case s.Count > 0:
		return strconv.Itoa(s.Count)
	}
	pairs := make([]string, 0, len(s.Labels))
	for _, k := range slices.Sorted(maps.Keys(s.Labels)) {
		pairs = append(pairs, k+"="+s.Labels[k])
	}
	return strings.Join(pairs, "+")
}

// OnFailure says what becomes of a rollout whose gate does not hold.
type OnFailure string

// The values of the annotation chandler.dev/rollout-on-failure.
const (
	OnFailureRollback OnFailure = "rollback"
	OnFailurePause    OnFailure = "pause"
)

// Margins are how much worse the proxies that have a new release may fare than the
// others, and than they did before it. Shares are of all requests, 0 to 1; a share may be
// off by the margin in either direction that hurts.
type Margins struct {
	// Requests are how many each side needs; of fewer nothing is concluded.
	Requests uint64
	// Success is how much smaller the share of 2xx may be, Redirect, ClientError and
	// ServerError how much larger those of 3xx, 4xx and 5xx.
	Success, Redirect, ClientError, ServerError float64
	// Latency is by what factor p99 may be longer, and LatencyFloor a difference that
	// never counts.
	Latency      float64
	LatencyFloor time.Duration
}

// RolloutState is where a rollout is, in the words of Argo Rollouts.
type RolloutState string

// The states of a rollout.
const (
	RolloutHealthy     RolloutState = "Healthy"     // one release everywhere
	RolloutProgressing RolloutState = "Progressing" // between steps, or within one
	RolloutPaused      RolloutState = "Paused"      // waits for somebody's word
	RolloutDegraded    RolloutState = "Degraded"    // a release was taken back
)

// Rollout is what is known of a plugin's way from one release to the next.
type Rollout struct {
	Key
	UID        string
	Generation int64
	State      RolloutState
	// Reason and Message say why it is not going on by itself, and what was measured.
	Reason  Code
	Message string

	// From is what the proxies have that are not chosen; empty: nothing. To is what the
	// chosen ones get; empty: it is being taken out.
	From, To ReleaseID
	// Plan is nil where a change goes to everyone at once.
	Plan *RolloutPlan
	// Ahead is the plan of the next change, where the one under way goes by another, as it
	// began before that was changed; without steps: to everyone at once. Nil: it is Plan.
	Ahead *RolloutPlan
	// Step counts from 0; it is len(Plan.Steps) when the rollout is over.
	Step int
	// Since is when the step began, and Next not before when the next one may; zero when
	// nothing is due.
	Since, Next time.Time
	// Proxies that the plugin selects: all that are connected, those chosen by now, and
	// those of them in which To is in force.
	Proxies, Chosen, Updated int
	Gates                    []Measure

	// Pinned: an undo holds To until the spec changes.
	Pinned bool
	// Disabled are the orders by which the plugin is taken out.
	Disabled []Disablement
	// History has up to ten, the newest first.
	History []HistoricRelease
}

// Gate is something that has to hold before a rollout's next step.
type Gate string

// The gates.
const (
	GateInForce     Gate = "in-force"   // on all that are chosen
	GateRejections  Gate = "rejections" // by Envoys, or fetches that fail
	GateTraps       Gate = "traps"      // of VMs, and their reloads
	GateSuccess     Gate = "success"    // share of 2xx
	GateRedirect    Gate = "redirects"  // share of 3xx
	GateClientError Gate = "client-errors"
	GateServerError Gate = "server-errors"
	GateLatency     Gate = "latency" // p99
)

// Gates gives them all, in the order in which they are told.
func Gates() []Gate {
	return []Gate{
		GateInForce, GateRejections, GateTraps, GateSuccess, GateRedirect, GateClientError, GateServerError, GateLatency,
	}
}

// GateResult is what became of a gate.
type GateResult string

// The results of a gate.
const (
	GateHolds        GateResult = "Holds"
	GateFailed       GateResult = "Failed"
	GateWaiting      GateResult = "Waiting"      // for something that is still due
	GateInconclusive GateResult = "Inconclusive" // too little was seen
)

// Measure is what was measured at a gate. Chosen are the proxies with the new
// release, Others those without, Before the chosen ones in the hour before: shares (0 to
// 1), seconds, or counts.
type Measure struct {
	Gate    Gate
	Result  GateResult
	Message string
	// HasOthers and HasBefore: there is something to compare with.
	Chosen, Others, Before float64
	HasOthers, HasBefore   bool
	Limit                  float64
}

// HistoricRelease is a release that once was to be in force.
type HistoricRelease struct {
	Release    ReleaseID
	Generation int64
	Sequence   uint64
	At         time.Time
	// Outcome: "InForce", "Superseded", "RolledBack", "Aborted", "Undone".
	Outcome string
	// By is who caused it; empty: a change of the resource. Why is for people.
	By, Why string
}

// Disablement is an order to take a plugin out, for all its proxies or for some.
type Disablement struct {
	// Node is "namespace/name"; Labels are of proxies. Neither: all.
	Node   string            `json:",omitempty"`
	Labels map[string]string `json:",omitempty"`
	Reason string
	By     string
	At     time.Time
}

// Bounds of whom an order is about: it is kept in a record, beside others.
const (
	maxOrderNode   = 512 // bytes
	maxOrderLabels = 16
	maxLabelKey    = 317 // bytes, as Kubernetes has it
	maxLabelValue  = 63
)

// Check tells what is wrong with whom the order is about.
func (d *Disablement) Check() error {
	namespace, name, ok := strings.Cut(d.Node, "/")
	switch {
	case d.Node != "" && len(d.Labels) > 0:
		return errors.New("an order is about one proxy or about labels, not about both")
	case d.Node != "" && (!ok || namespace == "" || name == "" || strings.Contains(name, "/") || len(d.Node) > maxOrderNode):
		return fmt.Errorf("%s is not the NAMESPACE/NAME of a proxy", Quote(d.Node))
	case len(d.Labels) > maxOrderLabels:
		return fmt.Errorf("%d labels, limit %d", len(d.Labels), maxOrderLabels)
	}
	for _, k := range slices.Sorted(maps.Keys(d.Labels)) {
		if v := d.Labels[k]; k == "" || len(k) > maxLabelKey || len(v) > maxLabelValue {
			return fmt.Errorf("%s is no label", Quote(k+"="+v))
		}
	}
	return nil
}

// Target says in words whom the order is about; empty: everyone.
func (d *Disablement) Target() string {
	if d.Node != "" {
		return d.Node
	}
	pairs := make([]string, 0, len(d.Labels))
	for _, k := range slices.Sorted(maps.Keys(d.Labels)) {
		pairs = append(pairs, k+"="+d.Labels[k])
	}
	return strings.Join(pairs, ",")
}

// Holds tells whether the order is about a proxy.
func (d *Disablement) Holds(n Node) bool {
	return (d.Node == "" || d.Node == n.ID()) && HasLabels(n.Labels, d.Labels)
}
