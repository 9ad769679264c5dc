package edge

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// splice hands a call that is no stream of xDS on as it comes. Envoy says it to the
// cluster of its control plane, for which the edge stands; load reports are such.
func (e *Edge) splice(rpc grpc.ServerStream, method string, headers metadata.MD, started *sync.WaitGroup) error {
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(rpc.Context(), headers))
	defer cancel()
	up, err := e.config.Upstream.NewStream(ctx, &streaming, method, grpc.ForceCodecV2(e.codec), grpc.MaxCallRecvMsgSize(maxMessage))
	if err != nil {
		return err
	}
	started.Go(func() {
		if copyTo(up, rpc) != nil {
			cancel() // Envoy's side is broken
			return
		}
		_ = up.CloseSend()
	})
	if header, err := up.Header(); err == nil {
		_ = rpc.SetHeader(header)
	}
	err = copyTo(rpc, up)
	rpc.SetTrailer(up.Trailer())
	return err
}

// copyTo copies messages until the source ends; nil: it ended well.
func copyTo(to interface{ SendMsg(any) error }, from interface{ RecvMsg(any) error }) error {
	for {
		var m []byte
		if err := from.RecvMsg(&m); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := to.SendMsg(m); err != nil {
			return err
		}
	}
}
