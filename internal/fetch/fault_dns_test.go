package fetch_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/dns"
	"chandler.dev/chandler/internal/testenv/ports"
)

func startDNS(t *testing.T) *dns.Server {
	t.Helper()
	names, err := dns.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(names.Close)
	return names
}

// startDNSFor leads hosts to this machine.
func startDNSFor(t *testing.T, hosts []string) *dns.Server {
	t.Helper()
	names := startDNS(t)
	for _, host := range hosts {
		names.Set(host, dns.At("127.0.0.1"))
	}
	return names
}

// twoDoors are servers on one port of two addresses of this machine: what is
// allowed and what is not. Each counts the connections that it takes.
func twoDoors(t *testing.T, allowed http.Handler) (port string, inside *atomic.Int32) {
	t.Helper()
	addr := must(ports.Free())(t)
	front := &httptest.Server{Listener: must(net.Listen("tcp", addr))(t), Config: &http.Server{Handler: allowed}}
	front.Start()
	t.Cleanup(front.Close)
	port = strings.TrimPrefix(addr, "127.0.0.1:")
	l := must(net.Listen("tcp", denied+":"+port))(t)
	inside = &atomic.Int32{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			inside.Add(1)
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return port, inside
}

const denied = "127.0.0.2"

func behind(names *dns.Server) func(*fetch.Config) {
	return func(c *fetch.Config) {
		c.Resolver = names.Resolver()
		c.Deny = []netip.Prefix{netip.MustParsePrefix(denied + "/32")}
		c.Insecure = func(string) bool { return true }
	}
}

// A name that is not there, or whose servers say nothing, is worth another try; and
// the wait for it is bounded.
func TestFault_F42_NameThatDoesNotResolve(t *testing.T) {
	t.Parallel()
	names := startDNS(t)
	files := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, good) }))
	t.Cleanup(files.Close)
	_, port, _ := net.SplitHostPort(files.Listener.Addr().String())
	host := "plugins.example:" + port
	req := fetch.Request{Reference: reference(t, "http://"+host+"/x.wasm")}
	const window = time.Second
	patient := client(t, func(c *fetch.Config) { behind(names)(c); c.IdleTimeout = time.Minute }) // an answer that comes is in time
	hasty := client(t, func(c *fetch.Config) { behind(names)(c); c.IdleTimeout = window })

	e := refused(t, patient, req, chandler.CodeFetchFailed, host+": the name has no address; it is tried again by itself")
	if !e.Temporary || !e.HostWide {
		t.Errorf("a name that is not there: %+v", e)
	}
	names.Set("plugins.example", dns.Answer{Silent: true})
	began := time.Now()
	e = refused(t, hasty, req, chandler.CodeFetchFailed, "")
	if !e.Temporary || !e.HostWide {
		t.Errorf("a name server that says nothing: %+v", e)
	}
	if took := time.Since(began); took < window || took > time.Minute {
		t.Errorf("it was waited for for %s, the limit is %s", took, window)
	}
	names.Set("plugins.example", dns.At("127.0.0.1"))
	pull(t, patient, req, []byte(good))
}

// A name that leads to another address when it is looked up again is judged by the
// address that is connected to, and nothing is sent there.
func TestFault_F42_Rebinding(t *testing.T) {
	t.Parallel()
	names := startDNS(t)
	port, inside := twoDoors(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		io.WriteString(w, good)
	}))
	c := client(t, behind(names))
	for i, to := range []struct{ addr, why string }{
		{denied, "of 127.0.0.2/32, which is denied"},
		{"::ffff:" + denied, ""}, // the resolver gives it as IPv4, or not at all
		{"169.254.169.254", "metadata"},
		{"fd00:ec2::254", "metadata"},
		{"64:ff9b::a9fe:a9fe", "metadata"},
		{"fe80::1", "link-local"},
		{"0.0.0.0", "no address of a host"},
		{"::", "no address of a host"},
		{"224.0.0.1", "multicast"},
	} {
		name := fmt.Sprintf("n%d.example", i)
		names.Set(name, dns.At("127.0.0.1"), dns.At(to.addr))
		req := fetch.Request{Reference: reference(t, "http://"+name+":"+port+"/x.wasm")}
		pull(t, c, req, []byte(good))
		e := refused(t, c, req, chandler.CodeEgressDenied, "")
		if e.Temporary || e.HostWide || to.why != "" && !strings.Contains(e.Error(), "the host resolves to "+to.addr+" ("+to.why+")") {
			t.Errorf("%s: %+v", to.addr, e)
		}
	}
	if n := inside.Load(); n != 0 {
		t.Errorf("%d connections were made to what is denied", n)
	}
}

// The rule holds for whatever a server sends us to.
func TestFault_F42_HoldsForAllThatIsAskedFor(t *testing.T) {
	t.Parallel()
	names := startDNS(t)
	names.Set("evil.example", dns.At(denied))
	port, inside := twoDoors(t, http.NotFoundHandler())
	evil := "evil.example:" + port
	redirect := func(part string) func(w http.ResponseWriter, r *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, part) {
				return false
			}
			http.Redirect(w, r, "http://"+evil+"/x", http.StatusTemporaryRedirect)
			return true
		}
	}
	registryThat := func(before func(w http.ResponseWriter, r *http.Request) bool) fetch.Request {
		s := imageOf(t, "application/wasm", good, nil)
		s.before = before
		return s.request(t)
	}
	for what, req := range map[string]fetch.Request{
		"a registry":       {Reference: reference(t, evil+"/p:v1")},
		"an http url":      {Reference: reference(t, "http://"+evil+"/x")},
		"an address":       {Reference: reference(t, "http://"+denied+":"+port+"/x")},
		"a mapped address": {Reference: chandler.Reference{Scheme: chandler.SchemeHTTP, Host: "[::ffff:" + denied + "]:" + port, Path: "/x"}},
		"a manifest":       registryThat(redirect("/manifests/")),
		"a blob":           registryThat(redirect("/blobs/")),
		"a redirect": {Reference: reference(t, webServer(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+evil+"/x", http.StatusFound)
		}))},
		"a token realm": registryThat(func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("WWW-Authenticate", `Bearer service="x",realm="https://`+evil+`/token"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}),
	} {
		if e := refused(t, client(t, behind(names)), req, chandler.CodeEgressDenied, ""); e.Temporary {
			t.Errorf("%s: temporary: %v", what, e)
		}
	}
	c := client(t, behind(names))
	_, err := c.Push(t.Context(), evil+"/p:v1", []byte(good), fetch.PushOptions{})
	judge(t, fetch.Artifact{}, err, &shelf{}, chandler.CodeEgressDenied, "")
	if n := inside.Load(); n != 0 {
		t.Errorf("%d connections were made to what is denied", n)
	}
}

// Behind a proxy the proxy's own address and hosts written as addresses are judged.
func TestFault_F42_Proxy(t *testing.T) {
	t.Parallel()
	names := startDNS(t)
	names.Set("proxy.example", dns.At("127.0.0.1"), dns.At(denied))
	var seen atomic.Int32
	port, inside := twoDoors(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Add(1)
		w.Header().Set("Connection", "close")
		io.WriteString(w, good)
	}))
	c := client(t, func(c *fetch.Config) {
		behind(names)(c)
		c.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: "proxy.example:" + port})
	})
	refused(t, c, fetch.Request{Reference: reference(t, "http://"+denied+"/x")}, chandler.CodeEgressDenied,
		"the host is 127.0.0.2 (of 127.0.0.2/32, which is denied); nothing is fetched from there")
	req := fetch.Request{Reference: reference(t, "http://anywhere.example/x")}
	pull(t, c, req, []byte(good))
	refused(t, c, req, chandler.CodeEgressDenied, "")
	if n := inside.Load(); n != 0 || seen.Load() != 1 {
		t.Errorf("%d connections to what is denied, %d requests to the proxy", n, seen.Load())
	}
}
