package quiet_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler/internal/xds/quiet"
)

// frameOf is a message as it goes over the wire.
func frameOf(s string) []byte {
	b, _ := proto.Marshal(say(s))
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
}

// raw is a client that writes frames by hand. It reads until the connection ends.
type raw struct {
	t *testing.T
	*http2.Framer
	conn   net.Conn
	buf    bytes.Buffer
	header *hpack.Encoder
	news   chan struct{} // capacity 1

	mu       sync.Mutex
	messages int                      // DATA frames
	statuses map[uint32]string        // grpc-status, or :status
	resets   map[uint32]http2.ErrCode // by stream
	away     *http2.ErrCode
	pongs    int
	pings    int
	closed   bool
}

func client(t *testing.T, addr string) *raw {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return clientOn(t, conn)
}

func clientOn(t *testing.T, conn net.Conn) *raw {
	t.Helper()
	r := &raw{t: t, conn: conn, Framer: http2.NewFramer(conn, conn), news: make(chan struct{}, 1), statuses: map[uint32]string{}, resets: map[uint32]http2.ErrCode{}}
	r.header = hpack.NewEncoder(&r.buf)
	r.AllowIllegalWrites = true
	r.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); r.read() }()
	t.Cleanup(func() { _ = conn.Close(); <-done })
	return r
}

func (r *raw) read() {
	for {
		f, err := r.ReadFrame()
		r.mu.Lock()
		if err != nil {
			r.closed = true
		}
		switch f := f.(type) {
		case *http2.DataFrame:
			r.messages++
		case *http2.MetaHeadersFrame:
			for _, h := range f.Fields {
				if h.Name == "grpc-status" || h.Name == ":status" {
					r.statuses[f.StreamID] = h.Value
				}
			}
		case *http2.RSTStreamFrame:
			r.resets[f.StreamID] = f.ErrCode
		case *http2.GoAwayFrame:
			r.away = &f.ErrCode
		case *http2.PingFrame:
			if f.IsAck() {
				r.pongs++
			} else {
				r.pings++
			}
		}
		r.mu.Unlock()
		select {
		case r.news <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// await waits until something is so; it is asked with the lock held.
func (r *raw) await(is func() bool) {
	r.t.Helper()
	deadline := time.After(time.Minute)
	for {
		r.mu.Lock()
		ok := is()
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-r.news:
		case <-time.After(50 * time.Millisecond):
		case <-deadline:
			r.mu.Lock()
			defer r.mu.Unlock()
			r.t.Fatalf("it does not come: %d messages, statuses %v, resets %v, away %v, closed %v", r.messages, r.statuses, r.resets, r.away, r.closed)
		}
	}
}

// headers gives a block of headers: those of a call, and more.
func (r *raw) headers(method string, more ...string) []byte {
	r.buf.Reset()
	fields := append([]string{":method", "POST", ":scheme", "http", ":path", method, ":authority", "x", "content-type", "application/grpc", "te", "trailers"}, more...)
	for i := 0; i < len(fields); i += 2 {
		_ = r.header.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(r.buf.Bytes())
}

// call begins a stream, with data if there is any.
func (r *raw) call(id uint32, method string, data []byte) {
	r.t.Helper()
	err := r.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: r.headers(method), EndHeaders: true})
	if err == nil && data != nil {
		err = r.WriteData(id, false, data)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// sentAway waits for how the connection ends.
func (r *raw) sentAway(code http2.ErrCode) {
	r.t.Helper()
	r.await(func() bool { return r.closed })
	if r.away == nil || *r.away != code {
		r.t.Errorf("sent away with %v, not %v", r.away, code)
	}
}

// hostileServer serves, and afterwards a client that does nothing wrong.
func hostileServer(t *testing.T, cfg quiet.Config) string {
	t.Helper()
	addr := quietly(t, cfg, service{streams: map[string]func(grpc.ServerStream) error{
		"Echo": echo, "Attended": attended,
		"Wait": func(str grpc.ServerStream) error { <-str.Context().Done(); return nil },
		"Hang": func(str grpc.ServerStream) error { // it does not notice that its client left
			<-t.Context().Done()
			return nil
		},
	}})
	t.Cleanup(func() {
		conn := dial(t, addr)
		str := open(t, context.WithoutCancel(t.Context()), conn, "Echo")
		if err := errors.Join(str.SendMsg(say("a")), str.RecvMsg(&text{})); err != nil {
			t.Errorf("others are not served any more: %v", err)
		}
	})
	return addr
}

// What breaks HTTP/2 ends the connection, with the code that RFC 9113 has for it.
func TestBrokenConnections(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		do func(r *raw) error
		// code is what the client is told; zero: it is still writing, so that its system
		// may drop what it is told.
		code http2.ErrCode
	}{
		"an even stream":         {func(r *raw) error { r.call(2, "/test/Echo", nil); return nil }, http2.ErrCodeProtocol},
		"a stream twice":         {func(r *raw) error { r.call(3, "/test/Echo", nil); r.call(1, "/test/Echo", nil); return nil }, http2.ErrCodeProtocol},
		"data of no stream":      {func(r *raw) error { return r.WriteData(5, false, []byte("x")) }, http2.ErrCodeProtocol},
		"a reset of no stream":   {func(r *raw) error { return r.WriteRSTStream(5, http2.ErrCodeCancel) }, http2.ErrCodeProtocol},
		"a window for no stream": {func(r *raw) error { return r.WriteWindowUpdate(5, 1) }, http2.ErrCodeProtocol},
		"a window too large":     {func(r *raw) error { return r.WriteWindowUpdate(0, 1<<31-1) }, http2.ErrCodeFlowControl},
		"a push": {func(r *raw) error {
			return r.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
		}, http2.ErrCodeProtocol},
		"a frame too large":      {func(r *raw) error { r.call(1, "/test/Wait", nil); return r.WriteData(1, false, make([]byte, 17<<10)) }, http2.ErrCodeFrameSize},
		"a setting that is none": {func(r *raw) error { return r.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1}) }, http2.ErrCodeProtocol},
		"a window setting of 2^31": {func(r *raw) error {
			return r.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31})
		}, http2.ErrCodeFlowControl},
		"headers within headers": {func(r *raw) error {
			if err := r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.headers("/test/Echo")}); err != nil {
				return err
			}
			return r.WritePing(false, [8]byte{})
		}, http2.ErrCodeProtocol},
		"headers that are no HPACK": {func(r *raw) error {
			return r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true})
		}, http2.ErrCodeCompression},
		"more than the connection's window": {func(r *raw) error {
			for i := range uint32(5) { // 75 KiB on streams that may have 64 each
				r.call(2*i+1, "/test/Wait", frameOf(strings.Repeat("x", 15<<10)))
			}
			return nil
		}, http2.ErrCodeFlowControl},
		"pings without end": {func(r *raw) error {
			for range 5000 {
				if r.WritePing(false, [8]byte{}) != nil {
					return nil
				}
			}
			return nil
		}, 0},
		"settings without end": {func(r *raw) error {
			for range 5000 {
				if r.WriteSettings() != nil {
					return nil
				}
			}
			return nil
		}, 0},
		"streams begun and reset without end": {func(r *raw) error {
			for i := range uint32(5000) {
				err := r.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: r.headers("/test/Hang"), EndHeaders: true})
				if err != nil || r.WriteRSTStream(2*i+1, http2.ErrCodeCancel) != nil {
					return nil
				}
			}
			return nil
		}, 0},
		"a continuation without end": {func(r *raw) error {
			if err := r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.headers("/test/Echo")}); err != nil {
				return err
			}
			for range 5000 {
				if r.WriteContinuation(1, false, r.headers("/x", "a", strings.Repeat("b", 8<<10))[20:]) != nil {
					return nil
				}
			}
			return nil
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := client(t, hostileServer(t, quiet.Config{}))
			if err := c.do(r); err != nil {
				t.Fatal(err)
			}
			if c.code == 0 {
				r.await(func() bool { return r.closed })
				return
			}
			r.sentAway(c.code)
		})
	}
}

// What breaks one stream ends that, and others go on.
func TestBrokenStreams(t *testing.T) {
	t.Parallel()
	r := client(t, hostileServer(t, quiet.Config{MaxHeaders: 4 << 10}))
	fails := func(id uint32, code codes.Code) {
		t.Helper()
		r.await(func() bool { return r.statuses[id] == strconv.Itoa(int(code)) })
	}
	r.call(1, "/test/None", nil)
	fails(1, codes.Unimplemented)
	r.call(3, "/test/Echo", []byte{1, 0, 0, 0, 1, 0})
	fails(3, codes.Internal) // compressed
	r.call(5, "/test/Attended", []byte{0, 0xff, 0xff, 0xff, 0xff})
	fails(5, codes.ResourceExhausted)
	r.call(7, "/test/Attended", append([]byte{0, 0, 0, 0, 1}, 0xff))
	fails(7, codes.Internal) // no message
	next := uint32(201)
	for _, c := range []struct {
		more []string
		code codes.Code
	}{
		{[]string{"grpc-encoding", "gzip"}, codes.Unimplemented},
		{[]string{"grpc-timeout", "never"}, codes.Internal},
		{[]string{"a-bin", "%%%"}, codes.Internal},
		{slices.Repeat([]string{"a", strings.Repeat("b", 600)}, 10), codes.ResourceExhausted},
	} {
		_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: next, BlockFragment: r.headers("/test/Echo", c.more...), EndHeaders: true})
		fails(next, c.code)
		next += 2
	}
	// A client of something else.
	r.buf.Reset()
	for _, h := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":path", "/"}, {":authority", "x"}} {
		_ = r.header.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: next, BlockFragment: r.buf.Bytes(), EndHeaders: true, EndStream: true})
	r.await(func() bool { return r.statuses[next] == "415" })
	next += 2
	// Data after the end, and a header that is not allowed, are the stream's own.
	_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: next, BlockFragment: r.headers("/test/Wait"), EndHeaders: true, EndStream: true})
	_ = r.WriteData(next, false, []byte("x"))
	r.await(func() bool { return r.resets[next] == http2.ErrCodeStreamClosed })
	next += 2
	_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: next, BlockFragment: r.headers("/test/Wait", "Upper", "case"), EndHeaders: true})
	r.await(func() bool { return r.resets[next] == http2.ErrCodeProtocol })
	next += 2
	r.call(next, "/test/Echo", frameOf("still there"))
	r.await(func() bool { return r.messages == 1 })
}

// What is not complete is bounded for a connection, however many streams it is on.
func TestPartialMessages(t *testing.T) {
	t.Parallel()
	r := client(t, hostileServer(t, quiet.Config{MaxMessage: 30 << 10}))
	part := append([]byte{0, 0, 0, 0x70, 0}, make([]byte, 14<<10)...) // of 28 KiB
	const most = 9                                                    // 126 KiB are more than four of 30
	for i := range uint32(most) {
		r.call(2*i+1, "/test/Attended", part)
	}
	r.call(2*most+1, "/test/Attended", part)
	r.await(func() bool { return r.statuses[2*most+1] == strconv.Itoa(int(codes.ResourceExhausted)) })
	for i := range uint32(most) {
		_ = r.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
	}
	r.call(2*most+3, "/test/Attended", frameOf("x"))
	r.await(func() bool { return r.messages == 1 })
}

// There are no more streams than is allowed, nor handlers of streams that are gone.
func TestTooManyStreams(t *testing.T) {
	t.Parallel()
	r := client(t, hostileServer(t, quiet.Config{MaxStreams: 3}))
	for i := range uint32(4) {
		r.call(2*i+1, "/test/Attended", frameOf("x"))
	}
	r.await(func() bool { return r.messages == 3 && r.resets[7] == http2.ErrCodeRefusedStream })
	_ = r.WriteRSTStream(1, http2.ErrCodeCancel)
	r.call(9, "/test/Attended", frameOf("x"))
	r.await(func() bool { return r.messages == 4 })
}

// Who says nothing is asked, and who gives no sign of life is let go.
func TestSilence(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const silence, patience = 16 * time.Second, 8 * time.Second
		const look = patience / 8 // between looks
		dialer := behindPipes(t, quiet.NewServer(quiet.Config{Silence: silence, Patience: patience}), service{streams: map[string]func(grpc.ServerStream) error{"Echo": echo}})
		conn, err := dialer(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		began, r := time.Now(), clientOn(t, conn)
		r.await(func() bool { return r.pings == 1 })
		if asked := time.Since(began); asked < silence || asked > silence+look {
			t.Errorf("asked after %v", asked)
		}
		r.await(func() bool { return r.closed })
		if took := time.Since(began); took < silence+patience || took > silence+patience+look {
			t.Errorf("let go after %v", took)
		}
		// A client of gRPC answers.
		str := open(t, t.Context(), dial(t, "passthrough:///pipes", grpc.WithContextDialer(dialer)), "Echo")
		time.Sleep(10 * (silence + patience)) // of the bubble's clock
		if err := errors.Join(str.SendMsg(say("a")), str.RecvMsg(&text{})); err != nil {
			t.Error(err)
		}
	})
}

// What never becomes a connection is closed in time, and so is what takes nothing.
func TestNoConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const handshake = 2 * time.Second
		dialer := behindPipes(t, quiet.NewServer(quiet.Config{Handshake: handshake, MaxConnections: 2}), service{streams: map[string]func(grpc.ServerStream) error{"Echo": echo}})
		for says, open := range map[string]time.Duration{"": handshake, "GET / HTTP/1.1\r\nHost: x\r\n\r\n": 0, http2.ClientPreface: handshake} {
			conn, err := dialer(t.Context(), "")
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			_, _ = conn.Write([]byte(says))
			_ = conn.SetReadDeadline(began.Add(time.Minute))
			for b := make([]byte, 1024); err == nil; {
				_, err = conn.Read(b)
			}
			if took := time.Since(began); took != open {
				t.Errorf("%q: open for %v", says, took)
			}
			_ = conn.Close()
		}
		str := open(t, t.Context(), dial(t, "passthrough:///pipes", grpc.WithContextDialer(dialer)), "Echo")
		if err := errors.Join(str.SendMsg(say("a")), str.RecvMsg(&text{})); err != nil {
			t.Errorf("others are not served any more: %v", err)
		}
	})
}

// Any bytes at all end well: the server answers or closes, and its handlers end.
func FuzzFrames(f *testing.F) {
	var seed bytes.Buffer
	fr := http2.NewFramer(&seed, nil)
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", "/test/Attended"}, {"content-type", "application/grpc"}} {
		_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
	_ = fr.WriteData(1, false, frameOf("x"))
	_ = fr.WriteWindowUpdate(1, 10)
	_ = fr.WriteRSTStream(1, http2.ErrCodeCancel)
	f.Add(seed.Bytes())
	f.Add([]byte("\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := quiet.NewServer(quiet.Config{Handshake: time.Second})
		s.RegisterService(service{streams: map[string]func(grpc.ServerStream) error{
			"Attended": attended,
			"Echo":     echo,
		}}.desc(), nil)
		l := &one{conns: make(chan net.Conn, 1)}
		ours, theirs := net.Pipe()
		l.conns <- theirs
		var serving sync.WaitGroup
		serving.Go(func() { _ = s.Serve(l) })
		go func() { // read what it says
			for b := make([]byte, 4096); ; {
				if _, err := ours.Read(b); err != nil {
					return
				}
			}
		}()
		_ = ours.SetWriteDeadline(time.Now().Add(5 * time.Second))
		_, _ = ours.Write([]byte(http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
		_, _ = ours.Write(b)
		_ = ours.Close()
		s.Stop()
		serving.Wait()
	})
}

// one is a listener to which connections are handed.
type one struct {
	conns chan net.Conn
	once  sync.Once
}

func (l *one) Accept() (net.Conn, error) {
	c, ok := <-l.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (l *one) Close() error   { l.once.Do(func() { close(l.conns) }); return nil }
func (l *one) Addr() net.Addr { return &net.TCPAddr{} }
