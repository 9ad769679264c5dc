package relay

import (
	"bufio"
	"bytes"
	"cmp"
	"io"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	"chandler.dev/chandler"
)

// View is what Envoy acknowledged last of one type: with all of them an Envoy and an agent
// that both start anew serve while the upstream is away. It holds the upstream's own bytes;
// transforms are applied when they are served.
type View struct {
	// Type is the type URL, Delta the protocol: the bytes of the two differ.
	Type  string
	Delta bool
	// Changes counts: two views of one relay, of the same type and protocol, with the same
	// count are the same.
	Changes uint64

	version string
	known   bool
	items   []*Item
	refused []refusal
}

// The fields of a view. Its resources are read as those of a response are.
const (
	viewType, viewDelta, viewVersion, viewKnown, viewResources protowire.Number = 1, 2, 3, 4, 5
	viewRefused, refusedResource, refusedStatus                protowire.Number = 6, 1, 2
)

// Changes counts what Envoy acknowledged that was not remembered before, and what was
// forgotten: Views gives something new when it has moved.
func (r *Relay) Changes() uint64 { return r.changes }

// Views gives what Envoy acknowledged last, in order of type. They share the bytes with the
// relay, so they are made at once, and written at any time.
func (r *Relay) Views() []View {
	var views []View
	for key, s := range r.memory {
		if len(s.items)+len(s.refused) == 0 && !s.known {
			continue
		}
		v := View{Type: key.typeURL, Delta: key.delta, Changes: s.changes, version: s.version, known: s.known, items: make([]*Item, 0, len(s.items))}
		for _, k := range s.items {
			v.items = append(v.items, k.item)
		}
		for _, no := range s.refused {
			v.refused = append(v.refused, no)
		}
		views = append(views, v)
	}
	slices.SortFunc(views, func(a, b View) int {
		if a.Type == b.Type && a.Delta != b.Delta && b.Delta {
			return -1
		}
		return cmp.Compare(a.Type, b.Type)
	})
	return views
}

// Find gives what the upstream says there is of a type under a name or, as long as it has
// not said so to this Envoy, what Envoy acknowledged. It must not be changed. Not ok: nothing.
func (r *Relay) Find(typeURL, name string) (body []byte, ok bool) {
	for s := range r.streams {
		if f := s.feeds[typeURL]; f != nil && f.entries[name] != nil && f.entries[name].up != nil {
			return f.entries[name].up.body(f.delta()), true
		}
	}
	for _, delta := range []bool{true, false} {
		if s := r.memory[shelfKey{typeURL, delta}]; s != nil && s.items[name] != nil {
			return s.items[name].item.body(delta), true
		}
	}
	return nil, false
}

// Restore takes what a relay before this one remembered. It is to be called before the
// first Open.
func (r *Relay) Restore(views []View) {
	for _, v := range views {
		s := r.shelf(shelfKey{v.Type, v.Delta})
		s.version, s.known, s.changes = v.version, v.known, v.Changes
		for _, it := range v.items {
			s.items[it.Name] = &kept{item: it}
			if leads[v.Type] {
				s.unread[it.Name] = true
			}
		}
		for _, no := range v.refused {
			s.refused[no.item.Name] = no
		}
	}
}

// Anew gives the view as it is for another upstream, or for the same one by another way: what
// it holds is served, and its versions say nothing, so that everything is sent again.
func (v View) Anew() View {
	v.items, v.refused = slices.Clone(v.items), slices.Clone(v.refused)
	for i, it := range v.items {
		v.items[i] = it.anew(v.Delta, it.body(v.Delta))
	}
	for i, no := range v.refused {
		v.refused[i].item = no.item.anew(v.Delta, no.item.body(v.Delta))
	}
	v.Changes++
	return v
}

// anew is with, of an item that is nobody's edit.
func (it *Item) anew(delta bool, body []byte) *Item {
	out := it.with(delta, body)
	out.from = nil
	return out
}

// Edited gives the view with resources in another form, in which they are served until the
// upstream is asked: their versions are others, so that it sends them again.
func (v View) Edited(edit func(body []byte) []byte) View {
	edited := func(it *Item) *Item {
		before := it.body(v.Delta)
		after := edit(before)
		if bytes.Equal(before, after) {
			return it
		}
		return it.anew(v.Delta, after)
	}
	v.items, v.refused = slices.Clone(v.items), slices.Clone(v.refused)
	for i, it := range v.items {
		v.items[i] = edited(it)
	}
	for i := range v.refused {
		v.refused[i].item = edited(v.refused[i].item)
	}
	return v
}

// Each gives the resources that Envoy has taken, which must not be changed.
func (v View) Each(is func(name string, body []byte)) {
	for _, it := range v.items {
		is(it.Name, it.body(v.Delta))
	}
}

// Len is how many resources a view has.
func (v View) Len() int { return len(v.items) + len(v.refused) }

// WriteTo writes the view as it is kept, a message of protocol buffers. The same content
// gives the same bytes.
func (v View) WriteTo(to io.Writer) (int64, error) {
	slices.SortFunc(v.items, func(a, b *Item) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(v.refused, func(a, b refusal) int { return cmp.Compare(a.item.Name, b.item.Name) })
	w := &counter{to: bufio.NewWriterSize(to, 64<<10)}
	head := appendText(nil, viewType, v.Type)
	head = appendFlag(head, viewDelta, v.Delta)
	head = appendText(head, viewVersion, v.version)
	w.write(appendFlag(head, viewKnown, v.known))
	field := func(num protowire.Number, content []byte) {
		head = protowire.AppendVarint(protowire.AppendTag(head[:0], num, protowire.BytesType), uint64(len(content)))
		w.write(head)
		w.write(content)
	}
	for _, it := range v.items {
		field(viewResources, it.Raw)
	}
	for _, no := range v.refused {
		field(viewRefused, appendMessage(appendMessage(nil, refusedResource, no.item.Raw), refusedStatus, no.no))
	}
	return w.n, w.to.Flush()
}

// counter counts what is written; the error is the last Flush's.
type counter struct {
	to *bufio.Writer
	n  int64
}

func (c *counter) write(b []byte) {
	n, _ := c.to.Write(b)
	c.n += int64(n)
}

// ReadView reads what WriteTo wrote. It keeps nothing of b. Resources that cannot be
// served are left out.
func ReadView(b []byte) (View, error) {
	var v View
	var raw, refused [][]byte
	err := fields(b, func(num protowire.Number, content, whole []byte) {
		switch num {
		case viewType:
			v.Type = string(content)
		case viewDelta:
			v.Delta = number(whole) == 1
		case viewVersion:
			v.version = string(content)
		case viewKnown:
			v.known = number(whole) == 1
		case viewResources:
			raw = append(raw, content)
		case viewRefused:
			refused = append(refused, content)
		}
	})
	if n := len(raw) + len(refused); err == nil && n > maxNames {
		err = limit("%d resources of type %s were kept", n, chandler.Quote(v.Type))
	}
	for i := 0; i < len(raw) && err == nil; i++ {
		var it *Item
		if it, err = v.item(raw[i]); it != nil {
			v.items = append(v.items, it)
		}
	}
	for i := 0; i < len(refused) && err == nil; i++ {
		err = v.readRefusal(refused[i])
	}
	if err != nil {
		return View{}, err
	}
	return v, nil
}

// item reads a resource; nil: it is none that can be served.
func (v *View) item(raw []byte) (*Item, error) {
	it, err := readItem(slices.Clone(raw), v.Delta)
	if err != nil || it.Name == "" || it.beat {
		return nil, err
	}
	return it, nil
}

func (v *View) readRefusal(b []byte) error {
	var resource, no []byte
	err := fields(b, func(num protowire.Number, content, _ []byte) {
		switch num {
		case refusedResource:
			resource = content
		case refusedStatus:
			no = slices.Clone(content)
		}
	})
	if err != nil {
		return err
	}
	it, err := v.item(resource)
	if it != nil {
		v.refused = append(v.refused, refusal{it, no})
	}
	return err
}

// number is the value of a field that is a number.
func number(field []byte) uint64 {
	_, typ, n := protowire.ConsumeTag(field)
	if typ != protowire.VarintType || n < 0 {
		return 0
	}
	v, _ := protowire.ConsumeVarint(field[n:])
	return v
}

func appendFlag(b []byte, num protowire.Number, flag bool) []byte {
	if !flag {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), 1)
}
