package fetch_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/registry"
)

// taker counts what is exported, and may refuse it.
type taker struct {
	blobs, manifests []string
	refuses          error
}

func (k *taker) Blob(_ context.Context, d fetch.Descriptor, r io.ReaderAt) error {
	b, err := io.ReadAll(io.NewSectionReader(r, 0, d.Size+1))
	if err == nil && string(chandler.Digest[chandler.BlobDigest](b)) != d.Digest {
		err = fmt.Errorf("blob %s has other bytes", d.Digest)
	}
	k.blobs = append(k.blobs, d.Digest)
	return errors.Join(err, k.refuses)
}

func (k *taker) Manifest(_ context.Context, m fetch.Manifest) error {
	k.manifests = append(k.manifests, m.Digest)
	return nil
}

// TestExportRefused: what cannot be copied whole is not copied, and says why.
func TestExportRefused(t *testing.T) {
	t.Parallel()
	wasm := string(module("x"))
	referrer := func(t *testing.T, reg *registry.Registry, digest string, layer []byte) {
		t.Helper()
		raw := must(json.Marshal(map[string]any{
			"schemaVersion": 2, "mediaType": ociManifest, "layers": []any{registry.Descriptor("x", layer)}, "subject": map[string]any{"mediaType": ociManifest, "digest": digest, "size": 1},
		}))(t)
		must(reg.PutManifest("p", string(chandler.Digest[chandler.ArtifactDigest](raw)), ociManifest, raw))(t)
	}
	for name, c := range map[string]struct {
		spoil func(*testing.T, *registry.Registry, string)
		code  chandler.Code
		text  string
	}{
		"a blob is gone": {func(_ *testing.T, reg *registry.Registry, _ string) {
			reg.Fail(func(r *http.Request) (int, bool) {
				return http.StatusNotFound, strings.HasSuffix(r.URL.Path, string(chandler.Digest[chandler.BlobDigest]([]byte(wasm)))[7:])
			})
		}, chandler.CodeNotFound, "404"},
		"a signature's blob is gone": {func(t *testing.T, reg *registry.Registry, digest string) {
			referrer(t, reg, digest, []byte("not there"))
		}, chandler.CodeNotFound, "404"},
		"too many refer to it": {func(t *testing.T, reg *registry.Registry, digest string) {
			for i := range 51 {
				layer := fmt.Appendf(nil, "%d", i)
				must(reg.PutBlob("p", layer))(t)
				referrer(t, reg, digest, layer)
			}
		}, chandler.CodeSigLimit, "more than 50 manifests refer to sha256:"},
		"the list of what refers to it is not shown": {func(_ *testing.T, reg *registry.Registry, _ string) {
			reg.Fail(func(r *http.Request) (int, bool) {
				return http.StatusForbidden, strings.Contains(r.URL.Path, "/referrers/")
			})
		}, chandler.CodeUnauthorized, "403"},
		"an index in an index": {func(t *testing.T, reg *registry.Registry, digest string) {
			raw := must(json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": []any{map[string]any{"mediaType": ociIndex, "digest": digest, "size": 1}}}))(t)
			must(reg.PutManifest("p", "v1", ociIndex, raw))(t)
		}, chandler.CodeIndex, "entry 0 of the index"},
		"an outside layer": {func(t *testing.T, reg *registry.Registry, _ string) {
			d := registry.Descriptor("application/wasm", []byte(wasm))
			d["urls"] = []string{"http://other.example/x"}
			raw := must(json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": ociManifest, "layers": []any{d}}))(t)
			must(reg.PutManifest("p", "v1", ociManifest, raw))(t)
		}, chandler.CodeDescForeign, "points to an outside url"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg, cl := startRegistry(t, registry.Config{}), client(t, nil)
			digest := must(reg.PutArtifact("p", "v1", ociManifest, ociConfig, "application/wasm", wasm))(t)
			c.spoil(t, reg, digest)
			_, err := cl.Export(t.Context(), fetch.Request{Reference: reference(t, reg.Addr+"/p:v1")}, &taker{})
			if e := judge(t, fetch.Artifact{}, err, &shelf{}, c.code, ""); !strings.Contains(e.Error(), c.text) {
				t.Errorf("got %s, want %s", e, c.text)
			}
		})
	}
}

// TestExportOldList: a list may name what was removed since; the rest is copied.
func TestExportOldList(t *testing.T) {
	t.Parallel()
	reg, cl := startRegistry(t, registry.Config{}), client(t, nil)
	digest := must(reg.PutArtifact("p", "v1", ociManifest, ociConfig, "application/wasm", string(module("x"))))(t)
	there := must(reg.PutArtifact("p", "about", ociManifest, ociConfig, "text/plain", "about"))(t)
	gone := must(reg.PutArtifact("p", "gone", ociManifest, ociConfig, "text/plain", "gone"))(t)
	reg.Fail(func(r *http.Request) (int, bool) {
		return http.StatusNotFound, strings.Contains(r.URL.Path, "/referrers/")
	})
	list := must(json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": []any{
		map[string]any{"mediaType": ociManifest, "digest": gone, "size": 9}, map[string]any{"mediaType": ociManifest, "digest": there, "size": 9},
	}}))(t)
	must(reg.PutManifest("p", strings.Replace(digest, ":", "-", 1), ociIndex, list))(t)
	if err := reg.Delete("p", gone); err != nil {
		t.Fatal(err)
	}
	k := &taker{}
	got, err := cl.Export(t.Context(), fetch.Request{Reference: reference(t, reg.Addr+"/p:v1")}, k)
	if err != nil || string(got) != digest || len(k.manifests) != 2 || k.manifests[1] != there || len(k.blobs) != 3 {
		t.Errorf("%s, %v, %+v", got, err, k)
	}
}

// TestExportReceiver: why a receiver could not take something comes back as it is,
// and no other place is asked.
func TestExportReceiver(t *testing.T) {
	t.Parallel()
	reg := startRegistry(t, registry.Config{})
	other := startRegistry(t, registry.Config{})
	for _, r := range []*registry.Registry{reg, other} {
		must(r.PutArtifact("p", "v1", ociManifest, ociConfig, "application/wasm", string(module("x"))))(t)
	}
	cl := client(t, func(cfg *fetch.Config) {
		cfg.Hosts = hostsOf{"registry.example": {
			{Scheme: "http", Host: other.Addr, Path: "/v2", Pull: true, Resolve: true}, {Scheme: "http", Host: reg.Addr, Path: "/v2", Pull: true, Resolve: true},
		}}
	})
	full := errors.New("no room")
	if _, err := cl.Export(t.Context(), fetch.Request{Reference: reference(t, "registry.example/p:v1")}, &taker{refuses: full}); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
	if n := reg.Counts(); n.ManifestGet > 0 {
		t.Errorf("another place was asked: %+v", n)
	}
	k := &taker{}
	other.Fail(func(r *http.Request) (int, bool) { return 0, strings.Contains(r.URL.Path, "/blobs/") })
	if _, err := cl.Export(t.Context(), fetch.Request{Reference: reference(t, "registry.example/p:v1")}, k); err != nil || len(k.manifests) != 1 {
		t.Errorf("the next place is not asked: %v, %+v", err, k)
	}
}

type hostsOf map[string][]fetch.Endpoint

func (h hostsOf) Endpoints(registry string) ([]fetch.Endpoint, error) { return h[registry], nil }

// TestCopy: from one registry to another, both of which want credentials.
func TestCopy(t *testing.T) {
	t.Parallel()
	for _, cfg := range []registry.Config{{}, {Username: "u", Password: "secret"}, {Username: "u", Password: "secret", Token: true}} {
		from, to, cl := startRegistry(t, cfg), startRegistry(t, cfg), client(t, nil)
		own := func(r *registry.Registry) *fetch.Credentials { return fetch.NewCredentials(r.Addr, "u", "secret") }
		wasm := module(strings.Repeat("module", 100_000))
		digest, err := cl.Push(t.Context(), from.Addr+"/p:v1", wasm, fetch.PushOptions{Documents: documents, Credentials: own(from)})
		if err != nil {
			t.Fatal(err)
		}
		copyTo := func(creds *fetch.Credentials) (chandler.ArtifactDigest, error) {
			repository, err := cl.Repository(t.Context(), reference(t, to.Addr+"/a/b:v1"), creds)
			if err != nil {
				return "", err
			}
			return cl.Export(t.Context(), fetch.Request{Reference: reference(t, from.Addr+"/p:v1"), Credentials: own(from)}, repository)
		}
		if cfg.Username != "" {
			_, err := copyTo(nil)
			judge(t, fetch.Artifact{}, err, &shelf{}, chandler.CodeUnauthorized, "")
		}
		got, err := copyTo(own(to))
		if err != nil || got != digest {
			t.Errorf("%+v: %s, %v, want %s", cfg, got, err, digest)
		}
		req := fetch.Request{Reference: reference(t, to.Addr+"/a/b:v1"), Credentials: own(to)}
		if a := pull(t, cl, req, wasm); a.Digest != digest {
			t.Errorf("%+v: %+v", cfg, a)
		}
		before := to.Counts()
		if _, err := copyTo(own(to)); err != nil {
			t.Error(err)
		}
		if after := to.Counts(); after.Other-before.Other > 8 {
			t.Errorf("what is there is uploaded again: %+v, then %+v", before, after)
		}
	}
}

// TestPushAnswers: a registry that answers without end ends no push with all memory.
func TestPushAnswers(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.Path, "/manifests/") || r.Method != http.MethodGet {
			switch {
			case r.URL.Path == "/v2/":
			case r.Method == http.MethodHead:
			case strings.Contains(r.URL.Path, "/referrers/"):
				w.WriteHeader(http.StatusNotFound)
			default:
				w.WriteHeader(http.StatusCreated)
			}
			return
		}
		fmt.Fprint(w, `{"schemaVersion":2,"mediaType":"`+ociIndex+`","manifests":[`)
		for range 4096 { // far more than may be read
			if _, err := fmt.Fprint(w, strings.Repeat(`{"size":1},`, 1000)); err != nil {
				return
			}
		}
	}))
	defer srv.Close()
	cl := client(t, nil)
	repository, err := cl.Repository(t.Context(), reference(t, srv.Listener.Addr().String()+"/p:v1"), nil)
	if err != nil {
		t.Fatal(err)
	}
	raw := []byte(`{"schemaVersion":2,"mediaType":"` + ociManifest + `","subject":{"mediaType":"` + ociManifest + `","digest":"sha256:` + strings.Repeat("0", 64) + `","size":1}}`)
	d := fetch.Descriptor{MediaType: ociManifest, Digest: string(chandler.Digest[chandler.ArtifactDigest](raw)), Size: int64(len(raw))}
	err = repository.Manifest(t.Context(), fetch.Manifest{Descriptor: d, Raw: raw})
	var e *fetch.Error
	if !errors.As(err, &e) {
		t.Errorf("got %v", err)
	}
}
