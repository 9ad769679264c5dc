package distribution_test

import (
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/cosign"
)

// TestSignatures: what the real cosign puts into the reference registry is found
// there, in both places. It has no referrers API, so that a bundle is found by the
// tag in its place.
func TestSignatures(t *testing.T) {
	host, signer := start(t), cosign.New(t, "../../../../.tools/cosign")
	c := fetch.New(fetch.Config{Dir: t.TempDir()})
	defer c.Close()
	digest, err := c.Push(t.Context(), host+"/team/plugin:v1", []byte("\x00asm\x01\x00\x00\x00"), fetch.PushOptions{Layout: fetch.LayoutCNCF})
	if err != nil {
		t.Fatal(err)
	}
	ref, p := chandler.ParseReference(host + "/team/plugin:v1")
	if p != nil {
		t.Fatal(p)
	}
	for i, place := range []cosign.Place{cosign.Tag, cosign.Bundle, cosign.Bundle} {
		signer.Sign(t, place, host+"/team/plugin@"+string(digest))
		got, err := c.Signatures(t.Context(), ref, digest, nil)
		if err != nil || len(got.Found) != i+1 || got.Listed != i+1 || len(got.Faults) > 0 {
			t.Errorf("%s: %+v, %v", place, got, err)
		}
	}
}
