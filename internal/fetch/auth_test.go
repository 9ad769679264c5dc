package fetch_test

import (
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/registry"
)

const realmHint = "; the registry must name a token server by https, of its own domain, or the operator list it (--token-realm)"

// asking is a registry that wants a token, of which it says where to get it.
func asking(challenge string) *script {
	return &script{before: func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			return false
		}
		w.Header().Set("WWW-Authenticate", strings.ReplaceAll(challenge, "HOST", r.Host))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}}
}

// A token is asked for at no place that is not safe, however the place is named,
// and nothing of the credentials is shown.
func TestRefuse_B109(t *testing.T) {
	refusedAs := func(realm, why string) string {
		return `HOST: its token realm "` + realm + `" is refused: ` + why + realmHint
	}
	const missing = "HOST: its challenge names no token realm, or several" + realmHint
	for _, c := range []struct{ challenge, text string }{
		{`Bearer service="x"`, missing},
		{`Bearer realm="https://HOST/token",Realm="https://evil.example/"`, missing},
		{`Bearer realm="ftp://127.0.0.1/token"`, refusedAs("ftp://127.0.0.1/token", "it is not https")},
		{`Bearer realm="http://10.0.0.1/token"`, refusedAs("http://10.0.0.1/token", "it is not https")},
		{`bearer ReAlM="http://169.254.169.254/token"`, refusedAs("http://169.254.169.254/token", "it is not https")},
		{`Bearer Realm="https://169.254.169.254/token"`, refusedAs("https://169.254.169.254/token", "it is internal")},
		{`Bearer realm="https://0xA9FEA9FE/token"`, refusedAs("https://0xA9FEA9FE/token", "it is internal")},
		{`Bearer realm="https://2852039166/token"`, refusedAs("https://2852039166/token", "it is internal")},
		{`Bearer realm="https://[::ffff:a9fe:a9fe]/token"`, refusedAs("https://[::ffff:a9fe:a9fe]/token", "it is internal")},
		{`Bearer realm="https://10.0.0.1/token"`, refusedAs("https://10.0.0.1/token", "it is internal")},
		{`Bearer realm="https://vault/token"`, refusedAs("https://vault/token", "it is internal")},
		{`Bearer realm="https://u:p@HOST/token"`, refusedAs("https://HOST/token", "it has credentials in it")},
		{`Bearer realm="/token"`, refusedAs("/token", "it names no host")},
		{`Basic realm="x", Bearer realm="https://auth.evil.example/token?x=y", service="any"`, refusedAs("https://auth.evil.example/token", "credentials for 127.0.0.1 are not sent to evil.example")},
	} {
		req := asking(c.challenge).request(t)
		host := req.Reference.Host
		req.Credentials = fetch.NewCredentials(host, "u", "secret")
		e := refused(t, client(t, nil), req, chandler.CodeAuthRealm, strings.ReplaceAll(c.text, "HOST", host))
		if e.Temporary || strings.Contains(e.Error(), "secret") {
			t.Errorf("%s: %v", c.challenge, e)
		}
	}
}

func TestRefuse_B111(t *testing.T) {
	for _, c := range []struct{ reply, why string }{
		{"<html>", "is not JSON of a token"},
		{"", "is not JSON of a token"},
		{`{"token":7}`, "is not JSON of a token"},
		{"{}", "has no token"},
		{`{"token":""}`, "has no token"},
		{`{"token":"` + strings.Repeat("secret", 20000) + `"}`, "is over 65536 bytes"},
		{`{"token":"secret\r\nX-Evil: 1"}`, "has a token with control characters"},
		{`{"token":"secret","expires_in":-1}`, "has a token that expired before it was made"},
		{`{"access_token":"secret","expires_in":3153600000}`, "has a token that is good for more than a year"},
	} {
		s := asking(`Bearer realm="http://HOST/token"`)
		wants := s.before
		s.before = func(w http.ResponseWriter, r *http.Request) bool {
			if !wants(w, r) {
				io.WriteString(w, c.reply)
			}
			return true
		}
		e := refused(t, client(t, nil), s.request(t), chandler.CodeAuthToken, "the token server's reply "+c.why+"; mend the token server")
		if e.Temporary {
			t.Errorf("%.20s: temporary", c.reply)
		}
	}
}

// names lead every host of a test to one TLS server, which knows them all.
func names(t *testing.T, h http.HandlerFunc, hosts ...string) (*httptest.Server, func(*fetch.Config)) {
	t.Helper()
	srv := httptest.NewTLSServer(h)
	t.Cleanup(srv.Close)
	return srv, func(c *fetch.Config) {
		c.Resolver = startDNSFor(t, hosts).Resolver()
		c.TLS = trust(srv)
		c.TLS.ServerName = "example.com" // that of the test's certificate
	}
}

// Credentials go to the token server of the registry's own domain, or to one that
// the operator has listed, and to no other; without credentials any will do.
func TestTokenRealms(t *testing.T) {
	t.Parallel()
	image := imageOf(t, "application/wasm", good, nil)
	for _, c := range []struct {
		registry, realm string
		secret, listed  bool
		ok              bool
	}{
		{"registry.corp.example", "auth.corp.example", true, false, true},
		{"corp.example", "corp.example", true, false, true},
		{"registry-1.docker.io", "auth.docker.io", true, false, true},
		{"docker.io", "auth.docker.io", true, false, true},
		{"corp.example", "auth.evil.example", true, false, false},
		{"corp.example", "auth.evil.example", false, false, true},
		{"corp.example", "auth.evil.example", true, true, true},
		{"a.github.io", "b.github.io", true, false, false}, // two owners of one suffix
		{"corp.example", "notcorp.example", true, false, false},
	} {
		var mu sync.Mutex
		sent := map[string]string{}
		srv, cfg := names(t, func(w http.ResponseWriter, r *http.Request) {
			host := r.Host[:strings.LastIndexByte(r.Host, ':')]
			port := r.Host[len(host):]
			mu.Lock()
			if a := r.Header.Get("Authorization"); a != "" {
				sent[host] = a
			}
			mu.Unlock()
			switch {
			case r.URL.Path == "/token":
				io.WriteString(w, `{"token":"abc","expires_in":300}`)
			case r.Header.Get("Authorization") != "Bearer abc":
				w.Header().Set("WWW-Authenticate", `Bearer realm="https://`+c.realm+port+`/token"`)
				w.WriteHeader(http.StatusUnauthorized)
			case strings.Contains(r.URL.Path, "/manifests/"):
				w.Header().Set("Content-Type", image.contentType)
				io.WriteString(w, image.manifest)
			default:
				io.WriteString(w, good)
			}
		}, c.registry, c.realm, "index.docker.io")
		port := srv.URL[strings.LastIndexByte(srv.URL, ':'):]
		cl := client(t, func(f *fetch.Config) {
			cfg(f)
			f.TokenRealm = func(registry, realm string) bool {
				return c.listed && registry == c.registry+port && realm == c.realm
			}
		})
		req := fetch.Request{Reference: reference(t, c.registry+port+"/p:v1")}
		if c.secret {
			req.Credentials = fetch.NewCredentials(req.Reference.Host, "u", "secret")
		}
		if !c.ok {
			refused(t, cl, req, chandler.CodeAuthRealm, "")
		} else {
			pull(t, cl, req, []byte(good))
		}
		basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("u:secret"))
		for host, header := range sent {
			if header == basic && (host != c.realm || !c.ok || !c.secret) {
				t.Errorf("%+v: the password went to %s", c, host)
			}
		}
		if c.ok && c.secret != (sent[c.realm] == basic || c.realm == c.registry) {
			t.Errorf("%+v: the token server got %q", c, sent[c.realm])
		}
	}
}

// A token server may not send credentials on.
func TestTokenRedirects(t *testing.T) {
	t.Parallel()
	var strayed atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		strayed.Add(1)
		io.WriteString(w, `{"token":"abc"}`)
	}))
	t.Cleanup(other.Close)
	s := asking(`Bearer realm="http://HOST/token"`)
	wants := s.before
	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !wants(w, r) {
			http.Redirect(w, r, other.URL+"/token", http.StatusTemporaryRedirect)
		}
		return true
	}
	req := s.request(t)
	for _, secret := range []*fetch.Credentials{
		fetch.NewCredentials(req.Reference.Host, "u", "secret"), identityToken(t, req.Reference, "secret"),
	} {
		req.Credentials = secret
		refused(t, client(t, nil), req, chandler.CodeAuthRealm, "")
	}
	if strayed.Load() != 0 {
		t.Error("another server was asked for the token")
	}
}

func identityToken(t *testing.T, ref chandler.Reference, token string) *fetch.Credentials {
	t.Helper()
	s, _, err := fetch.ParseSecret([]byte(`{"auths":{"` + ref.Host + `":{"username":"u","identitytoken":"` + token + `"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	return s.For(ref)
}

// An identity token is shown in the way of OAuth 2, and what the server gives for
// the next time is used then.
func TestIdentityToken(t *testing.T) {
	t.Parallel()
	image := imageOf(t, "application/wasm", good, nil)
	var mu sync.Mutex
	var refreshes []string
	image.before = func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		current := "Bearer " + strings.Join(append([]string{"t"}, refreshes...), "-")
		switch {
		case r.URL.Path == "/token":
			refreshes = append(refreshes, r.FormValue("refresh_token"))
			if r.Method != http.MethodPost || r.FormValue("grant_type") != "refresh_token" || r.FormValue("scope") != "repository:p:pull" || r.FormValue("service") != "s" {
				t.Errorf("asked with %s %v", r.Method, r.Form)
			}
			io.WriteString(w, `{"access_token":"`+strings.Join(append([]string{"t"}, refreshes...), "-")+`","refresh_token":"next"}`)
			return true
		case len(refreshes) == 0 || r.Header.Get("Authorization") != current:
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="s"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	}
	req := image.request(t)
	req.Credentials = identityToken(t, req.Reference, "first")
	cl := client(t, nil)
	pull(t, cl, req, []byte(good))
	mu.Lock()
	refreshes = append(refreshes, "expired")
	mu.Unlock()
	pull(t, cl, req, []byte(good))
	if got := strings.Join(refreshes, " "); got != "first expired next" {
		t.Errorf("shown: %s", got)
	}
}

// What a registry wants a token for is not asked for, but for the same repository
// under a longer name.
func TestScopes(t *testing.T) {
	t.Parallel()
	for wanted, asked := range map[string]string{
		"":                               "repository:team/p:pull",
		"repository:team/p:pull":         "repository:team/p:pull",
		"repository:proxy/team/p:pull":   "repository:proxy/team/p:pull repository:team/p:pull",
		"repository:victim/p:pull":       "repository:team/p:pull",
		"repository:team/p:pull,push":    "repository:team/p:pull",
		"repository:notteam/p:pull":      "repository:team/p:pull",
		"registry:catalog:*":             "repository:team/p:pull",
		"repository:x/team/p:pull,push ": "repository:team/p:pull",
	} {
		var got atomic.Value
		s := asking(`Bearer realm="http://HOST/token",scope="` + wanted + `"`)
		wants := s.before
		s.before = func(w http.ResponseWriter, r *http.Request) bool {
			if !wants(w, r) {
				got.Store(strings.Join(r.URL.Query()["scope"], " "))
				io.WriteString(w, `{"token":"abc"}`)
			}
			return true
		}
		refused(t, client(t, nil), fetch.Request{Reference: reference(t, s.start(t)+"/team/p:v1")}, chandler.CodeUnauthorized, "")
		if got.Load() != asked {
			t.Errorf("for %q: asked for %q, want %q", wanted, got.Load(), asked)
		}
	}
}

// Credentials are for one repository of one server: whatever else a server sends
// us to, they are not shown there, nor to itself after that.
func TestFault_F33_Credentials(t *testing.T) {
	t.Parallel()
	image := imageOf(t, "application/wasm", good, nil)
	var front string
	clean := func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Errorf("%s %s was shown credentials", r.Host, r.URL)
		}
	}
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		clean(w, r)
		if r.URL.Path == "/back" {
			http.Redirect(w, r, "http://"+front+"/v2/p/blobs/back", http.StatusTemporaryRedirect)
			return
		}
		io.WriteString(w, good)
	}))
	t.Cleanup(other.Close)
	for _, to := range []string{"URL/x", "/v2/q/blobs/x", "/x", "URL/back", "http://localhost:PORT/v2/p/blobs/x"} {
		s := *image
		s.before = func(w http.ResponseWriter, r *http.Request) bool {
			port := r.Host[strings.LastIndexByte(r.Host, ':')+1:]
			switch _, password, _ := r.BasicAuth(); {
			case !strings.HasPrefix(r.URL.Path, "/v2/p/"), strings.HasSuffix(r.URL.Path, "/back"), strings.HasPrefix(r.Host, "localhost"):
				clean(w, r)
				io.WriteString(w, good)
			case password != "secret":
				w.Header().Set("WWW-Authenticate", "Basic realm=x")
				w.WriteHeader(http.StatusUnauthorized)
			case strings.Contains(r.URL.Path, "/blobs/"):
				http.Redirect(w, r, strings.NewReplacer("URL", other.URL, "PORT", port).Replace(to), http.StatusTemporaryRedirect)
			default:
				return false
			}
			return true
		}
		req := s.request(t)
		front = req.Reference.Host
		req.Credentials = fetch.NewCredentials(front, "u", "secret")
		pull(t, client(t, nil), req, []byte(good))
	}
}

// A registry that is but a sign to another one is followed there, as a stranger.
func TestRegistryThatRedirects(t *testing.T) {
	t.Parallel()
	reg := startRegistry(t, registry.Config{})
	must(reg.PutArtifact("p", "v1", ociManifest, cncfConfig, "application/wasm", good))(t)
	real := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			if r.Header.Get("Authorization") != "" {
				t.Error("the other registry's token server was shown credentials")
			}
			io.WriteString(w, `{"token":"abc"}`)
		case r.Header.Get("Authorization") != "Bearer abc":
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",scope="repository:p:pull"`)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			http.Redirect(w, r, "http://"+reg.Addr+r.URL.Path, http.StatusTemporaryRedirect)
		}
	}))
	t.Cleanup(real.Close)
	sign := &script{before: func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, real.URL+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	}}
	req := sign.request(t)
	req.Credentials = fetch.NewCredentials(req.Reference.Host, "u", "secret")
	pull(t, client(t, nil), req, []byte(good))
}

// Credentials are not sent without TLS, unless to this machine, even where the
// operator allows plain HTTP.
func TestFault_F36_NoCredentialsInPlainHTTP(t *testing.T) {
	t.Parallel()
	for _, challenge := range []string{"Basic realm=x", `Bearer realm="http://HOST/token"`, `Bearer realm="https://auth.corp.example/token"`} {
		var shown atomic.Int32
		s := asking(challenge)
		wants := s.before
		s.before = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Authorization") != "" || r.URL.Path == "/token" {
				shown.Add(1)
			}
			return wants(w, r)
		}
		host := s.start(t)
		port := host[strings.LastIndexByte(host, ':'):]
		cl := client(t, func(c *fetch.Config) {
			c.Resolver = startDNSFor(t, []string{"registry.corp.example", "auth.corp.example"}).Resolver()
			c.Insecure = func(host string) bool { return strings.HasPrefix(host, "registry.corp.example") }
		})
		req := fetch.Request{Reference: reference(t, "registry.corp.example"+port+"/p:v1")}
		req.Credentials = fetch.NewCredentials(req.Reference.Host, "u", "secret")
		e := refused(t, cl, req, chandler.CodeTLS,
			req.Reference.Host+": credentials are not sent in plain http; give the server TLS, or use no credentials for it")
		if e.Temporary || shown.Load() != 0 {
			t.Errorf("%s: %v, shown %d times", challenge, e, shown.Load())
		}
	}
}

// spellings are a denied address in forms that some resolvers and proxies read.
var spellings = []string{"2852039166", "0xA9FEA9FE", "0251.0376.0251.0376", "169.254.43518", "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[64:ff9b::a9fe:a9fe]"}

// A denied address is one in every spelling.
func TestRefuse_B9(t *testing.T) {
	for _, host := range spellings {
		if _, p := chandler.ParseReference("http://" + host + "/x"); p == nil || p.Code != chandler.CodeEgressDenied {
			t.Errorf("%s in a url: %v", host, p)
		}
		for _, scheme := range []chandler.Scheme{chandler.SchemeHTTP, chandler.SchemeHTTPS} {
			ref := chandler.Reference{Scheme: scheme, Host: host, Path: "/x"}
			e := refused(t, client(t, nil), fetch.Request{Reference: ref}, chandler.CodeEgressDenied, "")
			if e.Temporary || !strings.Contains(e.Error(), "(metadata); nothing is fetched from there") {
				t.Errorf("%s: %v", host, e)
			}
		}
	}
	ref := chandler.Reference{Scheme: chandler.SchemeHTTP, Host: "1.2.3.4.5", Path: "/x"}
	refused(t, client(t, nil), fetch.Request{Reference: ref}, chandler.CodeEgressDenied, `the host "1.2.3.4.5" is no valid address; write a host name or an address`)
}

// It is one where a server sends us, too, be it behind a proxy that would connect.
func TestFault_F33_DeniedInEverySpelling(t *testing.T) {
	t.Parallel()
	for _, host := range spellings {
		url := webServer(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+host+"/latest", http.StatusFound)
		})
		e := refused(t, client(t, nil), fetch.Request{Reference: reference(t, url)}, chandler.CodeHTTPRedirect, "")
		if e.Temporary || !strings.Contains(e.Error(), "(metadata)") {
			t.Errorf("%s in a redirect: %v", host, e)
		}
	}
}

// A strict operator's plain HTTP is for hosts that he has named, and for what a
// digest holds.
func TestRefuse_B10(t *testing.T) {
	strict := func(c *fetch.Config) { c.Strict = func() bool { return true } }
	reg := startRegistry(t, registry.Config{})
	digest := must(reg.PutArtifact("p", "v1", ociManifest, cncfConfig, "application/wasm", good))(t)
	files := startFiles(t)
	url := files.Put("x.wasm", []byte(good))
	sum := chandler.Digest[chandler.ModuleDigest]([]byte(good)).Hex()
	const hint = "; use https, or pin a digest and let the operator allow plain http for the host (--insecure-registry)"
	for _, req := range []fetch.Request{
		{Reference: reference(t, reg.Addr+"/p:v1")},
		{Reference: reference(t, url)},
		{Reference: reference(t, "http://files.example/x"), SHA256: sum},
	} {
		host := req.Reference.Host
		e := refused(t, client(t, strict), req, chandler.CodeURLInsecure, `"`+host+`": plain http needs an operator's rule for this host and a digest`+hint)
		if e.Temporary {
			t.Errorf("%s: temporary", host)
		}
	}
	pull(t, client(t, strict), fetch.Request{Reference: reference(t, reg.Addr+"/p@"+digest)}, []byte(good))
	pull(t, client(t, strict), fetch.Request{Reference: reference(t, url), SHA256: sum}, []byte(good))
}

// Nothing is fetched from what this program listens on, by whatever name.
func TestOwnListeners(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	own := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		io.WriteString(w, good)
	}))
	t.Cleanup(own.Close)
	at := netip.MustParseAddrPort(own.Listener.Addr().String())
	files := startFiles(t)
	elsewhere := files.Put("x", []byte(good))
	for _, listening := range []netip.AddrPort{at, netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port()), netip.AddrPortFrom(netip.IPv6Unspecified(), at.Port())} {
		cl := client(t, func(c *fetch.Config) {
			c.Own = func() []netip.AddrPort { return []netip.AddrPort{listening} }
			c.Resolver = startDNSFor(t, []string{"me.example"}).Resolver()
			c.Insecure = func(string) bool { return true }
		})
		port := own.URL[strings.LastIndexByte(own.URL, ':'):]
		for _, url := range []string{own.URL + "/x", "http://me.example" + port + "/x", "me.example" + port + "/p:v1", at.String() + "/p:v1",
			webServer(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, own.URL+"/x", http.StatusFound) })} {
			e := refused(t, cl, fetch.Request{Reference: reference(t, url)}, chandler.CodeEgressDenied, "")
			if e.Temporary || !strings.Contains(e.Error(), "chandler's own") {
				t.Errorf("%s: %v", url, e)
			}
		}
		pull(t, cl, fetch.Request{Reference: reference(t, elsewhere)}, []byte(good))
	}
	if asked.Load() != 0 {
		t.Errorf("asked %d times", asked.Load())
	}
}
