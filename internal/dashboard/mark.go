package dashboard

import (
	"strings"

	"chandler.dev/chandler"
)

// mark is how a plugin fares on one proxy, in one of few words: each has a letter, a
// shape and a word of its own, so that none is told from another by its colour alone.
type mark uint8

const (
	notSelected  mark = iota // the plugin is not for the proxy
	inForce                  // the release that is to be
	inForceOther             // another release of the plugin: the one before, for instance
	onItsWay                 // pending, being fetched, or ready
	faulting                 // in force, and its VM failed while serving
	rejected                 // by Envoy
	failed
	unmatched
	takenOut // disabled, or bypassed on the machine
	away     // not connected: nothing is known
	marks
)

// legend describes a mark.
type legend struct {
	mark mark
	// Letter stands for it in queries and scripts, Class in style sheets.
	Letter, Class string
	Word, Meaning string
}

// letters has that of each mark, in the order of their numbers.
const letters = "-fowvrxuta"

// legends are all marks, in the order in which they are listed.
func legends() []legend {
	return []legend{
		{inForce, "f", "force", "In force", "the release that is to be decides requests"},
		{inForceOther, "o", "other", "Other release", "another release of the plugin decides requests"},
		{onItsWay, "w", "way", "On its way", "pending, being fetched, or about to be acknowledged"},
		{faulting, "v", "faulting", "Faulting", "in force, and its VM failed while serving"},
		{rejected, "r", "rejected", "Rejected", "Envoy refused it"},
		{failed, "x", "failed", "Failed", "it cannot be fetched, or cannot be done there"},
		{takenOut, "t", "out", "Taken out", "disabled, or bypassed on the machine"},
		{unmatched, "u", "unmatched", "No listener", "it concerns no listener of the proxy"},
		{away, "a", "away", "Away", "the proxy's agent is not connected"},
	}
}

func (m mark) legend() legend {
	for _, l := range legends() {
		if l.mark == m {
			return l
		}
	}
	return legend{mark: notSelected, Letter: "-", Class: "none", Word: "Not selected", Meaning: "the plugin is not for the proxy"}
}

// failing tells whether somebody should look.
func (m mark) failing() bool { return m == rejected || m == failed || m == faulting }

// counts are how many proxies have a mark.
type counts [marks]int

// Total is how many proxies a plugin is for.
func (c counts) Total() int {
	n := 0
	for m, k := range c {
		if mark(m) != notSelected {
			n += k
		}
	}
	return n
}

// InForce is on how many the release that is to be is.
func (c counts) InForce() int { return c[inForce] }

// sentence says the counts, for those who do not see the picture.
func (c counts) sentence() string {
	var parts []string
	for _, l := range legends() {
		if n := c[l.mark]; n > 0 {
			parts = append(parts, number(n)+" "+strings.ToLower(l.Word))
		}
	}
	if len(parts) == 0 {
		return "for no proxy"
	}
	return strings.Join(parts, ", ")
}

// markOf judges a line of a plugin's status; nil: there is none. What a proxy says
// that it has is not taken out, whoever ordered so.
func markOf(p *plugin, line *chandler.ProxyStatus, of *proxy, disabled bool) mark {
	switch {
	case of != nil && of.Facts.Bypass(p.Key) != nil:
		return takenOut
	case line == nil && disabled:
		return takenOut
	case line == nil:
		return notSelected
	case !line.Connected:
		return away
	case disabled && line.InForce == "":
		return takenOut
	case line.State == chandler.StateRejected:
		return rejected
	case line.State == chandler.StateFailed || line.Reason == chandler.CodeEnvoyDown:
		return failed
	case line.State == chandler.StateUnmatched:
		return unmatched
	case line.State != chandler.StateInForce || disabled:
		return onItsWay
	case line.Reason == chandler.CodeVMTrap:
		return faulting
	case p.Status.Release != nil && line.InForce != p.Status.Release.ID:
		return inForceOther
	}
	return inForce
}
