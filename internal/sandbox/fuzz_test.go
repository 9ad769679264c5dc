package sandbox

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzExplain: whatever an Envoy printed before it ended becomes a reason that is
// fit to be shown.
func FuzzExplain(f *testing.F) {
	for _, s := range []string{
		"error|wasm|wasm log p: not configured\ncritical|main|error initializing configuration '/x/y.yaml': Unable to create Wasm plugin p\n",
		"error|wasm|Wasm VM failed Failed to load Wasm module due to a missing import: env.x\nwarning|wasm|Function: proxy_on_start",
		"terminate called after\nAborted", "", "||", "critical|main|\x1b[31m\xff",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, out []byte) {
		p := explain(out, "1.40.0")
		if p.Code == "" || p.Hint == "" || !strings.HasPrefix(p.Message, "Envoy 1.40.0 refuses it: ") {
			t.Fatalf("%+v", p)
		}
		if len(p.Message) > 2*maxSaid*maxWords || !utf8.ValidString(p.Message) || strings.ContainsFunc(p.Message, func(r rune) bool { return r < ' ' }) {
			t.Fatalf("not fit to be shown: %q", p.Message)
		}
		if again := explain(out, "1.40.0"); *again != *p {
			t.Fatalf("%+v and then %+v", p, again)
		}
	})
}
