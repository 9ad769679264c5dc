// Package strict reads YAML into Go values: every key must be known and written once,
// every value of its type, and every mistake is told with its line and the path of its
// field. A value may be written in several forms (Former), and may check itself.
//
// It knows no file's meaning.
package strict

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler"
)

// checker is a value that knows what can be wrong with it. The fields of its
// problems are paths below it, such as "keys[0]".
type checker interface{ Check() []chandler.Problem }

// Former is a value that may be written in several forms: Form gives a pointer to what
// is filled from a node of a kind instead of it, or nil where there is no such form.
type Former interface{ Form(kind yaml.Kind) any }

// Text is one that may be written without quotes, whatever it looks like: 200, true.
type Text string

// JSON is any value at all; what is here is its JSON, names sorted, no blanks.
type JSON []byte

// loader is a checker that has to read files which it names.
type loader interface {
	Load(read func(name string) ([]byte, error)) []chandler.Problem
}

// maxDepth bounds the nesting of a file.
const maxDepth = 20

// Decode fills the value that v points to from YAML, or says what is wrong. What it
// names is read with read. Every
// key must be known and written once, every value of its type and not empty;
// aliases are refused, so that a file means no more than what is written.
func Decode(b []byte, v any, read func(name string) ([]byte, error)) []Mistake {
	var doc, rest yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(b))
	switch err := d.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil // nothing but comments
	case err != nil:
		return []Mistake{syntax(err)}
	}
	if err := d.Decode(&rest); err == nil {
		return []Mistake{{rest.Line, rest.Column, *chandler.Problemf(chandler.CodeConfParse, "", "write one", "a second document begins")}}
	} else if !errors.Is(err, io.EOF) {
		return []Mistake{syntax(err)}
	}
	r := &reader{places: map[string]*yaml.Node{}, read: read}
	root := doc.Content[0]
	if root.Tag == "!!null" {
		return nil
	}
	r.value(root, reflect.ValueOf(v).Elem(), "", 0)
	slices.SortStableFunc(r.mistakes, func(a, b Mistake) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	return r.mistakes
}

var yamlLine = regexp.MustCompile(`line (\d+): `)

// syntax is what the YAML parser says, with its line taken out of the text.
func syntax(err error) Mistake {
	text, line := strings.TrimPrefix(err.Error(), "yaml: "), 1
	if m := yamlLine.FindStringSubmatchIndex(text); m != nil {
		line, _ = strconv.Atoi(text[m[2]:m[3]])
		text = text[:m[0]] + text[m[1]:]
	}
	return Mistake{line, 1, *chandler.Problemf(chandler.CodeConfParse, "", "", "%s", chandler.Printable(text, 256))}
}

// reader fills values and gathers mistakes.
type reader struct {
	mistakes []Mistake
	places   map[string]*yaml.Node // by path
	read     func(name string) ([]byte, error)
}

func (r *reader) refuse(n *yaml.Node, code chandler.Code, path, hint, format string, args ...any) {
	r.mistakes = append(r.mistakes, Mistake{n.Line, n.Column, *chandler.Problemf(code, path, hint, format, args...)})
}

// value fills v from n, and has it checked when nothing in it is wrong.
func (r *reader) value(n *yaml.Node, v reflect.Value, path string, depth int) {
	r.places[path] = n
	before := len(r.mistakes)
	switch {
	case depth > maxDepth:
		r.refuse(n, chandler.CodeConfParse, path, "", "the file is nested deeper than %d", maxDepth)
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		r.refuse(n, chandler.CodeConfParse, path, "write it out", "anchors and aliases are not accepted")
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		r.refuse(n, chandler.CodeConfValue, path, "write a value, or leave the key out; an empty list is []", "there is no value")
	default:
		r.fill(n, v, path, depth)
	}
	if len(r.mistakes) > before {
		return
	}
	var problems []chandler.Problem
	switch c := v.Addr().Interface().(type) {
	case loader:
		problems = c.Load(r.read)
	case checker:
		problems = c.Check()
	}
	for _, p := range problems {
		r.found(p, path)
	}
}

// found places a problem of a value's own check.
func (r *reader) found(p chandler.Problem, path string) {
	full := path
	switch {
	case p.Field == "":
	case path == "" || strings.HasPrefix(p.Field, "["):
		full += p.Field
	default:
		full += "." + p.Field
	}
	at := full
	for r.places[at] == nil { // the root is always there
		at = at[:max(strings.LastIndexAny(at, ".["), 0)]
	}
	p.Field = full
	n := r.places[at]
	r.mistakes = append(r.mistakes, Mistake{n.Line, n.Column, p})
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
	formerType   = reflect.TypeFor[Former]()
	bareType     = reflect.TypeFor[Text]()
	jsonType     = reflect.TypeFor[JSON]()
)

// fill takes a value of the type that v has; n is neither null nor an alias.
func (r *reader) fill(n *yaml.Node, v reflect.Value, path string, depth int) {
	switch t := v.Type(); {
	case t == durationType:
		r.scalar(n, path, "a duration such as 30s", func(s string) (err error) {
			d, err := time.ParseDuration(s)
			v.SetInt(int64(d))
			return err
		}, "!!str")
	case t == jsonType:
		if b, ok := r.json(n, path, depth); ok {
			v.SetBytes(b)
		}
	case t == bareType:
		if n.Kind != yaml.ScalarNode {
			r.refuse(n, chandler.CodeConfValue, path, "write text", "%s does not belong here", shown(n))
			return
		}
		v.SetString(n.Value)
	case reflect.PointerTo(t).Implements(formerType):
		r.form(n, v.Addr().Interface().(Former), path, depth)
	case reflect.PointerTo(t).Implements(textType):
		r.scalar(n, path, "text", func(s string) error {
			return v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s))
		}, "!!str", "!!int", "!!float", "!!bool", "!!timestamp")
	case t.Kind() == reflect.String:
		r.scalar(n, path, "text; numbers and words like yes need quotes", func(s string) error { v.SetString(s); return nil }, "!!str")
	case t.Kind() == reflect.Bool:
		r.scalar(n, path, "true or false", func(s string) error {
			b, err := strconv.ParseBool(strings.ToLower(s))
			v.SetBool(b)
			return err
		}, "!!bool")
	case t.Kind() == reflect.Int, t.Kind() == reflect.Int64:
		r.scalar(n, path, "a whole number", func(s string) error {
			i, err := strconv.ParseInt(s, 10, 64)
			v.SetInt(i)
			return err
		}, "!!int")
	case t.Kind() == reflect.Pointer:
		v.Set(reflect.New(t.Elem()))
		r.value(n, v.Elem(), path, depth)
	case t.Kind() == reflect.Slice:
		r.list(n, v, path, depth)
	case t.Kind() == reflect.Map:
		r.names(n, v, path, depth)
	case t.Kind() == reflect.Struct:
		r.object(n, v, path, depth)
	default:
		panic(fmt.Sprintf("strict: a field of type %s cannot be read", t))
	}
}

// scalar reads a single value whose tag is one of tags.
func (r *reader) scalar(n *yaml.Node, path, want string, set func(string) error, tags ...string) {
	if n.Kind != yaml.ScalarNode || !slices.Contains(tags, n.Tag) {
		r.refuse(n, chandler.CodeConfValue, path, "write "+want, "%s does not belong here", shown(n))
		return
	}
	if err := set(n.Value); err != nil {
		var p *chandler.Problem
		if errors.As(err, &p) {
			r.refuse(n, chandler.CodeConfValue, path, p.Hint, "%s", p.Message)
			return
		}
		r.refuse(n, chandler.CodeConfValue, path, "write "+want, "%s is not %s", chandler.Quote(n.Value), kindOf(want))
	}
}

// kindOf is want without its explanation.
func kindOf(want string) string {
	want, _, _ = strings.Cut(want, ";")
	want, _, _ = strings.Cut(want, " such as")
	return want
}

func shown(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "an object"
	case yaml.SequenceNode:
		return "a list"
	}
	return chandler.Quote(n.Value)
}

// form fills what stands for the value in the form that the node has.
func (r *reader) form(n *yaml.Node, f Former, path string, depth int) {
	to := f.Form(n.Kind)
	if to == nil {
		var forms []string
		for _, k := range formKinds {
			if f.Form(k.kind) != nil {
				forms = append(forms, k.name)
			}
		}
		r.refuse(n, chandler.CodeConfValue, path, "write "+strings.Join(forms, " or "), "%s does not belong here", shown(n))
		return
	}
	r.fill(n, reflect.ValueOf(to).Elem(), path, depth)
}

var formKinds = []struct {
	kind yaml.Kind
	name string
}{{yaml.ScalarNode, "a value"}, {yaml.SequenceNode, "a list"}, {yaml.MappingNode, "an object"}}

func (r *reader) list(n *yaml.Node, v reflect.Value, path string, depth int) {
	if n.Kind != yaml.SequenceNode {
		r.refuse(n, chandler.CodeConfValue, path, "write a list, each entry with a - before it", "%s does not belong here", shown(n))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))) // empty is not nil
	for i, item := range n.Content {
		r.value(item, v.Index(i), fmt.Sprintf("%s[%d]", path, i), depth+1)
	}
}

// names reads an object whose keys are free text.
func (r *reader) names(n *yaml.Node, v reflect.Value, path string, depth int) {
	if n.Kind != yaml.MappingNode {
		r.refuse(n, chandler.CodeConfValue, path, "write an object: key: value", "%s does not belong here", shown(n))
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	r.keys(n, path, func(key, value *yaml.Node, at string) {
		item := reflect.New(v.Type().Elem()).Elem()
		r.value(value, item, at, depth+1)
		v.SetMapIndex(reflect.ValueOf(key.Value).Convert(v.Type().Key()), item)
	})
}

// object reads an object whose keys are the fields of a struct.
func (r *reader) object(n *yaml.Node, v reflect.Value, path string, depth int) {
	if n.Kind != yaml.MappingNode {
		r.refuse(n, chandler.CodeConfValue, path, "write an object: key: value", "%s does not belong here", shown(n))
		return
	}
	fields := map[string]reflect.Value{}
	known := fieldsOf(v, fields)
	r.keys(n, path, func(key, value *yaml.Node, at string) {
		if f, ok := fields[key.Value]; ok {
			r.value(value, f, at, depth+1)
			return
		}
		r.refuse(key, chandler.CodeConfUnknown, at, "here may stand "+strings.Join(known, ", "), "unknown key %s", chandler.Quote(key.Value))
	})
}

// keys calls fn for every key that is written once.
func (r *reader) keys(n *yaml.Node, path string, fn func(key, value *yaml.Node, at string)) {
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := chandler.Printable(key.Value, chandler.MaxQuoted)
		if path != "" {
			at = path + "." + at
		}
		switch {
		case key.Kind != yaml.ScalarNode || key.Tag != "!!str":
			r.refuse(key, chandler.CodeConfParse, path, "put it in quotes", "%s is not a key", shown(key))
		case seen[key.Value]:
			r.refuse(key, chandler.CodeConfParse, at, "keep one of them", "the key is written twice")
		default:
			seen[key.Value] = true
			fn(key, value, at)
		}
	}
}

// fieldsOf gives the names of v's fields in their order, and the fields by them. An
// inline struct's are its owner's.
func fieldsOf(v reflect.Value, into map[string]reflect.Value) (names []string) {
	for i := range v.NumField() {
		name, options, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		switch {
		case options == "inline":
			names = append(names, fieldsOf(v.Field(i), into)...)
		case name != "" && name != "-":
			into[name] = v.Field(i)
			names = append(names, name)
		}
	}
	return names
}
