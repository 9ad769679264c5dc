package strict

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	yaml "go.yaml.in/yaml/v3"
	"pgregory.net/rapid"

	"chandler.dev/chandler"
)

// number may be written as one, as a list, or as an object.
type number struct {
	One  int
	List []int
	Name string `yaml:"name"`
}

func (n *number) Form(kind yaml.Kind) any {
	switch kind {
	case yaml.ScalarNode:
		return &n.One
	case yaml.SequenceNode:
		return &n.List
	case yaml.MappingNode:
		type object number
		return (*object)(n)
	}
	return nil
}

func (n *number) Check() []chandler.Problem {
	if n.One < 0 {
		return []chandler.Problem{*chandler.Problemf(chandler.CodeConfValue, "", "", "is negative")}
	}
	return nil
}

type onlyList struct{ list []Text }

func (l *onlyList) Form(kind yaml.Kind) any {
	if kind == yaml.SequenceNode {
		return &l.list
	}
	return nil
}

type sample struct {
	N    []number `yaml:"n"`
	List onlyList `yaml:"list"`
	Any  JSON     `yaml:"any"`
}

func TestForms(t *testing.T) {
	t.Parallel()
	var s sample
	if m := Decode([]byte("n: [3, [1, 2], {name: x}]\nlist: [1, true, 2026-01-01, x, 0x1f]\nany: {b: [1, 2.50, null, yes, 0x10, 'x'], a: <&>}\n"), &s, nil); m != nil {
		t.Fatal(&Error{Path: "f", Mistakes: m})
	}
	if s.N[0].One != 3 || len(s.N[1].List) != 2 || s.N[2].Name != "x" {
		t.Errorf("%+v", s.N)
	}
	if want := []Text{"1", "true", "2026-01-01", "x", "0x1f"}; len(s.List.list) != 5 || s.List.list[2] != want[2] || s.List.list[4] != want[4] {
		t.Errorf("%q", s.List.list)
	}
	if want := `{"a":"<&>","b":[1,2.50,null,true,16,"x"]}`; string(s.Any) != want {
		t.Errorf("%s\nwant %s", s.Any, want)
	}
}

func TestFormMistakes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"n: [x]\n":                       `f:1:5: n[0]: "x" does not belong here; write a whole number (ConfValue)`,
		"n: [{nam: x}]\n":                `f:1:6: n[0].nam: unknown key "nam"; here may stand name (ConfUnknown)`,
		"n: [1, -1]\n":                   `f:1:8: n[1]: is negative (ConfValue)`,
		"n: [[1, x]]\n":                  `f:1:9: n[0][1]: "x" does not belong here; write a whole number (ConfValue)`,
		"list: x\n":                      `f:1:7: list: "x" does not belong here; write a list (ConfValue)`,
		"list: [[x]]\n":                  `f:1:8: list[0]: a list does not belong here; write text (ConfValue)`,
		"any: {a: 1, b: {a: 1, a: 2}}\n": `f:1:23: any.b.a: the key is written twice; keep one of them (ConfParse)`,
		"any: [.inf]\n":                  `f:1:7: any[0]: ".inf" is nothing that JSON has; put it in quotes if it is text (ConfValue)`,
		"any: &x [*x]\n":                 `f:1:6: any: anchors and aliases are not accepted; write it out (ConfParse)`,
	} {
		m := Decode([]byte(text), new(sample), nil)
		if got := (&Error{Path: "f", Mistakes: m}).Error(); got != want {
			t.Errorf("%s got %s\nwant %s", text, got, want)
		}
	}
	if m := Decode([]byte("any: "+strings.Repeat("[", 500)+strings.Repeat("]", 500)), new(sample), nil); len(m) != 1 {
		t.Errorf("a deep nest: %v", m)
	}
}

// JSON is YAML, and means the same.
func TestJSONIsKept(t *testing.T) {
	t.Parallel()
	value := rapid.Deferred(func() *rapid.Generator[any] { return values(3) })
	rapid.Check(t, func(t *rapid.T) {
		b, err := json.Marshal(map[string]any{"any": value.Draw(t, "value")})
		if err != nil {
			t.Fatal(err)
		}
		var s sample
		if m := Decode(b, &s, nil); m != nil {
			if bytes.Equal(b, []byte(`{"any":null}`)) {
				return
			}
			t.Fatalf("%s: %v", b, &Error{Path: "f", Mistakes: m})
		}
		var want, got any
		if json.Unmarshal(b, &want) != nil || json.Unmarshal(s.Any, &got) != nil {
			t.Fatalf("%s became %s", b, s.Any)
		}
		again, _ := json.Marshal(map[string]any{"any": got})
		first, _ := json.Marshal(want)
		if !bytes.Equal(again, first) {
			t.Fatalf("%s became %s", first, again)
		}
	})
}

// Within JSON a plain word of YAML 1.1 for a boolean is one, as it is to kubectl; alone it is text.
func TestJSONHasSwitches(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"any: yes":                         `"yes"`,
		"any: [yes, 'yes', Off, oFF, n]":   `[true,"yes",false,"oFF",false]`,
		"any: {a: {on: on}, b: !!str off}": `{"a":{"on":true},"b":"off"}`,
	} {
		var s sample
		if m := Decode([]byte(text), &s, nil); m != nil || string(s.Any) != want {
			t.Errorf("%s became %s, want %s (%v)", text, s.Any, want, m)
		}
	}
}

func values(depth int) *rapid.Generator[any] {
	text := rapid.StringMatching(`[ -~éß]{0,8}`)
	plain := rapid.OneOf(rapid.Map(text, func(s string) any { return s }), rapid.Map(rapid.IntRange(-1e9, 1e9), func(n int) any { return n }),
		rapid.Map(rapid.Float64Range(-1e6, 1e6), func(f float64) any { return f }), rapid.Map(rapid.Bool(), func(b bool) any { return b }))
	if depth == 0 {
		return plain
	}
	inner := values(depth - 1)
	return rapid.OneOf(plain, rapid.Map(rapid.SliceOfN(inner, 0, 4), func(l []any) any { return l }),
		rapid.Map(rapid.MapOfN(text, inner, 0, 4), func(m map[string]any) any { return m }))
}
