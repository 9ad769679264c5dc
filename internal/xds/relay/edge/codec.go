package edge

import (
	"fmt"

	"google.golang.org/grpc/mem"

	"chandler.dev/chandler/internal/xds/relay"
)

// codec reads and writes the messages of discovery without decoding resources, and
// leaves others as they are. Its name is that of what the bytes are.
type codec struct{ pool mem.BufferPool }

func newCodec() codec { return codec{newBuffers()} }

func (codec) Name() string { return "proto" }

// request is a message that is read, response one that is written.
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

// scanned is a response that is read, which is to be freed when the relay has taken it.
type scanned struct {
	relay.Response
	delta  bool
	buffer mem.Buffer
}

// Marshal takes bytes and responses.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(*response); ok {
		b := c.pool.Get(m.Size())
		*b = m.Append((*b)[:0], m.delta)
		return mem.BufferSlice{mem.NewBuffer(b, c.pool)}, nil
	}
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("a message of type %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

// Unmarshal gives a message that keeps nothing of data, but for a scanned one.
func (c codec) Unmarshal(data mem.BufferSlice, v any) (err error) {
	if b, ok := v.(*[]byte); ok {
		*b = data.Materialize()
		return nil
	}
	buffer := data.MaterializeToBuffer(c.pool)
	switch m := v.(type) {
	case *request:
		m.Request, err = relay.ReadRequest(buffer.ReadOnlyData(), m.delta)
	case *scanned:
		if m.Response, err = relay.ScanResponse(buffer.ReadOnlyData(), m.delta); err == nil {
			m.buffer = buffer
			return nil
		}
	default:
		err = fmt.Errorf("a message of type %T", v)
	}
	buffer.Free()
	return err
}
