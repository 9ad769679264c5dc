package wasmhost

import (
	"encoding/binary"
	"slices"
	"strings"

	"chandler.dev/chandler/internal/exchange"
)

// headerMap is the fields of a message in their order, those of the protocol (":path")
// first. Names are in lower case.
type headerMap struct{ fields []exchange.Header }

func newHeaderMap(fields []exchange.Header) *headerMap {
	m := &headerMap{fields: make([]exchange.Header, 0, len(fields)+4)}
	for _, f := range fields {
		m.add(f.Name, f.Value)
	}
	return m
}

// single tells of fields that a message has once: another value is put behind the
// first, after a comma.
func single(name string) bool {
	switch name {
	case ":authority", ":method", ":path", ":scheme", ":protocol", ":status",
		"connection", "content-length", "content-type", "expect", "host", "keep-alive", "proxy-connection",
		"te", "transfer-encoding", "upgrade", "user-agent", "via", "date", "server", "grpc-status", "grpc-message",
		"x-request-id", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-port":
		return true
	}
	return false
}

func (m *headerMap) find(name string) int {
	return slices.IndexFunc(m.fields, func(f exchange.Header) bool { return f.Name == name })
}

// get gives a field's first value.
func (m *headerMap) get(name string) (string, bool) {
	if m == nil {
		return "", false
	}
	if i := m.find(name); i >= 0 {
		return m.fields[i].Value, true
	}
	return "", false
}

func (m *headerMap) has(name string) bool { _, there := m.get(name); return there }

// all gives a field's values, with commas between.
func (m *headerMap) all(name string) (value string, there bool) {
	if m == nil {
		return "", false
	}
	message := exchange.Message{Headers: m.fields}
	return message.Get(name)
}

func (m *headerMap) add(name, value string) {
	name = strings.ToLower(name)
	if single(name) {
		if i := m.find(name); i >= 0 {
			m.fields[i].Value += "," + value
			return
		}
	}
	at := len(m.fields)
	if strings.HasPrefix(name, ":") {
		if at = slices.IndexFunc(m.fields, func(f exchange.Header) bool { return !strings.HasPrefix(f.Name, ":") }); at < 0 {
			at = len(m.fields)
		}
	}
	m.fields = slices.Insert(m.fields, at, exchange.Header{Name: name, Value: value})
}

// set leaves a field with one value, behind the others, as Envoy does.
func (m *headerMap) set(name, value string) {
	m.remove(name)
	m.add(name, value)
}

func (m *headerMap) remove(name string) {
	name = strings.ToLower(name)
	m.fields = slices.DeleteFunc(m.fields, func(f exchange.Header) bool { return f.Name == name })
}

// len is the number of fields; there may be no map.
func (m *headerMap) len() int {
	if m == nil {
		return 0
	}
	return len(m.fields)
}

// size is that of all names and values.
func (m *headerMap) size() (n int) {
	if m != nil {
		for _, f := range m.fields {
			n += len(f.Name) + len(f.Value)
		}
	}
	return n
}

// own gives a copy of the fields without those that are no plugin's.
func (m *headerMap) own() (fields []exchange.Header) {
	for _, f := range m.fields {
		if !exchange.Own(f.Name) {
			fields = append(fields, f)
		}
	}
	return fields
}

// The most that a list of pairs may be.
const (
	maxPairs     = 1 << 10
	maxPairsSize = 1 << 20
)

// marshal writes fields as the ABI has pairs: how many, the sizes, and the names and
// values, each with a zero behind it.
func marshal(fields []exchange.Header) []byte {
	size := 4
	for _, f := range fields {
		size += 8 + len(f.Name) + 1 + len(f.Value) + 1
	}
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, size), uint32(len(fields)))
	for _, f := range fields {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(f.Name)))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(f.Value)))
	}
	for _, f := range fields {
		b = append(append(append(append(b, f.Name...), 0), f.Value...), 0)
	}
	return b
}

// unmarshal reads pairs. What is none is as good as an empty list, as in Envoy.
func unmarshal(b []byte) []exchange.Header {
	if len(b) < 4 || len(b) > maxPairsSize {
		return nil
	}
	n := binary.LittleEndian.Uint32(b)
	if n > maxPairs || uint64(len(b)) < 4+8*uint64(n) {
		return nil
	}
	sizes, rest := b[4:], b[4+8*n:]
	take := func() (string, bool) {
		size := uint64(binary.LittleEndian.Uint32(sizes))
		sizes = sizes[4:]
		if size >= uint64(len(rest)) || rest[size] != 0 {
			return "", false
		}
		s := string(rest[:size])
		rest = rest[size+1:]
		return s, true
	}
	fields := make([]exchange.Header, n)
	for i := range fields {
		name, fits := take()
		if !fits {
			return nil
		}
		if fields[i].Value, fits = take(); !fits {
			return nil
		}
		fields[i].Name = strings.ToLower(name)
	}
	if len(rest) > 0 {
		return nil
	}
	return fields
}

// The maps of the ABI.
const (
	requestHeaders = iota
	requestTrailers
	responseHeaders
	responseTrailers
	grpcInitialMetadata
	grpcTrailingMetadata
	callHeaders
	callTrailers
	headerMaps
)

// mutable gives a map that can be written to, or nil. Trailers come to be where a
// body ends and there are none.
func (c call) mutable() *headerMap {
	x := c.h.current.stream
	if x == nil {
		return nil
	}
	switch c.i32(0) {
	case requestHeaders:
		return x.request.seen.headers
	case requestTrailers:
		return x.request.mutableTrailers()
	case responseHeaders:
		return x.response.seen.headers
	case responseTrailers:
		return x.response.mutableTrailers()
	}
	return nil
}

// readable gives a map, or nil; logging: the stream is being logged, when it is no
// mistake to ask for any.
func (c call) readable() (m *headerMap, logging bool) {
	kind, scope := c.i32(0), c.h.current
	if answer := scope.root.response; answer != nil {
		switch kind {
		case callHeaders:
			return answer.headers, false
		case callTrailers:
			return answer.trailers, false
		}
	}
	x := scope.stream
	if x == nil || kind > responseTrailers {
		return nil, x != nil && x.logging
	}
	if x.logging {
		return [...]*headerMap{x.request.headers, nil, x.response.headers, x.response.trailers}[kind], true
	}
	return [...]*headerMap{x.request.seen.headers, x.request.seen.trailers, x.response.seen.headers, x.response.seen.trailers}[kind], false
}

func (c call) getHeader() result {
	if c.i32(0) >= headerMaps {
		return badArgument
	}
	name, there := c.text(1)
	if !there {
		return invalidMemoryAccess
	}
	m, logging := c.readable()
	if m == nil && !logging {
		return badArgument
	}
	value, there := m.get(strings.ToLower(name))
	if !there && c.h.cfg.ABI != "0.1.0" {
		return notFound
	}
	return c.reply(3, []byte(value))
}

// change is a call that changes a map by a name and, but for its removal, a value.
func change(words int, do func(m *headerMap, name, value string)) func(call) result {
	return func(c call) result {
		if c.i32(0) >= headerMaps {
			return badArgument
		}
		name, there := c.text(1)
		value, there2 := "", true
		if words > 1 {
			value, there2 = c.text(3)
		}
		if !there || !there2 {
			return invalidMemoryAccess
		}
		m := c.mutable()
		if m == nil {
			return badArgument
		}
		if m.len() >= maxPairs || len(value) > maxEntry {
			return internalFailure
		}
		do(m, name, value)
		c.changed()
		return ok
	}
}

func (c call) getPairs() result {
	if c.i32(0) >= headerMaps {
		return badArgument
	}
	m, _ := c.readable()
	if m.len() == 0 {
		return c.reply(1, nil)
	}
	return c.reply(1, marshal(m.fields))
}

func (c call) setPairs() result {
	if c.i32(0) >= headerMaps {
		return badArgument
	}
	b, there := c.view(1)
	if !there {
		return invalidMemoryAccess
	}
	m := c.mutable()
	if m == nil {
		return badArgument
	}
	*m = *newHeaderMap(unmarshal(b))
	c.changed()
	return ok
}

// changed is to be said of a map.
func (c call) changed() {
	if c.i32(0) == requestHeaders {
		c.h.current.stream.rerouted = true
	}
}

func (c call) mapSize() result {
	if c.i32(0) >= headerMaps {
		return badArgument
	}
	m := c.mutable()
	if m == nil {
		return badArgument
	}
	return stored(c.put(1, uint32(m.size())))
}
