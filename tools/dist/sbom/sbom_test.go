package sbom

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
)

func TestSBOM(t *testing.T) {
	t.Parallel()
	built := &debug.BuildInfo{
		GoVersion: "go1.26.1", Path: "chandler.dev/chandler/cmd/x", Main: debug.Module{Path: "chandler.dev/chandler", Version: "(devel)"},
		Deps: []*debug.Module{
			{Path: "github.com/BurntSushi/toml", Version: "v1.4.0", Sum: "h1:AAAA"},
			{Path: "a.example/old", Version: "v1.0.0", Replace: &debug.Module{Path: "a.example/new", Version: "v1.1.0"}},
		},
	}
	b, err := json.Marshal(document("x", []byte("program"), built, Options{"0.3.0", map[string]string{"a.example/new": "MIT"}}))
	if err != nil {
		t.Fatal(err)
	}
	if err := check(b, built); err != nil {
		t.Error(err)
	}
	for _, want := range []string{
		`"spdxVersion":"SPDX-2.3"`, `"https://proxy.golang.org/github.com/!burnt!sushi/toml/@v/v1.4.0.zip"`, `"go.sum: h1:AAAA"`,
		`"pkg:golang/a.example/new@v1.1.0"`, `"pkg:golang/std@1.26.1"`,
		`"versionInfo":"0.3.0"`, `"licenseDeclared":"MIT"`,
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %s in %s", want, b)
		}
	}
	built.Deps = append(built.Deps, &debug.Module{Path: "a.example/more", Version: "v1.0.0"})
	if err := check(b, built); err == nil || !strings.Contains(err.Error(), "a.example/more") {
		t.Errorf("a module that is not named: %v", err)
	}
}

// A program says itself what is in it: this one has the standard library alone, and
// is refused, as none of ours is so small.
func TestSBOMOfAProgram(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "x.spdx.json")
	if _, err := Write(to, self, Options{}); err == nil || !strings.Contains(err.Error(), "does not say") {
		t.Error(err)
	}
	if _, err := Write(to, filepath.Join(t.TempDir(), "none"), Options{}); err == nil {
		t.Error("a program that is not there")
	}
}
