package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// prefix of the tests that count.
const prefix = "TestFault_"

// maxOutput bounds what is kept of one test's output: its end.
const maxOutput = 16 << 10

// testRun is what "go test -json" told.
type testRun struct {
	// tests tells whether each test passed; named package.Test. One that was
	// skipped is not in it: it showed nothing.
	tests map[string]bool
	// broken are packages that failed although none of their tests did: they do
	// not compile, or came to no end.
	broken []string
	// output is what tests and packages printed.
	output map[string]string
}

// event is a line of "go test -json".
type event struct {
	Action, Package, Test, Output string
	ImportPath, FailedBuild       string
}

func read(r io.Reader) (*testRun, error) {
	run := &testRun{tests: map[string]bool{}, output: map[string]string{}}
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
	slices.Sort(run.broken)
	return run, nil
}

func (run *testRun) take(ev event, failed map[string]bool) {
	top, _, _ := strings.Cut(ev.Test, "/")
	name := ev.Package
	if top != "" {
		name += "." + top
	}
	switch ev.Action {
	case "output":
		run.print(name, ev.Output)
	case "build-output":
		run.print(ev.ImportPath, ev.Output)
	case "run":
		if top == ev.Test && strings.HasPrefix(top, prefix) {
			run.tests[name] = false // until it passes
		}
	case "skip":
		if top == ev.Test {
			delete(run.tests, name)
		}
	case "pass":
		if top == ev.Test && strings.HasPrefix(top, prefix) {
			run.tests[name] = true
		}
	case "fail":
		if top != "" {
			failed[ev.Package] = true
			return
		}
		if !failed[ev.Package] {
			run.broken = append(run.broken, ev.Package)
			run.print(ev.Package, run.output[ev.FailedBuild])
		}
	}
}

func (run *testRun) print(name, text string) {
	all := run.output[name] + text
	run.output[name] = all[max(0, len(all)-maxOutput):]
}
