package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"chandler.dev/chandler/test/testrun"
)

// told writes lines as "go test -json" does: action, package, test, output.
func told(events ...[4]string) string {
	var b strings.Builder
	for _, e := range events {
		fmt.Fprintf(&b, "{\"Action\":%q,\"Package\":%q,\"Test\":%q,\"Output\":%q}\n", e[0], e[1], e[2], e[3])
	}
	return b.String()
}

func TestReport(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		input string
		ok    bool
		want  []string
	}{
		"survived": {
			told([4]string{"run", "p", "TestFault_F2_F3_Words"}, [4]string{"run", "p", "TestFault_F2_F3_Words/sub"},
				[4]string{"pass", "p", "TestFault_F2_F3_Words/sub"}, [4]string{"pass", "p", "TestFault_F2_F3_Words"},
				[4]string{"run", "q", "TestFault_F3"}, [4]string{"pass", "q", "TestFault_F3"},
				[4]string{"pass", "p"}, [4]string{"pass", "q"}),
			true, []string{"F2: survived 1", "F3: survived 2", "F53: not covered yet 0 later", "F4: not covered yet 0 later", "2 covered, 2 survived, 0 not survived"},
		},
		"not survived": {
			told([4]string{"run", "p", "TestFault_F7"}, [4]string{"output", "p", "TestFault_F7/sub", "it fell over\n"},
				[4]string{"fail", "p", "TestFault_F7/sub"}, [4]string{"fail", "p", "TestFault_F7"}, [4]string{"fail", "p"}),
			false, []string{"F7: NOT survived 1", "F7 not survived: p.TestFault_F7", "it fell over", "1 covered, 0 survived, 1 not survived"},
		},
		"one of two": {
			told([4]string{"run", "p", "TestFault_F7_A"}, [4]string{"pass", "p", "TestFault_F7_A"},
				[4]string{"run", "p", "TestFault_F7_B"}, [4]string{"fail", "p", "TestFault_F7_B"}, [4]string{"fail", "p"}),
			false, []string{"F7: NOT survived 2"},
		},
		"no end":  {told([4]string{"run", "p", "TestFault_F7"}), false, []string{"F7: NOT survived 1"}},
		"skipped": {told([4]string{"run", "p", "TestFault_F7"}, [4]string{"skip", "p", "TestFault_F7"}), false, []string{"F7: not covered yet 0 later", "No test ran"}},
		"unknown row": {
			told([4]string{"run", "p", "TestFault_F999"}, [4]string{"pass", "p", "TestFault_F999"}),
			true, []string{"F999: survived 1"},
		},
		"does not compile": {
			`{"ImportPath":"q [q.test]","Action":"build-output","Output":"q.go:1: no\n"}` + "\n" +
				`{"Action":"fail","Package":"q","FailedBuild":"q [q.test]"}` + "\n" +
				told([4]string{"run", "p", "TestFault_F7"}, [4]string{"pass", "p", "TestFault_F7"}),
			false, []string{"F7: survived 1", "could not be tested: q", "q.go:1: no"},
		},
		"nothing": {"", false, []string{"No test ran"}},
	} {
		run, err := testrun.Read(strings.NewReader(c.input), "TestFault_")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var out bytes.Buffer
		if ok := report(&out, run); ok != c.ok {
			t.Errorf("%s: %t, want %t", name, ok, c.ok)
		}
		for _, want := range c.want {
			if !slices.ContainsFunc(strings.Split(out.String(), "\n"), func(line string) bool { return holds(line, want) }) {
				t.Errorf("%s: nothing tells %q:\n%s", name, want, out.String())
			}
		}
	}
}

// holds tells whether a line has a text; of a row of the table, F7: TEXT, its
// fields count, whatever is between them.
func holds(line, want string) bool {
	row, text, ok := strings.Cut(want, ": ")
	if !ok || row[0] != 'F' || strings.Contains(row, " ") {
		return strings.Contains(line, want)
	}
	fields := strings.Fields(line)
	return len(fields) > 0 && fields[0] == row && strings.Contains(strings.Join(fields, " "), text)
}

// The list is in order, without doubles, and says what each row is.
func TestList(t *testing.T) {
	t.Parallel()
	last := 0
	for _, f := range faults {
		if f.number <= last || f.what == "" {
			t.Errorf("row %d after %d: %q", f.number, last, f.what)
		}
		last = f.number
	}
}
