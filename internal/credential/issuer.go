package credential

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Issuer signs clients' certificates with an authority whose certificate and key are
// in files, which are read again when they change. Further certificates in the file
// are of authorities from before, whose signatures are still good.
type Issuer struct {
	now  func() time.Time
	pair *files[*tls.Certificate]
	pool *files[*x509.CertPool]
}

// NewIssuer reads the files, which must be usable now. now and log may be nil.
func NewIssuer(cert, key string, now func() time.Time, log *slog.Logger) (*Issuer, error) {
	s := newSet(Files{Cert: cert, Key: key, CA: cert, Now: now, Log: log})
	i := &Issuer{now: s.Now, pair: s.pair, pool: s.pool}
	parse := i.pair.parse
	i.pair.parse = func(contents [][]byte, now time.Time) (*tls.Certificate, error) {
		pair, err := parse(contents, now)
		if err == nil && (!pair.Leaf.IsCA || pair.Leaf.KeyUsage != 0 && pair.Leaf.KeyUsage&x509.KeyUsageCertSign == 0) {
			err = fmt.Errorf("%s: its first certificate is of no authority", cert)
		}
		return pair, err
	}
	return i, errors.Join(i.pair.stale(), i.pool.stale())
}

// Sign makes a certificate like a template for a key, and gives it with that of the
// authority, in PEM, and its end. It lasts no longer than the authority's.
func (i *Issuer) Sign(template *x509.Certificate, key crypto.PublicKey) (chain []byte, notAfter time.Time, err error) {
	pair, err := i.pair.get()
	if err != nil {
		return nil, notAfter, err
	}
	signed := *template
	if signed.NotAfter.After(pair.Leaf.NotAfter) {
		signed.NotAfter = pair.Leaf.NotAfter
	}
	if !signed.NotAfter.After(i.now()) {
		return nil, notAfter, errors.New("the authority's certificate has expired")
	}
	der, err := x509.CreateCertificate(rand.Reader, &signed, pair.Leaf, key, pair.PrivateKey)
	if err != nil {
		return nil, notAfter, err
	}
	return appendPEM(appendPEM(nil, der), pair.Leaf.Raw), signed.NotAfter, nil
}

// Signed tells whether a client's certificate is of the issuer, by its chain. One
// that has expired is, too: what is good is said by who knows of newer ones.
func (i *Issuer) Signed(chain []*x509.Certificate) bool {
	if len(chain) == 0 {
		return false
	}
	roots, err := i.pool.get()
	if err != nil {
		return false
	}
	at := i.now()
	if end := chain[0].NotAfter; end.Before(at) {
		at = end
	}
	return verify(chain, roots, at) == nil
}

// verify verifies a client's chain, its own certificate first.
func verify(chain []*x509.Certificate, roots *x509.CertPool, at time.Time) error {
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err
}

func appendPEM(to, der []byte) []byte {
	return append(to, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
}

// Bundle is the authorities of a server's own certificate, for its clients to have.
type Bundle struct {
	server *Server
	certs  *files[[]*x509.Certificate]
}

// Bundle takes the authorities from a file; if there is none, they are what the file
// with the certificate has beside it, which may be nothing.
func (s *Server) Bundle(file string) (*Bundle, error) {
	skip := 0
	if file == "" {
		file, skip = s.Cert, 1
	}
	b := &Bundle{server: s, certs: &files[[]*x509.Certificate]{paths: []string{file}, now: s.Now, told: told(s.Log, "the server's authorities"), parse: parseBundle(file, skip)}}
	return b, b.certs.stale()
}

func parseBundle(file string, skip int) func([][]byte, time.Time) ([]*x509.Certificate, error) {
	return func(contents [][]byte, now time.Time) ([]*x509.Certificate, error) {
		certs, err := parseCertificates(file, contents[0], now)
		if len(certs) < skip || skip == 0 && len(certs) == 0 {
			return nil, err
		}
		return certs[skip:], nil
	}
}

// PEM gives the authorities in PEM; empty when they are not known.
func (b *Bundle) PEM() ([]byte, error) {
	certs, err := b.certs.get()
	var out []byte
	for _, c := range certs {
		out = appendPEM(out, c.Raw)
	}
	return out, err
}

// Anchor gives the authority, in DER, by which the server's certificate of now is
// good; nil when it is not in the bundle.
func (b *Bundle) Anchor() []byte {
	pair, err := b.server.pair.get()
	if err != nil {
		return nil
	}
	certs, _ := b.certs.get()
	between := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(c)
		}
	}
	for _, c := range certs {
		root := x509.NewCertPool()
		root.AddCert(c)
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: root, Intermediates: between, CurrentTime: b.server.Now()}); err == nil {
			return c.Raw
		}
	}
	return nil
}

// maxAuthorities bounds the files that are remembered.
const maxAuthorities = 64

// Authorities are files of clients' authorities, by their names. The zero value is
// not usable, see NewAuthorities.
type Authorities struct {
	now func() time.Time
	log *slog.Logger

	mu    sync.Mutex
	pools map[string]*files[*x509.CertPool]
}

// NewAuthorities reads nothing yet. log may be nil.
func NewAuthorities(log *slog.Logger) *Authorities {
	s := newSet(Files{Log: log})
	return &Authorities{now: s.Now, log: s.Log, pools: map[string]*files[*x509.CertPool]{}}
}

// Verify verifies a client's chain by the authorities that are in a file now.
func (a *Authorities) Verify(file string, chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return errors.New("no certificate")
	}
	roots, err := a.pool(file).get()
	if err != nil {
		return err
	}
	return verify(chain, roots, a.now())
}

func (a *Authorities) pool(file string) *files[*x509.CertPool] {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.pools[file]
	if p == nil {
		if len(a.pools) >= maxAuthorities {
			clear(a.pools) // they are read again
		}
		p = newSet(Files{CA: file, Now: a.now, Log: a.log}).pool
		a.pools[file] = p
	}
	return p
}

// parseCertificates reads the certificates in a file that are good now. The error is
// why another one is not, or that there is none.
func parseCertificates(file string, content []byte, now time.Time) (good []*x509.Certificate, why error) {
	for rest := content; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err == nil {
			err = within(file, c, now)
		} else {
			err = fmt.Errorf("%s: %w", file, err)
		}
		if err != nil {
			why = err
			continue
		}
		good = append(good, c)
	}
	if len(good) == 0 && why == nil {
		why = fmt.Errorf("%s: no certificate in PEM form is in it", file)
	}
	return good, why
}

// parsePool reads the certificates of authorities, of which one at least must be
// good now.
func parsePool(paths ...string) func([][]byte, time.Time) (*x509.CertPool, error) {
	return func(contents [][]byte, now time.Time) (*x509.CertPool, error) {
		pool := x509.NewCertPool()
		for i, path := range paths {
			good, why := parseCertificates(path, contents[i], now)
			if len(good) == 0 {
				return nil, why
			}
			for _, c := range good {
				pool.AddCert(c)
			}
		}
		return pool, nil
	}
}
