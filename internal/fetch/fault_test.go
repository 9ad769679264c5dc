package fetch_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/ports"
	"chandler.dev/chandler/internal/testenv/registry"
)

// quiet is for servers whose clients break off.
var quiet = log.New(io.Discard, "", 0)

// webServer answers every request with h.
func webServer(t *testing.T, h http.HandlerFunc) (url string) {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.URL + "/x.wasm"
}

func TestStatuses(t *testing.T) {
	t.Parallel()
	const date = "Mon, 23 Nov 2026 08:00:00 GMT"
	for _, c := range []struct {
		status    int
		after     string
		code      chandler.Code
		temporary bool
		wait      time.Duration
	}{
		{401, "", chandler.CodeUnauthorized, false, 0},
		{403, "", chandler.CodeUnauthorized, false, 0},
		{404, "", chandler.CodeNotFound, false, 0},
		{408, "", chandler.CodeFetchFailed, true, 0},
		{410, "", chandler.CodeHTTPStatus, false, 0},
		{429, "7", chandler.CodeFetchFailed, true, 7 * time.Second}, // F25
		{429, "Mon, 23 Nov 2026 08:01:00 GMT", chandler.CodeFetchFailed, true, time.Minute},
		{503, "999999999", chandler.CodeFetchFailed, true, time.Hour},
		{500, "-1", chandler.CodeFetchFailed, true, 0}, // F26
		{502, "soon", chandler.CodeFetchFailed, true, 0},
		{204, "", chandler.CodeHTTPStatus, false, 0},
		{206, "", chandler.CodeHTTPStatus, false, 0}, // B105
		{304, "", chandler.CodeHTTPStatus, false, 0},
	} {
		answer := func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", date)
			if c.after != "" {
				w.Header().Set("Retry-After", c.after)
			}
			w.WriteHeader(c.status)
		}
		url := webServer(t, answer)
		e := refused(t, client(t, nil), fetch.Request{Reference: reference(t, url)}, c.code, "")
		if e.Temporary != c.temporary || e.RetryAfter != c.wait || !strings.Contains(e.Error(), strconv.Itoa(c.status)) {
			t.Errorf("%d: %+v", c.status, e)
		}
		for _, at := range []string{"/manifests/", "/blobs/"} {
			s := imageOf(t, "application/wasm", good, nil)
			s.before = func(w http.ResponseWriter, r *http.Request) bool {
				here := strings.Contains(r.URL.Path, at)
				if here {
					answer(w, r)
				}
				return here
			}
			e := refused(t, client(t, nil), s.request(t), c.code, "")
			if e.Temporary != c.temporary || e.RetryAfter != c.wait {
				t.Errorf("%s %d: %+v", at, c.status, e)
			}
		}
	}
}

func TestRefuse_B105(t *testing.T) {
	url := webServer(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(206) })
	refused(t, client(t, nil), fetch.Request{Reference: reference(t, url)}, chandler.CodeHTTPStatus,
		`"`+url+`": the server answers 206 Partial Content without a range request; mend the server`)
	flood := rawServer(t, strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n", 5000))
	if e := refused(t, client(t, nil), fetch.Request{Reference: reference(t, flood)}, chandler.CodeHTTPHeader, ""); e.Temporary {
		t.Errorf("temporary: %v", e)
	}
}

// rawServer answers every connection with the same bytes and closes it.
func rawServer(t *testing.T, answer string) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				io.WriteString(conn, answer)
			}
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return "http://" + l.Addr().String() + "/x.wasm"
}

func TestRefuse_B106(t *testing.T) {
	for _, c := range []struct {
		head, body, text string
		code             chandler.Code
		temporary        bool
	}{
		{"Content-Length: 67108865", "", `"URL": the file is over 67108864 bytes; serve a smaller module, or let the operator raise the limit`, chandler.CodeHTTPLength, false},
		{"Content-Length: -1", "", "HOST: the reply's Content-Length is not one number, 0 or more; mend the server", chandler.CodeHTTPLength, false},
		{"Content-Length: 8\r\nContent-Length: 9", good, "HOST: the reply's Content-Length is not one number, 0 or more; mend the server", chandler.CodeHTTPLength, false},
		// F29: what was sent falls short of what was said, which another try may mend.
		{"Content-Length: 100", good, `"URL": the server said 100 bytes and sent 8; it is tried again by itself`, chandler.CodeFetchShort, true},
		{"Transfer-Encoding: chunked", "8\r\n" + good + "\r\n", `"URL": the body broke off after 8 bytes; it is tried again by itself`, chandler.CodeFetchShort, true},
	} {
		url := rawServer(t, "HTTP/1.1 200 OK\r\n"+c.head+"\r\n\r\n"+c.body)
		host := strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/x.wasm")
		text := strings.NewReplacer("URL", url, "HOST", host).Replace(c.text)
		if e := refused(t, client(t, nil), fetch.Request{Reference: reference(t, url)}, c.code, text); e.Temporary != c.temporary {
			t.Errorf("%s: temporary %t", c.head, e.Temporary)
		}
	}
	// Without a length, the limit counts what comes.
	url := webServer(t, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, good)
		w.(http.Flusher).Flush()
		io.CopyN(w, zeros{}, 200)
	})
	refused(t, client(t, func(c *fetch.Config) { c.MaxBlob = 100 }), fetch.Request{Reference: reference(t, url)}, chandler.CodeHTTPLength, "")
}

func TestRefuse_B107(t *testing.T) {
	var asked atomic.Value
	url := webServer(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.Header.Get("Accept-Encoding"))
		w.Header().Set("Content-Encoding", "br")
		io.WriteString(w, good)
	})
	host := strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/x.wasm")
	refused(t, client(t, nil), fetch.Request{Reference: reference(t, url)}, chandler.CodeHTTPEncoding,
		host+`: the reply is encoded as "br", which was not asked for; serve the file as it is; a gzip file needs no Content-Encoding`)
	if asked.Load() != "identity" {
		t.Errorf("asked for %q", asked.Load())
	}
}

func TestRefuse_B108(t *testing.T) {
	for _, n := range []int{600, 20000} {
		url := webServer(t, func(w http.ResponseWriter, _ *http.Request) {
			for i := range n {
				w.Header().Set(fmt.Sprint("X-", i), "v")
			}
		})
		refused(t, client(t, nil), fetch.Request{Reference: reference(t, url)}, chandler.CodeHTTPHeader, "")
	}
}

func TestFault_F28(t *testing.T) {
	t.Parallel()
	url := webServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		io.WriteString(w, good)
		w.(http.Flusher).Flush()
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_ = conn.(*net.TCPConn).SetLinger(0) // a reset
		conn.Close()
	})
	_, err := client(t, nil).Pull(t.Context(), fetch.Request{Reference: reference(t, url)}, &shelf{})
	var e *fetch.Error
	if !errors.As(err, &e) || !e.Temporary {
		t.Errorf("got %v", err)
	}
}

func TestFault_F31(t *testing.T) {
	t.Parallel()
	s := imageOf(t, "application/wasm", good, nil)
	s.blobs[digestOf(good)] = "\x00asm\x01\x00\x00\x01"
	e := refused(t, client(t, nil), s.request(t), chandler.CodeDigestMismatch,
		"layer 0: the registry gives other bytes for "+digestOf(good)+": they have "+digestOf("\x00asm\x01\x00\x00\x01")+"; look at the registry")
	if e.Temporary {
		t.Error("temporary")
	}
	// A manifest asked for by digest is hashed, too.
	req := s.request(t)
	req.Reference.Digest = chandler.ArtifactDigest(digestOf("another"))
	refused(t, client(t, nil), req, chandler.CodeDigestMismatch, "")
}

func TestFault_F32(t *testing.T) {
	t.Parallel()
	s := imageOf(t, "application/wasm", good, nil)
	s.before = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Docker-Content-Digest", digestOf("another"))
		return false
	}
	refused(t, client(t, nil), s.request(t), chandler.CodeDigestHeader, "manifest v1: its digest is "+digestOf(s.manifest)+
		`, the registry says "`+digestOf("another")+`"; look at the registry`)
}

func TestFault_F33(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" || r.Header.Get("Referer") != "" {
			t.Errorf("another host got %v", r.Header)
		}
		io.WriteString(w, good)
	}))
	t.Cleanup(other.Close)
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL, http.StatusFound)
	}))
	t.Cleanup(secure.Close)
	trusting := client(t, func(c *fetch.Config) { c.TLS = trust(secure) })
	const hint = "; mend the server, or give the final url"
	host := secure.Listener.Addr().String()
	refused(t, trusting, fetch.Request{Reference: reference(t, secure.URL)}, chandler.CodeHTTPRedirect, `"`+host+`" redirects from https to "http"`+hint)

	to := func(target string) string {
		return webServer(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, target, http.StatusFound) })
	}
	for _, c := range []struct{ target, text string }{
		{"/again", "more than 5 redirects"},
		{"http://169.254.169.254/latest", "redirects to 169.254.169.254 (metadata)"},
		{"http://u:secret@127.0.0.1/", "redirects to a url with credentials"},
	} {
		url := to(c.target)
		e := refused(t, client(t, nil), fetch.Request{Reference: reference(t, url)}, chandler.CodeHTTPRedirect, "")
		if !strings.Contains(e.Error(), c.text) || strings.Contains(e.Error(), "secret") {
			t.Errorf("%s: %v", c.target, e)
		}
	}
	e := refused(t, client(t, nil), fetch.Request{Reference: reference(t, to("ftp://h/x"))}, chandler.CodeTLS, "")
	if e.Temporary {
		t.Errorf("%v", e)
	}

	// A blob may come from another host, which gets no credentials.
	reg := startRegistry(t, registry.Config{Username: "u", Password: "secret"})
	must(reg.PutArtifact("p", "v1", ociManifest, cncfConfig, "application/wasm", good))(t)
	front := imageOf(t, "application/wasm", good, nil)
	front.before = func(w http.ResponseWriter, r *http.Request) bool {
		user, _, ok := r.BasicAuth()
		switch {
		case !ok || user != "u":
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(401)
		case strings.Contains(r.URL.Path, "/blobs/"):
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		default:
			return false
		}
		return true
	}
	req := front.request(t)
	req.Credentials = fetch.NewCredentials(req.Reference.Host, "u", "secret")
	pull(t, client(t, nil), req, []byte(good))
}

func trust(srv *httptest.Server) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	return &tls.Config{RootCAs: pool}
}

func TestFault_F36(t *testing.T) {
	t.Parallel()
	s := imageOf(t, "application/wasm", good, nil)
	var plain atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil {
			plain.Add(1)
		}
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("Content-Type", ociManifest)
			io.WriteString(w, s.manifest)
		} else if strings.Contains(r.URL.Path, "/blobs/") {
			io.WriteString(w, good)
		}
	}))
	srv.Config.ErrorLog = quiet
	srv.StartTLS()
	t.Cleanup(srv.Close)
	host := srv.Listener.Addr().String()
	pull(t, client(t, func(c *fetch.Config) { c.TLS = trust(srv) }), fetch.Request{Reference: reference(t, host+"/p:v1")}, []byte(good))

	e := refused(t, client(t, nil), fetch.Request{Reference: reference(t, "https://"+host+"/x")}, chandler.CodeTLS,
		host+": its certificate is of an authority that is not trusted; mend the server's certificate, or give the operator's CA")
	if e.Temporary {
		t.Error("temporary")
	}
	named := client(t, func(c *fetch.Config) { c.TLS = trust(srv); c.TLS.ServerName = "other.example" })
	refused(t, named, fetch.Request{Reference: reference(t, "https://"+host+"/x")}, chandler.CodeTLS,
		host+": its certificate is for another name; mend the server's certificate, or give the operator's CA")

	// A host that is not on loopback and not allowed is never spoken to in plain
	// HTTP: here every name leads to a server without TLS.
	reg := startRegistry(t, registry.Config{})
	must(reg.PutArtifact("p", "v1", ociManifest, cncfConfig, "application/wasm", good))(t)
	lead := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", reg.Addr)
	}}
	for _, name := range []string{"reg.example", "10.0.0.1:5000"} {
		cl := client(t, func(c *fetch.Config) { c.Transport = lead })
		refused(t, cl, fetch.Request{Reference: reference(t, name+"/p:v1")}, chandler.CodeTLS,
			name+": does not speak TLS; give the server TLS, or let the operator allow plain http for this host")
		if n := reg.Counts(); n != (registry.Counts{}) {
			t.Errorf("%s was spoken to: %+v", name, n)
		}
	}
	for _, name := range []string{"reg.example", "10.0.0.1:5000"} {
		cl := client(t, func(c *fetch.Config) {
			c.Transport = lead
			c.Insecure = func(host string) bool { return host == name }
		})
		pull(t, cl, fetch.Request{Reference: reference(t, name+"/p:v1")}, []byte(good))
	}
}

func TestEgress(t *testing.T) {
	t.Parallel()
	for _, ref := range []chandler.Reference{
		{Scheme: chandler.SchemeHTTP, Host: "169.254.169.254", Path: "/x"},
		{Scheme: chandler.SchemeHTTPS, Host: "[fe80::1]", Path: "/x"},
		{Scheme: chandler.SchemeOCI, Host: "169.254.169.254", Repository: "x"},
	} {
		if e := refused(t, client(t, nil), fetch.Request{Reference: ref}, chandler.CodeEgressDenied, ""); e.Temporary {
			t.Errorf("temporary: %v", e)
		}
	}
	e := refused(t, client(t, nil), fetch.Request{Reference: chandler.Reference{Scheme: chandler.SchemeFile, Path: "/x"}}, chandler.CodeURLScheme, "")
	if e.Temporary {
		t.Errorf("temporary: %v", e)
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	host := must(ports.Free())(t)
	for _, url := range []string{host + "/p:v1", "http://" + host + "/x?tok=secret"} {
		e := refused(t, client(t, nil), fetch.Request{Reference: reference(t, url)}, chandler.CodeFetchFailed, host+": the connection is refused; it is tried again by itself")
		if !e.Temporary {
			t.Errorf("permanent: %v", e)
		}
	}
}

func TestRefuse_B13(t *testing.T) {
	reg := startRegistry(t, registry.Config{})
	digest := must(reg.PutArtifact("p", "v1", ociManifest, cncfConfig, "application/wasm", good))(t)
	other := strings.Repeat("b", 64)
	cl := client(t, nil)
	refused(t, cl, fetch.Request{Reference: reference(t, reg.Addr+"/p:v1@"+digest), SHA256: other}, chandler.CodeRefConflict, "")
	// A pin that the registry does not have: the tag's digest is told.
	refused(t, cl, fetch.Request{Reference: reference(t, reg.Addr+"/p:v1"), SHA256: other}, chandler.CodeDigestMismatch,
		"sha256 says sha256:"+other+`, which the registry does not have; "v1" is `+digest+"; correct sha256, or push the module that it names")
	refused(t, cl, fetch.Request{Reference: reference(t, reg.Addr+"/p:v1@sha256:"+other)}, chandler.CodeNotFound, "")
	// A tag that moved leaves a pinned one alone.
	must(reg.PutArtifact("p", "v1", ociManifest, cncfConfig, "application/wasm", good+"new"))(t)
	pull(t, cl, fetch.Request{Reference: reference(t, reg.Addr+"/p:v1"), SHA256: strings.TrimPrefix(digest, "sha256:")}, []byte(good))
}

func TestFault_F34_CredentialsAndTokensThatRunOut(t *testing.T) {
	t.Parallel()
	for _, token := range []bool{false, true} {
		reg := startRegistry(t, registry.Config{Username: "robot", Password: "pass:secret", Token: token})
		must(reg.PutArtifact("team/p", "v1", ociManifest, cncfConfig, "application/wasm", good))(t)
		req := fetch.Request{Reference: reference(t, reg.Addr+"/team/p:v1")}
		secret := func(key, password string) *fetch.Credentials {
			auth := base64.StdEncoding.EncodeToString([]byte("robot:" + password))
			s, _, err := fetch.ParseSecret([]byte(`{"auths":{"` + key + `":{"auth":"` + auth + `"}}}`))
			if err != nil {
				t.Fatal(err)
			}
			return s.For(req.Reference)
		}
		cl := client(t, nil)
		for name, creds := range map[string]*fetch.Credentials{
			"none": nil, "of another path": secret(reg.Addr+"/team/q", "pass:secret"), "wrong": secret(reg.Addr, "other:secret"),
			"of another host": fetch.NewCredentials("other.example", "robot", "pass:secret"),
		} {
			req := req
			req.Credentials = creds
			e := refused(t, cl, req, chandler.CodeUnauthorized, "")
			if e.Temporary || strings.Contains(e.Error(), "secret") {
				t.Errorf("%s: %v", name, e)
			}
		}
		for _, key := range []string{reg.Addr, "http://" + reg.Addr + "/v1/", reg.Addr + "/team", reg.Addr + "/team/p"} {
			req := req
			req.Credentials = secret(key, "pass:secret")
			pull(t, cl, req, []byte(good))
		}
		if !token {
			continue
		}
		// F34: a token that runs out is made anew, unseen.
		req.Credentials = secret(reg.Addr, "pass:secret")
		before := reg.Counts()
		reg.ExpireTokens()
		pull(t, cl, req, []byte(good))
		if n := reg.Counts().Token - before.Token; n != 1 {
			t.Errorf("%d tokens were asked for", n)
		}
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"/manifests/", "/blobs/"} {
		reached := make(chan struct{})
		s := imageOf(t, "application/wasm", good, nil)
		s.before = func(_ http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, at) {
				return false
			}
			close(reached)
			<-r.Context().Done()
			return true
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-reached; cancel() }()
		sink := &shelf{}
		_, err := client(t, nil).Pull(ctx, s.request(t), sink)
		e := judge(t, fetch.Artifact{}, err, sink, chandler.CodeFetchFailed, "the fetch was stopped: context canceled; it is tried again by itself")
		if !errors.Is(err, context.Canceled) || !e.Temporary {
			t.Errorf("%s: %+v", at, e)
		}
	}
}

// pipe is a network whose only answer is a body that comes as step lets it.
type pipe struct {
	header time.Duration
	step   time.Duration
	chunk  int
}

func (p *pipe) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := wait(req.Context(), p.header); err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: 200, Header: http.Header{}, ContentLength: -1, Body: &drip{ctx: req.Context(), pipe: p}}, nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

type drip struct {
	ctx context.Context
	*pipe
	sent int
}

func (d *drip) Read(p []byte) (int, error) {
	if err := wait(d.ctx, d.step); err != nil {
		return 0, err
	}
	if d.sent >= 1<<20 {
		return 0, io.EOF
	}
	n := min(d.chunk, len(p))
	clear(p[:n])
	if d.sent == 0 {
		copy(p[:n], good)
	}
	d.sent += n
	return n, nil
}

func (d *drip) Close() error { return nil }

func TestFault_F27(t *testing.T) {
	for _, c := range []struct {
		name string
		pipe pipe
		took time.Duration // zero: it succeeds
		text string
	}{
		{"a byte a second", pipe{step: 1100 * time.Millisecond, chunk: 1}, 15 * time.Second, "h.example: only 13 bytes came in 15s, at least 15360 are wanted; it is tried again by itself"},
		{"stalled", pipe{step: time.Hour, chunk: 1}, 15 * time.Second, "h.example: only 0 bytes came in 15s, at least 15360 are wanted; it is tried again by itself"},
		{"silent", pipe{header: time.Hour}, 15 * time.Second, "h.example: no answer in 15s; it is tried again by itself"},
		{"slow and steady", pipe{header: 10 * time.Second, step: time.Second, chunk: 2048}, 0, ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			cl := client(t, func(cfg *fetch.Config) { cfg.Transport = &c.pipe })
			start := time.Now()
			sink := &shelf{}
			_, err := cl.Pull(t.Context(), fetch.Request{Reference: reference(t, "https://h.example/x.wasm")}, sink)
			took := time.Since(start)
			if c.took == 0 {
				if err != nil {
					t.Errorf("%s: %v", c.name, err)
				}
				return
			}
			e := judge(t, fetch.Artifact{}, err, sink, chandler.CodeFetchFailed, c.text)
			if !e.Temporary || took > c.took+time.Second {
				t.Errorf("%s: after %s: %+v", c.name, took, e)
			}
		})
	}
}

// TestSinkErrors: what is wrong with a sink comes out as it went in.
func TestSinkErrors(t *testing.T) {
	t.Parallel()
	url := startFiles(t).Put("x", module(""))
	for code, temporary := range map[chandler.Code]bool{chandler.CodeCacheFull: true, chandler.CodeCacheUnwritable: true, chandler.CodeModuleTooLarge: false} {
		_, err := client(t, nil).Pull(t.Context(), fetch.Request{Reference: reference(t, url)}, broken{chandler.Problemf(code, "", "hint", "why")})
		if e := judge(t, fetch.Artifact{}, err, &shelf{}, code, "why; hint"); e.Temporary != temporary {
			t.Errorf("%s: temporary %t", code, e.Temporary)
		}
	}
	_, plain := client(t, nil).Pull(t.Context(), fetch.Request{Reference: reference(t, url)}, broken{errors.New("no limit of realms")})
	judge(t, fetch.Artifact{}, plain, &shelf{}, chandler.CodeInternal, "the module cannot be kept: store: no limit of realms; it is tried again by itself")
	cl := fetch.New(fetch.Config{Dir: "/nowhere/at/all"})
	defer cl.Close()
	_, err := cl.Pull(t.Context(), fetch.Request{Reference: reference(t, url)}, &shelf{})
	if e := judge(t, fetch.Artifact{}, err, &shelf{}, chandler.CodeCacheUnwritable, ""); !e.Temporary {
		t.Errorf("permanent: %v", e)
	}
}

type broken struct{ err error }

func (b broken) Ingest(io.Reader, chandler.ModuleDigest) (chandler.ModuleDigest, int64, error) {
	return "", 0, fmt.Errorf("store: %w", b.err)
}
