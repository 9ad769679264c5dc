// Package quiet has what keeps streams small on which little is said: a control plane
// has two of them for each of ten thousand agents, and what one keeps while it waits is
// most of what an agent costs.
//
// A goroutine keeps the largest stack that it ever needed, as long as a quarter of that
// is in use, and one that waits in gRPC uses as much. So who waits does nothing else:
// messages are decoded, and dealt with, by another goroutine, which then ends.
package quiet

import (
	"context"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
	"google.golang.org/protobuf/proto"
)

// Receive waits for the next message, decodes it and has it dealt with. The error is the
// stream's, with received false, or what deal gave.
func Receive[M any, P interface {
	*M
	proto.Message
}](str grpc.ServerStream, deal func(P) error) (received bool, err error) {
	var r raw
	if err := str.RecvMsg(&r); err != nil {
		return false, err
	}
	return true, Aside(func() error {
		m := P(new(M))
		if err := proto.Unmarshal(r, m); err != nil {
			return status.Errorf(codes.Internal, "a message cannot be decoded: %v", err)
		}
		return deal(m)
	})
}

// Aside does something on a goroutine of its own and waits for it.
func Aside(do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	return <-done
}

// raw is a message that is not decoded yet.
type raw []byte

// Encoded puts a message where RecvMsg is to put it; it is for streams without a wire, in
// tests.
func Encoded(into any, m proto.Message) (err error) {
	*into.(*raw), err = proto.Marshal(m)
	return err
}

// Parts is a message that is encoded already, in parts: whole fields, which together are
// the message. They are not to be changed afterwards, and may be shared by many messages.
type Parts [][]byte

// ServerOptions are what a gRPC server needs on whose streams Receive and End are called
// and Parts are sent.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ForceServerCodecV2(codec{encoding.GetCodecV2(protocodec.Name)}), grpc.InTapHandle(Endable)}
}

// Endable gives the context of a stream that End can end.
func Endable(ctx context.Context, _ *tap.Info) (context.Context, error) {
	ctx, cancel := context.WithCancel(ctx)
	return context.WithValue(ctx, endKey{}, &end{cancel: cancel}), nil
}

type endKey struct{}

// end is how a stream is ended from without.
type end struct {
	cancel context.CancelFunc
	once   sync.Once
	why    atomic.Pointer[status.Status]
}

// End ends a stream, whatever waits for it or for its other end. The first reason, a gRPC
// status, is what the other end is told and what Because gives; nil is none. Without it
// there would have to be a second goroutine, to wait for the reason while the first waits
// for a message.
func End(ctx context.Context, why error) {
	e, ok := ctx.Value(endKey{}).(*end)
	if !ok {
		return
	}
	e.once.Do(func() {
		if why != nil {
			st := status.Convert(why)
			e.why.Store(st)
			tell(ctx, st)
		}
	})
	e.cancel()
}

// tell writes how a stream ends to the other side. gRPC would write it when the handler
// returns, but one that waits for a message is told of its end by way of the context, and
// before it returns gRPC has written that the stream was cancelled. Were its transport
// another one some day, that is what the other side would hear.
func tell(ctx context.Context, st *status.Status) {
	if t, ok := grpc.ServerTransportStreamFromContext(ctx).(interface{ WriteStatus(*status.Status) error }); ok {
		_ = t.WriteStatus(st) // it fails if the other side is gone
	}
}

// Because gives why a stream was ended here, or else the error by which that shows.
func Because(ctx context.Context, err error) error {
	if e, ok := ctx.Value(endKey{}).(*end); ok {
		if why := e.why.Load(); why != nil {
			return why.Err()
		}
	}
	return err
}

type codec struct{ encoding.CodecV2 }

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	parts, ok := v.(Parts)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	out := make(mem.BufferSlice, len(parts))
	for i, p := range parts {
		out[i] = mem.SliceBuffer(p)
	}
	return out, nil
}

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	r, ok := v.(*raw)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	*r = data.Materialize()
	return nil
}
