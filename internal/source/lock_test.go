package source_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/source"
)

var (
	digestA = "sha256:" + strings.Repeat("a", 64)
	digestB = "sha256:" + strings.Repeat("b", 64)
	noon    = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
)

func reference(t testing.TB, url string) chandler.Reference {
	t.Helper()
	ref, p := chandler.ParseReference(url)
	if p != nil {
		t.Fatal(p)
	}
	return ref
}

// TestLock: a lock file is the same for the same lock, sorted, and a time changes only
// with its digest.
func TestLock(t *testing.T) {
	t.Parallel()
	a, b, c := reference(t, "oci://reg.example/a"), reference(t, "oci://reg.example/b:v1"), reference(t, "https://files.example/c.wasm?token=canary")
	l, changes := source.Lock{}.Update([]source.Resolved{{c, digestA}, {b, digestA}, {a, digestB}, {b, digestB}}, noon, true)
	if want := []source.LockChange{{"https://files.example/c.wasm?token=***", "", digestA}, {"oci://reg.example/a", "", digestB}, {"oci://reg.example/b:v1", "", digestA}}; !reflect.DeepEqual(changes, want) {
		t.Errorf("changes: %v", changes)
	}
	_, body, _ := strings.Cut(string(l.Text()), "format")
	if want := `: 1
locked:
  - url: https://files.example/c.wasm?token=canary
    digest: ` + digestA + `
    since: "2026-11-28T12:00:00Z"
  - url: oci://reg.example/a:latest
    digest: ` + digestB + `
    since: "2026-11-28T12:00:00Z"
  - url: oci://reg.example/b:v1
    digest: ` + digestA + `
    since: "2026-11-28T12:00:00Z"
`; body != want {
		t.Errorf("got %s", l.Text())
	}
	again, problems := source.ParseLock(l.Text())
	if len(problems) > 0 || !reflect.DeepEqual(again, l) {
		t.Errorf("read back: %v, %v", again, problems)
	}
	next, changes := again.Update([]source.Resolved{{a, digestA}, {b, digestA}}, noon.Add(time.Hour), true)
	if want := []source.LockChange{{"https://files.example/c.wasm?token=***", digestA, ""}, {"oci://reg.example/a", digestB, digestA}}; !reflect.DeepEqual(changes, want) {
		t.Errorf("changes: %v", changes)
	}
	if e, ok := next.Get(reference(t, "oci://reg.example/a:latest")); !ok || e != (source.LockEntry{Digest: digestA, Since: noon.Add(time.Hour)}) {
		t.Errorf("a: %v", e)
	}
	if part, changes := next.Update([]source.Resolved{{a, digestB}}, noon, false); len(changes) != 1 || strings.Count(string(part.Text()), "url:") != 2 {
		t.Errorf("of a part %v changes: %s", changes, part.Text())
	}
	if e, _ := next.Get(b); e.Since != noon {
		t.Errorf("b is as it was, and dated %v", e.Since)
	}
}

// TestLockMistakes: a lock file is read strictly, and each mistake has its place.
func TestLockMistakes(t *testing.T) {
	t.Parallel()
	entry := func(url, digest string) string { return "{url: '" + url + "', digest: '" + digest + "'}" }
	for text, want := range map[string]string{
		"":                                  "no single document",
		"format: 1\n---\nformat: 1":         "no single document",
		"format: [":                         "SpecParse",
		"format: 2\nlocked: []":             "format: format 2 is not known",
		"locked: []":                        "format: format is missing",
		"format: 1\nlocke: []":              `locke: unknown field "locke"; did you mean locked?`,
		"format: 1\nlocked: {}":             "locked: locked must be a list",
		"format: 1\nlocked: [7]":            "locked[0]: locked[0] must be an object",
		"format: 1\nlocked: [{url: a/b}]":   "locked[0].digest: digest is missing",
		"format: 1\nlocked: [{digest: ''}]": "locked[0].url: url is missing",
		"format: 1\nlocked: [" + entry("oci://h.example/a", "sha256:A") + "]":                                                 `locked[0].digest: digest "sha256:A" is none`,
		"format: 1\nlocked: [" + entry("ftp://h.example/a", digestA) + "]":                                                    "locked[0].url: ",
		"format: 1\nlocked: [" + entry("file:///a", digestA) + "]":                                                            "locked[0].url: a url with a digest, or of a file",
		"format: 1\nlocked: [" + entry("oci://h.example/a@"+digestA, digestA) + "]":                                           "locked[0].url: a url with a digest",
		"format: 1\nlocked: [" + entry("oci://h.example/a", digestA) + "," + entry("oci://h.example/a:latest", digestB) + "]": "locked[1].url: the url is there twice",
		"format: 1\nlocked: [{url: 'oci://h.example/a', digest: '" + digestA + "', since: yesterday}]":                        "locked[0].since: ",
		"format: 1\nlocked: [" + strings.Repeat("{},", 10_001) + "]":                                                          "10001 references, limit 10000",
		"format: 1\n#" + strings.Repeat("x", 4<<20):                                                                           "limit 4194304",
		"format: 1\nlocked: &a [*a]":                                                                                          "stands inside",
	} {
		l, problems := source.ParseLock([]byte(text))
		if len(problems) == 0 || !reflect.DeepEqual(l, source.Lock{}) {
			t.Errorf("%.80s: taken", text)
			continue
		}
		if got := problems[0].Error() + string(problems[0].Code); !strings.Contains(got, want) {
			t.Errorf("%.80s: got %s, want %s", text, got, want)
		}
	}
}

// TestLockRoundTrip: whatever is locked is read back.
func TestLockRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		urls := rapid.SliceOfN(rapid.StringMatching(`(oci://[a-z]{1,5}\.example/[a-z]{1,4}(:[a-z0-9]{1,4})?|https?://[a-z]{1,5}\.example/[a-zA-Z0-9:#&*!|'"% -]{0,12})`), 0, 6).Draw(t, "urls")
		var found []source.Resolved
		for _, url := range urls {
			if ref, p := chandler.ParseReference(url); p == nil {
				found = append(found, source.Resolved{Reference: ref, Digest: rapid.SampledFrom([]string{digestA, digestB}).Draw(t, "digest")})
			}
		}
		l, _ := source.Lock{}.Update(found, noon, true)
		again, problems := source.ParseLock(l.Text())
		if len(problems) > 0 || !reflect.DeepEqual(again, l) {
			t.Fatalf("%s is read as %v, %v", l.Text(), again, problems)
		}
		if _, changes := again.Update(found, noon.Add(time.Hour), true); len(changes) > 0 {
			t.Errorf("changes: %v", changes)
		}
	})
}

// FuzzLock: a lock file is taken or refused with a reason, and what is taken is
// written and read back the same.
func FuzzLock(f *testing.F) {
	f.Add("format: 1\nlocked:\n- {url: 'oci://h.example/a:v1', digest: '" + digestA + "', since: '2026-11-28T12:00:00Z'}\n")
	f.Add("format: 1\nlocked: [{url: h.example/a, digest: &d '" + digestA + "'}, {url: 'http://h.example/x?q', digest: *d}]")
	f.Fuzz(func(t *testing.T, text string) {
		l, problems := source.ParseLock([]byte(text))
		if len(problems) > 0 {
			return
		}
		again, problems := source.ParseLock(l.Text())
		if len(problems) > 0 || !reflect.DeepEqual(again, l) {
			t.Errorf("%q is %v, read back %v, %v", text, l, again, problems)
		}
	})
}

func lockOf(entries ...string) string {
	text := "format: 1\nlocked: []\n"
	for i := 0; i+1 < len(entries); i += 2 {
		text = strings.Replace(text, "[]", "", 1) + "- {url: '" + entries[i] + "', digest: '" + entries[i+1] + "'}\n"
	}
	return text
}

// TestLockInDirectory: what the lock file of a directory says is said of the objects,
// applied ones too, and follows the file. While the file cannot be read, what it last
// said holds, and nothing else is to be resolved.
func TestLockInDirectory(t *testing.T) {
	t.Parallel()
	dir, data := t.TempDir(), t.TempDir()
	write := func(name, text string) {
		t.Helper()
		temp := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(temp, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(temp, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	plugin := func(name, url string) string {
		return "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: " + name + "}\nspec: {url: '" + url + "'}\n"
	}
	write("a.yaml", plugin("a", "oci://reg.example/a:v1")+"---\n"+plugin("b", "oci://reg.example/b:v1")+"---\n"+plugin("c", "oci://reg.example/c@"+digestA)+"---\n"+plugin("d", "file:///d.wasm"))
	write(source.LockName, lockOf("reg.example/a:v1", digestA))
	b := start(t, source.DirectoryConfig{Dir: dir, Data: data})
	// says gives what is said of each object: its digest, "held" or "-".
	says := func(s source.Snapshot) string {
		var words []string
		for _, o := range s.Objects {
			switch w := o.Plugin.Wasm; {
			case w.Held && len(o.Problems) == 1 && o.Problems[0].Code == chandler.CodeLock && o.Problems[0].Field == "spec.url":
				words = append(words, "held")
			case w.Held || len(o.Problems) > 0:
				words = append(words, "?")
			case w.Locked != "":
				words = append(words, w.Locked[:1])
			default:
				words = append(words, "-")
			}
		}
		return strings.Join(words, " ")
	}
	await := func(want string) {
		t.Helper()
		b.await(want, func(s source.Snapshot) bool { return says(s) == want })
	}
	await("a - - -")
	if got := b.last().Objects[0].Plugin.Wasm.EffectivePullPolicy(); got != chandler.PullIfNotPresent {
		t.Errorf("of what is locked the pull policy is %s", got)
	}
	generation := b.last().Objects[0].Generation
	write(source.LockName, lockOf("reg.example/a:v1", digestB, "reg.example/b:v1", digestA))
	await("b a - -")
	if got := b.last().Objects[0].Generation; got != generation {
		t.Errorf("another lock made generation %d of %d", got, generation)
	}
	write(source.LockName, "format: 1\n<<<<<<< ours\n")
	await("b a - -")
	b.await("a broken file", func(s source.Snapshot) bool {
		return len(s.Broken) == 1 && strings.HasSuffix(s.Broken[0].Path, source.LockName)
	})
	if _, err := b.Apply(t.Context(), source.ApplyRequest{Manifest: []byte(plugin("e", "oci://reg.example/e:v1"))}); err != nil {
		t.Fatal(err)
	}
	await("b a - - held")

	b.stop()
	b = start(t, source.DirectoryConfig{Dir: dir, Data: data})
	await("held held - - held")
	write(source.LockName, lockOf("reg.example/e:v1", digestA))
	await("- - - - a")
	if err := os.Remove(filepath.Join(dir, source.LockName)); err != nil {
		t.Fatal(err)
	}
	await("- - - - -")

	// A lock file in a folder below, or applied, is none.
	if err := os.Mkdir(filepath.Join(dir, "below"), 0o700); err != nil {
		t.Fatal(err)
	}
	write("below/"+source.LockName, "format: 7")
	write("f.yaml", plugin("f", "oci://reg.example/f:v1"))
	await("- - - - - -")
	if broken := b.last().Broken; len(broken) > 0 {
		t.Errorf("broken: %v", broken)
	}
}

// A folder that is not there yet has no lock file.
func TestLockOfMissingDirectory(t *testing.T) {
	t.Parallel()
	b := start(t, source.DirectoryConfig{Dir: filepath.Join(t.TempDir(), "later")})
	results, err := b.Apply(t.Context(), source.ApplyRequest{Manifest: []byte("apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: a}\nspec: {url: 'oci://reg.example/a:v1'}\n")})
	if err != nil || len(results) != 1 || results[0].Action != source.Created {
		t.Fatal(results, err)
	}
	if o := b.last().Objects[0]; o.Plugin.Wasm.Held || len(o.Problems) > 0 {
		t.Errorf("%+v", o)
	}
}

// Two who read the same folder with a lock file place its resources alike, whatever they
// saw before and when; what one of them was given besides has a time of its own.
func TestLockPlaces(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	plugin := func(name string) string {
		return "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: " + name + "}\nspec: {url: 'oci://reg.example/" + name + ":v1'}\n"
	}
	write("z.yaml", plugin("z"))
	write(source.LockName, "format: 1\nlocked: []\n")
	here := start(t, source.DirectoryConfig{Dir: dir, Data: t.TempDir()})
	here.await("z", func(s source.Snapshot) bool { return len(s.Objects) == 1 })
	write("a.yaml", plugin("a"))
	both := func(s source.Snapshot) bool { return len(s.Objects) == 2 }
	here.await("a and z", both)
	there := start(t, source.DirectoryConfig{Dir: dir, Data: t.TempDir()})
	there.await("a and z", both)
	for i := range 2 {
		one, other := here.last().Objects[i], there.last().Objects[i]
		if !one.Plugin.Created.Equal(other.Plugin.Created) || !one.Plugin.Created.Equal(here.last().Objects[0].Plugin.Created) {
			t.Errorf("%s stands where %v and %v have it", one.Name, one.Plugin.Created, other.Plugin.Created)
		}
		if time.Since(one.Created) > time.Hour {
			t.Errorf("%s is shown to be of %v", one.Name, one.Created)
		}
	}
	if _, err := here.Apply(t.Context(), source.ApplyRequest{Manifest: []byte(plugin("b"))}); err != nil {
		t.Fatal(err)
	}
	here.await("an applied one", func(s source.Snapshot) bool {
		return len(s.Objects) == 3 && s.Objects[1].Plugin.Created.Equal(s.Objects[1].Created)
	})
}
