package store

import (
	"testing"
)

// FuzzSize: what a person writes for a size is one, within bounds, or leaves the
// one before as it was.
func FuzzSize(f *testing.F) {
	for _, s := range []string{"500MiB", "2 GiB", "1.5TB", "0", "-1", "1e3kB", "NaN", "Inf", "0x10", "9999999TiB", "MiB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s := Size(7)
		if err := s.Set(text); err != nil {
			if s != 7 || len(err.Error()) > 4<<10 {
				t.Fatalf("%q: %d, %v", text, s, err)
			}
			return
		}
		again := s
		if s < 0 || again.Set(s.String()) != nil {
			t.Fatalf("%q is %d, written %q", text, s, s.String())
		}
		// Written with one digit behind the point.
		if d := float64(again) - float64(s); d > float64(s)/10 || d < -float64(s)/10 {
			t.Fatalf("%q is %d, and of %q %d", text, s, s.String(), again)
		}
	})
}
