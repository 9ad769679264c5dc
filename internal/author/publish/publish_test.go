package publish

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/module"
)

func write(t *testing.T, dir, name, content string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func ref(t *testing.T, s string) chandler.Reference {
	t.Helper()
	r, p := chandler.ParseReference(s)
	if p != nil {
		t.Fatal(p)
	}
	return r
}

// gitIn makes a checkout of all that is in dir.
func gitIn(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=a", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false"}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestGather: what lies in the folder is published, with where it is from.
func TestGather(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "hello")
	wasm := module.Append()
	write(t, dir, "hello.wasm", string(wasm))
	write(t, dir, "other.wasm", "x")
	write(t, dir, SchemaFile, `{"type":"object"}`)
	write(t, dir, ReadmeFile, "# Hello\n")
	want := map[string]string{
		"org.opencontainers.image.title": "hi", "org.opencontainers.image.version": "v1",
		AnnotationABI: "0.2.1", AnnotationModule: string(chandler.Digest[chandler.ModuleDigest](wasm)),
	}
	gather := func(o Options) Plugin {
		t.Helper()
		o.Reference = ref(t, "reg.example/team/hi:v1")
		p, err := Gather(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := gather(Options{Path: dir})
	if string(p.Module) != string(wasm) || p.Problem != nil || string(p.Documents.Schema) != `{"type":"object"}` || string(p.Documents.Readme) != "# Hello\n" {
		t.Errorf("%+v", p)
	}
	if !maps.Equal(p.Annotations, want) {
		t.Errorf("outside of a checkout: %v, want %v", p.Annotations, want)
	}

	gitIn(t, dir, "init", "-q")
	gitIn(t, dir, "add", SchemaFile, ReadmeFile)
	gitIn(t, dir, "commit", "-q", "-m", "x")
	gitIn(t, dir, "remote", "add", "origin", "https://user:secret@git.example/team/hello.git")
	want["org.opencontainers.image.revision"] = gitIn(t, dir, "rev-parse", "HEAD")
	want["org.opencontainers.image.source"] = "https://git.example/team/hello.git"
	if p = gather(Options{Path: filepath.Join(dir, "hello.wasm")}); !maps.Equal(p.Annotations, want) {
		t.Errorf("in a checkout: %v, want %v", p.Annotations, want)
	}
	write(t, dir, ReadmeFile, "# Changed\n")
	want["org.opencontainers.image.revision"] += "-dirty"
	if p = gather(Options{Path: dir}); !maps.Equal(p.Annotations, want) {
		t.Errorf("changed: %v, want %v", p.Annotations, want)
	}

	p = gather(Options{Path: dir, Schema: None, Readme: write(t, dir, "docs/x.md", "# X"), Source: "s", Revision: "r", Annotations: map[string]string{
		"org.opencontainers.image.title": "", AnnotationABI: None, "org.opencontainers.image.created": "2026-01-01T00:00:00Z",
	}})
	want = map[string]string{
		"org.opencontainers.image.version": "v1", "org.opencontainers.image.source": "s", "org.opencontainers.image.revision": "r",
		"org.opencontainers.image.created": "2026-01-01T00:00:00Z", AnnotationModule: want[AnnotationModule],
	}
	if !maps.Equal(p.Annotations, want) || p.Documents.Schema != nil || string(p.Documents.Readme) != "# X" {
		t.Errorf("as told: %v %q, want %v", p.Annotations, p.Documents, want)
	}
}

// TestGatherFinds: the module of a folder, or why there is none.
func TestGatherFinds(t *testing.T) {
	dir := t.TempDir()
	for name, files := range map[string][]string{"none": {"a.txt"}, "two": {"a.wasm", "b.wasm"}, "one[*]": {"a.wasm"}} {
		for _, f := range files {
			write(t, filepath.Join(dir, name), f, string(module.Append()))
		}
	}
	for name, want := range map[string]string{"none": "build it with chandler build", "two": "2 modules and no two.wasm; name one", "gone": "no such file"} {
		if _, err := Gather(t.Context(), Options{Path: filepath.Join(dir, name)}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
	p, err := Gather(t.Context(), Options{Path: filepath.Join(dir, "one[*]")})
	if err != nil || filepath.Base(p.Path) != "a.wasm" {
		t.Errorf("%+v, %v", p.Path, err)
	}
	bad := write(t, dir, "bad.wasm", "no module")
	if p, err = Gather(t.Context(), Options{Path: bad}); err != nil || p.Problem == nil || p.Problem.Code != chandler.CodeWasmMagic {
		t.Errorf("%v, %v", p.Problem, err)
	}
	for _, text := range []string{"{", `"x"`, `{"type": "objekt"}`} {
		p, err := Gather(t.Context(), Options{Path: bad, Schema: write(t, dir, "s.json", text)})
		if err != nil || p.SchemaProblem == nil || p.SchemaProblem.Code != chandler.CodeSchemaUnusable {
			t.Errorf("%s: %v, %v", text, p.SchemaProblem, err)
		}
	}
	if _, err := Gather(t.Context(), Options{Path: bad, Schema: write(t, dir, "s.json", strings.Repeat(" ", 256<<10+1))}); err == nil || !strings.Contains(err.Error(), "over 262144 bytes") {
		t.Error(err)
	}
}

func TestSourceURL(t *testing.T) {
	for remote, want := range map[string]string{
		"https://tok@git.example/a.git?x=1#y": "https://git.example/a.git",
		"git@git.example:team/a.git":          "ssh://git.example/team/a.git",
		"git.example:/srv/a":                  "ssh://git.example/srv/a",
		"ssh://git@git.example:22/a":          "ssh://git.example:22/a",
		"/srv/a.git":                          "", "../a": "", "file:///srv/a": "", "": "", "https://": "",
	} {
		if got := sourceURL(remote); got != want {
			t.Errorf("%s: %q, want %q", remote, got, want)
		}
	}
}
