//go:build authors

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/author/suite"
	"chandler.dev/chandler/internal/testenv/pages"
	"chandler.dev/chandler/internal/testenv/registry"
)

// leastCases is how many the suites of all sample plugins have together, or more.
const leastCases = 200

// TestSamplePlugins builds and tests the sample plugins as their guides say, in their
// folders, where "make plugins" leaves what it builds, too. What the catalogue says of
// them is so.
func TestSamplePlugins(t *testing.T) {
	root, err := pages.Root()
	if err != nil {
		t.Fatal(err)
	}
	reg, err := registry.Start(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reg.Close)
	environ := guideEnviron(t, "go", "cargo", "rustc", "zig")
	guide := func(t *testing.T, page string) {
		pages.Open(t, page).In(&pages.World{
			Shells: map[string]*pages.Shell{
				"":           {Dir: root, Env: environ},
				"its folder": {Dir: filepath.Join(root, filepath.Dir(page)), Env: environ},
			},
			// By inputs: when a time is up while a worker is busy, go test calls that a
			// failure (https://go.dev/issue/75804).
			Names: []string{"registry.example", reg.Addr, "-fuzztime 1m", "-fuzztime 1000x"},
			Time:  10 * time.Minute,
		})
	}
	suites, err := filepath.Glob(filepath.Join(root, "plugins/*", suite.FileName))
	if err != nil || len(suites) == 0 {
		t.Fatalf("%v, %v", suites, err)
	}
	cases := 0
	t.Run("each", func(t *testing.T) {
		for _, file := range suites {
			tests, err := suite.Load(file)
			if err != nil {
				t.Fatal(err)
			}
			n, dir := len(tests.Tests()), filepath.Dir(file)
			cases += n
			t.Run(filepath.Base(dir), func(t *testing.T) {
				t.Parallel()
				guide(t, "plugins/"+filepath.Base(dir)+"/README.md")
				formatted(t, dir)
				listed(t, dir, n)
			})
		}
	})
	guide(t, "plugins/README.md")
	catalogue := readText(t, filepath.Join(root, "plugins/README.md"))
	if says := fmt.Sprintf(" %d cases in all", cases); cases < leastCases || !strings.Contains(catalogue, says) {
		t.Errorf("there are %d cases, of at least %d, and plugins/README.md does not say:%s", cases, leastCases, says)
	}
}

// listed compares a plugin with its line in the catalogue: its size within a tenth, as
// another compiler makes another module.
func listed(t *testing.T, dir string, cases int) {
	t.Helper()
	name := filepath.Base(dir)
	info, err := os.Stat(filepath.Join(dir, name+".wasm"))
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^\| \[` + name + `\]\(.*\| ([0-9,]+) kB \|.*\| (\d+) \|$`).FindStringSubmatch(readText(t, filepath.Join(dir, "../README.md")))
	if line == nil {
		t.Fatalf("plugins/README.md does not have %s, with size and cases", name)
	}
	says, err := strconv.Atoi(strings.ReplaceAll(line[1], ",", ""))
	if is := (int(info.Size()) + 500) / 1000; err != nil || is*10 > says*11 || is*11 < says*10 {
		t.Errorf("plugins/README.md says that %s has %s kB; it has %d", name, line[1], is)
	}
	if line[2] != strconv.Itoa(cases) {
		t.Errorf("plugins/README.md says that %s has %s cases; it has %d", name, line[2], cases)
	}
}

// formatted holds Rust to how Rust is written.
func formatted(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(dir, "Cargo.toml")); err != nil {
		return
	}
	cmd := exec.CommandContext(t.Context(), "cargo", "fmt", "--check")
	cmd.Dir, cmd.Env = dir, guideEnviron(t, "cargo")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: run cargo fmt\n%s", err, out)
	}
}

func readText(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
