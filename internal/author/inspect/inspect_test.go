package inspect_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/author/inspect"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/registry"
	"chandler.dev/chandler/internal/trust"
)

func TestMain(m *testing.M) { leaks.Main(m) }

const (
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	ociIndex       = "application/vnd.oci.image.index.v1+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	ociConfig      = "application/vnd.oci.image.config.v1+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	cncfConfig     = "application/vnd.wasm.config.v0+json"
	ociGzip        = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// world is a registry and who looks into it.
type world struct {
	*registry.Registry
	client *fetch.Client
}

func newWorld(t *testing.T) world {
	t.Helper()
	r, err := registry.Start(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	c := fetch.New(fetch.Config{Dir: t.TempDir(), Arch: "amd64"})
	t.Cleanup(c.Close)
	return world{r, c}
}

func reference(t *testing.T, url string) chandler.Reference {
	t.Helper()
	ref, p := chandler.ParseReference(url)
	if p != nil {
		t.Fatal(p)
	}
	return ref
}

func (w world) inspect(t *testing.T, name string, opts inspect.Options) inspect.Report {
	t.Helper()
	dir := t.TempDir()
	opts.Dir = dir
	r, err := inspect.Artifact(t.Context(), w.client, name, fetch.Request{Reference: reference(t, w.Addr+"/"+name)}, opts)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%s: left behind: %v, %v", name, left, err)
	}
	return r
}

func text(t *testing.T, r inspect.Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func tarOf(t *testing.T, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i+1 < len(files); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: files[i], Size: int64(len(files[i+1])), Mode: 0o644, Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipOf(t *testing.T, b []byte) string {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func zstdOf(t *testing.T, b []byte) string {
	t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return string(w.EncodeAll(b, nil))
}

// TestLayouts: what other tools push, in the shapes that they give it, is told for
// what it is, and the same module is found in all of them.
func TestLayouts(t *testing.T) {
	wasm := module.Append()
	digest, packed := string(chandler.Digest[chandler.ModuleDigest](wasm)), tarOf(t, "etc/passwd", "x", "plugin.wasm", string(wasm))
	older := gzipOf(t, tarOf(t, "plugin.wasm", "an older one"))
	const (
		dockerLayer = "application/vnd.docker.image.rootfs.diff.tar.gzip"
		raw         = "application/wasm"
	)
	for name, c := range map[string]struct {
		manifest, config string
		layers           []string
		want             string // the layout
		module           int    // its layer
	}{
		"docker build":              {dockerManifest, dockerConfig, []string{dockerLayer, older, dockerLayer, gzipOf(t, packed)}, "docker image, plugin.wasm in the last layer (tar+gzip)", 1},
		"docker build of OCI, zstd": {ociManifest, ociConfig, []string{"application/vnd.oci.image.layer.v1.tar+zstd", zstdOf(t, packed)}, "OCI image, plugin.wasm in the last layer (tar+zstd)", 0},
		"buildah":                   {ociManifest, ociConfig, []string{ociGzip, gzipOf(t, packed)}, "OCI image, plugin.wasm in the last layer (tar+gzip)", 0},
		"buildah, not compressed":   {ociManifest, ociConfig, []string{"application/vnd.oci.image.layer.v1.tar", string(packed)}, "OCI image, plugin.wasm in the last layer (tar)", 0},
		"wkg":                       {ociManifest, cncfConfig, []string{raw, string(wasm)}, "CNCF Wasm artifact", 0},
		"oras push":                 {ociManifest, "application/vnd.oci.empty.v1+json", []string{"text/markdown", "# Read me", raw, string(wasm)}, "Wasm artifact with a layer of application/wasm", 1},
		"wasm-to-oci":               {ociManifest, "application/vnd.wasm.config.v1+json", []string{"application/vnd.wasm.content.layer.v1+wasm", string(wasm)}, "Wasm artifact with a layer of application/vnd.wasm.content.layer.v1+wasm", 0},
		"Solo's": {ociManifest, "application/vnd.module.wasm.config.v1+json", []string{
			"application/vnd.module.wasm.config.v1+json", "{}", "application/vnd.module.wasm.content.layer.v1+wasm", string(wasm)}, "Wasm artifact with a layer of application/vnd.module.wasm.content.layer.v1+wasm", 1},
		"Higress's": {ociManifest, ociConfig, []string{
			"application/vnd.module.wasm.spec.v1+yaml", "a: 1", "application/vnd.module.wasm.doc.v1+markdown", "\n## A plugin\n", ociGzip, gzipOf(t, packed)}, "OCI image, plugin.wasm in the last layer (tar+gzip)", 2},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			artifact, err := w.PutArtifact("p", "v1", c.manifest, c.config, c.layers...)
			if err != nil {
				t.Fatal(err)
			}
			r := w.inspect(t, "p:v1", inspect.Options{})
			if r.Layout != c.want || len(r.Problems) > 0 || r.Artifact.Digest != artifact || r.Reference != "oci://"+w.Addr+"/p:v1@"+artifact {
				t.Errorf("%+v", r)
			}
			if r.Module == nil || r.Module.Digest != digest || r.Module.Size != int64(len(wasm)) || r.Module.ABI != "0.2.1" || r.Module.CodeBytes == 0 {
				t.Errorf("module %+v", r.Module)
			}
			for i, l := range r.Layers {
				content := c.layers[2*i+1]
				if l.Module != (i == c.module) || l.Digest != string(chandler.Digest[chandler.BlobDigest]([]byte(content))) || l.Size != int64(len(content)) || l.MediaType != c.layers[2*i] {
					t.Errorf("layer %d: %+v", i, l)
				}
			}
			if r.Blob == nil || *r.Blob != (inspect.Sum{Digest: r.Layers[c.module].Digest, Size: r.Layers[c.module].Size}) {
				t.Errorf("blob %+v", r.Blob)
			}
			if read := map[string]string{"oras push": "Read me", "Higress's": "A plugin"}[name]; read != "" && (r.Readme == nil || r.Readme.FirstLine != read) {
				t.Errorf("readme %+v", r.Readme)
			}
			if s := text(t, r); !strings.Contains(s, c.want) || !strings.Contains(s, digest) || strings.Contains(s, "Problem") {
				t.Errorf("text:\n%s", s)
			}
		})
	}
}

// TestIndex: of an index all entries are told, and which one is meant.
func TestIndex(t *testing.T) {
	w, wasm := newWorld(t), module.Append()
	var entries []map[string]any
	for i, system := range []string{"wasip1", "linux"} {
		d, err := w.PutArtifact("p", system, ociManifest, cncfConfig, "application/wasm", string(wasm)+string(make([]byte, i)))
		if err != nil {
			t.Fatal(err)
		}
		arch := []string{"wasm", "amd64"}[i]
		entries = append(entries, map[string]any{"mediaType": ociManifest, "digest": d, "size": 100, "platform": map[string]string{"os": system, "architecture": arch}})
	}
	put := func(tag string, entries ...map[string]any) string {
		raw, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": entries, "annotations": map[string]string{"a": "b"}})
		if err != nil {
			t.Fatal(err)
		}
		d, err := w.PutManifest("p", tag, ociIndex, raw)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	digest := put("all", entries...)
	r := w.inspect(t, "p:all", inspect.Options{})
	if r.Artifact.Digest != digest || r.Manifest == nil || r.Manifest.Digest != entries[0]["digest"] || len(r.Entries) != 2 || !r.Entries[0].Module || r.Entries[1].Module || r.Annotations["a"] != "b" || r.Module == nil {
		t.Errorf("%+v", r)
	}
	entries[0]["platform"] = map[string]string{"os": "linux", "architecture": "s390x"}
	entries[1]["platform"] = map[string]string{"os": "linux", "architecture": "riscv64"}
	put("none", entries...)
	r = w.inspect(t, "p:none", inspect.Options{})
	if s := text(t, r); len(r.Problems) != 1 || r.Problems[0].Code != chandler.CodeIndex || !strings.Contains(s, "linux/riscv64") || r.Module != nil {
		t.Errorf("%s", s)
	}
}

// TestUnreadable: what cannot be read is explained, beside all that was found.
func TestUnreadable(t *testing.T) {
	const layer = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	for name, c := range map[string]struct {
		manifest, config string
		layers           []string
		code             chandler.Code
		text             []string
	}{
		"an ordinary image": {dockerManifest, dockerConfig, []string{layer, gzipOf(t, tarOf(t, "bin/sh", "x"))}, chandler.CodeTarMissing,
			[]string{`layer 0 has no plugin.wasm; it has "bin/sh"`, "docker image"}},
		"a Helm chart": {ociManifest, "application/vnd.cncf.helm.config.v1+json", []string{"application/vnd.cncf.helm.chart.content.v1.tar+gzip", "x"}, chandler.CodeLayerType,
			[]string{"no layer can be read; there is application/vnd.cncf.helm.chart.content.v1.tar+gzip", "push an image whose last layer", "vnd.cncf.helm.config.v1+json"}},
		"two modules": {ociManifest, cncfConfig, []string{"application/wasm", "\x00asm\x01\x00\x00\x00a", "application/wasm", "\x00asm\x01\x00\x00\x00b"}, chandler.CodeManifestAmbiguous,
			[]string{"the manifest has 2 Wasm layers", "Layer 1:"}},
		"a component": {ociManifest, cncfConfig, []string{"application/wasm", "\x00asm\x0d\x00\x01\x00"}, chandler.CodeWasmComponent, []string{"Module:"}},
		"another type": {ociManifest, cncfConfig, []string{"application/wasm", gzipOf(t, []byte("x"))}, chandler.CodeLayerType,
			[]string{"is marked as a Wasm module, but it starts with", "gzip"}},
		"too much text": {ociManifest, cncfConfig, []string{"application/wasm", string(module.Append()), "text/markdown", strings.Repeat("a", fetch.MaxDocument+1)}, chandler.CodeConfigBlob,
			[]string{"readme is 262145 bytes"}},
		"a schema that is none": {ociManifest, cncfConfig, []string{"application/wasm", string(module.Append()), "application/schema+json", "[1]"}, chandler.CodeSchemaUnusable,
			[]string{"the artifact's schema cannot be judged by: it is no object"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			digest, err := w.PutArtifact("p", "v1", c.manifest, c.config, c.layers...)
			if err != nil {
				t.Fatal(err)
			}
			r := w.inspect(t, "p:v1", inspect.Options{})
			if len(r.Problems) != 1 || r.Problems[0].Code != c.code || r.Problems[0].Hint == "" || r.Artifact.Digest != digest || len(r.Layers) != len(c.layers)/2 {
				t.Errorf("%+v", r)
			}
			s := text(t, r)
			for _, want := range append(c.text, digest, string(c.code)) {
				if !strings.Contains(s, want) {
					t.Errorf("no %q in\n%s", want, s)
				}
			}
		})
	}
	w := newWorld(t)
	raw := []byte(`{"schemaVersion":1,"name":"p","tag":"v1"}`)
	if _, err := w.PutManifest("p", "old", "application/vnd.docker.distribution.manifest.v1+json", raw); err != nil {
		t.Fatal(err)
	}
	r := w.inspect(t, "p:old", inspect.Options{})
	if len(r.Problems) != 1 || r.Problems[0].Code != chandler.CodeManifestType || !strings.Contains(r.Problems[0].Message, "manifest.v1+json") {
		t.Errorf("%+v", r)
	}
}

// TestErrors: that nothing can be told is an error, and no report of nothing.
func TestErrors(t *testing.T) {
	w := newWorld(t)
	ask := func() error {
		_, err := inspect.Artifact(t.Context(), w.client, "p", fetch.Request{Reference: reference(t, w.Addr+"/p:v1")}, inspect.Options{})
		return err
	}
	var e *fetch.Error
	if err := ask(); !errors.As(err, &e) || e.Problem.Code != chandler.CodeNotFound {
		t.Errorf("%v", err)
	}
	if _, err := w.PutArtifact("p", "v1", ociManifest, cncfConfig, "application/wasm", string(module.Append())); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"/manifests/", "/referrers/", "/blobs/"} {
		w.Fail(func(r *http.Request) (int, bool) {
			return http.StatusServiceUnavailable, strings.Contains(r.URL.Path, part)
		})
		if err := ask(); !errors.As(err, &e) || !e.Temporary {
			t.Errorf("%s: %v", part, err)
		}
	}
}

// TestDocumentsAndSignatures: what travels with a module is told, and who signed it
// when that is asked.
func TestDocumentsAndSignatures(t *testing.T) {
	w := newWorld(t)
	schema := `{"title":"A\u001b[31m","required":["b"],"properties":{"b":{"type":"string"},"a":{"type":["integer","null"]},"c":true}}`
	digest, err := w.client.Push(t.Context(), w.Addr+"/p:v1", module.Append(), fetch.PushOptions{
		Documents: fetch.Documents{Schema: []byte(schema), Readme: []byte("\n\n#  Title \nmore")}, Annotations: map[string]string{"k": "two\nlines"},
	})
	if err != nil {
		t.Fatal(err)
	}
	r := w.inspect(t, "p:v1", inspect.Options{})
	if want := (&inspect.Schema{Size: len(schema), Title: "A [31m", Properties: []inspect.Property{{Path: "a", Type: "null or integer"}, {Path: "b", Type: "string", Required: true}, {Path: "c"}}}); !reflect.DeepEqual(r.Schema, want) {
		t.Errorf("schema %+v", r.Schema)
	}
	if r.Readme == nil || r.Readme.FirstLine != "Title" || r.Annotations["k"] != "two\nlines" || len(r.Labels) > 0 {
		t.Errorf("%+v", r)
	}
	if s := text(t, r); !strings.Contains(s, "a null or integer, b string (required), c\n") || !strings.Contains(s, "k=two lines\n") {
		t.Errorf("text\n%s", s)
	}
	private, public, err := trust.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := trust.ParseSigner(private, func() ([]byte, error) { return nil, nil })
	if err != nil {
		t.Fatal(err)
	}
	ref := reference(t, w.Addr+"/p:v1")
	sig, err := signer.Sign(trust.FormBundle, ref, digest)
	if err == nil {
		r = w.inspect(t, "p:v1", inspect.Options{Keys: string(public)})
		if len(r.Problems) != 1 || r.Problems[0].Code != chandler.CodeSigMissing || len(r.Signatures.Found) != 0 {
			t.Errorf("not signed: %+v", r)
		}
		err = w.client.AddSignature(t.Context(), ref, digest, sig, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	if r = w.inspect(t, "p:v1", inspect.Options{}); len(r.Signatures.Found) != 1 || r.Signatures.By != nil || len(r.Problems) > 0 {
		t.Errorf("signed: %+v", r)
	}
	if r = w.inspect(t, "p:v1", inspect.Options{Keys: string(public)}); len(r.Signatures.By) != 1 || len(r.Problems) > 0 {
		t.Errorf("verified: %+v", r)
	}
}

// TestFilesAndWeb: modules that are no artifacts.
func TestFilesAndWeb(t *testing.T) {
	wasm := module.Append()
	look := func(content []byte) inspect.Report {
		t.Helper()
		name := filepath.Join(t.TempDir(), "x.wasm")
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		r, err := inspect.File("x.wasm", f)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := look(wasm)
	if r.Module.Digest != string(chandler.Digest[chandler.ModuleDigest](wasm)) || r.Module.Size != int64(len(wasm)) || len(r.Problems) > 0 {
		t.Errorf("%+v", r)
	}
	if s := text(t, r); strings.Contains(s, "Schema") || strings.Contains(s, "Signatures") {
		t.Errorf("a file has neither:\n%s", s)
	}
	r = look([]byte("<html>"))
	if len(r.Problems) != 1 || r.Problems[0].Code != chandler.CodeWasmMagic || r.Module.ABI != "" || r.Module.Size != 6 {
		t.Errorf("%+v", r)
	}
	files, err := registry.StartFiles("")
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	c := fetch.New(fetch.Config{Dir: t.TempDir()})
	defer c.Close()
	packed := gzipOf(t, wasm)
	url := files.Put("x.wasm.gz", []byte(packed))
	r, err = inspect.Artifact(t.Context(), c, url, fetch.Request{Reference: reference(t, url)}, inspect.Options{Dir: t.TempDir()})
	if err != nil || r.Module == nil || r.Module.ABI != "0.2.1" || r.Blob.Size != int64(len(packed)) || r.Signatures != nil {
		t.Errorf("%+v, %v", r, err)
	}
}
