package lite

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"chandler.dev/chandler/internal/testenv/leaks"
)

func TestMain(m *testing.M) { leaks.Main(m) }

// serve has gRPC's own server answer calls of any method, until the test is over.
func serve(t *testing.T, handler grpc.StreamHandler) *bufconn.Listener {
	t.Helper()
	pipes := bufconn.Listen(16 << 10)
	s := grpc.NewServer(grpc.UnknownServiceHandler(handler), grpc.MaxRecvMsgSize(maxMessage))
	done := make(chan error, 1)
	go func() { done <- s.Serve(pipes) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return pipes
}

// call says something in one call, and gives what came and how it ended.
func call(t *testing.T, pipes *bufconn.Listener, say ...[]byte) (heard [][]byte, ended error) {
	t.Helper()
	enough := errors.New("enough")
	var st *Stream
	var c *Conn
	over := false
	c, err := Dial(t.Context(), Config{
		Target:      "server:1",
		DialContext: func(ctx context.Context, _ string) (net.Conn, error) { return pipes.DialContext(ctx) },
		Turn: func(now time.Time) (time.Time, error) {
			if over {
				return now, enough
			}
			if st == nil {
				st = c.Open("/a.B/C", func(b []byte) error {
					var m wrapperspb.BytesValue
					heard = append(heard, nil)
					err := proto.Unmarshal(b, &m)
					heard[len(heard)-1] = m.GetValue()
					return err
				}, func(err error) { ended, over = err, true })
				for i, b := range say {
					if err := st.Send(wrapperspb.Bytes(b), i == len(say)-1); err != nil {
						return now, err
					}
				}
			}
			return now.Add(time.Hour), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Serve(t.Context()); !errors.Is(err, enough) {
		t.Fatal(err)
	}
	return heard, ended
}

func echo(_ any, s grpc.ServerStream) error {
	for {
		var m wrapperspb.BytesValue
		if err := s.RecvMsg(&m); err != nil {
			return nil //nolint:nilerr // it is the end
		}
		if err := s.SendMsg(&m); err != nil {
			return err
		}
	}
}

// Messages of any size go there and back, past all windows.
func TestMessages(t *testing.T) {
	t.Parallel()
	var say [][]byte
	for _, size := range []int{0, 1, 5, 100, maxFrame - 5, maxFrame, 70_000, 3 << 20, 0, 1} {
		say = append(say, bytes.Repeat([]byte{byte(size)}, size))
	}
	heard, err := call(t, serve(t, echo), say...)
	if err != nil || !slices.EqualFunc(heard, say, bytes.Equal) {
		t.Errorf("%d of %d came back, or others: %v", len(heard), len(say), err)
	}
}

// How a call ended is told.
func TestEnd(t *testing.T) {
	t.Parallel()
	pipes := serve(t, func(any, grpc.ServerStream) error { return status.Error(codes.NotFound, "there is none: 100 %, ä") })
	if _, err := call(t, pipes, []byte("x")); status.Code(err) != codes.NotFound || status.Convert(err).Message() != "there is none: 100 %, ä" {
		t.Error(err)
	}
	pipes = serve(t, func(_ any, s grpc.ServerStream) error { return s.SendMsg(wrapperspb.String("\xff")) })
	if _, err := call(t, pipes, []byte("x")); err == nil {
		t.Error("what cannot be sent was not an error")
	}
}

// mute gives a connection to a server that takes everything and says nothing.
func mute(t *testing.T) net.Conn {
	here, there := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, there)
	}()
	t.Cleanup(func() {
		here.Close()
		<-done
		there.Close()
	})
	return here
}

// A server that says nothing any more is left within twenty seconds.
func TestNoSignOfLife(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		here := mute(t)
		turns, began := 0, time.Now()
		c, err := Dial(t.Context(), Config{
			DialContext: func(context.Context, string) (net.Conn, error) { return here, nil },
			Turn:        func(now time.Time) (time.Time, error) { turns++; return now.Add(time.Hour), nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Serve(t.Context()); err == nil || time.Since(began) != silence+patience || turns != 2 {
			t.Errorf("%v after %v and %d turns", err, time.Since(began), turns)
		}
	})
}

// Whoever wakes it has its owner have a turn; the end of its context is its end.
func TestWake(t *testing.T) {
	t.Parallel()
	here := mute(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	turns := make(chan struct{}, 100)
	c, err := Dial(ctx, Config{
		DialContext: func(context.Context, string) (net.Conn, error) { return here, nil },
		Turn:        func(now time.Time) (time.Time, error) { turns <- struct{}{}; return now.Add(time.Hour), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- c.Serve(ctx) }()
	<-turns
	for range 3 {
		c.Wake()
		<-turns
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	c.Wake()
}
