// Package authority is a small certificate authority for tests. It is no example:
// its keys lie beside the certificates.
package authority

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// T is what is needed of a test, or of what stands in for one where there is none.
type T interface {
	Helper()
	TempDir() string
	Fatal(args ...any)
}

// Authority signs certificates.
type Authority struct {
	// File is its certificate in PEM.
	File string

	t    T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Leaf is whom a certificate is for. Without times it is good from an hour ago for
// a day.
type Leaf struct {
	DNS                 []string
	URI                 string
	IP                  string
	NotBefore, NotAfter time.Time
	// CA makes it an authority itself.
	CA bool
}

// Pair are the files of a certificate and its key, both in PEM.
type Pair struct{ Cert, Key string }

// New makes an authority, good for as long as its certificates at most.
func New(t T) *Authority {
	t.Helper()
	a := &Authority{t: t, File: filepath.Join(t.TempDir(), "ca.pem"), key: newKey(t)}
	template := a.template(Leaf{})
	template.Subject.CommonName = "test authority"
	template.NotBefore, template.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(48*time.Hour)
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage, template.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.write(a.File, "CERTIFICATE", der)
	return a
}

// Issue gives the files of a new certificate, which both sides may use.
func (a *Authority) Issue(l Leaf) Pair {
	a.t.Helper()
	dir := a.t.TempDir()
	p := Pair{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	a.Renew(p, l)
	return p
}

// Renew puts a new certificate, with a new key, in place of a pair's, each file at
// once as a whole.
func (a *Authority) Renew(p Pair, l Leaf) {
	a.t.Helper()
	key := newKey(a.t)
	der, err := x509.CreateCertificate(rand.Reader, a.template(l), a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(p.Key, "EC PRIVATE KEY", secret)
	a.write(p.Cert, "CERTIFICATE", der)
}

func (a *Authority) template(l Leaf) *x509.Certificate {
	now := time.Now()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "test"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    l.DNS,
	}
	if !l.NotBefore.IsZero() {
		c.NotBefore = l.NotBefore
	}
	if !l.NotAfter.IsZero() {
		c.NotAfter = l.NotAfter
	}
	if l.CA {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
	}
	if l.IP != "" {
		c.IPAddresses = []net.IP{net.ParseIP(l.IP)}
	}
	if l.URI != "" {
		u, err := url.Parse(l.URI)
		if err != nil {
			a.t.Fatal(err)
		}
		c.URIs = []*url.URL{u}
	}
	return c
}

func (a *Authority) write(file, kind string, der []byte) {
	a.t.Helper()
	next := file + ".next"
	if err := os.WriteFile(next, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	if err := os.Rename(next, file); err != nil {
		a.t.Fatal(err)
	}
}

func newKey(t T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
