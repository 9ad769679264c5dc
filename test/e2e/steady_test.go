package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// steady is a load of a fixed rate over connections that are opened once and
// never again: HTTP/1.1 and HTTP/2 with requests, streams whose bodies go both
// ways, and a WebSocket. A connection that ends is therefore a failure, and all
// that used it stops.
type steady struct {
	port int
	asks []ask
	stop chan struct{}
	wg   sync.WaitGroup
	// answers counts requests, exchanged what went to and fro on streams and the
	// WebSocket.
	answers, exchanged, wrongs atomic.Int64

	mu    sync.Mutex
	wrong []string // the first ones
	took  []time.Duration
	check []func() error // that a connection is still open
}

// ask is a request that is made again and again. begin notes what right needs
// to judge its answer.
type ask struct {
	header http.Header
	begin  func() int
	right  func(a answer, begun int) error
}

// The load: 16 callers every 32 ms are 500 requests a second.
const (
	steadyConns   = 8 // of HTTP/1.1, one caller each
	steadyH2      = 4 // connections of HTTP/2, two callers and two streams each
	steadyCallers = steadyConns + 2*steadyH2
	callEvery     = 32 * time.Millisecond
	steadyRate    = steadyCallers / (float64(callEvery) / float64(time.Second))
	chunkEvery    = 50 * time.Millisecond
	streamChunks  = 40 // of a stream that ends and is followed by another one
)

// steadyUpstream answers requests, and sends bodies and WebSocket messages back.
func steadyUpstream(rw http.ResponseWriter, r *http.Request) {
	switch {
	case r.Header.Get("Upgrade") != "":
		echoSocket(rw, r)
	case r.URL.Path == "/stream":
		control := http.NewResponseController(rw)
		if control.EnableFullDuplex() != nil || control.Flush() != nil {
			return
		}
		b := make([]byte, 1024)
		for {
			n, err := r.Body.Read(b)
			if _, failed := rw.Write(b[:n]); failed != nil || control.Flush() != nil || err != nil {
				return
			}
		}
	default:
		echo(rw, r)
	}
}

// startSteady opens the connections and begins. Streams and the WebSocket carry
// the header of the last ask.
func startSteady(t *testing.T, port int, asks ...ask) *steady {
	t.Helper()
	s := &steady{port: port, asks: asks, stop: make(chan struct{})}
	held := asks[len(asks)-1].header
	for i := range steadyConns {
		c := &plainConn{conn: dial(t, port), host: loopback(port)}
		c.r = bufio.NewReader(c.conn)
		s.check = append(s.check, c.open)
		s.call(i, c.call)
	}
	transport := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true}
	transport.Protocols.SetUnencryptedHTTP2(true)
	for i := range steadyH2 {
		cc, err := transport.NewClientConn(t.Context(), "http", loopback(port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cc.Close() })
		s.check = append(s.check, func() error {
			if err := cc.Err(); err != nil || cc.Available() == 0 {
				return fmt.Errorf("the proxy ends a connection of HTTP/2: %v", err)
			}
			return nil
		})
		for j := range 2 {
			s.call(steadyConns+2*i+j, func(header http.Header) (answer, error) { return call2(cc, port, header) })
		}
		s.goRun("the stream held open", func() error { return s.stream(cc, held, -1) })
		s.goRun("a stream", func() error {
			for !s.ended() {
				if err := s.stream(cc, held, streamChunks); err != nil {
					return err
				}
			}
			return nil
		})
	}
	s.holdSocket(t, held)
	return s
}

func dial(t *testing.T, port int) net.Conn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", loopback(port), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// goRun runs a part of the load; its error is told and ends it.
func (s *steady) goRun(what string, f func() error) {
	s.wg.Go(func() {
		if err := f(); err != nil {
			s.fail(fmt.Errorf("%s: %w", what, err))
		}
	})
}

func (s *steady) fail(err error) {
	s.wrongs.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.wrong) < 20 {
		s.wrong = append(s.wrong, err.Error())
	}
}

func (s *steady) ended() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

// pace waits for the next moment of a rhythm; false when the load ends.
func (s *steady) pace(due *time.Time, every time.Duration) bool {
	*due = due.Add(every)
	select {
	case <-s.stop:
		return false
	case <-time.After(time.Until(*due)):
		return true
	}
}

// call makes requests in turn, one after the other. An answer takes as long as
// it is from when its request was due, so that one that is late makes those
// behind it late too.
func (s *steady) call(i int, call func(http.Header) (answer, error)) {
	due := time.Now().Add(time.Duration(i) * callEvery / steadyCallers)
	s.goRun(fmt.Sprintf("caller %d", i), func() error {
		for n := i; s.pace(&due, callEvery); n++ {
			ask := s.asks[n%len(s.asks)]
			begun := ask.begin()
			a, err := call(ask.header)
			if err != nil {
				return err
			}
			s.answers.Add(1)
			s.mu.Lock()
			s.took = append(s.took, time.Since(due))
			s.mu.Unlock()
			if err := ask.right(a, begun); err != nil {
				s.fail(err)
			}
		}
		return nil
	})
}

// latency gives median and 99th percentile of the answers since the last call.
func (s *steady) latency() (p50, p99 time.Duration, n int) {
	s.mu.Lock()
	took := s.took
	s.took = nil
	s.mu.Unlock()
	if len(took) == 0 {
		return 0, 0, 0
	}
	slices.Sort(took)
	return took[len(took)/2], took[len(took)*99/100], len(took)
}

// end stops the load, and looks whether all is still open that was opened.
func (s *steady) end(t *testing.T) {
	t.Helper()
	close(s.stop)
	s.wg.Wait()
	for _, open := range s.check {
		if err := open(); err != nil {
			s.fail(err)
		}
	}
	if n := s.wrongs.Load(); n > 0 {
		t.Errorf("with %d requests and %d exchanges %d things went wrong: %s",
			s.answers.Load(), s.exchanged.Load(), n, strings.Join(s.wrong, "; "))
	}
}

// plainConn is one connection of HTTP/1.1.
type plainConn struct {
	host string
	conn net.Conn
	r    *bufio.Reader
}

func (c *plainConn) call(header http.Header) (answer, error) {
	req, err := http.NewRequest(http.MethodGet, "http://"+c.host+"/", nil)
	if err != nil {
		return answer{}, err
	}
	maps.Copy(req.Header, header)
	_ = c.conn.SetDeadline(time.Now().Add(time.Minute))
	if err := req.Write(c.conn); err != nil {
		return answer{}, err
	}
	resp, err := http.ReadResponse(c.r, req)
	if err != nil {
		return answer{}, err
	}
	a, err := readAnswer(resp)
	if err == nil && resp.Close {
		err = fmt.Errorf("the proxy announced the end of a connection with status %d", a.code)
	}
	return a, err
}

// open tells of an end that came behind the last answer.
func (c *plainConn) open() error {
	_ = c.conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	_, err := c.r.Peek(1)
	if e, ok := err.(net.Error); ok && e.Timeout() {
		return nil
	}
	return fmt.Errorf("the proxy ended a connection: %v", err)
}

func call2(cc *http.ClientConn, port int, header http.Header) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+loopback(port)+"/", nil)
	if err != nil {
		return answer{}, err
	}
	maps.Copy(req.Header, header)
	resp, err := cc.RoundTrip(req)
	if err != nil {
		return answer{}, err
	}
	if resp.ProtoMajor != 2 {
		return answer{}, fmt.Errorf("an answer in %s", resp.Proto)
	}
	return readAnswer(resp)
}

// stream sends a body piece by piece and reads each piece back before the next,
// chunks of them, or when negative until the load ends.
func (s *steady) stream(cc *http.ClientConn, header http.Header, chunks int) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	body, w := io.Pipe()
	defer w.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+loopback(s.port)+"/stream", body)
	if err != nil {
		return err
	}
	maps.Copy(req.Header, header)
	watch := time.AfterFunc(time.Minute, cancel)
	defer watch.Stop()
	resp, err := cc.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	due := time.Now()
	for n := 0; n != chunks && s.pace(&due, chunkEvery); n++ {
		watch.Reset(time.Minute)
		piece := fmt.Sprintf("piece %9d", n)
		if _, err := io.WriteString(w, piece); err != nil {
			return err
		}
		got := make([]byte, len(piece))
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != piece {
			return fmt.Errorf("piece %d came back as %q: %v", n, got, err)
		}
		s.exchanged.Add(1)
	}
	_ = w.Close()
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
		return fmt.Errorf("its end: %d bytes too many, %v", len(rest), err)
	}
	return nil
}

// holdSocket keeps a WebSocket talking.
func (s *steady) holdSocket(t *testing.T, header http.Header) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, "ws://"+loopback(s.port)+"/", &websocket.DialOptions{HTTPHeader: header})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.CloseNow() })
	due := time.Now()
	s.goRun("the WebSocket", func() error {
		for n := 0; s.pace(&due, chunkEvery); n++ {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			text := fmt.Sprint("message ", n)
			err := conn.Write(ctx, websocket.MessageText, []byte(text))
			var got []byte
			if err == nil {
				_, got, err = conn.Read(ctx)
			}
			cancel()
			if err != nil || string(got) != text {
				return fmt.Errorf("message %d came back as %q: %v", n, got, err)
			}
			s.exchanged.Add(1)
		}
		return conn.Close(websocket.StatusNormalClosure, "")
	})
}
