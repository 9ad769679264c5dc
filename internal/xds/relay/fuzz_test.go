package relay

import (
	"bytes"
	"testing"
)

// Whatever comes is read or refused, and what was read is written so that it is read as
// the same.
func FuzzMessages(f *testing.F) {
	for _, delta := range []bool{false, true} {
		p := Response{Type: clusterType, Version: "1", Nonce: "2", Items: []*Item{item(delta, clusterType, "a", "1", "1")}, Removed: []string{"b"}}
		q := Request{Type: clusterType, Subscribe: []string{"a"}, Held: map[string]string{"a": "1"}, Error: []byte{}}
		f.Add(p.Bytes(delta), delta)
		f.Add(q.Bytes(delta), delta)
	}
	f.Fuzz(func(t *testing.T, b []byte, delta bool) {
		if q, err := ReadRequest(b, delta); err == nil {
			once := q.Bytes(delta)
			again, err := ReadRequest(once, delta)
			if err != nil || !bytes.Equal(again.Bytes(delta), once) {
				t.Errorf("request %x is read another time as %x (%v)", once, again.Bytes(delta), err)
			}
		}
		p, err := ReadResponse(b, delta)
		if err != nil {
			return
		}
		once := p.Bytes(delta)
		again, err := ReadResponse(once, delta)
		if err != nil || !bytes.Equal(again.Bytes(delta), once) {
			t.Errorf("response %x is read another time as %x (%v)", once, again.Bytes(delta), err)
		}
		for _, it := range p.Items {
			edited := it.with(delta, []byte("body"))
			if got, err := readItem(edited.Raw, delta); err != nil || !bytes.Equal(got.body(delta), []byte("body")) {
				t.Errorf("%x edited is %x (%v)", it.Raw, edited.Raw, err)
			}
		}
	})
}

func FuzzView(f *testing.F) {
	r := New(Hooks{})
	s := r.shelf(shelfKey{extensionType, true})
	s.known, s.version = true, "1"
	s.items["a"] = &kept{item: item(true, extensionType, "a", "1", "1")}
	s.refused["b"] = refusal{item(true, extensionType, "b", "1", "1"), []byte{}}
	written := func(v View) []byte {
		var b bytes.Buffer
		if _, err := v.WriteTo(&b); err != nil {
			f.Fatal(err)
		}
		return b.Bytes()
	}
	f.Add(written(r.Views()[0]))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := ReadView(b)
		if err != nil {
			return
		}
		once := written(v)
		again, err := ReadView(once)
		if err != nil || !bytes.Equal(written(again), once) {
			t.Errorf("%x is read another time as %x (%v)", once, written(again), err)
		}
		New(Hooks{}).Restore([]View{v})
	})
}
