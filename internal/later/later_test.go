package later_test

import (
	"testing"

	"chandler.dev/chandler/internal/later"
)

type key struct{ Name string }

type file struct {
	Format int `json:"format"`
	key
	Inner *key           `json:"inner,omitempty"`
	Times map[string]int `json:"times,omitempty"`
}

// Fields that are not known go over into what is written anew, in one order; those that
// are known do not, also when they are there no more, or have more in them.
func TestFieldsGoOver(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ before, next, want string }{
		{`{"format":1,"Name":"a"}`, `{"format":1,"Name":"b"}`, `{"format":1,"Name":"b"}`},
		{`{"z":{"deep":[1, 2]},"format":1,"inner":{"Name":"x","more":1},"times":{"a":1},"a":null}`, `{"format":1}`, `{"format":1,"a":null,"z":{"deep":[1, 2]}}`},
		{`{"FORMAT":2,"name":"x","\u003c\"":1}`, "{\n  \"format\": 1\n}\n", "{\n  \"format\": 1,\"\\u003c\\\"\":1}"},
		{`{"a":1}`, `{}`, `{"a":1}`},
		{`[1]`, `{"format":1}`, `{"format":1}`},
		{`torn`, `{"format":1}`, `{"format":1}`},
		{``, `{"format":1}`, `{"format":1}`},
	} {
		got, err := later.Of([]byte(c.before), file{}).AddTo([]byte(c.next))
		if err != nil || string(got) != c.want {
			t.Errorf("%s over %s gives %s, %v; want %s", c.next, c.before, got, err, c.want)
		}
	}
}
