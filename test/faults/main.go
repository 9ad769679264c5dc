// Command faults reads what "go test -json" says of the tests that are named
// after the faults to survive, TestFault_F14 or TestFault_F2_F3_Words, and prints
// a table of every fault: survived, not survived, or not covered yet. It injects
// nothing itself, and it fails when a fault was not survived or a test run broke.
package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"

	"chandler.dev/chandler/test/testrun"
)

func main() {
	run, err := testrun.Read(os.Stdin, "TestFault_")
	if err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(1)
	}
	if !report(os.Stdout, run) {
		os.Exit(1)
	}
}

// verdict is what is known of a fault.
type verdict string

const (
	survived    verdict = "survived"
	notSurvived verdict = "NOT survived"
	notCovered  verdict = "not covered yet"
)

// result is a fault and what its tests came to.
type result struct {
	fault
	verdict verdict
	tests   int
	failed  []string
}

// judge gives a result for every fault, in their order. A number that tests name
// and the list does not know comes last.
func judge(faults []fault, run *testrun.Run) []result {
	byNumber := map[int]*result{}
	for _, f := range faults {
		byNumber[f.number] = &result{fault: f, verdict: notCovered}
	}
	for name, passed := range run.Tests {
		for _, n := range run.Rows(name, 'F') {
			r := byNumber[n]
			if r == nil {
				r = &result{fault: fault{number: n, what: "(tests name it, the list does not)"}}
				byNumber[n] = r
			}
			r.tests++
			if !passed {
				r.failed = append(r.failed, name)
			}
		}
	}
	var results []result
	for _, r := range byNumber {
		switch {
		case len(r.failed) > 0:
			r.verdict = notSurvived
		case r.tests > 0:
			r.verdict = survived
		}
		slices.Sort(r.failed)
		results = append(results, *r)
	}
	slices.SortFunc(results, func(a, b result) int { return cmp.Compare(a.number, b.number) })
	return results
}

// report prints the table, what went wrong and the figures, and tells whether
// nothing went wrong.
func report(w io.Writer, run *testrun.Run) bool {
	results := judge(faults, run)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ROW\tFAULT\tVERDICT\tTESTS\tREMARK")
	count := map[verdict]int{}
	for _, r := range results {
		remark := r.remark
		if r.verdict == notCovered {
			remark = cmp.Or(r.open, later)
		}
		fmt.Fprintf(table, "F%d\t%s\t%s\t%d\t%s\n", r.number, r.what, r.verdict, r.tests, remark)
		count[r.verdict]++
	}
	table.Flush()
	for _, r := range results {
		for _, name := range r.failed {
			fmt.Fprintf(w, "\nF%d not survived: %s\n%s", r.number, name, run.Output[name])
		}
	}
	for _, name := range run.Broken {
		fmt.Fprintf(w, "\ncould not be tested: %s\n%s", name, run.Output[name])
	}
	covered := count[survived] + count[notSurvived]
	fmt.Fprintf(w, "\n%d rows: %d covered, %d survived, %d not survived, %d open; %d tests.\n",
		len(results), covered, count[survived], count[notSurvived], count[notCovered], len(run.Tests))
	if len(run.Tests) == 0 {
		fmt.Fprintln(w, "No test ran.")
	}
	return count[notSurvived] == 0 && len(run.Broken) == 0 && len(run.Tests) > 0
}
