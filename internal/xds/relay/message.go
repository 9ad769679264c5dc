package relay

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"chandler.dev/chandler"
)

// Request is what a client says, in either protocol: Envoy to the relay, and the relay
// to the upstream.
type Request struct {
	Type string
	// Node is the node message; nil: not said.
	Node []byte
	// Subscribe and Unsubscribe are changes; in the state of the world, Subscribe is all.
	Subscribe, Unsubscribe []string
	// Held are the versions that a delta client has from a stream before. Version is what
	// a state-of-the-world client acknowledged last.
	Held    map[string]string
	Version string
	// Nonce is that of the response that is answered, Error the google.rpc.Status by
	// which it is refused.
	Nonce string
	Error []byte
}

// Response is what a server says, in either protocol.
type Response struct {
	Type, Version, Nonce string
	Items                []*Item
	Removed              []string
	// Rest are all other fields, as they stand in the message.
	Rest []byte

	scanned [][]byte // resources that are not read yet
}

// Item is a resource as it stands in a response: an Any in the state of the world, else a
// Resource with an Any in it. It must not be changed.
type Item struct {
	Name, Version string
	Raw           []byte

	aliases []string
	beat    bool  // it has no body: what was sent before lives longer
	from    *Item // the upstream's, of one that a transform changed
}

// origin is what the upstream sent.
func (it *Item) origin() *Item {
	if it.from != nil {
		return it.from
	}
	return it
}

// The fields of the messages of envoy.service.discovery.v3, by their numbers.
const (
	sotwVersion, sotwNode, sotwNames, sotwType, sotwNonce, sotwError                                              protowire.Number = 1, 2, 3, 4, 5, 6
	deltaNode, deltaType, deltaSubscribe, deltaUnsubscribe, deltaHeld, deltaNonce, deltaError                     protowire.Number = 1, 2, 3, 4, 5, 6, 7
	responseVersion, responseItems, responseType, responseNonce, responseRemoved/* delta only */ protowire.Number = 1, 2, 4, 5, 6
	resourceVersion, resourceBody, resourceName, resourceAliases                                                  protowire.Number = 1, 2, 3, 4
	anyType, anyValue                                                                                             protowire.Number = 1, 2
	mapKey, mapValue                                                                                              protowire.Number = 1, 2
	firstField                                                                                                    protowire.Number = 1
)

// wrapperType is that of a Resource as a resource of the state of the world, there for
// its time to live.
const wrapperType = typePrefix + "envoy.service.discovery.v3.Resource"

// fields calls do for each field of a message: with its content, which is empty unless
// it is of bytes, and with the whole of it.
func fields(message []byte, do func(num protowire.Number, content, whole []byte)) error {
	for len(message) > 0 {
		num, typ, tag := protowire.ConsumeTag(message)
		if tag < 0 {
			return unreadable(tag)
		}
		var content []byte
		n := 0
		if typ == protowire.BytesType {
			content, n = protowire.ConsumeBytes(message[tag:])
		} else {
			n = protowire.ConsumeFieldValue(num, typ, message[tag:])
		}
		if n < 0 {
			return unreadable(n)
		}
		do(num, content, message[:tag+n:tag+n])
		message = message[tag+n:]
	}
	return nil
}

func unreadable(n int) error {
	return chandler.Problemf(chandler.CodeXDSResource, "", "", "a message of xDS cannot be read: %v", protowire.ParseError(n))
}

// ReadRequest reads a DiscoveryRequest or DeltaDiscoveryRequest. It keeps nothing of b.
func ReadRequest(b []byte, delta bool) (Request, error) {
	var q Request
	var failed error
	err := fields(b, func(num protowire.Number, content, _ []byte) {
		if !delta {
			switch num {
			case sotwVersion:
				q.Version = string(content)
			case sotwNode:
				q.Node = append([]byte{}, content...)
			case sotwNames:
				q.Subscribe = append(q.Subscribe, string(content))
			case sotwType:
				q.Type = string(content)
			case sotwNonce:
				q.Nonce = string(content)
			case sotwError:
				q.Error = append([]byte{}, content...)
			}
			return
		}
		switch num {
		case deltaNode:
			q.Node = append([]byte{}, content...)
		case deltaType:
			q.Type = string(content)
		case deltaSubscribe:
			q.Subscribe = append(q.Subscribe, string(content))
		case deltaUnsubscribe:
			q.Unsubscribe = append(q.Unsubscribe, string(content))
		case deltaHeld:
			if err := q.held(content); err != nil {
				failed = err
			}
		case deltaNonce:
			q.Nonce = string(content)
		case deltaError:
			q.Error = append([]byte{}, content...)
		}
	})
	if err == nil {
		err = failed
	}
	return q, err
}

// held reads an entry of the map.
func (q *Request) held(entry []byte) error {
	var name, version string
	err := fields(entry, func(num protowire.Number, content, _ []byte) {
		switch num {
		case mapKey:
			name = string(content)
		case mapValue:
			version = string(content)
		}
	})
	if q.Held == nil {
		q.Held = map[string]string{}
	}
	q.Held[name] = version
	return err
}

// Bytes is the request as a message.
func (q *Request) Bytes(delta bool) []byte {
	var b []byte
	if !delta {
		b = appendText(b, sotwVersion, q.Version)
		b = appendMessage(b, sotwNode, q.Node)
		for _, n := range q.Subscribe {
			b = appendBytes(b, sotwNames, n)
		}
		b = appendText(b, sotwType, q.Type)
		b = appendText(b, sotwNonce, q.Nonce)
		return appendMessage(b, sotwError, q.Error)
	}
	b = appendMessage(b, deltaNode, q.Node)
	b = appendText(b, deltaType, q.Type)
	for _, n := range q.Subscribe {
		b = appendBytes(b, deltaSubscribe, n)
	}
	for _, n := range q.Unsubscribe {
		b = appendBytes(b, deltaUnsubscribe, n)
	}
	for _, n := range sorted(q.Held) {
		entry := appendText(appendText(nil, mapKey, n), mapValue, q.Held[n])
		b = appendBytes(b, deltaHeld, entry)
	}
	b = appendText(b, deltaNonce, q.Nonce)
	return appendMessage(b, deltaError, q.Error)
}

// ReadResponse reads a DiscoveryResponse or DeltaDiscoveryResponse. It keeps nothing of
// b: resources of one message come to their ends one by one.
func ReadResponse(b []byte, delta bool) (Response, error) {
	p, err := ScanResponse(b, delta)
	p.Items = make([]*Item, len(p.scanned))
	for i, raw := range p.scanned {
		var failed error
		if p.Items[i], failed = readItem(bytes.Clone(raw), delta); failed != nil {
			err = failed
		}
	}
	p.scanned = nil
	return p, err
}

// ScanResponse reads one for FromUpstream, which keeps of b only copies of what differs
// from what is there: b must stay until then.
func ScanResponse(b []byte, delta bool) (Response, error) {
	var p Response
	err := fields(b, func(num protowire.Number, content, whole []byte) {
		switch {
		case num == responseVersion:
			p.Version = string(content)
		case num == responseItems:
			p.scanned = append(p.scanned, content)
		case num == responseType:
			p.Type = string(content)
		case num == responseNonce:
			p.Nonce = string(content)
		case num == responseRemoved && delta:
			p.Removed = append(p.Removed, string(content))
		default:
			p.Rest = append(p.Rest, whole...)
		}
	})
	return p, err
}

// Size is how many bytes the response takes as a message, at most.
func (p *Response) Size() int {
	size := len(p.Rest) + len(p.Type) + len(p.Version) + len(p.Nonce) + 32
	for _, it := range p.Items {
		size += 1 + protowire.SizeBytes(len(it.Raw))
	}
	for _, n := range p.Removed {
		size += 1 + protowire.SizeBytes(len(n))
	}
	return size
}

// Append appends the response as a message.
func (p *Response) Append(b []byte, delta bool) []byte {
	b = appendText(b, responseVersion, p.Version)
	for _, it := range p.Items {
		b = appendBytes(b, responseItems, it.Raw)
	}
	b = appendText(b, responseType, p.Type)
	b = appendText(b, responseNonce, p.Nonce)
	if delta {
		for _, n := range p.Removed {
			b = appendBytes(b, responseRemoved, n)
		}
	}
	return append(b, p.Rest...)
}

// Bytes is the response as a message.
func (p *Response) Bytes(delta bool) []byte { return p.Append(make([]byte, 0, p.Size()), delta) }

// readItem reads a resource as far as the relay has to know it. It keeps raw.
func readItem(raw []byte, delta bool) (*Item, error) {
	h, err := readHead(raw, delta)
	return h.item(raw, &Item{}), err
}

// head is what the relay has to know of a resource, as it stands in it.
type head struct {
	name, version []byte
	aliases       [][]byte
	beat          bool
}

// readHead reads that of a resource of a response.
func readHead(raw []byte, delta bool) (h head, err error) {
	if !delta {
		isWrapper, value, err := readAny(raw)
		if err != nil || !isWrapper {
			return head{name: nameOf(value)}, err
		}
		raw = value
	}
	h.beat = true
	err = fields(raw, func(num protowire.Number, content, _ []byte) {
		switch num {
		case resourceName:
			h.name = content
		case resourceVersion:
			h.version = content
		case resourceAliases:
			h.aliases = append(h.aliases, content)
		case resourceBody:
			h.beat = false
		}
	})
	return h, err
}

// item makes an item of raw, which it keeps. It shares the texts of one that is like it.
func (h *head) item(raw []byte, like *Item) *Item {
	it := &Item{Raw: raw, Name: shared(h.name, like.Name), Version: shared(h.version, like.Version), beat: h.beat}
	for _, a := range h.aliases {
		it.aliases = append(it.aliases, string(a))
	}
	return it
}

// shared gives a text as the string that is there, if that is the same.
func shared(text []byte, there string) string {
	if string(text) == there {
		return there
	}
	return string(text)
}

// newItem makes a resource of a message.
func newItem(delta bool, typeURL, name, version string, body []byte) *Item {
	it := &Item{Name: name, Version: version}
	it.Raw = appendBytes(appendText(nil, anyType, typeURL), anyValue, body)
	if delta {
		wrapped := appendBytes(appendText(nil, resourceVersion, version), resourceBody, it.Raw)
		it.Raw = appendText(wrapped, resourceName, name)
	}
	return it
}

// nameOf gives the name of a resource: all types that are discovered have it in their
// first field, which stands first. What is not such a message is Envoy's to refuse.
func nameOf(message []byte) []byte {
	for len(message) > 0 {
		num, typ, tag := protowire.ConsumeTag(message)
		if tag < 0 {
			break
		}
		if num == firstField && typ == protowire.BytesType {
			name, _ := protowire.ConsumeBytes(message[tag:])
			return name
		}
		n := protowire.ConsumeFieldValue(num, typ, message[tag:])
		if n < 0 {
			break
		}
		message = message[tag+n:]
	}
	return nil
}

// readAny gives the value of an Any; isWrapper: it is a Resource.
func readAny(b []byte) (isWrapper bool, value []byte, err error) {
	err = fields(b, func(num protowire.Number, content, _ []byte) {
		switch num {
		case anyType:
			isWrapper = string(content) == wrapperType
		case anyValue:
			value = content
		}
	})
	return isWrapper, value, err
}

// body is the resource's own message.
func (it *Item) body(delta bool) []byte {
	inner := it.Raw
	if !delta {
		isWrapper, value, _ := readAny(inner) // readItem has seen that they are messages
		if !isWrapper {
			return value
		}
		inner = value
	}
	var body []byte
	_ = fields(inner, func(num protowire.Number, content, _ []byte) {
		if num == resourceBody {
			_, body, _ = readAny(content)
		}
	})
	return body
}

// with gives the item with another body, and in a version of its own.
func (it *Item) with(delta bool, body []byte) *Item {
	sum := sha256.Sum256(body)
	out := &Item{Name: it.Name, Version: it.Version + "+" + hex.EncodeToString(sum[:8]), aliases: it.aliases, from: it}
	resource := func(b []byte) []byte {
		return replace(replace(b, resourceVersion, func([]byte) []byte { return []byte(out.Version) }),
			resourceBody, func(a []byte) []byte { return replace(a, anyValue, func([]byte) []byte { return body }) })
	}
	if delta {
		out.Raw = resource(it.Raw)
		return out
	}
	isWrapper, _, _ := readAny(it.Raw)
	out.Raw = replace(it.Raw, anyValue, func(value []byte) []byte {
		if isWrapper {
			return resource(value)
		}
		return body
	})
	return out
}

// replace gives a message with another content of a field of bytes; one that is not
// there is added.
func replace(message []byte, field protowire.Number, edit func([]byte) []byte) []byte {
	out := make([]byte, 0, len(message)+len(message)/4)
	done := false
	_ = fields(message, func(num protowire.Number, content, whole []byte) {
		switch {
		case num != field:
			out = append(out, whole...)
		case !done:
			out, done = appendBytes(out, field, edit(content)), true
		}
	})
	if !done {
		out = appendBytes(out, field, edit(nil))
	}
	return out
}

// words are the message of a google.rpc.Status.
func words(status []byte) string {
	const message protowire.Number = 2
	var text string
	_ = fields(status, func(num protowire.Number, content, _ []byte) {
		if num == message {
			text = string(content)
		}
	})
	return strings.ToValidUTF8(text, "?")
}

func appendBytes[T []byte | string](b []byte, num protowire.Number, content T) []byte {
	b = protowire.AppendTag(b, num, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(content)))
	return append(b, content...)
}

// appendText leaves an empty text out, as it is written in proto3.
func appendText(b []byte, num protowire.Number, text string) []byte {
	if text == "" {
		return b
	}
	return appendBytes(b, num, text)
}

// appendMessage leaves a message out that is not there.
func appendMessage(b []byte, num protowire.Number, message []byte) []byte {
	if message == nil {
		return b
	}
	return appendBytes(b, num, message)
}
