// Command simulate tells what a fleet would cost that is larger than a machine can try. It
// has the product's own code decide who gets what (internal/assign), in which steps
// (internal/rollout) and when agents come back (deltaclient, agent), and its encoders say
// how large messages are; time and the network are simulated. "make simulate" runs it;
// docs/scaling.md says what it knows and what it does not.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"chandler.dev/chandler/bench/table"
)

func main() {
	shape := Shape{}
	seed := flag.Uint64("seed", 1, "of all chance; the same one gives the same figures")
	flag.IntVar(&shape.Proxies, "proxies", 0, "one fleet of so many instead of the usual ones")
	flag.IntVar(&shape.Clusters, "clusters", 1, "its clusters, each with control planes of its own")
	flag.IntVar(&shape.Replicas, "replicas", 1, "control planes of each cluster")
	flag.StringVar((*string)(&shape.From), "from", string(fromControl), `where agents fetch modules: "control plane", "registry" or "mirror"`)
	flag.Parse()
	shapes := []Shape{{1_000, 1, 1, fromControl}, {10_000, 1, 1, fromControl}, {10_000, 1, 3, fromControl}, {100_000, 50, 2, fromControl}}
	if shape.Proxies > 0 {
		shapes = []Shape{shape}
	}
	run := table.Run{Title: fmt.Sprintf("Simulated fleets, seed %d; nothing here was measured on this machine", *seed), Machine: table.Here("")}
	in := Measured()
	for _, sh := range shapes {
		for _, s := range []Scenario{OneChange, FewChange, NewModule, Restart, Staged} {
			add(&run, in, sh, s, *seed)
		}
		if shape.Proxies == 0 && sh.Proxies >= 10_000 {
			for _, from := range []origin{fromRegistry, fromMirror} {
				sh.From = from
				add(&run, in, sh, NewModule, *seed)
			}
		}
	}
	if err := run.Text(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "simulate:", err)
		os.Exit(1)
	}
}

// add simulates a scenario and adds its figures.
func add(run *table.Run, in Inputs, sh Shape, s Scenario, seed uint64) {
	fmt.Fprintf(os.Stderr, "%d proxies, %d x %d: %s, modules from the %s\n", sh.Proxies, sh.Clusters, sh.Replicas, s, sh.From)
	o, err := Simulate(in, sh, s, seed)
	if err != nil {
		fmt.Fprintf(os.Stderr, "simulate: %+v: %v\n", sh, err)
		os.Exit(1)
	}
	run.Figures = append(run.Figures, figures(in, sh, s, &o)...)
}

// figures tells an outcome.
func figures(in Inputs, sh Shape, s Scenario, o *Outcome) []table.Figure {
	name := fmt.Sprintf("%d proxies, %d x %d: %s", sh.Proxies, sh.Clusters, sh.Replicas, s)
	if sh.From != fromControl {
		name += ", from the " + string(sh.From)
	}
	sum, seconds := o.Sent.sum(), func(d time.Duration) string { return fmt.Sprintf("%.3g s", d.Seconds()) }
	return []table.Figure{
		{Name: name + ", the last", Unit: "s", Measured: at(o.Done, 1).Seconds(), Note: fmt.Sprintf(
			"%d proxies; p50 %s, p99 %s; told p99 %s, last %s", len(o.Done), seconds(at(o.Done, 0.5)), seconds(at(o.Done, 0.99)), seconds(at(o.Told, 0.99)), seconds(at(o.Told, 1)))},
		{Name: name + ", messages", Measured: float64(sum.Messages), Note: fmt.Sprintf("%s; the busiest replica %.3g CPU s", size(o.Bytes(in.Framing)), o.Busy.Seconds())},
		{Name: name + ", registry requests", Measured: float64(o.Registry.Messages), Note: size(o.Registry.Bytes)},
	}
}

func size(bytes int64) string {
	if bytes >= 1e9 {
		return fmt.Sprintf("%.3g GB", float64(bytes)/1e9)
	}
	return fmt.Sprintf("%.3g MB", float64(bytes)/1e6)
}
