package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/testenv/module"
)

// buildPlugin makes the module of a sample plugin in Go, as its README says.
func buildPlugin(t testing.TB, dir string) string {
	t.Helper()
	// The go tool keeps a test's result until a file changes that the test looked at, and
	// it does not see what the compiler below looks at.
	sources, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range sources {
		if _, err := os.Stat(name); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), filepath.Base(dir)+".wasm")
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-ldflags=-s -w", "-o", file, ".")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return file
}

// The tests of the sample plugins in Go hold on both engines.
func TestPlugins(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../plugins/*/chandler.test.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v %v", files, err)
	}
	for _, file := range files {
		dir := filepath.Dir(file)
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
			continue
		}
		t.Run(filepath.Base(dir), func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			args := []string{"chandler", "test", dir, "--module", buildPlugin(t, dir), "--engine", "both", "--envoy", module.Envoy(t)}
			if code := run(args, noEnvironment, strings.NewReader(""), &out, &out); code != 0 {
				t.Errorf("exit code %d\n%s", code, out.String())
			}
		})
	}
}

// BenchmarkBasicauth is the suite of basicauth on the fast engine, with a warm cache.
func BenchmarkBasicauth(b *testing.B) {
	cache := b.TempDir()
	getenv := func(name string) string {
		if name == "XDG_CACHE_HOME" {
			return cache
		}
		return ""
	}
	args := []string{"chandler", "test", "../../plugins/basicauth", "--module", buildPlugin(b, "../../plugins/basicauth")}
	once := func() {
		var out bytes.Buffer
		if code := run(args, getenv, strings.NewReader(""), &out, &out); code != 0 {
			b.Fatal(out.String())
		}
	}
	once()
	for b.Loop() {
		once()
	}
}
