// Package schema judges plugins' configurations by the JSON Schemas that their
// artifacts carry: what is wrong and where, which values are write-only, and what
// there is to configure. Schemas come from strangers. Nothing that one names is ever
// fetched, and neither to read one nor to judge by it takes more than a bounded time
// and memory: what would is of no use, and says why.
//
// It does not know where schemas come from, nor what follows from a mistake.
package schema

import (
	"errors"
	"fmt"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"chandler.dev/chandler"
)

// What a schema may be.
const (
	// MaxSize bounds its text, in bytes.
	MaxSize  = 256 << 10
	maxDepth = 64
	// maxValues is how many values of JSON it may have: reading it takes time that
	// grows with their square.
	maxValues = 8 << 10
	// maxReferences is how many places it may refer to: each may cost the library a look
	// at the whole.
	maxReferences = 512
	// maxChain is how many schemas may apply to one value because one refers to the
	// other: each takes room on the stack.
	maxChain = 64
	// maxWork is what one judgement may take: about as many looks at a value.
	maxWork = 1 << 20
)

// Schema judges configurations. It is safe for concurrent use; one judgement is made
// at a time.
type Schema struct {
	// Title and Description are the author's, bounded.
	Title, Description string

	mu       sync.Mutex // of a judgement, which spends the meter
	root     *jsonschema.Schema
	meter    *meter
	parts    map[string]*jsonschema.Schema // by location
	names    map[string]bool               // of all fields that it describes
	hides    bool                          // some value is write-only
	outline  []Property
	unlisted bool
}

// location is what a schema is called that gives itself no name. No scheme of the
// name leads anywhere.
const location = "chandler:///schema"

// Compile reads a schema. The problem says why it is of no use.
func Compile(text []byte) (s *Schema, problem *chandler.Problem) {
	doc, problem := parse(text)
	if problem != nil {
		return nil, problem
	}
	m := &meter{left: maxWork}
	defer func() {
		if cause := recover(); cause != nil {
			s, problem = nil, unusable("make it simpler", "%s", explain(cause))
		}
	}()
	c := jsonschema.NewCompiler()
	c.UseLoader(nowhere{})
	c.UseRegexpEngine(m.pattern)
	if err := c.AddResource(location, doc); err != nil {
		return nil, unusable("", "%s", chandler.Printable(err.Error(), maxReason))
	}
	root, err := c.Compile(location)
	if err != nil {
		return nil, refused(err)
	}
	s = &Schema{root: root, meter: m, parts: map[string]*jsonschema.Schema{}, names: map[string]bool{}}
	s.Title, s.Description = chandler.Printable(root.Title, maxTitle), chandler.Printable(root.Description, maxDescription)
	s.gather(root)
	if problem := s.bound(); problem != nil {
		return nil, problem
	}
	s.outline, s.unlisted = s.list()
	for _, part := range s.parts {
		m.watch(part)
	}
	return s, nil
}

const maxReason = 512 // bytes of why a schema is of no use

func unusable(hint, format string, args ...any) *chandler.Problem {
	return chandler.Problemf(chandler.CodeSchemaUnusable, "", hint, format, args...)
}

// explain words what ended a computation.
func explain(cause any) string {
	if _, ok := cause.(exhausted); ok {
		return "it takes more work than is allowed"
	}
	return "it cannot be worked with: " + chandler.Printable(fmt.Sprint(cause), maxReason) // a fault of the library's
}

// refused words why a schema does not compile.
func refused(err error) *chandler.Problem {
	var load *jsonschema.LoadURLError
	var invalid *jsonschema.SchemaValidationError
	switch {
	case errors.As(err, &load):
		return unusable("copy what it refers to into $defs", "it refers to %s, and nothing is fetched for a schema", chandler.Quote(load.URL))
	case errors.As(err, &invalid):
		var why *jsonschema.ValidationError
		if errors.As(invalid.Err, &why) {
			return unusable("correct it there", "it is no valid JSON Schema%s", where(why))
		}
	}
	return unusable("", "%s", chandler.Printable(err.Error(), maxReason))
}

// where gives the place of the first mistake in a schema.
func where(err *jsonschema.ValidationError) string {
	for len(err.Causes) > 0 {
		err = err.Causes[0]
	}
	if len(err.InstanceLocation) == 0 {
		return ""
	}
	at := ""
	for _, name := range err.InstanceLocation {
		at += "/" + name
	}
	return " at " + chandler.Printable(at, maxReason)
}

// nowhere is where references to other documents lead.
type nowhere struct{}

func (nowhere) Load(string) (any, error) { return nil, errors.New("nothing is fetched") }

// gather finds all parts of a schema that can come to judge, and the names that
// it has.
func (s *Schema) gather(part *jsonschema.Schema) {
	if s.parts[part.Location] != nil {
		return
	}
	s.parts[part.Location] = part
	s.hides = s.hides || part.WriteOnly
	for name := range part.Properties {
		s.names[name] = true
	}
	names := [][]string{part.Required}
	for name, more := range part.DependentRequired {
		names = append(names, more, []string{name})
	}
	for name, more := range part.Dependencies {
		more, _ := more.([]string)
		names = append(names, more, []string{name})
	}
	for _, list := range names {
		for _, name := range list {
			s.names[name] = true
		}
	}
	for _, list := range [][]*jsonschema.Schema{same(part), below(part)} {
		for _, p := range list {
			s.gather(p)
		}
	}
}

// same gives the parts that judge the same value as a part does.
func same(s *jsonschema.Schema) []*jsonschema.Schema {
	var out []*jsonschema.Schema
	out = append(out, s.AllOf...)
	out = append(out, s.AnyOf...)
	out = append(out, s.OneOf...)
	for _, p := range s.DependentSchemas {
		out = append(out, p)
	}
	for _, p := range s.Dependencies {
		out = appendAny(out, p)
	}
	return appendSome(out, s.Ref, s.RecursiveRef, s.Not, s.If, s.Then, s.Else)
}

// below gives the parts that judge what is in a value, and the names of its fields.
func below(s *jsonschema.Schema) []*jsonschema.Schema {
	var out []*jsonschema.Schema
	for _, p := range s.Properties {
		out = append(out, p)
	}
	for _, p := range s.PatternProperties {
		out = append(out, p)
	}
	out = append(out, s.PrefixItems...)
	for _, v := range []any{s.AdditionalProperties, s.Items, s.AdditionalItems} {
		out = appendAny(out, v)
	}
	return appendSome(out, s.PropertyNames, s.UnevaluatedProperties, s.Contains, s.Items2020, s.UnevaluatedItems)
}

func appendSome(out []*jsonschema.Schema, some ...*jsonschema.Schema) []*jsonschema.Schema {
	for _, p := range some {
		if p != nil {
			out = append(out, p)
		}
	}
	return out
}

// appendAny takes what the library keeps in several shapes.
func appendAny(out []*jsonschema.Schema, v any) []*jsonschema.Schema {
	switch v := v.(type) {
	case *jsonschema.Schema:
		return appendSome(out, v)
	case []*jsonschema.Schema:
		return append(out, v...)
	}
	return out
}

// bound refuses parts that would apply to one value one after another without end,
// or almost.
func (s *Schema) bound() *chandler.Problem {
	const open = -1
	length := map[*jsonschema.Schema]int{}
	var measure func(*jsonschema.Schema) int
	measure = func(p *jsonschema.Schema) int {
		if n, ok := length[p]; ok {
			if n == open {
				return maxChain + 1
			}
			return n
		}
		length[p] = open
		longest := 0
		for _, next := range same(p) {
			longest = max(longest, measure(next))
		}
		length[p] = min(longest, maxChain) + 1
		return length[p]
	}
	for _, p := range s.parts {
		switch {
		case p.DynamicRef != nil || p.RecursiveRef != nil:
			return unusable("write $ref", "it uses $dynamicRef or $recursiveRef, which are not understood here")
		case measure(p) > maxChain:
			return unusable("make it simpler", "parts of it refer to each other without end, or more than %d in a row", maxChain)
		}
	}
	return nil
}
