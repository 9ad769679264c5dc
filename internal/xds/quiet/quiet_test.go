package quiet_test

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/xds/quiet"
)

func TestMain(m *testing.M) { leaks.Main(m) }

// text is the message of all services here.
type text = wrapperspb.StringValue

func say(s string) *text { return &text{Value: s} }

// service is what a test serves: methods by their names.
type service struct {
	streams map[string]func(grpc.ServerStream) error
	unary   map[string]func(context.Context, *text) (*text, error)
}

func (s service) desc() *grpc.ServiceDesc {
	d := &grpc.ServiceDesc{ServiceName: "test", HandlerType: (*any)(nil)}
	for name, h := range s.streams {
		d.Streams = append(d.Streams, grpc.StreamDesc{StreamName: name, ServerStreams: true, ClientStreams: true, Handler: func(_ any, str grpc.ServerStream) error { return h(str) }})
	}
	for name, h := range s.unary {
		d.Methods = append(d.Methods, grpc.MethodDesc{MethodName: name, Handler: func(_ any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := &text{}
			if err := dec(in); err != nil {
				return nil, err
			}
			return h(ctx, in)
		}})
	}
	return d
}

// server is gRPC's own, or the one of this package.
type server interface {
	grpc.ServiceRegistrar
	Serve(net.Listener) error
	Stop()
}

// servers are the one of this package, and gRPC's, beside which it must not be seen by
// clients.
var servers = map[string]func() server{
	"quiet": func() server { return quiet.NewServer(quiet.Config{}) },
	"grpc":  func() server { return grpc.NewServer(grpc.WaitForHandlers(true)) },
}

// both runs a test with each of them.
func both(t *testing.T, test func(t *testing.T, s server)) {
	t.Helper()
	for name, serve := range servers {
		t.Run(name, func(t *testing.T) { t.Parallel(); test(t, serve()) })
	}
}

// bothInBubbles does so in a bubble of time each.
func bothInBubbles(t *testing.T, test func(t *testing.T, s server)) {
	t.Helper()
	for name, serve := range servers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { test(t, serve()) })
		})
	}
}

// listen serves and gives the address.
func listen(t *testing.T, s server, svc service) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listenOn(t, l, s, svc)
	return l.Addr().String()
}

// behindPipes serves in a bubble of time, and gives how to come there.
func behindPipes(t *testing.T, s server, svc service) func(context.Context, string) (net.Conn, error) {
	t.Helper()
	l := bufconn.Listen(64 << 10)
	listenOn(t, l, s, svc)
	return func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }
}

func listenOn(t *testing.T, l net.Listener, s server, svc service) {
	t.Helper()
	s.RegisterService(svc.desc(), nil)
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := s.Serve(l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { s.Stop(); serving.Wait() })
}

func dial(t *testing.T, addr string, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(addr, append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func open(t *testing.T, ctx context.Context, conn *grpc.ClientConn, method string) grpc.ClientStream {
	t.Helper()
	str, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/test/"+method)
	if err != nil {
		t.Fatal(err)
	}
	return str
}

// echo gives back what comes.
func echo(str grpc.ServerStream) error {
	for {
		m := &text{}
		if err := str.RecvMsg(m); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := str.SendMsg(m); err != nil {
			return err
		}
	}
}

// attended is echo without a goroutine of its own.
func attended(str grpc.ServerStream) error {
	return quiet.Attend(str, func(m *text) error { return str.SendMsg(m) }, func() {})
}

func TestUnary(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, s server) {
		conn := dial(t, listen(t, s, service{unary: map[string]func(context.Context, *text) (*text, error){
			"Call": func(ctx context.Context, in *text) (*text, error) {
				md, _ := metadata.FromIncomingContext(ctx)
				p, _ := peer.FromContext(ctx)
				if !strings.HasPrefix(p.Addr.String(), "127.0.0.1:") || md.Get("a")[0] != "b" || md.Get("c-bin")[0] != "\x00\xff" || len(md.Get("content-type")) != 1 {
					t.Errorf("from %v with %v", p.Addr, md)
				}
				if method, _ := grpc.Method(ctx); method != "/test/Call" {
					t.Errorf("method %q", method)
				}
				return say(in.GetValue() + "!"), errors.Join(grpc.SetHeader(ctx, metadata.Pairs("h", "1")), grpc.SetTrailer(ctx, metadata.Pairs("t-bin", "\xfe")))
			},
			"Fail": func(context.Context, *text) (*text, error) {
				st, err := status.New(codes.FailedPrecondition, "für 100 %\n").WithDetails(&errdetails.ErrorInfo{Reason: "R"})
				if err != nil {
					t.Error(err)
				}
				return nil, st.Err()
			},
			"Plain": func(context.Context, *text) (*text, error) { return nil, errors.New("plain") },
		}}))
		ctx := metadata.AppendToOutgoingContext(t.Context(), "a", "b", "c-bin", "\x00\xff")
		var out text
		var header, trailer metadata.MD
		if err := conn.Invoke(ctx, "/test/Call", say("hello"), &out, grpc.Header(&header), grpc.Trailer(&trailer)); err != nil || out.GetValue() != "hello!" {
			t.Errorf("%q, %v", out.GetValue(), err)
		}
		if header.Get("h")[0] != "1" || trailer.Get("t-bin")[0] != "\xfe" {
			t.Errorf("header %v, trailer %v", header, trailer)
		}
		st := status.Convert(conn.Invoke(ctx, "/test/Fail", say(""), &out))
		if st.Code() != codes.FailedPrecondition || st.Message() != "für 100 %\n" || len(st.Details()) != 1 || st.Details()[0].(*errdetails.ErrorInfo).GetReason() != "R" {
			t.Errorf("%v", st)
		}
		if err := conn.Invoke(ctx, "/test/Plain", say(""), &out); status.Code(err) != codes.Unknown {
			t.Error(err)
		}
		if err := conn.Invoke(ctx, "/test/None", say(""), &out); status.Code(err) != codes.Unimplemented {
			t.Error(err)
		}
	})
}

// Messages of all sizes go both ways on one stream and on many at once, also those that
// are larger than any window.
func TestMessages(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, s server) {
		addr := listen(t, s, service{streams: map[string]func(grpc.ServerStream) error{"Echo": echo, "Attended": attended}})
		conn := dial(t, addr)
		var all sync.WaitGroup
		for _, method := range []string{"Echo", "Attended"} {
			for range 2 {
				all.Go(func() {
					str := open(t, t.Context(), conn, method)
					for _, size := range []int{0, 1, 100, 16 << 10, 70_000, 1 << 20, 3 << 20, 5} {
						want := strings.Repeat("x", size)
						got := &text{}
						if err := errors.Join(str.SendMsg(say(want)), str.RecvMsg(got)); err != nil || got.GetValue() != want {
							t.Errorf("%s: of %d bytes %d came back: %v", method, size, len(got.GetValue()), err)
							return
						}
					}
					if err := errors.Join(str.CloseSend(), str.RecvMsg(&text{})); !errors.Is(err, io.EOF) {
						t.Error(err)
					}
				})
			}
		}
		all.Wait()
	})
}

// Who does not read holds up whoever sends to him, and nobody else.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, s server) {
		sent := make(chan int, 1000)
		conn := dial(t, listen(t, s, service{streams: map[string]func(grpc.ServerStream) error{
			"Flood": func(str grpc.ServerStream) error {
				m := say(strings.Repeat("x", 32<<10))
				for n := range 200 {
					if err := str.SendMsg(m); err != nil {
						return err
					}
					sent <- n
				}
				return nil
			},
			"Echo": echo,
		}}), grpc.WithInitialWindowSize(1<<16), grpc.WithInitialConnWindowSize(1<<20))
		flood := open(t, t.Context(), conn, "Flood")
		if err := flood.SendMsg(say("")); err != nil {
			t.Fatal(err)
		}
		<-sent
		other := open(t, t.Context(), conn, "Echo")
		if err := errors.Join(other.SendMsg(say("a")), other.RecvMsg(&text{})); err != nil {
			t.Error(err)
		}
		if n := len(sent); n > 50 {
			t.Errorf("%d messages were sent that nobody reads", n)
		}
		for range 200 {
			if err := flood.RecvMsg(&text{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := flood.RecvMsg(&text{}); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
}

// Who is not read from has to wait with what he sends, and what waits is bounded.
func TestSlowHandler(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, s server) {
		read := make(chan struct{})
		addr := listen(t, s, service{streams: map[string]func(grpc.ServerStream) error{
			"Late": func(str grpc.ServerStream) error {
				for <-read; ; {
					if err := str.RecvMsg(&text{}); err != nil {
						return nil
					}
				}
			},
			"Attended": func(str grpc.ServerStream) error {
				return quiet.Attend(str, func(*text) error { <-read; return nil }, func() {})
			},
		}})
		const messages, mayWait = 100, 40
		sent := make(chan struct{}, 2*messages)
		var sending sync.WaitGroup
		for _, method := range []string{"Late", "Attended"} {
			str := open(t, t.Context(), dial(t, addr), method)
			sending.Go(func() {
				for range messages {
					if err := str.SendMsg(say(strings.Repeat("x", 16<<10))); err != nil {
						t.Error(err)
						return
					}
					sent <- struct{}{}
				}
				if err := errors.Join(str.CloseSend(), str.RecvMsg(&text{})); !errors.Is(err, io.EOF) {
					t.Error(err)
				}
			})
		}
		<-time.After(200 * time.Millisecond)
		if n := len(sent); n > 2*mayWait {
			t.Errorf("%d messages were taken", n)
		}
		close(read)
		sending.Wait()
	})
}

// leaving are handlers that tell why they ended, of both kinds.
func leaving(left chan<- error) service {
	return service{streams: map[string]func(grpc.ServerStream) error{
		"Wait": func(str grpc.ServerStream) error {
			_ = str.SendMsg(say("here"))
			<-str.Context().Done()
			left <- str.Context().Err()
			return str.Context().Err()
		},
		"Attended": func(str grpc.ServerStream) error {
			return quiet.Attend(str, func(*text) error { return str.SendMsg(say("here")) }, func() { left <- str.Context().Err() })
		},
	}}
}

// Handlers end with their clients, whether these give up or die.
func TestClientsLeave(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, s server) {
		const ways = 2
		left := make(chan error, 2*ways)
		addr := listen(t, s, leaving(left))
		for _, method := range []string{"Wait", "Attended"} {
			conn := dial(t, addr)
			begin := func(ctx context.Context) {
				str := open(t, ctx, conn, method)
				if err := errors.Join(str.SendMsg(say("a")), str.RecvMsg(&text{})); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			begin(ctx)
			cancel()
			if err := <-left; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			begin(t.Context())
			_ = conn.Close()
			if err := <-left; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	})
}

// Handlers end with their clients' patience, when that ends.
func TestClientsLosePatience(t *testing.T) {
	t.Parallel()
	bothInBubbles(t, func(t *testing.T, s server) {
		left := make(chan error, 2)
		dialer := behindPipes(t, s, leaving(left))
		for _, method := range []string{"Wait", "Attended"} {
			const patience = 5 * time.Second
			conn, began := dial(t, "passthrough:///pipes", grpc.WithContextDialer(dialer)), time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			str := open(t, ctx, conn, method)
			if err := errors.Join(str.SendMsg(say("a")), str.RecvMsg(&text{})); err != nil {
				t.Fatal(err)
			}
			if err := <-left; err == nil || time.Since(began) != patience {
				t.Errorf("%s: left after %v: %v", method, time.Since(began), err)
			}
		}
	})
}

// A message beyond the bound is refused, and the connection serves on.
func TestLargeMessages(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, s server) {
		conn := dial(t, listen(t, s, service{streams: map[string]func(grpc.ServerStream) error{"Echo": echo, "Attended": attended}}))
		for _, method := range []string{"Echo", "Attended", "Echo"} {
			str := open(t, t.Context(), conn, method)
			_ = str.SendMsg(say(strings.Repeat("x", 5<<20)))
			if err := str.RecvMsg(&text{}); status.Code(err) != codes.ResourceExhausted {
				t.Error(err)
			}
		}
	})
}

// What deal gives is how a stream ends, after what came before it.
func TestAttend(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, s server) {
		var mu sync.Mutex
		var heard []string
		ended := make(chan int, 10)
		conn := dial(t, listen(t, s, service{streams: map[string]func(grpc.ServerStream) error{
			"Three": func(str grpc.ServerStream) error {
				return quiet.Attend(str, func(m *text) error {
					mu.Lock()
					defer mu.Unlock()
					if heard = append(heard, m.GetValue()); len(heard) == 3 {
						return status.Error(codes.Aborted, "enough")
					}
					return nil
				}, func() { mu.Lock(); ended <- len(heard); mu.Unlock() })
			},
		}}))
		str := open(t, t.Context(), conn, "Three")
		for _, m := range []string{"a", "b", "c", "d"} {
			_ = str.SendMsg(say(m))
		}
		if err := str.RecvMsg(&text{}); status.Code(err) != codes.Aborted {
			t.Error(err)
		}
		if n := <-ended; n != 3 || strings.Join(heard, "") != "abc" {
			t.Errorf("ended after %v", heard)
		}
		heard = nil
		str = open(t, t.Context(), conn, "Three")
		if err := errors.Join(str.SendMsg(say("e")), str.CloseSend(), str.RecvMsg(&text{})); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
		if n := <-ended; n != 1 || len(ended) != 0 {
			t.Errorf("ended after %d", n)
		}
	})
}

// quietly serves with this package's server alone.
func quietly(t *testing.T, cfg quiet.Config, svc service) string {
	t.Helper()
	return listen(t, quiet.NewServer(cfg), svc)
}

// A stream that waits is ended from without, for the first reason that is given.
func TestEnd(t *testing.T) {
	t.Parallel()
	contexts, ended := make(chan context.Context, 1), make(chan struct{}, 10)
	conn := dial(t, quietly(t, quiet.Config{}, service{streams: map[string]func(grpc.ServerStream) error{
		"Attended": func(str grpc.ServerStream) error {
			contexts <- str.Context()
			return quiet.Attend(str, func(*text) error { return nil }, func() { ended <- struct{}{} })
		},
		"Waits": func(str grpc.ServerStream) error {
			contexts <- str.Context()
			defer func() { ended <- struct{}{} }()
			return str.RecvMsg(&text{})
		},
	}}))
	for _, method := range []string{"Attended", "Waits"} {
		str := open(t, t.Context(), conn, method)
		ctx := <-contexts
		quiet.End(ctx, status.Error(codes.PermissionDenied, "no longer believed"))
		quiet.End(ctx, status.Error(codes.Unavailable, "later"))
		if err := str.RecvMsg(&text{}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", method, err)
		}
		<-ended
		if ctx.Err() == nil {
			t.Error("its context goes on")
		}
	}
	quiet.End(t.Context(), io.EOF) // of a stream of another server: nothing
}

// reluctant is a connection from which nothing is read while somebody else has the turn.
type reluctant struct {
	net.Conn
	turn chan struct{} // capacity 1
}

func (c *reluctant) Read(p []byte) (int, error) {
	c.turn <- struct{}{}
	<-c.turn
	return c.Conn.Read(p)
}

// endUnheard calls Attended, and has its stream ended once its message is dealt with, or
// being dealt with: the client is being told, and does not listen until slow has its turn back.
func endUnheard(t *testing.T, l *bufconn.Listener, contexts <-chan context.Context) (r *raw, slow *reluctant) {
	t.Helper()
	conn, err := l.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	slow = &reluctant{Conn: conn, turn: make(chan struct{}, 1)}
	r = clientOn(t, slow)
	r.call(1, "/test/Attended", frameOf("x"))
	ctx := <-contexts
	synctest.Wait()
	slow.turn <- struct{}{}
	go quiet.End(ctx, status.Error(codes.Aborted, "enough"))
	synctest.Wait()
	return r, slow
}

// That a stream has ended is told once, also when a message was dealt with while who ended
// the stream was still telling the client.
func TestEndIsToldOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		contexts, hold, told := make(chan context.Context, 1), make(chan struct{}), make(chan struct{}, 10)
		l := bufconn.Listen(40) // less than what a stream ends with
		listenOn(t, l, quiet.NewServer(quiet.Config{}), service{streams: map[string]func(grpc.ServerStream) error{
			"Attended": func(str grpc.ServerStream) error {
				contexts <- str.Context()
				return quiet.Attend(str, func(*text) error { <-hold; return nil }, func() { told <- struct{}{} })
			},
		}})
		r, slow := endUnheard(t, l, contexts)
		if r.statuses[1] != "" || len(told) != 0 {
			t.Fatalf("it has ended: %v", r.statuses)
		}
		close(hold)
		synctest.Wait()
		<-slow.turn
		synctest.Wait()
		if n := len(told); n != 1 || r.statuses[1] != "10" {
			t.Errorf("its end is told %d times; the client is told %v", n, r.statuses)
		}
	})
}

// late are connections that tell only once they may that they could not write.
type late struct {
	net.Listener
	may <-chan struct{}
}

func (l *late) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return &lateConn{conn, l.may}, err
}

type lateConn struct {
	net.Conn
	may <-chan struct{}
}

func (c *lateConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil {
		<-c.may
	}
	return n, err
}

// Who stops a server is kept waiting until the end of every stream is told, also of one that
// somebody else is about to end.
func TestStopWaitsForEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		contexts, may, told := make(chan context.Context, 1), make(chan struct{}), make(chan struct{}, 10)
		s := quiet.NewServer(quiet.Config{})
		s.RegisterService(service{streams: map[string]func(grpc.ServerStream) error{
			"Attended": func(str grpc.ServerStream) error {
				contexts <- str.Context()
				return quiet.Attend(str, func(*text) error { return nil }, func() { told <- struct{}{} })
			},
		}}.desc(), nil)
		l := bufconn.Listen(40) // less than what a stream ends with
		var serving sync.WaitGroup
		serving.Go(func() { _ = s.Serve(&late{l, may}) })
		_, slow := endUnheard(t, l, contexts)
		stopped := make(chan struct{})
		go func() { defer close(stopped); s.Stop() }()
		synctest.Wait()
		select {
		case <-stopped:
			t.Error("it has stopped, and the end of a stream is not told")
		default:
		}
		close(may)
		<-stopped
		if n := len(told); n != 1 {
			t.Errorf("its end is told %d times", n)
		}
		<-slow.turn
		serving.Wait()
	})
}

// Parts arrive as the message that they are together.
func TestParts(t *testing.T) {
	t.Parallel()
	conn := dial(t, quietly(t, quiet.Config{}, service{streams: map[string]func(grpc.ServerStream) error{
		"Parts": func(str grpc.ServerStream) error {
			a, _ := proto.Marshal(say("a"))
			b, _ := proto.Marshal(say("b")) // the later one of a field counts
			return errors.Join(str.SendMsg(quiet.Parts{a, b}), str.SendMsg(quiet.Parts{}), str.SendMsg(quiet.Parts{a}))
		},
	}}))
	str := open(t, t.Context(), conn, "Parts")
	for _, want := range []string{"b", "", "a"} {
		got := &text{}
		if err := str.RecvMsg(got); err != nil || got.GetValue() != want {
			t.Errorf("%q, %v", got.GetValue(), err)
		}
	}
}

// Streams that wait have no goroutines, and their connection has one.
func TestGoroutines(t *testing.T) {
	addr := quietly(t, quiet.Config{}, service{streams: map[string]func(grpc.ServerStream) error{"Attended": attended}})
	const conns, streams = 20, 10
	before := runtime.NumGoroutine()
	for range conns {
		raw := client(t, addr)
		for i := range streams {
			raw.call(uint32(2*i+1), "/test/Attended", frameOf("x"))
		}
		raw.await(func() bool { return raw.messages == streams })
	}
	deadline := time.Now().Add(time.Minute)
	for runtime.NumGoroutine() > before+2*conns+4*runtime.GOMAXPROCS(0) { // the client's has one, too
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines for %d connections of %d streams", runtime.NumGoroutine()-before, conns, streams)
		}
		<-time.After(10 * time.Millisecond)
	}
}
