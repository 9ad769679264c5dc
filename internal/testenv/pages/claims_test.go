package pages

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// outside are the targets that .ci/run does not run, with the reason.
var outside = map[string]string{
	"e2e-gateway": "Envoy Gateway takes minutes to build",
	"e2e-machine": "it is young: a minute, to be added once it has held for a while",
	"e2e-upgrade": "builds of other commits take minutes",
}

// everyBlock finds the blocks of docs, and of what says README.
func everyBlock(t *testing.T, root string) (blocks []Block) {
	t.Helper()
	var names []string
	for _, pattern := range []string{"README.md", "examples/*/README.md", "plugins/README.md", "plugins/*/README.md"} {
		found, err := fs.Glob(os.DirFS(root), pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %v, %v", pattern, found, err)
		}
		names = append(names, found...)
	}
	err := fs.WalkDir(os.DirFS(root), "docs", func(name string, d fs.DirEntry, err error) error {
		if err == nil && path.Ext(name) == ".md" {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		found, err := Read(root, name)
		if err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, found...)
	}
	return blocks
}

// Every command block of a page is run by a test, in one of make's targets, in CI.
func TestEveryBlockIsClaimed(t *testing.T) {
	t.Parallel()
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	blocks := everyBlock(t, root)
	if len(blocks) < 80 {
		t.Fatalf("only %d blocks", len(blocks))
	}
	for _, b := range Unclaimed(blocks) {
		t.Errorf("%s:%d (%s) is run by no test: add it to pages.Claims", b.Page, b.Line, strings.Join(b.Under[1:], ", "))
	}
	makefile, ci := text(t, root, "Makefile"), text(t, root, ".ci/run")
	for _, c := range Claims {
		i := slices.IndexFunc(blocks, c.has)
		switch {
		case i < 0:
			t.Errorf("there is nothing of what %+v is for", c)
		case c.Test == "":
			for _, line := range strings.Split(strings.TrimSpace(blocks[i].steps[0].text), "\n") {
				if !strings.HasPrefix(line, "make ") || !strings.Contains(ci, line+"\n") && !strings.Contains(ci, line+" ") {
					t.Errorf("%s:%d: .ci/run does not give %q", c.Page, blocks[i].Line, line)
				}
			}
		case !hasTest(t, filepath.Join(root, c.Dir), c.Test):
			t.Errorf("%s has no test %s", c.Dir, c.Test)
		case !runs(makefile, c):
			t.Errorf("make %s does not run %s in %s", c.Target, c.Test, c.Dir)
		case (outside[c.Target] == "") != regexp.MustCompile(`\bmake `+c.Target+`\b`).MatchString(ci):
			t.Errorf("make %s is to be in .ci/run, or outside of it with a reason, and is both or neither", c.Target)
		}
	}
}

func text(t *testing.T, root, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// hasTest looks for a test in the files of a folder, whatever their build tags.
func hasTest(t *testing.T, dir, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(files, func(file string) bool {
		return strings.Contains(text(t, "", file), "\nfunc "+name+"(t *testing.T) ")
	})
}

// runs tells whether a target's recipe has a go test of the claim's folder in which its
// test is among those asked for.
func runs(makefile string, c Claim) bool {
	for _, v := range regexp.MustCompile(`(?m)^([A-Z_]+) :?= (.*)$`).FindAllStringSubmatch(makefile, -1) {
		makefile = strings.ReplaceAll(makefile, "$("+v[1]+")", v[2])
	}
	recipe := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(c.Target) + `:.*\n((?:\t.*\n)*)`).FindStringSubmatch(makefile)
	if recipe == nil {
		return false
	}
	for line := range strings.Lines(recipe[1]) {
		asked := regexp.MustCompile(`-run '([^']*)'`).FindStringSubmatch(line)
		if strings.Contains(line, "go test ") && regexp.MustCompile(`(^|\s)\./(`+regexp.QuoteMeta(c.Dir)+`)?(/?\.\.\.)?(\s|$)`).MatchString(line) &&
			(asked == nil || regexp.MustCompile(strings.ReplaceAll(asked[1], "$$", "$")).MatchString(c.Test)) {
			return true
		}
	}
	return false
}

func TestRecipesAreRead(t *testing.T) {
	t.Parallel()
	const makefile = "SOME := ./a/... ./b\nx: tools ## y\n\tgo vet ./c\n\tgo test -tags z -run '^(TestA|TestB)$$' $(SOME)\ny:\n\tgo test ./c/d\n"
	for c, want := range map[*Claim]bool{
		{Target: "x", Dir: "b", Test: "TestA"}: true, {Target: "x", Dir: "a", Test: "TestB"}: true, {Target: "x", Dir: "b", Test: "TestAB"}: false,
		{Target: "x", Dir: "c", Test: "TestA"}: false, {Target: "y", Dir: "c/d", Test: "TestX"}: true, {Target: "y", Dir: "c", Test: "TestX"}: false, {Target: "z", Dir: "b"}: false,
	} {
		if got := runs(makefile, *c); got != want {
			t.Errorf("%+v: %v", *c, got)
		}
	}
}
