package chandler

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
)

// Limits of public keys.
const (
	maxPublicKeys = 16
	minRSABits    = 2048
	maxRSABits    = 8192
)

// ParsePublicKeys reads one or more PEM blocks of type PUBLIC KEY: ECDSA on P-256,
// P-384 or P-521, Ed25519, or RSA of 2048 to 8192 bits. Otherwise wrong completes a
// sentence that begins with what the text is, such as "is not PEM".
func ParsePublicKeys(text string) (keys []crypto.PublicKey, wrong string) {
	rest := []byte(text)
	for {
		var block *pem.Block
		before := rest
		block, rest = pem.Decode(rest)
		switch {
		case block == nil && len(keys) == 0:
			return nil, "is not PEM"
		case block == nil && strings.TrimSpace(string(rest)) != "":
			return nil, "has something after its last PEM block"
		case block == nil && strings.Count(text, "-----BEGIN ") != len(keys):
			return nil, "has a block that is not PEM"
		case block == nil:
			return keys, ""
		case !strings.HasPrefix(strings.TrimSpace(string(before)), "-----BEGIN"):
			return nil, fmt.Sprintf("has something before its PEM block %d", len(keys)+1)
		case block.Type != "PUBLIC KEY":
			return nil, "has a PEM block of type " + Quote(block.Type)
		case len(keys) == maxPublicKeys:
			return nil, fmt.Sprintf("has more than %d keys", maxPublicKeys)
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Sprintf("has a block %d that is no public key", len(keys)+1)
		}
		if wrong := unfitKey(key); wrong != "" {
			return nil, wrong
		}
		keys = append(keys, key)
	}
}

func unfitKey(key crypto.PublicKey) string {
	switch k := key.(type) {
	case ed25519.PublicKey:
		return ""
	case *ecdsa.PublicKey:
		if !slices.Contains([]elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()}, k.Curve) {
			return "has an ECDSA key on " + k.Curve.Params().Name + "; P-256, P-384 and P-521 are known"
		}
		return ""
	case *rsa.PublicKey:
		switch n := k.N.BitLen(); {
		case n < minRSABits:
			return fmt.Sprintf("has an RSA key of %d bits, at least %d are needed", n, minRSABits)
		case n > maxRSABits:
			return fmt.Sprintf("has an RSA key of %d bits, limit %d", n, maxRSABits)
		}
		return ""
	}
	return fmt.Sprintf("has a key of a kind that signs no modules (%T)", key)
}
