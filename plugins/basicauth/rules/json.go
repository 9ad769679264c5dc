package rules

import (
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth bounds nesting, and with it the stack. A rule needs four levels; the
// rest is room for fields that are not ours.
const maxDepth = 100

// number stands for any JSON number: no field of ours is one.
type number struct{}

// decodeJSON reads one JSON document (RFC 8259) into nil, bool, number, string,
// []any and map[string]any. Of equal names in an object the last one counts. It
// is stricter than encoding/json where that would change a password silently:
// bytes that are not UTF-8 and halves of surrogate pairs are refused.
func decodeJSON(text string) (any, error) {
	d := decoder{text: text}
	for i, c := range text {
		if c == utf8.RuneError && !strings.HasPrefix(text[i:], "\uFFFD") {
			d.at = i
			return nil, d.fault("not UTF-8")
		}
	}
	v, err := d.value(0)
	if err != nil {
		return nil, err
	}
	if d.next(); d.at < len(text) {
		return nil, d.fault("more text after the end of the document")
	}
	return v, nil
}

type decoder struct {
	text string
	at   int
}

func (d *decoder) fault(reason string) error {
	return &Error{Reason: "not valid JSON at byte " + strconv.Itoa(d.at) + ": " + reason}
}

// unexpected is the fault of any byte that cannot stand where it stands.
func (d *decoder) unexpected(wanted string) error {
	if d.at >= len(d.text) {
		return d.fault("it ends where there should be " + wanted)
	}
	return d.fault("there should be " + wanted)
}

// peek answers NUL behind the last byte, which like a real one fits nowhere.
func (d *decoder) peek() byte {
	if d.at >= len(d.text) {
		return 0
	}
	return d.text[d.at]
}

// next skips white space.
func (d *decoder) next() byte {
	for c := d.peek(); c == ' ' || c == '\t' || c == '\n' || c == '\r'; c = d.peek() {
		d.at++
	}
	return d.peek()
}

// take steps over c if it is what comes next.
func (d *decoder) take(c byte) bool {
	if d.next() != c {
		return false
	}
	d.at++
	return true
}

func (d *decoder) value(depth int) (any, error) {
	if depth > maxDepth {
		return nil, d.fault("nested too deeply")
	}
	switch c := d.next(); {
	case c == '{':
		return d.object(depth)
	case c == '[':
		return d.array(depth)
	case c == '"':
		return d.string()
	case c == '-' || isDigit(c):
		return d.number()
	case d.word("true"):
		return true, nil
	case d.word("false"):
		return false, nil
	case d.word("null"):
		return nil, nil
	}
	return nil, d.unexpected("a value")
}

func (d *decoder) word(w string) bool {
	if !strings.HasPrefix(d.text[d.at:], w) {
		return false
	}
	d.at += len(w)
	return true
}

func (d *decoder) object(depth int) (any, error) {
	out := map[string]any{}
	d.take('{')
	if d.take('}') {
		return out, nil
	}
	for {
		if d.next() != '"' {
			return nil, d.unexpected("a name in quotes")
		}
		name, err := d.string()
		if err != nil {
			return nil, err
		}
		if !d.take(':') {
			return nil, d.unexpected("a colon")
		}
		if out[name], err = d.value(depth + 1); err != nil {
			return nil, err
		}
		if d.take('}') {
			return out, nil
		}
		if !d.take(',') {
			return nil, d.unexpected("a comma or the end of the object")
		}
	}
}

func (d *decoder) array(depth int) (any, error) {
	out := []any{}
	d.take('[')
	if d.take(']') {
		return out, nil
	}
	for {
		v, err := d.value(depth + 1)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
		if d.take(']') {
			return out, nil
		}
		if !d.take(',') {
			return nil, d.unexpected("a comma or the end of the array")
		}
	}
}

func (d *decoder) number() (any, error) {
	if d.peek() == '-' {
		d.at++
	}
	if d.peek() == '0' {
		d.at++
	} else if !d.digits() {
		return nil, d.unexpected("a digit")
	}
	if d.peek() == '.' {
		d.at++
		if !d.digits() {
			return nil, d.unexpected("a digit")
		}
	}
	if c := d.peek(); c == 'e' || c == 'E' {
		d.at++
		if c := d.peek(); c == '+' || c == '-' {
			d.at++
		}
		if !d.digits() {
			return nil, d.unexpected("a digit")
		}
	}
	return number{}, nil
}

func (d *decoder) digits() bool {
	start := d.at
	for isDigit(d.peek()) {
		d.at++
	}
	return d.at > start
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func (d *decoder) string() (string, error) {
	var out strings.Builder
	d.at++ // the opening quote
	for d.at < len(d.text) {
		switch c := d.text[d.at]; {
		case c == '"':
			d.at++
			return out.String(), nil
		case c < ' ':
			return "", d.fault("a control character in a string must be escaped")
		case c == '\\':
			r, err := d.escape()
			if err != nil {
				return "", err
			}
			out.WriteRune(r)
		default:
			out.WriteByte(c)
			d.at++
		}
	}
	return "", d.unexpected("the end of a string")
}

func (d *decoder) escape() (rune, error) {
	d.at++ // the backslash
	c := d.peek()
	if c == 'u' {
		return d.unicode()
	}
	const short, meant = `"\/bfnrt`, "\"\\/\b\f\n\r\t"
	i := strings.IndexByte(short, c)
	if i < 0 {
		return 0, d.unexpected("an escape character")
	}
	d.at++
	return rune(meant[i]), nil
}

// unicode reads uXXXX, and the second half if that is the first of a pair.
func (d *decoder) unicode() (rune, error) {
	r, err := d.hex()
	if err != nil || !utf16.IsSurrogate(r) {
		return r, err
	}
	if strings.HasPrefix(d.text[d.at:], `\u`) {
		d.at++
		low, err := d.hex()
		if err != nil {
			return 0, err
		}
		if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
			return pair, nil
		}
	}
	return 0, d.fault("half of a surrogate pair")
}

func (d *decoder) hex() (rune, error) {
	d.at++ // the u
	if d.at+4 > len(d.text) {
		return 0, d.unexpected("four hexadecimal digits")
	}
	n, err := strconv.ParseUint(d.text[d.at:d.at+4], 16, 16)
	if err != nil {
		return 0, d.unexpected("four hexadecimal digits")
	}
	d.at += 4
	return rune(n), nil
}
