// Package testrun reads what "go test -json" says of the tests that are named
// after rows of a table: TestFault_F2_F3_Words is about the rows 2 and 3. It runs
// and judges nothing.
package testrun

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// maxOutput bounds what is kept of one test's output: its end.
const maxOutput = 16 << 10

// Run is what "go test -json" told.
type Run struct {
	// Tests tells whether each test passed; named package.Test. One that was
	// skipped is not in it: it showed nothing.
	Tests map[string]bool
	// Attributes are what the tests said with testing.T.Attr, those of subtests
	// among them.
	Attributes map[string][]Attribute
	// Broken are packages that failed although none of their tests did: they do
	// not compile, or came to no end.
	Broken []string
	// Output is what tests and packages printed.
	Output map[string]string

	prefix string
}

// Attribute is a key and a value that a test said.
type Attribute struct{ Key, Value string }

// event is a line of "go test -json".
type event struct {
	Action, Package, Test, Output string
	Key, Value                    string
	ImportPath, FailedBuild       string
}

// Read reads a run to its end. Of its tests those count whose names begin with
// prefix.
func Read(r io.Reader, prefix string) (*Run, error) {
	run := &Run{Tests: map[string]bool{}, Attributes: map[string][]Attribute{}, Output: map[string]string{}, prefix: prefix}
	failed := map[string]bool{} // packages in which a test failed
	dec := json.NewDecoder(r)
	for {
		var ev event
		err := dec.Decode(&ev)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("this is not what \"go test -json\" prints: %w", err)
		}
		run.take(ev, failed)
	}
	slices.Sort(run.Broken)
	return run, nil
}

func (run *Run) take(ev event, failed map[string]bool) {
	top, _, _ := strings.Cut(ev.Test, "/")
	name := ev.Package
	if top != "" {
		name += "." + top
	}
	counts := strings.HasPrefix(top, run.prefix)
	switch ev.Action {
	case "output":
		run.print(name, ev.Output)
	case "build-output":
		run.print(ev.ImportPath, ev.Output)
	case "attr":
		if counts {
			run.Attributes[name] = append(run.Attributes[name], Attribute{ev.Key, ev.Value})
		}
	case "run":
		if top == ev.Test && counts {
			run.Tests[name] = false // until it passes
		}
	case "skip":
		if top == ev.Test {
			delete(run.Tests, name)
		}
	case "pass":
		if top == ev.Test && counts {
			run.Tests[name] = true
		}
	case "fail":
		if top != "" {
			failed[ev.Package] = true
			return
		}
		if !failed[ev.Package] {
			run.Broken = append(run.Broken, ev.Package)
			run.print(ev.Package, run.Output[ev.FailedBuild])
		}
	}
}

func (run *Run) print(name, text string) {
	all := run.Output[name] + text
	run.Output[name] = all[max(0, len(all)-maxOutput):]
}

// Rows gives the rows that a test is named after: of "package.TestFault_F2_F3_Words"
// and the letter F, 2 and 3.
func (run *Run) Rows(name string, letter byte) []int {
	_, rows, _ := strings.Cut(name, "."+run.prefix)
	var ns []int
	for part := range strings.SplitSeq(rows, "_") {
		var n int
		var rest string
		if got, _ := fmt.Sscanf(part, string(letter)+"%d%s", &n, &rest); got == 1 && !slices.Contains(ns, n) {
			ns = append(ns, n)
		}
	}
	return ns
}
