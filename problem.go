package chandler

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Code names what is wrong, for machines. Codes are CamelCase and stable, so
// that they serve as condition reasons. The list in codes.go is closed.
type Code string

// Problem is something wrong that a person can mend: a code for machines, the
// path of the field, a sentence for people, and what to do next.
type Problem struct {
	Code Code
	// Field is a path such as "spec.match[0].ports[1].number"; empty when the
	// problem is not about one field.
	Field   string
	Message string
	Hint    string
}

// Error gives field, message and hint in one line, so that a Problem can travel
// as an error.
func (p *Problem) Error() string {
	var b strings.Builder
	if p.Field != "" {
		b.WriteString(p.Field)
		b.WriteString(": ")
	}
	b.WriteString(p.Message)
	if p.Hint != "" {
		b.WriteString("; ")
		b.WriteString(p.Hint)
	}
	return b.String()
}

// Problemf makes a Problem whose message is formatted.
func Problemf(code Code, field, hint, format string, args ...any) *Problem {
	return &Problem{Code: code, Field: field, Hint: hint, Message: fmt.Sprintf(format, args...)}
}

// MaxQuoted is how many characters of a foreign value a message shows.
const MaxQuoted = 128

// Quote makes a foreign string fit to be shown: control characters, invalid
// UTF-8 and quotes are escaped, and what is longer than MaxQuoted characters is
// cut with its length told.
func Quote(s string) string {
	if n := utf8.RuneCountInString(s); n > MaxQuoted {
		runes := []rune(s[:min(len(s), MaxQuoted*utf8.UTFMax)])
		return fmt.Sprintf("%q... (%d bytes)", string(runes[:min(len(runes), MaxQuoted)]), len(s))
	}
	return fmt.Sprintf("%q", s)
}

// IsPlain tells whether a foreign name may stand in logs, labels and file names as it
// is: valid UTF-8 of characters that are to be seen, and spaces.
func IsPlain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// Count writes how many of something there are: "1 proxy", "2 proxies".
func Count[N int | int64 | uint32 | uint64](n N, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, more)
}

// Printable bounds a foreign text of several words, for instance a log line of
// Envoy: what is not to be seen, or changes how others are (control characters, those
// that turn the direction of text), becomes a space, and what is over limit bytes is
// cut, with a mark that says so.
func Printable(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	s = strings.TrimSpace(s)
	if len(s) <= limit {
		return s
	}
	cut := limit
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + fmt.Sprintf("... (%d bytes)", len(s))
}
