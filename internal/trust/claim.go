package trust

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"strings"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/sigstore/sigstore-go/pkg/verify"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
)

// Annotations of cosign's signatures by tag.
const (
	annotationSignature   = "dev.cosignproject.cosign/signature"
	annotationCertificate = "dev.sigstore.cosign/certificate"
	annotationLog         = "dev.sigstore.cosign/bundle"
	annotationTimestamp   = "dev.sigstore.cosign/rfc3161timestamp"
)

const (
	// simpleSigning is the type of payload that cosign makes.
	simpleSigning = "cosign container image signature"
	// predicateSign is the predicate of statements that are signatures. Any other
	// one attests something, be it that a module is dangerous.
	predicateSign = "https://sigstore.dev/cosign/sign/v1"
	// oldBundle is the form of bundle that holds what the annotations hold.
	oldBundle = "application/vnd.dev.sigstore.bundle+json;version=0.1"
)

// claim is a signature that has been read: what it says, and nothing of that is
// verified.
type claim struct {
	where string
	// digests are those of what is signed, SHA-256 in hex.
	digests []string
	// repository is what a signature by tag names; bundles name none.
	repository string
	// payload is what is signed; nil when that is the artifact, or in the bundle.
	payload []byte
	// As signed with a key, and by a certificate; one may be nil.
	byKey, byCertificate *bundle.Bundle
	signer               certificate.Summary // of byCertificate
}

// read reads a signature, or tells why it cannot.
func read(s fetch.Signature) (*claim, *chandler.Problem) {
	parse := readBundle
	if s.MediaType == fetch.TypeSimpleSigning {
		parse = readSimpleSigning
	}
	c, err := parse(s)
	if err == nil {
		err = c.readSigner()
	}
	if err != nil {
		return nil, objectionf(chandler.CodeSigParse, "%s does not parse: %s", s.Where, chandler.Printable(err.Error(), 200))
	}
	c.where = s.Where
	return c, nil
}

func (c *claim) readSigner() error {
	if c.byCertificate == nil {
		return nil
	}
	content, err := c.byCertificate.VerificationContent()
	if err != nil {
		return err
	}
	c.signer, err = certificate.SummarizeCertificate(content.Certificate())
	return err
}

// about tells what the claim's signature is held against.
func (c *claim) about(artifact chandler.ArtifactDigest) verify.ArtifactPolicyOption {
	if c.payload != nil {
		return verify.WithArtifact(bytes.NewReader(c.payload))
	}
	digest, err := hex.DecodeString(bare(artifact))
	if err != nil { // the artifact's digest has been parsed
		panic("trust: " + err.Error())
	}
	return verify.WithArtifactDigest("sha256", digest)
}

func bare(artifact chandler.ArtifactDigest) string {
	return strings.TrimPrefix(string(artifact), "sha256:")
}

// readBundle reads a bundle of Sigstore: a statement in an envelope, or a signature
// over the artifact itself.
func readBundle(s fetch.Signature) (*claim, error) {
	b := new(bundle.Bundle)
	if err := b.UnmarshalJSON(s.Content); err != nil {
		return nil, err
	}
	content, err := b.SignatureContent()
	if err != nil {
		return nil, err
	}
	c := &claim{}
	if envelope := content.EnvelopeContent(); envelope != nil {
		c.digests, err = statementDigests(envelope)
	} else {
		c.digests, err = messageDigest(content.MessageSignatureContent())
	}
	if err != nil {
		return nil, err
	}
	by, err := b.VerificationContent()
	switch {
	case err != nil:
		return nil, err
	case by.Certificate() != nil:
		c.byCertificate = b
	default:
		c.byKey = b
	}
	return c, nil
}

func statementDigests(envelope verify.EnvelopeContent) ([]string, error) {
	statement, err := envelope.Statement()
	if err != nil {
		return nil, err
	}
	if statement.GetPredicateType() != predicateSign {
		return nil, errors.New("it attests " + chandler.Quote(statement.GetPredicateType()) + " and is no signature")
	}
	var digests []string
	for _, subject := range statement.GetSubject() {
		if d := subject.GetDigest()["sha256"]; d != "" {
			digests = append(digests, d)
		}
	}
	return digests, nil
}

func messageDigest(m verify.MessageSignatureContent) ([]string, error) {
	if m == nil || m.DigestAlgorithm() != protocommon.HashAlgorithm_SHA2_256.String() {
		return nil, errors.New("it has no SHA-256 digest")
	}
	return []string{hex.EncodeToString(m.Digest())}, nil
}

// readSimpleSigning reads what cosign puts at its tag and gives it the form of an
// old bundle, in which the same things are.
func readSimpleSigning(s fetch.Signature) (*claim, error) {
	var payload struct {
		Critical *struct {
			Identity struct {
				DockerReference string `json:"docker-reference"`
			} `json:"identity"`
			Image struct {
				DockerManifestDigest string `json:"docker-manifest-digest"`
			} `json:"image"`
			Type string `json:"type"`
		} `json:"critical"`
		Optional map[string]any `json:"optional"`
	}
	if err := decodeOne(s.Content, &payload); err != nil {
		return nil, errors.New("the payload is not JSON of the form that cosign signs")
	}
	if payload.Critical == nil || payload.Critical.Type != simpleSigning {
		return nil, errors.New("the payload is no " + simpleSigning)
	}
	digest, ok := chandler.ParseDigest[chandler.ArtifactDigest](payload.Critical.Image.DockerManifestDigest)
	if !ok {
		return nil, errors.New("the payload names no digest")
	}
	signature, err := base64.StdEncoding.DecodeString(s.Annotations[annotationSignature])
	if err != nil || len(signature) == 0 {
		return nil, errors.New("annotation " + annotationSignature + " is missing or not base64")
	}
	c := &claim{digests: []string{bare(digest)}, repository: payload.Critical.Identity.DockerReference, payload: s.Content}
	proofs, err := readProofs(s.Annotations)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(s.Content)
	message := &protobundle.Bundle_MessageSignature{MessageSignature: &protocommon.MessageSignature{
		MessageDigest: &protocommon.HashOutput{Algorithm: protocommon.HashAlgorithm_SHA2_256, Digest: sum[:]},
		Signature:     signature,
	}}
	proofs.Content = &protobundle.VerificationMaterial_PublicKey{PublicKey: &protocommon.PublicKeyIdentifier{Hint: verificationKey}}
	if c.byKey, err = bundle.NewBundle(&protobundle.Bundle{MediaType: oldBundle, VerificationMaterial: proofs, Content: message}); err != nil {
		return nil, err
	}
	text := s.Annotations[annotationCertificate]
	if text == "" {
		return c, nil
	}
	leaf, err := readCertificate(text)
	if err != nil {
		return nil, err
	}
	signed := &protobundle.VerificationMaterial{TlogEntries: proofs.TlogEntries, TimestampVerificationData: proofs.TimestampVerificationData}
	signed.Content = &protobundle.VerificationMaterial_X509CertificateChain{X509CertificateChain: &protocommon.X509CertificateChain{
		Certificates: []*protocommon.X509Certificate{{RawBytes: leaf}},
	}}
	c.byCertificate, err = bundle.NewBundle(&protobundle.Bundle{MediaType: oldBundle, VerificationMaterial: signed, Content: message})
	return c, err
}

// readCertificate gives the first certificate of a PEM text. The rest of the chain
// is not looked at: only the trusted root's authorities count.
func readCertificate(text string) ([]byte, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("annotation " + annotationCertificate + " is no PEM certificate")
	}
	if _, err := x509.ParseCertificate(block.Bytes); err != nil {
		return nil, errors.New("annotation " + annotationCertificate + " is no certificate")
	}
	return block.Bytes, nil
}

// readProofs reads the log entry and the timestamp that may be beside a signature.
func readProofs(annotations map[string]string) (*protobundle.VerificationMaterial, error) {
	m := &protobundle.VerificationMaterial{}
	if text := annotations[annotationLog]; text != "" {
		entry, err := readLogEntry(text)
		if err != nil {
			return nil, err
		}
		m.TlogEntries = []*protorekor.TransparencyLogEntry{entry}
	}
	if text := annotations[annotationTimestamp]; text != "" {
		var stamp struct {
			SignedRFC3161Timestamp []byte
		}
		if err := decodeOne([]byte(text), &stamp); err != nil {
			return nil, errors.New("annotation " + annotationTimestamp + " cannot be read")
		}
		m.TimestampVerificationData = &protobundle.TimestampVerificationData{
			Rfc3161Timestamps: []*protocommon.RFC3161SignedTimestamp{{SignedTimestamp: stamp.SignedRFC3161Timestamp}},
		}
	}
	return m, nil
}

func readLogEntry(text string) (*protorekor.TransparencyLogEntry, error) {
	bad := errors.New("annotation " + annotationLog + " cannot be read")
	var promise struct {
		SignedEntryTimestamp []byte
		Payload              struct {
			Body           []byte `json:"body"`
			IntegratedTime int64  `json:"integratedTime"`
			LogIndex       int64  `json:"logIndex"`
			LogID          string `json:"logID"`
		}
	}
	var body struct {
		Kind       string `json:"kind"`
		APIVersion string `json:"apiVersion"`
	}
	if decodeOne([]byte(text), &promise) != nil || json.Unmarshal(promise.Payload.Body, &body) != nil {
		return nil, bad
	}
	logID, err := hex.DecodeString(promise.Payload.LogID)
	if err != nil {
		return nil, bad
	}
	return &protorekor.TransparencyLogEntry{
		LogIndex:          promise.Payload.LogIndex,
		LogId:             &protocommon.LogId{KeyId: logID},
		KindVersion:       &protorekor.KindVersion{Kind: body.Kind, Version: body.APIVersion},
		IntegratedTime:    promise.Payload.IntegratedTime,
		InclusionPromise:  &protorekor.InclusionPromise{SignedEntryTimestamp: promise.SignedEntryTimestamp},
		CanonicalizedBody: promise.Payload.Body,
	}, nil
}

// decodeOne reads one JSON value, without fields that are not known and without
// anything behind it.
func decodeOne(b []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("something follows")
	}
	return nil
}
