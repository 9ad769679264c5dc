package schema

import (
	"maps"
	"slices"
	"strconv"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Hidden gives the places in a configuration of which some part of the schema says
// that they are write-only: each the names of fields and the numbers of items that
// lead to it, and an empty one is all of it. What cannot be told within bounds is
// hidden.
func (s *Schema) Hidden(config []byte) [][]string {
	if !s.hides {
		return nil
	}
	v, err := read(config)
	if err != nil {
		return [][]string{{}}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.meter.left = maxWork
	h := &hider{outliner: outliner{work: maxWork}}
	if !h.look(v, []*jsonschema.Schema{s.root}, nil) {
		return [][]string{{}}
	}
	return h.places
}

type hider struct {
	outliner
	places [][]string
}

// look goes through a value and the parts that may describe it. It gives false when
// that takes too much.
func (h *hider) look(v any, parts []*jsonschema.Schema, at []string) (ok bool) {
	defer func() {
		if cause := recover(); cause != nil { // of a pattern's meter
			ok = false
		}
	}()
	return h.walk(v, parts, at)
}

func (h *hider) walk(v any, parts []*jsonschema.Schema, at []string) bool {
	parts = h.closure(parts...)
	if h.more {
		return false
	}
	if slices.ContainsFunc(parts, func(p *jsonschema.Schema) bool { return p.WriteOnly }) {
		h.places = append(h.places, append([]string{}, at...))
		return true
	}
	switch v := v.(type) {
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			var below []*jsonschema.Schema
			for _, p := range parts {
				below = append(below, fieldOf(p, name)...)
			}
			if !h.walk(v[name], below, append(at, name)) {
				return false
			}
		}
	case []any:
		for i := range v {
			var below []*jsonschema.Schema
			for _, p := range parts {
				below = append(below, itemOf(p, i)...)
			}
			if !h.walk(v[i], below, append(at, strconv.Itoa(i))) {
				return false
			}
		}
	}
	return true
}

// fieldOf gives the parts that may describe a field of an object.
func fieldOf(s *jsonschema.Schema, name string) []*jsonschema.Schema {
	var out []*jsonschema.Schema
	if p := s.Properties[name]; p != nil {
		out = append(out, p)
	}
	for pattern, p := range s.PatternProperties {
		if pattern.MatchString(name) {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		out = appendAny(out, s.AdditionalProperties)
	}
	return appendSome(out, s.UnevaluatedProperties) // whether it is evaluated is not looked at
}

// itemOf gives the parts that may describe an item of a list.
func itemOf(s *jsonschema.Schema, i int) []*jsonschema.Schema {
	var out []*jsonschema.Schema
	if tuple, ok := s.Items.([]*jsonschema.Schema); ok {
		if i < len(tuple) {
			out = append(out, tuple[i])
		} else {
			out = appendAny(out, s.AdditionalItems)
		}
	} else {
		out = appendAny(out, s.Items)
	}
	if i < len(s.PrefixItems) {
		out = append(out, s.PrefixItems[i])
	} else {
		out = appendSome(out, s.Items2020)
	}
	return appendSome(out, s.Contains, s.UnevaluatedItems)
}
