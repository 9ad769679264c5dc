package fetch_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"path"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/registry"
)

// TestPushForOthers: others read what is pushed by their own rules: Istio and Envoy
// Gateway take the last layer of an OCI image, which must be a tar in gzip with
// plugin.wasm; readers of the CNCF's layout take its only layer, and check nothing
// that their guide does not have.
func TestPushForOthers(t *testing.T) {
	t.Parallel()
	reg, cl, wasm := startRegistry(t, registry.Config{}), client(t, nil), module("others")
	for _, layout := range []fetch.Layout{fetch.LayoutCNCF, fetch.LayoutCompat} {
		url := reg.Addr + "/p:" + string(layout)
		if _, err := cl.Push(t.Context(), url, wasm, fetch.PushOptions{Layout: layout, Documents: documents, Annotations: map[string]string{"a": "b"}}); err != nil {
			t.Fatal(err)
		}
		ref, err := name.ParseReference(url)
		if err != nil {
			t.Fatal(err)
		}
		img, err := remote.Image(ref, remote.WithContext(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		m, err := img.Manifest()
		if err != nil || m.MediaType != types.OCIManifestSchema1 || m.Annotations["a"] != "b" {
			t.Fatalf("%+v, %v", m, err)
		}
		layers, err := img.Layers()
		if err != nil || len(layers) != 1 {
			t.Fatalf("%d layers, %v", len(layers), err)
		}
		r, err := layers[len(layers)-1].Compressed()
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || r.Close() != nil {
			t.Fatal(err)
		}
		config, err := img.RawConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		var said struct {
			Architecture, OS string
			LayerDigests     []string
			RootFS           struct {
				Type    string
				DiffIDs []string `json:"diff_ids"`
			}
		}
		if err := json.Unmarshal(config, &said); err != nil {
			t.Fatal(err)
		}
		if layout == fetch.LayoutCNCF {
			if m.Config.MediaType != cncfConfig || m.Layers[0].MediaType != "application/wasm" || said.Architecture != "wasm" || said.OS != "wasip1" || len(said.LayerDigests) != 1 || said.LayerDigests[0] != m.Layers[0].Digest.String() {
				t.Errorf("%+v, %s", m, config)
			}
		} else {
			if mt, err := layers[0].MediaType(); err != nil || mt != types.OCILayer || m.Config.MediaType != types.OCIConfigJSON {
				t.Errorf("%s, %v, %s", mt, err, m.Config.MediaType)
			}
			if id, err := layers[0].DiffID(); err != nil || len(said.RootFS.DiffIDs) != 1 || said.RootFS.DiffIDs[0] != id.String() || said.RootFS.Type != "layers" {
				t.Errorf("%s, %v", config, err)
			}
			got = pluginIn(t, got)
		}
		if !bytes.Equal(got, wasm) {
			t.Errorf("%s: %d bytes are not the module", layout, len(got))
		}
	}
}

// pluginIn looks for plugin.wasm as Istio does.
func pluginIn(t *testing.T, layer []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(layer))
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if path.Base(h.Name) == "plugin.wasm" {
			return must(io.ReadAll(r))(t)
		}
	}
}
