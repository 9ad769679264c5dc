package fetch_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/airgap"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/fetch/hosts"
	"chandler.dev/chandler/internal/testenv/authority"
	"chandler.dev/chandler/internal/testenv/registry"
)

// hostsToml has the operator's file for one registry, as a change of a Config.
func hostsToml(t *testing.T, registry, text string) func(*fetch.Config) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, registry), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, registry, "hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := hosts.Open(dir, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return func(c *fetch.Config) { c.Hosts = d }
}

// stocked is a registry with the good image as team/p:v1, and the image's digest.
func stocked(t *testing.T, cfg registry.Config) (*registry.Registry, string) {
	t.Helper()
	reg := startRegistry(t, cfg)
	return reg, must(reg.PutArtifact("team/p", "v1", ociManifest, cncfConfig, "application/wasm", good))(t)
}

// Whatever a mirror gives in place of what was asked for, the next place is asked,
// and only what has the right digest is kept.
func TestFault_F41_MirrorServesJunk(t *testing.T) {
	t.Parallel()
	image := imageOf(t, "application/wasm", good, nil)
	answer := func(part string, h http.HandlerFunc) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, part) {
				h(w, r)
				return true
			}
			return false
		}
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	junk := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", ociManifest)
			io.WriteString(w, text)
		}
	}
	for what, mirror := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"another manifest":     answer("/manifests/", junk(strings.Replace(image.manifest, "{", "{ ", 1))),
		"another blob":         answer("/blobs/", junk("\x00asm\x01\x00\x00\x01")),
		"a longer blob":        answer("/blobs/", junk(good+"x")),
		"a shorter blob":       answer("/blobs/", junk(good[:7])),
		"a page":               answer("/", junk("<html>")),
		"nothing":              answer("/", status(http.StatusNotFound)),
		"no blob":              answer("/blobs/", status(http.StatusNotFound)),
		"no entrance":          answer("/", status(http.StatusForbidden)),
		"trouble":              answer("/", status(http.StatusBadGateway)),
		"overload":             answer("/", status(http.StatusTooManyRequests)),
		"a redirect to itself": answer("/", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }),
		"a redirect inside": answer("/", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://169.254.169.254/", http.StatusFound)
		}),
		"a foreign challenge": answer("/", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://169.254.169.254/token"`)
			w.WriteHeader(http.StatusUnauthorized)
		}),
		"an end": answer("/", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }),
	} {
		upstream := startRegistry(t, registry.Config{})
		digest := must(upstream.PutManifest("team/p", "v1", ociManifest, []byte(image.manifest)))(t)
		must(upstream.PutBlob("team/p", []byte(good)))(t)
		s := *image
		s.before = mirror
		host := s.start(t)
		for _, capabilities := range []string{`["pull"]`, `["pull", "resolve"]`} {
			cl := client(t, hostsToml(t, upstream.Addr, `[host."http://`+host+`"]`+"\ncapabilities = "+capabilities))
			for _, pin := range []string{"", "@" + digest} {
				if pin == "" && what == "another manifest" && capabilities != `["pull"]` {
					continue // a mirror that may say what a tag means is believed
				}
				a := pull(t, cl, fetch.Request{Reference: reference(t, upstream.Addr+"/team/p:v1"+pin)}, []byte(good))
				if string(a.Digest) != digest {
					t.Errorf("%s: got %s", what, a.Digest)
				}
			}
		}
	}
}

// A mirror is asked first, for what it is trusted with, and told for which registry.
func TestMirrors(t *testing.T) {
	t.Parallel()
	upstream, digest := stocked(t, registry.Config{})
	mirror, _ := stocked(t, registry.Config{})
	mirror.Fail(func(r *http.Request) (int, bool) {
		if ns := r.URL.Query().Get("ns"); ns != upstream.Addr {
			t.Errorf("%s: ns is %q", r.URL, ns)
		}
		return 0, false
	})
	for _, c := range []struct {
		capabilities, pin string
		upstream, mirror  registry.Counts
	}{
		{`["pull"]`, "", registry.Counts{ManifestHead: 1}, registry.Counts{ManifestGet: 1, BlobGet: 1, BlobBytes: 8}},
		{`["pull"]`, "@" + digest, registry.Counts{}, registry.Counts{ManifestGet: 1, BlobGet: 1, BlobBytes: 8}},
		{`["resolve"]`, "", registry.Counts{ManifestGet: 1, BlobGet: 1, BlobBytes: 8}, registry.Counts{}},
		{`["push"]`, "@" + digest, registry.Counts{ManifestGet: 1, BlobGet: 1, BlobBytes: 8}, registry.Counts{}},
		{`["pull", "resolve"]`, "", registry.Counts{}, registry.Counts{ManifestGet: 1, BlobGet: 1, BlobBytes: 8}},
		{`[]`, "", registry.Counts{}, registry.Counts{ManifestGet: 1, BlobGet: 1, BlobBytes: 8}},
	} {
		up, mi := upstream.Counts(), mirror.Counts()
		cl := client(t, hostsToml(t, upstream.Addr, `[host."http://`+mirror.Addr+`"]`+"\ncapabilities = "+c.capabilities))
		pull(t, cl, fetch.Request{Reference: reference(t, upstream.Addr+"/team/p:v1"+c.pin)}, []byte(good))
		if got := since(up, upstream.Counts()); got != c.upstream {
			t.Errorf("%s %s: the registry was asked %+v, want %+v", c.capabilities, c.pin, got, c.upstream)
		}
		if got := since(mi, mirror.Counts()); got != c.mirror {
			t.Errorf("%s %s: the mirror was asked %+v, want %+v", c.capabilities, c.pin, got, c.mirror)
		}
	}
	// Who may resolve is asked what a tag means; the registry need not be there.
	cl := client(t, hostsToml(t, "gone.example", `server = "http://`+mirror.Addr+`"`))
	mirror.Fail(nil)
	got, err := cl.Resolve(t.Context(), fetch.Request{Reference: reference(t, "gone.example/team/p:v1")})
	if err != nil || string(got.Digest) != digest || got.Reference != "oci://gone.example/team/p:v1@"+digest {
		t.Errorf("got %+v %v", got, err)
	}
	none := client(t, hostsToml(t, upstream.Addr, `capabilities = ["push"]`))
	refused(t, none, fetch.Request{Reference: reference(t, upstream.Addr+"/team/p:v1")}, chandler.CodeNotFound,
		upstream.Addr+": no host of the operator's hosts.toml may give this; let the operator give one of them the capabilities pull and resolve")
}

func since(before, now registry.Counts) registry.Counts {
	return registry.Counts{
		ManifestHead: now.ManifestHead - before.ManifestHead, ManifestGet: now.ManifestGet - before.ManifestGet, BlobGet: now.BlobGet - before.BlobGet,
		Token: now.Token - before.Token, Other: now.Other - before.Other, BlobBytes: now.BlobBytes - before.BlobBytes,
	}
}

// When all fail, the registry's word counts, with what the mirrors said beside it;
// and what any of them may mend is tried again.
func TestMirrorsAllFail(t *testing.T) {
	t.Parallel()
	upstream, mirror := startRegistry(t, registry.Config{}), startRegistry(t, registry.Config{})
	ask := fetch.Request{Reference: reference(t, upstream.Addr+"/team/p:v1")}
	cl := client(t, hostsToml(t, upstream.Addr, `[host."http://`+mirror.Addr+`"]`))
	e := refused(t, cl, ask, chandler.CodeNotFound, "manifest v1: the server answers 404 Not Found; before that, "+mirror.Addr+
		": manifest v1: the server answers 404 Not Found; correct the url, or push the module there")
	if e.Temporary || e.HostWide {
		t.Errorf("%+v", e)
	}
	mirror.Fail(func(*http.Request) (int, bool) { return 503, true })
	if e = refused(t, cl, ask, chandler.CodeNotFound, ""); !e.Temporary || e.HostWide {
		t.Errorf("a mirror that may come back: %+v", e)
	}
	upstream.Close()
	if e = refused(t, cl, ask, chandler.CodeFetchFailed, ""); !e.Temporary || !e.HostWide {
		t.Errorf("neither answers: %+v", e)
	}
	mirror.Fail(nil)
	if e = refused(t, cl, ask, chandler.CodeFetchFailed, ""); !e.Temporary || e.HostWide {
		t.Errorf("a mirror answers: %+v", e)
	}
}

type keychain map[string]authn.AuthConfig

func (k keychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(k[r.RegistryStr()]), nil
}

// A plugin's credentials never go to a mirror, and the operator's only to the host
// that they are for.
func TestMirrorCredentials(t *testing.T) {
	t.Parallel()
	upstream, _ := stocked(t, registry.Config{Username: "tenant", Password: "tenant-secret"})
	for _, token := range []bool{false, true} {
		mirror, _ := stocked(t, registry.Config{Username: "operator", Password: "operator-secret", Token: token})
		toml := hostsToml(t, upstream.Addr, `[host."http://`+mirror.Addr+`"]`)
		own := fetch.NewCredentials(upstream.Addr, "tenant", "tenant-secret")
		mirror.Fail(func(r *http.Request) (int, bool) {
			if user, _, _ := r.BasicAuth(); user == "tenant" {
				t.Error("the mirror was shown the plugin's credentials")
			}
			return 0, false
		})
		for _, c := range []struct {
			keys   keychain
			mirror int // blobs
		}{
			{keychain{}, 0},
			{keychain{upstream.Addr: {Username: "operator", Password: "operator-secret"}}, 0},
			{keychain{mirror.Addr: {Username: "operator", Password: "operator-secret"}}, 1},
		} {
			before := mirror.Counts()
			cl := client(t, func(f *fetch.Config) { toml(f); f.Keychain = c.keys })
			pull(t, cl, fetch.Request{Reference: reference(t, upstream.Addr+"/team/p:v1"), Credentials: own}, []byte(good))
			if n := mirror.Counts().BlobGet - before.BlobGet; n != c.mirror {
				t.Errorf("with %v the mirror gave %d blobs, want %d", c.keys, n, c.mirror)
			}
		}
	}
}

// A mirror without TLS is the operator's choice, for what needs no credentials.
func TestPlainMirror(t *testing.T) {
	t.Parallel()
	var shown atomic.Int32
	for _, private := range []bool{false, true} {
		upstream, _ := stocked(t, registry.Config{})
		mirror := startRegistry(t, registry.Config{})
		must(mirror.PutArtifact("team/p", "v1", ociManifest, cncfConfig, "application/wasm", good))(t)
		mirror.Fail(func(r *http.Request) (int, bool) {
			if r.Header.Get("Authorization") != "" {
				shown.Add(1)
			}
			return http.StatusUnauthorized, private
		})
		port := mirror.Addr[strings.LastIndexByte(mirror.Addr, ':'):]
		toml := hostsToml(t, upstream.Addr, `[host."http://mirror.example`+port+`"]`)
		cl := client(t, func(c *fetch.Config) {
			toml(c)
			c.Resolver = startDNSFor(t, []string{"mirror.example"}).Resolver()
			c.Keychain = keychain{"mirror.example" + port: {Username: "operator", Password: "secret"}}
		})
		pull(t, cl, fetch.Request{Reference: reference(t, upstream.Addr+"/team/p:v1")}, []byte(good))
		if n := mirror.Counts().BlobGet; (n == 1) == private {
			t.Errorf("private %t: the mirror gave %d blobs", private, n)
		}
	}
	if shown.Load() != 0 {
		t.Error("credentials were sent without TLS")
	}
	// Headers that the operator has written down may be credentials, too.
	upstream, _ := stocked(t, registry.Config{})
	port := upstream.Addr[strings.LastIndexByte(upstream.Addr, ':'):]
	toml := hostsToml(t, "reg.example", `server = "http://reg.example`+port+`"`+"\n[header]\nauthorization = \"Bearer secret\"")
	cl := client(t, func(c *fetch.Config) {
		toml(c)
		c.Resolver = startDNSFor(t, []string{"reg.example"}).Resolver()
	})
	refused(t, cl, fetch.Request{Reference: reference(t, "reg.example/team/p:v1")}, chandler.CodeTLS,
		`"reg.example`+port+`": credentials are not sent in plain http; give the server TLS, or use no credentials for it`)
}

// The rule on where requests go holds for mirrors.
func TestFault_F42_Mirror(t *testing.T) {
	t.Parallel()
	upstream, _ := stocked(t, registry.Config{})
	dns := startDNS(t)
	port, inside := twoDoors(t, http.NotFoundHandler())
	toml := hostsToml(t, upstream.Addr, `[host."http://`+denied+":"+port+`"]`)
	cl := client(t, func(c *fetch.Config) { behind(dns)(c); toml(c) })
	pull(t, cl, fetch.Request{Reference: reference(t, upstream.Addr+"/team/p:v1")}, []byte(good))
	cl = client(t, func(c *fetch.Config) {
		toml(c)
		c.Own = func() []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort(denied + ":" + port)} }
	})
	pull(t, cl, fetch.Request{Reference: reference(t, upstream.Addr+"/team/p:v1")}, []byte(good))
	if inside.Load() != 0 {
		t.Error("the mirror was asked")
	}
}

// Authorities and client certificates are for the host that they are given for, of
// registries and web servers alike, and not for where it redirects to.
func TestHostTLS(t *testing.T) {
	t.Parallel()
	ca := authority.New(t)
	mine := ca.Issue(authority.Leaf{IP: "127.0.0.1"})
	pair, err := tls.LoadX509KeyPair(mine.Cert, mine.Key)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(ca.File)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	secure := func(auth tls.ClientAuthType, h http.HandlerFunc) string {
		srv := httptest.NewUnstartedServer(h)
		srv.Config.ErrorLog = quiet
		srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: auth, ClientCAs: pool}
		srv.StartTLS()
		t.Cleanup(srv.Close)
		return srv.Listener.Addr().String()
	}
	image := imageOf(t, "application/wasm", good, nil)
	var mu sync.Mutex
	var strangers []string
	other := secure(tls.RequestClientCert, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		strangers = append(strangers, r.URL.Path)
		if len(r.TLS.PeerCertificates) > 0 {
			t.Error("another host was shown the certificate")
		}
		if r.Header.Get("X-Operator") != "" {
			t.Error("another host was sent the header")
		}
		io.WriteString(w, good)
	})
	registry := secure(tls.RequireAndVerifyClientCert, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.Contains(r.URL.Path, "/manifests/"):
			if r.Header.Get("X-Operator") != "yes" {
				t.Error("the header was not sent")
			}
			w.Header().Set("Content-Type", ociManifest)
			io.WriteString(w, image.manifest)
		case strings.Contains(r.URL.Path, "/blobs/"):
			http.Redirect(w, r, "https://"+other+"/blob", http.StatusFound)
		default:
			io.WriteString(w, good)
		}
	})
	file := "ca = '" + ca.File + "'\nclient = [['" + mine.Cert + "', '" + mine.Key + "']]\n[header]\nx-operator = 'yes'"
	toml := hostsToml(t, registry, file)
	oci := fetch.Request{Reference: reference(t, registry+"/p:v1")}
	web := fetch.Request{Reference: reference(t, "https://"+registry+"/x.wasm")}
	cl := client(t, toml)
	pull(t, cl, web, []byte(good))
	// What it redirects to is trusted by its own authorities, here none.
	e := refused(t, cl, oci, chandler.CodeTLS, other+": its certificate is of an authority that is not trusted; mend the server's certificate, or give the operator's CA")
	if e.Temporary {
		t.Error("temporary")
	}
	both := client(t, func(c *fetch.Config) { toml(c); c.TLS = &tls.Config{RootCAs: pool} })
	pull(t, both, oci, []byte(good))
	if len(strangers) == 0 {
		t.Error("the blob did not come from the other host")
	}
	refused(t, client(t, nil), oci, chandler.CodeTLS, "")
	refused(t, client(t, func(c *fetch.Config) { c.TLS = &tls.Config{RootCAs: pool} }), oci, chandler.CodeTLS, "")
	pull(t, client(t, hostsToml(t, registry, strings.Replace(file, "ca = '"+ca.File+"'", "skip_verify = true", 1))), web, []byte(good))
}

// A file of the operator's that cannot be used lets nobody past it, and shows
// nothing of this machine.
func TestHostsThatCannotBeRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d, err := hosts.Open(dir, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	reg, _ := stocked(t, registry.Config{})
	cl := client(t, func(c *fetch.Config) { c.Hosts = d })
	req := fetch.Request{Reference: reference(t, reg.Addr+"/team/p:v1")}
	pull(t, cl, req, []byte(good))
	if err := os.Mkdir(filepath.Join(dir, "_default"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "_default", "hosts.toml"), []byte("mirror = 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	e := refused(t, cl, req, chandler.CodeFetchFailed, `"`+reg.Addr+`": the operator's hosts.toml for it cannot be used; let the operator mend it, the control plane's log says why; it is tried again by itself`)
	if !e.Temporary || e.HostWide {
		t.Errorf("%+v", e)
	}
}

// A folder is asked as a mirror is, in its order; in the place of the registry it is the
// only one that is asked.
func TestFolders(t *testing.T) {
	t.Parallel()
	upstream, digest := stocked(t, registry.Config{})
	dir := t.TempDir()
	loading, err := airgap.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	ask := fetch.Request{Reference: reference(t, upstream.Addr+"/team/p:v1"), Credentials: fetch.NewCredentials(upstream.Addr, "tenant", "secret")}
	if _, err := client(t, func(*fetch.Config) {}).Export(t.Context(), ask, loading.Repository(ask.Reference)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(loading.Commit(), loading.Close()); err != nil {
		t.Fatal(err)
	}
	must(upstream.PutArtifact("team/other", "v1", ociManifest, cncfConfig, "application/wasm", good))(t)
	other := fetch.Request{Reference: reference(t, upstream.Addr+"/team/other:v1")}
	at := "file://" + dir

	cl := client(t, hostsToml(t, upstream.Addr, `[host."`+at+"\"]\ncapabilities = [\"pull\"]"))
	before := upstream.Counts()
	pull(t, cl, ask, []byte(good))
	if n := upstream.Counts(); n.BlobGet != before.BlobGet || n.ManifestHead == before.ManifestHead {
		t.Errorf("what the folder has was fetched, or the tag was not asked for: %+v, before %+v", n, before)
	}
	pull(t, cl, other, []byte(good))
	if n := upstream.Counts(); n.BlobGet == before.BlobGet {
		t.Error("what the folder does not have came from nowhere")
	}

	pinned := ask
	pinned.Reference.Digest = chandler.ArtifactDigest(digest)
	toml := hostsToml(t, upstream.Addr, `server = "`+at+`"`)
	before = upstream.Counts()
	for _, only := range []bool{false, true} {
		cl := client(t, func(c *fetch.Config) { toml(c); c.OnlyMirrors = only })
		pull(t, cl, ask, []byte(good))
		pull(t, cl, pinned, []byte(good))
		refused(t, cl, other, chandler.CodeNotFound, "")
		if _, err := cl.Push(t.Context(), upstream.Addr+"/team/p:v2", []byte(good), fetch.PushOptions{}); err == nil || !strings.Contains(err.Error(), "a folder is in its place") {
			t.Errorf("pushed: %v", err)
		}
	}
	if n := upstream.Counts(); n != before {
		t.Errorf("the registry was asked: %+v, before %+v", n, before)
	}
}
