package rules

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// oneRule gives a configuration with one rule, made of a good one's fields and of
// the given ones, which win.
func oneRule(fields string) string {
	return `{"basic_auth_rules":[{"request_methods":["GET"],"credentials":["u:p"],` + fields + `}]}`
}

func credential(c string) string { return oneRule(`"prefix":"/","credentials":[` + c + `]`) }

// configurations are judged by the parser and, where they are JSON, by the schema.
var configurations = []struct {
	name, text string
	refused    string // how the error begins; empty: accepted
}{
	{"none at all", ``, ""},
	{"empty object", `{}`, ""},
	{"white space around", " \t\r\n{ } \n", ""},
	{"only white space", ` `, "not valid JSON at byte 1: it ends where there should be a value"},
	{"not JSON", `basic_auth_rules: []`, "not valid JSON at byte 0: there should be a value"},
	{"JSON cut short", `{"realm":"x"`, "not valid JSON at byte 12: it ends"},
	{"JSON with a tail", `{} {}`, "not valid JSON at byte 3: more text"},
	{"trailing comma", `{"realm":"x",}`, "not valid JSON at byte 13: there should be a name"},
	{"array", `[]`, "must be a JSON object, not an array"},
	{"string", `"x"`, "must be a JSON object, not a string"},
	{"number", `-1.5e3`, "must be a JSON object, not a number"},
	{"boolean", `true`, "must be a JSON object, not a boolean"},
	{"null", `null`, "must be a JSON object, not null"},
	{"not UTF-8", "{\"realm\":\"\xff\"}", "not valid JSON at byte 10: not UTF-8"},
	{"half a surrogate pair", `{"realm":"\ud83d"}`, "not valid JSON at byte 16: half of a surrogate pair"},
	{"bottomless", strings.Repeat("[", 1<<20), "not valid JSON at byte 101: nested too deeply"},

	{"unknown fields", `{"basic_auth_rule":1,"x":{"y":[1e999,false]}}`, ""},
	{"names in another case are unknown", `{"Basic_Auth_Rules":1,"REALM":1}`, ""},
	{"unknown field in a rule", oneRule(`"prefix":"/","comment":null`), ""},
	{"the last of equal names counts", `{"realm":1,"realm":"x"}`, ""},

	{"realm", `{"realm":"my own  realm"}`, ""},
	{"realm empty", `{"realm":""}`, ""},
	{"realm a number", `{"realm":1}`, "realm: must be a string, not a number"},
	{"realm null", `{"realm":null}`, "realm: must be a string, not null"},
	{"realm with a line break", `{"realm":"a\r\nSet-Cookie: x"}`, "realm: must not contain control characters"},

	{"rules empty", `{"basic_auth_rules":[]}`, ""},
	{"rules an object", `{"basic_auth_rules":{}}`, "basic_auth_rules: must be an array, not a JSON object"},
	{"rules null", `{"basic_auth_rules":null}`, "basic_auth_rules: must be an array, not null"},
	{"rule a string", `{"basic_auth_rules":["/"]}`, "basic_auth_rules[0]: must be a JSON object, not a string"},

	{"prefix", oneRule(`"prefix":"/"`), ""},
	{"exact", oneRule(`"exact":"/"`), ""},
	{"suffix", oneRule(`"suffix":"/"`), ""},
	{"no path", oneRule(`"hosts":[]`), "basic_auth_rules[0]: exactly one of prefix, exact and suffix is required, and there is none"},
	{"two paths", oneRule(`"prefix":"/","suffix":"/"`), "basic_auth_rules[0]: exactly one of prefix, exact and suffix is required, and there are prefix and suffix"},
	{"three paths", oneRule(`"prefix":"/","exact":"/","suffix":"/"`), "basic_auth_rules[0]: exactly one"},
	{"prefix a list", oneRule(`"prefix":["/"]`), "basic_auth_rules[0].prefix: must be a string, not an array"},
	{"prefix null beside exact", oneRule(`"prefix":null,"exact":"/"`), "basic_auth_rules[0].prefix: must be a string, not null"},
	{"prefix empty (differs)", oneRule(`"prefix":""`), "basic_auth_rules[0].prefix: must not be empty"},
	{"exact empty (differs)", oneRule(`"exact":""`), "basic_auth_rules[0].exact: must not be empty"},
	{"suffix empty (differs)", oneRule(`"suffix":""`), "basic_auth_rules[0].suffix: must not be empty"},

	{"hosts", oneRule(`"prefix":"/","hosts":["a","*b","c*","*"]`), ""},
	{"hosts empty", oneRule(`"prefix":"/","hosts":[]`), ""},
	{"hosts a string", oneRule(`"prefix":"/","hosts":"a"`), "basic_auth_rules[0].hosts: must be an array, not a string"},
	{"host a number", oneRule(`"prefix":"/","hosts":["a",1]`), "basic_auth_rules[0].hosts[1]: must be a string, not a number"},

	{"methods absent", `{"basic_auth_rules":[{"prefix":"/","credentials":["u:p"]}]}`, "basic_auth_rules[0].request_methods: is required"},
	{"methods empty", oneRule(`"prefix":"/","request_methods":[]`), "basic_auth_rules[0].request_methods: must not be empty"},
	{"methods a string", oneRule(`"prefix":"/","request_methods":"GET"`), "basic_auth_rules[0].request_methods: must be an array, not a string"},
	{"method a number", oneRule(`"prefix":"/","request_methods":[1]`), "basic_auth_rules[0].request_methods[0]: must be a string, not a number"},

	{"credentials absent", `{"basic_auth_rules":[{"prefix":"/","request_methods":["GET"]}]}`, "basic_auth_rules[0].credentials: is required"},
	{"credentials empty", credential(``), "basic_auth_rules[0].credentials: must not be empty"},
	{"credentials a string", oneRule(`"prefix":"/","credentials":"u:p"`), "basic_auth_rules[0].credentials: must be an array, not a string"},
	{"credential null", credential(`"u:p",null`), "basic_auth_rules[0].credentials[1]: must be a string, not null"},
	{"credential plain", credential(`"admin:admin"`), ""},
	{"credential encoded", credential(`"YWRtaW46YWRtaW4="`), ""},
	{"credential encoded without padding", credential(`"YWRtaW4"`), ""},
	{"credential only a colon", credential(`":"`), ""},
	{"credential a colon and what is no base64", credential(`"!!:!!"`), ""},
	{"credential empty", credential(`""`), "basic_auth_rules[0].credentials[0]: must be user:password, or the base64 of it"},
	{"credential no base64", credential(`"!!"`), "basic_auth_rules[0].credentials[0]: must be user:password"},
	{"credential of impossible length", credential(`"YWRtaW4zO"`), "basic_auth_rules[0].credentials[0]: must be user:password"},
	{"credential decodes to nothing", credential(`"=="`), "basic_auth_rules[0].credentials[0]: must be user:password"},
	{"credential in the URL alphabet", credential(`"-_-_"`), "basic_auth_rules[0].credentials[0]: must be user:password"},
	{"credential on two lines", credential(`"YWRt\nYWRt"`), "basic_auth_rules[0].credentials[0]: must be user:password"},

	{"fault in the second rule", `{"basic_auth_rules":[{"prefix":"/","request_methods":["GET"],"credentials":["u:p"]},{"exact":"/"}]}`,
		"basic_auth_rules[1].request_methods: is required"},
}

func TestConfiguration(t *testing.T) {
	t.Parallel()
	for _, c := range configurations {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r, err := Parse([]byte(c.text))
			if c.refused == "" {
				if err != nil || r == nil {
					t.Fatalf("accepted is what it should be, but: %v", err)
				}
				return
			}
			if err == nil {
				t.Fatal("it was accepted")
			}
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Errorf("the error is a %T", err)
			}
			if !strings.HasPrefix(err.Error(), c.refused) {
				t.Errorf("reason:\n  %v\nwant:\n  %s...", err, c.refused)
			}
		})
	}
}

// The schema is what editors and other tools see. It must judge as the parser does.
func TestSchemaAgreesWithParser(t *testing.T) {
	t.Parallel()
	schema, err := jsonschema.NewCompiler().Compile("../config.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range configurations {
		document, err := jsonschema.UnmarshalJSON(strings.NewReader(c.text))
		if err != nil || strings.Contains(c.refused, "not valid JSON") {
			continue // no JSON: beyond a schema
		}
		if err := schema.Validate(document); (err == nil) != (c.refused == "") {
			t.Errorf("%s: the parser says %q, the schema %v", c.name, c.refused, err)
		}
	}
}

// FuzzParse holds the parser against the standard library's and its refusals
// against their promises: one short line that repeats nothing it was given.
func FuzzParse(f *testing.F) {
	for _, c := range configurations {
		if len(c.text) < 1000 {
			f.Add([]byte(c.text))
		}
	}
	f.Add([]byte(`{"realm":"\ud83d\ude00\b\f\/\u00e9"}`))
	f.Add([]byte("\"\uFFFD\""))
	f.Fuzz(func(t *testing.T, text []byte) {
		again := string(text)
		r, err := Parse(text)
		if string(text) != again {
			t.Fatal("the input was changed")
		}
		if (r == nil) == (err == nil) {
			t.Fatalf("rules %v, error %v", r, err)
		}
		if err != nil {
			checkRefusal(t, err)
		} else {
			checkRules(t, r)
		}
		checkJSON(t, text)
	})
}

func checkRefusal(t *testing.T, err error) {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("the error is a %T", err)
	}
	if len(err.Error()) > 200 || strings.ContainsAny(err.Error(), "\r\n") {
		t.Errorf("not one short line: %q", err)
	}
	known := strings.NewReplacer("basic_auth_rules", "", "request_methods", "", "credentials", "", "hosts", "",
		"realm", "", "prefix", "", "exact", "", "suffix", "")
	if strings.Trim(known.Replace(e.Field), ".[]0123456789") != "" {
		t.Errorf("the field quotes the configuration: %q", e.Field)
	}
}

// checkRules: what was accepted guards something and can be satisfied.
func checkRules(t *testing.T, r *Rules) {
	if strings.ContainsAny(r.Challenge(), "\r\n\x00") {
		t.Errorf("challenge %q", r.Challenge())
	}
	for method, list := range r.byMethod {
		for _, rule := range list {
			if rule.path.pattern == "" || len(rule.credentials) == 0 {
				t.Fatalf("%s: a rule without effect: %+v", method, rule)
			}
			for _, c := range rule.credentials {
				if d := rule.admit("Basic " + string(c)); d != Pass {
					t.Errorf("credential %q: %s", c, d)
				}
			}
			if !rule.guards("", rule.path.pattern) && len(rule.hosts) == 0 {
				t.Errorf("a rule without hosts does not guard its own path %q", rule.path.pattern)
			}
		}
	}
}

func checkJSON(t *testing.T, text []byte) {
	got, err := decodeJSON(string(text))
	if err == nil {
		var want any
		d := json.NewDecoder(strings.NewReader(string(text)))
		d.UseNumber()
		if err := d.Decode(&want); err != nil || !json.Valid(text) {
			t.Fatalf("accepted what the standard library refuses: %v", err)
		}
		if want = plain(want); !reflect.DeepEqual(got, want) {
			t.Fatalf("got  %#v\nwant %#v", got, want)
		}
		return
	}
	stricter := !utf8.Valid(text) || strings.HasSuffix(err.Error(), "half of a surrogate pair") || strings.HasSuffix(err.Error(), "nested too deeply")
	if json.Valid(text) && !stricter {
		t.Fatalf("refused what the standard library accepts: %v", err)
	}
}

// plain forgets what numbers are worth.
func plain(v any) any {
	switch v := v.(type) {
	case json.Number:
		return number{}
	case []any:
		for i := range v {
			v[i] = plain(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = plain(v[k])
		}
	}
	return v
}

func TestJSONReadsWhatIsMeant(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		`{"a":[1,-0,0.5,1e9,2E-3,true,false,null,"x"],"b":{},"c":[]}`,
		`"\"\\\/\b\f\n\r\t\u00e9\u4e2d\ud83d\ude00"`,
		"\"\uFFFD \u2028\"", `""`, ` [ ] `,
		`01`, `1.`, `.1`, `+1`, `1e`, `-`, `nul`, `[1,]`, `{"a"}`, `{"a":}`, `{1:2}`, `"\x"`, `"\u12"`, "\"\n\"", `"`, `"\`, "\x00", "1\x00", "[\x00]",
	} {
		t.Run(fmt.Sprintf("%q", text), func(t *testing.T) {
			t.Parallel()
			checkJSON(t, []byte(text))
		})
	}
}
