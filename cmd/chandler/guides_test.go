//go:build authors

package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/compilers"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/pages"
	"chandler.dev/chandler/internal/testenv/registry"
)

// TestGuides runs the guides for authors, and what the README says of it, each in a folder of its own. The registry of the
// guides is one of the test's. They compile some plugins in C++.
func TestGuides(t *testing.T) {
	t.Parallel()
	for _, page := range []string{"README.md", "docs/authoring/write.md", "docs/authoring/unit-test.md", "docs/authoring/integration-test.md", "docs/authoring/publish.md"} {
		t.Run(page, func(t *testing.T) {
			t.Parallel()
			reg, err := registry.Start(registry.Config{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(reg.Close)
			pages.Open(t, page).In(&pages.World{
				Shells: map[string]*pages.Shell{"": {Dir: t.TempDir(), Env: guideEnviron(t, "zig")}},
				Names:  []string{"localhost:5000", reg.Addr},
				Time:   10 * time.Minute,
			})
		})
	}
}

// guideEnviron has compilers and an Envoy in PATH, where chandler is already.
func guideEnviron(t *testing.T, programs ...string) []string {
	bin := t.TempDir()
	envoy, err := filepath.Abs(module.Envoy(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(envoy, filepath.Join(bin, "envoy")); err != nil {
		t.Fatal(err)
	}
	environ := compilers.Environ(t, programs...)
	last := environ[len(environ)-1]
	return append(environ, last+string(os.PathListSeparator)+bin)
}
