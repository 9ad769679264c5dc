package source

import (
	"bytes"
	"encoding/json"
	"unicode/utf16"
	"unicode/utf8"
)

// chunk is the text of one document of a stream.
type chunk struct {
	text []byte
	line int // of its first line in the whole, from 1
}

// split cuts a stream of YAML into documents, without those that hold nothing.
// A line that begins with --- or ... ends a document wherever it stands: YAML
// forbids such a line even inside quotes and block scalars. So a mistake in one
// document does not hide the others.
func split(manifest []byte) []chunk {
	manifest = bytes.TrimPrefix(manifest, []byte("\uFEFF"))
	var chunks []chunk
	start, startLine := 0, 1
	cut := func(end, next, nextLine int) {
		if text := manifest[start:end]; hasContent(text) {
			chunks = append(chunks, chunk{text, startLine})
		}
		start, startLine = next, nextLine
	}
	for offset, line := 0, 1; offset < len(manifest); line++ {
		end := len(manifest)
		if i := bytes.IndexByte(manifest[offset:], '\n'); i >= 0 {
			end = offset + i + 1
		}
		switch text := manifest[offset:end]; {
		case isMarker(text, "---"):
			cut(offset, offset, line)
		case isMarker(text, "..."):
			cut(offset, end, line+1)
		}
		offset = end
	}
	cut(len(manifest), 0, 0)
	return chunks
}

func isMarker(line []byte, marker string) bool {
	rest, ok := bytes.CutPrefix(line, []byte(marker))
	return ok && (len(rest) == 0 || bytes.IndexByte([]byte(" \t\r\n"), rest[0]) >= 0)
}

// hasContent tells whether there is more than blanks, comments, directives and
// the marker of the beginning.
func hasContent(text []byte) bool {
	for line := range bytes.Lines(text) {
		if isMarker(line, "---") {
			line = line[3:]
		}
		if len(line) > 0 && line[0] == '%' {
			continue
		}
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			return true
		}
	}
	return false
}

// jsonAsYAML rewrites what JSON may say and YAML may not: the escape \/, the
// surrogate pairs, and control characters beyond ASCII. Anything but valid JSON
// is given back as it is.
func jsonAsYAML(text []byte) []byte {
	trimmed := bytes.TrimSpace(text)
	if len(trimmed) == 0 || (trimmed[0] != '{' && trimmed[0] != '[') || !json.Valid(trimmed) {
		return text
	}
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); {
		c := text[i]
		switch {
		case c == '\\' && text[i+1] == '/':
			out = append(out, '/')
			i += 2
		case c == '\\' && text[i+1] == 'u':
			r, n := unescape(text[i:])
			out = appendRune(out, r)
			i += n
		case c == '\\':
			out = append(out, c, text[i+1])
			i += 2
		default:
			r, n := utf8.DecodeRune(text[i:])
			if r < 0x7f {
				out = append(out, c)
			} else {
				out = appendRune(out, r)
			}
			i += n
		}
	}
	return out
}

// unescape reads \uXXXX, or two of them that are one character, at the beginning
// of b, which is valid JSON. Half a pair alone is U+FFFD.
func unescape(b []byte) (rune, int) {
	unit := func(b []byte) rune {
		var r rune
		for _, c := range b[2:6] {
			switch {
			case c <= '9':
				r = r<<4 | rune(c-'0')
			default:
				r = r<<4 | rune((c|0x20)-'a'+10)
			}
		}
		return r
	}
	r := unit(b)
	if !utf16.IsSurrogate(r) {
		return r, 6
	}
	if len(b) >= 12 && b[6] == '\\' && b[7] == 'u' {
		if pair := utf16.DecodeRune(r, unit(b[6:])); pair != utf8.RuneError {
			return pair, 12
		}
	}
	return utf8.RuneError, 6
}

// appendRune writes r as it stands in a double-quoted YAML string.
func appendRune(out []byte, r rune) []byte {
	const hex = "0123456789abcdef"
	if r < 0xa0 || r == '\u2028' || r == '\u2029' || r == '\uFEFF' || r >= 0xfffe && r <= 0xffff {
		return append(out, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
	}
	return utf8.AppendRune(out, r)
}
