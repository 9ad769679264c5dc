package schema

import (
	"bytes"
	"encoding/json"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"chandler.dev/chandler"
)

// parse reads the JSON of a schema, strictly.
func parse(text []byte) (any, *chandler.Problem) {
	switch {
	case len(text) > MaxSize:
		return nil, unusable("make it smaller", "it has %d bytes, limit %d", len(text), MaxSize)
	case !utf8.Valid(text):
		return nil, unusable("save it as UTF-8", "it is not valid UTF-8")
	}
	p := &parser{dec: json.NewDecoder(bytes.NewReader(text)), references: map[string]bool{}}
	p.dec.UseNumber()
	doc := p.value(0)
	if p.problem == nil {
		if _, err := p.dec.Token(); err != io.EOF {
			p.refuse("remove it", "something follows it")
		}
	}
	if p.problem != nil {
		return nil, p.problem
	}
	switch doc.(type) {
	case map[string]any, bool:
		return doc, nil
	}
	return nil, unusable("", "it is no object of JSON")
}

type parser struct {
	dec        *json.Decoder
	values     int
	references map[string]bool
	problem    *chandler.Problem // the first
}

func (p *parser) refuse(hint, format string, args ...any) {
	if p.problem == nil {
		p.problem = unusable(hint, format+" at byte "+strconv.FormatInt(p.dec.InputOffset(), 10), args...)
	}
}

func (p *parser) value(depth int) any {
	tok, err := p.dec.Token()
	if p.values++; p.values > maxValues {
		p.refuse("make it smaller", "it has more than %d values", maxValues)
	} else if err != nil {
		p.refuse("", "it is not JSON")
	}
	if p.problem != nil {
		return nil
	}
	switch tok := tok.(type) {
	case json.Delim:
		if depth >= maxDepth {
			p.refuse("nest less", "it is nested deeper than %d", maxDepth)
			return nil
		}
		if tok == '[' {
			return p.list(depth)
		}
		return p.object(depth)
	case json.Number:
		if !modest(tok) {
			p.refuse("write a smaller number", "a number is out of range")
		}
	}
	return tok
}

func (p *parser) list(depth int) any {
	list := []any{}
	for p.problem == nil && p.dec.More() {
		list = append(list, p.value(depth+1))
	}
	p.end()
	return list
}

func (p *parser) object(depth int) any {
	object := map[string]any{}
	for p.problem == nil && p.dec.More() {
		tok, err := p.dec.Token()
		name, ok := tok.(string)
		if err != nil || !ok {
			p.refuse("", "it is not JSON")
			return nil
		}
		if _, twice := object[name]; twice {
			p.refuse("keep one of them", "duplicate key %s", chandler.Quote(name))
		}
		v := p.value(depth + 1)
		if to, ok := v.(string); ok && name == "$ref" {
			if p.references[to] = true; len(p.references) > maxReferences {
				p.refuse("make it simpler", "it refers to more than %d places", maxReferences)
			}
		}
		object[name] = v
	}
	p.end()
	return object
}

func (p *parser) end() {
	if p.problem != nil {
		return
	}
	if _, err := p.dec.Token(); err != nil {
		p.refuse("", "it is not JSON")
	}
}

// modest tells whether a number can be computed with exactly: 1e999999999 would have
// a billion digits.
func modest(n json.Number) bool {
	const maxDigits, maxExponent = 64, 308
	mantissa, exponent, has := strings.Cut(strings.ToLower(string(n)), "e")
	if len(mantissa) > maxDigits {
		return false
	}
	if !has {
		return true
	}
	e, err := strconv.Atoi(exponent)
	return err == nil && e >= -maxExponent && e <= maxExponent
}
