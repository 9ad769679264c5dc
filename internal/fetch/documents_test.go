package fetch_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/registry"
)

// Documents as their authors write them: what JSON would write otherwise must come
// back as it was.
var documents = fetch.Documents{
	Schema: []byte("{\n  \"type\": \"object\", \"description\": \"a < b & \\u00e9\"\n}\n"),
	Readme: []byte("# Plugin\r\n\r\n<b>ünder</b>\u2028 \"quoted\"\t\\ 🚢\n"),
}

// TestDocuments: what travels with a module arrives byte for byte, in both layouts,
// and the artifact has one layer all the same.
func TestDocuments(t *testing.T) {
	t.Parallel()
	reg, cl, wasm := startRegistry(t, registry.Config{}), client(t, nil), module("documented")
	for _, layout := range []fetch.Layout{fetch.LayoutCNCF, fetch.LayoutCompat} {
		for name, want := range map[string]fetch.Documents{
			"both": documents, "none": {}, "schema": {Schema: documents.Schema}, "readme": {Readme: documents.Readme},
		} {
			url := reg.Addr + "/p:" + name + "-" + string(layout)
			opts := fetch.PushOptions{Layout: layout, Documents: want, Annotations: map[string]string{"a": "<1>"}}
			digest, err := cl.Push(t.Context(), url, wasm, opts)
			if err != nil {
				t.Fatal(err)
			}
			again, err := cl.Push(t.Context(), reg.Addr+"/p:again", wasm, opts)
			if err != nil || again != digest {
				t.Errorf("pushed again: %s, %v, want %s", again, err, digest)
			}
			got, err := cl.Documents(t.Context(), fetch.Request{Reference: reference(t, url)})
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%s: got %q, %v, want %q", url, got, err, want)
			}
			pull(t, cl, fetch.Request{Reference: reference(t, url)}, wasm)
		}
	}
}

// TestDocumentsOfOthers: documents are found where other tools put them, and an
// artifact without them is no error.
func TestDocumentsOfOthers(t *testing.T) {
	t.Parallel()
	reg, cl := startRegistry(t, registry.Config{}), client(t, nil)
	wasm, image := string(module("x")), string(gzipOf(t, tarOf(t, "plugin.wasm", string(module("x")))))
	must(reg.PutArtifact("p", "oras", ociManifest, cncfConfig, "application/wasm", wasm, "application/schema+json", "{}", "text/markdown", "# A"))(t)
	must(reg.PutArtifact("p", "higress", ociManifest, ociConfig, "application/vnd.module.wasm.spec.v1+yaml", "a: 1", "application/vnd.module.wasm.doc.v1+markdown", "# B", ociGzip, image))(t)
	must(reg.PutArtifact("p", "bare", ociManifest, "application/vnd.oci.empty.v1+json", "application/wasm", wasm))(t)
	put := func(tag, configType, config string) {
		t.Helper()
		must(reg.PutBlob("p", []byte(config)))(t)
		must(reg.PutBlob("p", []byte(image)))(t)
		raw := must(json.Marshal(map[string]any{
			"schemaVersion": 2, "mediaType": dockerManifest, "config": registry.Descriptor(configType, []byte(config)),
			"layers": []any{registry.Descriptor(dockerLayer, []byte(image))},
		}))(t)
		must(reg.PutManifest("p", tag, dockerManifest, raw))(t)
	}
	put("docker", dockerConfig, `{"architecture":"amd64","config":{"Labels":{"dev.chandler.schema":"{\"a\":1}","other":"x"}}}`)
	put("odd", dockerConfig, `{"config":{"Labels":["dev.chandler.schema"]}}`)
	put("text", dockerConfig, `no json`)
	put("foreign", "application/x", `{"config":{"Labels":{"dev.chandler.schema":"{}"}}}`)
	for tag, want := range map[string]fetch.Documents{
		"oras": {Schema: []byte("{}"), Readme: []byte("# A")}, "higress": {Readme: []byte("# B")}, "bare": {},
		"docker": {Schema: []byte(`{"a":1}`)}, "odd": {}, "text": {}, "foreign": {},
	} {
		got, err := cl.Documents(t.Context(), fetch.Request{Reference: reference(t, reg.Addr+"/p:"+tag)})
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %q, %v, want %q", tag, got, err, want)
		}
	}
	got, err := cl.Documents(t.Context(), fetch.Request{Reference: reference(t, "https://h.example/p.wasm")})
	if err != nil || !reflect.DeepEqual(got, fetch.Documents{}) {
		t.Errorf("https: %q, %v", got, err)
	}
}

// TestDocumentsAreBounded: neither pushed nor read beyond measure.
func TestDocumentsAreBounded(t *testing.T) {
	t.Parallel()
	reg, cl := startRegistry(t, registry.Config{}), client(t, nil)
	large := strings.Repeat("a", fetch.MaxDocument+1)
	for name, d := range map[string]fetch.Documents{
		"schema is 262145 bytes, limit 262144": {Schema: []byte(large)}, "readme is 262145 bytes": {Readme: []byte(large)},
		"readme is not valid UTF-8":               {Readme: []byte("\xff")},
		"with the documents in it, limit 1048576": {Schema: []byte(strings.Repeat("\x01", fetch.MaxDocument))},
	} {
		_, err := cl.Push(t.Context(), reg.Addr+"/p:v1", module("x"), fetch.PushOptions{Documents: d})
		if e := judge(t, fetch.Artifact{}, err, &shelf{}, chandler.CodeConfigBlob, ""); !strings.Contains(e.Error(), name) {
			t.Errorf("got %s, want %s", e, name)
		}
	}
	if n := reg.Counts(); n.Other > 0 {
		t.Errorf("something was pushed: %+v", n)
	}
	must(reg.PutArtifact("p", "large", ociManifest, cncfConfig, "application/wasm", string(module("x")), "text/markdown", large))(t)
	_, err := cl.Documents(t.Context(), fetch.Request{Reference: reference(t, reg.Addr+"/p:large")})
	judge(t, fetch.Artifact{}, err, &shelf{}, chandler.CodeConfigBlob, "the artifact's readme is 262145 bytes, limit 262144; push it with a smaller one")
	if n := reg.Counts(); n.BlobBytes > 1024 {
		t.Errorf("%d bytes were read", n.BlobBytes)
	}
}
