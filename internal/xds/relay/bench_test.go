package relay

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
)

// pushes are two of n resources of 450 bytes that all differ, as messages.
func pushes(delta bool, n int) (rounds [2][]byte) {
	for i := range rounds {
		p := Response{Type: clusterType, Version: fmt.Sprint(i), Nonce: "n"}
		for c := range n {
			p.Items = append(p.Items, item(delta, clusterType, fmt.Sprintf("outbound|80||service-%05d", c), fmt.Sprint("version-", i), strings.Repeat(fmt.Sprint(i), 400)))
		}
		rounds[i] = p.Bytes(delta)
	}
	return rounds
}

// pushed is a push from bytes to bytes, to its acknowledgement.
func pushed(tb testing.TB, s *Stream, b, into []byte) []byte {
	p, err := ScanResponse(b, s.kind.Delta)
	if err == nil {
		err = s.FromUpstream(p)
	}
	out := s.ToEnvoy(time.Time{})
	if err != nil || out == nil {
		tb.Fatal("nothing goes on", err)
	}
	into = out.Append(into[:0], s.kind.Delta)
	_ = s.FromEnvoy(Request{Type: clusterType, Nonce: out.Nonce}, time.Time{})
	for s.ToUpstream() != nil {
	}
	return into
}

func pushStream(delta bool) *Stream {
	s := New(Hooks{}).Open(Kind{Delta: delta}, time.Unix(1000, 0))
	s.Connected(time.Now())
	_ = s.FromEnvoy(Request{Type: clusterType}, time.Time{})
	return s
}

// BenchmarkPush is what the relay itself does of a push of 1,000 resources that all
// differ, from bytes to bytes, with its acknowledgement.
func BenchmarkPush(b *testing.B) {
	for _, delta := range []bool{false, true} {
		b.Run(fmt.Sprintf("delta=%v", delta), func(b *testing.B) {
			s, rounds, into := pushStream(delta), pushes(delta, 1000), []byte(nil)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				into = pushed(b, s, rounds[i%2], into)
			}
		})
	}
}

// A resource that differs costs two allocations, itself and its bytes, and one for a version
// of its own; one that is as it was costs none.
func TestPushAllocates(t *testing.T) {
	const n = 1000
	for delta, most := range map[bool]float64{false: 2.1 * n, true: 3.1 * n} {
		s, rounds, into, i := pushStream(delta), pushes(delta, n), []byte(nil), 0
		differ := testing.AllocsPerRun(10, func() { into = pushed(t, s, rounds[i%2], into); i++ })
		same := testing.AllocsPerRun(10, func() { into = pushed(t, s, rounds[i%2], into) })
		if differ > most || same > 0.1*n {
			t.Errorf("delta=%v: %.0f allocations for %d resources that differ, %.0f for as many that do not", delta, differ, n, same)
		}
	}
}

// What is kept is at most twice what the resources take.
func TestKeepsLittle(t *testing.T) {
	for _, delta := range []bool{false, true} {
		rounds := pushes(delta, 10_000)
		before := heap()
		s := pushStream(delta)
		for i := range 4 {
			pushed(t, s, rounds[i%2], nil)
		}
		if ratio := float64(heap()-before) / float64(len(rounds[0])); ratio > 2 {
			t.Errorf("delta=%v: %.2f bytes are kept for each of the resources", delta, ratio)
		} else {
			t.Logf("delta=%v: %.2f bytes are kept for each of the resources", delta, ratio)
		}
		runtime.KeepAlive(s)
		runtime.KeepAlive(rounds)
	}
}

func heap() uint64 {
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
