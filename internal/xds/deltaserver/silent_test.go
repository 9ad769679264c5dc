package deltaserver

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler/internal/xds/quiet"
)

// silent is a stream on which nothing comes.
type silent struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *silent) Context() context.Context                       { return s.ctx }
func (s *silent) Send(*discoveryv3.DeltaDiscoveryResponse) error { return nil }
func (s *silent) Recv() (*discoveryv3.DeltaDiscoveryRequest, error) {
	return nil, errors.ErrUnsupported
}

func (s *silent) RecvMsg(any) error {
	<-s.ctx.Done()
	return context.Cause(s.ctx)
}

// B100: a stream that says nothing is ended.
func TestRefuse_B100_SilentStream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancelCause(t.Context())
		began := time.Now()
		err := New(Config{}).DeltaAggregatedResources(&silent{ctx: quiet.Endable(ctx, end)})
		if status.Code(err) != codes.DeadlineExceeded || time.Since(began) != firstTimeout {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		t.Attr("refusal", status.Code(err).String())
	})
}
