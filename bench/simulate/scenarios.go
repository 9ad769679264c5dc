package main

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/rollout"
)

// Scenario is something that happens to a fleet which is up to date.
type Scenario string

// The scenarios.
const (
	OneChange Scenario = "one configuration for all"
	NewModule Scenario = "a new module for all"
	FewChange Scenario = "one configuration for 1 %"
	Restart   Scenario = "restart of all control planes"
	Staged    Scenario = "rollout in steps"
)

// The plan of Staged.
const (
	stagedSteps    = "1%,10%,50%"
	stagedInterval = "1m"
)

// bound is how much simulated time a scenario may take.
const bound = time.Hour

// Outcome is what a scenario came to.
type Outcome struct {
	// Told and Done are, for each proxy that it was about, how long after the beginning it
	// knew of the change, and had it in force; after a restart both are when it was answered.
	Told, Done []time.Duration
	Sent       tally
	Registry   count
	// Busy is the processor time of the control plane that had the most to do.
	Busy time.Duration
}

// Bytes are all that were sent between agents and control planes, with what the
// transport adds.
func (o *Outcome) Bytes(framing int64) int64 {
	sum := o.Sent.sum()
	return sum.Bytes + framing*sum.Messages
}

// Simulate has a scenario happen. The same arguments give the same outcome.
func Simulate(in Inputs, shape Shape, s Scenario, seed uint64) (Outcome, error) {
	shape.From = cmp.Or(shape.From, fromControl)
	switch {
	case shape.Clusters < 1 || shape.Replicas < 1 || shape.Proxies < shape.Clusters:
		return Outcome{}, fmt.Errorf("%d proxies in %d clusters with %d replicas are no fleet", shape.Proxies, shape.Clusters, shape.Replicas)
	case shape.Proxies > shape.Clusters*control.MaxNodes:
		return Outcome{}, fmt.Errorf("%d proxies in %d clusters: a control plane knows at most %d", shape.Proxies, shape.Clusters, control.MaxNodes)
	case !slices.Contains([]origin{fromControl, fromRegistry, fromMirror}, shape.From):
		return Outcome{}, fmt.Errorf("modules do not come from %q: write %q, %q or %q", shape.From, fromControl, fromRegistry, fromMirror)
	}
	w, err := newWorld(in, shape, s == NewModule, seed)
	if err != nil {
		return Outcome{}, err
	}
	plugin := everyone
	switch s {
	case OneChange, NewModule:
		w.change(plugin, nil)
	case FewChange:
		plugin = few
		w.change(plugin, nil)
	case Restart:
		for _, c := range w.clusters {
			c.restart()
		}
	case Staged:
		plan, problems := rollout.Parse(map[string]string{
			chandler.AnnotationRollout: stagedSteps, chandler.AnnotationRolloutInterval: stagedInterval,
		})
		if len(problems) > 0 {
			return Outcome{}, &problems[0]
		}
		w.change(plugin, plan)
	default:
		return Outcome{}, fmt.Errorf("there is no scenario %q", s)
	}
	w.run(bound)
	if len(w.due) > 0 {
		err = fmt.Errorf("%s: not over after %v", s, bound)
	}
	return w.outcome(plugin, s == Restart), errors.Join(err, w.failed)
}

func (w *world) outcome(plugin int, restarted bool) Outcome {
	o := Outcome{Sent: w.sent, Registry: w.pulled}
	for _, c := range w.clusters {
		for _, pl := range c.planes {
			o.Busy = max(o.Busy, pl.busy)
		}
		for _, p := range c.proxies {
			switch {
			case restarted && p.greeted:
				o.Told, o.Done = append(o.Told, p.back), append(o.Done, p.back)
			case !restarted && p.inForce[plugin] == 2:
				o.Told, o.Done = append(o.Told, p.toldAt), append(o.Done, p.done)
			}
		}
	}
	slices.Sort(o.Told)
	slices.Sort(o.Done)
	return o
}

// at is the delay that a share of all does not exceed; delays are sorted.
func at(delays []time.Duration, share float64) time.Duration {
	if len(delays) == 0 {
		return 0
	}
	return delays[max(0, int(math.Ceil(share*float64(len(delays))))-1)]
}
