package record

import (
	"slices"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/rollout"
)

// maxHistory is how many releases a record names that once were to be in force.
const maxHistory = 10

// Course is the part of a Rollout about steps and orders. Its zero value is that
// Release is for everyone.
type Course struct {
	// Scope is whom Release is for; nil: that is not recorded, and the resource says it.
	Scope *Scope `json:",omitempty"`
	// Wanted is the release that the resource means, where it is not Release: it was
	// taken back, or another is pinned.
	Wanted *Assigned `json:",omitempty"`
	// Stage is a way in steps from Stage.Base to Release; nil: there is none under way.
	Stage *Stage `json:",omitempty"`
	// Bad are releases of Generation that were taken back, and are not put in force
	// again before somebody says so.
	Bad []chandler.ReleaseID `json:",omitempty"`
	// Failure says why the last of them was; nil: none was.
	Failure *Failure `json:",omitempty"`
	// Pinned: Release stays until there is another generation, or somebody unpins it.
	Pinned bool `json:",omitempty"`
	// Denied are releases that the operator's policy is against, by the last judgement of
	// each. That holds until another one is made, whatever became of the resource.
	Denied []Denial `json:",omitempty"`
	// Disabled are orders to take the plugin out.
	Disabled []chandler.Disablement `json:",omitempty"`
	// History has up to ten, the newest first.
	History []chandler.HistoricRelease `json:",omitempty"`
	// Kept is what attachments need of the resource, of a plugin that has a plan: its
	// deletion comes to proxies in steps.
	Kept *Kept `json:",omitempty"`
}

// Scope is whom a release is for.
type Scope struct {
	Selector   map[string]string    `json:",omitempty"`
	TargetRefs []chandler.TargetRef `json:",omitempty"`
}

// Assigned is a release with whom it is for.
type Assigned struct {
	Release  chandler.ReleaseID `json:",omitempty"` // empty: nothing
	Sequence uint64             `json:",omitempty"`
	Scope    *Scope             `json:",omitempty"`
}

// Stage is a release on its way. Who is chosen has Rollout.Release, and the others
// have Base, which is the last one that was everyone's.
type Stage struct {
	rollout.State
	Base Assigned
	// Order is what somebody said is to be done with it, and who leads does.
	Order Order `json:",omitempty"`
}

// Order is what is to be done with a rollout.
type Order string

// The orders.
const (
	Promote Order = "Promote" // on to the next step, whatever the gates say
	Resume  Order = "Resume"  // go on watching this one
)

// Failure is why a release was taken back.
type Failure struct {
	Release chandler.ReleaseID `json:",omitempty"`
	Reason  chandler.Code
	Message string
	Gates   []chandler.Measure `json:",omitempty"`
	At      time.Time
}

// Denial is what the operator's policy has against a release.
type Denial struct {
	Release chandler.ReleaseID
	Reason  chandler.Code
	Message string
}

// Kept is what a resource alone says.
type Kept struct {
	Created     time.Time
	FirstAttach chandler.FirstAttach `json:",omitempty"`
	Plan        chandler.RolloutPlan
	// Stays: the resource is gone, and that it was taken out was taken back.
	Stays bool `json:",omitempty"`
}

// Meant is the release that the resource means, as far as is recorded.
func (r *Rollout) Meant() chandler.ReleaseID {
	if r.Wanted != nil {
		return r.Wanted.Release
	}
	return r.Release
}

// Names tells whether a release is named, other than as one that once was.
func (r *Rollout) Names(id chandler.ReleaseID) bool {
	return id == r.Release || id == r.Previous || id == r.Meant() || r.Stage != nil && id == r.Stage.Base.Release
}

// Remembers tells whether a release is named at all.
func (r *Rollout) Remembers(id chandler.ReleaseID) bool {
	return r.Names(id) || slices.ContainsFunc(r.History, func(h chandler.HistoricRelease) bool { return h.Release == id })
}

// Held tells whether the course is another than that the resource means.
func (r *Rollout) Held() bool { return r.Stage != nil || r.Wanted != nil || r.Pinned }

// Steered tells whether there is more to say of a rollout than that Release is for
// everyone.
func (r *Rollout) Steered() bool { return r.Held() || r.Failure != nil || len(r.Disabled) > 0 }

// Denial is what was found against a release; nil: nothing was.
func (r *Rollout) Denial(id chandler.ReleaseID) *Denial {
	for i := range r.Denied {
		if r.Denied[i].Release == id {
			return &r.Denied[i]
		}
	}
	return nil
}

// Note adds to the history.
func (r *Rollout) Note(h chandler.HistoricRelease) {
	before := r.History[:min(len(r.History), maxHistory-1)]
	r.History = append([]chandler.HistoricRelease{h}, before...)
}

// Outcome says what became of a release that was not settled yet, or was in force. One
// that comes in force takes the place of the one before.
func (r *Rollout) Outcome(id chandler.ReleaseID, outcome, by, why string) {
	r.History = slices.Clone(r.History)
	done := false
	for i := range r.History {
		h := &r.History[i]
		switch {
		case !done && h.Release == id && (h.Outcome == "" || h.Outcome == InForce):
			h.Outcome, done = outcome, true
			if by != "" || why != "" {
				h.By, h.Why = by, why
			}
		case outcome == InForce && h.Outcome == InForce:
			h.Outcome = Superseded
		}
	}
}

// The outcomes of a HistoricRelease; an empty one is yet to come.
const (
	InForce    = "InForce"
	Superseded = "Superseded"
	RolledBack = "RolledBack"
	Aborted    = "Aborted"
	Undone     = "Undone"
)
