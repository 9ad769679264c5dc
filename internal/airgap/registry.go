package airgap

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
)

// Client reads the archive, with what else cfg says. Every registry and repository
// has the archive's blobs, and those that its names say have the tags.
func (a *Archive) Client(cfg fetch.Config) *fetch.Client {
	cfg.Transport, cfg.Hosts, cfg.Keychain = a, nil, nil
	return fetch.New(cfg)
}

// RoundTrip implements http.RoundTripper: it answers as a registry does that is only
// read.
func (a *Archive) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		req.Body.Close()
	}
	rest, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	if !ok || req.Method != http.MethodGet && req.Method != http.MethodHead {
		return answer(req, http.StatusNotFound, "", nil, 0), nil
	}
	for _, kind := range []struct {
		part string
		get  func(repository, id string) (mediaType string, body io.Reader, size int64, ok bool)
	}{{"/manifests/", a.manifest}, {"/blobs/", a.plain}, {"/referrers/", a.list}} {
		i := strings.LastIndex(rest, kind.part)
		if i < 0 {
			continue
		}
		mediaType, body, size, ok := kind.get(req.URL.Host+"/"+rest[:i], rest[i+len(kind.part):])
		if !ok {
			break
		}
		return answer(req, http.StatusOK, mediaType, body, size), nil
	}
	return answer(req, http.StatusNotFound, "", nil, 0), nil
}

func (a *Archive) manifest(repository, id string) (string, io.Reader, int64, bool) {
	digest := id
	if e, ok := a.tagged[repository+":"+id]; ok {
		digest = e.Digest
	}
	if _, ok := a.blobs[digest]; !ok {
		return "", nil, 0, false
	}
	raw, err := a.read(digest)
	if err != nil {
		return "", nil, 0, false
	}
	return mediaTypeOf(raw), bytes.NewReader(raw), int64(len(raw)), true
}

// mediaTypeOf is what a manifest says of itself or, if it says nothing, what it must
// be.
func mediaTypeOf(raw []byte) string {
	var m struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
	}
	switch {
	case json.Unmarshal(raw, &m) != nil:
		return "application/octet-stream"
	case m.MediaType != "":
		return chandler.Printable(m.MediaType, 256)
	case m.Manifests != nil:
		return typeIndex
	}
	return "application/vnd.oci.image.manifest.v1+json"
}

func (a *Archive) plain(_, id string) (string, io.Reader, int64, bool) {
	body, size, ok := a.blobReader(id)
	return "application/octet-stream", body, size, ok
}

func (a *Archive) list(_, id string) (string, io.Reader, int64, bool) {
	raw, err := json.Marshal(index{2, typeIndex, append([]entry{}, a.referrers[id]...)})
	return typeIndex, bytes.NewReader(raw), int64(len(raw)), err == nil
}

func answer(req *http.Request, status int, mediaType string, body io.Reader, size int64) *http.Response {
	h := http.Header{}
	if mediaType != "" {
		h.Set("Content-Type", mediaType)
	}
	h.Set("Content-Length", strconv.FormatInt(size, 10))
	if body == nil || req.Method == http.MethodHead {
		body = bytes.NewReader(nil)
	}
	return &http.Response{
		Status: http.StatusText(status), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h, ContentLength: size, Body: io.NopCloser(body), Request: req,
	}
}
