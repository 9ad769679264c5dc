package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
)

// signer signs files with a key as "cosign sign-blob" does: the signature is of the
// SHA-256, in ASN.1 and base64, so that cosign and openssl verify it. The same file and
// key give the same signature (RFC 6979).
type signer struct {
	key    *ecdsa.PrivateKey
	public []byte // in PEM
}

// openSigner reads a private key in PEM: one that cosign or "chandler sign generate-key"
// encrypted, with the password, or plain PKCS #8.
func openSigner(name, password string) (*signer, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s is no key in PEM", name)
	}
	der := block.Bytes
	if block.Type != "PRIVATE KEY" {
		if der, err = encrypted.Decrypt(block.Bytes, []byte(password)); err != nil {
			return nil, fmt.Errorf("%s: COSIGN_PASSWORD does not open it", name)
		}
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s is no PKCS #8", name)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New(name + " is no ECDSA key, such as \"chandler sign generate-key\" makes")
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	return &signer{key, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})}, nil
}

func (s *signer) sign(text []byte) ([]byte, error) {
	digest := sha256.Sum256(text)
	signature, err := s.key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString(base64.StdEncoding.EncodeToString(signature))
	b.WriteByte('\n')
	return b.Bytes(), nil
}
