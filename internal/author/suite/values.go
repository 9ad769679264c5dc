package suite

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/strict"
)

// The scalars of a file: how each is read, and what is said where it cannot be.

func mistake(hint, format string, args ...any) error {
	return chandler.Problemf(chandler.CodeConfValue, "", hint, format, args...)
}

// word reads a value of a closed list.
func word[T ~string](to *T, b []byte, words ...T) error {
	var all []string
	for _, w := range words {
		if *to = w; string(w) == string(b) {
			return nil
		}
		all = append(all, string(w))
	}
	return mistake("one of "+strings.Join(all, ", "), "%s is not known here", chandler.Quote(string(b)))
}

// FailStrategy is what becomes of requests when a plugin traps.
type FailStrategy string

// UnmarshalText implements encoding.TextUnmarshaler.
func (f *FailStrategy) UnmarshalText(b []byte) error { return word(f, b, f.words()...) }

func (*FailStrategy) words() []FailStrategy { return []FailStrategy{"FAIL_CLOSE", "FAIL_OPEN"} }

// EngineName is the name of an engine.
type EngineName string

// The engines.
const (
	Fast  EngineName = "fast"
	Envoy EngineName = "envoy"
)

// UnmarshalText implements encoding.TextUnmarshaler.
func (e *EngineName) UnmarshalText(b []byte) error { return word(e, b, e.words()...) }

func (*EngineName) words() []EngineName { return []EngineName{Fast, Envoy} }

// ReachedWord says whether a request came to the upstream.
type ReachedWord string

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *ReachedWord) UnmarshalText(b []byte) error { return word(r, b, r.words()...) }

func (*ReachedWord) words() []ReachedWord { return []ReachedWord{"reached", "notReached"} }

// LogLevel is that of a log line.
type LogLevel string

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *LogLevel) UnmarshalText(b []byte) error { return word(l, b, l.words()...) }

func (*LogLevel) words() []LogLevel {
	return []LogLevel{"trace", "debug", "info", "warn", "error", "critical"}
}

// Pattern is a regular expression.
type Pattern struct{ *regexp.Regexp }

// maxPattern bounds the text of a regular expression.
const maxPattern = 4 << 10

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Pattern) UnmarshalText(b []byte) (err error) {
	if len(b) > maxPattern {
		return mistake("make it shorter", "the regular expression has %d bytes; at most %d", len(b), maxPattern)
	}
	if p.Regexp, err = regexp.Compile(string(b)); err != nil {
		return mistake("see https://github.com/google/re2/wiki/Syntax", "%s", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
	return nil
}

// Time is a moment, as RFC 3339 writes it.
type Time struct{ time.Time }

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *Time) UnmarshalText(b []byte) (err error) {
	if t.Time, err = time.Parse(time.RFC3339, string(b)); err != nil {
		return mistake("write for example 2026-01-31T12:00:00Z", "%s is not a time", chandler.Quote(string(b)))
	}
	return nil
}

// Size is a number of bytes.
type Size int64

var sizePattern = regexp.MustCompile(`^([0-9]{1,9}) ?(KiB|MiB|GiB)$`)

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(b []byte) error {
	m := sizePattern.FindSubmatch(b)
	if m == nil {
		return mistake("write for example 64MiB", "%s is not a size", chandler.Quote(string(b)))
	}
	n, _ := strconv.ParseInt(string(m[1]), 10, 64) // at most nine digits
	*s = Size(n << map[string]int{"KiB": 10, "MiB": 20, "GiB": 30}[string(m[2])])
	return nil
}

// Amount is what is expected of a metric.
type Amount struct {
	Compare string // "=", ">=", "<=", ">" or "<"
	N       int64
}

var amountPattern = regexp.MustCompile(`^(>=|<=|>|<|=)? ?(-?[0-9]{1,18})$`)

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *Amount) UnmarshalText(b []byte) error {
	m := amountPattern.FindSubmatch(b)
	if m == nil {
		return mistake(`write a whole number, or a comparison such as ">= 2"`, "%s is no amount", chandler.Quote(string(b)))
	}
	a.Compare = string(m[1])
	if a.Compare == "" {
		a.Compare = "="
	}
	a.N, _ = strconv.ParseInt(string(m[2]), 10, 64) // at most 18 digits
	return nil
}

func (a Amount) String() string {
	if a.Compare == "=" {
		return strconv.FormatInt(a.N, 10)
	}
	return fmt.Sprintf("%s %d", a.Compare, a.N)
}

// Holds tells whether a value is as expected.
func (a Amount) Holds(n int64) bool {
	switch a.Compare {
	case ">=":
		return n >= a.N
	case "<=":
		return n <= a.N
	case ">":
		return n > a.N
	case "<":
		return n < a.N
	}
	return n == a.N
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *Trap) UnmarshalText(b []byte) error {
	switch string(b) {
	case "true", "false":
		t.Expected = string(b) == "true"
		return nil
	}
	t.Expected, t.How = true, &Pattern{}
	return t.How.UnmarshalText(b)
}

// requestLine is the short form of a request: a path, or a method and a path.
type requestLine Request

var linePattern = regexp.MustCompile(`^(?:([^\s/]+) +)?([/*]\S*)$`)

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *requestLine) UnmarshalText(b []byte) error {
	m := linePattern.FindSubmatch(b)
	if m == nil {
		return mistake("write a path such as /login, or method and path such as POST /login", "%s is not the short form of a request", chandler.Quote(string(b)))
	}
	r.Method, r.Path = string(m[1]), string(m[2])
	return nil
}

// text is what a value of a file means as bytes: text as it is, all else as JSON.
func text(v *strict.JSON) []byte {
	if v == nil {
		return nil
	}
	var s string
	if json.Unmarshal(*v, &s) == nil && len(*v) > 0 && (*v)[0] == '"' {
		return []byte(s)
	}
	return []byte(*v)
}
