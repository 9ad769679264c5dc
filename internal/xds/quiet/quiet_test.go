package quiet_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler/internal/xds/quiet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open gives the client's end of a stream that is served by serve.
func open(t *testing.T, serve func(grpc.ServerStream) error, options ...grpc.CallOption) grpc.ClientStream {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	g := grpc.NewServer(append(quiet.ServerOptions(), grpc.UnknownServiceHandler(func(_ any, str grpc.ServerStream) error { return serve(str) }))...)
	var serving sync.WaitGroup
	serving.Go(func() { _ = g.Serve(l) })
	conn, err := grpc.NewClient("passthrough:///it", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(); g.Stop(); serving.Wait() })
	str, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/a.Service/Method", options...)
	if err != nil {
		t.Fatal(err)
	}
	return str
}

func said(t *testing.T, str grpc.ClientStream) error {
	t.Helper()
	return str.RecvMsg(&discoveryv3.DeltaDiscoveryResponse{})
}

// What was said is dealt with in its order; what that gives ends the stream.
func TestReceive(t *testing.T) {
	t.Parallel()
	var heard []string
	str := open(t, func(str grpc.ServerStream) error {
		for {
			received, err := quiet.Receive(str, func(m *discoveryv3.DeltaDiscoveryRequest) error {
				if heard = append(heard, m.GetTypeUrl()); len(heard) == 3 {
					return status.Error(codes.Aborted, "enough")
				}
				return nil
			})
			if err != nil {
				if !received {
					t.Errorf("not received: %v", err)
				}
				return err
			}
		}
	})
	for _, s := range []string{"a", "b", "c"} {
		if err := str.SendMsg(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: s}); err != nil {
			t.Fatal(err)
		}
	}
	if err := said(t, str); status.Code(err) != codes.Aborted || len(heard) != 3 || heard[0]+heard[1]+heard[2] != "abc" {
		t.Errorf("%v after %v", err, heard)
	}
}

// The end of a stream is told apart from what was dealt with.
func TestReceiveTellsTheEnd(t *testing.T) {
	t.Parallel()
	str := open(t, func(str grpc.ServerStream) error {
		received, err := quiet.Receive(str, func(*discoveryv3.DeltaDiscoveryRequest) error { return nil })
		if received || !errors.Is(err, io.EOF) {
			t.Errorf("received %v, %v", received, err)
		}
		return nil
	})
	if err := str.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := said(t, str); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

// broken sends bytes that are no message.
type broken struct{}

func (broken) Name() string { return "proto" }
func (broken) Marshal(any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer{0xff}}, nil
}
func (broken) Unmarshal(b mem.BufferSlice, v any) error {
	return proto.Unmarshal(b.Materialize(), v.(proto.Message))
}

func TestReceiveRefusesWhatIsNoMessage(t *testing.T) {
	t.Parallel()
	str := open(t, func(str grpc.ServerStream) error {
		_, err := quiet.Receive(str, func(*discoveryv3.DeltaDiscoveryRequest) error {
			t.Error("dealt with")
			return nil
		})
		return err
	}, grpc.ForceCodecV2(broken{}))
	if err := str.SendMsg(&discoveryv3.DeltaDiscoveryRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := said(t, str); status.Code(err) != codes.Internal {
		t.Error(err)
	}
}

// A stream that waits for a message is ended from without, for the first reason that is
// given.
func TestEnd(t *testing.T) {
	t.Parallel()
	streams := make(chan grpc.ServerStream, 1)
	str := open(t, func(str grpc.ServerStream) error {
		streams <- str
		_, err := quiet.Receive(str, func(*discoveryv3.DeltaDiscoveryRequest) error { return nil })
		return quiet.Because(str.Context(), err)
	})
	ctx := (<-streams).Context()
	quiet.End(ctx, status.Error(codes.PermissionDenied, "no longer believed"))
	quiet.End(ctx, status.Error(codes.Unavailable, "later"))
	if err := said(t, str); status.Code(err) != codes.PermissionDenied {
		t.Error(err)
	}
	if err := quiet.Because(context.Background(), io.ErrUnexpectedEOF); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("of a stream that was not ended here: %v", err)
	}
}

// Parts arrive as the message that they are together, and whole messages as ever.
func TestParts(t *testing.T) {
	t.Parallel()
	shared, err := proto.Marshal(&discoveryv3.DeltaDiscoveryResponse{Resources: []*discoveryv3.Resource{{Name: "a"}, {Name: "b"}}})
	if err != nil {
		t.Fatal(err)
	}
	own, err := proto.Marshal(&discoveryv3.DeltaDiscoveryResponse{Nonce: "1"})
	if err != nil {
		t.Fatal(err)
	}
	want := &discoveryv3.DeltaDiscoveryResponse{Nonce: "1", Resources: []*discoveryv3.Resource{{Name: "a"}, {Name: "b"}}}
	str := open(t, func(str grpc.ServerStream) error {
		for range 2 {
			if err := str.SendMsg(quiet.Parts{shared, own}); err != nil {
				return err
			}
		}
		return str.SendMsg(want)
	})
	for range 3 {
		got := &discoveryv3.DeltaDiscoveryResponse{}
		if err := str.RecvMsg(got); err != nil || !proto.Equal(got, want) {
			t.Errorf("%v, %v", got, err)
		}
	}
}

// Aside gives what was done aside.
func TestAside(t *testing.T) {
	t.Parallel()
	done := false
	if err := quiet.Aside(func() error { time.Sleep(time.Millisecond); done = true; return io.ErrShortWrite }); !errors.Is(err, io.ErrShortWrite) || !done {
		t.Errorf("%v, done %v", err, done)
	}
}
