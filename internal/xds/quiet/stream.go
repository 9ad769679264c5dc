package quiet

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

var errNoMessage = status.Error(codes.Internal, "the call ended without a message")

// stream is one call. What is not said otherwise is behind its connection's lock.
type stream struct {
	conn   *conn
	id     uint32
	method string
	ctx    context.Context
	cancel context.CancelFunc
	after  func() bool // has it not ended by its time; nil: it has none

	// What was received: the message that is under way, those that are complete, and
	// whether there will be more.
	prefix   [messagePrefix]byte
	began    int // bytes of the prefix
	message  []byte
	missing  int // bytes of the message
	queue    [][]byte
	noneLeft bool
	refused  error         // there will be no more, as the client sent what is not taken
	arrived  chan struct{} // capacity 1: look again
	taken    inflow

	credit  int64 // that the other side gave us to send
	over    bool
	headers metadata.MD
	ending  metadata.MD
	replied bool // the headers were sent; behind conn.wmu

	// Of a stream whose handler has returned: what is done with messages, and at its end;
	// and whether somebody is at it.
	read    func([]byte) error
	ended   func()
	dealing bool
}

// streamContext gives the stream, and how to end it, by its context.
type streamContext struct {
	context.Context
	st *stream
}

// Value implements context.Context.
func (c streamContext) Value(key any) any {
	switch key.(type) {
	case streamKey:
		return c.st
	case endKey:
		return c.st.end
	}
	return c.Context.Value(key)
}

func newStream(c *conn, id uint32, r request, noneLeft bool) *stream {
	st := &stream{conn: c, id: id, method: r.method, noneLeft: noneLeft, taken: inflow{left: window}}
	ctx := metadata.NewIncomingContext(c.ctx, r.md)
	ctx = streamContext{grpc.NewContextWithServerTransportStream(ctx, transport{st}), st}
	if r.timeout > 0 {
		st.ctx, st.cancel = context.WithTimeout(ctx, r.timeout)
		st.after = context.AfterFunc(st.ctx, func() { st.end(st.ctx.Err()) })
	} else {
		st.ctx, st.cancel = context.WithCancel(ctx)
	}
	return st
}

// serve has the handler run, and what comes after it.
func (st *stream) serve(err error) {
	m := st.conn.server.methods[st.method]
	switch {
	case err != nil:
	case m != nil:
		err = m.call(st)
	case st.conn.server.cfg.Unknown != nil:
		err = st.conn.server.cfg.Unknown(st.method)
	default:
		err = status.Errorf(codes.Unimplemented, "unknown method %s", st.method)
	}
	st.conn.left()
	if err == errAttended { //nolint:errorlint // it is a signal, not an error
		st.work()
		return
	}
	st.end(err)
	st.conn.server.running.Done()
}

// take takes in what came; a code other than NO_ERROR is how the client broke the
// protocol.
func (st *stream) take(b []byte, size int64, last bool) http2.ErrCode {
	c := st.conn
	c.mu.Lock()
	if st.over {
		c.mu.Unlock()
		return http2.ErrCodeNo
	}
	if st.noneLeft {
		c.mu.Unlock()
		return http2.ErrCodeStreamClosed
	}
	if !st.taken.come(size) {
		c.mu.Unlock()
		return http2.ErrCodeFlowControl
	}
	st.feed(b)
	st.noneLeft = last
	c.mu.Unlock()
	st.look()
	if c.replenish(st) != nil {
		return http2.ErrCodeNo // the connection is lost, which shows soon
	}
	return http2.ErrCodeNo
}

// noMore notes that the client has said all.
func (st *stream) noMore() {
	st.conn.mu.Lock()
	st.noneLeft = true
	st.conn.mu.Unlock()
	st.look()
}

// feed makes messages of bytes.
func (st *stream) feed(b []byte) {
	for len(b) > 0 && st.refused == nil {
		if st.began < messagePrefix {
			n := copy(st.prefix[st.began:], b)
			st.began, b = st.began+n, b[n:]
			if st.began < messagePrefix {
				return
			}
			if st.refused = st.announced(); st.refused != nil {
				return
			}
			st.message = make([]byte, 0, min(st.missing, 4<<10))
		}
		n := min(st.missing, len(b))
		st.message, b, st.missing = append(st.message, b[:n]...), b[n:], st.missing-n
		if st.conn.partial += int64(n); st.missing == 0 {
			st.queue = append(st.queue, st.message)
			st.count(int64(messagePrefix + len(st.message)))
			st.began = 0
			st.drop()
		}
	}
}

// announced is why a message that is announced is not taken, or nil.
func (st *stream) announced() error {
	size, most := int64(binary.BigEndian.Uint32(st.prefix[1:])), int64(st.conn.server.cfg.MaxMessage)
	switch {
	case st.prefix[0] != 0:
		return status.Error(codes.Internal, "a compressed message though none was agreed on")
	case size > most:
		return status.Errorf(codes.ResourceExhausted, "a message of %d bytes, limit %d", size, most)
	case st.conn.partial > partials*most:
		return status.Errorf(codes.ResourceExhausted, "a message on top of %d bytes of others that are not complete on this connection", st.conn.partial)
	}
	st.missing = int(size)
	return nil
}

// drop forgets the message that is under way.
func (st *stream) drop() {
	st.conn.partial -= int64(len(st.message))
	st.message = nil
}

// count notes what waits to be taken.
func (st *stream) count(n int64) {
	st.taken.queued += n
	st.conn.taken.queued += n
}

// bad is why there are no more messages, when there are none; nil: the client has said
// all.
func (st *stream) bad() error {
	if st.refused == nil && st.began > 0 {
		return status.Error(codes.Internal, "the call ended within a message")
	}
	return st.refused
}

// pop gives the next message.
func (st *stream) pop() []byte {
	b := st.queue[0]
	st.queue[0] = nil
	if st.queue = st.queue[1:]; len(st.queue) == 0 {
		st.queue = nil
	}
	st.count(-int64(messagePrefix + len(b)))
	return b
}

// look tells whoever waits for a message, or has somebody deal with it.
func (st *stream) look() {
	c := st.conn
	c.mu.Lock()
	call := st.read != nil && !st.dealing
	st.dealing = st.dealing || call
	if st.read == nil && st.arrived != nil {
		select {
		case st.arrived <- struct{}{}:
		default:
		}
	}
	c.mu.Unlock()
	if call {
		c.server.crew.do(st)
	}
}

// attend has messages dealt with when the handler has returned.
func (st *stream) attend(read func([]byte) error, ended func()) {
	st.conn.mu.Lock()
	defer st.conn.mu.Unlock()
	st.read, st.ended, st.dealing = read, ended, true
}

// work deals with what there is.
func (st *stream) work() {
	c := st.conn
	for {
		c.mu.Lock()
		switch {
		case st.over: // dealing stays, so that nobody tells of the end again
			c.mu.Unlock()
			st.ended()
			c.server.running.Done()
			return
		case len(st.queue) > 0:
			b := st.pop()
			c.mu.Unlock()
			_ = c.replenish(st) // a connection that is lost shows
			if err := st.read(b); err != nil {
				st.end(err)
			}
		case st.refused != nil || st.noneLeft:
			err := st.bad()
			c.mu.Unlock()
			st.end(err)
		default:
			st.dealing = false
			c.mu.Unlock()
			return
		}
	}
}

// Context implements grpc.ServerStream.
func (st *stream) Context() context.Context { return st.ctx }

// SetHeader implements grpc.ServerStream.
func (st *stream) SetHeader(md metadata.MD) error {
	st.conn.wmu.Lock()
	defer st.conn.wmu.Unlock()
	if st.replied {
		return status.Error(codes.Internal, "the headers were sent")
	}
	st.headers = metadata.Join(st.headers, md)
	return nil
}

// SendHeader implements grpc.ServerStream.
func (st *stream) SendHeader(md metadata.MD) error {
	if err := st.SetHeader(md); err != nil {
		return err
	}
	return st.conn.write(func(o *out) error { return st.reply(o) })
}

// SetTrailer implements grpc.ServerStream.
func (st *stream) SetTrailer(md metadata.MD) {
	st.conn.wmu.Lock()
	defer st.conn.wmu.Unlock()
	st.ending = metadata.Join(st.ending, md)
}

// RecvMsg implements grpc.ServerStream.
func (st *stream) RecvMsg(v any) error {
	c := st.conn
	for {
		c.mu.Lock()
		if st.arrived == nil {
			st.arrived = make(chan struct{}, 1)
		}
		var b []byte
		var err error
		switch {
		case st.over:
			err = st.lost()
		case len(st.queue) > 0:
			b = st.pop()
		case st.refused != nil || st.noneLeft:
			if err = st.bad(); err == nil {
				err = io.EOF
			}
		}
		c.mu.Unlock()
		switch {
		case err != nil:
			return err
		case b != nil:
			if err := c.replenish(st); err != nil {
				return status.Error(codes.Canceled, err.Error())
			}
			if err := proto.Unmarshal(b, v.(proto.Message)); err != nil {
				return status.Errorf(codes.Internal, "a message cannot be decoded: %v", err)
			}
			return nil
		}
		select {
		case <-st.arrived:
		case <-st.ctx.Done():
			return st.lost()
		}
	}
}

// lost is the error of a stream that has ended.
func (st *stream) lost() error {
	if err := st.ctx.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Canceled, "the call has ended")
}

// SendMsg implements grpc.ServerStream. It takes Parts, too.
func (st *stream) SendMsg(v any) error {
	parts, ok := v.(Parts)
	if !ok {
		b, err := proto.Marshal(v.(proto.Message))
		if err != nil {
			return status.Errorf(codes.Internal, "a message cannot be encoded: %v", err)
		}
		parts = Parts{b}
	}
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	if size > math.MaxInt32 {
		return status.Errorf(codes.ResourceExhausted, "a message of %d bytes", size)
	}
	var prefix [messagePrefix]byte
	binary.BigEndian.PutUint32(prefix[1:], uint32(size))
	rest := &parted{first: prefix[:], parts: parts}
	for left := size + messagePrefix; left > 0; {
		n, frame, err := st.allowance(min(left, maxOut))
		if err != nil {
			return err
		}
		switch err := st.conn.write(func(o *out) error { return st.data(o, rest, n, frame) }); {
		case errors.Is(err, errLost):
			return status.Error(codes.Canceled, err.Error())
		case err != nil:
			return err
		}
		left -= n
	}
	return nil
}

// allowance waits until something may be sent, and gives how much of what is wanted, and
// in what frames.
func (st *stream) allowance(want int) (n, frame int, err error) {
	c := st.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if st.over {
			return 0, 0, st.lost()
		}
		if n := min(int64(want), st.credit, c.credit); n > 0 {
			st.credit -= n
			c.credit -= n
			return int(n), c.maxFrame, nil
		}
		c.room.Wait()
	}
}

// data adds the next bytes of a message to what is written.
func (st *stream) data(o *out, rest *parted, n, frame int) error {
	if st.finished() {
		st.conn.mu.Lock()
		st.conn.credit += int64(n) // that is not used
		st.conn.room.Broadcast()
		st.conn.mu.Unlock()
		return st.lost()
	}
	if err := st.reply(o); err != nil {
		return err
	}
	for n > 0 {
		part := min(n, frame)
		o.frame(part, http2.FrameData, 0, st.id)
		o.buf = rest.appendTo(o.buf, part)
		n -= part
	}
	return nil
}

// reply adds the headers, the first time.
func (st *stream) reply(o *out) error {
	if !st.replied {
		st.replied = true
		o.headers(st.id, false, maxFrame, func() { o.reply(st.headers) })
	}
	return nil
}

func (st *stream) finished() bool {
	st.conn.mu.Lock()
	defer st.conn.mu.Unlock()
	return st.over
}

// end ends the stream, and tells the client how: well, with nil. The first time counts.
func (st *stream) end(why error) {
	s, ok := status.FromError(why)
	if !ok {
		s = status.FromContextError(why)
	}
	noneLeft, first := st.finish()
	if !first {
		return
	}
	_ = st.conn.write(func(o *out) error { // it fails if the client is gone
		o.headers(st.id, true, maxFrame, func() {
			if !st.replied {
				o.reply(st.headers)
			}
			o.ending(s, st.ending)
		})
		if !noneLeft {
			o.reset(st.id, http2.ErrCodeNo)
		}
		return nil
	})
	st.gone()
}

// leave ends the stream when there is nobody to be told.
func (st *stream) leave() {
	if _, first := st.finish(); first {
		st.gone()
	}
}

// finish takes the stream from its connection.
func (st *stream) finish() (noneLeft, first bool) {
	c := st.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if st.over {
		return false, false
	}
	st.over = true
	delete(c.streams, st.id)
	for len(st.queue) > 0 {
		st.pop()
	}
	st.drop()
	c.room.Broadcast()
	return st.noneLeft, true
}

// gone ends what the stream has started.
func (st *stream) gone() {
	if st.after != nil {
		st.after()
	}
	st.cancel()
	st.look()
}

// parted gives a message's bytes.
type parted struct {
	first []byte
	parts Parts
}

func (p *parted) appendTo(b []byte, n int) []byte {
	for n > 0 {
		if len(p.first) == 0 {
			p.first, p.parts = p.parts[0], p.parts[1:]
		}
		k := min(n, len(p.first))
		b, p.first, n = append(b, p.first[:k]...), p.first[k:], n-k
	}
	return b
}

// transport is what grpc.SetHeader and the like ask.
type transport struct{ st *stream }

// Method implements grpc.ServerTransportStream.
func (t transport) Method() string { return t.st.method }

// SetHeader implements grpc.ServerTransportStream.
func (t transport) SetHeader(md metadata.MD) error { return t.st.SetHeader(md) }

// SendHeader implements grpc.ServerTransportStream.
func (t transport) SendHeader(md metadata.MD) error { return t.st.SendHeader(md) }

// SetTrailer implements grpc.ServerTransportStream.
func (t transport) SetTrailer(md metadata.MD) error { t.st.SetTrailer(md); return nil }
