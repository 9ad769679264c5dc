package fetch_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/registry"
)

// signed is a registry with an artifact and one signature at cosign's tag.
func signed(t *testing.T, cfg registry.Config) (*registry.Registry, chandler.Reference, chandler.ArtifactDigest) {
	t.Helper()
	r, err := registry.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	digest, err := r.PutArtifact("p", "v1", ociManifest, ociConfig, "application/wasm", good)
	if err != nil {
		t.Fatal(err)
	}
	tag := strings.Replace(digest, ":", "-", 1) + ".sig"
	if _, err := r.PutArtifact("p", tag, ociManifest, ociConfig, fetch.TypeSimpleSigning, "payload", "application/other", "x"); err != nil {
		t.Fatal(err)
	}
	return r, reference(t, r.Addr+"/p:v1"), chandler.ArtifactDigest(digest)
}

func TestSignatures(t *testing.T) {
	r, ref, digest := signed(t, registry.Config{})
	cl := client(t, nil)
	got, err := cl.Signatures(t.Context(), ref, digest, nil)
	if err != nil || len(got.Found) != 1 || got.Listed != 1 || len(got.Faults) > 0 {
		t.Fatalf("%+v, %v", got, err)
	}
	if s := got.Found[0]; string(s.Content) != "payload" || s.MediaType != fetch.TypeSimpleSigning || !strings.HasPrefix(s.Where, "signature 0 of tag sha256-") {
		t.Errorf("%+v", s)
	}
	none, err := cl.Signatures(t.Context(), ref, chandler.ArtifactDigest("sha256:"+strings.Repeat("0", 64)), nil)
	if err != nil || len(none.Found)+none.Listed+len(none.Faults) > 0 {
		t.Errorf("%+v, %v", none, err)
	}
	// Other bytes under the digest of a signature are a fault of that signature.
	r.Fail(nil)
	s := &script{contentType: ociManifest, blobs: map[string]string{digestOf("payload"): "another"}, manifest: toJSON(t, object{
		"schemaVersion": 2, "mediaType": ociManifest, "layers": []any{registry.Descriptor(fetch.TypeSimpleSigning, []byte("payload"))},
	})}
	got, err = cl.Signatures(t.Context(), reference(t, s.start(t)+"/p:v1"), digest, nil)
	if err != nil || len(got.Found) > 0 || len(got.Faults) != 1 || got.Faults[0].Code != chandler.CodeDigestMismatch {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestSignaturesOfRegistry: what keeps all signatures from being seen is an error,
// since without it they might suffice.
func TestSignaturesOfRegistry(t *testing.T) {
	r, ref, digest := signed(t, registry.Config{})
	for _, part := range []string{"/referrers/", ".sig", "/blobs/"} {
		for status, code := range map[int]chandler.Code{503: chandler.CodeFetchFailed, 429: chandler.CodeFetchFailed, 401: chandler.CodeUnauthorized, 403: chandler.CodeUnauthorized, 0: chandler.CodeFetchFailed} {
			r.Fail(func(req *http.Request) (int, bool) { return status, strings.Contains(req.URL.Path, part) })
			got, err := client(t, nil).Signatures(t.Context(), ref, digest, nil)
			var e *fetch.Error
			if !errors.As(err, &e) || e.Problem.Code != code || e.Temporary != (code == chandler.CodeFetchFailed) || len(got.Found) > 0 {
				t.Errorf("%s answers %d: %+v, %v", part, status, got, err)
			}
		}
	}
	r.Fail(func(req *http.Request) (int, bool) { return 404, strings.Contains(req.URL.Path, "/referrers/") })
	if got, err := client(t, nil).Signatures(t.Context(), ref, digest, nil); err != nil || len(got.Found) != 1 {
		t.Errorf("without referrers: %+v, %v", got, err)
	}
}

// TestSignaturesWithCredentials: signatures are read with those of the module.
func TestSignaturesWithCredentials(t *testing.T) {
	r, ref, digest := signed(t, registry.Config{Username: "u", Password: "hunter2", Token: true})
	if _, err := client(t, nil).Signatures(t.Context(), ref, digest, nil); err == nil {
		t.Error("read without credentials")
	}
	creds := fetch.NewCredentials(r.Addr, "u", "hunter2")
	if got, err := client(t, nil).Signatures(t.Context(), ref, digest, creds); err != nil || len(got.Found) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestRefuse_B112: a list of what refers to an artifact, whose pages lead to another
// host or another list, in a circle, or to no end. Nothing is asked there, and the
// signatures that are elsewhere are read all the same.
func TestRefuse_B112(t *testing.T) {
	digest := chandler.ArtifactDigest("sha256:" + strings.Repeat("a", 64))
	var pages int
	for text, next := range map[string]func(r *http.Request) string{
		`at another place, "169.254.169.254/v2/p/referrers/`: func(r *http.Request) string { return "http://169.254.169.254" + r.URL.Path + "?page=1" },
		`at another place, "127.0.0.1`:                       func(*http.Request) string { return "/v2/p/tags/list?page=1" },
		"its pages lead in a circle":                         func(*http.Request) string { return "?page=1" },
		"it has more than 10 pages":                          func(*http.Request) string { return fmt.Sprint("?page=", pages) },
	} {
		pages = 0
		s := &script{contentType: ociManifest, blobs: map[string]string{digestOf("payload"): "payload"}, manifest: toJSON(t, object{
			"schemaVersion": 2, "mediaType": ociManifest, "layers": []any{registry.Descriptor(fetch.TypeSimpleSigning, []byte("payload"))},
		}), before: func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/tags/") {
				t.Errorf("%s was asked for", r.URL)
			}
			if !strings.Contains(r.URL.Path, "/referrers/") {
				return false
			}
			pages++
			w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
			w.Header().Set("Link", "<"+next(r)+`>; rel="next"`)
			fmt.Fprint(w, `{"schemaVersion":2,"manifests":[]}`)
			return true
		}}
		got, err := client(t, nil).Signatures(t.Context(), reference(t, s.start(t)+"/p:v1"), digest, nil)
		if err != nil || len(got.Found) != 1 || len(got.Faults) != 1 {
			t.Errorf("%s: %+v, %v", text, got, err)
			continue
		}
		if p := got.Faults[0]; p.Code != chandler.CodeHTTPLink || !strings.Contains(p.Message, text) || p.Hint == "" || pages > 10 {
			t.Errorf("%d pages, %s: %s", pages, p.Code, p.Message)
		}
		t.Attr("refusal", string(got.Faults[0].Code))
	}
}

// mirrors has the places of every registry.
type mirrors []fetch.Endpoint

func (m mirrors) Endpoints(string) ([]fetch.Endpoint, error) { return m, nil }

// TestSignaturesOfMirrors: a place without signatures leads to the next; one that
// may not say what a tag means is not asked; and that there are none is the last
// one's word, which is the registry's.
func TestSignaturesOfMirrors(t *testing.T) {
	full, ref, digest := signed(t, registry.Config{})
	empty, err := registry.Start(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer empty.Close()
	at := func(r *registry.Registry, resolve bool) fetch.Endpoint {
		return fetch.Endpoint{Scheme: "http", Host: r.Addr, Path: "/v2", Pull: true, Resolve: resolve}
	}
	ref.Host = "reg.example"
	for _, c := range []struct {
		places mirrors
		want   int
	}{
		{mirrors{at(full, true)}, 1}, {mirrors{at(empty, true), at(full, true)}, 1}, {mirrors{at(full, true), at(empty, true)}, 1},
		{mirrors{at(full, false), at(empty, true)}, 0}, {mirrors{at(empty, true)}, 0},
	} {
		cl := client(t, func(cfg *fetch.Config) { cfg.Hosts = c.places })
		if got, err := cl.Signatures(t.Context(), ref, digest, nil); err != nil || len(got.Found) != c.want {
			t.Errorf("%+v: %+v, %v", c.places, got, err)
		}
	}
	full.Fail(func(*http.Request) (int, bool) { return http.StatusServiceUnavailable, true })
	var e *fetch.Error
	cl := client(t, func(cfg *fetch.Config) { cfg.Hosts = mirrors{at(empty, true), at(full, true)} })
	if _, err := cl.Signatures(t.Context(), ref, digest, nil); !errors.As(err, &e) || !e.Temporary {
		t.Errorf("the registry is away: %v", err)
	}
}
