package schema

import (
	"maps"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"chandler.dev/chandler"
)

// Property is a line of a schema's outline, for people.
type Property struct {
	// Path is such as basic_auth_rules[].prefix.
	Path string
	// Type is in words: "a list", "one of "a", "b"".
	Type        string
	Description string
	Required    bool
	WriteOnly   bool
}

// Bounds of an outline.
const (
	maxOutline      = 64
	maxOutlineDepth = 5
	maxTitle        = 120 // bytes
	maxDescription  = 240
)

// Outline gives what there is to configure, in the order of the names; more: not all
// of it.
func (s *Schema) Outline() (list []Property, more bool) { return s.outline, s.unlisted }

// list makes the outline.
func (s *Schema) list() ([]Property, bool) {
	o := &outliner{work: maxWork}
	o.fields(o.closure(s.root), "", 0)
	return o.list, o.more
}

type outliner struct {
	list []Property
	more bool
	work int
}

// closure gives the parts that say what a value may be.
func (o *outliner) closure(parts ...*jsonschema.Schema) []*jsonschema.Schema {
	seen := map[*jsonschema.Schema]bool{}
	var all []*jsonschema.Schema
	for len(parts) > 0 {
		p := parts[0]
		parts = parts[1:]
		if o.work--; p == nil || seen[p] || o.work < 0 {
			o.more = o.more || o.work < 0
			continue
		}
		seen[p] = true
		all = append(all, p)
		parts = append(parts, positive(p)...)
	}
	return all
}

// positive gives the parts that describe the same value as a part does: not those
// that it must not fit.
func positive(s *jsonschema.Schema) []*jsonschema.Schema {
	return slices.DeleteFunc(same(s), func(p *jsonschema.Schema) bool { return p == s.Not })
}

// fields lists the fields of an object that parts describe together.
func (o *outliner) fields(parts []*jsonschema.Schema, under string, depth int) {
	fields, required := map[string][]*jsonschema.Schema{}, map[string]bool{}
	for _, p := range parts {
		for name, field := range p.Properties {
			fields[name] = append(fields[name], field)
		}
		for _, name := range p.Required {
			required[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if len(o.list) >= maxOutline || depth >= maxOutlineDepth {
			o.more = true
			return
		}
		o.field(o.closure(fields[name]...), chandler.Printable(strings.TrimPrefix(under+segment(name), "."), maxField), required[name], depth)
	}
}

func (o *outliner) field(parts []*jsonschema.Schema, path string, required bool, depth int) {
	p := Property{Path: path, Required: required}
	for _, part := range parts {
		if p.Type == "" {
			p.Type = typeWords(part)
		}
		if p.Description == "" {
			p.Description = described(part)
		}
		p.WriteOnly = p.WriteOnly || part.WriteOnly
	}
	o.list = append(o.list, p)
	o.fields(parts, path, depth+1)
	var items []*jsonschema.Schema
	for _, part := range parts {
		items = append(items, itemsOf(part)...)
	}
	if len(items) > 0 {
		o.fields(o.closure(items...), path+"[]", depth+1)
	}
}

func itemsOf(s *jsonschema.Schema) []*jsonschema.Schema {
	return appendAny(appendAny(slices.Clone(s.PrefixItems), s.Items), s.Items2020)
}

func typeWords(s *jsonschema.Schema) string {
	switch {
	case s.Const != nil:
		return spell([]any{*s.Const})
	case s.Enum != nil:
		return spell(s.Enum.Values)
	case s.Types == nil:
		return ""
	}
	var words []string
	for _, t := range s.Types.ToStrings() {
		words = append(words, strings.TrimPrefix(strings.TrimPrefix(article(t), "an "), "a "))
	}
	return strings.Join(words, " or ")
}

// described is what a part says of itself, in one line.
func described(s *jsonschema.Schema) string {
	text := s.Description
	if text == "" {
		text = s.Title
	}
	return chandler.Printable(strings.Join(strings.Fields(text), " "), maxDescription)
}
