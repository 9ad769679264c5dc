package scaffold_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/author/build"
	"chandler.dev/chandler/internal/author/scaffold"
)

// Every language gets a folder that says the same of itself everywhere, and is what
// "chandler build" takes it for.
func TestWrite(t *testing.T) {
	t.Parallel()
	for _, l := range build.Languages() {
		t.Run(string(l), func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "some", "folder")
			names, err := scaffold.Write(dir, "add-header", l)
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{".gitignore", "README.md", "chandler.test.yaml", "config.schema.json"} {
				if !slices.Contains(names, want) {
					t.Errorf("no %s", want)
				}
			}
			for _, name := range names {
				text, err := os.ReadFile(filepath.Join(dir, name))
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(string(text), "@NAME@") || strings.Contains(string(text), "@FOLDER@") || strings.Contains(string(text), "@INSTALL@") {
					t.Errorf("%s has a place that was not filled in", name)
				}
				if strings.HasSuffix(name, ".json") && !json.Valid(text) {
					t.Errorf("%s is not JSON", name)
				}
			}
			if found, err := build.Detect(dir); err != nil || found != l {
				t.Errorf("taken for %q (%v)", found, err)
			}
			readme, _ := os.ReadFile(filepath.Join(dir, "README.md"))
			if !strings.Contains(string(readme), "# folder.wasm") {
				t.Errorf("the README does not name what is built:\n%s", readme)
			}
		})
	}
}

// What is there is never written over, not even beside.
func TestWriteKeepsWhatIsThere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	own := filepath.Join(dir, "notes.txt")
	if err := os.WriteFile(own, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{dir, own} {
		_, err := scaffold.Write(target, "hello", build.Go)
		var p *chandler.Problem
		if !errors.As(err, &p) || p.Code != chandler.CodeSourceFolder {
			t.Errorf("%s: %v", target, err)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("there is more than before: %v", entries)
	}
	empty := filepath.Join(dir, "..", filepath.Base(dir)+"-empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(empty) })
	if _, err := scaffold.Write(empty, "hello", build.C); err != nil {
		t.Errorf("an empty folder: %v", err)
	}
}

// A name stands in headers, packages, tags and file names.
func TestCheckName(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "-a", "a-", "a--b", "Hello", "1a", "a_b", "a.b", "../a", "a/b", "ä", "a b", "a\n", strings.Repeat("a", 41)} {
		if p := scaffold.CheckName(name); p == nil || p.Code != chandler.CodeSourceName || p.Hint == "" {
			t.Errorf("%q: %v", name, p)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,8}){0,3}`).Draw(t, "name")
		if p := scaffold.CheckName(name); p != nil {
			t.Fatalf("%q: %v", name, p)
		}
		files, err := scaffold.Files(name, name, build.Rust)
		if err != nil {
			t.Fatal(err)
		}
		var schema struct {
			Title      string
			Properties map[string]struct{ Default string }
		}
		if err := json.Unmarshal(files["config.schema.json"], &schema); err != nil || schema.Title != name || schema.Properties["header"].Default != "x-"+name {
			t.Fatalf("%q: %v %+v", name, err, schema)
		}
	})
}
