package credential_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/credential"
	"chandler.dev/chandler/internal/testenv/authority"
)

// signed is a certificate of an issuer's, with its chain.
func signed(t *testing.T, i *credential.Issuer, until time.Time) []*x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, notAfter, err := i.Sign(&x509.Certificate{
		SerialNumber: big.NewInt(7), NotBefore: time.Now().Add(-time.Minute), NotAfter: until, URIs: []*url.URL{{Scheme: "spiffe", Host: "a"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	var chain []*x509.Certificate
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, c)
	}
	if !chain[0].NotAfter.Equal(notAfter) || notAfter.After(chain[1].NotAfter) {
		t.Errorf("until %v, said %v; the authority's until %v", chain[0].NotAfter, notAfter, chain[1].NotAfter)
	}
	return chain
}

// What an issuer signs is its own for as long as its certificate is in the file, also
// beside a newer one; what others sign never is.
func TestIssuer(t *testing.T) {
	t.Parallel()
	root := authority.New(t)
	pair := root.Issue(authority.Leaf{CA: true})
	i, err := credential.NewIssuer(pair.Cert, pair.Key, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	chain := signed(t, i, time.Now().Add(1000*time.Hour).Truncate(time.Second))
	if !i.Signed(chain) || i.Signed(nil) {
		t.Error("whose its certificates are")
	}
	above := root.Issue(authority.Leaf{})
	other, err := tls.LoadX509KeyPair(above.Cert, above.Key)
	if err != nil {
		t.Fatal(err)
	}
	if i.Signed([]*x509.Certificate{other.Leaf, chain[1]}) {
		t.Error("a certificate of the authority above is taken for its own")
	}

	before, err := os.ReadFile(pair.Cert)
	if err != nil {
		t.Fatal(err)
	}
	root.Renew(pair, authority.Leaf{CA: true})
	if i.Signed(chain) {
		t.Error("the authority from before is gone, and its signature still good")
	}
	after, err := os.ReadFile(pair.Cert)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(pair.Cert, append(after, before...), 0o600); err != nil {
		t.Fatal(err)
	}
	if newer := signed(t, i, time.Now().Add(time.Hour).Truncate(time.Second)); !i.Signed(chain) || !i.Signed(newer) {
		t.Error("with both in the file, one is not good")
	}

	leaf := root.Issue(authority.Leaf{})
	if _, err := credential.NewIssuer(leaf.Cert, leaf.Key, nil, nil); err == nil || !strings.Contains(err.Error(), "of no authority") {
		t.Errorf("a machine's certificate signs: %v", err)
	}
}

// The bundle is what the server's certificate is good by, from a file of its own or
// from beside the certificate.
func TestBundle(t *testing.T) {
	t.Parallel()
	ca, other := authority.New(t), authority.New(t)
	own := ca.Issue(here)
	s, _ := server(t, credential.Files{Cert: own.Cert, Key: own.Key})
	anchor := func(file string) []byte {
		t.Helper()
		b, err := s.Bundle(file)
		if err != nil {
			t.Fatal(err)
		}
		return b.Anchor()
	}
	if a := anchor(""); a != nil {
		t.Error("nothing is beside the certificate, and it is known")
	}
	if a := anchor(other.File); a != nil {
		t.Error("another authority's")
	}
	want, err := os.ReadFile(ca.File)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(want)
	if a := anchor(ca.File); string(a) != string(block.Bytes) {
		t.Error("it is not the authority in the file")
	}
	cert, err := os.ReadFile(own.Cert)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(own.Cert, append(cert, want...), 0o600); err != nil {
		t.Fatal(err)
	}
	if a := anchor(""); string(a) != string(block.Bytes) {
		t.Error("it is not the authority beside the certificate")
	}
}

// Who has no certificate may say so much, and then no more.
func TestAnonymous(t *testing.T) {
	t.Parallel()
	ca := authority.New(t)
	own := ca.Issue(here)
	_, option := server(t, credential.Files{Cert: own.Cert, Key: own.Key, CA: ca.File, Anonymous: 4 << 10})
	s := serve(t, option)
	conn := dial(t, s.addr, credential.NewClient(credential.Files{CA: ca.File}).DialOptions()...)
	calls := 0
	for ; calls < 1000; calls++ {
		if err := ask(t, conn); err != nil {
			break
		}
	}
	if calls == 0 || calls == 1000 {
		t.Errorf("it ended after %d calls", calls)
	}
	known := dial(t, s.addr, credential.NewClient(files(ca, ca.Issue(authority.Leaf{}))).DialOptions()...)
	for range 1000 {
		if err := ask(t, known); err != nil {
			t.Fatal(err)
		}
	}
}
