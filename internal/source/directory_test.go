package source_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/testenv/leaks"
	row "chandler.dev/chandler/internal/testenv/refusal"
)

func TestMain(m *testing.M) { leaks.Main(m) }

// bench is a directory that runs, and what it delivered.
type bench struct {
	t         *testing.T
	dir, data string
	*source.Directory
	stop func()

	mu        sync.Mutex
	snapshots []source.Snapshot
	more      chan struct{}
}

// start runs a source on dir ("" for none) until the end of the test or stop.
func start(t *testing.T, cfg source.DirectoryConfig) *bench {
	t.Helper()
	if cfg.Data == "" {
		cfg.Data = t.TempDir()
	}
	d, err := source.OpenDirectory(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, dir: cfg.Dir, data: cfg.Data, Directory: d, more: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx, b.deliver) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(b.stop)
	b.await("the first snapshot", func(source.Snapshot) bool { return true })
	return b
}

func (b *bench) deliver(s source.Snapshot) {
	b.mu.Lock()
	b.snapshots = append(b.snapshots, s)
	b.mu.Unlock()
	select {
	case b.more <- struct{}{}:
	default:
	}
}

func (b *bench) all() []source.Snapshot {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.snapshots)
}

func (b *bench) last() source.Snapshot {
	all := b.all()
	if len(all) == 0 {
		return source.Snapshot{}
	}
	return all[len(all)-1]
}

// await waits until the newest snapshot is as it should be.
func (b *bench) await(what string, ok func(source.Snapshot) bool) source.Snapshot {
	b.t.Helper()
	deadline := time.After(time.Minute)
	for {
		if all := b.all(); len(all) > 0 && ok(all[len(all)-1]) {
			return all[len(all)-1]
		}
		select {
		case <-b.more:
		case <-deadline:
			b.t.Fatalf("never came: %s\nlast: %+v", what, b.last())
		}
	}
}

// write puts a file in its place as a whole: one that is written there is empty at first,
// and may be read as that.
func (b *bench) write(name, text string) {
	b.t.Helper()
	path := filepath.Join(b.dir, name)
	next := filepath.Join(filepath.Dir(path), ".next")
	must(b.t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(b.t, os.WriteFile(next, []byte(text), 0o644))
	must(b.t, os.Rename(next, path))
}

func (b *bench) remove(name string) {
	b.t.Helper()
	if err := os.RemoveAll(filepath.Join(b.dir, name)); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) apply(manifest string) []source.Result {
	b.t.Helper()
	results, err := b.Apply(b.t.Context(), source.ApplyRequest{Manifest: []byte(manifest)})
	if err != nil {
		b.t.Fatal(err)
	}
	return results
}

func key(name string) chandler.Key {
	return chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "default", Name: name}
}

// find gives an object, or one without anything.
func find(s source.Snapshot, name string) source.Object {
	for _, o := range s.Objects {
		if o.Key == key(name) {
			return o
		}
	}
	return source.Object{}
}

func names(s source.Snapshot) string {
	var names []string
	for _, o := range s.Objects {
		names = append(names, o.Name)
	}
	return strings.Join(names, " ")
}

func has(want string) func(source.Snapshot) bool {
	return func(s source.Snapshot) bool { return names(s) == want }
}

// url waits for what an object means to be a url.
func url(name, want string) func(source.Snapshot) bool {
	return func(s source.Snapshot) bool {
		o := find(s, name)
		return o.Plugin != nil && o.Plugin.Wasm.URL == want
	}
}

// doc is a plugin of a name.
func doc(name, spec string) string {
	return strings.Replace(wasmPlugin(spec), "name: p", "name: "+name, 1)
}

func plugins(t *testing.T) string { return filepath.Join(t.TempDir(), "plugins") }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestDirectoryFollowsFiles(t *testing.T) {
	t.Parallel()
	dir := plugins(t)
	must(t, os.MkdirAll(filepath.Join(dir, "sub", ".git"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "sub", "a.yml"), []byte(doc("a", "url: a")+"---\n"+doc("b", "url: b")), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "sub", ".git", "x.yaml"), []byte(doc("x", "url: x")), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "README.md"), []byte("no"), 0o644))
	b := start(t, source.DirectoryConfig{Dir: dir})
	first := b.last()
	if names(first) != "a b" || len(first.Broken) != 0 {
		t.Fatalf("%+v", first)
	}
	a := find(first, "a")
	if a.Generation != 1 || len(a.UID) != 36 || a.Created.IsZero() || a.Plugin.UID != a.UID || !a.Plugin.Created.Equal(a.Created) ||
		a.Origin != filepath.Join(dir, "sub", "a.yml") || !strings.Contains(string(a.Manifest), "url: a") || strings.Contains(string(a.Manifest), "url: b") {
		t.Errorf("%+v", a)
	}

	b.write("new/deep/c.json", `{"apiVersion":"extensions.istio.io/v1alpha1","kind":"WasmPlugin","metadata":{"name":"c"},"spec":{"url":"c"}}`)
	b.await("a file in a new folder", has("a b c"))
	b.write("sub/a.yml", doc("a", "url: a2"))
	s := b.await("an edit, and a document less", func(s source.Snapshot) bool { return url("a", "a2")(s) && names(s) == "a c" })
	if o := find(s, "a"); o.UID != a.UID || o.Generation != 2 || !o.Created.Equal(a.Created) || o.Plugin.Generation != 2 {
		t.Errorf("%+v", o)
	}
	b.remove("sub")
	b.await("a folder less", has("c"))
	b.write("sub/a.yml", doc("a", "url: a2"))
	s = b.await("it is back", has("a c"))
	if o := find(s, "a"); o.UID == a.UID || o.Generation != 1 {
		t.Errorf("another object of the same name has the old identity: %+v", o)
	}
}

func TestGenerationIsOfTheMeaning(t *testing.T) {
	t.Parallel()
	b := start(t, source.DirectoryConfig{Dir: plugins(t)})
	b.write("a.yaml", doc("a", "url: a\npluginConfig: {x: 1, y: 2}"))
	b.await("the object", has("a"))
	b.write("a.yaml", "# a comment\n"+strings.Replace(doc("a", "pluginConfig:\n  y: 0x2\n  x: 1.0\nurl: a"), "name: a", "name: a\n  labels: {l: m}\n  annotations: {other: x}", 1))
	s := b.await("the label", func(s source.Snapshot) bool { return find(s, "a").Labels["l"] == "m" })
	if o := find(s, "a"); o.Generation != 1 || !strings.HasPrefix(string(o.Manifest), "# a comment") {
		t.Errorf("a label made generation %d\n%s", o.Generation, o.Manifest)
	}
	b.write("a.yaml", strings.Replace(doc("a", "url: a"), "name: a", "name: a\n  annotations: {chandler.dev/first-attach: deny}", 1))
	s = b.await("the annotation", func(s source.Snapshot) bool { return find(s, "a").Annotations[chandler.AnnotationFirstAttach] != "" })
	if o := find(s, "a"); o.Generation != 2 || o.Plugin.FirstAttach != chandler.FirstAttachDeny {
		t.Errorf("%+v", o)
	}
}

// A mistake never takes a good version away: not of a field, not of the syntax,
// not an emptied file; also over a restart.
func TestMistakesKeepTheLastGood(t *testing.T) {
	t.Parallel()
	b := start(t, source.DirectoryConfig{Dir: plugins(t)})
	b.write("ab.yaml", doc("a", "url: a")+"---\n"+doc("b", "url: b"))
	good := find(b.await("both", has("a b")), "a")

	check := func(s source.Snapshot, generation int64, code chandler.Code) {
		t.Helper()
		a, other := find(s, "a"), find(s, "b")
		if a.Plugin == nil || a.Plugin.Wasm.URL != "a" || a.Plugin.Generation != 1 || a.UID != good.UID || a.Generation != generation ||
			len(a.Problems) == 0 || a.Problems[0].Code != code {
			t.Errorf("a: %+v %+v", a, a.Plugin)
		}
		if other.Plugin == nil {
			t.Error("b is gone")
		}
	}
	broken := func(n int) func(source.Snapshot) bool {
		return func(s source.Snapshot) bool {
			return len(s.Broken) == n && n > 0 || n == 0 && len(find(s, "a").Problems) > 0
		}
	}
	b.write("ab.yaml", doc("a", "url: ftp://a")+"---\n"+doc("b", "url: b"))
	check(b.await("a field", broken(0)), 2, chandler.CodeURLScheme)
	b.write("ab.yaml", "a: [\n---\n"+doc("b", "url: b2"))
	s := b.await("syntax", broken(1))
	check(s, 2, chandler.CodeSpecParse)
	if !url("b", "b2")(s) || s.Broken[0].Path != filepath.Join(b.dir, "ab.yaml") {
		t.Errorf("%+v", s)
	}
	b.write("ab.yaml", "")
	s = b.await("an empty file", func(s source.Snapshot) bool { return len(find(s, "b").Problems) > 0 })
	check(s, 2, chandler.CodeSpecParse)

	b.stop()
	again := start(t, source.DirectoryConfig{Dir: b.dir, Data: b.data})
	s = again.last()
	check(s, 2, chandler.CodeSpecParse)
	if len(s.Broken) != 1 || !url("b", "b2")(s) {
		t.Errorf("%+v", s)
	}
	again.write("ab.yaml", "# nothing any more\n")
	again.await("a file without objects", has(""))
}

func TestNewObjectWithMistake(t *testing.T) {
	t.Parallel()
	b := start(t, source.DirectoryConfig{Dir: plugins(t)})
	b.write("a.yaml", doc("a", "phase: X"))
	s := b.await("the object", has("a"))
	if o := find(s, "a"); o.Plugin != nil || len(o.Problems) != 1 || o.Generation != 1 {
		t.Errorf("%+v", o)
	}
	b.write("a.yaml", doc("a", "url: good"))
	if o := find(b.await("mended", url("a", "good")), "a"); o.Generation != 2 || len(o.Problems) != 0 {
		t.Errorf("%+v", o)
	}
}

func TestRestartKeepsIdentity(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 600_000_000, time.UTC)
	cfg := source.DirectoryConfig{Dir: plugins(t), Data: t.TempDir(), Now: func() time.Time { return now }}
	b := start(t, cfg)
	b.write("a.yaml", doc("a", "url: a"))
	b.await("a", has("a"))
	b.apply(doc("b", "url: b"))
	b.apply(doc("b", "url: b2"))
	before := b.last()
	b.stop()
	now = now.Add(time.Hour)
	after := start(t, cfg).last()
	for _, name := range []string{"a", "b"} {
		x, y := find(before, name), find(after, name)
		if x.UID == "" || x.UID != y.UID || x.Generation != y.Generation || !x.Created.Equal(y.Created) || y.Plugin == nil {
			t.Errorf("before %+v\nafter %+v", x, y)
		}
	}
	if g := find(after, "b").Generation; g != 2 {
		t.Errorf("generation %d", g)
	}
}

func TestMissingDirectoryIsWaitedFor(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "not", "yet", "there")
	b := start(t, source.DirectoryConfig{Dir: dir})
	if s := b.last(); len(s.Broken) != 1 || s.Broken[0].Path != dir || s.Broken[0].Problems[0].Code != chandler.CodeStale {
		t.Fatalf("%+v", s)
	}
	b.write("a.yaml", doc("a", "url: a"))
	uid := find(b.await("the directory", func(s source.Snapshot) bool { return names(s) == "a" && len(s.Broken) == 0 }), "a").UID

	// Without the directory nothing is deleted, also by a restart.
	must(t, os.Rename(filepath.Dir(dir), filepath.Join(t.TempDir(), "away"))) // at once, and not its files first
	s := b.await("its end", func(s source.Snapshot) bool { return len(s.Broken) == 1 })
	if o := find(s, "a"); o.UID != uid || o.Plugin == nil || len(o.Problems) == 0 {
		t.Errorf("%+v", o)
	}
	b.stop()
	b = start(t, source.DirectoryConfig{Dir: dir, Data: b.data})
	if o := find(b.last(), "a"); o.UID != uid || o.Plugin == nil || len(o.Problems) == 0 {
		t.Errorf("%+v", o)
	}
	b.write("b.yaml", doc("b", "url: b"))
	b.await("it is back, without a", func(s source.Snapshot) bool { return names(s) == "b" && len(s.Broken) == 0 })
}

func TestUnreadableDeletesNothing(t *testing.T) {
	t.Parallel()
	b := start(t, source.DirectoryConfig{Dir: plugins(t)})
	b.write("a.yaml", doc("a", "url: a"))
	sub := filepath.Join(b.dir, "sub")
	must(t, os.Symlink(t.TempDir(), sub))
	b.write("sub/b.yaml", doc("b", "url: b"))
	b.write("c.yaml", doc("c", "url: c")+"---\n"+pullSecret("s", "{}"))
	b.await("all", has("a b c"))
	// As root nothing is forbidden: links to themselves cannot be read either.
	for _, path := range []string{sub, filepath.Join(b.dir, "c.yaml")} {
		next := filepath.Join(b.dir, ".next")
		must(t, os.Symlink(path, next))
		must(t, os.Rename(next, path))
	}
	s := b.await("trouble", func(s source.Snapshot) bool { return len(s.Broken) == 2 })
	if names(s) != "a b c" || find(s, "b").Plugin == nil || find(s, "c").Plugin == nil || len(s.Secrets) != 1 {
		t.Errorf("%+v", s)
	}
	b.remove("c.yaml")
	b.await("a file that is gone", func(s source.Snapshot) bool { return names(s) == "a b" && len(s.Secrets) == 0 })
	// What stands in the place of the directory is no directory.
	must(t, os.Rename(b.dir, b.dir+".old"))
	must(t, os.WriteFile(b.dir, nil, 0o644))
	b.await("no directory", func(s source.Snapshot) bool {
		return names(s) == "a b" && len(s.Broken) == 1 && s.Broken[0].Path == b.dir
	})
	must(t, os.Remove(b.dir))
	must(t, os.Rename(b.dir+".old", b.dir))
	b.await("it is back", func(s source.Snapshot) bool { return len(find(s, "a").Problems) == 0 })
}

// The swap of a link is how git-sync and Kubernetes replace a whole directory.
func TestSymlinkSwap(t *testing.T) {
	t.Parallel()
	for name, layout := range map[string]struct{ dir, link string }{
		"the directory":    {"current", "current"},
		"a parent":         {"current/deploy/plugins", "current"},
		"through two":      {"way/plugins", "current"},
		"files in ..data":  {"mount", "mount/..data"},
		"relative parents": {"current/deploy/../deploy/plugins", "current"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			inner := strings.TrimPrefix(strings.TrimPrefix(filepath.Clean(layout.dir), "current"), "/")
			revision := func(rev, text string) string {
				path := filepath.Join(filepath.Dir(layout.link), rev)
				must(t, os.MkdirAll(filepath.Join(root, path, inner), 0o755))
				must(t, os.WriteFile(filepath.Join(root, path, inner, "a.yaml"), []byte(text), 0o644))
				return filepath.Base(path)
			}
			switch name {
			case "through two":
				inner = "x/plugins"
				must(t, os.Symlink("current/x", filepath.Join(root, "way")))
			case "files in ..data":
				inner = ""
				must(t, os.MkdirAll(filepath.Join(root, "mount"), 0o755))
				must(t, os.Symlink("..data/a.yaml", filepath.Join(root, "mount", "a.yaml")))
			}
			link := filepath.Join(root, layout.link)
			must(t, os.Symlink(revision("..rev1", doc("a", "url: rev1")), link))
			b := start(t, source.DirectoryConfig{Dir: root + "/" + layout.dir, Poll: time.Hour})
			uid := find(b.await("rev1", url("a", "rev1")), "a").UID
			for i := 2; i < 6; i++ {
				rev := fmt.Sprintf("rev%d", i)
				must(t, os.Symlink(revision(".."+rev, doc("a", "url: "+rev)), link+".new"))
				must(t, os.Rename(link+".new", link))
				s := b.await(rev, url("a", rev))
				if o := find(s, "a"); o.UID != uid || o.Generation != int64(i) || len(s.Broken) != 0 {
					t.Errorf("%+v", o)
				}
			}
			for _, s := range b.all()[1:] {
				if names(s) != "a" {
					t.Errorf("the object was away for a moment")
				}
			}
		})
	}
}

// Editors write beside a file and rename over it; some move it away first.
func TestRenameOver(t *testing.T) {
	t.Parallel()
	b := start(t, source.DirectoryConfig{Dir: plugins(t), Poll: time.Hour})
	b.write("a.yaml", doc("a", "url: v0"))
	before := find(b.await("v0", url("a", "v0")), "a")
	path := filepath.Join(b.dir, "a.yaml")
	for i := 1; i < 5; i++ {
		v := fmt.Sprintf("v%d", i)
		b.write(".a.yaml.swp", doc("a", "url: "+v))
		began := time.Now()
		if i%2 == 0 {
			must(t, os.Rename(path, path+"~"))
		}
		must(t, os.Rename(filepath.Join(b.dir, ".a.yaml.swp"), path))
		away := time.Since(began) // on a machine that stood still too long for an editor, it may be another
		o := find(b.await(v, url("a", v)), "a")
		if away < 100*time.Millisecond && (o.UID != before.UID || o.Generation != before.Generation+1) {
			t.Error("it is another object")
		}
		before = o
	}
	must(t, os.Rename(path, filepath.Join(b.dir, "z.yaml")))
	s := b.await("another name", func(s source.Snapshot) bool { return filepath.Base(find(s, "a").Origin) == "z.yaml" })
	if o := find(s, "a"); o.UID != before.UID || o.Generation != before.Generation || len(s.Broken) != 0 {
		t.Errorf("%+v %+v", o, s.Broken)
	}
}

// A file that is written slowly, piece by piece, is never taken for the end of
// its objects.
func TestTruncatedInMidWrite(t *testing.T) {
	t.Parallel()
	b := start(t, source.DirectoryConfig{Dir: plugins(t)})
	b.write("a.yaml", doc("a", "url: v0")+"---\n"+doc("b", "url: v0"))
	b.await("v0", has("a b"))
	n := len(b.all())
	f, err := os.OpenFile(filepath.Join(b.dir, "a.yaml"), os.O_WRONLY|os.O_TRUNC, 0)
	must(t, err)
	defer f.Close()
	b.await("the empty file", func(s source.Snapshot) bool { return len(s.Broken) == 1 })
	text := doc("a", "url: v1") + "---\n" + doc("b", "url: v1")
	cut := strings.Index(text, "kind")
	_, err = f.WriteString(text[:cut])
	must(t, err)
	b.await("a piece", func(s source.Snapshot) bool {
		return len(s.Broken) == 1 && s.Broken[0].Problems[0].Code == chandler.CodeSpecShape
	})
	_, err = f.WriteString(text[cut:])
	must(t, err)
	b.await("the whole", func(s source.Snapshot) bool { return url("a", "v1")(s) && url("b", "v1")(s) && len(s.Broken) == 0 })
	for _, s := range b.all()[n:] {
		if names(s) != "a b" || find(s, "a").Plugin == nil || find(s, "b").Plugin == nil {
			t.Errorf("an object was away: %+v", s)
		}
	}
}

func TestHundredEdits(t *testing.T) {
	t.Parallel()
	b := start(t, source.DirectoryConfig{Dir: plugins(t), Poll: time.Hour})
	must(t, os.Mkdir(b.dir, 0o755))
	for i := range 100 { // in place, unlike write
		must(t, os.WriteFile(filepath.Join(b.dir, "a.yaml"), []byte(doc("a", fmt.Sprintf("url: v%d", i))), 0o644))
	}
	b.await("the last of the files", url("a", "v99"))
	for i := range 100 {
		b.apply(doc("b", fmt.Sprintf("url: v%d", i)))
	}
	if o := find(b.last(), "b"); !url("b", "v99")(b.last()) || o.Generation != 100 {
		t.Errorf("%+v", o)
	}
	var generation int64
	for _, s := range b.all() {
		if g := find(s, "b").Generation; g < generation {
			t.Errorf("generation %d after %d", g, generation)
		} else {
			generation = g
		}
	}
}

func TestRefuse_B28(t *testing.T) {
	b := start(t, source.DirectoryConfig{Dir: plugins(t)})
	b.write("m.yaml", doc("a", "url: first"))
	uid := find(b.await("the first", url("a", "first")), "a").UID
	b.write("b.yaml", doc("a", "url: second")) // comes before it in the directory
	s := b.await("the second", func(s source.Snapshot) bool { return len(s.Broken) == 1 })
	o, broken := find(s, "a"), s.Broken[0]
	p := broken.Problems[0]
	row.Saw(t, p.Code, strings.ReplaceAll(p.Error(), b.dir, "DIR"))
	if !url("a", "first")(s) || broken.Path != filepath.Join(b.dir, "b.yaml") || p.Code != chandler.CodeSpecDuplicate || p.Field != "metadata.name" ||
		!strings.Contains(p.Message, "WasmPlugin default/a already comes from file") || !strings.Contains(p.Message, "m.yaml") || p.Hint == "" {
		t.Errorf("%+v", s)
	}
	if len(o.Problems) != 0 || len(o.Warnings) != 1 || !strings.Contains(o.Warnings[0].Message, "b.yaml") {
		t.Errorf("%+v", o)
	}
	b.stop()
	b = start(t, source.DirectoryConfig{Dir: b.dir, Data: b.data})
	if !url("a", "first")(b.last()) {
		t.Error("the older one does not stay over a restart")
	}
	b.remove("m.yaml")
	s = b.await("the second alone", url("a", "second"))
	if o := find(s, "a"); o.UID != uid || o.Generation != 2 {
		t.Errorf("%+v", o)
	}

	// What is in the user's directory is not ours to apply or to delete.
	r := b.apply(doc("a", "url: third"))[0]
	if r.Action != source.Refused || r.Problems[0].Code != chandler.CodeSpecDuplicate || !strings.Contains(r.Problems[0].Message, "b.yaml") {
		t.Errorf("%+v", r)
	}
	row.Saw(t, r.Problems[0].Code, strings.ReplaceAll(r.Problems[0].Error(), b.dir, "DIR"))
	results, err := b.Delete(t.Context(), []chandler.Key{key("a"), key("zzz")})
	if err != nil || results[0].Action != source.Refused || !strings.Contains(results[0].Problems[0].Message, "b.yaml") || results[1].Action != source.NotFound {
		t.Errorf("%+v %v", results, err)
	}
	// The user's goes before what was applied.
	b.apply(doc("c", "url: applied"))
	b.write("c.yaml", doc("c", "url: mine"))
	s = b.await("the user's", url("c", "mine"))
	if len(s.Broken) != 1 || !strings.HasPrefix(s.Broken[0].Path, b.data) || len(find(s, "c").Warnings) != 1 {
		t.Errorf("%+v", s)
	}
}

func TestApply(t *testing.T) {
	t.Parallel()
	b := start(t, source.DirectoryConfig{})
	one := func(manifest string, action source.Action, generation int64) source.Result {
		t.Helper()
		r := b.apply(manifest)[0]
		if r.Action != action || r.Generation != generation || r.Key != key("a") {
			t.Errorf("%+v, want %s in generation %d", r, action, generation)
		}
		return r
	}
	one(doc("a", "url: a"), source.Created, 1)
	if !url("a", "a")(b.last()) {
		t.Error("the answer comes before the snapshot")
	}
	n := len(b.all())
	one("# other\n"+doc("a", "url: a"), source.Unchanged, 1)
	if len(b.all()) != n {
		t.Error("a snapshot for nothing")
	}
	one(doc("a", "url: a2"), source.Configured, 2)
	one(strings.Replace(doc("a", "url: a2"), "name: a", "name: a\n  labels: {x: y}", 1), source.Configured, 2)
	if r := one(doc("a", "url: ftp://a"), source.Refused, 2); r.Problems[0].Code != chandler.CodeURLScheme {
		t.Errorf("%+v", r)
	}
	if !url("a", "a2")(b.last()) || len(find(b.last(), "a").Problems) != 0 {
		t.Error("a refused text came through")
	}

	// Each document is judged by itself; a namespace is put in.
	results, err := b.Apply(t.Context(), source.ApplyRequest{Namespace: "team", Manifest: []byte(
		doc("x", "url: x") + "---\n" + doc("y", "urk: y") + "---\na: [\n---\n" + doc("x", "url: again") + "---\n" + pullSecret("s", `{"auths":{}}`))})
	must(t, err)
	var got []string
	for _, r := range results {
		got = append(got, fmt.Sprintf("%s/%s/%s %s", r.Kind, r.Namespace, r.Name, r.Action))
	}
	want := "WasmPlugin/team/x Created, WasmPlugin/team/y Refused, // Refused, WasmPlugin/team/x Refused, Secret/team/s Created"
	if strings.Join(got, ", ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, ", "), want)
	}
	if p := results[3].Problems[0]; p.Code != chandler.CodeSpecDuplicate {
		t.Errorf("%+v", p)
	}
	before := b.last()
	b.stop()
	b = start(t, source.DirectoryConfig{Data: b.data})
	s := b.last()
	if len(s.Objects) != 2 || s.Objects[1].Namespace != "team" || string(s.Secrets[source.SecretName{Namespace: "team", Name: "s"}].DockerConfigJSON) != `{"auths":{}}` {
		t.Errorf("%+v\nbefore %+v", s, before)
	}
	if st, err := os.Stat(filepath.Join(b.data, "applied", "secret_team_s.yaml")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}

	uid := find(s, "a").UID
	secret := chandler.Key{Kind: source.KindSecret, Namespace: "team", Name: "s"}
	results, err = b.Delete(t.Context(), []chandler.Key{key("a"), key("a"), secret, {Kind: "WasmPlugin", Namespace: "no", Name: "no"}})
	must(t, err)
	for i, want := range []source.Action{source.Deleted, source.NotFound, source.Deleted, source.NotFound} {
		if results[i].Action != want {
			t.Errorf("%+v, want %s", results[i], want)
		}
	}
	if s := b.last(); names(s) != "x" || len(s.Secrets) != 0 {
		t.Errorf("the answer comes before the snapshot: %+v", s)
	}
	one(doc("a", "url: a"), source.Created, 1)
	if o := find(b.last(), "a"); o.UID == uid {
		t.Error("another object of the same name has the old uid")
	}
}

func TestDryRun(t *testing.T) {
	t.Parallel()
	b := start(t, source.DirectoryConfig{})
	dry := func(manifest string) source.Result {
		r, err := b.Apply(t.Context(), source.ApplyRequest{Manifest: []byte(manifest), DryRun: true})
		must(t, err)
		return r[0]
	}
	if r := dry(doc("a", "url: a")); r.Action != source.Created || r.Generation != 1 || len(b.last().Objects) != 0 {
		t.Errorf("%+v", r)
	}
	b.apply(doc("a", "url: a"))
	if r := dry(doc("a", "url: b")); r.Action != source.Configured || r.Generation != 2 || !url("a", "a")(b.last()) {
		t.Errorf("%+v", r)
	}
	if r := dry(doc("a", "url: a")); r.Action != source.Unchanged || r.Generation != 1 {
		t.Errorf("%+v", r)
	}
}

// Names that would make one file name are two objects.
func TestNamesDoNotCollide(t *testing.T) {
	t.Parallel()
	b := start(t, source.DirectoryConfig{})
	long := strings.Repeat("x", 253)
	for _, k := range [][2]string{{"a-b", "c"}, {"a", "b-c"}, {strings.Repeat("n", 63), long}, {strings.Repeat("n", 63), long[:252] + "y"}} {
		r, err := b.Apply(t.Context(), source.ApplyRequest{Manifest: []byte(doc(k[1], "url: a")), Namespace: k[0]})
		must(t, err)
		if r[0].Action != source.Created {
			t.Errorf("%+v", r[0])
		}
	}
	b.stop()
	if s := start(t, source.DirectoryConfig{Data: b.data}).last(); len(s.Objects) != 4 {
		t.Errorf("%d objects", len(s.Objects))
	}
}

func pullSecret(name, config string) string {
	return "apiVersion: v1\nkind: Secret\nmetadata: {name: " + name + "}\ntype: kubernetes.io/dockerconfigjson\nstringData: {.dockerconfigjson: '" + config + "'}\n"
}

func TestForeignAndBrokenDocuments(t *testing.T) {
	t.Parallel()
	b := start(t, source.DirectoryConfig{Dir: plugins(t)})
	b.write("a.yaml", doc("a", "url: a")+"---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n---\n"+pullSecret("s", "no")+"---\n"+doc("b", "url: b"))
	s := b.await("all", has("a b"))
	if len(s.Broken) != 1 || len(s.Broken[0].Problems) != 2 || s.Broken[0].Problems[0].Code != chandler.CodeSpecShape ||
		!strings.HasPrefix(s.Broken[0].Problems[0].Message, "document at line 7: ") || s.Broken[0].Problems[1].Code != chandler.CodeSecretJSON {
		t.Errorf("%+v", s.Broken)
	}
	// Beside somebody else's document a deletion is a deletion.
	b.write("a.yaml", doc("b", "url: b")+"---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n")
	b.await("one less", has("b"))
}

func TestDataInsideDir(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := start(t, source.DirectoryConfig{Dir: dir, Data: filepath.Join(dir, "data")})
	b.apply(doc("a", "url: a"))
	b.write("b.yaml", doc("b", "url: b"))
	if s := b.await("both", has("a b")); len(s.Broken) != 0 {
		t.Errorf("%+v", s.Broken)
	}
}

func TestOddFiles(t *testing.T) {
	t.Parallel()
	b := start(t, source.DirectoryConfig{Dir: plugins(t)})
	b.write("ok.yaml", doc("ok", "url: a"))
	must(t, os.Symlink(b.dir, filepath.Join(b.dir, "loop")))
	must(t, syscall.Mkfifo(filepath.Join(b.dir, "pipe.yaml"), 0o600))
	must(t, os.Symlink("nowhere", filepath.Join(b.dir, "dangling.yaml")))
	b.write(".big", "")
	must(t, os.Truncate(filepath.Join(b.dir, ".big"), 4<<20+1))
	must(t, os.Rename(filepath.Join(b.dir, ".big"), filepath.Join(b.dir, "big.yaml")))
	s := b.await("all of them", func(s source.Snapshot) bool { return len(s.Broken) == 4 && names(s) == "ok" })
	for i, want := range []string{"it has 4194305 bytes, limit 4194304", "no such file", "inside itself", "not a regular file"} {
		if p := s.Broken[i].Problems[0]; !strings.Contains(p.Message, want) {
			t.Errorf("%s: %s, want %s", s.Broken[i].Path, p.Message, want)
		}
	}
}

// A full disk changes nothing, and heals by itself.
func TestFault_F14_State(t *testing.T) {
	t.Parallel()
	disk := &fullDisk{FS: durable.OS()}
	b := start(t, source.DirectoryConfig{Dir: plugins(t), FS: disk})
	b.write("a.yaml", doc("a", "url: a"))
	b.await("a", has("a"))
	disk.set(true)
	if r := b.apply(doc("b", "url: b"))[0]; r.Action != source.Refused || r.Problems[0].Code != chandler.CodeCacheUnwritable {
		t.Errorf("%+v", r)
	}
	b.write("a.yaml", doc("a", "url: a2"))
	disk.await(t)
	if s := b.last(); names(s) != "a" || !url("a", "a")(s) {
		t.Errorf("delivered what is not committed: %+v", s)
	}
	disk.set(false)
	if o := find(b.await("it is written", url("a", "a2")), "a"); o.Generation != 2 {
		t.Errorf("%+v", o)
	}
}

type fullDisk struct {
	durable.FS
	mu      sync.Mutex
	full    bool
	refused int
}

func (d *fullDisk) set(full bool) {
	d.mu.Lock()
	d.full, d.refused = full, 0
	d.mu.Unlock()
}

func (d *fullDisk) await(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) { // between looks
		d.mu.Lock()
		n := d.refused
		d.mu.Unlock()
		if n > 0 {
			return
		}
	}
	t.Fatal("nothing was written")
}

func (d *fullDisk) Create(path string) (durable.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.full {
		d.refused++
		return nil, &os.PathError{Op: "create", Path: path, Err: syscall.ENOSPC}
	}
	return d.FS.Create(path)
}

// State that cannot be read is set aside for a person, every one of it, not destroyed.
func TestFault_F78_UnknownState(t *testing.T) {
	t.Parallel()
	b := start(t, source.DirectoryConfig{})
	b.apply(doc("a", "url: a"))
	b.stop()
	path := filepath.Join(b.data, "objects", "wasmplugin_default_a.json")
	must(t, os.WriteFile(path, []byte(`{"Format": 2}`), 0o600))
	b = start(t, source.DirectoryConfig{Data: b.data})
	if !url("a", "a")(b.last()) {
		t.Errorf("%+v", b.last())
	}
	b.stop()
	must(t, os.WriteFile(path, []byte(`{"Format": 3}`), 0o600))
	start(t, source.DirectoryConfig{Data: b.data})
	for name, want := range map[string]string{".aside": `{"Format": 2}`, ".aside-1": `{"Format": 3}`} {
		if text, err := os.ReadFile(path + name); err != nil || string(text) != want {
			t.Errorf("%s %v", text, err)
		}
	}
}

func TestEditorAfterTheEnd(t *testing.T) {
	t.Parallel()
	b := start(t, source.DirectoryConfig{})
	b.stop()
	if _, err := b.Apply(t.Context(), source.ApplyRequest{}); err == nil {
		t.Error("no error")
	}
	if err := b.Run(t.Context(), b.deliver); err == nil {
		t.Error("a second Run")
	}
}
