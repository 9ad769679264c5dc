package schema

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// shaped is a schema of a few keywords, whose meaning is easily computed.
func shaped(depth int) *rapid.Generator[map[string]any] {
	return rapid.Custom(func(t *rapid.T) map[string]any {
		s := map[string]any{"writeOnly": rapid.IntRange(0, 5).Draw(t, "secret") == 0}
		switch kind := rapid.IntRange(0, 4).Draw(t, "kind"); {
		case kind == 0 && depth > 0:
			s["type"] = "array"
			s["items"] = shaped(depth-1).Draw(t, "items")
		case kind <= 2 && depth > 0:
			s["type"] = "object"
			s["properties"] = rapid.MapOfN(rapid.SampledFrom([]string{"a", "b", "c"}), asAny(shaped(depth-1)), 0, 3).Draw(t, "properties")
			s["required"] = rapid.SliceOfNDistinct(rapid.SampledFrom([]any{"a", "b"}), 0, 2, func(v any) any { return v }).Draw(t, "required")
			s["additionalProperties"] = rapid.Bool().Draw(t, "open")
		case kind == 3:
			s["enum"] = []any{"one", 2.0, nil}
		default:
			s["type"] = rapid.SampledFrom([]string{"string", "number", "boolean"}).Draw(t, "type")
		}
		return s
	})
}

func asAny(g *rapid.Generator[map[string]any]) *rapid.Generator[any] {
	return rapid.Map(g, func(m map[string]any) any { return m })
}

// valued is a value; its strings but one are canaries.
func valued(depth int) *rapid.Generator[any] {
	return rapid.Custom(func(t *rapid.T) any {
		switch kind := rapid.IntRange(0, 7).Draw(t, "kind"); {
		case kind == 0 && depth > 0:
			return rapid.SliceOfN(valued(depth-1), 0, 3).Draw(t, "list")
		case kind <= 3 && depth > 0:
			return rapid.MapOfN(rapid.SampledFrom([]string{"a", "b", "c", "d"}), valued(depth-1), 0, 3).Draw(t, "object")
		case kind == 4:
			return rapid.SampledFrom([]any{"one", 2.0, nil, true}).Draw(t, "plain")
		case kind == 5:
			return 6666.0
		}
		return "canary"
	})
}

// wrong gives the places at which a value is not as such a schema has it.
func wrong(s map[string]any, v any, at string) []string {
	if choices, ok := s["enum"].([]any); ok {
		switch v.(type) {
		case map[string]any, []any:
			return []string{at}
		}
		if !slices.Contains(choices, v) {
			return []string{at}
		}
		return nil
	}
	switch v := v.(type) {
	case map[string]any:
		if s["type"] != "object" {
			return []string{at}
		}
		var all []string
		properties := s["properties"].(map[string]any)
		for _, name := range s["required"].([]any) {
			if _, ok := v[name.(string)]; !ok {
				all = append(all, at+"."+name.(string))
			}
		}
		for name, value := range v {
			if p, ok := properties[name]; ok {
				all = append(all, wrong(p.(map[string]any), value, at+"."+name)...)
			} else if s["additionalProperties"] == false {
				all = append(all, at+"."+name)
			}
		}
		return all
	case []any:
		if s["type"] != "array" {
			return []string{at}
		}
		var all []string
		for i := range v {
			all = append(all, wrong(s["items"].(map[string]any), v[i], fmt.Sprintf("%s[%d]", at, i))...)
		}
		return all
	}
	want := map[string]string{"string": "string", "float64": "number", "bool": "boolean"}[fmt.Sprintf("%T", v)]
	if s["type"] != want {
		return []string{at}
	}
	return nil
}

// hidden gives the places at which such a schema hides a value.
func hidden(s map[string]any, v any, at []string) [][]string {
	if s["writeOnly"] == true {
		return [][]string{append([]string{}, at...)}
	}
	var all [][]string
	switch v := v.(type) {
	case map[string]any:
		properties, _ := s["properties"].(map[string]any)
		for _, name := range slices.Sorted(maps.Keys(v)) {
			if p, ok := properties[name].(map[string]any); ok {
				all = append(all, hidden(p, v[name], append(at, name))...)
			}
		}
	case []any:
		if items, ok := s["items"].(map[string]any); ok {
			for i := range v {
				all = append(all, hidden(items, v[i], append(at, fmt.Sprint(i)))...)
			}
		}
	}
	return all
}

// TestAgreesWithMeaning: the mistakes are those, and where they are, and what is
// hidden is what is to be; and no word shows a value.
func TestAgreesWithMeaning(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s, v := shaped(3).Draw(t, "schema"), valued(4).Draw(t, "value")
		text, config := encode(t, s), encode(t, v)
		compiled, problem := Compile(text)
		if problem != nil {
			t.Fatalf("%s: %v", text, problem)
		}
		problems, err := compiled.Check(Config{Whole: config, Written: config, Field: "c"})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for i := range problems {
			got = append(got, problems[i].Field)
			if said := problems[i].Error(); strings.Contains(said, "canary") || strings.Contains(said, "6666") {
				t.Errorf("a value is shown: %s", said)
			}
		}
		want := wrong(s, v, "c")
		slices.Sort(want)
		want = slices.Compact(want)
		if want = want[:min(len(want), maxProblems)]; !slices.Equal(got, want) {
			t.Errorf("schema %s, value %s: wrong at %q, want %q", text, config, got, want)
		}
		if got, want := compiled.Hidden(config), hidden(s, v, nil); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("schema %s, value %s: hidden are %q, want %q", text, config, got, want)
		}
	})
}

func encode(t *rapid.T, v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestDecimal: what is one number is spelled in one way, and what is not is not.
func TestDecimal(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		digits, zeros, shift := rapid.IntRange(-9999, 9999).Draw(t, "digits"), rapid.IntRange(0, 5).Draw(t, "zeros"), rapid.IntRange(-20, 20).Draw(t, "shift")
		other := rapid.IntRange(-9999, 9999).Draw(t, "other")
		one := fmt.Sprintf("%de%d", digits, shift)
		two := fmt.Sprintf("%d%s.0E%d", digits, strings.Repeat("0", zeros), shift-zeros)
		if decimal(one) != decimal(two) {
			t.Errorf("%s is %s, %s is %s", one, decimal(one), two, decimal(two))
		}
		if (decimal(one) == decimal(fmt.Sprintf("%de%d", other, shift))) != (digits == other) {
			t.Errorf("%d and %d, both e%d", digits, other, shift)
		}
	})
}
