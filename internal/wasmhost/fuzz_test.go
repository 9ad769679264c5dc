package wasmhost

import (
	"slices"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/exchange"
)

// FuzzPairs: what a module hands over as pairs is a bounded list, which written again
// is the same but for the case of its names, or none.
func FuzzPairs(f *testing.F) {
	f.Add(marshal([]exchange.Header{{Name: ":path", Value: "/"}, {Name: "x", Value: ""}}))
	f.Add([]byte{1, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		fields := unmarshal(b)
		if len(fields) > maxPairs {
			t.Fatalf("%d fields", len(fields))
		}
		if len(fields) == 0 {
			return
		}
		if again := unmarshal(marshal(fields)); !slices.Equal(again, fields) {
			t.Fatalf("%q, then %q", fields, again)
		}
		if written := marshal(fields); len(written) != len(b) && !strings.ContainsFunc(string(b), func(r rune) bool { return r > '~' }) {
			t.Fatalf("%d bytes, then %d", len(b), len(written))
		}
	})
}

// FuzzMatch: a pattern is for what it says.
func FuzzMatch(f *testing.F) {
	f.Add("/a*b", "/axxb")
	f.Add("*", "")
	f.Add("a*a", "a")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if strings.Contains(s, "*") {
			return
		}
		if !match(strings.ReplaceAll(pattern, "*", ""), strings.ReplaceAll(pattern, "*", "")) || !match("*"+s+"*", s) || !match(s+"*", s) || !match("*"+s, s) {
			t.Fatalf("%q %q", pattern, s)
		}
		if match(pattern, s) && len(s) < len(strings.ReplaceAll(pattern, "*", "")) {
			t.Fatalf("%q is for %q", pattern, s)
		}
	})
}
