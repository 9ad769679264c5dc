package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
)

// The project's own pages: every link and anchor leads somewhere, and the contents lead to
// every page. What is written is whole, and the same each time.
func TestPages(t *testing.T) {
	t.Parallel()
	s, err := load(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	if len(s.pages) < 30 || len(s.kinds) < 4 {
		t.Fatalf("%d pages of %d kinds", len(s.pages), len(s.kinds))
	}
	dirs := [2]string{t.TempDir(), t.TempDir()}
	for _, dir := range dirs {
		if err := s.write(filepath.Join(dir, "site")); err != nil {
			t.Fatal(err)
		}
	}
	href := regexp.MustCompile(`href="([^"#]+)`)
	err = filepath.WalkDir(dirs[0], func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		again, err := os.ReadFile(dirs[1] + strings.TrimPrefix(name, dirs[0]))
		if err != nil || string(again) != string(text) {
			t.Errorf("%s is another the second time: %v", name, err)
		}
		if strings.Contains(string(text), "<script") {
			t.Errorf("%s has a script", name)
		}
		for _, l := range href.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(l[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), l[1])); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestLinksAreHeld(t *testing.T) {
	t.Parallel()
	const toc = "# Contents\n\n## Kind\n\n- [one](one.md)\n"
	for name, c := range map[string]struct {
		one  string
		want string // of the error; "" for none
	}{
		"all is well":   {"# One\n\nTo [`itself`](#below), [a file](../x/y.yaml), [a folder](../x), [home](../README.md#it-is-so) and [out](https://example.org/).\n\n## Below\n", ""},
		"no file":       {"# One\n[a](two.md)\n", "docs/one.md: there is no docs/two.md"},
		"no anchor":     {"# One\n[a](#two)\n", "docs/one.md: there is no docs/one.md#two"},
		"of a file":     {"# One\n[a](../x/y.yaml#L1)\n", "there is no x/y.yaml#L1"},
		"far away":      {"# One\n[a](../README.md#it-is)\n", "there is no README.md#it-is"},
		"outside":       {"# One\n[a](../../x)\n", "is not in the repository"},
		"absolute":      {"# One\n[a](/x/y.yaml)\n", "is no relative one"},
		"no title":      {"one\n", "docs/one.md has no title"},
		"HTML":          {"# One\n\n<div>x</div>\n", "HTML that is no comment"},
		"HTML in words": {"# One\n\na <b>x</b>\n", "HTML in the text"},
		"an image":      {"# One\n\n![a](../x/y.yaml)\n", "an image"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := fstest.MapFS{
				contents: {Data: []byte(toc)}, "docs/one.md": {Data: []byte(c.one)}, "x/y.yaml": {Data: []byte("a: 1\n")},
				"README.md": {Data: []byte("# Home\n## It is so!\n")},
			}
			_, err := load(root)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v", err)
			}
			root["docs/lost.md"] = &fstest.MapFile{Data: []byte("# Lost\n")}
			if _, err := load(root); err == nil || c.want == "" && !strings.Contains(err.Error(), "docs/README.md does not lead to docs/lost.md") {
				t.Errorf("a page of nowhere: %v", err)
			}
		})
	}
}

func TestAnchorsAreAForges(t *testing.T) {
	t.Parallel()
	p, err := parse(fstest.MapFS{}, "x.md", []byte("# A `chandler` page, `it's` so\n## Who may use: it?\n## Who may use it\n## a_b--C\n<!-- gone -->\ntext\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a-chandler-page-its-so", "who-may-use-it", "who-may-use-it-1", "a_b--c"} {
		if !p.ids[id] {
			t.Errorf("no %s: %v", id, p.ids)
		}
	}
	if strings.Contains(string(p.body), "gone") || p.title != "A chandler page, it's so" || len(p.parts) != 3 {
		t.Errorf("%+v\n%s", p, p.body)
	}
}
