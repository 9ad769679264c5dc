package fetch_test

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/refusal"
	"chandler.dev/chandler/internal/testenv/registry"
)

// script is a registry with one manifest, under every name, that says what it is
// told to say.
type script struct {
	contentType, manifest string
	blobs                 map[string]string
	// manifests has more of them, by digest.
	manifests map[string]string
	// before may answer in place of the registry.
	before func(w http.ResponseWriter, r *http.Request) bool
}

func (s *script) start(t *testing.T) (host string) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.before != nil && s.before(w, r) {
			return
		}
		name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
		switch {
		case strings.Contains(r.URL.Path, "/manifests/"):
			w.Header().Set("Content-Type", s.contentType)
			m, ok := s.manifests[name]
			if !ok {
				m = s.manifest
			}
			io.WriteString(w, m)
		case strings.Contains(r.URL.Path, "/blobs/"):
			b, ok := s.blobs[name]
			if !ok {
				http.NotFound(w, r)
				return
			}
			w.Header().Set("Content-Type", "application/octet-stream")
			io.WriteString(w, b)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

func digestOf(s string) string { return string(chandler.Digest[chandler.BlobDigest]([]byte(s))) }

func (s *script) request(t *testing.T) fetch.Request {
	t.Helper()
	return fetch.Request{Reference: reference(t, s.start(t)+"/p:v1")}
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

type object = map[string]any

// imageOf is a registry with one image of one layer.
func imageOf(t *testing.T, layerType, layer string, change func(manifest, layer object)) *script {
	t.Helper()
	l := registry.Descriptor(layerType, []byte(layer))
	m := object{"schemaVersion": 2, "mediaType": ociManifest, "config": registry.Descriptor(ociConfig, []byte("{}")), "layers": []any{l}}
	if change != nil {
		change(m, l)
	}
	return &script{contentType: ociManifest, manifest: toJSON(t, m), blobs: map[string]string{digestOf(layer): layer}}
}

const good = "\x00asm\x01\x00\x00\x00"

// refuseManifest has the registry give a manifest that is to be refused.
func refuseManifest(t *testing.T, contentType, manifest string, code chandler.Code, text string) {
	t.Helper()
	s := &script{contentType: contentType, manifest: manifest}
	if e := refused(t, client(t, nil), s.request(t), code, text); e.Temporary {
		t.Errorf("temporary: %v", e)
	}
}

// refuseChange has the registry give a good image with one thing changed.
func refuseChange(t *testing.T, change func(manifest, layer object), code chandler.Code, text string) {
	t.Helper()
	if e := refused(t, client(t, nil), imageOf(t, "application/wasm", good, change).request(t), code, text); e.Temporary {
		t.Errorf("temporary: %v", e)
	}
}

// refuseLayer has the registry give a layer that is to be refused.
func refuseLayer(t *testing.T, layerType, layer string, code chandler.Code, text string) {
	t.Helper()
	req := imageOf(t, layerType, layer, nil).request(t)
	cl := client(t, nil)
	sink := &sieve{}
	seen := refusal.Begin(t)
	a, err := cl.Pull(t.Context(), req, sink)
	e := judge(t, a, err, &shelf{}, code, text)
	seen.Saw(e.Problem.Code, e.Error())
	if sink.kept {
		t.Error("the module was kept")
	}
	if e.Temporary {
		t.Errorf("temporary: %v", e)
	}
}

// sieve is a Sink that keeps nothing.
type sieve struct{ kept bool }

func (s *sieve) Ingest(r io.Reader, _ chandler.ModuleDigest) (chandler.ModuleDigest, int64, error) {
	n, err := io.Copy(io.Discard, r)
	s.kept = err == nil
	return "", n, err
}

func TestRefuse_B31(t *testing.T) {
	start := `{"schemaVersion":2,"mediaType":"` + ociManifest + `"`
	const again = "; push it again"
	for _, c := range []struct{ manifest, text string }{
		{start + `,"annotations":{"a":"` + strings.Repeat("b", 1<<20) + `"}}`, "manifest: over 1048576 bytes" + again},
		{start + `} x`, "manifest: something follows it at offset 77" + again},
		{start + `}{}`, "manifest: something follows it at offset 77" + again},
		{start + `,"layers":[],"layers":[]}`, `manifest: duplicate key "layers" at offset 96` + again},
		{start + `,"layers":[],"Layers":[]}`, `manifest: duplicate key "Layers" at offset 96` + again},
		{start + `,"a":"` + "\xff" + `"}`, "manifest: not valid UTF-8" + again},
		{start + `,"a":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + "}", "manifest: deeper than 32 at offset 112" + again},
		{start + `,"layers":"x"}`, ""},
		{"<html>", "manifest: not JSON at offset 0" + again},
		{"", "manifest: not JSON at offset 0" + again},
		{start + `,"layers":[` + strings.Repeat("{},", 16) + "{}]}", "manifest: it has 17 layers, limit 16" + again},
	} {
		refuseManifest(t, ociManifest, c.manifest, chandler.CodeManifestParse, c.text)
	}
}

func TestRefuse_B32(t *testing.T) {
	const accepted = "; push it in one of these: " + ociManifest + ", " + ociIndex + ", " + dockerManifest + ", " + dockerList
	v1 := "application/vnd.docker.distribution.manifest.v1+prettyjws"
	refuseManifest(t, v1, `{"schemaVersion":1}`, chandler.CodeManifestType, `media type of the manifest is "`+v1+`"`+accepted)
	refuseManifest(t, "", `{"schemaVersion":2}`, chandler.CodeManifestType, "")
	refuseManifest(t, "text/plain", `{"schemaVersion":2,"mediaType":"x/y"}`, chandler.CodeManifestType, `media type of the manifest is "x/y"`+accepted)
	refuseManifest(t, ociManifest, `{"schemaVersion":1}`, chandler.CodeManifestType, "schema version of the manifest is 1; push it with schema version 2")
	refuseManifest(t, ociManifest, `{"schemaVersion":2,"mediaType":"`+dockerManifest+`"}`, chandler.CodeManifestAmbiguous,
		`the manifest calls itself "`+dockerManifest+`" and the registry calls it `+ociManifest+"; push it again")
}

func TestRefuse_B34(t *testing.T) {
	refuseChange(t, func(m, _ object) { m["manifests"] = []any{} }, chandler.CodeManifestAmbiguous, "the manifest has both layers and manifests; push it again")
	layer := registry.Descriptor("application/wasm", []byte(good))
	refuseChange(t, func(m, _ object) { m["layers"] = []any{layer, layer} }, chandler.CodeManifestAmbiguous,
		"the manifest has 2 Wasm layers; push one module an artifact, or title one of them plugin.wasm")
}

func TestRefuse_B35(t *testing.T) {
	image := imageOf(t, "application/wasm", good, nil).manifest
	on := func(os, arch string) object {
		d := registry.Descriptor(ociManifest, []byte(image))
		d["platform"] = object{"os": os, "architecture": arch}
		return d
	}
	nested := registry.Descriptor(ociIndex, []byte(image))
	hidden := registry.Descriptor(ociManifest, []byte(`{"schemaVersion":2,"mediaType":"`+ociIndex+`","manifests":[]}`))
	many := make([]any, 33)
	for i := range many {
		many[i] = on("linux", "amd64")
	}
	for _, c := range []struct {
		entries []any
		text    string
	}{
		{[]any{on("wasip1", "wasm"), on("wasi", "wasm")}, "the index has 2 entries that fit; name one by digest"},
		{[]any{on("linux", "amd64"), on("linux", "amd64")}, "the index has 2 entries that fit; name one by digest"},
		{[]any{on("linux", "s390x"), on("linux", "arm64")},
			"the index has no entry for wasm or linux/amd64; it has linux/s390x, linux/arm64; push one for a Wasm platform, or name one by digest"},
		{[]any{}, "the index has no entry for wasm or linux/amd64; it has none; push one for a Wasm platform, or name one by digest"},
		{[]any{nested}, "the index names another index; name a manifest by digest"},
		{[]any{hidden}, "the index names another index; name a manifest by digest"},
		{many, "the index has 33 entries, limit 32; name one by digest"},
	} {
		s := &script{manifest: toJSON(t, object{"schemaVersion": 2, "mediaType": ociIndex, "manifests": c.entries}),
			manifests: map[string]string{digestOf(image): image, hidden["digest"].(string): `{"schemaVersion":2,"mediaType":"` + ociIndex + `","manifests":[]}`}}
		refused(t, client(t, nil), s.request(t), chandler.CodeIndex, c.text)
	}
}

func TestRefuse_B36(t *testing.T) {
	size := func(n int64) func(_, l object) { return func(_, l object) { l["size"] = n } }
	refuseChange(t, size(-1), chandler.CodeDescSize, "layer 0: declared size is -1; push it again")
	refuseChange(t, size(0), chandler.CodeDescSize, "layer 0: declared size is 0; push it again")
	refuseChange(t, size(4294967296), chandler.CodeDescSize,
		"layer 0: declared size is 4294967296 bytes, limit 67108864; push a smaller module, or let the operator raise the limit")
	refuseChange(t, size(9), chandler.CodeDescSize, "layer 0: declared size is 9 bytes, it has 8; push it again")
	refuseChange(t, size(7), chandler.CodeDescSize, "layer 0: declared size is 7 bytes, it has 8 or more; push it again")
}

func TestRefuse_B37(t *testing.T) {
	digest := func(s string) func(_, l object) { return func(_, l object) { l["digest"] = s } }
	const hint = " is not sha256: and 64 lower-case hex digits; push it again with sha256 digests"
	refuseChange(t, digest("md5:00"), chandler.CodeDigestSyntax, `layer 0: digest "md5:00"`+hint)
	refuseChange(t, digest("sha256:../../x"), chandler.CodeDigestSyntax, `layer 0: digest "sha256:../../x"`+hint)
	refuseChange(t, func(m, _ object) { m["config"] = object{"size": 1} }, chandler.CodeDigestSyntax, `config: digest ""`+hint)
}

func TestRefuse_B38(t *testing.T) {
	refuseChange(t, func(_, l object) { l["urls"] = []string{"https://h/x"} }, chandler.CodeDescForeign,
		"layer 0 points to an outside url, which is not followed; push all layers into the registry")
}

func TestRefuse_B39(t *testing.T) {
	data := func(s string) func(_, l object) { return func(_, l object) { l["data"] = s } }
	const text = "layer 0: its embedded data does not hash to its digest; push it again"
	refuseChange(t, data(base64.StdEncoding.EncodeToString([]byte("other"))), chandler.CodeDescData, text)
	refuseChange(t, data("!"), chandler.CodeDescData, text)
	s := imageOf(t, "application/wasm", good, data(base64.StdEncoding.EncodeToString([]byte(good))))
	pull(t, client(t, nil), s.request(t), []byte(good))
}

// Single-layer artifacts of every shape that is about, Higress's among them.
func TestRefuse_B41(t *testing.T) {
	for _, layer := range []string{"application/wasm", "application/vnd.module.wasm.content.layer.v1+wasm", "application/vnd.wasm.content.layer.v1+wasm"} {
		for _, config := range []string{cncfConfig, ociConfig, dockerConfig, "application/vnd.module.wasm.config.v1+json", "application/vnd.oci.empty.v1+json", ""} {
			for _, title := range []string{"plugin.wasm", "main.wasm", ""} {
				s := imageOf(t, layer, good, func(m, l object) {
					m["config"] = registry.Descriptor(config, []byte("{}"))
					if title != "" {
						l["annotations"] = object{"org.opencontainers.image.title": title}
					}
					if config == "" {
						delete(m, "config")
						m["artifactType"] = "application/vnd.wasm.plugin"
					}
				})
				req, cl := s.request(t), client(t, nil)
				seen := refusal.Begin(t)
				pull(t, cl, req, []byte(good))
				seen.Saw(refusal.Accepted, fmt.Sprintf("a layer of %s titled %q with a config of %q", layer, title, config))
			}
		}
	}
}

// What a config says is not read: what a module is, its bytes tell. So a config
// that is no JSON does no harm.
func TestRefuse_B42(t *testing.T) {
	s := imageOf(t, "application/wasm", good, func(m, _ object) { m["config"] = registry.Descriptor(cncfConfig, []byte("<html>")) })
	pull(t, client(t, nil), s.request(t), []byte(good))
	refuseChange(t, func(m, _ object) { m["config"] = object{"digest": digestOf(""), "size": -1} }, chandler.CodeDescSize, "config: declared size is -1; push it again")
	refuseChange(t, func(m, _ object) { m["config"] = object{"digest": digestOf(""), "size": 2 << 20} }, chandler.CodeConfigBlob,
		"the config declares 2097152 bytes, limit 1048576; push it with a smaller configuration")
}

func TestRefuse_B43(t *testing.T) {
	note := func(k, v string) func(m, _ object) { return func(m, _ object) { m["annotations"] = object{k: v} } }
	refuseChange(t, note("a", strings.Repeat("b", 65536)), chandler.CodeManifestAnnotation, "annotations are 65537 bytes, limit 65536; push it again with less")
	refuseChange(t, note("a", "b\x1b[0m"), chandler.CodeManifestAnnotation, `annotation "a" has a control character; push it again without`)
	refuseChange(t, func(_, l object) { l["annotations"] = object{"a\x00": ""} }, chandler.CodeManifestAnnotation,
		`layer 0: annotation "a\x00" has a control character; push it again without`)
	pull(t, client(t, nil), imageOf(t, "application/wasm", good, note("a", "two\nlines")).request(t), []byte(good))
}

func TestRefuse_B44(t *testing.T) {
	const hint = "; push it again with the right media type"
	refuseLayer(t, ociGzip, good, chandler.CodeLayerType, `layer 0 is marked gzip, but it starts with "\x00asm"`+hint)
	refuseLayer(t, ociZstd, string(gzipOf(t, nil)), chandler.CodeLayerType, `layer 0 is marked zstd, but it starts with "\x1f\x8b\b\x00" as gzip does`+hint)
	refuseLayer(t, ociTar, good, chandler.CodeLayerType, `layer 0 is marked as a plain tar, but it starts with "\x00asm"`+hint)
	refuseLayer(t, "application/wasm", string(gzipOf(t, nil)), chandler.CodeLayerType, `layer 0 is marked as a Wasm module, but it starts with "\x1f\x8b\b\x00" as gzip does`+hint)
	refuseLayer(t, "text/plain", good, chandler.CodeLayerType,
		"no layer can be read; there is text/plain; push an image whose last layer (tar, tar+gzip or tar+zstd) has plugin.wasm, or an artifact with a layer of application/wasm")
	refuseChange(t, func(m, _ object) { m["layers"] = []any{} }, chandler.CodeLayerType, "")
}

// bigTar is a tar of one entry with n zero bytes in it, without holding it.
func bigTar(t *testing.T, name string, n int64) io.Reader {
	t.Helper()
	var head bytes.Buffer
	w := tar.NewWriter(&head)
	if err := w.WriteHeader(&tar.Header{Name: name, Size: n, Typeflag: tar.TypeReg, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	return io.MultiReader(&head, strings.NewReader(good), io.LimitReader(zeros{}, n-int64(len(good))), bytes.NewReader(make([]byte, 1024)))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestRefuse_B45(t *testing.T) {
	bomb := gzipOf(t, must(io.ReadAll(bigTar(t, "plugin.wasm", 8<<20)))(t))
	for range 3 { // each member small, all together large
		bomb = append(bomb, bomb...)
	}
	const e = "layer 0: stopped at 100:1 after "
	refuseLayer(t, ociGzip, string(bomb), chandler.CodeLayerRatio, "")
	one := gzipOf(t, must(io.ReadAll(bigTar(t, "plugin.wasm", 8<<20)))(t))
	_, err := client(t, nil).Pull(t.Context(), imageOf(t, ociGzip, string(one), nil).request(t), &shelf{})
	if err == nil || !strings.HasPrefix(err.Error(), e) {
		t.Errorf("got %v, want %s...", err, e)
	}
	refuseLayer(t, ociZstd, string(zstdOf(t, must(io.ReadAll(bigTar(t, "plugin.wasm", 8<<20)))(t))), chandler.CodeLayerRatio, "")
}

func TestRefuse_B46(t *testing.T) {
	whole := string(gzipOf(t, tarOf(t, "plugin.wasm", good)))
	broken := []byte(whole)
	broken[len(broken)-8] ^= 1
	const again = "; push it again"
	refuseLayer(t, ociGzip, whole[:len(whole)-3], chandler.CodeLayerGzip, "layer 0: gzip: it is truncated after 2048 bytes"+again)
	refuseLayer(t, ociGzip, whole[:20], chandler.CodeLayerGzip, "layer 0: gzip: it is truncated after 9 bytes"+again)
	refuseLayer(t, ociGzip, string(broken), chandler.CodeLayerGzip, "layer 0: gzip: its check value is wrong after 2048 bytes"+again)
	refuseLayer(t, ociGzip, whole+"junk of some length", chandler.CodeLayerGzip, "layer 0: gzip: something else follows it after 2048 bytes"+again)
	refuseLayer(t, ociGzip, strings.Repeat(string(gzipOf(t, nil)), 10000)+whole, chandler.CodeLayerGzip, "layer 0: gzip: more than 1024 members after 0 bytes"+again)
	refuseLayer(t, ociGzip, whole[:10]+"\xff\xff\xff\xff", chandler.CodeLayerGzip, "layer 0: gzip: it is corrupt after 0 bytes"+again)
}

func TestRefuse_B48(t *testing.T) {
	// A frame whose window descriptor asks for 2 GiB, then one raw block.
	frame := "\x28\xb5\x2f\xfd\x00\xa8" + "\x41\x00\x00" + good
	refuseLayer(t, ociZstd, frame, chandler.CodeLayerZstd, "layer 0: zstd: its window is over 8388608 bytes after 0 bytes; push it again")
	whole := string(zstdOf(t, tarOf(t, "plugin.wasm", good)))
	refuseLayer(t, ociZstd, whole[:len(whole)-5], chandler.CodeLayerZstd, "")
}

func TestRefuse_B49(t *testing.T) {
	var files []string
	for i := range 1025 {
		files = append(files, fmt.Sprint("f", i), "")
	}
	refuseLayer(t, ociTar, string(tarOf(t, append(files, "plugin.wasm", good)...)), chandler.CodeTarEntries, "layer 0 has more than 1024 entries; leave out what is not needed")
	refuseLayer(t, ociTar, string(tarOf(t, append([]string{"plugin.wasm", good}, files...)...)), chandler.CodeTarEntries, "layer 0 has more than 1024 entries; leave out what is not needed")
}

// resize writes another size into the first header of a tar.
func resize(packed []byte, size []byte) string {
	b := bytes.Clone(packed)
	copy(b[124:136], size)
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return string(b)
}

func TestRefuse_B50(t *testing.T) {
	packed := tarOf(t, "plugin.wasm", good)
	base256 := func(top byte, n uint64) []byte {
		return binary.BigEndian.AppendUint64([]byte{top, 0, 0, 0}, n)
	}
	refuseLayer(t, ociTar, resize(packed, base256(0x80, 1<<32)), chandler.CodeTarSize,
		`layer 0: entry "plugin.wasm" declares 4294967296 bytes, limit 67108864; leave out what is not needed`)
	refuseLayer(t, ociTar, resize(packed, base256(0x80, 1<<40)), chandler.CodeTarSize,
		`layer 0: entry "plugin.wasm" declares 1099511627776 bytes, limit 67108864; leave out what is not needed`)
	refuseLayer(t, ociTar, resize(packed, base256(0x80, 1<<63-1)), chandler.CodeTarSize, "")
	refuseLayer(t, ociTar, resize(packed, bytes.Repeat([]byte{0xff}, 12)), chandler.CodeTarHeader, "layer 0: the header after 0 entries is no valid one; pack it again")
	refuseLayer(t, ociTar, resize(packed, []byte("00010000000\x00")), chandler.CodeTarHeader, "layer 0: the tar is truncated after 1 entries; pack it again")
}

func TestRefuse_B51(t *testing.T) {
	refuseLayer(t, ociTar, string(tarOf(t, "plugin.wasm", "")), chandler.CodeWasmEmpty, `layer 0: "plugin.wasm" is empty; build it again`)
	refuseChange(t, func(_, l object) { l["digest"] = digestOf("") }, chandler.CodeNotFound, "")
}

func TestRefuse_B52(t *testing.T) {
	refuseLayer(t, ociTar, string(tarOf(t, "plugin.wasm", good, "plugin.wasm", good)), chandler.CodeTarDuplicate,
		`layer 0 has the module as "plugin.wasm" and as "plugin.wasm"; leave one`)
	refuseLayer(t, ociGzip, string(gzipOf(t, tarOf(t, "a/plugin.wasm", good, "b/plugin.wasm", good))), chandler.CodeTarDuplicate,
		`layer 0 has the module as "a/plugin.wasm" and as "b/plugin.wasm"; leave one`)
}

func TestRefuse_B54(t *testing.T) {
	for _, c := range [][2]string{
		{"../x", `layer 0: entry name leaves the archive: "../x"; pack it with relative names`},
		{"a/../x", `layer 0: entry name leaves the archive: "a/../x"; pack it with relative names`},
		{"/x", `layer 0: entry name leaves the archive: "/x"; pack it with relative names`},
		{`a\x`, `layer 0: entry name "a\\x" has a NUL or a backslash; pack it with plain names`},
		{strings.Repeat("d/", 128), `layer 0: entry name "` + strings.Repeat("d/", 64) + `"... (256 bytes) has 256 bytes, limit 255; use shorter names`},
	} {
		refuseLayer(t, ociTar, string(tarOf(t, c[0], "", "plugin.wasm", good)), chandler.CodeTarPath, c[1])
		refuseLayer(t, ociTar, string(tarOf(t, "plugin.wasm", good, c[0], "")), chandler.CodeTarPath, c[1])
	}
}

func TestRefuse_B55(t *testing.T) {
	sparse := tarOf(t, "plugin.wasm", good)
	sparse[156] = 'S'
	copy(sparse[257:265], "ustar  \x00")
	copy(sparse[386:], "00000000000\x0000000000010\x00")
	copy(sparse[483:], "00000000010\x00")
	refuseLayer(t, ociTar, resize(sparse, []byte("00000000010\x00")), chandler.CodeTarHeader,
		`layer 0: entry "plugin.wasm" is sparse, which is not accepted; pack it without sparse files`)

	var pax bytes.Buffer
	w := tar.NewWriter(&pax)
	for _, h := range []*tar.Header{{Typeflag: tar.TypeReg, Name: "x", Size: 2 << 20}} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	giant := append(pax.Bytes(), make([]byte, 2<<20)...)
	giant[156] = 'x'
	refuseLayer(t, ociTar, resize(giant, []byte("00010000000\x00")), chandler.CodeTarHeader, "layer 0: a header after 0 entries is too long; pack it with smaller headers")

	var link bytes.Buffer
	w = tar.NewWriter(&link)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "plugin.wasm", Linkname: "/etc/passwd"}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	refuseLayer(t, ociTar, link.String(), chandler.CodeTarHeader, `layer 0: entry "plugin.wasm" is a link or a device, not a file; put the file itself into it`)
	refuseLayer(t, ociTar, string(tarOf(t, "plugin.wasm", good)[:515]), chandler.CodeTarHeader, "layer 0: the tar is truncated after 1 entries; pack it again")
}

func TestRefuse_B56(t *testing.T) {
	refuseLayer(t, ociTar, string(tarOf(t, "app/.wh.plugin.wasm", "")), chandler.CodeTarWhiteout,
		`layer 0 deletes the module with "app/.wh.plugin.wasm"; put the module into the last layer`)
}

func TestRefuse_B57(t *testing.T) {
	files := []string{}
	for i := range 12 {
		files = append(files, fmt.Sprintf("f%02d", i), "x")
	}
	refuseLayer(t, ociTar, string(tarOf(t, files...)), chandler.CodeTarMissing,
		`layer 0 has no plugin.wasm; it has "f00", "f01", "f02", "f03", "f04", "f05", "f06", "f07", "f08", "f09", and 2 more; put the module into it as plugin.wasm`)
	refuseLayer(t, ociTar, string(tarOf(t)), chandler.CodeTarMissing, "layer 0 has no plugin.wasm; it has none; put the module into it as plugin.wasm")
}

func TestRefuse_B60(t *testing.T) {
	const hint = ", which is no Wasm module; build a core Wasm module; what can be read is a module as it is, in gzip, in a tar and in a tar.gz"
	files := startFiles(t)
	cl := client(t, nil)
	for _, c := range [][2]string{
		{"<!DOCTYPE html>", `it starts with "<!DO" as HTML or XML does`},
		{"\x7fELF....", `it starts with "\x7fELF" as an ELF binary does`},
		{"(module)", `it starts with "(mod" as Wasm in text form does`},
		{"abc", `it starts with "abc"`},
		{string(zstdOf(t, []byte(good)))[:12], `it starts with "(\xb5/\xfd" as zstd does`},
		{string(gzipOf(t, gzipOf(t, module("")))), `it starts with "\x1f\x8b\b\x00" as gzip does`},
		{string(gzipOf(t, gzipOf(t, tarOf(t, "plugin.wasm", good)))), `it starts with "\x1f\x8b\b\x00" as gzip does`},
	} {
		url := files.Put("x", []byte(c[0]))
		refused(t, cl, fetch.Request{Reference: reference(t, url+"?tok=secret")}, chandler.CodeWasmMagic, `"`+url+`?tok=***": `+c[1]+hint)
	}
	url := files.Put("two", tarOf(t, "a.wasm", good, "b.wasm", good))
	refused(t, cl, fetch.Request{Reference: reference(t, url)}, chandler.CodeTarDuplicate, `"`+url+`" has the module as "a.wasm" and as "b.wasm"; leave one`)
	url = files.Put("empty", nil)
	refused(t, cl, fetch.Request{Reference: reference(t, url)}, chandler.CodeWasmEmpty, `"`+url+`" is empty; look at how it is served`)
	url = files.Put("emptygz", gzipOf(t, nil))
	refused(t, cl, fetch.Request{Reference: reference(t, url)}, chandler.CodeWasmEmpty, `"`+url+`": the module is empty; build the module again`)
}

// The module that is in a blob has a limit of its own, 64 MiB unless it is set.
func TestModuleTooLargeByDefault(t *testing.T) {
	block := make([]byte, 1<<20)
	copy(block, good)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 20 << 10 { // so that it packs about 50:1
		block[100+i] = byte(random.Uint32())
	}
	packed := bytes.Repeat(gzipOf(t, block), 65)
	url := startFiles(t).Put("x", packed)
	_, err := client(t, nil).Pull(t.Context(), fetch.Request{Reference: reference(t, url)}, &sieve{})
	judge(t, fetch.Artifact{}, err, &shelf{}, chandler.CodeModuleTooLarge,
		`"`+url+`": the module is over 67108864 bytes; build a smaller module, or let the operator raise the limit`)
}

func TestModuleTooLarge(t *testing.T) {
	files := startFiles(t)
	cl := client(t, func(c *fetch.Config) { c.MaxModule, c.MaxBlob = 100, 150 })
	url := files.Put("x", module(strings.Repeat("x", 120)))
	refused(t, cl, fetch.Request{Reference: reference(t, url)}, chandler.CodeModuleTooLarge,
		`"`+url+`": the module is over 100 bytes; build a smaller module, or let the operator raise the limit`)
}

// An answer that leads to an address that is denied, in any of its forms.
func TestRefuse_B09_Redirects(t *testing.T) {
	for _, target := range []string{"http://169.254.169.254/latest/meta-data/", "http://[::ffff:169.254.169.254]/x", "http://[fe80::1]/x", "//169.254.169.254/x"} {
		url := webServer(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, target, http.StatusFound) })
		if e := refused(t, client(t, nil), fetch.Request{Reference: reference(t, url)}, chandler.CodeHTTPRedirect, ""); e.Temporary {
			t.Errorf("temporary: %v", e)
		}
	}
}

// What of HTTP was not asked for: parts of files, and that nothing changed.
func TestRefuse_B105_Unasked(t *testing.T) {
	for _, head := range []string{
		"206 Partial Content\r\nContent-Range: bytes 0-7/8", "206 Partial Content\r\nContent-Range: bytes 100-107/8",
		"206 Partial Content\r\nContent-Range: lines 1-2", "226 IM Used", "299 Odd",
	} {
		url := rawServer(t, "HTTP/1.1 "+head+"\r\nContent-Length: 8\r\n\r\n"+good)
		if e := refused(t, client(t, nil), fetch.Request{Reference: reference(t, url)}, chandler.CodeHTTPStatus, ""); e.Temporary {
			t.Errorf("temporary: %v", e)
		}
	}
	url := rawServer(t, "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n")
	refused(t, client(t, nil), fetch.Request{Reference: reference(t, url)}, chandler.CodeHTTPStatus, "")
}

func TestRefuse_B106_OtherNumbers(t *testing.T) {
	for _, length := range []string{"0x8", "8, 9", "99999999999999999999", "+8"} {
		url := rawServer(t, "HTTP/1.1 200 OK\r\nContent-Length: "+length+"\r\n\r\n"+good)
		refused(t, client(t, nil), fetch.Request{Reference: reference(t, url)}, chandler.CodeHTTPLength, "")
	}
}

func TestRefuse_B107_KnownEncoding(t *testing.T) {
	zipped := string(gzipOf(t, []byte(good)))
	for _, encoding := range []string{"gzip", "deflate, gzip", "identity, br"} {
		url := rawServer(t, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n%s", encoding, len(zipped), zipped))
		refused(t, client(t, nil), fetch.Request{Reference: reference(t, url)}, chandler.CodeHTTPEncoding, "")
	}
}

func TestRefuse_B108_OneLongHeader(t *testing.T) {
	for _, header := range []string{"X: " + strings.Repeat("v", 65<<10), strings.Repeat("x", 65<<10) + ": v", "X: " + strings.Repeat("v", 10<<20)} {
		url := rawServer(t, "HTTP/1.1 200 OK\r\n"+header+"\r\nContent-Length: 8\r\n\r\n"+good)
		refused(t, client(t, nil), fetch.Request{Reference: reference(t, url)}, chandler.CodeHTTPHeader, "")
	}
}
