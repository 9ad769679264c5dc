package relay

import (
	"cmp"
	"encoding/binary"
	"hash/crc32"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	"chandler.dev/chandler"
)

// Limits of a snapshot, to write and to read.
const (
	MaxSnapshot  = maxBytes
	snapshotForm = 1
)

// Snapshot is what Envoy acknowledged last, of every type: what an Envoy and an agent
// that both start anew serve while the upstream is away. It holds the upstream's own
// bytes; transforms are applied when they are served.
type Snapshot struct {
	// Changes counts: two snapshots of one relay with the same count are the same.
	Changes uint64
	views   []view
}

type view struct {
	key     shelfKey
	version string
	known   bool
	items   []*Item
	refused []refusal
}

// The fields of a snapshot, of a view in it, and of a resource in that. A protocol's
// bytes are read as its responses are.
const (
	snapshotFormField, snapshotView                            protowire.Number = 1, 2
	viewType, viewDelta, viewVersion, viewKnown, viewResources protowire.Number = 1, 2, 3, 4, 5
	viewRefused, refusedResource, refusedStatus                protowire.Number = 6, 1, 2
)

// Changes counts what Envoy acknowledged that was not remembered before, and what was
// forgotten: a snapshot is due when it has moved.
func (r *Relay) Changes() uint64 { return r.changes }

// Snapshot gives what Envoy acknowledged last. It shares the bytes with the relay, so it
// is made at once; Bytes may be called at any time.
func (r *Relay) Snapshot() Snapshot {
	snapshot := Snapshot{Changes: r.changes}
	for key, s := range r.memory {
		v := view{key: key, version: s.version, known: s.known, items: make([]*Item, 0, len(s.items))}
		for _, k := range s.items {
			v.items = append(v.items, k.item)
		}
		for _, no := range s.refused {
			v.refused = append(v.refused, no)
		}
		if len(v.items)+len(v.refused) > 0 || v.known {
			snapshot.views = append(snapshot.views, v)
		}
	}
	return snapshot
}

// Restore takes what a relay before this one remembered. It is to be called before the
// first Open.
func (r *Relay) Restore(snapshot Snapshot) {
	for _, v := range snapshot.views {
		s := r.shelf(v.key)
		s.version, s.known = v.version, v.known
		for _, it := range v.items {
			s.items[it.Name] = &kept{item: it}
		}
		for _, no := range v.refused {
			s.refused[no.item.Name] = no
		}
	}
}

// Bytes is the snapshot as it is kept: a message of protocol buffers, and its CRC. The
// same content gives the same bytes.
func (s Snapshot) Bytes() []byte {
	slices.SortFunc(s.views, func(a, b view) int {
		return cmp.Or(cmp.Compare(a.key.typeURL, b.key.typeURL), compareBool(a.key.delta, b.key.delta))
	})
	size := 64
	for _, v := range s.views {
		size += v.size() + 16
	}
	b := make([]byte, 0, size)
	b = appendNumber(b, snapshotFormField, snapshotForm)
	for _, v := range s.views {
		b = protowire.AppendTag(b, snapshotView, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(v.size()))
		b = v.append(b)
	}
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func (v view) append(b []byte) []byte {
	slices.SortFunc(v.items, func(a, b *Item) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(v.refused, func(a, b refusal) int { return cmp.Compare(a.item.Name, b.item.Name) })
	b = v.head(b)
	for _, it := range v.items {
		b = appendBytes(b, viewResources, it.Raw)
	}
	for _, no := range v.refused {
		b = appendBytes(b, viewRefused, no.bytes())
	}
	return b
}

func (v view) head(b []byte) []byte {
	b = appendText(b, viewType, v.key.typeURL)
	b = appendFlag(b, viewDelta, v.key.delta)
	b = appendText(b, viewVersion, v.version)
	return appendFlag(b, viewKnown, v.known)
}

func (r refusal) bytes() []byte {
	return appendMessage(appendMessage(nil, refusedResource, r.item.Raw), refusedStatus, r.no)
}

func (v view) size() int {
	n := len(v.head(nil))
	for _, it := range v.items {
		n += protowire.SizeTag(viewResources) + protowire.SizeBytes(len(it.Raw))
	}
	for _, no := range v.refused {
		n += protowire.SizeTag(viewRefused) + protowire.SizeBytes(len(no.bytes()))
	}
	return n
}

// ReadSnapshot reads what Bytes gave. It keeps nothing of b.
func ReadSnapshot(b []byte) (Snapshot, error) {
	var s Snapshot
	if len(b) > MaxSnapshot || len(b) < crc32.Size {
		return s, damaged("it is of %d bytes", len(b))
	}
	content, sum := b[:len(b)-crc32.Size], b[len(b)-crc32.Size:]
	if binary.BigEndian.Uint32(sum) != crc32.ChecksumIEEE(content) {
		return s, damaged("its checksum is wrong")
	}
	form, views := uint64(0), [][]byte{}
	err := fields(content, func(num protowire.Number, content, whole []byte) {
		switch num {
		case snapshotFormField:
			form = number(whole)
		case snapshotView:
			views = append(views, content)
		}
	})
	if err == nil && form != snapshotForm {
		err = damaged("it is of form %d, and this agent reads %d", form, snapshotForm)
	}
	for _, b := range views {
		if err != nil {
			break
		}
		var v view
		if v, err = readView(b); err == nil {
			s.views = append(s.views, v)
		}
	}
	if err != nil {
		return Snapshot{}, err
	}
	return s, nil
}

func readView(b []byte) (view, error) {
	var v view
	var raw, refused [][]byte
	err := fields(b, func(num protowire.Number, content, whole []byte) {
		switch num {
		case viewType:
			v.key.typeURL = string(content)
		case viewDelta:
			v.key.delta = number(whole) == 1
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
	if err == nil && len(raw)+len(refused) > maxNames {
		err = damaged("it has %d resources of one type", len(raw)+len(refused))
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
	return v, err
}

// item reads a resource; nil: it is none that can be served.
func (v *view) item(raw []byte) (*Item, error) {
	it, err := readItem(slices.Clone(raw), v.key.delta)
	if err != nil || it.Name == "" || it.beat {
		return nil, err
	}
	return it, nil
}

func (v *view) readRefusal(b []byte) error {
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

func damaged(format string, args ...any) error {
	return chandler.Problemf(chandler.CodeXDSResource, "",
		"it is of no use to this agent, and is replaced when Envoy has taken resources again",
		"what Envoy last took cannot be read: "+format, args...)
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

func appendNumber(b []byte, num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

func appendFlag(b []byte, num protowire.Number, flag bool) []byte {
	if !flag {
		return b
	}
	return appendNumber(b, num, 1)
}
