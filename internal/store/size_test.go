package store_test

import (
	"testing"

	"chandler.dev/chandler/internal/store"
)

func TestSizes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{"0": 0, "17": 17, "17B": 17, "2GiB": 2 << 30, "1.5 MiB": 3 << 19, "3kB": 3000, "1GB": 1e9} {
		var s store.Size
		if err := s.Set(text); err != nil || int64(s) != want {
			t.Errorf("%s: %d, %v", text, s, err)
		}
	}
	for _, text := range []string{"", "B", "-1", "2G", "NaN", "Inf", "1e30", "9000000TiB"} {
		if s := store.Size(7); s.Set(text) == nil || s != 7 {
			t.Errorf("%q is taken as %d", text, s)
		}
	}
}
