package pages

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// World is where the blocks of a page are run.
type World struct {
	// Shells are those that a page speaks of, by the name in <!-- on: NAME -->; "" is the
	// one of blocks without. Without any there is one in a new folder.
	Shells map[string]*Shell
	// Names are pairs: what the page says, and what it is here. They are for hosts,
	// addresses and folders that no test can have, and stand in the test for all to see.
	Names []string
	// Time bounds each block; two minutes if it is zero.
	Time time.Duration
}

// Run is a page that is being run by a test.
type Run struct {
	t      testing.TB
	page   string
	blocks []Block // that are this test's
	done   []bool
}

// Open begins with a page, docs/agent.md for one. The blocks that Claims gives to the test
// have been run when the test ends, all of them, or it fails. Each is run as it stands, in
// the order of the page, and must not fail. What a reader does not see says more of a
// block: comments in the lines before it.
//
//	<!-- file: NAME -->      it is no commands, it is written to that file
//	<!-- output -->          it is no commands, what the block before it printed has its lines, in
//	                         their order: "..." is anything, blanks do not count, and digests,
//	                         times and ages stand for any
//	<!-- on: NAME -->        it is for the shell of that name of the world
//	<!-- stays -->           its last command goes on while the blocks after it are run; it is
//	                         asked to end when the test does
//	<!-- exit: CODE -->      its last command ends with that code
//	<!-- until: COMMAND -->  it is done once that command succeeds, for which it has the world's Time
//
// In a block of "console" the lines below a command are its output; and what curl prints
// is the status that a comment behind it tells.
func Open(t testing.TB, page string) *Run {
	t.Helper()
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := Read(root, page)
	if err != nil {
		t.Fatal(err)
	}
	test, _, _ := strings.Cut(t.Name(), "/")
	r := &Run{t: t, page: page}
	for _, b := range blocks {
		if slices.ContainsFunc(Claims, func(c Claim) bool { return c.Test == test && c.has(b) }) {
			r.blocks = append(r.blocks, b)
		}
	}
	if len(r.blocks) == 0 {
		t.Fatalf("no block of %s is this test's: add it to pages.Claims", page)
	}
	r.done = make([]bool, len(r.blocks))
	t.Cleanup(func() {
		for i, b := range r.blocks {
			if !r.done[i] && !t.Failed() {
				t.Errorf("%s:%d was not run", b.Page, b.Line)
			}
		}
	})
	return r
}

// In runs, in a world, the blocks under some headings, or all that were not run yet. It
// ends the test at the first that fails.
func (r *Run) In(w *World, headings ...string) {
	r.t.Helper()
	if w.Shells == nil {
		w.Shells = map[string]*Shell{"": {Dir: r.t.TempDir()}}
	}
	names := strings.NewReplacer(w.Names...)
	ran := 0
	for i, b := range r.blocks {
		if r.done[i] || len(headings) > 0 && !b.under(headings) {
			continue
		}
		shell := w.Shells[b.On]
		if shell == nil {
			r.t.Fatalf("%s:%d: the world has no shell %q", b.Page, b.Line, b.On)
		}
		err := shell.start(r.t)
		if err == nil {
			err = shell.run(b, names, w.Time)
		}
		if err != nil {
			r.t.Fatalf("%s:%d: %v", b.Page, b.Line, err)
		}
		r.done[i] = true
		ran++
	}
	if ran == 0 {
		r.t.Fatalf("%s: no block was left to run under %q", r.page, headings)
	}
}

// under tells whether the block stands under one of the headings.
func (b *Block) under(headings []string) bool {
	return slices.ContainsFunc(headings, func(h string) bool { return slices.Contains(b.Under, h) })
}

// Root is the repository's folder, in or below which a test runs.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "structure_test.go")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", fmt.Errorf("%s is not in the repository", dir)
		}
		dir = up
	}
}
