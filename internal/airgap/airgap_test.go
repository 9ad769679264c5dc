package airgap_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/airgap"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/testenv/registry"
)

func TestMain(m *testing.M) { leaks.Main(m) }

const (
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeBundle   = "application/vnd.dev.sigstore.bundle.v0.3+json"
)

type object = map[string]any

// place is a registry and who speaks to it.
type place struct {
	*registry.Registry
	client *fetch.Client
}

func newPlace(t testing.TB) place {
	t.Helper()
	r, err := registry.Start(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	c := fetch.New(fetch.Config{Dir: t.TempDir(), Arch: "amd64"})
	t.Cleanup(c.Close)
	return place{r, c}
}

func (p place) ref(t testing.TB, name string) chandler.Reference {
	t.Helper()
	ref, problem := chandler.ParseReference(p.Addr + "/" + name)
	if problem != nil {
		t.Fatal(problem)
	}
	return ref
}

// withoutReferrers makes the registry one that does not know the referrers API.
func (p place) withoutReferrers() {
	p.Fail(func(r *http.Request) (int, bool) {
		return http.StatusNotFound, strings.Contains(r.URL.Path, "/referrers/")
	})
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (p place) put(t testing.TB, repository, tag, mediaType string, m object) string {
	t.Helper()
	raw := marshal(t, m)
	if tag == "" {
		tag = string(chandler.Digest[chandler.ArtifactDigest](raw))
	}
	d, err := p.PutManifest(repository, tag, mediaType, raw)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (p place) sign(t testing.TB, ref chandler.Reference, digest string) {
	t.Helper()
	for _, s := range []fetch.Signature{
		{MediaType: typeBundle, Content: []byte(`{"of":"` + digest + `"}`), Annotations: map[string]string{"dev.sigstore.bundle.predicateType": "https://sigstore.dev/cosign/sign/v1"}},
		{MediaType: fetch.TypeSimpleSigning, Content: []byte("1 " + digest), Annotations: map[string]string{"dev.cosignproject.cosign/signature": "x"}},
		{MediaType: fetch.TypeSimpleSigning, Content: []byte("2 " + digest), Annotations: map[string]string{"dev.cosignproject.cosign/signature": "y"}},
	} {
		if err := p.client.AddSignature(t.Context(), ref, chandler.ArtifactDigest(digest), s, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// fill puts artifacts of several layouts into a registry, signed and with what else
// refers to them, and gives their names.
func (p place) fill(t testing.TB) []string {
	t.Helper()
	push := func(name string, opts fetch.PushOptions) string {
		t.Helper()
		d, err := p.client.Push(t.Context(), p.Addr+"/"+name, []byte("\x00asm\x01\x00\x00\x00"+name), opts)
		if err != nil {
			t.Fatal(err)
		}
		return string(d)
	}
	a := push("team/a:v1", fetch.PushOptions{Annotations: map[string]string{"k": "v"}, Documents: fetch.Documents{Schema: []byte("{}"), Readme: []byte("# R")}})
	p.sign(t, p.ref(t, "team/a"), a)
	b := push("team/b:v1", fetch.PushOptions{Layout: fetch.LayoutCompat})
	if _, err := p.PutArtifact("team/c", "x", "application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.container.image.v1+json",
		"application/vnd.docker.image.rootfs.diff.tar", "no tar, which is none of our business"); err != nil {
		t.Fatal(err)
	}
	// An index of two, one signed by itself, and the index, too.
	var entries []object
	for _, arch := range []string{"amd64", "arm64"} {
		d := push("team/b:"+arch, fetch.PushOptions{Layout: fetch.LayoutCompat, Annotations: map[string]string{"arch": arch}})
		entries = append(entries, object{"mediaType": typeManifest, "digest": d, "size": 1, "platform": object{"os": "linux", "architecture": arch}})
	}
	p.sign(t, p.ref(t, "team/b"), entries[0]["digest"].(string))
	all := p.put(t, "team/b", "all", typeIndex, object{"schemaVersion": 2, "mediaType": typeIndex, "manifests": entries})
	p.sign(t, p.ref(t, "team/b"), all)
	// A list of parts, for which nobody here has a use.
	if _, err := p.PutBlob("team/b", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	p.put(t, "team/b", "", typeManifest, object{
		"schemaVersion": 2, "mediaType": typeManifest, "artifactType": "application/spdx+json", "config": registry.Descriptor("application/vnd.oci.empty.v1+json", []byte("{}")),
		"layers": []object{registry.Descriptor("application/spdx+json", []byte("{}"))}, "subject": object{"mediaType": typeManifest, "digest": b, "size": 1},
	})
	return []string{"team/a:v1", "team/b:v1", "team/b:all", "team/c:x", "team/b@" + entries[1]["digest"].(string)}
}

func (p place) save(t testing.TB, names ...string) []byte {
	t.Helper()
	var file bytes.Buffer
	w := airgap.NewWriter(&file, 0)
	for _, name := range names {
		ref := p.ref(t, name)
		if _, err := p.client.Export(t.Context(), fetch.Request{Reference: ref}, w.Repository(ref)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

func open(t testing.TB, file []byte) *airgap.Archive {
	t.Helper()
	a, err := airgap.Open(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// load pushes an archive, each artifact to its own name.
func (p place) load(t testing.TB, file []byte) {
	t.Helper()
	a := open(t, file)
	from := a.Client(fetch.Config{Dir: t.TempDir()})
	defer from.Close()
	for _, f := range a.Found() {
		to, err := p.client.Repository(t.Context(), p.ref(t, f.Reference.Repository), nil)
		if err == nil {
			_, err = from.Export(t.Context(), fetch.Request{Reference: f.Reference}, to)
		}
		if err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
	}
}

// taken keeps all that is exported.
type taken struct {
	blobs map[string]string
	names map[string]string // manifests by digest and tag
}

func (k *taken) Blob(_ context.Context, d fetch.Descriptor, r io.ReaderAt) error {
	b, err := io.ReadAll(io.NewSectionReader(r, 0, 1<<30))
	k.blobs[d.Digest] = string(b)
	return err
}

func (k *taken) Manifest(_ context.Context, m fetch.Manifest) error {
	k.names[fmt.Sprintf("%s %s %s %v %s", m.Digest, m.MediaType, m.Tag, m.Root, m.Subject)] = string(m.Raw)
	return nil
}

func (p place) all(t testing.TB, name string) *taken {
	t.Helper()
	k := &taken{map[string]string{}, map[string]string{}}
	if _, err := p.client.Export(t.Context(), fetch.Request{Reference: p.ref(t, name)}, k); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return k
}

// TestLoadIsSaved: what is loaded into an empty registry is byte for byte what was
// saved, with all that belongs to it, whatever either registry knows of referrers.
func TestLoadIsSaved(t *testing.T) {
	for _, c := range []struct{ from, to bool }{{true, true}, {true, false}, {false, true}, {false, false}} {
		from, to := newPlace(t), newPlace(t)
		if !c.from {
			from.withoutReferrers()
		}
		if !c.to {
			to.withoutReferrers()
		}
		names := from.fill(t)
		file := from.save(t, names...)
		if again := from.save(t, names...); !bytes.Equal(again, file) {
			t.Error("saved again it is another file")
		}
		to.load(t, file)
		manifests := 0
		for _, name := range names {
			want, got := from.all(t, name), to.all(t, name)
			manifests += len(want.names)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%v %s: got %q\nwant %q", c, name, slices.Sorted(maps.Keys(got.names)), slices.Sorted(maps.Keys(want.names)))
			}
		}
		want := 14
		if !c.from {
			want-- // the list of parts was put there without a word to the tag
		}
		if manifests != want {
			t.Errorf("%v: %d manifests were compared, want %d", c, manifests, want)
		}
		ref := to.ref(t, "team/a:v1")
		d, err := to.client.Documents(t.Context(), fetch.Request{Reference: ref})
		if err != nil || string(d.Schema) != "{}" || string(d.Readme) != "# R" {
			t.Errorf("%v: documents %q, %v", c, d, err)
		}
		if again := to.save(t, names[0]); len(again) == 0 {
			t.Error("what was loaded cannot be saved")
		}
	}
}

// TestArchiveIsARegistry: an archive answers what the registry did that it is from.
func TestArchiveIsARegistry(t *testing.T) {
	from := newPlace(t)
	names := from.fill(t)
	a := open(t, from.save(t, names...))
	c := a.Client(fetch.Config{Dir: t.TempDir(), Arch: "amd64"})
	defer c.Close()
	var found []string
	for _, f := range a.Found() {
		found = append(found, strings.TrimPrefix(f.Name, from.Addr+"/"))
		if !f.Complete {
			t.Errorf("%s: not complete", f.Name)
		}
	}
	if !slices.Equal(found, names) {
		t.Errorf("found %q, want %q", found, names)
	}
	for _, name := range names {
		ref := from.ref(t, name)
		want, wantErr := from.client.Look(t.Context(), fetch.Request{Reference: ref})
		got, err := c.Look(t.Context(), fetch.Request{Reference: ref})
		if err != nil || wantErr != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v\nwant %+v, %v", name, got, err, want, wantErr)
		}
		digest := chandler.ArtifactDigest(want.Artifact.Digest)
		signed, wantErr := from.client.Signatures(t.Context(), ref, digest, nil)
		has, err := c.Signatures(t.Context(), ref, digest, nil)
		if err != nil || wantErr != nil || !reflect.DeepEqual(has, signed) {
			t.Errorf("%s: got %+v, %v\nwant %+v, %v", name, has, err, signed, wantErr)
		}
	}
	if _, err := c.Resolve(t.Context(), fetch.Request{Reference: from.ref(t, "team/a:v2")}); err == nil {
		t.Error("it has a tag that nobody gave it")
	}
	if _, err := c.Push(t.Context(), from.Addr+"/team/a:v2", []byte("\x00asm"), fetch.PushOptions{}); err == nil {
		t.Error("it can be pushed to")
	}
}

// file is an entry of a tar.
type file struct {
	name    string
	content string
	change  func(*tar.Header)
}

func tarOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Size: int64(len(f.content)), Mode: 0o644, Typeflag: tar.TypeReg}
		if strings.HasSuffix(f.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if f.change != nil {
			f.change(h)
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func blob(content string) file {
	return file{name: "blobs/sha256/" + chandler.Digest[chandler.ModuleDigest]([]byte(content)).Hex(), content: content}
}

const layoutFile = `{"imageLayoutVersion":"1.0.0"}`

// foreign makes an archive of one artifact as other tools do, whose index's entry has
// these annotations.
func foreign(t testing.TB, annotations object, more ...file) []byte {
	t.Helper()
	config, wasm := "{}", "\x00asm\x01\x00\x00\x00"
	m := string(marshal(t, object{
		"schemaVersion": 2, "mediaType": typeManifest, "config": registry.Descriptor(typeConfig, []byte(config)),
		"layers": []object{registry.Descriptor("application/wasm", []byte(wasm))},
	}))
	d := registry.Descriptor(typeManifest, []byte(m))
	d["annotations"] = annotations
	index := string(marshal(t, object{"schemaVersion": 2, "manifests": []object{d}}))
	return tarOf(t, append([]file{{name: "./"}, {name: "blobs/"}, {name: "./index.json", content: index}, {name: "oci-layout", content: layoutFile}, blob(config), blob(wasm), blob(m)}, more...)...)
}

// TestForeignArchives: what other tools write is read, by the name that it has.
func TestForeignArchives(t *testing.T) {
	for _, c := range []struct {
		name        string
		annotations object
		want        string // repository and tag
		complete    bool
	}{
		{"docker save", object{"io.containerd.image.name": "docker.io/team/a:v1", "org.opencontainers.image.ref.name": "v1"}, "team/a:v1", true},
		{"skopeo or buildah with a whole name", object{"org.opencontainers.image.ref.name": "localhost:5000/team/a:v1"}, "team/a:v1", true},
		{"oras or skopeo with a tag", object{"org.opencontainers.image.ref.name": "v1"}, "unnamed:v1", false},
		{"no name", nil, "unnamed:", false},
	} {
		a := open(t, foreign(t, c.annotations, file{name: "manifest.json", content: "[]"}, file{name: "repositories", content: "{}"}))
		if len(a.Found()) != 1 {
			t.Fatalf("%s: %+v", c.name, a.Found())
		}
		f := a.Found()[0]
		if got := f.Reference.Repository + ":" + f.Reference.Tag; got != c.want || f.Complete != c.complete {
			t.Errorf("%s: %s, %v", c.name, got, f.Complete)
		}
		cl := a.Client(fetch.Config{Dir: t.TempDir()})
		seen, err := cl.Look(t.Context(), fetch.Request{Reference: f.Reference})
		if err != nil || seen.Problem != nil || len(seen.Layers) != 1 || !seen.Layers[0].Module {
			t.Errorf("%s: %+v, %v", c.name, seen, err)
		}
		cl.Close()
	}
}

// TestHostileArchives: what is refused, and with which words.
func TestHostileArchives(t *testing.T) {
	good := object{"org.opencontainers.image.ref.name": "reg.example/a:v1"}
	other := "sha256:" + strings.Repeat("0", 64)
	entry := func(digest string) string {
		return string(marshal(t, object{"schemaVersion": 2, "manifests": []object{{"mediaType": typeManifest, "digest": digest, "size": 1, "annotations": good}}}))
	}
	whole := foreign(t, good)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(whole); err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	twice := string(marshal(t, object{"manifests": []object{
		{"digest": string(chandler.Digest[chandler.ArtifactDigest]([]byte("{}"))), "annotations": good},
		{"digest": string(chandler.Digest[chandler.ArtifactDigest]([]byte(`{"a":1}`))), "annotations": good},
	}}))
	link := func(h *tar.Header) { h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, "/etc/passwd", 0 }
	many := make([]file, 16<<10+1)
	for i := range many {
		many[i] = file{name: fmt.Sprintf("x%d", i)}
	}
	layout := file{name: "oci-layout", content: layoutFile}
	for _, c := range []struct {
		name  string
		bytes []byte
		code  chandler.Code
		text  string
	}{
		{"climbs", foreign(t, good, file{name: "../x"}), chandler.CodeTarPath, `leaves the archive: "../x"`},
		{"climbs inside", foreign(t, good, file{name: "blobs/../../x"}), chandler.CodeTarPath, "leaves the archive"},
		{"absolute", foreign(t, good, file{name: "/etc/cron.d/x"}), chandler.CodeTarPath, "leaves the archive"},
		{"backslash", foreign(t, good, file{name: `blobs\..\x`}), chandler.CodeTarPath, "leaves the archive"},
		{"long name", foreign(t, good, file{name: strings.Repeat("a", 300)}), chandler.CodeTarPath, "has 300 bytes, limit 255"},
		{"symlink", foreign(t, good, file{name: "blobs/sha256/x", change: link}), chandler.CodeTarHeader, "is a link or a device"},
		{"device", foreign(t, good, file{name: "x", change: func(h *tar.Header) { h.Typeflag = tar.TypeChar }}), chandler.CodeTarHeader, "is a link or a device"},
		{"changed blob", foreign(t, good, file{name: "blobs/sha256/" + other[7:], content: "x"}), chandler.CodeDigestMismatch, "has other bytes"},
		{"name that is no digest", foreign(t, good, file{name: "blobs/sha256/x", content: "x"}), chandler.CodeDigestMismatch, `blob "x" has other bytes`},
		{"blob twice", foreign(t, good, blob("{}")), chandler.CodeTarDuplicate, "twice"},
		{"index twice", foreign(t, good, file{name: "index.json", content: "{}"}), chandler.CodeTarDuplicate, "index.json twice"},
		{"manifest missing", tarOf(t, layout, file{name: "index.json", content: entry(other)}), chandler.CodeTarMissing, "has no manifest " + other},
		{"no digest", tarOf(t, layout, file{name: "index.json", content: entry("md5:1")}), chandler.CodeDigestSyntax, `entry 0 of the index: digest "md5:1"`},
		{"other digest", tarOf(t, layout, file{name: "index.json", content: entry("sha512:" + strings.Repeat("0", 128))}), chandler.CodeDigestSyntax, "is not sha256:"},
		{"manifest no JSON", tarOf(t, layout, blob("no"), file{name: "index.json", content: entry(string(chandler.Digest[chandler.ArtifactDigest]([]byte("no"))))}), chandler.CodeManifestParse, "cannot be read"},
		{"bad name", foreign(t, object{"io.containerd.image.name": "reg.example/A B:v1"}), chandler.CodeURLSyntax, `name "reg.example/A B:v1"`},
		{"web name", foreign(t, object{"io.containerd.image.name": "https://reg.example/a"}), chandler.CodeRefSyntax, "names no repository"},
		{"denied host", foreign(t, object{"io.containerd.image.name": "169.254.169.254/a:v1"}), chandler.CodeEgressDenied, "169.254.169.254"},
		{"two of a name", tarOf(t, layout, blob("{}"), blob(`{"a":1}`), file{name: "index.json", content: twice}), chandler.CodeManifestAmbiguous, "two artifacts named"},
		{"no index", tarOf(t, layout), chandler.CodeTarMissing, "no index.json"},
		{"no layout", tarOf(t, file{name: "manifest.json", content: "[]"}), chandler.CodeTarMissing, "no oci-layout: it is no OCI image layout"},
		{"empty index", tarOf(t, layout, file{name: "index.json", content: "{}"}), chandler.CodeTarMissing, "has no artifact"},
		{"index no JSON", tarOf(t, layout, file{name: "index.json", content: "["}), chandler.CodeManifestParse, "cannot be read as an index"},
		{"index of too many values", tarOf(t, layout, file{name: "index.json", content: `{"manifests":[` + strings.Repeat(`{},`, 20000) + `{}]}`}), chandler.CodeManifestParse, "cannot be read as an index"},
		{"index of two meanings", tarOf(t, layout, file{name: "index.json", content: `{"manifests":[],"Manifests":[]}`}), chandler.CodeManifestParse, "cannot be read as an index"},
		{"index too large", tarOf(t, layout, file{name: "index.json", content: strings.Repeat(" ", 1<<20+1)}), chandler.CodeTarSize, "over 1048576 bytes"},
		{"too many entries", tarOf(t, many...), chandler.CodeTarEntries, "more than 16384 entries"},
		{"truncated", whole[:len(whole)-1500], chandler.CodeTarHeader, "truncated"},
		{"gzip", packed.Bytes(), chandler.CodeTarHeader, "the file is no tar; give an uncompressed tar"},
		{"text", []byte("hello"), chandler.CodeTarHeader, "the file is no tar"},
		{"empty", nil, chandler.CodeTarMissing, "no oci-layout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := airgap.Open(bytes.NewReader(c.bytes), int64(len(c.bytes)))
			var p *chandler.Problem
			if !errors.As(err, &p) || p.Code != c.code || !strings.Contains(p.Error(), c.text) || p.Hint == "" {
				t.Errorf("got %v, want %s: %s", err, c.code, c.text)
			}
		})
	}
}

// TestWrongSizes: sizes that a manifest declares are held against the blobs when
// these are read, as those of a registry are.
func TestWrongSizes(t *testing.T) {
	wasm := "\x00asm\x01\x00\x00\x00"
	layer := registry.Descriptor("application/wasm", []byte(wasm))
	layer["size"] = 1 << 20
	m := string(marshal(t, object{"schemaVersion": 2, "mediaType": typeManifest, "layers": []object{layer}}))
	d := registry.Descriptor(typeManifest, []byte(m))
	d["annotations"] = object{"org.opencontainers.image.ref.name": "reg.example/a:v1"}
	a := open(t, tarOf(t, file{name: "oci-layout", content: layoutFile}, blob(wasm), blob(m), file{name: "index.json", content: string(marshal(t, object{"manifests": []object{d}}))}))
	c := a.Client(fetch.Config{Dir: t.TempDir()})
	defer c.Close()
	_, err := c.Export(t.Context(), fetch.Request{Reference: a.Found()[0].Reference}, &taken{map[string]string{}, map[string]string{}})
	var e *fetch.Error
	if !errors.As(err, &e) || e.Problem.Code != chandler.CodeDescSize {
		t.Errorf("got %v, want %s", err, chandler.CodeDescSize)
	}
}

// TestWriterIsBounded: an archive does not grow beyond what it may.
func TestWriterIsBounded(t *testing.T) {
	p := newPlace(t)
	p.fill(t)
	ref := p.ref(t, "team/a:v1")
	w := airgap.NewWriter(io.Discard, 500)
	_, err := p.client.Export(t.Context(), fetch.Request{Reference: ref}, w.Repository(ref))
	var problem *chandler.Problem
	if !errors.As(err, &problem) || problem.Code != chandler.CodeTarSize {
		t.Errorf("got %v", err)
	}
}

// FuzzOpen: whatever a file is, it is refused by name, or what it has can be asked
// for and has the digest that was asked for.
func FuzzOpen(f *testing.F) {
	f.Add(foreign(f, object{"org.opencontainers.image.ref.name": "v1"}))
	f.Add(foreign(f, object{"io.containerd.image.name": "reg.example/a:v1"}))
	f.Add(foreign(f, nil)[:1024])
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := airgap.Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			var p *chandler.Problem
			if !errors.As(err, &p) || p.Hint == "" || len(p.Error()) > 2048 {
				t.Fatalf("not named: %v", err)
			}
			return
		}
		c := a.Client(fetch.Config{Dir: t.TempDir()})
		defer c.Close()
		for _, found := range a.Found() {
			d, err := c.Export(t.Context(), fetch.Request{Reference: found.Reference}, &taken{map[string]string{}, map[string]string{}})
			if err == nil && d != found.Reference.Digest {
				t.Fatalf("asked for %s, got %s", found.Reference.Digest, d)
			}
		}
	})
}
