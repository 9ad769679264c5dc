package proxywasm

import (
	"strings"
	"testing"
)

// FuzzDemangle: the names of an import that nobody knows are short words of it.
func FuzzDemangle(f *testing.F) {
	for _, s := range []string{"_ZN4absl12lts_202401166StrCatERKNS0_8AlphaNumES3_", "_Z3foov", "_ZSt4cout", "_ZNKSt3bar", "_ZN3a1bC2Ev", "_Z99999999999999999999x", "strlcpy",
		"_ZN4core3fmt9Formatter9write_str17h0123456789abcdefE"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, symbol string) {
		name, ok := demangle(symbol)
		if ok != (name != "") || ok && !strings.HasPrefix(symbol, "_Z") {
			t.Fatalf("%q: %q %t", symbol, name, ok)
		}
		// What is left of the name without colons stands in the symbol in that order.
		rest := symbol
		for _, c := range []byte(strings.ReplaceAll(strings.TrimPrefix(name, "std::"), ":", "")) {
			_, after, found := strings.Cut(rest, string([]byte{c}))
			if !found {
				t.Fatalf("%q: %q is not of it", symbol, name)
			}
			rest = after
		}
		if len(name) > 2*len(symbol)+5 {
			t.Fatalf("%q: %d bytes", symbol, len(name))
		}
	})
}
