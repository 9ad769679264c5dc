package fetch_test

import (
	"io"
	"math/rand/v2"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/registry"
)

// BenchmarkPull is one pull of a module of 2.6 MB, the size of one in Go, from a
// registry on loopback, on a connection that is there and on none.
func BenchmarkPull(b *testing.B) {
	reg, err := registry.Start(registry.Config{})
	if err != nil {
		b.Fatal(err)
	}
	defer reg.Close()
	wasm := make([]byte, 2_600_000)
	r := rand.NewChaCha8([32]byte{})
	for i := range wasm {
		wasm[i] = "the words of a module repeat themselves"[r.Uint64()%39]
	}
	copy(wasm, good)
	for _, layout := range []fetch.Layout{fetch.LayoutCNCF, fetch.LayoutCompat} {
		for _, warm := range []string{"warm", "cold"} {
			b.Run(string(layout)+"/"+warm, func(b *testing.B) {
				c := fetch.New(fetch.Config{Dir: b.TempDir()})
				defer func() { c.Close() }()
				if _, err := c.Push(b.Context(), reg.Addr+"/p:"+string(layout), wasm, fetch.PushOptions{Layout: layout}); err != nil {
					b.Fatal(err)
				}
				ref, p := chandler.ParseReference(reg.Addr + "/p:" + string(layout))
				if p != nil {
					b.Fatal(p)
				}
				b.ReportAllocs()
				for b.Loop() {
					if warm == "cold" {
						c.Close()
						c = fetch.New(c.Config)
					}
					if _, err := c.Pull(b.Context(), fetch.Request{Reference: ref}, drain{}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

type drain struct{}

func (drain) Ingest(r io.Reader, _ chandler.ModuleDigest) (chandler.ModuleDigest, int64, error) {
	n, err := io.Copy(io.Discard, r)
	return "", n, err
}
