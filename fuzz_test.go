package chandler_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"chandler.dev/chandler"
)

// FuzzPrintable: a foreign text is fit to be shown, bounded, and the same when that
// is done twice; a quoted one is on one line.
func FuzzPrintable(f *testing.F) {
	f.Add("\x1b[31mred\x00\xff\u0085", uint16(9))
	f.Add(strings.Repeat("ä", 300), uint16(100))
	f.Add("", uint16(0))
	f.Fuzz(func(t *testing.T, s string, limit uint16) {
		control := func(r rune) bool { return r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 }
		shown := chandler.Printable(s, int(limit))
		if len(shown) > int(limit)+32 || !utf8.ValidString(shown) || strings.ContainsFunc(shown, control) {
			t.Fatalf("%q", shown)
		}
		if again := chandler.Printable(shown, len(shown)); again != shown {
			t.Fatalf("%q, then %q", shown, again)
		}
		quoted := chandler.Quote(s)
		if len(quoted) > 10*chandler.MaxQuoted+32 || !utf8.ValidString(quoted) || strings.ContainsFunc(quoted, control) {
			t.Fatalf("%q", quoted)
		}
	})
}

// FuzzNames: what is taken for a key or a digest is the same when it is written.
func FuzzNames(f *testing.F) {
	f.Add("WasmPlugin/ns/name")
	f.Add("sha256:" + hex64)
	f.Add("a//b")
	f.Fuzz(func(t *testing.T, s string) {
		if k, ok := chandler.ParseKey(s); ok && k.String() != s {
			t.Fatalf("%q is %q", s, k)
		}
		if d, ok := chandler.ParseDigest[chandler.ModuleDigest](s); ok && (string(d) != s || !chandler.IsSHA256Hex(d.Hex())) {
			t.Fatalf("%q is %q", s, d)
		}
	})
}
