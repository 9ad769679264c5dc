package credential

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

// maxToken is what fits into a request's headers beside the rest.
const maxToken = 16 << 10

// parsePair reads a certificate with its chain and its key, both in PEM. Expired
// ones are refused here, so that the one before stays in use.
func parsePair(cert, key string) func([][]byte, time.Time) (*tls.Certificate, error) {
	return func(contents [][]byte, now time.Time) (*tls.Certificate, error) {
		pair, err := tls.X509KeyPair(contents[0], contents[1])
		if err != nil {
			return nil, fmt.Errorf("%s and %s: %w", cert, key, err)
		}
		if pair.Leaf == nil {
			if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
				return nil, fmt.Errorf("%s: %w", cert, err)
			}
		}
		return &pair, within(cert, pair.Leaf, now)
	}
}

// within tells whether a certificate is good now.
func within(name string, c *x509.Certificate, now time.Time) error {
	switch {
	case now.After(c.NotAfter):
		return fmt.Errorf("%s: the certificate expired at %s", name, c.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(c.NotBefore):
		return fmt.Errorf("%s: the certificate is not valid before %s", name, c.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}

// parseToken reads a token, of which neither errors nor logs ever say anything.
func parseToken(file string) func([][]byte, time.Time) (string, error) {
	return func(contents [][]byte, _ time.Time) (string, error) {
		token := string(bytes.TrimSpace(contents[0]))
		var err error
		switch {
		case token == "":
			err = errEmpty
		case len(token) > maxToken:
			err = fmt.Errorf("a token of %d bytes, limit %d", len(token), maxToken)
		case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
			err = errors.New("a token has no spaces, lines or letters beyond ASCII")
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w", file, err)
		}
		return token, nil
	}
}
