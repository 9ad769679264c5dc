package record

import (
	"encoding/json"
	"errors"
	"testing"

	"chandler.dev/chandler"
)

func seedJSON(f *testing.F, v any) {
	f.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
}

// FuzzDecodeRelease: what is taken for a release has the id of its content, and is
// the same when it is written and read again.
func FuzzDecodeRelease(f *testing.F) {
	r := chandler.Release{Format: Format, Key: chandler.Key{Kind: "WasmPlugin", Namespace: "a", Name: "b"}, UID: "u", Generation: 1}
	seedJSON(f, r.WithID())
	seedJSON(f, r)
	f.Add([]byte(`{"Format":2}`))
	f.Add([]byte(`{"Format":1,"Later":true}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRelease(b)
		if err != nil {
			return
		}
		if r.ID != r.WithID().ID || r.Format != Format {
			t.Fatalf("%+v", r)
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := DecodeRelease(again); err != nil || s.ID != r.ID {
			t.Fatalf("%s: %v", again, err)
		}
	})
}

// FuzzDecodeRollout: what is taken for a rollout is the same when it is written and
// read again, and a change of it has the next revision.
func FuzzDecodeRollout(f *testing.F) {
	seedJSON(f, Rollout{Format: Format, UID: "u", Revision: 3, Key: chandler.Key{Kind: "WasmPlugin", Namespace: "a", Name: "b"}})
	f.Add([]byte(`{"Format":1,"UID":"u","Revision":-1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRollout(b)
		if err != nil {
			return
		}
		first, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		s, err := DecodeRollout(first)
		if err != nil {
			t.Fatalf("%s: %v", first, err)
		}
		if second, err := json.Marshal(s); err != nil || string(second) != string(first) {
			t.Fatalf("%s\nthen %s %v", first, second, err)
		}
		next, err := swap(&s, &r, r)
		if err != nil || next.Revision != r.Revision+1 {
			t.Fatalf("%+v: %v", next, err)
		}
		old := r
		old.Revision--
		if _, err := swap(&s, &old, r); !errors.Is(err, ErrConflict) {
			t.Fatalf("an older one wins: %v", err)
		}
	})
}
