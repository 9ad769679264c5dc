package lite

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const messagePrefix = 5 // bytes: whether it is compressed, and its size

// Stream is one call.
type Stream struct {
	conn    *Conn
	id      uint32
	method  string
	message func([]byte) error
	ended   func(error)

	partial []byte // message that is under way, with its prefix
	taken   inflow

	unsent []byte // messages, with their prefixes
	credit int64  // that the server gave us to send
	last   bool   // there is nothing more to send
	closed bool   // which the server was told
	over   bool
}

// Open begins a call of a method, "/package.Service/Method". Each message that comes is
// given to message, which must not keep it; its error ends the call. Afterwards ended is
// called once, with nil when all went well.
func (c *Conn) Open(method string, message func([]byte) error, ended func(error)) *Stream {
	c.last += 2
	if c.last == 2 {
		c.last = 1
	}
	st := &Stream{conn: c, id: c.last, method: method, message: message, ended: ended, credit: c.initial, taken: inflow{left: window}}
	c.streams[st.id] = st
	scheme := "http"
	if c.cfg.TLS != nil {
		scheme = "https"
	}
	block := encode(":method", "POST", ":scheme", scheme, ":path", method, ":authority", c.cfg.Target,
		"content-type", "application/grpc", "user-agent", "chandler-swarm", "te", "trailers")
	c.frame(len(block), http2.FrameHeaders, http2.FlagHeadersEndHeaders, st.id)
	c.out = append(c.out, block...)
	return st
}

// encode gives a block of headers that no table remembers.
func encode(fields ...string) block {
	var b block
	e := hpack.NewEncoder(&b)
	for pair := range slices.Chunk(fields, 2) {
		_ = e.WriteField(hpack.HeaderField{Name: pair[0], Value: pair[1], Sensitive: true}) // Write does not fail
	}
	return b
}

type block []byte

// Write implements io.Writer.
func (b *block) Write(p []byte) (int, error) {
	*b = append(*b, p...)
	return len(p), nil
}

// Send says something, at the end of the turn or when the server has room for it; last
// says that there is nothing more.
func (st *Stream) Send(m proto.Message, last bool) error {
	at := len(st.unsent)
	b, err := proto.MarshalOptions{}.MarshalAppend(append(st.unsent, make([]byte, messagePrefix)...), m)
	if err != nil {
		return err
	}
	if len(b) > maxMessage {
		return fmt.Errorf("%d bytes for %s are not taken", len(b), st.method)
	}
	size := len(b) - at - messagePrefix
	binary.BigEndian.PutUint32(b[at+1:], uint32(size))
	st.unsent, st.last = b, last
	st.conn.cfg.Message(st.method, true, size)
	return nil
}

// Busy tells whether something was said that the server has no room for yet.
func (st *Stream) Busy() bool { return len(st.unsent) > 0 }

// flush has written what there is room for.
func (st *Stream) flush() {
	c := st.conn
	for len(st.unsent) > 0 {
		n := int(min(int64(len(st.unsent)), st.credit, c.credit, maxFrame))
		if n <= 0 {
			return
		}
		st.credit, c.credit = st.credit-int64(n), c.credit-int64(n)
		var flags http2.Flags
		if st.closed = st.last && n == len(st.unsent); st.closed {
			flags = http2.FlagDataEndStream
		}
		c.frame(n, http2.FrameData, flags, st.id)
		c.out = append(c.out, st.unsent[:n]...)
		st.unsent = st.unsent[n:]
	}
	st.unsent = nil
}

// feed makes messages of bytes.
func (st *Stream) feed(b []byte) {
	for len(b) > 0 && !st.over {
		whole := b
		if len(st.partial) > 0 {
			whole = st.partial
		}
		need := messagePrefix
		if len(whole) >= messagePrefix {
			size := binary.BigEndian.Uint32(whole[1:])
			if whole[0] != 0 || size > maxMessage {
				st.abort(http2.ErrCodeCancel, fmt.Errorf("a message of %d bytes, compressed: %d", size, whole[0]))
				return
			}
			need += int(size)
		}
		if len(st.partial) == 0 && len(b) >= need {
			st.deliver(b[messagePrefix:need])
			b = b[need:]
			continue
		}
		n := min(need-len(st.partial), len(b))
		st.partial, b = append(st.partial, b[:n]...), b[n:]
		if len(st.partial) == need && (need > messagePrefix || binary.BigEndian.Uint32(st.partial[1:]) == 0) {
			message := st.partial[messagePrefix:]
			st.partial = nil
			st.deliver(message)
		}
	}
}

func (st *Stream) deliver(b []byte) {
	st.conn.cfg.Message(st.method, false, len(b))
	if err := st.message(b); err != nil {
		st.abort(http2.ErrCodeCancel, err)
	}
}

// headers takes in what an answer begins or ends with.
func (st *Stream) headers(f *http2.MetaHeadersFrame) {
	if !f.StreamEnded() {
		if s := f.PseudoValue("status"); s != "200" || f.Truncated {
			st.abort(http2.ErrCodeCancel, fmt.Errorf("HTTP status %q", s))
		}
		return
	}
	code, message := "", ""
	for _, h := range f.RegularFields() {
		switch h.Name {
		case "grpc-status":
			code = h.Value
		case "grpc-message":
			if m, err := url.PathUnescape(h.Value); err == nil {
				message = m
			}
		}
	}
	n, err := strconv.ParseUint(code, 10, 32)
	switch {
	case err != nil:
		st.end(errors.New("the stream ended without a status"))
	case len(st.partial) > 0:
		st.end(errors.New("the stream ended within a message"))
	default:
		st.end(status.Error(codes.Code(n), message)) // nil for OK
	}
}

// abort ends the stream, and tells the server so.
func (st *Stream) abort(code http2.ErrCode, why error) {
	if !st.over {
		st.closed = true
		st.reset(code)
		st.end(why)
	}
}

// end ends the stream: well, with nil.
func (st *Stream) end(why error) {
	if st.over {
		return
	}
	st.over = true
	delete(st.conn.streams, st.id)
	if !st.closed {
		st.reset(http2.ErrCodeNo)
	}
	st.partial, st.unsent = nil, nil
	st.ended(why)
}

func (st *Stream) reset(code http2.ErrCode) {
	st.conn.frame(4, http2.FrameRSTStream, 0, st.id)
	st.conn.out = binary.BigEndian.AppendUint32(st.conn.out, uint32(code))
}

// outs are buffers of what is to be written, for all connections.
var outs = sync.Pool{New: func() any { return new([]byte) }}

// start has a buffer to append to.
func (c *Conn) start() {
	if c.out == nil {
		c.out = (*outs.Get().(*[]byte))[:0]
	}
}

// stop gives the buffer back.
func (c *Conn) stop() {
	if b := c.out; cap(b) <= 2*maxFrame {
		outs.Put(&b)
	}
	c.out = nil
}

// frame begins a frame of a known size.
func (c *Conn) frame(size int, typ http2.FrameType, flags http2.Flags, id uint32) {
	c.start()
	c.out = append(c.out, byte(size>>16), byte(size>>8), byte(size), byte(typ), byte(flags))
	c.out = binary.BigEndian.AppendUint32(c.out, id)
}

func (c *Conn) settings(all ...http2.Setting) {
	c.frame(6*len(all), http2.FrameSettings, 0, 0)
	for _, s := range all {
		c.out = binary.BigEndian.AppendUint16(c.out, uint16(s.ID))
		c.out = binary.BigEndian.AppendUint32(c.out, s.Val)
	}
}

// replenish lets the server send so many bytes more, on a stream or with id 0 on the
// connection.
func (c *Conn) replenish(id, bytes uint32) {
	if bytes > 0 {
		c.frame(4, http2.FrameWindowUpdate, 0, id)
		c.out = binary.BigEndian.AppendUint32(c.out, bytes)
	}
}
