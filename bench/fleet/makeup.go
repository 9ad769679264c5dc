package main

import (
	"context"
	"fmt"
)

// Makeup is what a control plane's resident set is of at one moment, in MB. What is left
// is the runtime's own, and pages that are free and not given back yet.
type Makeup struct {
	// Program is pages of the program's file: code and tables, which the kernel maps as
	// they are touched, many at a time, and can drop without writing them anywhere.
	Program float64 `json:"programMB"`
	// InUse is what the last collection left, and the goroutines' stacks.
	InUse float64 `json:"inUseMB"`
	// Garbage is how much there may be before the next collection is over.
	Garbage float64 `json:"garbageMB"`
}

// The control plane's metrics of its memory: how large the heap may become, what stacks
// take, and how much garbage there may be beside what is in use.
const (
	heapGoal  = "go_memstats_next_gc_bytes"
	stacks    = "go_memstats_stack_inuse_bytes"
	gcPercent = "go_gc_gogc_percent"
)

// makeup takes the control plane's memory apart.
func (p *plane) makeup(ctx context.Context) (m Makeup, err error) {
	sizes, err := resident(p.pid())
	if err != nil {
		return m, err
	}
	var read [3]float64
	for i, name := range []string{heapGoal, stacks, gcPercent} {
		if read[i], err = p.metric(ctx, name); err != nil {
			return m, err
		}
	}
	used, garbage := shares(read[0], read[1], read[2]/100)
	return Makeup{Program: sizes["RssFile"], InUse: used / 1e6, Garbage: garbage / 1e6}, nil
}

// shares takes the collector's goal apart: it is what was in use and, beside it, garbage,
// by a share of heap and stacks (https://go.dev/doc/gc-guide, GOGC; globals are left out).
func shares(goal, stacks, share float64) (used, garbage float64) {
	heap := max(0, (goal-share*stacks)/(1+share))
	return heap + stacks, goal - heap
}

// String says it as a note.
func (m Makeup) String() string {
	if m == (Makeup{}) {
		return ""
	}
	return fmt.Sprintf("%.0f MB are pages of the program's file, %.0f in use, up to %.0f garbage", m.Program, m.InUse, m.Garbage)
}
