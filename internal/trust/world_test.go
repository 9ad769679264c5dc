package trust_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/testenv/registry"
	"chandler.dev/chandler/internal/trust"
)

func TestMain(m *testing.M) { leaks.Main(m) }

const (
	typeManifest  = "application/vnd.oci.image.manifest.v1+json"
	typeConfig    = "application/vnd.oci.image.config.v1+json"
	typeBundle    = "application/vnd.dev.sigstore.bundle.v0.3+json"
	typeStatement = "application/vnd.in-toto+json"
	predicateSign = "https://sigstore.dev/cosign/sign/v1"
	repository    = "team/plugin"
)

type object = map[string]any

// world is a registry with one module, and who verifies it.
type world struct {
	*registry.Registry
	ref      chandler.Reference
	artifact chandler.ArtifactDigest
	client   *fetch.Client
	verifier *trust.Verifier
}

func newWorld(t testing.TB) *world {
	t.Helper()
	r, err := registry.Start(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	d, err := r.PutArtifact(repository, "v1", typeManifest, typeConfig, "application/wasm", "\x00asm\x01\x00\x00\x00")
	if err != nil {
		t.Fatal(err)
	}
	ref, p := chandler.ParseReference(r.Addr + "/" + repository + ":v1")
	if p != nil {
		t.Fatal(p)
	}
	w := &world{Registry: r, ref: ref, artifact: chandler.ArtifactDigest(d), client: fetch.New(fetch.Config{Dir: t.TempDir()})}
	t.Cleanup(w.client.Close)
	w.verifier = trust.New(trust.Config{Registry: w.client})
	return w
}

// withoutReferrers makes the registry one that does not know the referrers API.
func (w *world) withoutReferrers() {
	w.Fail(func(r *http.Request) (int, bool) {
		return http.StatusNotFound, strings.Contains(r.URL.Path, "/referrers/")
	})
}

func (w *world) request(key string, rules ...*trust.Rule) trust.Request {
	return trust.Request{
		Plugin:    chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "shop", Name: "auth"},
		Reference: w.ref, Artifact: w.artifact, VerificationKey: key, Rules: rules,
	}
}

// trusted expects the module to be trusted, and gives by whom.
func (w *world) trusted(t testing.TB, key string, rules ...*trust.Rule) []string {
	t.Helper()
	said, err := w.verifier.Verify(t.Context(), w.request(key, rules...))
	if err != nil {
		t.Fatalf("not trusted: %v", err)
	}
	return said.By
}

// refused expects the module to be refused with a code and a text.
func (w *world) refused(t testing.TB, code chandler.Code, text, key string, rules ...*trust.Rule) {
	t.Helper()
	said, err := w.verifier.Verify(t.Context(), w.request(key, rules...))
	refusal(t, err, code, text)
	if len(said.By) > 0 {
		t.Errorf("trusted by %v all the same", said.By)
	}
}

func refusal(t testing.TB, err error, code chandler.Code, text string) {
	t.Helper()
	var p *chandler.Problem
	if !errors.As(err, &p) {
		t.Fatalf("%T %v, want %s", err, err, code)
	}
	if p.Code != code || !strings.Contains(p.Error(), text) || p.Hint == "" || len(p.Error()) > 2048 {
		t.Errorf("%s: %s\nwant %s: ... %s ...", p.Code, p.Error(), code, text)
	}
	if strings.HasPrefix(t.Name(), "TestRefuse_") {
		t.Attr("refusal", string(p.Code))
	}
}

// keyPair is a signer and its public key in PEM.
type keyPair struct {
	crypto.Signer
	pem string
}

func newKey(t testing.TB, kind string) keyPair {
	t.Helper()
	var s crypto.Signer
	var err error
	switch kind {
	case "P-256":
		s, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "P-384":
		s, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "P-521":
		s, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "Ed25519":
		_, s, err = ed25519.GenerateKey(rand.Reader)
	case "RSA":
		s, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return keyPair{s, publicPEM(t, s.Public())}
}

func publicPEM(t testing.TB, key crypto.PublicKey) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// sign signs with the hash of the key's own size, or with SHA-256 as cosign 2 does.
func (k keyPair) sign(t testing.TB, message []byte, h crypto.Hash) []byte {
	t.Helper()
	digest := message
	if _, ok := k.Signer.(ed25519.PrivateKey); ok {
		h = 0
	} else {
		sum := h.New()
		sum.Write(message)
		digest = sum.Sum(nil)
	}
	signature, err := k.Sign(rand.Reader, digest, h)
	if err != nil {
		t.Fatal(err)
	}
	return signature
}

// payload is what cosign signs for its tag.
func payload(repository string, artifact chandler.ArtifactDigest) []byte {
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`,
		repository, artifact)
}

func (w *world) payload() []byte { return payload(w.Addr+"/"+repository, w.artifact) }

// layer is one signature at cosign's tag.
func (w *world) layer(t testing.TB, payload, signature []byte, more ...string) object {
	t.Helper()
	annotations := object{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(signature)}
	for i := 0; i < len(more); i += 2 {
		annotations[more[i]] = more[i+1]
	}
	w.blob(t, payload)
	d := registry.Descriptor("application/vnd.dev.cosign.simplesigning.v1+json", payload)
	d["annotations"] = annotations
	return d
}

func (w *world) blob(t testing.TB, content []byte) {
	t.Helper()
	if _, err := w.PutBlob(repository, content); err != nil {
		t.Fatal(err)
	}
}

// tag puts signatures at cosign's tag.
func (w *world) tag(t testing.TB, layers ...object) {
	t.Helper()
	w.manifest(t, strings.Replace(string(w.artifact), ":", "-", 1)+".sig", object{
		"schemaVersion": 2, "mediaType": typeManifest, "config": registry.Descriptor(typeConfig, []byte("{}")), "layers": layers,
	})
}

func (w *world) manifest(t testing.TB, tag string, m object) {
	t.Helper()
	raw := marshal(t, m)
	if tag == "" {
		tag = string(chandler.Digest[chandler.ArtifactDigest](raw))
	}
	if _, err := w.PutManifest(repository, tag, m["mediaType"].(string), raw); err != nil {
		t.Fatal(err)
	}
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// signTag signs as cosign does for its tag.
func (w *world) signTag(t testing.TB, k keyPair) {
	t.Helper()
	w.tag(t, w.layer(t, w.payload(), k.sign(t, w.payload(), crypto.SHA256)))
}

// statement is what cosign signs in a bundle.
func statement(artifact chandler.ArtifactDigest, predicate string) []byte {
	return fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":%q}}],"predicateType":%q,"predicate":{}}`,
		strings.TrimPrefix(string(artifact), "sha256:"), predicate)
}

// bundleOf is a statement in a bundle, signed with a key.
func bundleOf(t testing.TB, k keyPair, statement []byte, h crypto.Hash) []byte {
	t.Helper()
	pae := fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(typeStatement), typeStatement, len(statement), statement)
	return marshal(t, object{
		"mediaType":            typeBundle,
		"verificationMaterial": object{"publicKey": object{"hint": "any"}},
		"dsseEnvelope": object{"payload": statement, "payloadType": typeStatement, "signatures": []object{
			{"sig": k.sign(t, pae, h)},
		}},
	})
}

// refer has a bundle refer to the artifact.
func (w *world) refer(t testing.TB, bundle []byte) object {
	t.Helper()
	const empty = "application/vnd.oci.empty.v1+json"
	w.blob(t, []byte("{}"))
	w.blob(t, bundle)
	m := object{
		"schemaVersion": 2, "mediaType": typeManifest, "artifactType": typeBundle, "config": registry.Descriptor(empty, []byte("{}")),
		"layers":  []object{registry.Descriptor(typeBundle, bundle)},
		"subject": object{"mediaType": typeManifest, "digest": w.artifact, "size": 1},
	}
	w.manifest(t, "", m)
	d := registry.Descriptor(typeManifest, marshal(t, m))
	d["artifactType"] = typeBundle
	return d
}

// list puts bundles into the tag that stands in for the referrers API.
func (w *world) list(t testing.TB, referrers ...object) {
	t.Helper()
	const index = "application/vnd.oci.image.index.v1+json"
	w.manifest(t, strings.Replace(string(w.artifact), ":", "-", 1), object{"schemaVersion": 2, "mediaType": index, "manifests": referrers})
}

// rule loads a rule that has nothing wrong.
func rule(t testing.TB, r trust.Rule) *trust.Rule {
	t.Helper()
	if r.Name == "" {
		r.Name = "p"
	}
	if problems := r.Load(nil); len(problems) > 0 {
		t.Fatal(problems)
	}
	return &r
}
