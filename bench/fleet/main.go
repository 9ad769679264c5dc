// Command fleet measures what a fleet of agents costs its control plane. It starts the
// built control plane and, as another process, a swarm of scripted agents that speak the
// real protocol over loopback: by the hundred, the thousand and the ten thousand. "make
// bench-fleet" runs it.
//
// The figures go to standard output as a table, to fleet.json and to fleet.svg. All that
// it starts it ends, and every wait has a bound.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"chandler.dev/chandler/bench/table"
)

// maxAgents is how many a swarm may have: a control plane knows no more.
const maxAgents = 20_000

// options are what the command line says.
type options struct {
	chandler string
	out      string
	profiles string
	sizes    []int
	ways     []bool // with TLS
	changes  int
	storm    time.Duration
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var err error
	if len(os.Args) == 2 && os.Args[1] == swarmCommand {
		err = beSwarm(ctx, os.Stdin, os.Stdout)
	} else {
		err = measureAll(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}

// parse reads the command line.
func parse() (options, error) {
	var o options
	var sizes, tls string
	flag.StringVar(&o.chandler, "chandler", filepath.Join("bin", "chandler"), "the control plane's program")
	flag.StringVar(&o.out, "out", "bench", "folder for fleet.json and fleet.svg")
	flag.StringVar(&o.profiles, "profiles", "", "folder for profiles of the control plane; none without it")
	flag.StringVar(&sizes, "sizes", "100,1000,10000", "how many agents, one run each")
	flag.StringVar(&tls, "tls", "both", "no, yes or both: whether agents and control plane show each other certificates")
	flag.IntVar(&o.changes, "changes", 10, "how many changes a figure is from")
	flag.DurationVar(&o.storm, "storm", time.Minute, "how long one plugin changes a hundred times a second; 0 for not at all")
	flag.Parse()
	for s := range strings.SplitSeq(sizes, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > maxAgents {
			return o, fmt.Errorf("-sizes %s: write numbers from 1 to %d with commas between them", sizes, maxAgents)
		}
		o.sizes = append(o.sizes, n)
	}
	ways, ok := map[string][]bool{"no": {false}, "yes": {true}, "both": {false, true}}[tls]
	switch {
	case !ok:
		return o, fmt.Errorf("-tls %s: write no, yes or both", tls)
	case o.changes < 1 || o.changes > 1000:
		return o, fmt.Errorf("-changes %d: write a number from 1 to 1000", o.changes)
	case o.storm < 0 || o.storm > time.Hour:
		return o, fmt.Errorf("-storm %s: an hour at most", o.storm)
	}
	o.ways = ways
	return o, nil
}

// measureAll measures every size, each with and without TLS as asked, and tells.
func measureAll(ctx context.Context) error {
	o, err := parse()
	if err != nil {
		return err
	}
	for _, n := range o.sizes {
		if err := roomFor(n); err != nil {
			return err
		}
	}
	for _, dir := range []string{o.out, o.profiles} {
		if err := os.MkdirAll(cmp.Or(dir, "."), 0o755); err != nil {
			return err
		}
	}
	told := told{Machine: table.Here("")}
	for _, tls := range o.ways {
		for _, n := range o.sizes {
			r, err := measure(ctx, o, n, tls)
			if err != nil {
				return errors.Join(fmt.Errorf("%d agents%s: %w", n, withTLS(tls), err), told.write(o.out))
			}
			told.Runs = append(told.Runs, r)
		}
	}
	if err := told.table().Text(os.Stdout); err != nil {
		return err
	}
	return told.write(o.out)
}

func withTLS(tls bool) string {
	if tls {
		return ", TLS"
	}
	return ""
}

// progress tells on standard error what is being done.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
