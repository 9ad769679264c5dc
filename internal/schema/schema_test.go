package schema

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"chandler.dev/chandler"
)

// basicAuth is a schema as an author writes it.
const basicAuth = `{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "$id": "https://plugins.example/basic-auth.json",
  "title": "Basic auth",
  "type": "object",
  "required": ["basic_auth_rules"],
  "additionalProperties": false,
  "properties": {
    "realm": {"type": "string", "maxLength": 8},
    "basic_auth_rules": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/rule"}}
  },
  "$defs": {
    "rule": {
      "type": "object",
      "required": ["prefix", "credentials"],
      "properties": {
        "prefix": {"type": "string", "pattern": "^/", "description": "The paths that are\n guarded."},
        "request_methods": {"type": "array", "uniqueItems": true, "items": {"enum": ["GET", "POST", "PUT"]}},
        "credentials": {"type": "array", "items": {"type": "string", "writeOnly": true}},
        "retries": {"type": "integer", "minimum": 0, "exclusiveMaximum": 2.5}
      }
    }
  }
}`

func compile(t testing.TB, text string) *Schema {
	t.Helper()
	s, problem := Compile([]byte(text))
	if problem != nil {
		t.Fatalf("%s: %v", text, problem)
	}
	return s
}

func check(t testing.TB, s *Schema, config string) []string {
	t.Helper()
	problems, err := s.Check(Config{Whole: []byte(config), Written: []byte(config), Field: "spec.pluginConfig"})
	if err != nil {
		t.Fatalf("%s: %v", config, err)
	}
	var lines []string
	for i := range problems {
		if problems[i].Code != chandler.CodeConfigSchema {
			t.Errorf("code is %s", problems[i].Code)
		}
		lines = append(lines, strings.ReplaceAll(problems[i].Field+": "+problems[i].Message, ", says the module's schema", ""))
	}
	return lines
}

// TestCheck: what is wrong is told with its place, in words, and in one order.
func TestCheck(t *testing.T) {
	t.Parallel()
	s := compile(t, basicAuth)
	for config, want := range map[string][]string{
		`{"basic_auth_rules":[{"prefix":"/a","credentials":["a:b"],"request_methods":["GET","PUT"]}]}`: nil,
		`{}`: {"spec.pluginConfig.basic_auth_rules: is missing"},
		`{"basic_auth_rules":[{"prefix":7,"credentials":["a:b"]}]}`:                                {"spec.pluginConfig.basic_auth_rules[0].prefix: must be a string, not a number"},
		`{"basic_auth_rules":[]}`:                                                                  {"spec.pluginConfig.basic_auth_rules: must have 1 item at least"},
		`{"basic_auth_rules":{}}`:                                                                  {"spec.pluginConfig.basic_auth_rules: must be a list, not an object"},
		`{"basic_auth_rules":[{"prefix":"a","credentials":[]},{"credentials":1}]}`:                 {`spec.pluginConfig.basic_auth_rules[0].prefix: does not match the pattern "^/"`, "spec.pluginConfig.basic_auth_rules[1].credentials: must be a list, not a number", "spec.pluginConfig.basic_auth_rules[1].prefix: is missing"},
		`{"basic_auth_rules":[{"prefix":"/","credentials":[],"request_methods":["GET","PATCH"]}]}`: {`spec.pluginConfig.basic_auth_rules[0].request_methods[1]: must be one of "GET", "POST", "PUT"`},
		`{"basic_auth_rules":[{"prefix":"/","credentials":[],"request_methods":["GET","GET"]}]}`:   {"spec.pluginConfig.basic_auth_rules[0].request_methods: items 0 and 1 are the same"},
		`{"basic_auth_rules":[{"prefix":"/","credentials":[],"retries":2.5}]}`:                     {"spec.pluginConfig.basic_auth_rules[0].retries: must be an integer, not a number"},
		`{"basic_auth_rules":[{"prefix":"/","credentials":[],"retries":3}]}`:                       {"spec.pluginConfig.basic_auth_rules[0].retries: must be less than 2.5"},
		`{"basic_auth_rules":[{"prefix":"/","credentials":[]}],"relm":"x","realm":"123456789"}`:    {"spec.pluginConfig.realm: must have 8 characters at most", "spec.pluginConfig.relm: unknown field"},
		`{"basic_auth_rules":[{"prefix":"/","credentials":[]}],"a b":1}`:                           {`spec.pluginConfig["a b"]: unknown field`},
	} {
		if got := check(t, s, config); !reflect.DeepEqual(got, want) {
			t.Errorf("%s\ngot  %q\nwant %q", config, got, want)
		}
	}
	if got, err := s.Check(Config{Field: "spec.pluginConfig"}); err != nil || len(got) != 1 || got[0].Field != "spec.pluginConfig.basic_auth_rules" {
		t.Errorf("no configuration: %v, %v; it is judged as an empty one", got, err)
	}
	hints, err := s.Check(Config{Whole: []byte(`{"basic_auth_rules":[{"credentials":[]}],"relm":1}`), Written: []byte(`{"relm":1}`), Field: "f"})
	if err != nil || len(hints) != 2 || hints[0].Hint != "it is: The paths that are guarded." || hints[1].Hint != "here may stand basic_auth_rules, realm" {
		t.Errorf("hints: %v, %v", hints, err)
	}
}

// TestKeywords: each keyword is told in its own words.
func TestKeywords(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ schema, config, want string }{
		{`{"properties":{"a":{"const":1}}}`, `{"a":1.0}`, ""},
		{`{"properties":{"a":{"const":{"b":[1,2]}}}}`, `{"a":{"b":[10e-1,2]}}`, ""},
		{`{"properties":{"a":{"const":1}}}`, `{"a":{"":"1e0"}}`, "c.a: must be 1"},
		{`{"properties":{"a":{"enum":[null,false]}}}`, `{"a":0}`, "c.a: must be one of null, false"},
		{`{"properties":{"a":{"enum":[1,2,3,4,5,6,7,8,9]}}}`, `{"a":0}`, "c.a: must be one of 1, 2, 3, 4, 5, 6, 7, 8 and 1 more"},
		{`{"properties":{"a":{"minimum":3}}}`, `{"a":2}`, "c.a: must be at least 3"},
		{`{"properties":{"a":{"maximum":3}}}`, `{"a":4}`, "c.a: must be at most 3"},
		{`{"properties":{"a":{"exclusiveMinimum":3}}}`, `{"a":3}`, "c.a: must be more than 3"},
		{`{"properties":{"a":{"multipleOf":0.5}}}`, `{"a":0.7}`, "c.a: must be a multiple of 0.5"},
		{`{"properties":{"a":{"minLength":2}}}`, `{"a":"é"}`, "c.a: must have 2 characters at least"},
		{`{"properties":{"a":{"maxItems":1}}}`, `{"a":[1,2]}`, "c.a: must have 1 item at most"},
		{`{"properties":{"a":{"contains":{"type":"null"}}}}`, `{"a":[1]}`, "c.a[0]: must be null, not a number"},
		{`{"properties":{"a":{"contains":{"type":"null"},"maxContains":0,"minContains":0}}}`, `{"a":[null]}`, "c.a: too many of the items are as only some may be"},
		{`{"minProperties":1}`, `{}`, "c: must have 1 field at least"},
		{`{"maxProperties":1}`, `{"a":1,"b":2}`, "c: must have 1 field at most"},
		{`{"properties":{"a":false}}`, `{"a":1}`, "c.a: nothing may stand here"},
		{`{"not":{"required":["a"]}}`, `{"a":1}`, "c: has a form that is excluded"},
		{`{"propertyNames":{"pattern":"^b"}}`, `{"a":1}`, "c: the name of a field is not as it has to be"},
		{`{"dependentRequired":{"a":["b"]}}`, `{"a":1}`, `c.b: is missing beside "a"`},
		{`{"$schema":"http://json-schema.org/draft-07/schema#","dependencies":{"a":["b"]}}`, `{"a":1}`, `c.b: is missing beside "a"`},
		{`{"$schema":"http://json-schema.org/draft-07/schema#","properties":{"a":{"format":"ipv4"}}}`, `{"a":"x"}`, "c.a: is not in the form of a ipv4"},
		{`{"$schema":"http://json-schema.org/draft-07/schema#","properties":{"a":{"format":"regex"}}}`, `{"a":"("}`, "c.a: is not in the form of a regex"},
		{`{"$schema":"http://json-schema.org/draft-04/schema#","properties":{"a":{"maximum":3,"exclusiveMaximum":true}}}`, `{"a":3}`, "c.a: must be less than 3"},
		{`{"properties":{"a":{"anyOf":[{"type":"string"},{"type":"integer"}]}}}`, `{"a":[]}`, "c.a: must be a string or an integer, not a list"},
		{`{"properties":{"a":{"anyOf":[{"type":"string"},{"properties":{"b":{"type":"null"}}}]}}}`, `{"a":{"b":1}}`, "c.a.b: must be null, not a number"},
		{`{"properties":{"a":{"oneOf":[{"minimum":1},{"minimum":2}]}}}`, `{"a":3}`, "c.a: fits several of the forms of which exactly one may fit"},
		{`{"properties":{"a":{"oneOf":[{"minimum":1},{"multipleOf":2}]}}}`, `{"a":-1}`, "c.a: fits none of the 2 forms that it may have"},
		{`{"if":{"required":["a"]},"then":{"required":["b"]},"else":{"required":["c"]}}`, `{"a":1}`, "c.b: is missing"},
		{`{"properties":{"a":true},"unevaluatedProperties":false}`, `{"a":1,"b":1}`, "c.b: nothing may stand here"},
		{`{"allOf":[{"$ref":"#/$defs/x"}],"$defs":{"x":{"required":["a"]}}}`, `{}`, "c.a: is missing"},
		{`false`, `{}`, "c: nothing may stand here"},
		{`true`, `{"a":1}`, ""},
		{`{"properties":{"a":{"$ref":"#"}},"additionalProperties":false}`, `{"a":{"a":{"b":1}}}`, "c.a.a.b: unknown field"},
	} {
		problems, err := compile(t, c.schema).Check(Config{Whole: []byte(c.config), Written: []byte(c.config), Field: "c"})
		got := ""
		if len(problems) > 0 {
			got = strings.ReplaceAll(problems[0].Field+": "+problems[0].Message, ", says the module's schema", "")
		}
		if err != nil || got != c.want || len(problems) > 1 {
			t.Errorf("%s %s\ngot  %q, %d, %v\nwant %q", c.schema, c.config, got, len(problems), err, c.want)
		}
	}
}

// TestUnusable: what is no schema is told, and nothing is fetched for one.
func TestUnusable(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		``:                        "not JSON",
		`[]`:                      "no object",
		`{} {}`:                   "something follows",
		"{\"title\":\"\xff\"}":    "UTF-8",
		`{"a":1,"a":2}`:           `duplicate key "a"`,
		`{"type":"strange"}`:      "no valid JSON Schema at /type",
		`{"maximum":1e999999999}`: "out of range",
		`{"multipleOf":` + strings.Repeat("1", 100) + `}`:              "out of range",
		`{"$ref":"https://schemas.example/x.json"}`:                    "nothing is fetched",
		`{"$ref":"file:///etc/passwd"}`:                                "nothing is fetched",
		`{"$ref":"other.json"}`:                                        "nothing is fetched",
		`{"$schema":"https://schemas.example/meta.json"}`:              "nothing is fetched",
		`{"$id":"file:///etc/","$ref":"passwd"}`:                       "nothing is fetched",
		`{"$ref":"#"}`:                                                 "without end",
		`{"allOf":[{"anyOf":[{"$ref":"#"}]}]}`:                         "without end",
		`{"$dynamicRef":"#a","$defs":{"a":{"$dynamicAnchor":"a"}}}`:    "$dynamicRef",
		`{"pattern":"(?=x)"}`:                                          "no valid JSON Schema at /pattern",
		`{"pattern":"(a{1000}){1000}"}`:                                "no valid JSON Schema at /pattern",
		`{"$ref":"#/$defs/none"}`:                                      "not found",
		strings.Repeat(`{"not":`, 70) + `{}` + strings.Repeat(`}`, 70): "nested deeper than 64",
		`{"title":"` + strings.Repeat("x", MaxSize) + `"}`:             "limit 262144",
		`{"enum":[1` + strings.Repeat(",1", maxValues) + `]}`:          "more than 8192 values",
	} {
		s, problem := Compile([]byte(text))
		if problem == nil || s != nil || problem.Code != chandler.CodeSchemaUnusable || !strings.Contains(problem.Error(), want) {
			t.Errorf("%.60s: got %v, want %q", text, problem, want)
		}
	}
}

// TestSecretNames: of what only secrets hold neither values nor names are told, but
// those names that the schema has itself.
func TestSecretNames(t *testing.T) {
	t.Parallel()
	s := compile(t, `{"properties":{"tokens":{"additionalProperties":{"type":"string"}},"known":{"type":"string"}},"additionalProperties":false,"minProperties":1}`)
	got, err := s.Check(Config{
		Whole:   []byte(`{"tokens":{"canary":7,"plain":7},"canary":1}`),
		Written: []byte(`{"tokens":{"plain":7}}`), Field: "c",
	})
	if err != nil {
		t.Fatal(err)
	}
	var fields []string
	for i := range got {
		fields = append(fields, got[i].Field)
		if strings.Contains(got[i].Error(), "canary") {
			t.Errorf("a name out of a secret is told: %v", got[i].Error())
		}
	}
	if want := []string{"c.*", "c.tokens.*", "c.tokens.plain"}; !reflect.DeepEqual(fields, want) {
		t.Errorf("got %q, want %q", fields, want)
	}
}

// TestHidden finds every value that some part calls write-only.
func TestHidden(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		schema, config string
		want           [][]string
	}{
		{basicAuth, `{"basic_auth_rules":[{"prefix":"/","credentials":["a","b"]}],"realm":"r"}`, [][]string{{"basic_auth_rules", "0", "credentials", "0"}, {"basic_auth_rules", "0", "credentials", "1"}}},
		{basicAuth, `{}`, nil},
		{`{"properties":{"a":{}}}`, `{"a":1}`, nil},
		{`{"writeOnly":true}`, `{"a":1}`, [][]string{{}}},
		{`{"patternProperties":{"^s_":{"writeOnly":true}},"additionalProperties":{"properties":{"p":{"writeOnly":true}}}}`, `{"s_1":1,"x":{"p":1,"q":2}}`, [][]string{{"s_1"}, {"x", "p"}}},
		{`{"anyOf":[{"properties":{"a":{"writeOnly":true}}},true]}`, `{"a":1}`, [][]string{{"a"}}},
		{`{"if":{"properties":{"k":{"const":1}}},"then":{"properties":{"a":{"writeOnly":true}}}}`, `{"k":2,"a":1}`, [][]string{{"a"}}},
		{`{"not":{"properties":{"a":{"writeOnly":true}}}}`, `{"a":1}`, nil},
		{`{"properties":{"next":{"$ref":"#"},"key":{"writeOnly":true}}}`, `{"next":{"next":{"key":1}}}`, [][]string{{"next", "next", "key"}}},
		{`{"prefixItems":[{"writeOnly":true}],"items":{"properties":{"a":{"writeOnly":true}}}}`, `[1,{"a":1}]`, [][]string{{"0"}, {"1", "a"}}},
		{`{"$schema":"http://json-schema.org/draft-07/schema#","items":[{},{"writeOnly":true}],"additionalItems":{"writeOnly":true}}`, `[1,2,3]`, [][]string{{"1"}, {"2"}}},
	} {
		if got := compile(t, c.schema).Hidden([]byte(c.config)); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s %s: got %q, want %q", c.schema, c.config, got, c.want)
		}
	}
}

// TestOutline says what there is to configure.
func TestOutline(t *testing.T) {
	t.Parallel()
	list, more := compile(t, basicAuth).Outline()
	var lines []string
	for _, p := range list {
		lines = append(lines, fmt.Sprint(p.Path, "|", p.Type, "|", p.Description, "|", p.Required, p.WriteOnly))
	}
	want := []string{
		"basic_auth_rules|list||true false",
		"basic_auth_rules[].credentials|list||true false",
		"basic_auth_rules[].prefix|string|The paths that are guarded.|true false",
		"basic_auth_rules[].request_methods|list||false false",
		"basic_auth_rules[].retries|integer||false false",
		"realm|string||false false",
	}
	if !reflect.DeepEqual(lines, want) || more {
		t.Errorf("got %q, %v", lines, more)
	}
	if list, more := compile(t, `{"properties":{"a":{"$ref":"#"}}}`).Outline(); len(list) != maxOutlineDepth || !more {
		t.Errorf("of a recursive schema %d fields are listed, more %v", len(list), more)
	}
	if list, _ := compile(t, `{"properties":{"a":{"enum":["x",1]},"b":{"type":["string","null"]},"c":{"const":true}}}`).Outline(); list[0].Type != `one of "x", 1` || list[1].Type != "null or string" || list[2].Type != "true" {
		t.Errorf("types: %v", list)
	}
}
