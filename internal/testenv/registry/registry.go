// Package registry has servers on loopback to fetch modules from, for tests and
// the demonstration: an OCI registry that counts what is asked of it, wants
// credentials or fails when it is told to, and a plain file server. Both hold all
// in memory. Nothing here is part of the product.
package registry

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	oci "github.com/google/go-containerregistry/pkg/registry"

	"chandler.dev/chandler/internal/testenv/ports"
)

// Config says how a Registry behaves; its zero value works.
type Config struct {
	// Addr is where it listens; empty is a free port of 127.0.0.1.
	Addr string
	// With Username it asks for credentials, by Basic, or with Token for a token
	// that its own token server gives for them.
	Username, Password string
	Token              bool
}

// Registry is an OCI registry over plain HTTP.
type Registry struct {
	// Addr is its host and port, the host of references to it.
	Addr string

	*server
	cfg     Config
	handler http.Handler

	tokenMu sync.Mutex
	tokens  map[string]bool
}

// Start begins to serve; Close ends it.
func Start(cfg Config) (*Registry, error) {
	r := &Registry{cfg: cfg, tokens: map[string]bool{}, handler: oci.New(oci.Logger(log.New(io.Discard, "", 0)), oci.WithReferrersSupport(true))}
	s, err := serve(cfg.Addr, r.answer)
	if err != nil {
		return nil, err
	}
	r.server, r.Addr = s, s.addr
	return r, nil
}

func (r *Registry) answer(w http.ResponseWriter, req *http.Request) {
	switch {
	case req.URL.Path == "/token":
		r.giveToken(w, req)
	case !r.admits(req):
		challenge := `Basic realm="test"`
		if r.cfg.Token {
			challenge = fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, r.Addr)
		}
		w.Header().Set("WWW-Authenticate", challenge)
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"credentials are needed"}]}`, http.StatusUnauthorized)
	default:
		r.handler.ServeHTTP(w, req)
	}
}

func (r *Registry) admits(req *http.Request) bool {
	if r.cfg.Username == "" {
		return true
	}
	if !r.cfg.Token {
		return r.knows(req)
	}
	token, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
	r.tokenMu.Lock()
	defer r.tokenMu.Unlock()
	return ok && r.tokens[token]
}

func (r *Registry) knows(req *http.Request) bool {
	user, password, ok := req.BasicAuth()
	return ok && user == r.cfg.Username && subtle.ConstantTimeCompare([]byte(password), []byte(r.cfg.Password)) == 1
}

func (r *Registry) giveToken(w http.ResponseWriter, req *http.Request) {
	if !r.knows(req) {
		http.Error(w, "{}", http.StatusUnauthorized)
		return
	}
	token := rand.Text()
	r.tokenMu.Lock()
	r.tokens[token] = true
	r.tokenMu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"token":%q,"expires_in":60}`, token)
}

// ExpireTokens makes every token given so far worthless.
func (r *Registry) ExpireTokens() {
	r.tokenMu.Lock()
	defer r.tokenMu.Unlock()
	clear(r.tokens)
}

// PutBlob stores a blob, past credentials, faults and counts, and gives its
// digest.
func (r *Registry) PutBlob(repository string, content []byte) (string, error) {
	digest := digestOf(content)
	return digest, r.put(http.MethodPost, "/v2/"+repository+"/blobs/uploads/?digest="+digest, "application/octet-stream", content)
}

// PutManifest stores a manifest under a tag, past credentials, faults and counts,
// and gives its digest.
func (r *Registry) PutManifest(repository, tag, mediaType string, manifest []byte) (string, error) {
	return digestOf(manifest), r.put(http.MethodPut, "/v2/"+repository+"/manifests/"+tag, mediaType, manifest)
}

// Delete removes a manifest by tag or digest.
func (r *Registry) Delete(repository, id string) error {
	return r.put(http.MethodDelete, "/v2/"+repository+"/manifests/"+id, "", nil)
}

// Descriptor describes content as manifests do.
func Descriptor(mediaType string, content []byte) map[string]any {
	return map[string]any{"mediaType": mediaType, "digest": digestOf(content), "size": len(content)}
}

// PutArtifact stores layers and a manifest of them under a tag and gives the
// manifest's digest. Layers alternate media type and content.
func (r *Registry) PutArtifact(repository, tag, mediaType, configType string, layers ...string) (string, error) {
	const config = "{}"
	m := map[string]any{"schemaVersion": 2, "mediaType": mediaType, "config": Descriptor(configType, []byte(config))}
	descriptors := []any{}
	if _, err := r.PutBlob(repository, []byte(config)); err != nil {
		return "", err
	}
	for i := 0; i+1 < len(layers); i += 2 {
		descriptors = append(descriptors, Descriptor(layers[i], []byte(layers[i+1])))
		if _, err := r.PutBlob(repository, []byte(layers[i+1])); err != nil {
			return "", err
		}
	}
	m["layers"] = descriptors
	raw, err := json.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("manifest: %w", err)
	}
	return r.PutManifest(repository, tag, mediaType, raw)
}

func (r *Registry) put(method, url, mediaType string, body []byte) error {
	req := httptest.NewRequest(method, url, bytes.NewReader(body))
	req.Header.Set("Content-Type", mediaType)
	w := httptest.NewRecorder()
	r.handler.ServeHTTP(w, req)
	if w.Code >= 300 {
		return fmt.Errorf("registry: %s %s: %d %s", method, url, w.Code, w.Body)
	}
	return nil
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Files is a file server over plain HTTP.
type Files struct {
	Addr string

	*server
	filesMu sync.Mutex
	files   map[string][]byte
}

// StartFiles begins to serve files at addr, empty for a free port of 127.0.0.1;
// Close ends it.
func StartFiles(addr string) (*Files, error) {
	f := &Files{files: map[string][]byte{}}
	s, err := serve(addr, f.answer)
	if err != nil {
		return nil, err
	}
	f.server, f.Addr = s, s.addr
	return f, nil
}

// Put stores a file under a path and gives its URL.
func (f *Files) Put(path string, content []byte) string {
	path = "/" + strings.TrimPrefix(path, "/")
	f.filesMu.Lock()
	defer f.filesMu.Unlock()
	f.files[path] = bytes.Clone(content)
	return "http://" + f.Addr + path
}

func (f *Files) answer(w http.ResponseWriter, req *http.Request) {
	f.filesMu.Lock()
	content, ok := f.files[req.URL.Path]
	f.filesMu.Unlock()
	if !ok {
		http.NotFound(w, req)
		return
	}
	http.ServeContent(w, req, req.URL.Path, time.Time{}, bytes.NewReader(content))
}

// Counts is what was asked of a server.
type Counts struct {
	// ManifestHead, ManifestGet, BlobGet and Token are requests that were
	// answered, well or not; Other are all the rest, such as pings and uploads.
	ManifestHead, ManifestGet, BlobGet, Token, Other int
	// BlobBytes are those sent of blobs, and of files of a Files.
	BlobBytes int64
}

// server counts, delays and fails requests.
type server struct {
	addr string
	http *http.Server
	done chan struct{}

	mu     sync.Mutex
	counts Counts
	fail   func(*http.Request) (int, bool)
	delay  time.Duration
}

func serve(addr string, answer http.HandlerFunc) (*server, error) {
	if addr == "" { // kept for it while it is closed: another one may come back there
		var err error
		if addr, err = ports.Free(); err != nil {
			return nil, fmt.Errorf("registry: %w", err)
		}
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	s := &server{addr: l.Addr().String(), done: make(chan struct{})}
	s.http = &http.Server{Handler: s.around(answer), ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: 10 * time.Second}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(l) // always ErrServerClosed, after Close
	}()
	return s, nil
}

// Close ends the server and its connections at once.
func (s *server) Close() {
	_ = s.http.Close()
	<-s.done
}

// Fail sets what judges every request from now on; with true the answer is the
// status, or an ended connection for a status of 0. Nil takes it away.
func (s *server) Fail(f func(*http.Request) (status int, ok bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = f
}

// Delay makes every answer wait.
func (s *server) Delay(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay = d
}

// Counts gives what was asked since the start.
func (s *server) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts
}

func (s *server) around(answer http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		s.mu.Lock()
		body := s.count(req)
		fail, delay := s.fail, s.delay
		s.mu.Unlock()
		if delay > 0 {
			timer := time.NewTimer(delay)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-req.Context().Done():
				return
			}
		}
		if fail != nil {
			switch status, ok := fail(req); {
			case ok && status == 0:
				panic(http.ErrAbortHandler)
			case ok:
				http.Error(w, "{}", status)
				return
			}
		}
		if body {
			w = &counting{ResponseWriter: w, s: s}
		}
		answer(w, req)
	}
}

// count tells whether the bytes of the answer count.
func (s *server) count(req *http.Request) bool {
	get, head := req.Method == http.MethodGet, req.Method == http.MethodHead
	switch path := req.URL.Path; {
	case path == "/token":
		s.counts.Token++
	case head && strings.Contains(path, "/manifests/"):
		s.counts.ManifestHead++
	case get && strings.Contains(path, "/manifests/"):
		s.counts.ManifestGet++
	case get && (strings.Contains(path, "/blobs/") || !strings.HasPrefix(path, "/v2")):
		s.counts.BlobGet++
		return true
	default:
		s.counts.Other++
	}
	return false
}

type counting struct {
	http.ResponseWriter
	s *server
}

// Write counts before the client has what it counts, and so may ask how much that was.
func (c *counting) Write(p []byte) (int, error) {
	c.add(len(p))
	n, err := c.ResponseWriter.Write(p)
	c.add(n - len(p))
	return n, err
}

func (c *counting) add(n int) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.counts.BlobBytes += int64(n)
}
