package schema

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"

	"chandler.dev/chandler"
)

// Config is a configuration to be judged, JSON as package source writes it.
type Config struct {
	// Whole is all of it; nil is none, and is judged as an empty object.
	Whole []byte
	// Written is the part that everybody may see who sees the resource: of what is
	// only in Whole, from secrets, no field's name is told that the schema does not
	// have. Nil: nothing is.
	Written []byte
	// Field is where it stands in its resource, such as spec.pluginConfig.
	Field string
}

// maxProblems is how many mistakes are told.
const maxProblems = 10

// Check tells what of a configuration is not as the schema has it, in the order of
// the fields. No problem shows a value. The error is a *chandler.Problem: the schema
// is of no use, as judging by it would take too long.
func (s *Schema) Check(c Config) (problems []chandler.Problem, err error) {
	whole, err := read(c.Whole)
	if err != nil {
		return nil, err
	}
	written, err := read(c.Written)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.meter.left = maxWork
	defer func() {
		if cause := recover(); cause != nil {
			problems, err = nil, unusable("make it simpler", "to judge this configuration by it: %s", explain(cause))
		}
	}()
	var invalid *jsonschema.ValidationError
	if err := s.root.Validate(whole); !errors.As(err, &invalid) {
		return nil, nil
	}
	t := &teller{Schema: s, field: c.Field, whole: whole, written: written}
	t.tell(invalid)
	slices.SortFunc(t.problems, func(a, b chandler.Problem) int {
		return cmp.Or(strings.Compare(a.Field, b.Field), strings.Compare(a.Message, b.Message))
	})
	t.problems = slices.Compact(t.problems)
	return t.problems[:min(len(t.problems), maxProblems)], nil
}

// read gives the value of a configuration.
func read(config []byte) (any, error) {
	if config == nil {
		return map[string]any{}, nil
	}
	dec := json.NewDecoder(bytes.NewReader(config))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, fmt.Errorf("read a configuration: %w", err)
	}
	return v, nil
}

// teller words what the library found.
type teller struct {
	*Schema
	field          string
	whole, written any
	problems       []chandler.Problem
}

// tell takes down an error, or what it consists of.
func (t *teller) tell(e *jsonschema.ValidationError) {
	switch k := e.ErrorKind.(type) {
	case *kind.AnyOf:
		t.tellChoice(e)
	case *kind.OneOf:
		if k.Subschemas == nil {
			t.tellChoice(e)
			return
		}
		t.add(e, e.InstanceLocation, "fits several of the forms of which exactly one may fit")
	case *kind.PropertyNames:
		t.add(e, e.InstanceLocation, "the name of a field is not as it has to be")
	case *kind.Required:
		for _, name := range k.Missing {
			t.missing(e, name, "is missing")
		}
	case *kind.DependentRequired:
		for _, name := range k.Missing {
			t.missing(e, name, "is missing beside "+t.name(e.InstanceLocation, k.Prop))
		}
	case *kind.Dependency:
		for _, name := range k.Missing {
			t.missing(e, name, "is missing beside "+t.name(e.InstanceLocation, k.Prop))
		}
	case *kind.AdditionalProperties:
		for _, name := range k.Properties {
			t.add(e, append(slices.Clone(e.InstanceLocation), name), "unknown field")
		}
	default:
		if len(e.Causes) > 0 {
			for _, cause := range e.Causes {
				t.tell(cause)
			}
			return
		}
		t.add(e, e.InstanceLocation, t.sentence(e))
	}
}

// tellChoice tells why none of several forms fits: of the one that was come closest
// to, if one was.
func (t *teller) tellChoice(e *jsonschema.ValidationError) {
	own := len(e.InstanceLocation)
	var closest *jsonschema.ValidationError
	deepest, rivals := own, 0
	var types []string
	for _, cause := range e.Causes {
		if k, ok := typeOf(cause); ok && len(cause.InstanceLocation) == own {
			types = append(types, k.Want...)
		}
		switch d := depth(cause); {
		case d > deepest:
			closest, deepest, rivals = cause, d, 0
		case d == deepest:
			rivals++
		}
	}
	switch {
	case closest != nil && rivals == 0, len(e.Causes) == 1:
		t.tell(cmp.Or(closest, e.Causes[0]))
	case len(types) > 0 && deepest == own && len(types) >= len(e.Causes):
		t.add(e, e.InstanceLocation, t.wrongType(e.InstanceLocation, types))
	default:
		t.add(e, e.InstanceLocation, fmt.Sprintf("fits none of the %d forms that it may have", len(e.Causes)))
	}
}

// typeOf tells whether an error is that of a wrong type, seen through references.
func typeOf(e *jsonschema.ValidationError) (*kind.Type, bool) {
	for len(e.Causes) == 1 {
		e = e.Causes[0]
	}
	k, ok := e.ErrorKind.(*kind.Type)
	return k, ok && len(e.Causes) == 0
}

// depth is how deep in the configuration an error's causes lie.
func depth(e *jsonschema.ValidationError) int {
	d := len(e.InstanceLocation)
	for _, cause := range e.Causes {
		d = max(d, depth(cause))
	}
	return d
}

// sentence words an error that has no parts, after the field.
func (t *teller) sentence(e *jsonschema.ValidationError) string {
	switch k := e.ErrorKind.(type) {
	case *kind.Type:
		return t.wrongType(e.InstanceLocation, k.Want)
	case *kind.FalseSchema:
		return "nothing may stand here"
	case *kind.Format:
		if c, ok := k.Err.(*choices); ok {
			return "must be " + spell(c.values)
		}
		return "is not in the form of " + article(k.Want)
	case *kind.Pattern:
		return "does not match the pattern " + chandler.Quote(k.Want)
	case *kind.Not:
		return "has a form that is excluded"
	case *kind.UniqueItems:
		return fmt.Sprintf("items %d and %d are the same", k.Duplicates[0], k.Duplicates[1])
	case *kind.Contains, *kind.MinContains:
		return "too few of the items are as some have to be"
	case *kind.MaxContains:
		return "too many of the items are as only some may be"
	case *kind.Minimum:
		return "must be at least " + number(k.Want)
	case *kind.Maximum:
		return "must be at most " + number(k.Want)
	case *kind.ExclusiveMinimum:
		return "must be more than " + number(k.Want)
	case *kind.ExclusiveMaximum:
		return "must be less than " + number(k.Want)
	case *kind.MultipleOf:
		return "must be a multiple of " + number(k.Want)
	case *kind.MinLength:
		return fmt.Sprintf("must have %s at least", count(k.Want, "character"))
	case *kind.MaxLength:
		return fmt.Sprintf("must have %s at most", count(k.Want, "character"))
	case *kind.MinItems:
		return fmt.Sprintf("must have %s at least", count(k.Want, "item"))
	case *kind.MaxItems:
		return fmt.Sprintf("must have %s at most", count(k.Want, "item"))
	case *kind.AdditionalItems:
		return "has more items than are known"
	case *kind.MinProperties:
		return fmt.Sprintf("must have %s at least", count(k.Want, "field"))
	case *kind.MaxProperties:
		return fmt.Sprintf("must have %s at most", count(k.Want, "field"))
	}
	return "is not as it has to be"
}

func count(n int, of string) string { return chandler.Count(n, of, of+"s") }

func number(r *big.Rat) string {
	if r.IsInt() {
		return chandler.Printable(r.Num().String(), 32)
	}
	f, _ := r.Float64()
	return strconv.FormatFloat(f, 'g', -1, 64)
}

func article(typ string) string {
	switch typ {
	case "null", "boolean":
		return typ
	case "array":
		return "a list"
	case "object", "integer":
		return "an " + typ
	}
	return "a " + chandler.Printable(typ, 64)
}

func (t *teller) wrongType(at []string, want []string) string {
	var words []string
	for _, w := range want {
		if w := article(w); !slices.Contains(words, w) {
			words = append(words, w)
		}
	}
	return fmt.Sprintf("must be %s, not %s", strings.Join(words, " or "), shape(value(t.whole, at)))
}

// shape says what a value is, and nothing of what it says.
func shape(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "a boolean"
	case json.Number:
		return "a number"
	case string:
		return "a string"
	case []any:
		return "a list"
	}
	return "an object"
}

// spell writes a few of the values that a schema allows.
func spell(values []any) string {
	const most = 8
	var words []string
	for _, v := range values[:min(len(values), most)] {
		b, err := json.Marshal(v)
		if err != nil { // it was JSON
			panic(err)
		}
		words = append(words, chandler.Printable(string(b), 64))
	}
	if more := len(values) - most; more > 0 {
		return "one of " + strings.Join(words, ", ") + fmt.Sprintf(" and %d more", more)
	}
	if len(words) == 1 {
		return words[0]
	}
	return "one of " + strings.Join(words, ", ")
}

// missing takes down that a field is not there.
func (t *teller) missing(e *jsonschema.ValidationError, name, how string) {
	t.add(e, append(slices.Clone(e.InstanceLocation), name), how)
}

// add takes down one mistake.
func (t *teller) add(e *jsonschema.ValidationError, at []string, how string) {
	if len(t.problems) > maxDepth*maxProblems {
		return // more than anybody reads
	}
	t.problems = append(t.problems, chandler.Problem{
		Code: chandler.CodeConfigSchema, Field: t.path(at), Message: how + ", says the module's schema", Hint: t.hint(e, at),
	})
}

// hint is what the schema says of a field, or which fields it has.
func (t *teller) hint(e *jsonschema.ValidationError, at []string) string {
	const otherwise = "chandler describe shows what there is to configure"
	part := t.parts[e.SchemaURL]
	if part == nil {
		return otherwise
	}
	if _, ok := e.ErrorKind.(*kind.AdditionalProperties); ok {
		known := slices.Sorted(maps.Keys(part.Properties))
		if len(known) == 0 {
			return "remove it"
		}
		return "here may stand " + chandler.Printable(strings.Join(known, ", "), maxDescription)
	}
	if len(at) > len(e.InstanceLocation) {
		if part = part.Properties[at[len(at)-1]]; part == nil {
			return otherwise
		}
	}
	if text := described(part); text != "" {
		return "it is: " + text
	}
	return otherwise
}

var plainName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]{0,63}$`)

const maxField = 512 // bytes of a problem's field

// path writes where a value stands, as package source does.
func (t *teller) path(at []string) string {
	var b strings.Builder
	b.WriteString(t.field)
	whole, written := t.whole, t.written
	for _, name := range at {
		if _, list := whole.([]any); list {
			b.WriteString("[" + name + "]")
		} else {
			b.WriteString(t.segment(written, name))
		}
		whole, written = value(whole, []string{name}), value(written, []string{name})
	}
	return chandler.Printable(b.String(), maxField)
}

func segment(name string) string {
	if plainName.MatchString(name) {
		return "." + name
	}
	return "[" + chandler.Quote(name) + "]"
}

// segment is the part of a path that a field's name makes, unless that may be part of
// a secret.
func (t *teller) segment(written any, name string) string {
	if t.shows(written, name) {
		return segment(name)
	}
	return ".*"
}

// shows tells whether the name of a field may be told.
func (t *teller) shows(written any, name string) bool {
	object, _ := written.(map[string]any)
	_, ok := object[name]
	return ok || t.names[name]
}

// name gives one of the schema's own.
func (t *teller) name(at []string, name string) string {
	if t.shows(value(t.written, at), name) {
		return chandler.Quote(name)
	}
	return "another"
}

// value gives what stands at a place, nil where there is nothing.
func value(v any, at []string) any {
	for _, name := range at {
		switch in := v.(type) {
		case map[string]any:
			v = in[name]
		case []any:
			i, err := strconv.Atoi(name)
			if err != nil || i < 0 || i >= len(in) {
				return nil
			}
			v = in[i]
		default:
			return nil
		}
	}
	return v
}
