// Package table is how benchmarks are told: figures beside their targets and the
// peer's, as text, as JSON and as a plot. It measures nothing.
package table

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
)

// Figure is one line: what was measured, and what it is held against.
type Figure struct {
	// Name says what was measured, and Unit in what; a unit may be empty.
	Name string `json:"name"`
	Unit string `json:"unit"`
	// Measured is one value, of which Note says what else there is to know: from how
	// many, how far they were apart, or why a target is not reached.
	Measured float64 `json:"measured"`
	Note     string  `json:"note,omitempty"`
	// Limit is what it must not exceed; nil: there is no target. Target is the rule
	// that the limit comes from, where it is more than a number.
	Limit  *float64 `json:"limit,omitempty"`
	Target string   `json:"target,omitempty"`
	// Peer is the peer's figure; nil: there is none. Recorded: it was measured
	// earlier, not in this run.
	Peer     *float64 `json:"peer,omitempty"`
	Recorded bool     `json:"peerRecorded,omitempty"`
}

// Limited and Against give a figure a limit and a peer.
func (f Figure) Limited(limit float64) Figure { f.Limit = &limit; return f }

// Against is a peer's figure of the same run.
func (f Figure) Against(peer float64) Figure { f.Peer, f.Recorded = &peer, false; return f }

// Reached tells whether the target was; a figure without one has none to miss.
func (f Figure) Reached() bool { return f.Limit == nil || f.Measured <= *f.Limit }

// Ratio is the figure over the peer's; false when there is none to divide by.
func (f Figure) Ratio() (float64, bool) {
	if f.Peer == nil || *f.Peer == 0 {
		return 0, false
	}
	return f.Measured / *f.Peer, true
}

// Run is what one run of benchmarks came to.
type Run struct {
	Title   string   `json:"title"`
	Machine Machine  `json:"machine"`
	Figures []Figure `json:"figures"`
	// Samples are the values behind the figures, by what the benchmarks call them.
	Samples map[string][]float64 `json:"samples,omitempty"`
}

// Machine is where it ran.
type Machine struct {
	Began  string `json:"began"`
	System string `json:"system"`
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Go     string `json:"go"`
	Envoy  string `json:"envoy,omitempty"`
}

// Text prints the figures as a table for people.
func (r Run) Text(w io.Writer) error {
	fmt.Fprintf(w, "%s\n%s, %d cores, %s, %s\n\n", r.Title, r.Machine.CPU, r.Machine.Cores, r.Machine.System, r.Machine.Go)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "figure\tmeasured\ttarget\t\tpeer\tratio\t")
	recorded := false
	for _, f := range r.Figures {
		recorded = recorded || f.Recorded
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", f.Name, quantity(f.Measured, f.Unit), f.target(), f.verdict(), f.peer(), f.ratio(), f.Note)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if recorded {
		fmt.Fprintln(w, "\n*: the peer's figure was measured before, on two cores with the same Envoy")
	}
	return nil
}

func (f Figure) target() string {
	switch {
	case f.Limit == nil:
		return f.Target
	case f.Target == "":
		return "<= " + quantity(*f.Limit, f.Unit)
	default:
		return fmt.Sprintf("<= %s (%s)", quantity(*f.Limit, f.Unit), f.Target)
	}
}

func (f Figure) verdict() string {
	switch {
	case f.Limit == nil:
		return ""
	case f.Reached():
		return "ok"
	default:
		return "MISSED"
	}
}

func (f Figure) peer() string {
	if f.Peer == nil {
		return ""
	}
	if f.Recorded {
		return quantity(*f.Peer, f.Unit) + "*"
	}
	return quantity(*f.Peer, f.Unit)
}

func (f Figure) ratio() string {
	if ratio, ok := f.Ratio(); ok {
		return strconv.FormatFloat(ratio, 'g', 2, 64)
	}
	return ""
}

// quantity has three digits that say something, and no exponent.
func quantity(v float64, unit string) string {
	decimals := 0
	if whole := v == float64(int64(v)); !whole {
		for size := v; size < 100 && size > -100 && decimals < 3; size *= 10 {
			decimals++
		}
	}
	text := strconv.FormatFloat(v, 'f', decimals, 64)
	if unit == "" {
		return text
	}
	return text + " " + unit
}

// JSON writes the run for programs.
func (r Run) JSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}
