package schema

import (
	"cmp"
	"encoding/json"
	"errors"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// meter is what a computation may still take. The library knows no limit; it is
// stopped by a panic out of what it calls of ours, and that it does for every part
// which it is about to apply to a value (see watch).
type meter struct{ left int }

// exhausted is the panic.
type exhausted struct{}

func (m *meter) charge(n int) {
	if m.left -= n; m.left < 0 {
		panic(exhausted{})
	}
}

// watch has a part charged whenever it is applied. The library calls a part's format
// before all of its work but the comparison of types, and of values, which is done
// here instead.
func (m *meter) watch(part *jsonschema.Schema) {
	if part.Bool != nil {
		return // it does no work
	}
	own := weigh(part)
	each := 1 + len(same(part)) // whose maps of fields the library makes beforehand
	var choices *choices
	if part.Enum != nil {
		choices = newChoices(part.Enum.Values)
	} else if part.Const != nil {
		choices = newChoices([]any{*part.Const})
	}
	part.Enum, part.Const = nil, nil
	format := part.Format
	name := ""
	if format != nil {
		name = format.Name
	}
	part.Format = &jsonschema.Format{Name: name, Validate: func(v any) error {
		m.charge(own + each*breadth(v))
		if choices != nil && !choices.has(m, v) {
			return choices
		}
		if format != nil {
			return format.Validate(v)
		}
		return nil
	}}
}

// weigh is what a part takes whatever the value is.
func weigh(s *jsonschema.Schema) int {
	n := 1 + len(s.Required) + len(same(s))
	for _, names := range s.DependentRequired {
		n += len(names)
	}
	for _, d := range s.Dependencies {
		if names, ok := d.([]string); ok {
			n += len(names)
		}
	}
	return n
}

// breadth is how much of a value is looked at.
func breadth(v any) int {
	switch v := v.(type) {
	case map[string]any:
		return len(v)
	case []any:
		return len(v)
	case string:
		return len(v) / 256
	}
	return 0
}

// choices are the values of which one must be; as an error: none of them is.
type choices struct {
	values []any
	known  map[string]bool
}

func newChoices(values []any) *choices {
	c := &choices{values: values, known: make(map[string]bool, len(values))}
	for _, v := range values {
		c.known[canonical(v)] = true
	}
	return c
}

func (c *choices) Error() string { return "none of the values that may be" }

func (c *choices) has(m *meter, v any) bool {
	text := canonical(v)
	m.charge(len(text) / 16)
	return c.known[text]
}

// canonical is the same for values that are equal.
func canonical(v any) string {
	b, err := json.Marshal(exact(v))
	if err != nil { // it was JSON
		panic(err)
	}
	return string(b)
}

// exact has every number in one spelling, for the spelling does not matter.
func exact(v any) any {
	switch v := v.(type) {
	case json.Number:
		return json.RawMessage(decimal(string(v)))
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = exact(v[i])
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for name := range v {
			out[name] = exact(v[name])
		}
		return out
	}
	return v
}

// decimal gives a number as a whole one times a power of ten, without zeros at either
// end: 1.50 and 15e-1 are 15e-1.
func decimal(n string) string {
	rest, negative := strings.CutPrefix(n, "-")
	mantissa, exponent, _ := strings.Cut(strings.ToLower(rest), "e")
	whole, fraction, _ := strings.Cut(mantissa, ".")
	e, err := strconv.Atoi(cmp.Or(exponent, "0"))
	digits := strings.TrimLeft(whole+fraction, "0")
	switch {
	case err != nil: // of a configuration no number is
		return n
	case digits == "":
		return "0"
	}
	e -= len(fraction)
	short := strings.TrimRight(digits, "0")
	e += len(digits) - len(short)
	sign := ""
	if negative {
		sign = "-"
	}
	return sign + short + "e" + strconv.Itoa(e)
}

const (
	maxPattern = 4 << 10 // bytes
	maxProgram = 4 << 10 // instructions, about
)

// pattern makes a pattern whose use is charged. Go's take time in proportion to
// pattern and text, so it is both together that is bounded.
func (m *meter) pattern(text string) (jsonschema.Regexp, error) {
	if len(text) > maxPattern {
		return nil, errors.New("the pattern is too long")
	}
	tree, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
	size := programSize(tree)
	if size > maxProgram {
		return nil, errors.New("the pattern is too large")
	}
	m.charge(size)
	re, err := regexp.Compile(text)
	if err != nil {
		return nil, err
	}
	return &pattern{re, m, size}, nil
}

type pattern struct {
	*regexp.Regexp
	meter *meter
	size  int
}

func (p *pattern) MatchString(s string) bool {
	p.meter.charge(1 + p.size*len(s)/256)
	return p.Regexp.MatchString(s)
}

// programSize is about how many instructions a pattern comes to. It stops counting
// above maxProgram.
func programSize(re *syntax.Regexp) int {
	n := 1
	switch re.Op {
	case syntax.OpLiteral:
		n = len(re.Rune)
	case syntax.OpCharClass:
		n = 1 + len(re.Rune)/16
	}
	for _, sub := range re.Sub {
		if n += programSize(sub); n > maxProgram {
			return n
		}
	}
	if re.Op == syntax.OpRepeat {
		n *= 1 + max(re.Min, re.Max)
	}
	return min(n, maxProgram+1)
}
