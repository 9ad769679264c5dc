package airgap

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
)

// Client reads the archive, with what else cfg says. Repositories have the tags and
// manifests that names in the archive say; blobs, which manifests lead to, are anybody's.
func (a *Archive) Client(cfg fetch.Config) *fetch.Client {
	cfg.Transport, cfg.Hosts, cfg.Keychain = a, nil, nil
	return fetch.New(cfg)
}

// RoundTrip implements http.RoundTripper: it answers as a registry does that is only
// read.
func (a *Archive) RoundTrip(req *http.Request) (*http.Response, error) {
	return a.layout.roundTrip(req)
}

func (l *layout) roundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		req.Body.Close()
	}
	rest, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	if !ok || req.Method != http.MethodGet && req.Method != http.MethodHead {
		return answer(req, http.StatusNotFound, "", nil, 0), nil
	}
	for _, part := range []struct {
		name string
		get  func(repository, id string) (mediaType string, body io.ReadCloser, size int64, err error)
	}{{"/manifests/", l.manifest}, {"/blobs/", l.plain}, {"/referrers/", l.list}} {
		i := strings.LastIndex(rest, part.name)
		if i < 0 {
			continue
		}
		mediaType, body, size, err := part.get(registryOf(req)+"/"+rest[:i], rest[i+len(part.name):])
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return answer(req, http.StatusNotFound, "", nil, 0), nil
		case err != nil:
			return nil, err
		}
		return answer(req, http.StatusOK, mediaType, body, size), nil
	}
	return answer(req, http.StatusNotFound, "", nil, 0), nil
}

// registryOf is the registry that is asked for: a mirror of several is told of which.
func registryOf(req *http.Request) string {
	switch ns := req.URL.Query().Get("ns"); ns {
	case "":
		return req.URL.Host
	case "docker.io":
		return chandler.DefaultRegistry
	default:
		return ns
	}
}

func (l *layout) manifest(repository, id string) (string, io.ReadCloser, int64, error) {
	digest := id
	if e, ok := l.tagged[repository+":"+id]; ok {
		digest = e.Digest
	} else if !l.within[repository][digest] {
		return "", nil, 0, fs.ErrNotExist
	}
	raw, err := l.read(digest)
	if err != nil {
		return "", nil, 0, err
	}
	return mediaTypeOf(raw), io.NopCloser(bytes.NewReader(raw)), int64(len(raw)), nil
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

func (l *layout) plain(_, id string) (string, io.ReadCloser, int64, error) {
	body, size, err := l.blob(id)
	return "application/octet-stream", body, size, err
}

func (l *layout) list(repository, id string) (string, io.ReadCloser, int64, error) {
	all := []entry{}
	if l.within[repository][id] {
		all = append(all, l.referrers[id]...)
	}
	raw, err := json.Marshal(index{2, typeIndex, all})
	return typeIndex, io.NopCloser(bytes.NewReader(raw)), int64(len(raw)), err
}

func answer(req *http.Request, status int, mediaType string, body io.ReadCloser, size int64) *http.Response {
	h := http.Header{}
	if mediaType != "" {
		h.Set("Content-Type", mediaType)
	}
	h.Set("Content-Length", strconv.FormatInt(size, 10))
	if body != nil && req.Method == http.MethodHead {
		body.Close()
		body = nil
	}
	if body == nil {
		body = http.NoBody
	}
	return &http.Response{
		Status: http.StatusText(status), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h, ContentLength: size, Body: body, Request: req,
	}
}
