package quiet

import (
	"cmp"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// Config says whom a server serves, and within what bounds. Zero values stand for the
// defaults.
type Config struct {
	// Credentials make a connection safe, and tell who is at its other end; nil: they
	// are not.
	Credentials credentials.TransportCredentials
	// Unknown gives the error for a method that is not served.
	Unknown func(method string) error

	MaxMessage     int           // bytes of a message from outside; 4 MiB
	MaxHeaders     uint32        // bytes of a stream's headers; 64 KiB
	MaxStreams     uint32        // streams of a connection, and handlers that run for it; 64
	MaxConnections int           // more are closed at once; 32,768
	Handshake      time.Duration // that a connection may take to become one; 10 s
	// Silence is after how much of it a connection is asked for a sign of life, which must
	// not take longer than Patience; nobody may take longer than both to read what he is
	// sent. 30 s, 8 s.
	Silence, Patience time.Duration
}

// Server serves gRPC. Services are registered before Serve.
type Server struct {
	cfg     Config
	methods map[string]*method
	gate    chan struct{} // holds one for each handshake under way
	crew    *crew

	mu      sync.Mutex
	conns   map[*conn]struct{}
	raw     map[net.Conn]struct{} // that are none yet
	lis     map[net.Listener]struct{}
	stopped bool
	running sync.WaitGroup
	stop    chan struct{}
}

// method is one that is served: unary if it has a handler for that.
type method struct {
	impl   any
	unary  *grpc.MethodDesc
	stream *grpc.StreamDesc
}

// handshakes is how many there are at a time for each processor. More would only make all
// of them late, and take memory.
const handshakes = 16

// NewServer gives a server that serves nothing yet.
func NewServer(cfg Config) *Server {
	cfg.MaxMessage, cfg.MaxHeaders = cmp.Or(cfg.MaxMessage, 4<<20), cmp.Or(cfg.MaxHeaders, 64<<10)
	cfg.MaxStreams, cfg.MaxConnections = cmp.Or(cfg.MaxStreams, 64), cmp.Or(cfg.MaxConnections, 32<<10)
	cfg.Handshake = cmp.Or(cfg.Handshake, 10*time.Second)
	cfg.Silence, cfg.Patience = cmp.Or(cfg.Silence, 30*time.Second), cmp.Or(cfg.Patience, 8*time.Second)
	return &Server{
		cfg: cfg, methods: map[string]*method{}, gate: make(chan struct{}, handshakes*runtime.GOMAXPROCS(0)), crew: newCrew(),
		conns: map[*conn]struct{}{}, raw: map[net.Conn]struct{}{}, lis: map[net.Listener]struct{}{}, stop: make(chan struct{}),
	}
}

// RegisterService implements grpc.ServiceRegistrar.
func (s *Server) RegisterService(d *grpc.ServiceDesc, impl any) {
	for i := range d.Methods {
		s.methods["/"+d.ServiceName+"/"+d.Methods[i].MethodName] = &method{impl: impl, unary: &d.Methods[i]}
	}
	for i := range d.Streams {
		s.methods["/"+d.ServiceName+"/"+d.Streams[i].StreamName] = &method{impl: impl, stream: &d.Streams[i]}
	}
}

// Serve takes connections in until Stop, and then returns nil, or until the listener
// fails. It closes the listener.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return nil
	}
	s.lis[l] = struct{}{}
	s.running.Add(2)
	s.mu.Unlock()
	defer s.running.Done()
	over := make(chan struct{})
	defer close(over)
	go s.watch(over)
	for failures := 0; ; {
		raw, err := l.Accept()
		if err == nil {
			failures = 0
			s.welcome(raw)
			continue
		}
		if s.over() {
			return nil
		}
		var temporary interface{ Temporary() bool }
		if !errors.As(err, &temporary) || !temporary.Temporary() {
			return err
		}
		select { // there are no more file descriptors, perhaps
		case <-s.stop:
			return nil
		case <-time.After(min(5*time.Millisecond<<failures, time.Second)):
			failures = min(failures+1, 8)
		}
	}
}

// Stop closes all connections and returns when whatever runs for them has ended.
func (s *Server) Stop() {
	s.mu.Lock()
	if !s.stopped {
		s.stopped = true
		close(s.stop)
	}
	for l := range s.lis {
		_ = l.Close()
	}
	for raw := range s.raw {
		_ = raw.Close()
	}
	for c := range s.conns {
		_ = c.net.Close()
	}
	s.mu.Unlock()
	s.running.Wait()
	s.crew.dismiss()
}

func (s *Server) over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}

// welcome makes a connection of what was accepted, on a goroutine of its own.
func (s *Server) welcome(raw net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped || len(s.conns)+len(s.raw) >= s.cfg.MaxConnections {
		_ = raw.Close()
		return
	}
	s.raw[raw] = struct{}{}
	s.running.Add(1)
	go func() {
		defer s.running.Done()
		if c := s.introduce(raw); c != nil {
			c.serve()
		}
	}()
}

// introduce brings a connection to where frames come, or closes it and gives nil.
func (s *Server) introduce(raw net.Conn) *conn {
	c, err := s.admit(raw)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.raw, raw)
	if err != nil || s.stopped {
		if c != nil {
			_ = c.net.Close()
		}
		_ = raw.Close()
		return nil
	}
	s.conns[c] = struct{}{}
	return c
}

// admit waits until the other side says something, and then for a turn.
func (s *Server) admit(raw net.Conn) (*conn, error) {
	if err := raw.SetDeadline(time.Now().Add(s.cfg.Handshake)); err != nil {
		return nil, err
	}
	if s.cfg.Credentials == nil {
		return newConn(s, raw, nil), nil
	}
	b := &begun{Conn: raw}
	if _, err := io.ReadFull(raw, b.first[:]); err != nil {
		return nil, err
	}
	select {
	case s.gate <- struct{}{}:
	case <-s.stop:
		return nil, errStopped
	}
	if err := raw.SetDeadline(time.Now().Add(s.cfg.Handshake)); err != nil { // waiting was not its fault
		<-s.gate
		return nil, err
	}
	h := &handshake{server: s, raw: b, done: make(chan struct{})}
	s.crew.do(h)
	select {
	case <-h.done:
		<-s.gate
	case <-time.After(slowHandshake): // it does not keep others from theirs
		<-s.gate
		<-h.done
	}
	if h.err != nil {
		return nil, h.err
	}
	return newConn(s, h.safe, h.auth), nil
}

// handshake is one that is made.
type handshake struct {
	server *Server
	raw    net.Conn
	done   chan struct{} // closed when there is a result
	safe   net.Conn
	auth   credentials.AuthInfo
	err    error
}

func (h *handshake) work() {
	defer close(h.done)
	h.safe, h.auth, h.err = h.server.cfg.Credentials.ServerHandshake(h.raw)
}

const slowHandshake = 300 * time.Millisecond

var errStopped = errors.New("the server is stopped")

// begun is a connection of which the first byte was read.
type begun struct {
	net.Conn
	first [1]byte
	given bool
}

// CloseWrite closes the connection for writing, if it can be.
func (b *begun) CloseWrite() error {
	if half, ok := b.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Read implements net.Conn.
func (b *begun) Read(p []byte) (int, error) {
	if !b.given && len(p) > 0 {
		b.given = true
		return copy(p, b.first[:]), nil
	}
	return b.Conn.Read(p)
}

// watch asks connections on which nothing came for a sign of life, and closes those that
// give none or do not read.
func (s *Server) watch(over <-chan struct{}) {
	defer s.running.Done()
	tick := time.NewTicker(max(min(s.cfg.Silence, s.cfg.Patience)/8, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-over:
			return
		case <-tick.C:
		}
		now := time.Now().UnixNano()
		s.mu.Lock()
		for c := range s.conns {
			switch {
			case c.stuck(now, s.cfg.Silence+s.cfg.Patience), c.gone(now, s.cfg.Silence+s.cfg.Patience):
				_ = c.net.Close()
			case c.silent(now, s.cfg.Silence):
				s.running.Add(1)
				go func() { // writing may have to wait
					defer s.running.Done()
					_ = c.write(func(o *out) error { o.ping(false, [8]byte{}); return nil })
				}()
			}
		}
		s.mu.Unlock()
	}
}

// crew does what takes a large stack. A few of them wait for work, with the stacks that
// they have; one who comes when all are busy brings his own.
type crew struct {
	work chan job
	over chan struct{}

	mu      sync.Mutex
	waiting int
	running sync.WaitGroup
}

// job is one piece of work.
type job interface{ work() }

func newCrew() *crew { return &crew{work: make(chan job), over: make(chan struct{})} }

// do has something done. It does not wait.
func (w *crew) do(j job) {
	select {
	case w.work <- j:
	default:
		w.running.Go(func() { w.run(j) })
	}
}

// run does one thing and, if not enough do so, waits for more.
func (w *crew) run(j job) {
	j.work()
	w.mu.Lock()
	stay := w.waiting < 2*runtime.GOMAXPROCS(0)
	if stay {
		w.waiting++
	}
	w.mu.Unlock()
	for stay {
		select {
		case j := <-w.work:
			j.work()
		case <-w.over:
			return
		}
	}
}

// dismiss ends the crew when it has nothing more to do.
func (w *crew) dismiss() {
	close(w.over)
	w.running.Wait()
}

// call has a method's handler run.
func (m *method) call(st *stream) error {
	if m.stream != nil {
		return m.stream.Handler(m.impl, st)
	}
	reply, err := m.unary.Handler(m.impl, st.Context(), func(v any) error {
		err := st.RecvMsg(v)
		if errors.Is(err, io.EOF) {
			err = errNoMessage
		}
		return err
	}, nil)
	if err == nil {
		err = st.SendMsg(reply)
	}
	return err
}
