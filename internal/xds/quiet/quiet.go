// Package quiet serves gRPC to many clients that say little: a control plane has two
// streams with each of ten thousand agents, and what one of them keeps while nothing is
// said is most of what an agent costs.
//
// A Server has one goroutine for a connection, which waits for the other side and writes
// what the protocol itself asks for. A stream on which the other side only now and then
// has something to say has none: its handler says what is to be done with a message
// (Attend) and returns. Whoever sends writes to the connection himself. gRPC's own server
// has three goroutines for a connection and one for each stream, each with the largest
// stack that it ever needed.
//
// Frames and headers are read by golang.org/x/net/http2. What is here is the part of RFC
// 9113 and of gRPC's protocol (PROTOCOL-HTTP2.md) that gRPC clients use, with bounds on
// all that they may ask for. It is not for browsers, not for HTTP/1, and does not
// compress.
package quiet

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Parts is a message that is encoded already, in parts: whole fields, which together are
// the message. SendMsg takes it. They are not to be changed afterwards, and may be shared
// by many messages.
type Parts [][]byte

// Attend has every message of a stream dealt with, in their order and one at a time. It
// is what the stream's handler returns, and then the stream goes on without the handler's
// goroutine: until deal gives an error, which is how the stream ends, or the other side
// has no more to say, or somebody ends it. Afterwards ended is called, once, when deal
// does not run any more.
func Attend[M any, P interface {
	*M
	proto.Message
}](str grpc.ServerStream, deal func(P) error, ended func()) error {
	read := func(b []byte) error {
		m := P(new(M))
		if err := proto.Unmarshal(b, m); err != nil {
			return status.Errorf(codes.Internal, "a message cannot be decoded: %v", err)
		}
		return deal(m)
	}
	if st, ok := str.Context().Value(streamKey{}).(*stream); ok {
		st.attend(read, ended)
		return errAttended
	}
	defer ended()
	for {
		m := P(new(M))
		if err := str.RecvMsg(m); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := deal(m); err != nil {
			return err
		}
	}
}

// errAttended is what the handler of a stream returns that goes on.
var errAttended = errors.New("the stream goes on")

type (
	streamKey struct{} // of a stream in its context
	endKey    struct{} // of how to end one
)

// End ends a stream by its context, whoever is at it. The first reason, a gRPC status, is
// what the other side is told; with nil the stream has ended well.
func End(ctx context.Context, why error) {
	if end, ok := ctx.Value(endKey{}).(func(error)); ok {
		end(why)
	}
}

// Endable gives a context by which End calls end; it is for streams without a server, in
// tests.
func Endable(ctx context.Context, end func(error)) context.Context {
	return context.WithValue(ctx, endKey{}, end)
}

// Aside does something on a goroutine of its own and waits for it. A goroutine keeps the
// largest stack that it ever needed, as long as a quarter of that is in use; who will
// wait for long has what needs a large one done aside.
func Aside(do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	return <-done
}
