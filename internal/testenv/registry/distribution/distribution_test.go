// Package distribution_test holds what internal/fetch does against the reference
// implementation of the registry protocol. It is a module of its own, so that the
// registry's many dependencies are none of the project's: run its tests from its
// folder.
package distribution_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
	"github.com/sirupsen/logrus"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
)

type shelf struct{ content []byte }

func (s *shelf) Ingest(r io.Reader, _ chandler.ModuleDigest) (chandler.ModuleDigest, int64, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return "", 0, err
	}
	s.content = b
	return chandler.Digest[chandler.ModuleDigest](b), int64(len(b)), nil
}

// start runs the reference registry in memory on loopback.
func start(t *testing.T) (host string) {
	t.Helper()
	return startWith(t, "")
}

// startWith is start with more of a configuration.
func startWith(t *testing.T, more string) (host string) {
	t.Helper()
	logrus.SetOutput(io.Discard)
	cfg, err := configuration.Parse(strings.NewReader("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {inmemory: {}, delete: {enabled: true}}\n" + more))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	app := handlers.NewApp(ctx, cfg)
	srv := httptest.NewServer(app)
	t.Cleanup(func() {
		srv.Close()
		if err := app.Shutdown(); err != nil {
			t.Error(err)
		}
		cancel()
	})
	return srv.Listener.Addr().String()
}

func TestPushAndPull(t *testing.T) {
	host := start(t)
	c := fetch.New(fetch.Config{Dir: t.TempDir()})
	defer c.Close()
	module := append([]byte("\x00asm\x01\x00\x00\x00"), bytes.Repeat([]byte("module"), 100_000)...)
	for _, layout := range []fetch.Layout{fetch.LayoutCNCF, fetch.LayoutCompat} {
		url := host + "/team/plugin:" + string(layout)
		digest, err := c.Push(t.Context(), url, module, fetch.PushOptions{Layout: layout})
		if err != nil {
			t.Fatalf("%s: %v", layout, err)
		}
		pull(t, c, url, module)
		pull(t, c, host+"/team/plugin@"+string(digest), module)
		ref, _ := chandler.ParseReference(url)
		r, err := c.Resolve(t.Context(), fetch.Request{Reference: ref})
		if err != nil || r.Digest != digest {
			t.Errorf("%s: pushed %s, resolved %+v, %v", layout, digest, r, err)
		}
	}
	for _, id := range []string{"gone", "other/repo"} {
		ref, _ := chandler.ParseReference(host + "/team/plugin/" + id + ":v9")
		_, err := c.Pull(t.Context(), fetch.Request{Reference: ref}, &shelf{})
		if e, ok := err.(*fetch.Error); !ok || e.Problem.Code != chandler.CodeNotFound || e.Temporary {
			t.Errorf("%s: %v", id, err)
		}
	}
}

func pull(t *testing.T, c *fetch.Client, url string, want []byte) {
	t.Helper()
	ref, p := chandler.ParseReference(url)
	if p != nil {
		t.Fatal(p)
	}
	s := &shelf{}
	if _, err := c.Pull(t.Context(), fetch.Request{Reference: ref}, s); err != nil || !bytes.Equal(s.content, want) {
		t.Errorf("%s: %d bytes, %v", url, len(s.content), err)
	}
}

// TestForeignLayouts writes what other tools push, by the protocol alone.
func TestForeignLayouts(t *testing.T) {
	host := start(t)
	c := fetch.New(fetch.Config{Dir: t.TempDir(), Arch: "amd64"})
	defer c.Close()
	module := []byte("\x00asm\x01\x00\x00\x00foreign")
	const oci = "application/vnd.oci.image.manifest.v1+json"
	const index = "application/vnd.oci.image.index.v1+json"
	config := blob(t, host, "application/vnd.oci.image.config.v1+json", []byte("{}"))
	var entries []any
	for i, layerType := range []string{"application/wasm", "application/vnd.module.wasm.content.layer.v1+wasm", "application/vnd.wasm.content.layer.v1+wasm"} {
		doc := map[string]any{"schemaVersion": 2, "mediaType": oci, "config": config, "layers": []any{blob(t, host, layerType, module)}}
		tag := fmt.Sprint("v", i)
		entry := put(t, host, oci, tag, doc)
		entry["platform"] = map[string]string{"os": "linux", "architecture": []string{"amd64", "arm64", "s390x"}[i]}
		entries = append(entries, entry)
		pull(t, c, host+"/p:"+tag, module)
	}
	put(t, host, index, "all", map[string]any{"schemaVersion": 2, "mediaType": index, "manifests": entries})
	pull(t, c, host+"/p:all", module)
}

func describe(mediaType string, b []byte) map[string]any {
	sum := sha256.Sum256(b)
	return map[string]any{"mediaType": mediaType, "digest": "sha256:" + hex.EncodeToString(sum[:]), "size": len(b)}
}

func blob(t *testing.T, host, mediaType string, b []byte) map[string]any {
	t.Helper()
	d := describe(mediaType, b)
	resp, err := http.Post("http://"+host+"/v2/p/blobs/uploads/", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	at, err := resp.Location()
	if err != nil {
		t.Fatal(err)
	}
	q := at.Query()
	q.Set("digest", d["digest"].(string))
	at.RawQuery = q.Encode()
	send(t, at.String(), "application/octet-stream", b)
	return d
}

func put(t *testing.T, host, mediaType, tag string, doc map[string]any) map[string]any {
	t.Helper()
	b, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	send(t, "http://"+host+"/v2/p/manifests/"+tag, mediaType, b)
	return describe(mediaType, b)
}

func send(t *testing.T, url, mediaType string, b []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, url, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		t.Fatalf("%s: %s %s", url, resp.Status, text)
	}
}
