package enrol_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/credential"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/enrol"
	"chandler.dev/chandler/internal/identity"
	"chandler.dev/chandler/internal/testenv/authority"
	"chandler.dev/chandler/internal/testenv/leaks"
)

func TestMain(m *testing.M) { leaks.Main(m) }

// plane is a control plane as far as enrolment goes.
type plane struct {
	t      *testing.T
	ca     *authority.Authority // of the server's certificate
	own    authority.Pair
	signer authority.Pair
	dir    string
	life   time.Duration

	mu      sync.Mutex
	forward time.Duration // what the roll's clock is ahead

	*enrol.Roll
	issuer *credential.Issuer
	addr   string
	stop   func()
}

func newPlane(t *testing.T) *plane {
	t.Helper()
	ca := authority.New(t)
	p := &plane{t: t, ca: ca, own: ca.Issue(authority.Leaf{IP: "127.0.0.1"}), signer: authority.New(t).Issue(authority.Leaf{CA: true, NotAfter: time.Now().Add(1000 * time.Hour)}), dir: t.TempDir()}
	p.start()
	return p
}

func (p *plane) now() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Now().Add(p.forward)
}

func (p *plane) pass(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forward += d
}

func (p *plane) start() {
	p.t.Helper()
	server, err := credential.NewServer(credential.Files{Cert: p.own.Cert, Key: p.own.Key, AlsoCA: p.signer.Cert})
	if err != nil {
		p.t.Fatal(err)
	}
	bundle, err := server.Bundle(p.ca.File)
	if err != nil {
		p.t.Fatal(err)
	}
	if p.issuer, err = credential.NewIssuer(p.signer.Cert, p.signer.Key, p.now, nil); err != nil {
		p.t.Fatal(err)
	}
	p.Roll, err = enrol.Open(enrol.RollConfig{
		FS: durable.OS(), Dir: p.dir, Issuer: p.issuer, Life: p.life, Anchor: bundle.Anchor, Cut: server.Cut, Now: p.now,
	})
	if err != nil {
		p.t.Fatal(err)
	}
	g := grpc.NewServer(grpc.Creds(server))
	enrol.NewService(p.Roll, bundle.PEM).Register(g)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	p.addr = lis.Addr().String()
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(lis) }()
	p.stop = sync.OnceFunc(func() { g.Stop(); <-done })
	p.t.Cleanup(p.stop)
}

func (p *plane) token(edit func(*enrol.TokenRequest)) enrol.Token {
	p.t.Helper()
	req := enrol.TokenRequest{Namespace: "edge", Labels: map[string]string{"app": "web"}, By: "somebody"}
	if edit != nil {
		edit(&req)
	}
	token, _, err := p.CreateToken(req)
	if err != nil {
		p.t.Fatal(err)
	}
	return token
}

// dial connects with a certificate, or without.
func (p *plane) dial(pair *tls.Certificate) chandlerv1.EnrolmentClient {
	p.t.Helper()
	pool := x509.NewCertPool()
	b, err := os.ReadFile(p.ca.File)
	if err != nil || !pool.AppendCertsFromPEM(b) {
		p.t.Fatal(err)
	}
	config := &tls.Config{RootCAs: pool}
	if pair != nil {
		config.Certificates = []tls.Certificate{*pair}
	}
	conn, err := grpc.NewClient(p.addr, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	return chandlerv1.NewEnrolmentClient(conn)
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func csr(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// trade trades a token for a certificate.
func (p *plane) trade(token string, key *ecdsa.PrivateKey, namespace, name string) (*tls.Certificate, error) {
	p.t.Helper()
	res, err := p.dial(nil).Enrol(p.t.Context(), &chandlerv1.EnrolRequest{Token: token, Csr: csr(p.t, key), Namespace: namespace, Name: name})
	if err != nil {
		return nil, err
	}
	return p.pair(res.GetCertificate(), key), nil
}

func (p *plane) pair(chain []byte, key *ecdsa.PrivateKey) *tls.Certificate {
	p.t.Helper()
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		p.t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(chain, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	if err != nil {
		p.t.Fatal(err)
	}
	return &pair
}

// whose asks the roll whose a certificate is.
func (p *plane) whose(pair *tls.Certificate) (identity.Identity, bool, error) {
	p.t.Helper()
	var chain []*x509.Certificate
	for _, der := range pair.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			p.t.Fatal(err)
		}
		chain = append(chain, c)
	}
	return p.Enrolled(chain)
}

func code(t *testing.T, err error, want codes.Code, why string) {
	t.Helper()
	if status.Code(err) != want || !strings.Contains(status.Convert(err).Message(), why) {
		t.Errorf("%v, want %v with %q", err, want, why)
	}
}

// A token makes one certificate, for the node, with the labels that it was made for.
func TestTokenBecomesIdentity(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	token := p.token(func(r *enrol.TokenRequest) { r.Name = "edge-*" })
	if !token.Pinned() {
		t.Error("the token does not name the control plane's authority")
	}
	pair, err := p.trade(token.String(), newKey(t), "edge", "edge-1")
	if err != nil {
		t.Fatal(err)
	}
	leaf := pair.Leaf
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://cluster.local/ns/edge/node/edge-1" || len(leaf.DNSNames) != 0 || leaf.IsCA ||
		len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth || time.Until(leaf.NotAfter) > enrol.DefaultLife {
		t.Errorf("the certificate is for %v %v, CA %v, %v, until %v", leaf.URIs, leaf.DNSNames, leaf.IsCA, leaf.ExtKeyUsage, leaf.NotAfter)
	}
	id, ours, err := p.whose(pair)
	if err != nil || !ours || id.Namespace != "edge" || id.Node != "edge-1" || !id.Known || !maps.Equal(id.Labels, map[string]string{"app": "web"}) {
		t.Errorf("%+v, %v, %v", id, ours, err)
	}
	nodes, tokens := p.Nodes("edge"), p.Tokens("")
	if len(nodes) != 1 || nodes[0].Name != "edge-1" || nodes[0].MadeBy != "somebody" || nodes[0].Token != token.ID || !nodes[0].Revoked.IsZero() {
		t.Errorf("nodes %+v", nodes)
	}
	if len(tokens) != 1 || tokens[0].SpentFor != "edge-1" || len(p.Nodes("shop")) != 0 || len(p.Tokens("shop")) != 0 {
		t.Errorf("tokens %+v", tokens)
	}
	// Another's certificate is not ours.
	other, err := tls.LoadX509KeyPair(p.own.Cert, p.own.Key)
	if err != nil {
		t.Fatal(err)
	}
	if id, ours, err := p.whose(&other); ours || err != nil {
		t.Errorf("another authority's: %+v, %v, %v", id, ours, err)
	}
	// Neither secret nor token stands on disk.
	_ = filepath.WalkDir(p.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), strings.Split(token.String(), ".")[2]) {
			t.Errorf("%s has the secret", path)
		}
		return err
	})
}

// However many try at once, a token is spent once; who has spent it may ask again
// for the answer.
func TestTokenIsSpentOnce(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	token := p.token(nil).String()
	const tries = 16
	keys, errs := make([]*ecdsa.PrivateKey, tries), make([]error, tries)
	c := p.dial(nil)
	var all sync.WaitGroup
	for i := range tries {
		keys[i] = newKey(t)
		request := &chandlerv1.EnrolRequest{Token: token, Csr: csr(t, keys[i]), Namespace: "edge", Name: "a"}
		all.Go(func() { _, errs[i] = c.Enrol(t.Context(), request) })
	}
	all.Wait()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner >= 0:
			t.Fatal("two machines were enrolled with one token")
		case err == nil:
			winner = i
		default:
			code(t, err, codes.Unauthenticated, "the token is not good")
		}
	}
	if winner < 0 {
		t.Fatal(errs)
	}
	if _, err := p.trade(token, keys[winner], "edge", "a"); err != nil {
		t.Errorf("the same key asks again: %v", err)
	}
	_, err := p.trade(token, keys[winner], "edge", "b")
	code(t, err, codes.Unauthenticated, "the token is not good")
}

func TestTokensThatAreRefused(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	good := p.token(func(r *enrol.TokenRequest) { r.Name = "edge-*"; r.TTL = time.Hour })
	wrong, unknown := good, good
	wrong.Secret[0]++
	unknown.ID = "0123456789abcdef"
	for _, c := range []struct {
		name, token, namespace, node string
		code                         codes.Code
		why                          string
	}{
		{"wrong secret", wrong.String(), "edge", "edge-1", codes.Unauthenticated, "the token is not good"},
		{"unknown", unknown.String(), "edge", "edge-1", codes.Unauthenticated, "the token is not good"},
		{"damaged", good.String()[:40], "edge", "edge-1", codes.Unauthenticated, "part of it is missing"},
		{"no token", "letmein", "edge", "edge-1", codes.Unauthenticated, "this is no token"},
		{"long", good.String() + strings.Repeat("x", 1<<20), "edge", "edge-1", codes.Unauthenticated, "limit 256"},
		{"another namespace", good.String(), "shop", "edge-1", codes.PermissionDenied, `for the namespace "edge", not for "shop"`},
		{"another name", good.String(), "edge", "web-1", codes.PermissionDenied, `nodes named "edge-*", not for "web-1"`},
		{"a name that is none", good.String(), "edge", "a/b\x1b[31m", codes.InvalidArgument, `"a/b\x1b[31m" is no name`},
	} {
		_, err := p.trade(c.token, newKey(t), c.namespace, c.node)
		code(t, err, c.code, c.why)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, request := range map[string][]byte{"rsa": csr(t, weak), "none": []byte("no request"), "long": make([]byte, 9<<10), "unsigned": damaged(csr(t, newKey(t)))} {
		if _, err := p.dial(nil).Enrol(t.Context(), &chandlerv1.EnrolRequest{Token: good.String(), Csr: request, Namespace: "edge", Name: "edge-1"}); err == nil {
			t.Errorf("%s: a certificate", name)
		}
	}
	p.pass(2 * time.Hour)
	_, err = p.trade(good.String(), newKey(t), "edge", "edge-1")
	code(t, err, codes.Unauthenticated, "the token is not good")
	if n := len(p.Tokens("")); n != 0 {
		t.Errorf("%d tokens are left", n)
	}
}

func damaged(b []byte) []byte {
	b[len(b)-1]++
	return b
}

// A name is not taken from who has it; it is free when that one is revoked or away
// for longer than its certificate was good.
func TestNameIsTaken(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	if _, err := p.trade(p.token(nil).String(), newKey(t), "edge", "a"); err != nil {
		t.Fatal(err)
	}
	_, err := p.trade(p.token(nil).String(), newKey(t), "edge", "a")
	code(t, err, codes.AlreadyExists, "chandler node revoke")
	p.pass(enrol.DefaultLife + time.Hour)
	if _, err := p.trade(p.token(nil).String(), newKey(t), "edge", "a"); err != nil {
		t.Errorf("its certificate has expired: %v", err)
	}
}

// A revoked node's connections end at once, its certificate is renewed no more, and
// that is so after a restart; it comes back with another token and another key.
func TestRevoke(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	key, first := newKey(t), p.token(nil).String()
	pair, err := p.trade(first, key, "edge", "a")
	if err != nil {
		t.Fatal(err)
	}
	c := p.dial(pair)
	if _, err := c.Renew(t.Context(), &chandlerv1.RenewRequest{}); err != nil {
		t.Fatal(err)
	}
	raw, err := tls.Dial("tcp", p.addr, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*pair}, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if _, err := raw.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
		t.Fatal(err)
	}
	// The client's half of the handshake is over before the server's: the connection is
	// there when the server speaks.
	if _, err := raw.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if ok, err := p.Revoke("edge", "a", "me"); !ok || err != nil {
		t.Fatal(ok, err)
	}
	_ = raw.SetReadDeadline(began.Add(time.Minute))
	for {
		if _, err := raw.Read(make([]byte, 4096)); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection stays open")
			}
			break
		}
	}
	refused := func() {
		t.Helper()
		_, err = p.dial(pair).Renew(t.Context(), &chandlerv1.RenewRequest{})
		code(t, err, codes.PermissionDenied, `the node "edge/a" was revoked at`)
		if _, _, err := p.whose(pair); err == nil {
			t.Error("it is believed")
		}
	}
	refused()
	_, err = p.trade(first, key, "edge", "a")
	code(t, err, codes.Unauthenticated, "the token is not good")
	p.stop()
	p.start()
	refused()
	_, err = p.trade(p.token(nil).String(), key, "edge", "a")
	code(t, err, codes.PermissionDenied, "make a new one")
	again, err := p.trade(p.token(nil).String(), newKey(t), "edge", "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, ours, err := p.whose(again); !ours || err != nil {
		t.Errorf("%v, %v", ours, err)
	}
	if _, _, err := p.whose(pair); err == nil {
		t.Error("the certificate from before is believed again")
	}
	if ok, err := p.Revoke("edge", "stranger", "me"); ok || err != nil {
		t.Errorf("a node that is none: %v, %v", ok, err)
	}
}

// A connection outlives the certificate it was made with, when the node has a newer
// one; else it does not.
func TestConnectionOutlivesCertificate(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	key := newKey(t)
	old, err := p.trade(p.token(nil).String(), key, "edge", "a")
	if err != nil {
		t.Fatal(err)
	}
	p.pass(enrol.DefaultLife * 2 / 3)
	res, err := p.dial(old).Renew(t.Context(), &chandlerv1.RenewRequest{})
	if err != nil {
		t.Fatal(err)
	}
	newer := p.pair(res.GetCertificate(), key)
	if !newer.Leaf.NotAfter.After(old.Leaf.NotAfter) {
		t.Fatalf("until %v, after %v", newer.Leaf.NotAfter, old.Leaf.NotAfter)
	}
	p.pass(enrol.DefaultLife / 2)
	id, ours, err := p.whose(old)
	if err != nil || !ours || !id.Until.After(p.now()) {
		t.Errorf("%v, %v, until %v", ours, err, id.Until)
	}
	p.pass(enrol.DefaultLife)
	if id, _, _ := p.whose(old); id.Until.After(p.now()) {
		t.Errorf("it is good until %v", id.Until)
	}
	if _, err := p.dial(nil).Renew(t.Context(), &chandlerv1.RenewRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("renewed without a certificate: %v", err)
	}
}

// The roll is bounded, and what is asked too often is refused; others are not.
func TestEnrolmentIsBounded(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	c := p.dial(nil)
	var err error
	for range 1000 {
		if _, err = c.Enrol(t.Context(), &chandlerv1.EnrolRequest{Token: "x"}); status.Code(err) != codes.Unauthenticated {
			break
		}
	}
	code(t, err, codes.ResourceExhausted, "too many requests")
	for range enrol.MaxTokens {
		if _, _, err := p.CreateToken(enrol.TokenRequest{Namespace: "edge"}); err != nil {
			t.Fatal(err)
		}
	}
	var problem *chandler.Problem
	if _, _, err := p.CreateToken(enrol.TokenRequest{Namespace: "edge"}); !errors.As(err, &problem) || problem.Code != chandler.CodeXDSLimit {
		t.Errorf("one more: %v", err)
	}
	for _, req := range []enrol.TokenRequest{
		{}, {Namespace: "a/b"}, {Namespace: "edge", Name: "[a]"}, {Namespace: "edge", TTL: 8 * 24 * time.Hour},
		{Namespace: "edge", Labels: map[string]string{"": "x"}}, {Namespace: "edge", Labels: map[string]string{"a": "\n"}},
	} {
		if _, _, err := p.CreateToken(req); !errors.As(err, &problem) || problem.Code == chandler.CodeXDSLimit {
			t.Errorf("%+v: %v", req, err)
		}
	}
}

// A file of a later version is left for it; its node is no longer known here, and is
// not believed.
func TestLaterRoll(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	pair, err := p.trade(p.token(nil).String(), newKey(t), "edge", "a")
	if err != nil {
		t.Fatal(err)
	}
	p.stop()
	files, err := filepath.Glob(filepath.Join(p.dir, "enrolled", "*.json"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	later := strings.Replace(string(b), `"format":1`, `"format":2`, 1)
	if err := os.WriteFile(files[0], []byte(later), 0o600); err != nil {
		t.Fatal(err)
	}
	p.start()
	if _, _, err := p.whose(pair); err == nil || !strings.Contains(err.Error(), "of no node that is enrolled here") {
		t.Errorf("it is believed: %v", err)
	}
	if now, err := os.ReadFile(files[0]); err != nil || string(now) != later {
		t.Errorf("%s, %v", now, err)
	}
	if _, err := p.trade(p.token(nil).String(), newKey(t), "edge", "a"); err != nil {
		t.Fatal(err)
	}
	if now, err := os.ReadFile(files[0] + ".aside"); err != nil || string(now) != later {
		t.Errorf("enrolled anew: %s, %v", now, err)
	}
}

// What a later version says of a token and of a node is still there when they have
// changed.
func TestFault_F78_RollOfLater(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	token := p.token(nil)
	if _, err := p.trade(p.token(nil).String(), newKey(t), "edge", "a"); err != nil {
		t.Fatal(err)
	}
	p.stop()
	var files []string
	for _, dir := range []string{"enrolled", "tokens"} {
		more, err := filepath.Glob(filepath.Join(p.dir, dir, "*.json"))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, more...)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(strings.Replace(string(b), "{", `{"later":{"a":1},`, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.start()
	if _, err := p.trade(token.String(), newKey(t), "edge", "b"); err != nil {
		t.Fatal(err)
	}
	if was, err := p.Revoke("edge", "a", "a test"); err != nil || !was {
		t.Fatal(was, err)
	}
	words := ""
	for _, file := range files {
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the token of the node that was revoked
		}
		if err != nil || !strings.HasSuffix(string(b), `,"later":{"a":1}}`) && !strings.Contains(string(b), `{"later":{"a":1},`) {
			t.Errorf("%s, %v", b, err)
		}
		words += string(b)
	}
	if strings.Count(words, `,"later":{"a":1}}`) != 2 || !strings.Contains(words, `"revoked"`) {
		t.Errorf("not both changed: %s", words)
	}
}

// So is what a later version says of how far an agent's enrolment has come.
func TestFault_F78_KeeperOfLater(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	var state string
	client, _ := p.keeper(p.token(nil).String(), func(cfg *enrol.KeeperConfig) {
		state = filepath.Join(cfg.Dir, "state.json")
		if err := errors.Join(os.Mkdir(cfg.Dir, 0o700), os.WriteFile(state, []byte(`{"later":{"a":1}}`), 0o600)); err != nil {
			t.Fatal(err)
		}
	})
	deadline := time.Now().Add(time.Minute)
	for err := p.renewed(client); err != nil; err = p.renewed(client) {
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond) // between looks
	}
	if b, err := os.ReadFile(state); err != nil || !strings.HasPrefix(string(b), `{"token":"`) || !strings.HasSuffix(string(b), `,"later":{"a":1}}`) {
		t.Errorf("%s, %v", b, err)
	}
}

// A torn file costs what is in it, and nothing else.
func TestTornRoll(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	token := p.token(nil)
	pair, err := p.trade(p.token(nil).String(), newKey(t), "edge", "a")
	if err != nil {
		t.Fatal(err)
	}
	p.stop()
	file := filepath.Join(p.dir, "tokens", token.ID+".json")
	if err := os.WriteFile(file, []byte(`{"format":1,"id":`), 0o600); err != nil {
		t.Fatal(err)
	}
	p.start()
	if _, ours, err := p.whose(pair); !ours || err != nil {
		t.Errorf("%v, %v", ours, err)
	}
	_, err = p.trade(token.String(), newKey(t), "edge", "b")
	code(t, err, codes.Unauthenticated, "the token is not good")
	if _, err := os.Stat(file + ".aside"); err != nil {
		t.Error(err)
	}
}

// keeper runs an agent's side until the test ends.
func (p *plane) keeper(token string, edit func(*enrol.KeeperConfig)) (*credential.Client, enrol.KeeperConfig) {
	p.t.Helper()
	dir := p.t.TempDir()
	cfg := enrol.KeeperConfig{
		FS: durable.OS(), Dir: filepath.Join(dir, "identity"), TokenFile: filepath.Join(dir, "token"), Targets: []string{p.addr},
		Node: chandler.Node{Namespace: "edge", Name: "a"},
	}
	if edit != nil {
		edit(&cfg)
	}
	if err := os.WriteFile(cfg.TokenFile, []byte(token+"\n"), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return p.run(cfg), cfg
}

func (p *plane) run(cfg enrol.KeeperConfig) *credential.Client {
	k := enrol.NewKeeper(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	p.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			p.t.Error(err)
		}
	})
	return credential.NewClient(k.Files())
}

// renewed asks for a certificate as an agent would connect.
func (p *plane) renewed(c *credential.Client) error {
	conn, err := grpc.NewClient(p.addr, c.DialOptions()...)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = chandlerv1.NewEnrolmentClient(conn).Renew(p.t.Context(), &chandlerv1.RenewRequest{})
	return err
}

func eventually(t *testing.T, what string, holds func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond) // between looks at a condition
	}
}

func leafIn(t *testing.T, cfg enrol.KeeperConfig) *x509.Certificate {
	t.Helper()
	file := filepath.Join(cfg.Dir, "identity.pem")
	pair, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf
}

// A fresh machine needs one string. It renews what it has by itself, and comes back
// with it after a restart, when the token is long spent.
func TestKeeper(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	p.stop()
	p.life = 5 * time.Minute
	p.start()
	token := p.token(nil)
	var ahead atomic.Int64 // of the keeper's clock
	c, cfg := p.keeper(token.String(), func(cfg *enrol.KeeperConfig) {
		cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	eventually(t, "enrolled", func() error { return p.renewed(c) })
	if err := p.renewed(credential.NewClient(enrol.NewKeeper(cfg).Files())); err != nil {
		t.Errorf("a keeper that begins with a certificate: %v", err)
	}
	first := leafIn(t, cfg)
	if st, err := os.Stat(filepath.Join(cfg.Dir, "identity.pem")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	ahead.Store(int64(p.life * 4 / 5)) // two thirds of its time are over, and what is left outlasts a machine that stands still
	eventually(t, "renewed by itself", func() error {
		if leafIn(t, cfg).SerialNumber.Cmp(first.SerialNumber) == 0 {
			return errors.New("the same certificate")
		}
		return nil
	})
	ahead.Store(0)
	if newer := leafIn(t, cfg); string(newer.RawSubjectPublicKeyInfo) != string(first.RawSubjectPublicKeyInfo) {
		t.Error("the key changed")
	}
	again := p.run(cfg)
	eventually(t, "after a restart", func() error { return p.renewed(again) })

	// Another token enrols it anew, once it is revoked; a bad one changes nothing.
	before := leafIn(t, cfg).RawSubjectPublicKeyInfo
	if ok, err := p.Revoke("edge", "a", "me"); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if err := p.renewed(again); status.Code(err) != codes.PermissionDenied {
		t.Errorf("revoked: %v", err)
	}
	if err := os.WriteFile(cfg.TokenFile, []byte(p.token(nil).String()), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "enrolled anew", func() error { return p.renewed(again) })
	if string(leafIn(t, cfg).RawSubjectPublicKeyInfo) == string(before) {
		t.Error("the revoked key is used again")
	}
}

// A token is shown to the control plane that it is from and to nobody else.
func TestKeeperBelievesNobodyElse(t *testing.T) {
	t.Parallel()
	p, other := newPlane(t), newPlane(t)
	token := p.token(nil)
	c, _ := other.keeper(token.String(), nil)
	eventually(t, "says why", func() error {
		err := other.renewed(c)
		if err == nil || !strings.Contains(err.Error(), "it is not the control plane that the token is from") {
			return errors.Join(errors.New("it says"), err)
		}
		return nil
	})
	unpinned := token
	unpinned.Pin = [32]byte{}
	c, _ = p.keeper(unpinned.String(), nil)
	eventually(t, "says what it needs", func() error {
		if err := p.renewed(c); err == nil || !strings.Contains(err.Error(), "give --tls-ca") {
			return errors.Join(errors.New("it says"), err)
		}
		return nil
	})
	if n := p.Nodes(""); len(n) != 0 {
		t.Errorf("enrolled: %v", n)
	}
	c, _ = p.keeper(unpinned.String(), func(cfg *enrol.KeeperConfig) { cfg.CA = p.ca.File })
	eventually(t, "with --tls-ca", func() error { return p.renewed(c) })
}
