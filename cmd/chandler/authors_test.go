//go:build authors

package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"chandler.dev/chandler/internal/author/build"
	"chandler.dev/chandler/internal/testenv/compilers"
	"chandler.dev/chandler/internal/testenv/module"
)

// TestAuthors does in every language what the README of a new plugin says, with the real
// compilers and a real Envoy. "make authors" runs it.
func TestAuthors(t *testing.T) {
	environ := compilers.Environ(t, "go", "cargo", "rustc", "zig", "node", "npm")
	for _, l := range build.Languages() {
		t.Run(string(l), func(t *testing.T) {
			testscript.Run(t, testscript.Params{
				Files: []string{"testdata/authors.txtar"},
				Setup: func(env *testscript.Env) error {
					// Compilers keep what they fetched and made in the user's folders.
					for _, kv := range environ {
						name, value, _ := strings.Cut(kv, "=")
						if !slices.Contains([]string{"PATH", "WORK", "TMPDIR", "PWD"}, name) {
							env.Setenv(name, value)
						}
						if name == "PATH" {
							env.Setenv(name, value+string(os.PathListSeparator)+env.Getenv("PATH"))
						}
					}
					if err := authors(t, env); err != nil {
						return err
					}
					env.Setenv("LANGUAGE", string(l))
					env.Setenv("REAL_ENVOY", module.Envoy(t))
					return nil
				},
			})
		})
	}
}
