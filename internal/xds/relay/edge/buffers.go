package edge

import (
	"sync"

	"google.golang.org/grpc/mem"
)

// Buffers of more than smallBuffer bytes are kept for the next message, up to largeBuffer.
const (
	smallBuffer = 32 << 10
	largeBuffer = 16 << 20
)

// buffers are those of whole messages. Unlike gRPC's own, the large ones are not cleared when
// they are used again, which takes as long as a copy: all of them is written first.
type buffers struct {
	mem.BufferPool // of small ones
	large          sync.Pool
}

func newBuffers() *buffers { return &buffers{BufferPool: mem.DefaultBufferPool()} }

// Get gives one of that length, with anything in it.
func (b *buffers) Get(length int) *[]byte {
	if length <= smallBuffer {
		return b.BufferPool.Get(length)
	}
	if p, ok := b.large.Get().(*[]byte); ok && cap(*p) >= length {
		*p = (*p)[:length]
		return p
	}
	made := make([]byte, length, length+length/4)
	return &made
}

// Put takes one back.
func (b *buffers) Put(p *[]byte) {
	switch n := cap(*p); {
	case n <= smallBuffer:
		b.BufferPool.Put(p)
	case n <= largeBuffer:
		b.large.Put(p)
	}
}
