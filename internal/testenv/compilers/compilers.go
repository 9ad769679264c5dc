// Package compilers finds the compilers of plugins that "make tools-authors" brings, for
// tests that build some. One that is missing fails the test: a test that skips proves
// nothing.
package compilers

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Environ is the environment of a build: the machine's, with the compilers that were
// brought before all others. Each of the programs must be there.
func Environ(t testing.TB, programs ...string) []string {
	t.Helper()
	bin := folder(t)
	environ := (&exec.Cmd{}).Environ()
	path := bin
	for _, kv := range environ {
		if rest, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = bin + string(os.PathListSeparator) + rest
		}
	}
	for _, program := range programs {
		if !there(path, program) {
			t.Fatalf("no %s in .tools/authors/bin or PATH: run make tools-authors", program)
		}
	}
	return append(environ, "PATH="+path)
}

// folder is .tools/authors/bin at the repository's root.
func folder(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, ".tools", "authors", "bin")
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test's directory")
		}
		dir = filepath.Dir(dir)
	}
}

func there(path, program string) bool {
	for _, dir := range filepath.SplitList(path) {
		if info, err := os.Stat(filepath.Join(dir, program)); err == nil && info.Mode()&0o111 != 0 {
			return true
		}
	}
	return false
}
