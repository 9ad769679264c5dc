package suite

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler/internal/strict"
)

var update = flag.Bool("update", false, "write the schema and the reference anew")

const (
	schemaFile = "../../../api/schemas/test.schema.json"
	docFile    = "../../../docs/authoring/test-file.md"
)

// The published schema is what the types say.
func TestSchema(t *testing.T) {
	t.Parallel()
	s := &schemas{defs: map[string]any{}}
	root := s.object(reflect.TypeFor[File]())
	root["$schema"], root["$id"] = "https://json-schema.org/draft/2020-12/schema", "https://chandler.dev/schemas/test.schema.json"
	root["title"], root["description"] = FileName, "The tests of a Proxy-Wasm plugin, for chandler test."
	root["$defs"] = s.defs
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(root); err != nil {
		t.Fatal(err)
	}
	held(t, schemaFile, b.Bytes())
}

// held compares a file that is made from the types, or writes it.
func held(t *testing.T, path string, want []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what the types say (%v); go test ./internal/author/suite -update", path, err)
	}
}

// The reference explains every key, and its examples are files that are taken.
func TestReference(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile(docFile)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- made from the types: go test ./internal/author/suite -update -->\n", "<!-- end -->\n"
	before, rest, ok := strings.Cut(string(doc), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatal("no place for the reference")
	}
	var b strings.Builder
	tables(&b, reflect.TypeFor[File](), map[reflect.Type]bool{})
	held(t, docFile, []byte(before+begin+b.String()+end+after))
	examples := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(doc), -1)
	if len(examples) < 3 {
		t.Fatalf("%d examples", len(examples))
	}
	for _, e := range examples {
		f, mistakes := decode([]byte(e[1]), func(string) ([]byte, error) { return []byte("{}"), nil })
		if len(mistakes) > 0 {
			t.Errorf("%v\n%s", &strict.Error{Path: docFile, Mistakes: mistakes}, e[1])
		} else if len(f.Tests()) == 0 {
			t.Errorf("no tests in\n%s", e[1])
		}
	}
}

type field struct {
	name, doc string
	kind      reflect.Type
}

// fields are those that may be written, an inline struct's among them.
func fields(t reflect.Type) []field {
	var all []field
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case options == "inline":
			all = append(all, fields(f.Type)...)
		case name != "" && name != "-":
			all = append(all, field{name, f.Tag.Get("doc"), f.Type})
		}
	}
	return all
}

// own are those of the struct itself.
func own(t reflect.Type) []field {
	return slices.DeleteFunc(fields(t), func(f field) bool {
		for i := range t.NumField() {
			if name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ","); name == f.name {
				return false
			}
		}
		return true
	})
}

// below is the struct that a value of the type is made of, if it is one.
func below(t reflect.Type) (reflect.Type, bool) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	return t, t.Kind() == reflect.Struct && len(fields(t)) > 0
}

func tables(b *strings.Builder, t reflect.Type, done map[reflect.Type]bool) {
	done[t] = true
	fmt.Fprintf(b, "\n### %s\n\n| key | |\n|---|---|\n", t.Name())
	var next []reflect.Type
	for i := range t.NumField() {
		if in := t.Field(i); strings.HasSuffix(in.Tag.Get("yaml"), ",inline") {
			fmt.Fprintf(b, "| all keys of [%s](#%s) | |\n", in.Name, strings.ToLower(in.Name))
			next = append(next, in.Type)
		}
	}
	for _, f := range own(t) {
		doc := f.doc
		if s, ok := below(f.kind); ok {
			next = append(next, s)
			how := "See"
			switch f.kind.Kind() {
			case reflect.Slice:
				how = "A list of"
			case reflect.Map:
				how = "By name:"
			}
			doc += fmt.Sprintf(" %s [%s](#%s).", how, s.Name(), strings.ToLower(s.Name()))
		}
		fmt.Fprintf(b, "| `%s` | %s |\n", f.name, strings.ReplaceAll(doc, "|", "\\|"))
	}
	for _, s := range next {
		if !done[s] {
			tables(b, s, done)
		}
	}
}

// schemas makes the schema of types; those with a name are definitions.
type schemas struct{ defs map[string]any }

type object = map[string]any

func (s *schemas) object(t reflect.Type) object {
	properties := object{}
	for _, f := range fields(t) {
		p := s.of(f.kind)
		if f.doc == "" {
			panic(t.Name() + "." + f.name + " is not explained")
		}
		if _, ref := p["$ref"]; ref {
			p = object{"allOf": []any{p}}
		}
		p["description"] = f.doc
		properties[f.name] = p
	}
	return object{"type": "object", "additionalProperties": false, "properties": properties}
}

func (s *schemas) named(t reflect.Type, make func() object) object {
	if _, ok := s.defs[t.Name()]; !ok {
		s.defs[t.Name()] = nil // it may name itself
		s.defs[t.Name()] = make()
	}
	return object{"$ref": "#/$defs/" + t.Name()}
}

// of is the schema of a value, as package strict reads it.
func (s *schemas) of(t reflect.Type) object {
	switch v := reflect.New(t).Interface().(type) {
	case *strict.JSON:
		return object{}
	case *strict.Text:
		return object{"type": []string{"string", "number", "boolean"}}
	case *FailStrategy:
		return object{"enum": v.words()}
	case *EngineName:
		return object{"enum": v.words()}
	case *ReachedWord:
		return object{"enum": v.words()}
	case *LogLevel:
		return object{"enum": v.words()}
	case *Pattern:
		return object{"type": "string", "format": "regex"}
	case *Time:
		return object{"type": "string", "format": "date-time"}
	case *Size:
		return object{"type": "string", "pattern": sizePattern.String()}
	case *Amount:
		return object{"type": []string{"integer", "string"}, "pattern": amountPattern.String()}
	case *Trap:
		return object{"type": []string{"boolean", "string"}}
	case *time.Duration:
		return object{"type": "string", "pattern": `^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$`}
	case *requestLine:
		return object{"type": "string", "pattern": linePattern.String()}
	case strict.Former:
		return s.named(t, func() object { return s.forms(v) })
	}
	switch t.Kind() {
	case reflect.Pointer:
		return s.of(t.Elem())
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int, reflect.Int64:
		return object{"type": "integer"}
	case reflect.Slice:
		return object{"type": "array", "items": s.of(t.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": s.of(t.Elem())}
	case reflect.Struct:
		return s.named(t, func() object { return s.object(t) })
	}
	panic(t.String())
}

func (s *schemas) forms(f strict.Former) object {
	var any []object
	for _, kind := range []yaml.Kind{yaml.ScalarNode, yaml.SequenceNode, yaml.MappingNode} {
		if to := f.Form(kind); to != nil {
			t := reflect.TypeOf(to).Elem()
			if kind == yaml.MappingNode {
				any = append(any, s.object(t))
			} else {
				any = append(any, s.of(t))
			}
		}
	}
	return object{"anyOf": any}
}

// What the schema lists, the reader knows, and the other way about.
func TestWords(t *testing.T) {
	t.Parallel()
	var e EngineName
	for _, w := range e.words() {
		if err := e.UnmarshalText([]byte(w)); err != nil || e != w {
			t.Errorf("%s: %v", w, err)
		}
	}
	if err := e.UnmarshalText([]byte("other")); err == nil || slices.Contains(e.words(), "other") {
		t.Error("other is an engine")
	}
}

// What the reader takes, the schema takes.
func TestSchemaTakesWhatIsRead(t *testing.T) {
	t.Parallel()
	schema, err := jsonschema.NewCompiler().Compile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	judge := func(text string) error {
		var node yaml.Node
		if err := yaml.Unmarshal([]byte(text), &node); err != nil {
			return err
		}
		b, err := yamlJSON(&node)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		document, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		return schema.Validate(document)
	}
	suite, err := os.ReadFile("../../../plugins/basicauth/chandler.test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	texts := []string{string(suite), FirstFile}
	for _, cases := range both {
		texts = append(texts, "cases:"+cases)
	}
	for _, text := range texts {
		if err := judge(text); err != nil {
			t.Errorf("%v\n%s", err, text)
		}
	}
	for _, text := range []string{
		"cases: [{name: a, reqest: /}]", "cases: [{name: a, request: {path: [x]}}]", "cases: {name: a}", "cases: [{name: a, request: 'x y', expect: 200}]",
		"cases: [{name: a, request: /, engines: [wasmtime]}]", "cases: [{name: a, request: /, expect: {upstream: never}}]", "now: 5",
	} {
		if judge(text) == nil {
			t.Errorf("the schema takes %s", text)
		}
	}
}

// yamlJSON is a document as JSON, as editors hand it to schemas.
func yamlJSON(n *yaml.Node) ([]byte, error) {
	var value struct {
		V strict.JSON `yaml:"v"`
	}
	b, err := yaml.Marshal(map[string]*yaml.Node{"v": n.Content[0]})
	if err != nil {
		return nil, err
	}
	if m := strict.Decode(b, &value, nil); m != nil {
		return nil, &strict.Error{Path: "v", Mistakes: m}
	}
	return value.V, nil
}
