package quiet

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const (
	// window is what may come before it is read, on a stream and on a connection: what
	// RFC 9113 begins with (6.9.2).
	window = 65_535
	// creditAt is how much of it is used when more is given.
	creditAt    = window / 4
	maxFrame    = 16 << 10 // bytes of a frame from outside, the least that one may ask for
	readBuffer  = 512      // bytes; what is larger is read past it
	headerTable = 4 << 10  // bytes, until our settings have arrived, which say none
	// partials is how many messages of the largest size may be under way at a time.
	partials = 4
	// maxDemands is how many frames that are answered, or mean work and bring nothing, may
	// come without a message in demandsFor.
	maxDemands = 1000
	demandsFor = 10 * time.Second
)

// conn is one connection.
type conn struct {
	server *Server
	net    net.Conn
	ctx    context.Context // of its streams
	in     *bufio.Reader
	frames *http2.Framer // read by serve alone

	heard   atomic.Int64 // when something came last, in ns
	asked   atomic.Bool  // for a sign of life since then
	writing atomic.Int64 // since when somebody writes, in ns; zero: nobody does
	wmu     sync.Mutex   // held while something is written

	// demands are how many frames came that bring nothing, since when; touched by serve
	// alone.
	demands int
	since   time.Time

	mu       sync.Mutex
	room     *sync.Cond // something changed for those who wait to send
	streams  map[uint32]*stream
	last     uint32 // stream that began
	handlers int    // that run
	closed   bool
	credit   int64 // that the other side gave us to send
	initial  int64 // that it gives with each stream
	maxFrame int   // that it takes
	taken    inflow
	partial  int64 // bytes of messages that are not complete
}

// inflow is the window in which the other side sends.
type inflow struct {
	left   int64 // what may come
	due    int64 // what came and was not given back
	queued int64 // of it, what waits to be taken
}

// come notes that bytes came; false: more than there was room for.
func (f *inflow) come(n int64) bool {
	f.left -= n
	f.due += n
	return f.left >= 0
}

// give is what is to be given back now; zero: nothing yet.
func (f *inflow) give() uint32 {
	n := f.due - f.queued
	if n < creditAt {
		return 0
	}
	f.due -= n
	f.left += n
	return uint32(n)
}

func newConn(s *Server, n net.Conn, auth credentials.AuthInfo) *conn {
	c := &conn{
		server: s, net: n, streams: map[uint32]*stream{}, credit: window, initial: window, maxFrame: maxFrame, taken: inflow{left: window},
		ctx: peer.NewContext(context.Background(), &peer.Peer{Addr: n.RemoteAddr(), LocalAddr: n.LocalAddr(), AuthInfo: auth}),
		in:  bufio.NewReaderSize(n, readBuffer),
	}
	c.frames = http2.NewFramer(nil, c.in)
	c.room = sync.NewCond(&c.mu)
	c.frames.SetReuseFrames()
	c.frames.SetMaxReadFrameSize(maxFrame)
	c.frames.MaxHeaderListSize = s.cfg.MaxHeaders
	c.frames.ReadMetaHeaders = hpack.NewDecoder(headerTable, nil)
	c.heard.Store(time.Now().UnixNano())
	return c
}

// stuck tells whether somebody writes for too long.
func (c *conn) stuck(now int64, patience time.Duration) bool {
	since := c.writing.Load()
	return since != 0 && now-since > int64(patience)
}

// gone tells whether nothing came for too long.
func (c *conn) gone(now int64, patience time.Duration) bool {
	return now-c.heard.Load() > int64(patience)
}

// silent tells, once, that nothing came for a while.
func (c *conn) silent(now int64, silence time.Duration) bool {
	return now-c.heard.Load() > int64(silence) && !c.asked.Swap(true)
}

// serve serves until the connection ends, one way or the other.
func (c *conn) serve() {
	err := c.begin()
	for err == nil {
		err = c.next()
	}
	var failed http2.ConnectionError
	if errors.As(err, &failed) {
		c.mu.Lock()
		last := c.last
		c.mu.Unlock()
		_ = c.write(func(o *out) error {
			o.goAway(last, http2.ErrCode(failed), "what came is not HTTP/2 as it should be")
			return nil
		})
	}
	c.close()
}

// begin exchanges what a connection begins with.
func (c *conn) begin() error {
	err := c.write(func(o *out) error {
		o.settings(
			http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0},
			http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: c.server.cfg.MaxStreams},
			http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: c.server.cfg.MaxHeaders},
		)
		return nil
	})
	if err != nil {
		return err
	}
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(c.in, preface); err != nil {
		return err
	}
	if !bytes.Equal(preface, []byte(http2.ClientPreface)) {
		return errors.New("not HTTP/2")
	}
	f, err := c.frames.ReadFrame()
	if err != nil {
		return err
	}
	settings, ok := f.(*http2.SettingsFrame)
	if !ok || settings.IsAck() {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	if err := c.net.SetDeadline(time.Time{}); err != nil {
		return err
	}
	return c.settings(settings)
}

// next reads a frame and does what it says.
func (c *conn) next() error {
	f, err := c.frames.ReadFrame()
	var bad http2.StreamError
	if errors.As(err, &bad) {
		return c.reset(bad.StreamID, bad.Code)
	}
	if errors.Is(err, http2.ErrFrameTooLarge) {
		return http2.ConnectionError(http2.ErrCodeFrameSize)
	}
	if err != nil {
		return err
	}
	c.heard.Store(time.Now().UnixNano())
	c.asked.Store(false)
	switch f := f.(type) {
	case *http2.DataFrame:
		return c.data(f)
	case *http2.MetaHeadersFrame:
		return c.headers(f)
	case *http2.WindowUpdateFrame:
		return c.credited(f.StreamID, int64(f.Increment))
	case *http2.SettingsFrame:
		if f.IsAck() {
			return nil
		}
		return c.settings(f)
	case *http2.PingFrame:
		if f.IsAck() {
			return nil
		}
		data := f.Data
		return c.demand(func(o *out) { o.ping(true, data) })
	case *http2.RSTStreamFrame:
		c.mu.Lock()
		st := c.streams[f.StreamID]
		idle := f.StreamID > c.last
		c.mu.Unlock()
		if idle {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		if st != nil {
			st.leave()
		}
		return c.demand(nil)
	case *http2.GoAwayFrame, *http2.PriorityFrame, *http2.UnknownFrame:
		return c.demand(nil)
	}
	return http2.ConnectionError(http2.ErrCodeProtocol)
}

// demand answers a frame that brings nothing. Whoever sends nothing else is sent away.
func (c *conn) demand(answer func(*out)) error {
	if now := time.Now(); now.Sub(c.since) > demandsFor {
		c.demands, c.since = 0, now
	}
	if c.demands++; c.demands > maxDemands {
		return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	if answer == nil {
		return nil
	}
	return c.write(func(o *out) error { answer(o); return nil })
}

// settings takes in what the other side takes.
func (c *conn) settings(f *http2.SettingsFrame) error {
	c.mu.Lock()
	err := f.ForeachSetting(func(s http2.Setting) error {
		if err := s.Valid(); err != nil {
			return err
		}
		switch s.ID {
		case http2.SettingInitialWindowSize:
			more := int64(s.Val) - c.initial
			c.initial = int64(s.Val)
			for _, st := range c.streams {
				if st.credit += more; st.credit > 1<<31-1 {
					return http2.ConnectionError(http2.ErrCodeFlowControl)
				}
			}
			c.room.Broadcast()
		case http2.SettingMaxFrameSize:
			c.maxFrame = min(int(s.Val), maxOut)
		}
		return nil
	})
	c.mu.Unlock()
	if err != nil {
		return err
	}
	return c.demand((*out).settingsAck)
}

// credited lets us send more, on a stream or on the connection.
func (c *conn) credited(id uint32, n int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id == 0 {
		if c.credit += n; c.credit > 1<<31-1 {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
	} else if st := c.streams[id]; st != nil {
		if st.credit += n; st.credit > 1<<31-1 {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
	} else if id > c.last {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	c.room.Broadcast()
	return nil
}

// headers begins a stream.
func (c *conn) headers(f *http2.MetaHeadersFrame) error {
	id := f.StreamID
	c.mu.Lock()
	switch st := c.streams[id]; {
	case st != nil && f.StreamEnded(): // trailers, of which gRPC's clients have none
		c.mu.Unlock()
		st.noMore()
		return nil
	case st != nil, id <= c.last, id%2 == 0:
		c.mu.Unlock()
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	c.last = id
	busy := len(c.streams) >= int(c.server.cfg.MaxStreams) || c.handlers >= int(c.server.cfg.MaxStreams)
	if !busy && !f.Truncated {
		c.handlers++
	}
	c.mu.Unlock()
	if busy {
		return c.demand(func(o *out) { o.reset(id, http2.ErrCodeRefusedStream) })
	}
	if f.Truncated {
		return c.demand(func(o *out) {
			c.refuse(o, id, status.Newf(codes.ResourceExhausted, "headers of more than %d bytes", c.server.cfg.MaxHeaders))
		})
	}
	r, err := readRequest(f)
	if _, ok := status.FromError(err); !ok {
		c.left()
		return c.demand(func(o *out) {
			o.headers(id, true, maxFrame, func() { o.field(":status", "415"); o.field("content-type", "text/plain") })
			o.reset(id, http2.ErrCodeNo)
		})
	}
	st := newStream(c, id, r, f.StreamEnded())
	c.mu.Lock()
	if c.closed {
		c.handlers--
		c.mu.Unlock()
		return net.ErrClosed
	}
	st.credit = c.initial
	c.streams[id] = st
	c.server.running.Add(1) // until its end is told
	c.mu.Unlock()
	go st.serve(err)
	return nil
}

// refuse answers a call that never was one.
func (c *conn) refuse(o *out, id uint32, st *status.Status) {
	o.headers(id, true, maxFrame, func() { o.reply(nil); o.ending(st, nil) })
	o.reset(id, http2.ErrCodeNo)
}

// left counts a handler that does not run any more.
func (c *conn) left() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handlers--
}

// data takes in what came for a stream.
func (c *conn) data(f *http2.DataFrame) error {
	size := int64(f.Length) // with its padding
	c.mu.Lock()
	st := c.streams[f.StreamID]
	ok, idle := c.taken.come(size), f.StreamID > c.last
	c.mu.Unlock()
	switch {
	case !ok:
		return http2.ConnectionError(http2.ErrCodeFlowControl)
	case idle:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	case st != nil:
		if len(f.Data()) > 0 {
			c.demands = 0
		} else if err := c.demand(nil); err != nil {
			return err
		}
		if code := st.take(f.Data(), size, f.StreamEnded()); code != http2.ErrCodeNo {
			return c.reset(f.StreamID, code)
		}
	}
	return c.replenish(nil)
}

// replenish gives back what was taken of the connection's window and a stream's.
func (c *conn) replenish(st *stream) error {
	c.mu.Lock()
	all, own := c.taken.give(), uint32(0)
	if st != nil && !st.over {
		own = st.taken.give()
	}
	c.mu.Unlock()
	if all == 0 && own == 0 {
		return nil
	}
	return c.write(func(o *out) error {
		if all > 0 {
			o.credit(0, all)
		}
		if own > 0 {
			o.credit(st.id, own)
		}
		return nil
	})
}

// reset ends a stream whose client made a mistake.
func (c *conn) reset(id uint32, code http2.ErrCode) error {
	c.mu.Lock()
	st := c.streams[id]
	c.last = max(c.last, id)
	c.mu.Unlock()
	if st != nil {
		st.leave()
	}
	return c.demand(func(o *out) { o.reset(id, code) })
}

// write writes frames, all that build adds at once; its error is given, and then nothing
// is written. Who cannot write closes the connection.
func (c *conn) write(build func(*out) error) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	o := outs.Get().(*out)
	defer func() {
		if cap(o.buf) > 2*maxOut {
			o.buf = nil
		}
		o.buf = o.buf[:0]
		outs.Put(o)
	}()
	if err := build(o); err != nil {
		return err
	}
	c.writing.Store(time.Now().UnixNano())
	_, err := c.net.Write(o.buf)
	c.writing.Store(0)
	if err != nil {
		_ = c.net.Close()
		return fmt.Errorf("%w: %w", errLost, err)
	}
	return nil
}

var errLost = errors.New("the connection is lost")

// close ends the connection and all its streams. Who sees it closed has room for another.
func (c *conn) close() {
	c.server.mu.Lock()
	delete(c.server.conns, c)
	c.server.mu.Unlock()
	_ = c.net.Close()
	c.mu.Lock()
	c.closed = true
	streams := make([]*stream, 0, len(c.streams))
	for _, st := range c.streams {
		streams = append(streams, st)
	}
	c.mu.Unlock()
	for _, st := range streams {
		st.leave()
	}
}
