package source

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"chandler.dev/chandler"
)

// maxProblems is how many mistakes of one object are told.
const maxProblems = 32

// judge gathers what is wrong with a document, and what is worth knowing.
type judge struct {
	problems []chandler.Problem
	warnings []chandler.Problem
	untold   int
}

func (j *judge) problem(code chandler.Code, at *path, hint, format string, args ...any) {
	j.tell(at, chandler.Problemf(code, at.String(), hint, format, args...))
}

// tell takes a problem over that was found elsewhere; nil is none.
func (j *judge) tell(at *path, p *chandler.Problem) {
	switch {
	case p == nil:
	case len(j.problems) >= maxProblems-1:
		j.untold++
	default:
		told := *p
		told.Field = at.String()
		j.problems = append(j.problems, told)
	}
}

func (j *judge) warn(code chandler.Code, at *path, hint, format string, args ...any) {
	if len(j.warnings) < maxProblems {
		j.warnings = append(j.warnings, *chandler.Problemf(code, at.String(), hint, format, args...))
	}
}

// all gives the problems, the last of which counts those that are not told.
func (j *judge) all() []chandler.Problem {
	if j.untold == 0 {
		return j.problems
	}
	return append(slices.Clone(j.problems), *chandler.Problemf(chandler.CodeInvalid, "", "mend the others first", "%s", chandler.Count(j.untold, "more problem", "more problems")))
}

// wrongKind says that a value is of another kind than its field.
func (j *judge) wrongKind(n *node, at *path, want kind) {
	hint := "write " + want.String()
	if want == text && (n.kind == number || n.kind == boolean) {
		hint = "put it in quotes"
	}
	j.problem(chandler.CodeSpecValue, at, hint, "%s must be %s, not %s", at.last(), want, n.kind)
}

// last names the field, or the item of a list, for a message.
func (p *path) last() string {
	switch {
	case p == nil || p.up == nil:
		return "the document"
	case p.name == "":
		return p.up.last() + "[" + strconv.Itoa(p.index) + "]"
	case plainName.MatchString(p.name):
		return p.name
	}
	return chandler.Quote(p.name)
}

// record is an object whose fields are known. All its methods may be used when
// the value is absent; they then give nothing.
type record struct {
	*judge
	at   *path
	node *node
}

// record reads an object and tells every field that is not known. hints are for
// names that are known to be written here by mistake.
func (j *judge) record(n *node, at *path, hints map[string]string, known ...string) record {
	r := record{j, at, nil}
	switch {
	case n == nil:
		return r
	case n.kind != object:
		j.wrongKind(n, at, object)
		return r
	}
	for _, f := range n.fields {
		if slices.Contains(known, f.name) {
			continue
		}
		hint := "remove it"
		if s := suggest(f.name, known); hints[f.name] != "" {
			hint = hints[f.name]
		} else if slices.Contains(known, camel(f.name)) {
			hint = "write it in camelCase: " + camel(f.name)
		} else if s != "" {
			hint = "did you mean " + s + "?"
		}
		j.problem(chandler.CodeSpecUnknown, at.field(f.name), hint, "unknown field %s", chandler.Quote(f.name))
	}
	r.node = n
	return r
}

func (r record) field(name string) (*node, *path) { return r.node.get(name), r.at.field(name) }

// text gives a string; ok is false when it is absent or none.
func (r record) text(name string) (s string, ok bool) {
	n, at := r.field(name)
	if n == nil {
		return "", false
	}
	if n.kind != text {
		r.wrongKind(n, at, text)
		return "", false
	}
	return n.text, true
}

// bounded is text of which the length in characters has limits.
func (r record) bounded(name string, code chandler.Code, least, most int) (string, bool) {
	s, ok := r.text(name)
	if !ok {
		return "", false
	}
	if n := len([]rune(s)); n < least {
		r.problem(code, r.at.field(name), "leave the field out, or write a value", "%s is empty", name)
		return "", false
	} else if n > most {
		r.problem(code, r.at.field(name), "use a shorter one", "%s has %d characters, limit %d", name, n, most)
		return "", false
	}
	return s, true
}

// list gives the items of a list.
func (r record) list(name string) ([]*node, *path) {
	n, at := r.field(name)
	if n == nil {
		return nil, at
	}
	if n.kind != list {
		r.wrongKind(n, at, list)
		return nil, at
	}
	return n.items, at
}

// integer gives a whole number; out of range it is a problem of the given code.
func (r record) integer(name string, code chandler.Code, least, most int64) (int64, bool) {
	n, at := r.field(name)
	if n == nil {
		return 0, false
	}
	if n.kind != number {
		r.wrongKind(n, at, number)
		return 0, false
	}
	if strings.ContainsAny(n.text, ".eE") {
		r.problem(chandler.CodeSpecValue, at, "write a whole number", "%s %s is not a whole number", name, n.text)
		return 0, false
	}
	v, err := strconv.ParseInt(n.text, 10, 64)
	shown := n.text
	if n.unfit != "" {
		shown = "(" + n.unfit + ")"
	}
	if err != nil || n.unfit != "" || v < least || v > most {
		r.problem(code, at, fmt.Sprintf("write a number from %d to %d", least, most), "%s %s is out of range %d-%d", name, shown, least, most)
		return 0, false
	}
	return v, true
}

// stringMap gives an object whose values are strings.
func (r record) stringMap(name string) map[string]string {
	n, at := r.field(name)
	if n == nil {
		return nil
	}
	if n.kind != object {
		r.wrongKind(n, at, object)
		return nil
	}
	m := make(map[string]string, len(n.fields))
	for _, f := range n.fields {
		switch f.value.kind {
		case text:
			m[f.name] = f.value.text
		case null:
			m[f.name] = "" // as the API server reads it
		default:
			r.wrongKind(f.value, at.field(f.name), text)
		}
	}
	return m
}

// option is one of the values of a field, as it is written and as it is meant.
type option[T any] struct {
	written string
	meant   T
}

// choose gives the meaning of a field that has a list of values; the zero value
// when it is absent or wrong.
func choose[T any](r record, name string, options ...option[T]) (meant T) {
	s, ok := r.text(name)
	if !ok {
		return meant
	}
	var known []string
	for _, o := range options {
		if o.written == s {
			return o.meant
		}
		known = append(known, o.written)
	}
	hint := "write one of " + strings.Join(known, ", ")
	if meant := suggest(s, known); meant != "" {
		hint += "; did you mean " + meant + "?"
	}
	r.problem(chandler.CodeSpecEnum, r.at.field(name), hint, "%s %s is unknown", name, chandler.Quote(s))
	return meant
}
