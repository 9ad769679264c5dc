package proxywasm

import (
	"regexp"
	"strconv"
	"strings"
)

// demangle gives the qualified name in an Itanium C++ symbol (or an old Rust one,
// which looks the same), without parameters and template arguments, which is
// enough to tell which library was forgotten. Not ok: no such symbol.
func demangle(symbol string) (name string, ok bool) {
	rest, ok := strings.CutPrefix(symbol, "_Z")
	if !ok {
		return "", false
	}
	nested := false
	if rest, nested = strings.CutPrefix(rest, "N"); nested {
		rest = strings.TrimLeft(rest, "rVKRO") // qualifiers of a member function
	}
	var parts []string
	if after, std := strings.CutPrefix(rest, "St"); std {
		parts, rest = append(parts, "std"), after
	}
	for rest != "" && len(parts) < 32 {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		n, err := strconv.Atoi(rest[:digits])
		if err != nil || n == 0 || n > len(rest)-digits {
			break // a constructor, an operator, template arguments
		}
		parts, rest = append(parts, rest[digits:digits+n]), rest[digits+n:]
		if !nested {
			break
		}
	}
	if last := len(parts) - 1; last > 0 && rustHash(parts[last]) {
		parts = parts[:last]
	}
	if len(parts) == 0 || parts[0] == "std" && len(parts) == 1 {
		return "", false
	}
	return strings.Join(parts, "::"), true
}

// rustHash tells whether a part is the hash that Rust ends its symbols with.
func rustHash(part string) bool {
	ok, _ := regexp.MatchString(`^h[0-9a-f]{16}$`, part)
	return ok
}
