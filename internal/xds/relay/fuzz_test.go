package relay

import (
	"bytes"
	"testing"
	"time"
)

// Whatever comes is read or refused, and what was read is written so that it is read as
// the same; the relay takes or refuses it, twice, and keeps nothing of the message.
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
		s := New(Hooks{}).Open(Kind{Delta: delta, Type: clusterType}, time.Time{})
		_ = s.FromEnvoy(Request{}, time.Time{})
		for range 2 {
			message := bytes.Clone(b)
			p, err := ScanResponse(message, delta)
			if p.Type = ""; err == nil {
				err = s.FromUpstream(p)
			}
			out := s.ToEnvoy(time.Time{})
			if _, whole := ReadResponse(b, delta); err != nil || out == nil {
				if err != nil && whole == nil {
					t.Errorf("%x is read, and not taken: %v", b, err)
				}
				break
			}
			before := out.Bytes(delta)
			clear(message)
			if !bytes.Equal(out.Bytes(delta), before) {
				t.Errorf("a part of %x was kept", b)
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
	f.Add([]byte("\x10\x01*\x06\x12\x010\x1a\x010\x12\x00")) // two protocols
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
