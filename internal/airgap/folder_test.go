package airgap_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/airgap"
	"chandler.dev/chandler/internal/fetch"
)

// put loads an archive into a folder.
func put(t testing.TB, dir string, file []byte) {
	t.Helper()
	loading, err := airgap.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer loading.Close()
	a := open(t, file)
	from := a.Client(fetch.Config{Dir: t.TempDir()})
	defer from.Close()
	for _, f := range a.Found() {
		if _, err := from.Export(t.Context(), fetch.Request{Reference: f.Reference}, loading.Repository(f.Reference)); err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
	}
	if err := loading.Commit(); err != nil {
		t.Fatal(err)
	}
}

// reader reads a folder as its only place.
func reader(t testing.TB, dir string) *fetch.Client {
	c := airgap.NewFolder(dir).Client(fetch.Config{Dir: t.TempDir(), Arch: "amd64"})
	t.Cleanup(c.Close)
	return c
}

// TestFolderIsARegistry: what was loaded into a folder is byte for byte what was saved,
// with all that belongs to it.
func TestFolderIsARegistry(t *testing.T) {
	from := newPlace(t)
	names := from.fill(t)
	dir := filepath.Join(t.TempDir(), "made", "artifacts")
	file := from.save(t, names...)
	for range 2 { // the second changes nothing
		put(t, dir, file)
	}
	c := reader(t, dir)
	for _, name := range names {
		want, got := from.all(t, name), &taken{map[string]string{}, map[string]string{}}
		if _, err := c.Export(t.Context(), fetch.Request{Reference: from.ref(t, name)}, got); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: it has not all of it, or more", name)
		}
		look, err := from.client.Look(t.Context(), fetch.Request{Reference: from.ref(t, name)})
		if err != nil {
			t.Fatal(err)
		}
		digest := chandler.ArtifactDigest(look.Artifact.Digest)
		signed, wantErr := from.client.Signatures(t.Context(), from.ref(t, name), digest, nil)
		has, err := c.Signatures(t.Context(), from.ref(t, name), digest, nil)
		if err != nil || wantErr != nil || !reflect.DeepEqual(has, signed) {
			t.Errorf("%s: signatures %+v, %v\nwant %+v, %v", name, has, err, signed, wantErr)
		}
	}
	if _, err := c.Resolve(t.Context(), fetch.Request{Reference: from.ref(t, "team/a:v2")}); !is(err, chandler.CodeNotFound) {
		t.Errorf("a tag that nobody gave: %v", err)
	}
	if _, err := c.Push(t.Context(), from.Addr+"/team/a:v2", []byte("\x00asm"), fetch.PushOptions{}); err == nil {
		t.Error("it can be pushed to")
	}
}

// TestRepositoriesAreApart: what is in one repository is not in another one by its digest
// either, be it an artifact, an entry of an index or a signature: rules of operators are
// about repositories.
func TestRepositoriesAreApart(t *testing.T) {
	from, dir := newPlace(t), t.TempDir()
	file := from.save(t, from.fill(t)...)
	put(t, dir, file)
	a := open(t, file)
	archive := a.Client(fetch.Config{Dir: t.TempDir()})
	defer archive.Close()
	for name, c := range map[string]*fetch.Client{"archive": archive, "folder": reader(t, dir)} {
		own := 0
		for _, f := range a.Found() {
			if f.Reference.Repository != "team/b" {
				continue
			}
			k := &taken{map[string]string{}, map[string]string{}}
			if _, err := c.Export(t.Context(), fetch.Request{Reference: f.Reference}, k); err != nil {
				t.Fatal(err)
			}
			for text := range k.names {
				digest, _, _ := strings.Cut(text, " ")
				own++
				elsewhere := from.ref(t, "team/a@"+digest)
				if _, err := c.Export(t.Context(), fetch.Request{Reference: elsewhere}, k); !is(err, chandler.CodeNotFound) {
					t.Errorf("%s: %s of %s is in %s, too: %v", name, digest, f.Name, elsewhere.Repository, err)
				}
			}
		}
		if own < 8 {
			t.Errorf("%s: only %d manifests were asked for", name, own)
		}
	}
}

func is(err error, code chandler.Code) bool {
	var p *chandler.Problem
	return errors.As(err, &p) && p.Code == code
}

func resolved(t testing.TB, c *fetch.Client, ref chandler.Reference) string {
	t.Helper()
	r, err := c.Resolve(t.Context(), fetch.Request{Reference: ref})
	if err != nil {
		t.Fatal(err)
	}
	return string(r.Digest)
}

// TestFolderTags: a tag is that of the artifact that was loaded last, for readers that
// have looked before, too; the one before is still there by its digest.
func TestFolderTags(t *testing.T) {
	from, dir := newPlace(t), t.TempDir()
	ref := from.ref(t, "team/a:v1")
	push := func(content string) ([]byte, string) {
		t.Helper()
		d, err := from.client.Push(t.Context(), from.Addr+"/team/a:v1", []byte("\x00asm\x01\x00\x00\x00"+content), fetch.PushOptions{})
		if err != nil {
			t.Fatal(err)
		}
		from.sign(t, ref, string(d))
		return from.save(t, "team/a:v1"), string(d)
	}
	one, first := push("one")
	two, second := push("two")
	c := reader(t, dir)
	for _, step := range []struct {
		file []byte
		want string
	}{{one, first}, {two, second}, {one, first}, {two, second}} {
		put(t, dir, step.file)
		if got := resolved(t, c, ref); got != step.want {
			t.Errorf("the tag is %s, want %s", got, step.want)
		}
		pinned := ref
		pinned.Tag, pinned.Digest = "", chandler.ArtifactDigest(first)
		if got := resolved(t, c, pinned); got != first {
			t.Errorf("by its digest it is %s, want %s", got, first)
		}
		if s, err := c.Signatures(t.Context(), ref, chandler.ArtifactDigest(first), nil); err != nil || len(s.Found) != 3 {
			t.Errorf("%d signatures, %v", len(s.Found), err)
		}
	}
	raw, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index struct{ Manifests []json.RawMessage }
	if err := json.Unmarshal(raw, &index); err != nil || len(index.Manifests) > 8 {
		t.Errorf("%d entries after loading two files twice, %v:\n%s", len(index.Manifests), err, raw)
	}
}

// TestFolderWithoutCommit: a load that breaks off is none.
func TestFolderWithoutCommit(t *testing.T) {
	from, dir := newPlace(t), t.TempDir()
	from.fill(t)
	put(t, dir, from.save(t, "team/a:v1"))
	before, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	loading, err := airgap.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := airgap.Load(dir); !is(err, chandler.CodeCacheLocked) {
		t.Errorf("two load at once: %v", err)
	}
	ref := from.ref(t, "team/b:v1")
	if _, err := from.client.Export(t.Context(), fetch.Request{Reference: ref}, loading.Repository(ref)); err != nil {
		t.Fatal(err)
	}
	if err := loading.Close(); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(filepath.Join(dir, "index.json")); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the index changed, or %v", err)
	}
	if _, err := reader(t, dir).Resolve(t.Context(), fetch.Request{Reference: ref}); !is(err, chandler.CodeNotFound) {
		t.Errorf("what was not committed is there: %v", err)
	}
}

// TestFolderDamaged: what is damaged is refused, with its reason and without the
// folder's place, and loading the file again mends it.
func TestFolderDamaged(t *testing.T) {
	from := newPlace(t)
	from.fill(t)
	file := from.save(t, "team/a:v1")
	ref := from.ref(t, "team/a:v1")
	for _, c := range []struct {
		name, want string
		damage     func(dir, manifest, layer string) error
	}{
		{"not there", "no such file or directory", func(dir, _, _ string) error { return os.RemoveAll(dir) }},
		{"no index", "index.json: no such file", func(dir, _, _ string) error { return os.Remove(filepath.Join(dir, "index.json")) }},
		{"no JSON", "index.json of the folder cannot be read", func(dir, _, _ string) error {
			return os.WriteFile(filepath.Join(dir, "index.json"), []byte("["), 0o600)
		}},
		{"large index", "index.json is over 1048576 bytes", func(dir, _, _ string) error {
			return os.WriteFile(filepath.Join(dir, "index.json"), bytes.Repeat([]byte(" "), 1<<20+1), 0o600)
		}},
		{"other manifest", "has other bytes", func(_, manifest, _ string) error { return os.WriteFile(manifest, []byte("{}"), 0o600) }},
		{"manifest gone", "the folder has no manifest", func(_, manifest, _ string) error { return os.Remove(manifest) }},
		{"other layer", "gives other bytes", func(_, _, layer string) error {
			b, err := os.ReadFile(layer)
			if err == nil {
				b[len(b)-1] ^= 1
				err = os.WriteFile(layer, b, 0o600)
			}
			return err
		}},
		{"link that leads outside", "path escapes", func(dir, _, layer string) error {
			if err := os.Rename(layer, filepath.Join(filepath.Dir(dir), "elsewhere")); err != nil {
				return err
			}
			return os.Symlink("../../../elsewhere", layer)
		}},
		{"pipe", "not a file", func(_, _, layer string) error {
			if err := os.Remove(layer); err != nil {
				return err
			}
			return syscall.Mkfifo(layer, 0o600)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "artifacts")
			put(t, dir, file)
			look, err := reader(t, dir).Look(t.Context(), fetch.Request{Reference: ref})
			if err != nil {
				t.Fatal(err)
			}
			blob := func(digest string) string {
				return filepath.Join(dir, "blobs/sha256", strings.TrimPrefix(digest, "sha256:"))
			}
			if err := c.damage(dir, blob(look.Manifest.Digest), blob(look.Layers[0].Digest)); err != nil {
				t.Fatal(err)
			}
			_, err = reader(t, dir).Pull(t.Context(), fetch.Request{Reference: ref}, nowhere{})
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), dir) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			var e *fetch.Error
			if !errors.As(err, &e) || e.Problem.Hint == "" {
				t.Errorf("no hint: %v", err)
			}
			if c.name == "no JSON" || c.name == "large index" {
				return // whose index it was is not known any more
			}
			put(t, dir, file)
			if _, err := reader(t, dir).Pull(t.Context(), fetch.Request{Reference: ref}, nowhere{}); err != nil {
				t.Errorf("loaded again: %v", err)
			}
		})
	}
}

// nowhere takes modules in and keeps none.
type nowhere struct{}

func (nowhere) Ingest(r io.Reader, _ chandler.ModuleDigest) (chandler.ModuleDigest, int64, error) {
	return fetch.Copy(io.Discard, r)
}

// TestFolderIsBounded: a folder does not take more than it can be read with.
func TestFolderIsBounded(t *testing.T) {
	dir := t.TempDir()
	loading, err := airgap.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer loading.Close()
	ref, problem := chandler.ParseReference("registry.example/a:v1")
	if problem != nil {
		t.Fatal(problem)
	}
	to := loading.Repository(ref)
	raw := []byte("{}")
	d := fetch.Descriptor{MediaType: typeManifest, Digest: string(chandler.Digest[chandler.ArtifactDigest](raw)), Size: int64(len(raw))}
	for i := range 1025 {
		if err := to.Manifest(t.Context(), fetch.Manifest{Descriptor: d, Raw: raw, Tag: fmt.Sprint("v", i), Root: true}); err != nil {
			t.Fatal(err)
		}
	}
	if err := loading.Commit(); !is(err, chandler.CodeTarEntries) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "index.json")); !os.IsNotExist(err) {
		t.Errorf("an index was written: %v", err)
	}
}

// TestFolderWhileLoaded: readers see a folder as it was or as it is, whatever is
// loaded meanwhile.
func TestFolderWhileLoaded(t *testing.T) {
	from, dir := newPlace(t), t.TempDir()
	ref := from.ref(t, "team/a:v1")
	var files [][]byte
	var digests []string
	for _, content := range []string{"one", "two"} {
		d, err := from.client.Push(t.Context(), from.Addr+"/team/a:v1", []byte("\x00asm\x01\x00\x00\x00"+content), fetch.PushOptions{})
		if err != nil {
			t.Fatal(err)
		}
		files, digests = append(files, from.save(t, "team/a:v1")), append(digests, string(d))
	}
	put(t, dir, files[0])
	c := reader(t, dir)
	done := make(chan struct{})
	var reading sync.WaitGroup
	for range 2 {
		reading.Go(func() {
			for {
				a, err := c.Pull(t.Context(), fetch.Request{Reference: ref}, nowhere{})
				if err != nil || !slices.Contains(digests, string(a.Digest)) {
					t.Errorf("got %s, %v", a.Digest, err)
					return
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for i := range 10 {
		put(t, dir, files[i%2])
	}
	close(done)
	reading.Wait()
}
