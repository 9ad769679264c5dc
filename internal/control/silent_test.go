package control

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/xds/quiet"
)

// silent is a report stream on which nothing comes.
type silent struct {
	grpc.BidiStreamingServer[chandlerv1.ReportRequest, chandlerv1.ReportResponse]
	ctx context.Context
}

func (s *silent) Context() context.Context { return s.ctx }
func (s *silent) RecvMsg(any) error        { <-s.ctx.Done(); return context.Cause(s.ctx) }

func TestSilentReportStreamIsEnded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancelCause(t.Context())
		began := time.Now()
		err := (&reports{}).Report(&silent{ctx: quiet.Endable(ctx, end)})
		if status.Code(err) != codes.DeadlineExceeded || time.Since(began) != firstReport {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}
