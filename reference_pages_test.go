package chandler_test

import (
	"flag"
	"fmt"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/testenv/pages"
)

var update = flag.Bool("update", false, "write docs/reference/codes.md and annotations.md anew")

// docs/reference/codes.md has every code with its comment: what it means and, behind a
// semicolon, what to do.
func TestReferenceOfCodes(t *testing.T) {
	t.Parallel()
	codes, err := pages.Comments("codes.go")
	if err != nil || len(codes) < 100 {
		t.Fatalf("%d codes, %v", len(codes), err)
	}
	var b strings.Builder
	b.WriteString(`# Codes

What is wrong with a resource, a module, a proxy or a file has a code, for machines, beside the sentence for people and the field that it is about.
Codes are the reasons of conditions, of the states of proxies, of events and of problems in answers, and do not change; sentences may.

<!-- made from codes.go: go test . -run TestReferenceOfCodes -update -->
`)
	group := ""
	for _, c := range codes {
		if c.Group != group {
			group = c.Group
			fmt.Fprintf(&b, "\n## %s\n\n| code | means | what to do |\n|---|---|---|\n", strings.TrimSuffix(group, "."))
		}
		means, todo, ok := strings.Cut(c.Comment, "; ")
		if !ok {
			t.Errorf("%s: its comment does not say what it means and what to do", c.Name)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", c.Value, means, todo)
	}
	pages.Held(t, "docs/reference/codes.md", b.String(), *update)
}

// docs/reference/annotations.md has what chandler reads and writes in metadata.
func TestReferenceOfAnnotations(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	b.WriteString("# Annotations and labels\n\n<!-- made from the constants: go test . -run TestReferenceOfAnnotations -update -->\n")
	for _, table := range []struct{ title, file, prefix string }{
		{"Annotations of a plugin", "chandler.go", "Annotation"},
		{"Annotations of a plugin that is rolled out", "rollout.go", "Annotation"},
		{"Labels of a proxy", "labels.go", "Label"},
		{"Labels in an artifact's configuration", "internal/fetch/documents.go", "Label"},
	} {
		all, err := pages.Comments(table.file)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "\n## %s\n\n| name | |\n|---|---|\n", table.title)
		for _, c := range all {
			if !strings.HasPrefix(c.Name, table.prefix) || c.Value == "" {
				continue
			}
			if c.Comment == "" {
				t.Errorf("%s has no comment", c.Name)
			}
			fmt.Fprintf(&b, "| `%s` | %s |\n", c.Value, strings.ReplaceAll(strings.TrimPrefix(c.Comment, c.Name+" "), "|", `\|`))
		}
	}
	pages.Held(t, "docs/reference/annotations.md", b.String(), *update)
}
