package trust_test

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/cosign"
	"chandler.dev/chandler/internal/trust"
)

func secret(s string) func() ([]byte, error) { return func() ([]byte, error) { return []byte(s), nil } }

func pkcs8(t *testing.T, kind string) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(newKey(t, kind).Signer)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func signer(t *testing.T, private, password string) *trust.Signer {
	t.Helper()
	s, err := trust.ParseSigner([]byte(private), secret(password))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sign signs the world's artifact and puts that into its registry.
func (w *world) sign(t *testing.T, s *trust.Signer, form trust.Form) {
	t.Helper()
	sig, err := s.Sign(form, w.ref, w.artifact)
	if err == nil {
		err = w.client.AddSignature(t.Context(), w.ref, w.artifact, sig, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) name() string { return w.Addr + "/" + repository + "@" + string(w.artifact) }

// TestSign: what is signed here is verified here and by the real cosign, whatever
// the key, in both places, and whether or not the registry knows referrers; and by
// no other key.
func TestSign(t *testing.T) {
	real, other := cosign.New(t, "../../.tools/cosign"), newKey(t, "P-256")
	private, _, err := trust.GenerateKey([]byte("pass"))
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]*trust.Signer{
		"cosign's": signer(t, real.PrivateKey, ""), "our own": signer(t, string(private), "pass"),
		"P-256": signer(t, pkcs8(t, "P-256"), ""), "P-384": signer(t, pkcs8(t, "P-384"), ""),
		"Ed25519": signer(t, pkcs8(t, "Ed25519"), ""), "RSA": signer(t, pkcs8(t, "RSA"), ""),
	}
	for name, s := range keys {
		for _, form := range []trust.Form{trust.FormBundle, trust.FormTag} {
			t.Run(name+" "+string(form), func(t *testing.T) {
				w := newWorld(t)
				if name == "our own" {
					w.withoutReferrers()
				}
				w.refused(t, chandler.CodeSigMissing, "has no signature", s.PublicKey())
				w.sign(t, s, form)
				w.refused(t, chandler.CodeSigIdentity, "verifies with no key that is wanted", other.pem)
				w.trusted(t, s.PublicKey())
				if err := real.Verify(t, s.PublicKey(), w.name()); err != nil {
					t.Error(err)
				}
				if err := real.Verify(t, other.pem, w.name()); err == nil {
					t.Error("cosign takes any key")
				}
			})
		}
	}
}

// TestSignBeside: signatures are added to those that are there, cosign's included,
// and all of them hold.
func TestSignBeside(t *testing.T) {
	for _, api := range []bool{true, false} {
		real, w := cosign.New(t, "../../.tools/cosign"), newWorld(t)
		if !api {
			w.withoutReferrers()
		}
		ours, third := signer(t, pkcs8(t, "P-256"), ""), signer(t, pkcs8(t, "P-384"), "")
		for _, form := range []trust.Form{trust.FormTag, trust.FormBundle} {
			real.Sign(t, cosign.Place(form), w.name())
			w.sign(t, ours, form)
			w.sign(t, third, form)
			w.trusted(t, real.PublicKey)
			w.trusted(t, ours.PublicKey())
			w.trusted(t, third.PublicKey())
			for _, key := range []string{real.PublicKey, ours.PublicKey(), third.PublicKey()} {
				if err := real.Verify(t, key, w.name()); err != nil {
					t.Errorf("%s, referrers %v: %v", form, api, err)
				}
			}
		}
		found, err := w.client.Signatures(t.Context(), w.ref, w.artifact, nil)
		if err != nil || len(found.Found) != 6 || len(found.Faults) > 0 {
			t.Errorf("referrers %v: %d signatures, %v, %v", api, len(found.Found), found.Faults, err)
		}
	}
}

// TestGeneratedKey: cosign reads a key that is made here, and signs with it.
func TestGeneratedKey(t *testing.T) {
	real, w := cosign.New(t, "../../.tools/cosign"), newWorld(t)
	private, public, err := trust.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	real.UseKey(t, string(private))
	if real.PublicKey != string(public) {
		t.Errorf("cosign takes it for\n%s, it is\n%s", real.PublicKey, public)
	}
	real.Sign(t, cosign.Bundle, w.name())
	w.trusted(t, string(public))
}

// TestSignerRefused: what is no private key to sign with.
func TestSignerRefused(t *testing.T) {
	private, public, err := trust.GenerateKey([]byte("right"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trust.ParseSigner(private, secret("wrong")); !errors.Is(err, trust.ErrPassword) {
		t.Errorf("wrong password: %v", err)
	}
	asked := errors.New("nobody answers")
	if _, err := trust.ParseSigner(private, func() ([]byte, error) { return nil, asked }); !errors.Is(err, asked) {
		t.Errorf("no password: %v", err)
	}
	if _, err := trust.ParseSigner([]byte(pkcs8(t, "P-256")), func() ([]byte, error) { panic("a plain key has no password") }); err != nil {
		t.Error(err)
	}
	for text, want := range map[string]string{
		"":             "not one PEM block",
		string(public): `of type "PUBLIC KEY"`,
		"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n":                                       "no PKCS #8",
		"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n": "does not open",
		string(private) + string(private):                                                                      "not one PEM block",
	} {
		if _, err := trust.ParseSigner([]byte(text), secret("")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// TestSignRefused: nothing is written for an artifact that is not there, and the
// registry's refusal is told.
func TestSignRefused(t *testing.T) {
	w, s := newWorld(t), signer(t, pkcs8(t, "P-256"), "")
	gone := chandler.Digest[chandler.ArtifactDigest]([]byte("gone"))
	sig, err := s.Sign(trust.FormBundle, w.ref, gone)
	if err != nil {
		t.Fatal(err)
	}
	refusal(t, w.client.AddSignature(t.Context(), w.ref, gone, sig, nil), chandler.CodeNotFound, "404")
	w.Fail(func(r *http.Request) (int, bool) { return http.StatusForbidden, r.Method == http.MethodPost })
	sig, err = s.Sign(trust.FormTag, w.ref, w.artifact)
	if err != nil {
		t.Fatal(err)
	}
	refusal(t, w.client.AddSignature(t.Context(), w.ref, w.artifact, sig, nil), chandler.CodeUnauthorized, "403")
}
