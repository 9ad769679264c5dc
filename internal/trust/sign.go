package trust

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
	"github.com/sigstore/sigstore/pkg/signature"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
)

// Form is how a signature is written.
type Form string

// The forms.
const (
	// FormBundle is a bundle of Sigstore that refers to the artifact, as cosign 3
	// writes it. It names no repository, so that it holds in every copy.
	FormBundle Form = "bundle"
	// FormTag is a signature at cosign's tag, as cosign 2 writes it. It is for one
	// repository.
	FormTag Form = "tag"
)

// Types of PEM blocks in which private keys are, encrypted by cosign and plain.
const (
	pemEncrypted    = "ENCRYPTED SIGSTORE PRIVATE KEY"
	pemEncryptedOld = "ENCRYPTED COSIGN PRIVATE KEY"
	pemPlain        = "PRIVATE KEY"
	pemPublic       = "PUBLIC KEY"
)

const (
	typeBundle    = fetch.TypeBundle + ".v0.3+json"
	typeStatement = "application/vnd.in-toto+json"
)

// Signer signs artifacts with one key.
type Signer struct {
	key crypto.Signer
	der []byte // of the public key
}

// GenerateKey makes a key pair in PEM, as cosign does: ECDSA on P-256, the private
// key encrypted with the password, which may be empty.
func GenerateKey(password []byte) (private, public []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("write the private key: %w", err)
	}
	box, err := encrypted.Encrypt(der, password)
	if err != nil {
		return nil, nil, fmt.Errorf("encrypt the private key: %w", err)
	}
	s, err := newSigner(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemEncrypted, Bytes: box}), []byte(s.PublicKey()), nil
}

// ErrPassword is that of a password that does not open a private key.
var ErrPassword = errors.New("the password does not open the private key")

// ParseSigner reads a private key in PEM: one that cosign encrypted, for which it
// asks for the password, or plain PKCS #8.
func ParseSigner(text []byte, password func() ([]byte, error)) (*Signer, error) {
	block, rest := pem.Decode(text)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("the private key is not one PEM block")
	}
	der := block.Bytes
	switch block.Type {
	case pemPlain:
	case pemEncrypted, pemEncryptedOld:
		secret, err := password()
		if err != nil {
			return nil, err
		}
		// Its bounds on what deriving a key may cost are the library's.
		if der, err = encrypted.Decrypt(block.Bytes, secret); err != nil {
			return nil, ErrPassword
		}
	default:
		return nil, fmt.Errorf("the private key is a PEM block of type %s; %s and %s are read", chandler.Quote(block.Type), pemEncrypted, pemPlain)
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("the private key is no PKCS #8")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("the private key is of a kind that does not sign")
	}
	return newSigner(signer)
}

func newSigner(key crypto.Signer) (*Signer, error) {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, errors.New("the private key is of a kind that signs no modules")
	}
	s := &Signer{key, der}
	if _, wrong := chandler.ParsePublicKeys(s.PublicKey()); wrong != "" {
		return nil, fmt.Errorf("the private key %s", wrong)
	}
	return s, nil
}

// PublicKey is what verifies the signatures, in PEM.
func (s *Signer) PublicKey() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: pemPublic, Bytes: s.der}))
}

// Sign signs an artifact of ref's repository.
func (s *Signer) Sign(form Form, ref chandler.Reference, artifact chandler.ArtifactDigest) (fetch.Signature, error) {
	switch form {
	case FormBundle:
		return s.bundle(artifact)
	case FormTag:
		return s.simple(ref, artifact)
	}
	return fetch.Signature{}, fmt.Errorf("form %s of signature is unknown", chandler.Quote(string(form)))
}

// bundle signs a statement about the artifact in an envelope.
func (s *Signer) bundle(artifact chandler.ArtifactDigest) (fetch.Signature, error) {
	type object = map[string]any
	statement, err := json.Marshal(object{
		"_type": "https://in-toto.io/Statement/v1", "predicateType": predicateSign, "predicate": object{},
		"subject": []object{{"digest": object{"sha256": bare(artifact)}}},
	})
	if err != nil {
		return fetch.Signature{}, fmt.Errorf("statement of a signature: %w", err)
	}
	sig, err := s.sign(fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(typeStatement), typeStatement, len(statement), statement))
	if err != nil {
		return fetch.Signature{}, err
	}
	hint := sha256.Sum256(s.der)
	content, err := json.Marshal(object{
		"mediaType":            typeBundle,
		"verificationMaterial": object{"publicKey": object{"hint": base64.StdEncoding.EncodeToString(hint[:])}},
		"dsseEnvelope":         object{"payload": statement, "payloadType": typeStatement, "signatures": []object{{"sig": sig}}},
	})
	if err != nil {
		return fetch.Signature{}, fmt.Errorf("bundle of a signature: %w", err)
	}
	return fetch.Signature{MediaType: typeBundle, Content: content, Annotations: map[string]string{
		"dev.sigstore.bundle.content": "dsse-envelope", "dev.sigstore.bundle.predicateType": predicateSign,
	}}, nil
}

// simple signs the payload that cosign signs for its tag.
func (s *Signer) simple(ref chandler.Reference, artifact chandler.ArtifactDigest) (fetch.Signature, error) {
	payload := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":%q},"optional":null}`,
		ref.Host+"/"+ref.Repository, artifact, simpleSigning)
	sig, err := s.sign(payload)
	if err != nil {
		return fetch.Signature{}, err
	}
	return fetch.Signature{MediaType: fetch.TypeSimpleSigning, Content: payload, Annotations: map[string]string{
		annotationSignature: base64.StdEncoding.EncodeToString(sig),
	}}, nil
}

// sign hashes with SHA-256, whatever the key: so cosign signs at its tag, and so it
// verifies what a key has signed, wherever that lies.
func (s *Signer) sign(message []byte) ([]byte, error) {
	signer, err := signature.LoadSigner(s.key, crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("use the private key: %w", err)
	}
	sig, err := signer.SignMessage(bytes.NewReader(message))
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return sig, nil
}
