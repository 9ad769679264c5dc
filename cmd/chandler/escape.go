package main

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// escaper writes what people read. Names and words in it come from whoever writes
// plugins, runs proxies or keeps registries; what a terminal would take for a command,
// or what changes how the rest is seen, is written out as an escape. In JSON that
// means the same.
type escaper struct{ w io.Writer }

// Write implements io.Writer.
func (e escaper) Write(b []byte) (int, error) {
	if _, err := io.WriteString(e.w, escape(b)); err != nil {
		return 0, err
	}
	return len(b), nil
}

func escape(b []byte) string {
	var out strings.Builder
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			out.WriteRune(utf8.RuneError)
		case r == '\n', r == '\t', unicode.IsPrint(r):
			out.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&out, `\u%04x\u%04x`, (r-0x10000)>>10+0xd800, (r-0x10000)&0x3ff+0xdc00)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
		i += n
	}
	return out.String()
}
