// Package rollout decides how a change of a plugin goes from some proxies to all: whom
// the next step is for, what has to hold before it, and what becomes of a release that
// does not hold. It is pure: no clock, no I/O; what was seen comes in, a decision goes out.
//
// It keeps nothing itself and moves no proxy: the control plane records the State, and
// gives each proxy what Choice says.
package rollout

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"math"
	"slices"
	"time"

	"chandler.dev/chandler"
)

// State is where the rollout of one plugin is, as it is recorded. What is over has none.
type State struct {
	Plan  chandler.RolloutPlan
	Step  int
	Phase chandler.RolloutState // Progressing or Paused
	// Since is when the step began.
	Since time.Time
	// Choice is who has the new release.
	Choice Choice
	// Reason and Message say why it is paused.
	Reason  chandler.Code `json:",omitempty"`
	Message string        `json:",omitempty"`
	// Marks are the counts of the chosen proxies when the step began, and Traffic those of
	// both sides; see Observed.
	Marks map[string]Mark `json:",omitempty"`
}

// Mark is what a chosen proxy had counted when the step began, by its id.
type Mark struct {
	Rejections, Traps uint64
}

// Choice is who has the new release: whose place is at or below Last, or has all of
// Labels. Places are hashes, so a choice is the same wherever it is looked at.
type Choice struct {
	Last   uint64            `json:",omitempty"`
	Labels map[string]string `json:",omitempty"`
}

// Everyone is the choice of all.
func Everyone() Choice { return Choice{Last: math.MaxUint64} }

// Place is where a proxy stands in the order in which a plugin comes to proxies.
func Place(uid string, n chandler.Node) uint64 {
	sum := sha256.Sum256([]byte(uid + "\x00" + n.ID()))
	return binary.BigEndian.Uint64(sum[:8])
}

// Has tells whether a proxy is chosen.
func (c Choice) Has(uid string, n chandler.Node) bool {
	if c.Last == math.MaxUint64 || c.Last > 0 && Place(uid, n) <= c.Last {
		return true
	}
	if len(c.Labels) == 0 {
		return false
	}
	for k, v := range c.Labels {
		if got, ok := n.Labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Choose widens a choice to a step, among the proxies that there are. Who was chosen
// stays so.
func Choose(uid string, nodes []chandler.Node, before Choice, step chandler.RolloutStep) Choice {
	next := Choice{Last: before.Last, Labels: maps.Clone(before.Labels)}
	switch {
	case step.Everyone():
		return Everyone()
	case len(step.Labels) > 0:
		next.Labels = maps.Clone(step.Labels)
		return next
	}
	want := step.Count
	if step.Percent > 0 {
		want = (len(nodes)*step.Percent + 99) / 100
	}
	if want = min(want, len(nodes)); want == 0 {
		return next
	}
	places := make([]uint64, 0, len(nodes))
	for _, n := range nodes {
		places = append(places, Place(uid, n))
	}
	slices.Sort(places)
	next.Last = max(next.Last, places[want-1])
	return next
}
