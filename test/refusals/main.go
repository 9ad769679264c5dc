// Command refusals reads what "go test -json" says of the tests that are named
// after bad inputs, TestRefuse_B31 or TestRefuse_B31_Words, and prints a table of
// every input: refused and with which code, or what else comes of it, with the
// number of cases and the most memory and time that one took. It gives nothing
// bad to anything itself, and it fails when an input came to another end, when a
// row has no test, or when a test run broke.
package main

import (
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"chandler.dev/chandler/internal/testenv/refusal"
	"chandler.dev/chandler/test/testrun"
)

func main() {
	run, err := testrun.Read(os.Stdin, refusal.Prefix)
	if err != nil {
		fmt.Fprintln(os.Stderr, "refusals:", err)
		os.Exit(1)
	}
	good := report(os.Stdout, rows, run)
	unread, err := stale(os.DirFS("test/refusals/golden"), run)
	if err != nil {
		fmt.Fprintln(os.Stderr, "refusals:", err)
	}
	for _, name := range unread {
		fmt.Fprintf(os.Stdout, "test/refusals/golden/%s is of no test\n", name)
	}
	if !good || err != nil || len(unread) > 0 {
		os.Exit(1)
	}
}

// stale gives the golden files that belong to no test which ran.
func stale(golden fs.FS, run *testrun.Run) ([]string, error) {
	files, err := fs.ReadDir(golden, ".")
	var unread []string
	for _, f := range files {
		test, pkg, _ := strings.Cut(strings.TrimSuffix(f.Name(), ".txt"), ".")
		of := false
		for name := range run.Tests {
			in, own, _ := strings.Cut(name, "."+refusal.Prefix)
			of = of || path.Base(in) == pkg && (test == own || strings.HasPrefix(test, own+"_"))
		}
		if !of {
			unread = append(unread, f.Name())
		}
	}
	return unread, err
}

// result is a row and what its tests came to.
type result struct {
	row
	tests    []string
	codes    map[string]int // cases by what they ended with
	measured bool
	memory   uint64
	took     time.Duration
	wrong    []string // why it is not as it should be
}

func (r *result) verdict() string {
	switch wrong := len(r.wrong) > 0; {
	case wrong && len(r.tests) == 0:
		return "NO TEST"
	case wrong && r.accepted():
		return "NOT as wanted"
	case wrong:
		return "NOT refused"
	case r.accepted():
		return r.code
	}
	return "refused"
}

// accepted tells whether the row has no code but another outcome.
func (r row) accepted() bool { return slices.Contains(outcomes, r.code) }

// judge gives a result for every row, in their order. A number that tests name
// and the list does not know comes last.
func judge(list []row, run *testrun.Run) []*result {
	byNumber := map[int]*result{}
	var results []*result
	add := func(r row) *result {
		results = append(results, &result{row: r, codes: map[string]int{}})
		byNumber[r.number] = results[len(results)-1]
		return byNumber[r.number]
	}
	for _, r := range list {
		add(r)
	}
	for name := range run.Tests {
		for _, n := range run.Rows(name, 'B') {
			r := byNumber[n]
			if r == nil {
				r = add(row{number: n, what: "(tests name it, the list does not)"})
			}
			r.tests = append(r.tests, name)
		}
	}
	for _, r := range results {
		r.judge(run, func(test string) (others []row) {
			for _, n := range run.Rows(test, 'B') {
				if n != r.number {
					others = append(others, byNumber[n].row)
				}
			}
			return others
		})
	}
	slices.SortFunc(results, func(a, b *result) int { return cmp.Compare(a.number, b.number) })
	return results
}

// mayEnd tells whether a case of the row may end with a code.
func (r row) mayEnd(code string) bool { return code == r.code || slices.Contains(r.also, code) }

// judge looks at what the row's tests said. beside gives the other rows that a test
// is named after: a case that ended as one of those should is taken for theirs.
func (r *result) judge(run *testrun.Run, beside func(test string) []row) {
	fault := func(format string, args ...any) { r.wrong = append(r.wrong, fmt.Sprintf(format, args...)) }
	slices.Sort(r.tests)
	for _, name := range r.tests {
		if !run.Tests[name] {
			fault("%s failed:\n%s", name, run.Output[name])
		}
		said := 0
		for _, a := range run.Attributes[name] {
			switch a.Key {
			case refusal.AttrCode:
				said++
				if r.mayEnd(a.Value) || !slices.ContainsFunc(beside(name), func(o row) bool { return o.mayEnd(a.Value) }) {
					r.codes[a.Value]++
				}
			case refusal.AttrMemory:
				n, _ := strconv.ParseUint(a.Value, 10, 64) // a figure for people
				r.memory, r.measured = max(r.memory, n), true
			case refusal.AttrTime:
				d, _ := time.ParseDuration(a.Value)
				r.took = max(r.took, d)
			}
		}
		if said == 0 {
			fault("%s says of no case what came of it", name)
		}
	}
	switch {
	case len(r.tests) == 0:
		fault("no test is named after it")
	case r.codes[r.code] == 0:
		fault("no case ended with %s", r.code)
	}
	for _, code := range r.seen() {
		if !r.mayEnd(code) {
			fault("a case ended with %s", code)
		}
	}
}

// seen are the codes that the row's cases ended with, its own first.
func (r *result) seen() []string {
	codes := slices.Sorted(maps.Keys(r.codes))
	if i := slices.Index(codes, r.code); i > 0 {
		codes = append([]string{r.code}, slices.Delete(codes, i, i+1)...)
	}
	return codes
}

// report prints the table, what is wrong and the figures, and tells whether
// nothing is wrong.
func report(w io.Writer, list []row, run *testrun.Run) bool {
	results := judge(list, run)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ROW\tINPUT\tVERDICT\tCODE\tCASES\tMEMORY\tTIME\tREMARK")
	good, cases, unmeasured := 0, 0, 0
	for _, r := range results {
		n, codes := 0, r.seen()
		for _, code := range codes {
			n += r.codes[code]
		}
		cases += n
		remark := ""
		if len(codes) > 1 || len(r.also) == 0 {
			remark = r.why
		}
		if len(r.wrong) == 0 {
			good++
		}
		memory, took := "-", "-"
		if r.measured {
			memory, took = amount(r.memory), r.took.Round(100*time.Microsecond).String()
		} else if len(r.tests) > 0 {
			unmeasured++
		}
		fmt.Fprintf(table, "B%d\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", r.number, r.what, r.verdict(),
			cmp.Or(strings.Join(codes, " "), "-"), n, memory, took, remark)
	}
	table.Flush()
	for _, r := range results {
		for _, why := range r.wrong {
			fmt.Fprintf(w, "\nB%d: %s", r.number, why)
		}
	}
	for _, name := range run.Broken {
		fmt.Fprintf(w, "\ncould not be tested: %s\n%s", name, run.Output[name])
	}
	fmt.Fprintf(w, "\n%d rows: %d as they should be, %d not; %d tests, %d cases; %d rows without figures, else at most %s and %s for a case.\n",
		len(results), good, len(results)-good, len(run.Tests), cases, unmeasured, amount(slices.MaxFunc(results, func(a, b *result) int { return cmp.Compare(a.memory, b.memory) }).memory),
		slices.MaxFunc(results, func(a, b *result) int { return cmp.Compare(a.took, b.took) }).took.Round(time.Millisecond))
	return good == len(results) && len(run.Broken) == 0
}

// amount writes an amount of memory as people read it.
func amount(n uint64) string {
	switch {
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d B", n)
}
