package fetch_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/testenv/refusal"
	"chandler.dev/chandler/internal/testenv/registry"
)

func TestMain(m *testing.M) { leaks.Main(m) }

// shelf is a Sink in memory.
type shelf struct {
	mu      sync.Mutex
	modules map[chandler.ModuleDigest][]byte
}

func (s *shelf) Ingest(r io.Reader, _ chandler.ModuleDigest) (chandler.ModuleDigest, int64, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return "", 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.modules == nil {
		s.modules = map[chandler.ModuleDigest][]byte{}
	}
	d := chandler.Digest[chandler.ModuleDigest](b)
	s.modules[d] = b
	return d, int64(len(b)), nil
}

// module is some bytes that begin as a module does.
func module(tail string) []byte { return []byte("\x00asm\x01\x00\x00\x00" + tail) }

func client(t *testing.T, change func(*fetch.Config)) *fetch.Client {
	t.Helper()
	cfg := fetch.Config{Dir: t.TempDir(), Arch: "amd64"}
	if change != nil {
		change(&cfg)
	}
	c := fetch.New(cfg)
	t.Cleanup(func() {
		c.Close()
		left, err := os.ReadDir(cfg.Dir)
		if err != nil || len(left) > 0 {
			t.Errorf("left in the directory: %v %v", left, err)
		}
	})
	return c
}

func startRegistry(t *testing.T, cfg registry.Config) *registry.Registry {
	t.Helper()
	r, err := registry.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func startFiles(t *testing.T) *registry.Files {
	t.Helper()
	f, err := registry.StartFiles("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

func reference(t *testing.T, url string) chandler.Reference {
	t.Helper()
	ref, p := chandler.ParseReference(url)
	if p != nil {
		t.Fatalf("%s: %v", url, p)
	}
	return ref
}

// pull gets url and expects the module.
func pull(t *testing.T, c *fetch.Client, req fetch.Request, want []byte) fetch.Artifact {
	t.Helper()
	s := &shelf{}
	a, err := c.Pull(t.Context(), req, s)
	if err != nil {
		t.Fatalf("%s: %v", req.Reference, err)
	}
	if a.Size != int64(len(want)) || a.Module != chandler.Digest[chandler.ModuleDigest](want) || !bytes.Equal(s.modules[a.Module], want) {
		t.Fatalf("%s: %+v is not the module", req.Reference, a)
	}
	return a
}

// refused pulls and expects an error of that code, and that nothing is kept. With
// text not empty it is message and hint.
func refused(t *testing.T, c *fetch.Client, req fetch.Request, code chandler.Code, text string) *fetch.Error {
	t.Helper()
	s := &shelf{}
	seen := refusal.Begin(t)
	a, err := c.Pull(t.Context(), req, s)
	e := judge(t, a, err, s, code, text)
	seen.Saw(e.Problem.Code, e.Error())
	return e
}

func judge(t *testing.T, a fetch.Artifact, err error, s *shelf, code chandler.Code, text string) *fetch.Error {
	t.Helper()
	var e *fetch.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %+v, %v, want a *fetch.Error of %s", a, err, code)
	}
	if e.Problem.Code != code || (text != "" && e.Error() != text) {
		t.Errorf("got  %s: %s\nwant %s: %s", e.Problem.Code, e, code, text)
	}
	var p *chandler.Problem
	if !errors.As(err, &p) || *p != e.Problem || p.Hint == "" {
		t.Errorf("no problem with a hint in %v", err)
	}
	if len(s.modules) > 0 {
		t.Errorf("%d modules were kept", len(s.modules))
	}
	return e
}

func tarOf(t *testing.T, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i+1 < len(files); i += 2 {
		h := &tar.Header{Name: files[i], Size: int64(len(files[i+1])), Mode: 0o644, Typeflag: tar.TypeReg}
		if strings.HasSuffix(files[i], "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, files[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipOf(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstdOf(t *testing.T, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(b, nil)
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

const (
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	ociIndex       = "application/vnd.oci.image.index.v1+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	ociConfig      = "application/vnd.oci.image.config.v1+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	cncfConfig     = "application/vnd.wasm.config.v0+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	ociGzip        = "application/vnd.oci.image.layer.v1.tar+gzip"
	ociZstd        = "application/vnd.oci.image.layer.v1.tar+zstd"
	ociTar         = "application/vnd.oci.image.layer.v1.tar"
)

func TestPullLayouts(t *testing.T) {
	t.Parallel()
	wasm := module("layouts")
	file := tarOf(t, "etc/", "", "etc/passwd", "x", "./app/plugin.wasm", string(wasm), "later", "y")
	other := string(gzipOf(t, tarOf(t, "plugin.wasm", "an older one")))
	for name, c := range map[string]struct {
		manifest, config string
		layers           []string
	}{
		"docker image":                  {dockerManifest, dockerConfig, []string{dockerLayer, string(gzipOf(t, file))}},
		"docker image of two layers":    {dockerManifest, dockerConfig, []string{dockerLayer, other, dockerLayer, string(gzipOf(t, file))}},
		"docker image not compressed":   {dockerManifest, dockerConfig, []string{"application/vnd.docker.image.rootfs.diff.tar", string(file)}},
		"docker image in zstd":          {dockerManifest, dockerConfig, []string{"application/vnd.docker.image.rootfs.diff.tar.zstd", string(zstdOf(t, file))}},
		"OCI image in gzip":             {ociManifest, ociConfig, []string{ociGzip, string(gzipOf(t, file))}},
		"OCI image in zstd":             {ociManifest, ociConfig, []string{ociZstd, string(zstdOf(t, file))}},
		"OCI image in two gzip members": {ociManifest, ociConfig, []string{ociGzip, string(gzipOf(t, file[:700])) + string(gzipOf(t, file[700:]))}},
		"OCI image not compressed":      {ociManifest, ociConfig, []string{ociTar, string(file)}},
		"CNCF artifact":                 {ociManifest, cncfConfig, []string{"application/wasm", string(wasm)}},
		"single-layer artifact":         {ociManifest, ociConfig, []string{"application/vnd.module.wasm.content.layer.v1+wasm", string(wasm)}},
		"older artifact":                {ociManifest, "application/vnd.wasm.config.v1+json", []string{"application/vnd.wasm.content.layer.v1+wasm", string(wasm)}},
		"artifact with configuration": {ociManifest, "application/vnd.module.wasm.config.v1+json", []string{
			"application/vnd.module.wasm.config.v1+json", `{"a":1}`, "application/vnd.module.wasm.content.layer.v1+wasm", string(wasm)}},
		"artifact with module first": {ociManifest, cncfConfig, []string{"application/wasm", string(wasm), "text/markdown", "# read me"}},
		"artifact with documents and an image layer": {ociManifest, ociConfig, []string{
			"application/vnd.module.wasm.spec.v1+yaml", "a: 1", "application/vnd.module.wasm.doc.v1+markdown", "# read me", ociGzip, string(gzipOf(t, file))}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg := startRegistry(t, registry.Config{})
			digest := must(reg.PutArtifact("some/plugin", "v1", c.manifest, c.config, c.layers...))(t)
			cl := client(t, nil)
			a := pull(t, cl, fetch.Request{Reference: reference(t, reg.Addr+"/some/plugin:v1")}, wasm)
			last := c.layers[len(c.layers)-1]
			if name == "artifact with module first" {
				last = c.layers[1]
			}
			want := fetch.Artifact{
				Reference: "oci://" + reg.Addr + "/some/plugin:v1@" + digest, Digest: chandler.ArtifactDigest(digest),
				Blob: chandler.Digest[chandler.BlobDigest]([]byte(last)), BlobSize: int64(len(last)), Module: a.Module, Size: a.Size,
			}
			if a != want {
				t.Errorf("got  %+v\nwant %+v", a, want)
			}
			if n := reg.Counts(); n.ManifestGet != 1 || n.ManifestHead != 0 || n.BlobGet != 1 || n.BlobBytes != int64(len(last)) {
				t.Errorf("requests: %+v", n)
			}
			pull(t, cl, fetch.Request{Reference: reference(t, a.Reference)}, wasm)
		})
	}
}

func TestPullHTTPLayouts(t *testing.T) {
	t.Parallel()
	files := startFiles(t)
	cl := client(t, nil)
	wasm := module("web")
	packed := tarOf(t, "dist/", "", "dist/._my.wasm", "apple", "dist/my.wasm", string(wasm), "LICENSE", "x")
	for name, content := range map[string][]byte{
		"raw": wasm, "gzip": gzipOf(t, wasm), "tar": packed, "tar.gz": gzipOf(t, packed),
	} {
		url := files.Put("a/"+name+".wasm", content)
		sum := chandler.Digest[chandler.ModuleDigest](wasm).Hex()
		for _, pin := range []string{"", sum} {
			a := pull(t, cl, fetch.Request{Reference: reference(t, url+"?tok=1"), SHA256: pin}, wasm)
			if a.Reference != url+"?tok=1" || a.Digest != "" || a.Blob != chandler.Digest[chandler.BlobDigest](content) || a.BlobSize != int64(len(content)) {
				t.Errorf("%s: %+v", name, a)
			}
		}
	}
	url := files.Put("b.wasm", wasm)
	other := strings.Repeat("b", 64)
	s := &refusingShelf{}
	_, err := cl.Pull(t.Context(), fetch.Request{Reference: reference(t, url), SHA256: other}, s)
	e := judge(t, fetch.Artifact{}, err, &shelf{}, chandler.CodeDigestMismatch, "")
	if e.Temporary || s.want != chandler.ModuleDigest("sha256:"+other) {
		t.Errorf("the sink was asked for %q; %+v", s.want, e)
	}
}

// refusingShelf gives back a digest other than it was asked for.
type refusingShelf struct {
	shelf
	want chandler.ModuleDigest
}

func (s *refusingShelf) Ingest(r io.Reader, want chandler.ModuleDigest) (chandler.ModuleDigest, int64, error) {
	s.want = want
	return s.shelf.Ingest(r, want)
}

func TestIndex(t *testing.T) {
	t.Parallel()
	reg := startRegistry(t, registry.Config{})
	cl := client(t, nil)
	child := func(text string) (map[string]any, string) {
		layer := string(gzipOf(t, tarOf(t, "plugin.wasm", string(module(text)))))
		digest := must(reg.PutArtifact("p", text, ociManifest, ociConfig, ociGzip, layer))(t)
		return map[string]any{"mediaType": ociManifest, "digest": digest, "size": 100}, digest
	}
	on := func(text, os, arch string) map[string]any {
		d, _ := child(text)
		d["platform"] = map[string]string{"os": os, "architecture": arch}
		return d
	}
	attestation := on("about", "unknown", "unknown")
	attestation["annotations"] = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	alone, _ := child("alone")
	index := func(tag, mediaType string, entries ...map[string]any) string {
		raw, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": mediaType, "manifests": entries})
		if err != nil {
			t.Fatal(err)
		}
		return must(reg.PutManifest("p", tag, mediaType, raw))(t)
	}
	for _, c := range []struct {
		tag, mediaType, want string
		entries              []map[string]any
	}{
		{"wasm", ociIndex, "w", []map[string]any{on("l", "linux", "amd64"), on("w", "wasip1", "wasm"), attestation}},
		{"component", ociIndex, "l", []map[string]any{on("l", "linux", "amd64"), on("w2", "wasip2", "wasm")}},
		{"native", dockerList, "l", []map[string]any{on("l", "linux", "amd64"), on("a", "linux", "arm64")}},
		{"only", ociIndex, "a", []map[string]any{on("a", "linux", "s390x"), attestation}},
		{"bare", ociIndex, "alone", []map[string]any{alone}},
	} {
		digest := index(c.tag, c.mediaType, c.entries...)
		a := pull(t, cl, fetch.Request{Reference: reference(t, reg.Addr+"/p:"+c.tag)}, module(c.want))
		if string(a.Digest) != digest {
			t.Errorf("%s: digest %s, want that of the index %s", c.tag, a.Digest, digest)
		}
		// The sha256 field may name the index or the child.
		pull(t, cl, fetch.Request{Reference: reference(t, reg.Addr+"/p:"+c.tag), SHA256: strings.TrimPrefix(digest, "sha256:")}, module(c.want))
		_, other := child("alone")
		pull(t, cl, fetch.Request{Reference: reference(t, reg.Addr+"/p:"+c.tag), SHA256: strings.TrimPrefix(other, "sha256:")}, module("alone"))
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	reg := startRegistry(t, registry.Config{})
	cl := client(t, nil)
	digest := must(reg.PutArtifact("p", "latest", ociManifest, cncfConfig, "application/wasm", string(module("1"))))(t)
	got, err := cl.Resolve(t.Context(), fetch.Request{Reference: reference(t, reg.Addr+"/p")})
	want := fetch.Resolved{Reference: "oci://" + reg.Addr + "/p@" + digest, Digest: chandler.ArtifactDigest(digest)}
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if n := reg.Counts(); n.ManifestHead != 1 || n.ManifestGet != 0 || n.BlobGet != 0 {
		t.Errorf("requests: %+v", n)
	}
	before := reg.Counts()
	pinned := strings.Repeat("a", 64)
	got, err = cl.Resolve(t.Context(), fetch.Request{Reference: reference(t, reg.Addr+"/p:x"), SHA256: pinned})
	if err != nil || got.Reference != "oci://"+reg.Addr+"/p:x@sha256:"+pinned || reg.Counts() != before {
		t.Errorf("pinned: %+v %v, requests %+v", got, err, reg.Counts())
	}
	got, err = cl.Resolve(t.Context(), fetch.Request{Reference: reference(t, "https://h.example/x")})
	if err != nil || got != (fetch.Resolved{}) {
		t.Errorf("https: %+v %v", got, err)
	}
	_, err = cl.Resolve(t.Context(), fetch.Request{Reference: reference(t, reg.Addr+"/p:gone")})
	judge(t, fetch.Artifact{}, err, &shelf{}, chandler.CodeNotFound, "gone: the server answers 404 Not Found; correct the url, or push the module there")
}

func TestPush(t *testing.T) {
	t.Parallel()
	big := make([]byte, 600<<10)
	if _, err := rand.Read(big); err != nil {
		t.Fatal(err)
	}
	wasm := module(string(big))
	for _, layout := range []fetch.Layout{"", fetch.LayoutCNCF, fetch.LayoutCompat} {
		for _, cfg := range []registry.Config{{}, {Username: "u", Password: "secret"}, {Username: "u", Password: "secret", Token: true}} {
			reg := startRegistry(t, cfg)
			cl := client(t, nil)
			creds := fetch.NewCredentials(reg.Addr, "u", "secret")
			d, err := cl.Push(t.Context(), reg.Addr+"/a/b:1.12.0", wasm, fetch.PushOptions{Layout: layout, Credentials: creds})
			if err != nil {
				t.Fatalf("%q %+v: %v", layout, cfg, err)
			}
			again, err := cl.Push(t.Context(), reg.Addr+"/a/c:v2", wasm, fetch.PushOptions{Layout: layout, Credentials: creds})
			if err != nil || again != d {
				t.Errorf("%q: %s, %v, the first time %s", layout, again, err, d)
			}
			a := pull(t, cl, fetch.Request{Reference: reference(t, reg.Addr+"/a/b:1.12.0"), Credentials: creds}, wasm)
			if a.Digest != d {
				t.Errorf("%q: pushed %s, pulled %s", layout, d, a.Digest)
			}
		}
	}
}

// via goes to one server whatever is asked for.
type via struct{ to string }

func (v via) RoundTrip(req *http.Request) (*http.Response, error) {
	out := req.Clone(req.Context())
	out.URL.Scheme, out.URL.Host = "http", v.to
	return http.DefaultTransport.RoundTrip(out)
}

// A way of the caller's is taken to web servers, within the same bounds, and nowhere else:
// redirects are not followed.
func TestPullVia(t *testing.T) {
	t.Parallel()
	content := module("by another way")
	digest := chandler.Digest[chandler.ModuleDigest](content)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case req.Host != "nowhere.invalid":
			t.Errorf("the server is asked for %s", req.Host)
		case req.URL.Path == "/m.wasm":
			_, _ = w.Write(content)
		case req.URL.Path == "/large.wasm":
			_, _ = w.Write(bytes.Repeat(content, 1000))
		default:
			http.Redirect(w, req, "http://nowhere.invalid/m.wasm", http.StatusFound)
		}
	}))
	t.Cleanup(func() {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		server.Close()
	})
	c := client(t, func(cfg *fetch.Config) { cfg.MaxBlob = 1000 })
	for url, want := range map[string]chandler.Code{
		"https://nowhere.invalid/m.wasm": "", "http://nowhere.invalid/m.wasm": "",
		"https://nowhere.invalid/large.wasm":     chandler.CodeHTTPLength,
		"https://nowhere.invalid/redirects.wasm": chandler.CodeHTTPStatus,
	} {
		ref, problem := chandler.ParseReference(url)
		if problem != nil {
			t.Fatal(problem)
		}
		a, err := c.Pull(t.Context(), fetch.Request{Reference: ref, SHA256: digest.Hex(), Via: via{server.Listener.Addr().String()}}, &shelf{})
		var failed *fetch.Error
		switch {
		case want == "" && (err != nil || a.Module != digest):
			t.Errorf("%s: %+v, %v", url, a, err)
		case want != "" && (!errors.As(err, &failed) || failed.Problem.Code != want):
			t.Errorf("%s: %v, want %s", url, err, want)
		}
	}
}
