package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestEscape(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"Grüße, 世界 🚀\n\tx":       "Grüße, 世界 🚀\n\tx",
		"\x1b[31mred\x1b[0m":     `\u001b[31mred\u001b[0m`,
		"a\rb\x00\x7f":           `a\u000db\u0000\u007f`,
		"\u009b2J":               `\u009b2J`,
		"user\u202egnp.exe":      `user\u202egnp.exe`,
		"zero\u200bwidth\ufeff":  `zero\u200bwidth\ufeff`,
		"tag \U000e0041":         `tag \udb40\udc41`,
		"not UTF-8 \xff\xc2":     "not UTF-8 \ufffd\ufffd",
		"line\u2028end\u00a0nbs": `line\u2028end\u00a0nbs`,
	} {
		if got := escape([]byte(in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	// JSON means what it meant.
	const hostile = "a\u009b\u202e\U000e0041\x1b\"\\"
	var b strings.Builder
	if err := json.NewEncoder(escaper{&b}).Encode(hostile); err != nil {
		t.Fatal(err)
	}
	var back string
	if err := json.Unmarshal([]byte(b.String()), &back); err != nil || back != hostile || strings.ContainsAny(b.String(), "\u009b\u202e") {
		t.Errorf("%q %v", b.String(), err)
	}
}
