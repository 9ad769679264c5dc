package relay

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// BenchmarkPush is what the relay itself does of a push of 1,000 resources that all
// differ, from bytes to bytes, with its acknowledgement.
func BenchmarkPush(b *testing.B) {
	for _, delta := range []bool{false, true} {
		b.Run(fmt.Sprintf("delta=%v", delta), func(b *testing.B) {
			now := time.Unix(1000, 0)
			s := New(Hooks{}).Open(Kind{Delta: delta}, now)
			s.Connected()
			_ = s.FromEnvoy(Request{Type: clusterType}, now)
			var rounds [2][]byte
			for i := range rounds {
				p := Response{Type: clusterType, Version: fmt.Sprint(i), Nonce: "n"}
				for n := range 1000 {
					p.Items = append(p.Items, item(delta, clusterType, fmt.Sprintf("outbound|80||service-%05d", n), fmt.Sprint(i), strings.Repeat(fmt.Sprint(i), 400)))
				}
				rounds[i] = p.Bytes(delta)
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				p, err := ReadResponse(rounds[i%2], delta)
				if err == nil {
					err = s.FromUpstream(p)
				}
				out := s.ToEnvoy(now)
				if err != nil || out == nil || len(out.Bytes(delta)) == 0 {
					b.Fatal("nothing goes on", err)
				}
				_ = s.FromEnvoy(Request{Type: clusterType, Nonce: out.Nonce}, now)
				for s.ToUpstream() != nil {
				}
				i++
			}
		})
	}
}
