package chandler_test

import (
	"testing"

	"chandler.dev/chandler"
)

func TestCount(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]string{0: "0 proxies", 1: "1 proxy", 2: "2 proxies"} {
		if got := chandler.Count(n, "proxy", "proxies"); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
