package schema

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

// FuzzSchema: whatever an artifact carries, it is of use or not; judging by it comes
// to an end, says the same twice, shows no value of the configuration, and hides only
// what is there.
func FuzzSchema(f *testing.F) {
	f.Add(basicAuth, `{"basic_auth_rules":[{"prefix":"canary","credentials":["canary"]}]}`)
	f.Add(`{"$ref":"#/$defs/a","$defs":{"a":{"properties":{"b":{"$ref":"#"}}}}}`, `{"b":{"b":1}}`)
	f.Add(`{"anyOf":[{"type":"string"},{"not":{"const":"canary"}}],"writeOnly":true}`, `"canary"`)
	f.Add(`{"$schema":"http://json-schema.org/draft-07/schema#","items":[{"format":"uri"},{"enum":[1,2]}],"additionalItems":false}`, `["canary",3,4]`)
	f.Add(`{"patternProperties":{"(a|b)*c":{"minimum":1e300}},"unevaluatedProperties":{"pattern":"x{3}"}}`, `{"aac":1e-300,"z":"canary"}`)
	f.Add(`{"$id":"file:///a/b","$anchor":"x","if":{"$ref":"#x2"},"then":{"$anchor":"x2"}}`, `{}`)
	f.Fuzz(func(t *testing.T, text, config string) {
		s, problem := Compile([]byte(text))
		if problem != nil {
			if problem.Message == "" {
				t.Error("nothing is said")
			}
			return
		}
		s.Outline()
		var v any
		if len(config) > 4<<10 || json.Unmarshal([]byte(config), &v) != nil || strings.Contains(config, "e") && strings.ContainsAny(config, "0123456789") {
			return // package source writes none with such numbers
		}
		check := func() ([]string, bool) {
			problems, err := s.Check(Config{Whole: []byte(config), Field: "c"})
			var said []string
			for i := range problems {
				said = append(said, problems[i].Error())
			}
			return said, err != nil
		}
		one, failed := check()
		two, again := check()
		if failed != again || !failed && !reflect.DeepEqual(one, two) {
			t.Errorf("said first %q, then %q", one, two)
		}
		if !strings.Contains(text, "canary") && strings.Contains(strings.Join(one, " "), "canary") {
			t.Errorf("a value is shown: %q", one)
		}
		for _, at := range s.Hidden([]byte(config)) {
			if value(v, at) == nil && !strings.Contains(config, "null") {
				t.Errorf("hidden is %q, which is not there", at)
			}
		}
	})
}
