package trust_test

import (
	"testing"

	"chandler.dev/chandler/internal/trust"
)

// BenchmarkVerify is what a question costs: known already, judged anew from
// signatures that are at hand, and with the registry on loopback.
func BenchmarkVerify(b *testing.B) {
	for _, c := range []struct {
		name string
		dir  bool
		anew bool
	}{{name: "known"}, {name: "kept", dir: true, anew: true}, {name: "fetched", anew: true}} {
		b.Run(c.name, func(b *testing.B) {
			w, key := newWorld(b), newKey(b, "P-256")
			w.signTag(b, key)
			cfg := trust.Config{Registry: w.client}
			if c.dir {
				cfg.Dir = b.TempDir()
			}
			w.verifier = trust.New(cfg)
			w.trusted(b, key.pem)
			for b.Loop() {
				if c.anew {
					w.verifier = trust.New(cfg)
				}
				w.trusted(b, key.pem)
			}
		})
	}
}
