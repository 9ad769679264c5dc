package credential_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthgrpc "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler/internal/credential"
	"chandler.dev/chandler/internal/testenv/authority"
	"chandler.dev/chandler/internal/testenv/leaks"
)

func TestMain(m *testing.M) { leaks.Main(m) }

// asked is what a server saw of a call.
type asked struct {
	name  string // the serial number of the client's certificate
	token string
	leaf  *x509.Certificate
}

// served is a gRPC server and what it saw.
type served struct {
	addr string
	mu   sync.Mutex
	last asked
}

// serve runs a health service.
func serve(t *testing.T, options ...grpc.ServerOption) *served {
	t.Helper()
	s := &served{}
	g := grpc.NewServer(append(options, grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		a := asked{token: strings.Join(metadata.ValueFromIncomingContext(ctx, "authorization"), ",")}
		if p, ok := peer.FromContext(ctx); ok {
			if info, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(info.State.VerifiedChains) > 0 {
				a.name = info.State.VerifiedChains[0][0].SerialNumber.String()
				a.leaf = info.State.PeerCertificates[0]
			}
		}
		s.mu.Lock()
		s.last = a
		s.mu.Unlock()
		return handle(ctx, req)
	}))...)
	healthgrpc.RegisterHealthServer(g, health.NewServer())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // before it began
			t.Error(err)
		}
	})
	return s
}

func (s *served) saw() asked {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

func dial(t *testing.T, addr string, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(addr, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func ask(t *testing.T, conn *grpc.ClientConn) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := healthgrpc.NewHealthClient(conn).Check(ctx, &healthgrpc.HealthCheckRequest{})
	return err
}

func server(t *testing.T, f credential.Files) (*credential.Server, grpc.ServerOption) {
	t.Helper()
	s, err := credential.NewServer(f)
	if err != nil {
		t.Fatal(err)
	}
	return s, grpc.Creds(s)
}

func files(ca *authority.Authority, p authority.Pair) credential.Files {
	return credential.Files{CA: ca.File, Cert: p.Cert, Key: p.Key}
}

var here = authority.Leaf{IP: "127.0.0.1"}

// Row 36: whoever is not who they should be is not spoken to, and nothing goes
// over plain text instead.
func TestFault_F36_AgentsPort(t *testing.T) {
	t.Parallel()
	ca, other := authority.New(t), authority.New(t)
	own := ca.Issue(here)
	mutual := credential.Files{Cert: own.Cert, Key: own.Key, CA: ca.File, RequireClient: true}
	past := time.Now().Add(-time.Minute)
	good := ca.Issue(authority.Leaf{})
	token := filepath.Join(t.TempDir(), "token")
	write(t, token, "secret")

	for _, c := range []struct {
		name   string
		server credential.Files
		client credential.Files
		why    string
	}{
		{"good", mutual, files(ca, good), ""},
		{"server of another authority", mutual, files(other, good), "certificate signed by unknown authority"},
		{"client of another authority", mutual, files(ca, other.Issue(authority.Leaf{})), "unknown certificate authority"},
		{"client without a certificate", mutual, credential.Files{CA: ca.File}, "certificate required"},
		{"certificates are optional", credential.Files{Cert: own.Cert, Key: own.Key, CA: ca.File}, credential.Files{CA: ca.File}, ""},
		{"optional is not any", credential.Files{Cert: own.Cert, Key: own.Key, CA: ca.File}, files(ca, other.Issue(authority.Leaf{})), "unknown certificate authority"},
		{"another name", mutual, withName(files(ca, good), "other.example"), "wanted to match other.example"},
		{"expired", mutual, files(ca, ca.Issue(authority.Leaf{NotAfter: past})), "the certificate expired at"},
		{"not valid yet", mutual, files(ca, ca.Issue(authority.Leaf{NotBefore: time.Now().Add(time.Hour)})), "is not valid before"},
		{"no certificate there", mutual, files(ca, authority.Pair{Cert: "/nonexistent/c", Key: "/nonexistent/k"}), "/nonexistent/c"},
		{"key of another", mutual, files(ca, authority.Pair{Cert: good.Cert, Key: own.Key}), "private key does not match public key"},
		{"no token there", mutual, withToken(files(ca, good), "/nonexistent/token"), "/nonexistent/token"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, creds := server(t, c.server)
			s := serve(t, creds)
			err := ask(t, dial(t, s.addr, credential.NewClient(c.client).DialOptions()...))
			if c.why == "" && err != nil || c.why != "" && (err == nil || !strings.Contains(err.Error(), c.why)) {
				t.Errorf("%v, want %q", err, c.why)
			}
			if c.why != "" && s.saw() != (asked{}) {
				t.Errorf("a call came through: %+v", s.saw())
			}
		})
	}
	t.Run("server's certificate expires", func(t *testing.T) {
		// The server's clock stands still, the client's does not.
		old := ca.Issue(authority.Leaf{IP: "127.0.0.1", NotAfter: past})
		_, creds := server(t, credential.Files{Cert: old.Cert, Key: old.Key, Now: func() time.Time { return past.Add(-time.Minute) }})
		s := serve(t, creds)
		if err := ask(t, dial(t, s.addr, credential.NewClient(credential.Files{CA: ca.File}).DialOptions()...)); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Errorf("%v", err)
		}
		if _, err := credential.NewServer(credential.Files{Cert: old.Cert, Key: old.Key}); err == nil || !strings.Contains(err.Error(), "the certificate expired at") {
			t.Errorf("a server begins with an expired certificate: %v", err)
		}
	})
	t.Run("plain client on a TLS port", func(t *testing.T) {
		srv, creds := server(t, mutual)
		s := serve(t, creds)
		if err := ask(t, dial(t, s.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))); status.Code(err) != codes.Unavailable {
			t.Errorf("%v", err)
		}
		for end := time.Now().Add(time.Minute); value(t, srv.Collectors(), "chandler_tls_handshakes_failed_total") == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("it is not counted")
			}
		}
	})
	t.Run("TLS client on a plain port", func(t *testing.T) {
		s := serve(t)
		client := credential.NewClient(withToken(files(ca, good), token))
		if err := ask(t, dial(t, s.addr, client.DialOptions()...)); err == nil || !strings.Contains(err.Error(), "authentication handshake failed") {
			t.Errorf("%v", err)
		}
		if s.saw() != (asked{}) {
			t.Errorf("downgraded: %+v", s.saw())
		}
	})
}

func withName(f credential.Files, name string) credential.Files {
	f.ServerName = name
	return f
}

func withToken(f credential.Files, file string) credential.Files {
	f.Token = file
	return f
}

// A server without the name that is dialled can be called by the one it has.
func TestServerName(t *testing.T) {
	t.Parallel()
	ca := authority.New(t)
	own := ca.Issue(authority.Leaf{DNS: []string{"chandler.example"}})
	_, creds := server(t, files(ca, own))
	s := serve(t, creds)
	f := credential.Files{CA: ca.File}
	if err := ask(t, dial(t, s.addr, credential.NewClient(f).DialOptions()...)); err == nil {
		t.Error("the name is not looked at")
	}
	if err := ask(t, dial(t, s.addr, credential.NewClient(withName(f, "chandler.example")).DialOptions()...)); err != nil {
		t.Error(err)
	}
}

// New files are in use at the next connection; connections that are there go on;
// what cannot be used changes nothing and is told.
func TestRotation(t *testing.T) {
	t.Parallel()
	ca := authority.New(t)
	own, mine := ca.Issue(here), ca.Issue(authority.Leaf{})
	srv, creds := server(t, files(ca, own))
	s := serve(t, creds)
	client := credential.NewClient(files(ca, mine))
	live := dial(t, s.addr, client.DialOptions()...)
	if err := ask(t, live); err != nil {
		t.Fatal(err)
	}
	first := s.saw().name
	ca.Renew(mine, authority.Leaf{})
	ca.Renew(own, here)
	if err := ask(t, live); err != nil || s.saw().name != first {
		t.Errorf("on the live connection: %v, certificate %s, was %s", err, s.saw().name, first)
	}
	again := func() string {
		t.Helper()
		if err := ask(t, dial(t, s.addr, client.DialOptions()...)); err != nil {
			t.Fatal(err)
		}
		return s.saw().name
	}
	second := again()
	if second == first {
		t.Error("the new certificate is not shown")
	}

	stale := func(want float64) {
		t.Helper()
		if got := value(t, client.Collectors(), "chandler_tls_files_stale"); got != want {
			t.Errorf("stale is %v, want %v", got, want)
		}
	}
	stale(0)
	for name, spoil := range map[string]func(){
		"junk":    func() { write(t, mine.Cert, "junk") },
		"empty":   func() { write(t, mine.Key, "") },
		"gone":    func() { os.Remove(mine.Cert) },
		"expired": func() { ca.Renew(mine, authority.Leaf{NotAfter: time.Now().Add(-time.Minute)}) },
		"other":   func() { write(t, mine.Cert, read(t, own.Cert)) },
	} {
		spoil()
		if got := again(); got != second {
			t.Errorf("%s: the certificate before does not stay", name)
		}
		stale(1)
	}
	ca.Renew(mine, authority.Leaf{})
	if third := again(); third == second || third == first {
		t.Error("the mended certificate is not shown")
	}
	stale(0)

	// Another authority on both sides, and the server's certificate with it.
	next := authority.New(t)
	chain := chainOf(t, mine)
	if err := srv.Verify(chain); err != nil {
		t.Error(err)
	}
	write(t, ca.File, read(t, next.File))
	if err := srv.Verify(chain); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("of an authority that is no longer trusted: %v", err)
	}
	next.Renew(own, here)
	next.Renew(mine, authority.Leaf{})
	again()
	if err := ask(t, live); err != nil {
		t.Errorf("the first connection: %v", err)
	}
	if after := value(t, srv.Collectors(), "chandler_tls_certificate_not_after_seconds"); after < float64(time.Now().Add(23*time.Hour).Unix()) {
		t.Errorf("expiry is told as %v", after)
	}
}

// Connections share what they are made by until a file is another.
func TestSharedTerms(t *testing.T) {
	t.Parallel()
	ca := authority.New(t)
	own := ca.Issue(here)
	of := files(ca, own)
	of.Now = func() time.Time { return time.Now().Add(time.Minute) } // the files are old
	s, err := credential.NewServer(of)
	if err != nil {
		t.Fatal(err)
	}
	terms := func() any {
		t.Helper()
		now, err := s.Terms()
		if err != nil {
			t.Fatal(err)
		}
		return now
	}
	first := terms()
	if terms() != first {
		t.Error("each connection has its own")
	}
	ca.Renew(own, here)
	second := terms()
	if second == first {
		t.Error("a new certificate is not in use")
	}
	write(t, ca.File, read(t, authority.New(t).File))
	if terms() == second {
		t.Error("a new authority is not in use")
	}
}

// What a handshake has found holds for its connection's certificate as long as the same
// authorities are trusted and nothing has expired, and no longer than the connection.
func TestProven(t *testing.T) {
	t.Parallel()
	ca := authority.New(t)
	f := files(ca, ca.Issue(here))
	var late atomic.Int64
	f.Now = func() time.Time { return time.Now().Add(time.Duration(late.Load())) }
	srv, creds := server(t, f)
	s := serve(t, creds)
	conn := dial(t, s.addr, credential.NewClient(files(ca, ca.Issue(authority.Leaf{}))).DialOptions()...)
	if err := ask(t, conn); err != nil {
		t.Fatal(err)
	}
	leaf := s.saw().leaf
	good := func(want bool, when string) {
		t.Helper()
		if err := srv.Verify([]*x509.Certificate{leaf}); (err == nil) != want {
			t.Errorf("%s: %v", when, err)
		}
	}
	spoiled := *leaf // as if it had been forged since: what was found is not found again
	spoiled.Signature = bytes.Clone(spoiled.Signature)
	spoiled.Signature[len(spoiled.Signature)-1] ^= 1
	if err := srv.Verify([]*x509.Certificate{&spoiled}); err == nil {
		t.Error("a certificate that no handshake has shown is believed")
	}
	leaf.Signature[len(leaf.Signature)-1] ^= 1
	good(true, "while it is proven")
	late.Store(int64(100 * 365 * 24 * time.Hour))
	good(false, "when it has expired")
	late.Store(0)
	good(true, "again in time")
	write(t, ca.File, read(t, authority.New(t).File))
	good(false, "of an authority that is not trusted any more")
	_ = conn.Close()
	deadline := time.Now().Add(time.Minute)
	for srv.Proofs() > 0 {
		if time.Now().After(deadline) {
			t.Fatal("what was found outlives its connection")
		}
		<-time.After(time.Millisecond)
	}
}

// A token is read again when it changes, and goes nowhere without TLS.
func TestToken(t *testing.T) {
	t.Parallel()
	ca := authority.New(t)
	own := ca.Issue(here)
	_, creds := server(t, credential.Files{Cert: own.Cert, Key: own.Key})
	s := serve(t, creds)
	file := filepath.Join(t.TempDir(), "token")
	write(t, file, "one\n")
	client := credential.NewClient(credential.Files{CA: ca.File, Token: file})
	conn := dial(t, s.addr, client.DialOptions()...)
	for _, c := range []struct{ content, want string }{{"one\n", "Bearer one"}, {"two", "Bearer two"}, {"", "Bearer two"}, {"x\ny", "Bearer two"}, {strings.Repeat("x", 17<<10), "Bearer two"}, {"three", "Bearer three"}} {
		write(t, file, c.content)
		if err := ask(t, conn); err != nil {
			t.Fatal(err)
		}
		if got := s.saw().token; got != c.want {
			t.Errorf("with %.10q the token is %.20q, want %q", c.content, got, c.want)
		}
	}
	plain := serve(t)
	options := append(client.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if conn, err := grpc.NewClient(plain.addr, options...); err == nil {
		conn.Close()
		t.Error("a token would be shown in plain text")
	}
}

func chainOf(t *testing.T, p authority.Pair) []*x509.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(p.Cert, p.Key)
	if err != nil {
		t.Fatal(err)
	}
	return []*x509.Certificate{pair.Leaf}
}

func write(t *testing.T, file, content string) {
	t.Helper()
	next := file + ".next"
	if err := os.WriteFile(next, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, file); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func value(t *testing.T, all []prometheus.Collector, name string) float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(all...)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
