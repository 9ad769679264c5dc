// Package refusal is for tests that are named after a bad input, TestRefuse_B31
// or TestRefuse_B31_Words: they tell through it what they saw. It compares every
// text with the golden file of the test, bounds the memory and the time that the
// input took, and writes all of that where test/refusals reads it, which prints
// the table of "make refusals". It judges no input itself. In a test of another
// name it does nothing, so that functions that many tests share may use it.
package refusal

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chandler.dev/chandler"
)

// Prefix of the names of tests that count.
const Prefix = "TestRefuse_"

// Bounds of what one input may take. What is allocated in all is never less than
// what the heap grows at its peak; so a bound on it needs no sampling, and holds.
// Both have room for the race detector and for a machine that is busy.
const (
	MaxMemory = 32 << 20
	MaxTime   = 10 * time.Second
)

// Attributes of a test, see testing.T.Attr.
const (
	AttrCode   = "refusal"        // one for each case: a code, or another outcome
	AttrMemory = "refusal-memory" // bytes, the most that a case took
	AttrTime   = "refusal-time"   // the most that a case took
)

// Outcomes of inputs that are not refused by a code.
const (
	Accepted chandler.Code = "accepted"
	Ignored  chandler.Code = "ignored"
	Warning  chandler.Code = "warning"
	Narrowed chandler.Code = "narrowed" // less is given than was asked for
	Cut      chandler.Code = "cut"      // bounded and escaped
	Same     chandler.Code = "same"     // the same answer as for what is not there
)

// Case is one bad input, from before it is given to the product until after what
// came of it.
type Case struct {
	test      *test
	began     time.Time
	allocated uint64
}

// Begin begins a case. The memory of everything in the program counts: a test
// that has cases does not run in parallel with others.
func Begin(t *testing.T) *Case {
	t.Helper()
	if !strings.HasPrefix(t.Name(), Prefix) {
		return nil
	}
	return &Case{test: of(t), began: time.Now(), allocated: allocated()}
}

// Saw ends the case: the input was refused with that code and text, or had that
// other outcome. Addresses on loopback lose their port, which differs each time;
// what else differs, the caller replaces.
func (c *Case) Saw(code chandler.Code, text string) {
	if c == nil {
		return
	}
	t := c.test
	t.Helper()
	took, memory := time.Since(c.began), allocated()-c.allocated
	if took > MaxTime {
		t.Errorf("took %v, at most %v, for: %s: %s", took, MaxTime, code, text)
	}
	if memory > MaxMemory {
		t.Errorf("allocated %d bytes, at most %d, for: %s: %s", memory, MaxMemory, code, text)
	}
	t.took, t.memory = max(t.took, took), max(t.memory, memory)
	t.Attr(AttrCode, string(code))
	t.saw = append(t.saw, string(code)+": "+ports.ReplaceAllString(text, "$1:PORT"))
}

// Warned ends the case: the input was taken, with that warning.
func (c *Case) Warned(code chandler.Code, text string) {
	c.Saw(Warning, string(code)+": "+text)
}

// Saw reports a case that had nothing to measure.
func Saw(t *testing.T, code chandler.Code, text string) {
	t.Helper()
	Begin(t).Saw(code, text)
}

var ports = regexp.MustCompile(`(\b127\.0\.0\.1|\blocalhost|\[::1\]):\d+`)

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// test is a test and its cases so far.
type test struct {
	*testing.T
	saw    []string
	took   time.Duration
	memory uint64
}

// tests has every test that runs, so that a function that has nothing but its
// testing.T adds to the same list.
var tests sync.Map // *testing.T to *test

func of(t *testing.T) *test {
	known, again := tests.LoadOrStore(t, &test{T: t})
	one := known.(*test)
	if !again {
		t.Cleanup(func() {
			tests.Delete(t)
			one.end()
		})
	}
	return one
}

// end reports the bounds and compares the texts with the golden file.
func (t *test) end() {
	t.Attr(AttrMemory, fmt.Sprint(t.memory))
	t.Attr(AttrTime, t.took.Round(10*time.Microsecond).String())
	name, err := t.golden()
	if err != nil {
		t.Error(err)
		return
	}
	got := strings.Join(t.saw, "\n") + "\n"
	b, err := os.ReadFile(name)
	switch want := string(b); {
	case os.IsNotExist(err):
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Error(err)
		}
		t.Errorf("there was no golden file: %s is written; read it, then run this again", name)
	case err != nil:
		t.Error(err)
	case got != want:
		t.Errorf("other texts than in %s (remove it and run this again to have it written anew):\n%s", name, differ(want, got))
	}
}

// golden is the file of the test: by its row first, then by its package.
func (t *test) golden() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	pkg := filepath.Base(dir)
	for root := dir; ; root = filepath.Dir(root) {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			if root == dir {
				pkg = "chandler"
			}
			name := strings.ReplaceAll(strings.TrimPrefix(t.Name(), Prefix), "/", "_") + "." + pkg + ".txt"
			return filepath.Join(root, "test", "refusals", "golden", name), nil
		}
		if root == filepath.Dir(root) {
			return "", fmt.Errorf("no go.mod at or above %s", dir)
		}
	}
}

// differ shows the lines that only one of the two has.
func differ(want, got string) string {
	var b strings.Builder
	only := func(mark string, these, those []string) {
		for _, line := range these {
			if !slices.Contains(those, line) {
				fmt.Fprintf(&b, "%s %s\n", mark, line)
			}
		}
	}
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	only("-", w, g)
	only("+", g, w)
	if b.Len() == 0 {
		return "the same lines in another order, or another number of times"
	}
	return b.String()
}
