package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"chandler.dev/chandler/bench/table"
)

// told is all that was measured.
type told struct {
	Machine table.Machine `json:"machine"`
	Runs    []Result      `json:"runs"`
}

// targets are those of DESIGN.md, section 8, by the number of agents. A zero is none.
var targets = map[int]struct{ connected, memory, idle, p99, last, cpu float64 }{
	1_000:  {memory: 120, last: 60},
	10_000: {connected: 20, memory: 600, idle: 5, p99: 800, cpu: 0.6},
}

// table gives the figures beside their targets.
func (t told) table() table.Run {
	run := table.Run{Title: "A fleet on one control plane, both on this machine", Machine: t.Machine}
	for _, r := range t.Runs {
		want, base := targets[r.Agents], t.base(r)
		add := func(name, unit string, measured, limit float64, note string) {
			f := table.Figure{Name: fmt.Sprintf("%d agents%s: %s", r.Agents, withTLS(r.TLS), name), Unit: unit, Measured: round(measured), Note: note}
			if limit > 0 {
				f = f.Limited(limit)
			}
			run.Figures = append(run.Figures, f)
		}
		ratio := func(of func(*Result) float64) string { return compared(r, base, of) }
		plain := func(unit string, of func(*Result) float64) string { return t.besidePlain(r, unit, of) }
		add("all connected", "s", r.Connected, want.connected, ratio(func(r *Result) float64 { return r.Connected }))
		add("all connected, CPU", "s", r.Connecting, 0, "")
		add("memory", "MB", r.Full, want.memory, fmt.Sprintf("%.1f KB an agent; %.0f MB at most while they connected", 1000*r.each(), r.Most))
		add("memory after all changes", "MB", r.After, want.memory, both(r.Parts.String(), plain("MB", func(r *Result) float64 { return r.After })))
		add("idle", "% of a core", 100*r.Idle, want.idle, both(r.beside(1e6*r.Idle*idleFor.Seconds()/float64(r.Agents), "a sign of life"), plain("%", func(r *Result) float64 { return 100 * r.Idle })))
		// The targets are from a peer whose proxies acknowledge and report nothing.
		add("a change, median told", "ms", r.Told.P50, 0, ratio(func(r *Result) float64 { return r.Told.P50 }))
		add("a change, 99 of 100 told", "ms", r.Told.P99, want.p99, both(ratio(func(r *Result) float64 { return r.Told.P99 }), r.floor(t.Machine.Cores)))
		add("a change, last told", "ms", r.Told.Last, want.last, both(ratio(func(r *Result) float64 { return r.Told.Last }), r.floor(t.Machine.Cores)))
		add("a change, CPU", "s", r.Told.CPU, want.cpu, both(r.beside(1e6*r.Told.CPU/float64(r.Agents), "an agent"), plain("s", func(r *Result) float64 { return r.Told.CPU })))
		add("a change with all reports, 99 of 100 told", "ms", r.All.P99, 0, ratio(func(r *Result) float64 { return r.All.P99 }))
		add("a change with all reports and status, CPU", "s", r.All.CPU, 0, fmt.Sprintf("the agents' side took %.2f s of the same cores", r.All.Swarm))
		add("a change for 1 %, last told", "ms", r.Few.Last, 0, fmt.Sprintf("%d agents, %.0f messages", r.Few.Told, r.Few.Messages))
		add("a change for 1 %, CPU", "s", r.Few.CPU, 0, "")
		add("all back after a restart", "s", r.Back.Seconds, want.connected, both(fmt.Sprintf("%.0f bytes of resources", r.Back.ResourceBytes), r.handshakes()))
		if s := r.Storm; s != nil {
			add("100 changes a second, last told", "s", s.Behind, 0, fmt.Sprintf("%d changes in %.0f s, %.0f messages an agent, %.2f cores", s.Applied, s.Seconds, s.Messages, s.CPU))
			add("100 changes a second, memory", "MB", s.Most, want.memory, both("at most", s.Parts.String()))
		}
	}
	return run
}

// each is the memory of one agent, in MB.
func (r *Result) each() float64 { return (r.Full - r.Empty) / float64(r.Agents) }

// base is the run of a thousand agents of the same way.
func (t told) base(r Result) *Result {
	for i := range t.Runs {
		if b := &t.Runs[i]; b.Agents == 1000 && b.TLS == r.TLS {
			return b
		}
	}
	return nil
}

// both joins two notes.
func both(a, b string) string { return strings.Trim(a+"; "+b, "; ") }

// besidePlain says of a run with TLS what the same was without.
func (t told) besidePlain(r Result, unit string, of func(*Result) float64) string {
	for i := range t.Runs {
		if p := &t.Runs[i]; r.TLS && !p.TLS && p.Agents == r.Agents {
			return fmt.Sprintf("%.3g %s without TLS", of(p), unit)
		}
	}
	return ""
}

// floor is how soon a change can be told at best where both sides share the cores.
func (r *Result) floor(cores int) string {
	spent := r.Told.CPU + r.Told.Swarm
	return fmt.Sprintf("both sides compute for %.0f ms, on %d cores for %.0f at least", 1000*spent, cores, 1000*spent/float64(cores))
}

// beside says what one of many took beside the yardstick, both in microseconds.
func (r *Result) beside(took float64, of string) string {
	return fmt.Sprintf("%.0f us %s, where a bare write to a connection takes %.0f", took, of, r.Yard)
}

// handshakes says what they take of the control plane.
func (r *Result) handshakes() string {
	if !r.TLS {
		return ""
	}
	return fmt.Sprintf("a connection's handshake and first words take the control plane %.2f ms of a core", 1000*r.Connecting/float64(r.Agents))
}

// compared says a figure as a ratio to that of a thousand agents.
func compared(r Result, base *Result, of func(*Result) float64) string {
	if base == nil || base.Agents == r.Agents || of(base) == 0 {
		return ""
	}
	return fmt.Sprintf("%.2g x that of 1000 agents", of(&r)/of(base))
}

// write leaves the figures and the plot in a folder.
func (t told) write(dir string) error {
	if len(t.Runs) == 0 {
		return nil
	}
	var text, plot bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetIndent("", "  ")
	err := errors.Join(enc.Encode(t), t.curves().SVG(&plot))
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "fleet.json"), text.Bytes(), 0o644),
		os.WriteFile(filepath.Join(dir, "fleet.svg"), plot.Bytes(), 0o644))
}

// curves are what grows with the fleet, each as a ratio to a thousand agents.
func (t told) curves() curves {
	c := curves{
		Title: "What a fleet costs its control plane", Across: "agents", Up: "ratio to the figure at 1,000 agents",
	}
	for _, tls := range []bool{false, true} {
		for _, what := range []struct {
			name string
			of   func(*Result) float64
		}{
			{"memory", func(r *Result) float64 { return r.Full }},
			{"CPU of a change", func(r *Result) float64 { return r.Told.CPU }},
			{"last told of a change", func(r *Result) float64 { return r.Told.Last }},
			{"all connected", func(r *Result) float64 { return r.Connected }},
		} {
			line := curve{Name: what.name + withTLS(tls), Dashed: tls}
			for i := range t.Runs {
				r := &t.Runs[i]
				base := t.base(*r)
				if r.TLS == tls && base != nil && what.of(base) > 0 && what.of(r) > 0 {
					line.Points = append(line.Points, point{float64(r.Agents), what.of(r) / what.of(base)})
				}
			}
			if len(line.Points) > 0 {
				c.Lines = append(c.Lines, line)
			}
		}
	}
	return c
}

// at is the delay that a share of all does not exceed; delays are sorted.
func at(delays []time.Duration, share float64) time.Duration {
	if len(delays) == 0 {
		return 0
	}
	return delays[max(0, int(math.Ceil(share*float64(len(delays))))-1)]
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	if len(sorted) == 0 {
		return 0
	}
	return sorted[len(sorted)/2]
}

// round takes away what is noise.
func round(v float64) float64 { return math.Round(v*1000) / 1000 }
