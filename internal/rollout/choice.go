package rollout

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"math"
	"slices"

	"chandler.dev/chandler"
)

// Choice is who has the new release: whose place is at or below Last, or who has all
// labels of one of Labels. Places are hashes, so a choice is the same wherever it is
// looked at.
type Choice struct {
	Last   uint64              `json:",omitempty,string"`
	Labels []map[string]string `json:",omitempty"`
}

// Everyone is the choice of all.
func Everyone() Choice { return Choice{Last: math.MaxUint64} }

// Place is where a proxy stands in the order in which a plugin comes to proxies.
func Place(uid string, n chandler.Node) uint64 {
	var room [256]byte // so that most take no memory of their own
	text := append(append(room[:0], uid...), 0)
	text = append(append(append(text, n.Namespace...), '/'), n.Name...)
	sum := sha256.Sum256(text)
	return binary.BigEndian.Uint64(sum[:8])
}

// Has tells whether a proxy is chosen.
func (c Choice) Has(uid string, n chandler.Node) bool {
	if c.Last == math.MaxUint64 || c.Last > 0 && Place(uid, n) <= c.Last {
		return true
	}
	return slices.ContainsFunc(c.Labels, func(want map[string]string) bool { return labelled(want)(n) })
}

// labelled gives whether a proxy has all labels of some.
func labelled(want map[string]string) func(chandler.Node) bool {
	return func(n chandler.Node) bool {
		return len(want) > 0 && chandler.HasLabels(n.Labels, want)
	}
}

// Choose widens a choice to a step, among the proxies that there are. Who was chosen
// stays so.
func Choose(uid string, nodes []chandler.Node, before Choice, step chandler.RolloutStep) Choice {
	next := Choice{Last: before.Last, Labels: slices.Clone(before.Labels)}
	switch {
	case step.Everyone():
		return Everyone()
	case len(step.Labels) > 0:
		if !slices.ContainsFunc(next.Labels, func(l map[string]string) bool { return maps.Equal(l, step.Labels) }) {
			next.Labels = append(next.Labels, maps.Clone(step.Labels))
		}
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

// count is how many of the nodes are chosen.
func count(uid string, nodes []chandler.Node, c Choice) (n int) {
	for _, node := range nodes {
		if c.Has(uid, node) {
			n++
		}
	}
	return n
}
