package kube

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// keys are the certificates of one cluster, in files.
type keys struct {
	pool      *x509.CertPool
	authority string // a certificate in PEM
	accounts  string // the key that signs service accounts' tokens
	server    pair

	cert *x509.Certificate
	key  crypto.Signer
}

// pair are the paths of a certificate and its key, both in PEM.
type pair struct{ cert, key string }

// leaf is whom a certificate is for; without a name it is the server's.
type leaf struct {
	name   string
	groups []string
}

func newKeys(dir string) (keys, error) {
	k := keys{pool: x509.NewCertPool(), authority: filepath.Join(dir, "ca.pem"), accounts: filepath.Join(dir, "accounts.key")}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return k, err
	}
	template := certificate("test authority")
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return k, err
	}
	if k.cert, err = x509.ParseCertificate(der); err != nil {
		return k, err
	}
	k.key = key
	k.pool.AddCert(k.cert)
	if err := writePEM(k.authority, "CERTIFICATE", der); err != nil {
		return k, err
	}
	accounts, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return k, err
	}
	if err := writeKey(k.accounts, accounts); err != nil {
		return k, err
	}
	k.server, err = k.issue(dir, "server", leaf{})
	return k, err
}

// issue writes a certificate and its key to files of the given name.
func (k *keys) issue(dir, file string, l leaf) (pair, error) {
	p := pair{filepath.Join(dir, file+".pem"), filepath.Join(dir, file+".key")}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return p, err
	}
	template := certificate(l.name)
	template.Subject.Organization = l.groups
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if l.name == "" {
		template.Subject.CommonName = "kube-apiserver"
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
		template.DNSNames = []string{"localhost"}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, k.cert, key.Public(), k.key)
	if err != nil {
		return p, err
	}
	if err := writePEM(p.cert, "CERTIFICATE", der); err != nil {
		return p, err
	}
	return p, writeKey(p.key, key)
}

func certificate(name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(72 * time.Hour),
	}
}

func writeKey(file string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(file, "EC PRIVATE KEY", der)
}

func writePEM(file, kind string, der []byte) error {
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

func randomToken() (string, error) {
	b := make([]byte, 16)
	_, err := rand.Read(b)
	return hex.EncodeToString(b), err
}
