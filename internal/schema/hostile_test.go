package schema

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// chain gives n definitions, each made of the next by a form with its reference in
// place of @, and a reference to the first.
func chain(n int, form, last string) string {
	var b strings.Builder
	b.WriteString(`{"$schema":"http://json-schema.org/draft-07/schema#","not":{"$ref":"#/definitions/d0"},"definitions":{`)
	for i := range n {
		fmt.Fprintf(&b, `"d%d":%s,`, i, strings.ReplaceAll(form, "@", fmt.Sprintf(`{"$ref":"#/definitions/d%d"}`, i+1)))
	}
	fmt.Fprintf(&b, `"d%d":%s}}`, n, last)
	return b.String()
}

func repeat(n int, item, between string) string {
	return strings.TrimSuffix(strings.Repeat(item+between, n), between)
}

// TestHostile: whatever a schema asks for, it is answered within bounds; what would
// take longer is a reason not to judge by it.
func TestHostile(t *testing.T) {
	t.Parallel()
	nested := strings.Repeat(`{"a":`, 30) + "1" + strings.Repeat("}", 30)
	lists := strings.Repeat("[", 30) + "1" + strings.Repeat("]", 30)
	many := `{"a":[` + repeat(30_000, "7", ",") + `]}`
	for name, c := range map[string]struct {
		schema, config string
		unusable       bool
	}{
		"allOf":               {chain(25, `{"allOf":[@,@]}`, `{"type":"object"}`), `{}`, true},
		"anyOf that fails":    {chain(25, `{"anyOf":[@,@]}`, `{"required":["x"]}`), `{}`, true},
		"dependencies":        {chain(25, `{"dependencies":{"a":@,"b":@}}`, `{"required":["x"]}`), `{"a":1,"b":1}`, true},
		"if":                  {chain(20, `{"if":@,"then":@,"else":@}`, `true`), `{}`, true},
		"patterns":            {chain(25, `{"patternProperties":{"a":@,".":@,"":@}}`, `{"type":"null"}`), nested, true},
		"patterns, recursive": {`{"not":{"$ref":"#/$defs/d"},"$defs":{"d":{"patternProperties":{"a":{"$ref":"#/$defs/d"},".":{"$ref":"#/$defs/d"}}}}}`, nested, true},
		"items":               {`{"not":{"$ref":"#/$defs/d"},"$defs":{"d":{"items":{"$ref":"#/$defs/d"},"contains":{"$ref":"#/$defs/d"},"minItems":2}}}`, lists, true},
		"long chain":          {chain(100, `{"allOf":[@]}`, `true`), `{}`, true},
		"deep":                {chain(18, `{"allOf":[{"not":@}]}`, `{"additionalProperties":{"$ref":"#/definitions/d0"}}`), nested, false},
		"enum":                {`{"properties":{"a":{"items":{"enum":[` + repeat(8000, `"x"`, ",") + `]}}}}`, many, false},
		"required":            {`{"properties":{"a":{"items":{"type":["object","number"],"required":[` + names(8000) + `]}}}}`, `{"a":[` + repeat(30_000, "{}", ",") + `]}`, true},
		"unevaluated":         {`{"properties":{"a":{"unevaluatedItems":true,"allOf":[` + repeat(4000, "{}", ",") + `]}}}`, many, true},
		"unique":              {`{"properties":{"a":{"uniqueItems":true}}}`, `{"a":[` + numbers(20_000) + `]}`, false},
		"pattern":             {`{"properties":{"a":{"pattern":"(a?){1000}(a?){1000}b"}}}`, `{"a":"` + strings.Repeat("a", 120<<10) + `"}`, true},
		"many patterns":       {`{"patternProperties":{` + patterns(1000) + `}}`, `{` + fields(8000) + `}`, true},
		"odd references":      {`{"x":{"y":[` + repeat(2000, "{}", ",") + `]},"allOf":[` + references(2000) + `]}`, `{}`, true},
		"some odd references": {`{"x":{"y":[` + repeat(2000, "{}", ",") + `]},"allOf":[` + references(500) + `]}`, `{}`, false},
		"identifiers":         {`{"$defs":{` + identifiers(2000) + `}}`, `{}`, false},
		"definitions":         {`{"$defs":{` + definitions(8000) + `}}`, `{}`, false},
		"properties":          {`{"properties":{` + definitions(8000) + `}}`, `{` + fields(8000) + `}`, false},
		"nested":              {strings.Repeat(`{"not":`, 60) + `{}` + strings.Repeat("}", 60), `{}`, false},
		"large description":   {`{"description":"` + strings.Repeat("x", 200<<10) + `"}`, `{}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			s, problem := Compile([]byte(c.schema))
			compiled := time.Since(began)
			refused := problem != nil
			if s != nil {
				_, err := s.Check(Config{Whole: []byte(c.config), Field: "c"})
				refused = err != nil
				s.Hidden([]byte(c.config))
			}
			t.Logf("compiled in %v, all in %v", compiled, time.Since(began))
			if refused != c.unusable {
				t.Errorf("of use: %v, want %v (%v)", !refused, !c.unusable, problem)
			}
			// What is not bounded takes hours; a busy machine with the race detector, half a minute.
			if took := time.Since(began); took > 3*time.Minute {
				t.Errorf("it took %v", took)
			}
		})
	}
}

func generate(n int, form string) string {
	var all []string
	for i := range n {
		all = append(all, strings.ReplaceAll(form, "@", fmt.Sprint(i)))
	}
	return strings.Join(all, ",")
}

func names(n int) string       { return generate(n, `"n@"`) }
func numbers(n int) string     { return generate(n, `@`) }
func fields(n int) string      { return generate(n, `"n@":1`) }
func definitions(n int) string { return generate(n, `"n@":{}`) }
func patterns(n int) string    { return generate(n, `"^(x|y)*@$":{}`) }
func references(n int) string  { return generate(n, `{"$ref":"#/x/y/@"}`) }
func identifiers(n int) string { return generate(n, `"n@":{"$id":"n@"}`) }
