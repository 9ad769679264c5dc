// Package lite speaks gRPC with a server for thousands of clients in one process, which
// must not take more of a machine than the server that is measured there.
//
// A connection has one goroutine, the one that calls Serve, which reads frames and has
// them dealt with at once. Its owner says what it has to say in its turn, and all of that
// is one write. gRPC's own client has two goroutines for a connection and one for each
// stream, and wakes three of them for every message.
//
// Frames and headers are read by golang.org/x/net/http2. What is here is the part of RFC
// 9113 and of gRPC's protocol (PROTOCOL-HTTP2.md) that a client of the control plane
// uses. It is for tests and benchmarks.
package lite

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	firstWindow = 65_535  // bytes that may be under way at first (RFC 9113, 6.9.2)
	window      = 1 << 20 // that may come here, on a stream and on a connection
	creditAt    = window / 4
	maxFrame    = 16 << 10 // bytes, the least that one may ask for
	maxHeaders  = 16 << 10
	maxMessage  = 32 << 20 // bytes, in either direction
	readBuffer  = 2 << 10  // bytes; what is larger is read past it
	headerTable = 4 << 10  // bytes, until our settings have arrived, which say none

	// A server of which nothing came for silence is asked for a sign of life, which may
	// take as long as patience. Writing may take both together, or twice as long: the
	// deadline is not set anew for each message.
	silence  = 25 * time.Second
	patience = 5 * time.Second
)

// Config is a connection. All but Target and Turn may be left out.
type Config struct {
	Target      string // host and port
	TLS         *tls.Config
	DialContext func(ctx context.Context, target string) (net.Conn, error)
	// Turn has the owner say what it has to, and gives when it is to be called again at
	// the latest. It is called first when nothing was exchanged yet, and then whenever
	// something came or Wake was called. With an error the connection ends.
	Turn func(now time.Time) (time.Time, error)
	// Message is told of every message, by its method and size.
	Message func(method string, sent bool, bytes int)
}

// Conn is a connection. Turn and what is given to Open are called one at a time, and only
// they may call the methods of Conn and Stream, except for Serve and Wake.
type Conn struct {
	cfg    Config
	net    net.Conn
	in     *bufio.Reader
	frames *http2.Framer // read by Serve alone

	mu      sync.Mutex
	out     []byte // not written yet; nil: nothing
	streams map[uint32]*Stream
	last    uint32 // stream that was opened
	credit  int64  // that the server gave us to send
	initial int64  // that it gives with each stream
	taken   inflow

	timer   *time.Timer
	armed   time.Time      // when timer goes off; zero: it does not
	waking  sync.WaitGroup // timer is armed, or does what it is for
	heard   time.Time      // something came last
	asked   time.Time      // for a sign of life since then; zero: not
	patient time.Time      // until when what is written may take
	failed  error          // why it has ended
}

// inflow is the window in which the server sends.
type inflow struct{ left, due int64 }

// come notes that bytes came; false: more than there was room for.
func (f *inflow) come(n int64) bool {
	f.left -= n
	f.due += n
	return f.left >= 0
}

// give is what is to be given back now; zero: nothing yet.
func (f *inflow) give() uint32 {
	n := f.due
	if n < creditAt {
		return 0
	}
	f.left, f.due = f.left+n, 0
	return uint32(n)
}

// Dial connects, and exchanges nothing yet but what TLS does. Whoever gets a Conn calls
// Serve.
func Dial(ctx context.Context, cfg Config) (*Conn, error) {
	if cfg.DialContext == nil {
		cfg.DialContext = func(ctx context.Context, target string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", target)
		}
	}
	if cfg.Message == nil {
		cfg.Message = func(string, bool, int) {}
	}
	n, err := cfg.DialContext(ctx, cfg.Target)
	if err != nil {
		return nil, err
	}
	if cfg.TLS != nil {
		safe := tls.Client(n, protocol(cfg.TLS, cfg.Target))
		if err := safe.HandshakeContext(ctx); err != nil {
			_ = n.Close()
			return nil, err
		}
		n = safe
	}
	c := &Conn{
		cfg: cfg, net: n, in: bufio.NewReaderSize(n, readBuffer), streams: map[uint32]*Stream{},
		credit: firstWindow, initial: firstWindow, taken: inflow{left: window}, heard: time.Now(),
	}
	c.frames = http2.NewFramer(nil, c.in)
	c.frames.SetReuseFrames()
	c.frames.SetMaxReadFrameSize(maxFrame)
	c.frames.MaxHeaderListSize = maxHeaders
	c.frames.ReadMetaHeaders = hpack.NewDecoder(headerTable, nil)
	return c, nil
}

// protocol adds to a TLS configuration what HTTP/2 with a target needs.
func protocol(cfg *tls.Config, target string) *tls.Config {
	cfg = cfg.Clone()
	cfg.NextProtos = []string{http2.NextProtoTLS}
	if host, _, err := net.SplitHostPort(target); err == nil && cfg.ServerName == "" {
		cfg.ServerName = host
	}
	return cfg
}

// Serve serves until the connection or ctx ends, and tells why it did. Nothing that it
// started goes on then; of calls that have not ended nothing is told any more.
func (c *Conn) Serve(ctx context.Context) error {
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.net.Close()
		close(closed)
	})
	err := c.begin()
	for err == nil {
		err = c.next()
	}
	c.mu.Lock()
	c.fail(err)
	if c.timer != nil && c.timer.Stop() {
		c.waking.Done()
	}
	err = c.failed
	c.mu.Unlock()
	c.waking.Wait()
	if !stop() {
		<-closed
		return ctx.Err()
	}
	return err
}

// Wake has it be the owner's turn soon. Anybody may call it.
func (c *Conn) Wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed == nil {
		c.arm(time.Now())
	}
}

// fail ends the connection; the first reason counts.
func (c *Conn) fail(err error) {
	if c.failed == nil {
		c.failed = err
		_ = c.net.Close()
	}
}

func (c *Conn) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.start()
	c.out = append(c.out, http2.ClientPreface...)
	c.settings(
		http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0},
		http2.Setting{ID: http2.SettingEnablePush, Val: 0},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: window},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: maxHeaders},
	)
	c.replenish(0, window-firstWindow)
	c.turn(time.Now())
	return c.failed
}

// next reads a frame and what came with it, and then is the owner's turn.
func (c *Conn) next() error {
	f, err := c.frames.ReadFrame()
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.heard, c.asked = now, time.Time{}
	for {
		if err = c.take(f, err); err != nil {
			return err
		}
		if !c.more() {
			break
		}
		f, err = c.frames.ReadFrame()
	}
	c.turn(now)
	return c.failed
}

// more tells whether a whole frame was read already.
func (c *Conn) more() bool {
	const header = 9
	n := c.in.Buffered()
	if n < header {
		return false
	}
	b, _ := c.in.Peek(header)
	return n >= header+int(b[0])<<16+int(b[1])<<8+int(b[2])
}

// turn is the owner's; what is to be said is written.
func (c *Conn) turn(now time.Time) {
	if c.failed != nil {
		return
	}
	again, err := c.cfg.Turn(now)
	if err != nil {
		c.fail(err)
		return
	}
	for _, st := range c.streams {
		st.flush()
	}
	c.arm(c.alive(now, again))
	if c.out == nil {
		return
	}
	_, err = c.net.Write(c.out)
	c.stop()
	if err != nil {
		c.fail(err)
	}
}

// alive asks for signs of life, and gives when it is to do so again, or what is earlier.
func (c *Conn) alive(now, earlier time.Time) time.Time {
	if c.asked.IsZero() && now.Sub(c.heard) >= silence {
		c.asked = now
		c.frame(8, http2.FramePing, 0, 0)
		c.out = append(c.out, make([]byte, 8)...)
	}
	next := c.heard.Add(silence)
	if !c.asked.IsZero() {
		next = c.asked.Add(patience)
	}
	if c.patient.Sub(now) < silence+patience {
		c.patient = now.Add(2 * (silence + patience))
		_ = c.net.SetWriteDeadline(c.patient)
	}
	if earlier.Before(next) {
		return earlier
	}
	return next
}

// arm has the timer go off at a time, or before.
func (c *Conn) arm(at time.Time) {
	if !c.armed.IsZero() && !c.armed.After(at) {
		return
	}
	c.armed = at
	if c.timer == nil {
		c.waking.Add(1)
		c.timer = time.AfterFunc(time.Until(at), c.wake)
	} else if !c.timer.Reset(time.Until(at)) {
		c.waking.Add(1)
	}
}

// wake is what the timer does.
func (c *Conn) wake() {
	defer c.waking.Done()
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.armed = time.Time{}
	if !c.asked.IsZero() && now.Sub(c.asked) >= patience {
		c.fail(fmt.Errorf("no sign of life for %v", silence+patience))
	}
	c.turn(now)
}

// take takes a frame in. Its error ends the connection.
func (c *Conn) take(f http2.Frame, err error) error {
	var bad http2.StreamError
	if errors.As(err, &bad) {
		if st := c.streams[bad.StreamID]; st != nil {
			st.abort(bad.Code, bad)
		}
		return nil
	}
	if err != nil {
		return err
	}
	switch f := f.(type) {
	case *http2.DataFrame:
		return c.data(f)
	case *http2.MetaHeadersFrame:
		if st := c.streams[f.StreamID]; st != nil {
			st.headers(f)
		}
	case *http2.WindowUpdateFrame:
		if f.StreamID == 0 {
			c.credit += int64(f.Increment)
		} else if st := c.streams[f.StreamID]; st != nil {
			st.credit += int64(f.Increment)
		}
	case *http2.SettingsFrame:
		return c.agree(f)
	case *http2.PingFrame:
		if !f.IsAck() {
			c.frame(len(f.Data), http2.FramePing, http2.FlagPingAck, 0)
			c.out = append(c.out, f.Data[:]...)
		}
	case *http2.RSTStreamFrame:
		if st := c.streams[f.StreamID]; st != nil {
			st.end(fmt.Errorf("the stream was reset: %v", f.ErrCode))
		}
	case *http2.GoAwayFrame:
		return fmt.Errorf("sent away: %v %s", f.ErrCode, bytes.ToValidUTF8(f.DebugData(), nil))
	}
	return nil
}

// agree takes in what the server takes.
func (c *Conn) agree(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
		for _, st := range c.streams {
			st.credit += int64(v) - c.initial
		}
		c.initial = int64(v)
	}
	c.frame(0, http2.FrameSettings, http2.FlagSettingsAck, 0)
	return nil
}

// data takes in a part of a stream, and gives back what it took of the windows.
func (c *Conn) data(f *http2.DataFrame) error {
	size := int64(f.Length) // with its padding
	if !c.taken.come(size) {
		return http2.ConnectionError(http2.ErrCodeFlowControl)
	}
	c.replenish(0, c.taken.give())
	st := c.streams[f.StreamID]
	if st == nil {
		return nil // it has ended here
	}
	if !st.taken.come(size) {
		return http2.ConnectionError(http2.ErrCodeFlowControl)
	}
	st.feed(f.Data())
	switch {
	case st.over:
	case f.StreamEnded():
		st.end(errors.New("the stream ended without a status"))
	default:
		c.replenish(st.id, st.taken.give())
	}
	return nil
}
