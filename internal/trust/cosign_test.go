package trust_test

import (
	"crypto"
	"net/http"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/cosign"
)

// TestCosign: what the real cosign signs is verified, in every place where it puts
// signatures, and by nobody else's key; afterwards without the registry.
func TestCosign(t *testing.T) {
	signer, other := cosign.New(t, "../../.tools/cosign"), newKey(t, "P-256")
	for _, c := range []struct {
		name  string
		place cosign.Place
		api   bool
	}{
		{"tag", cosign.Tag, true}, {"bundle by the referrers API", cosign.Bundle, true}, {"bundle by the tag in its place", cosign.Bundle, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			if !c.api {
				w.withoutReferrers()
			}
			w.refused(t, chandler.CodeSigMissing, "has no signature", signer.PublicKey)
			signer.Sign(t, c.place, w.Addr+"/"+repository+"@"+string(w.artifact))
			w.refused(t, chandler.CodeSigIdentity, "verifies with no key that is wanted", other.pem)
			w.trusted(t, signer.PublicKey)
			w.Fail(func(*http.Request) (int, bool) { return http.StatusServiceUnavailable, true })
			w.trusted(t, signer.PublicKey)
		})
	}
}

// TestCosignIndex: of an index its own digest must be signed, which is what a
// reference to it means; that an entry is signed says nothing of the others.
func TestCosignIndex(t *testing.T) {
	signer, w := cosign.New(t, "../../.tools/cosign"), newWorld(t)
	entry := w.artifact
	const index = "application/vnd.oci.image.index.v1+json"
	raw := marshal(t, object{"schemaVersion": 2, "mediaType": index, "manifests": []object{
		{"mediaType": typeManifest, "digest": entry, "size": 1, "platform": object{"os": "wasip1", "architecture": "wasm"}},
	}})
	digest, err := w.PutManifest(repository, "all", index, raw)
	if err != nil {
		t.Fatal(err)
	}
	signer.Sign(t, cosign.Bundle, w.Addr+"/"+repository+"@"+string(entry))
	w.artifact = chandler.ArtifactDigest(digest)
	w.refused(t, chandler.CodeSigMissing, digest+" has no signature", signer.PublicKey)
	signer.Sign(t, cosign.Bundle, w.Addr+"/"+repository+"@"+digest)
	w.trusted(t, signer.PublicKey)
}

// TestCosignForm: what these tests write by hand has the form that cosign writes.
func TestCosignForm(t *testing.T) {
	signer, w, key := cosign.New(t, "../../.tools/cosign"), newWorld(t), newKey(t, "P-256")
	signer.Sign(t, cosign.Tag, w.Addr+"/"+repository+"@"+string(w.artifact))
	signer.Sign(t, cosign.Bundle, w.Addr+"/"+repository+"@"+string(w.artifact))
	real, err := w.client.Signatures(t.Context(), w.ref, w.artifact, nil)
	if err != nil || len(real.Found) != 2 || len(real.Faults) > 0 {
		t.Fatalf("%+v, %v", real, err)
	}
	w = newWorld(t)
	w.signTag(t, key)
	w.refer(t, bundleOf(t, key, statement(w.artifact, predicateSign), crypto.SHA256))
	own, err := w.client.Signatures(t.Context(), w.ref, w.artifact, nil)
	if err != nil || len(own.Found) != 2 {
		t.Fatalf("%+v, %v", own, err)
	}
	for i := range real.Found {
		if a, b := real.Found[i], own.Found[i]; a.MediaType != b.MediaType || len(a.Annotations) < len(b.Annotations) {
			t.Errorf("cosign writes %s %v, the tests %s %v", a.MediaType, a.Annotations, b.MediaType, b.Annotations)
		}
	}
	if i := 1; !strings.HasPrefix(string(real.Found[i].Content), `{"critical":{"identity":{"docker-reference":"`) {
		t.Errorf("cosign signs %s", real.Found[i].Content)
	}
}
