package edge

import (
	"fmt"

	"google.golang.org/grpc/mem"

	"chandler.dev/chandler/internal/xds/relay"
)

// codec reads and writes the messages of discovery without decoding resources, and
// leaves others as they are. Its name is that of what the bytes are.
type codec struct{}

func (codec) Name() string { return "proto" }

// request and response are messages that are read, and responses are written.
type (
	request struct {
		relay.Request
		delta bool
	}
	response struct {
		relay.Response
		delta bool
	}
)

// Marshal takes bytes and responses.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(*response); ok {
		pool := mem.DefaultBufferPool()
		b := pool.Get(m.Size())
		*b = m.Append((*b)[:0], m.delta)
		return mem.BufferSlice{mem.NewBuffer(b, pool)}, nil
	}
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("a message of type %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

// Unmarshal gives a message that keeps nothing of data.
func (codec) Unmarshal(data mem.BufferSlice, v any) (err error) {
	if b, ok := v.(*[]byte); ok {
		*b = data.Materialize()
		return nil
	}
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buffer.Free()
	switch m := v.(type) {
	case *request:
		m.Request, err = relay.ReadRequest(buffer.ReadOnlyData(), m.delta)
	case *response:
		m.Response, err = relay.ReadResponse(buffer.ReadOnlyData(), m.delta)
	default:
		err = fmt.Errorf("a message of type %T", v)
	}
	return err
}
