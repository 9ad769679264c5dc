package wasmhost

import "slices"

// body is bytes on their way: a piece of a message's, or all that was held of it.
type body struct{ bytes []byte }

// take moves all out of another.
func (b *body) take(from *body) {
	if b != from {
		b.bytes = append(b.bytes, from.bytes...)
		from.bytes = nil
	}
}

// write puts bytes in the place of the first ones, or behind all. Envoy does nothing
// else.
func (b *body) write(start, length uint32, data []byte) result {
	size := uint64(len(b.bytes))
	switch {
	case start == 0:
		b.bytes = slices.Concat(data, b.bytes[min(uint64(length), size):])
	case uint64(start) >= size:
		b.bytes = append(b.bytes, data...)
	default:
		return badArgument
	}
	return ok
}

// The buffers of the ABI.
const (
	requestBody = iota
	responseBody
	downstreamData
	upstreamData
	callBody
	grpcMessage
	vmConfiguration
	pluginConfiguration
	callData
	buffers
)

// buffer gives a buffer's content, and what it can be written to, if to anything;
// false: there is none of that type now.
func (c call) buffer() (content []byte, writable *body, there bool) {
	kind, scope := c.i32(0), c.h.current
	switch kind {
	case requestBody, responseBody:
		if x := scope.stream; x != nil {
			lane := &x.request
			if kind == responseBody {
				lane = &x.response
			}
			if b := lane.visible(); b != nil {
				return b.bytes, b, true
			}
		}
	case callBody:
		answer := scope.root.response
		if answer == nil {
			return nil, nil, false
		}
		return answer.body, nil, true
	case vmConfiguration:
		return c.h.cfg.VMConfig, nil, true
	case pluginConfiguration:
		return scope.plugin.Config, nil, scope.configuring
	}
	return nil, nil, true
}

func (c call) getBufferBytes() result {
	if c.i32(0) >= buffers {
		return badArgument
	}
	b, _, there := c.buffer()
	if !there {
		return notFound
	}
	start, length := c.i32(1), c.i32(2)
	size := uint64(len(b))
	from := min(uint64(start), size)
	b = b[from:min(uint64(start)+uint64(length), size)]
	if len(b) == 0 {
		return ok // nothing is written then
	}
	return c.reply(3, b)
}

func (c call) getBufferStatus() result {
	if c.i32(0) >= buffers {
		return badArgument
	}
	b, _, there := c.buffer()
	if !there {
		return notFound
	}
	return stored(c.put(1, uint32(len(b))) && c.put(2, 0))
}

func (c call) setBufferBytes() result {
	if c.i32(0) >= buffers {
		return badArgument
	}
	_, b, there := c.buffer()
	if !there {
		return notFound
	}
	data, there := c.view(3)
	if !there {
		return invalidMemoryAccess
	}
	if b == nil {
		return badArgument
	}
	if len(b.bytes)+len(data) > maxBody {
		return internalFailure
	}
	return b.write(c.i32(1), c.i32(2), data)
}
