package wire

import (
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"chandler.dev/chandler"
)

// maxMasked bounds what is looked at of a foreign text; what is shown is shorter.
const maxMasked = 64 << 10

// secrets are the looks of secrets, each with what stands in their place.
var secrets = []struct {
	looks *regexp.Regexp
	shown string
}{
	{regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)`), "***"},
	{regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?`), "***"},
	{regexp.MustCompile(`\bchandler1\.[A-Za-z0-9_.-]+`), "chandler1.***"},
	{regexp.MustCompile(`://[^/\s@"']+@`), "://***@"},
	{regexp.MustCompile(`(?i)\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{4,}`), "$1$2***"},
	{regexp.MustCompile(`(?i)((?:authorization|cookie|passw(?:or)?d|passphrase|secret|token|credentials?|api[_-]?key|access[_-]?key|private[_-]?key)[A-Za-z0-9_-]*["']?\s*[:=]\s*)("(?:[^"\\]|\\.)*"?|'[^']*'?|(?:(?:bearer|basic)\s+)?[^\s"',;&})\]]+)`), "$1***"},
}

// Masked makes a foreign text fit to be kept and shown, as chandler.Printable does,
// without what looks like a secret: values of what is called a password, a token, a
// key or so, credentials of HTTP and in URLs, JWTs and private keys. It goes by looks,
// and is no reason to put a secret into a text.
func Masked(s string, limit int) string {
	size := len(s)
	if size > maxMasked {
		s = strings.ToValidUTF8(s[:maxMasked], "")
	}
	for _, secret := range secrets {
		s = secret.looks.ReplaceAllString(s, secret.shown)
	}
	if size <= maxMasked {
		return chandler.Printable(s, limit)
	}
	cut := min(limit, len(s))
	for cut > 0 && cut < len(s) && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return chandler.Printable(s[:cut], limit) + fmt.Sprintf("... (%d bytes)", size)
}
