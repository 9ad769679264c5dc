package control

import (
	"reflect"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/wire"
	"chandler.dev/chandler/internal/xds/quiet"
)

const firstReport = 10 * time.Second // for the first message of a report stream

// reports is the service that agents tell their state.
type reports struct {
	chandlerv1.UnimplementedReportsServer
	c *Control
}

// Report takes in one node's reports until its stream ends.
func (s *reports) Report(str grpc.BidiStreamingServer[chandlerv1.ReportRequest, chandlerv1.ReportResponse]) error {
	h := &hearing{c: s.c, str: str}
	late := time.AfterFunc(firstReport, func() {
		quiet.End(str.Context(), status.Errorf(codes.DeadlineExceeded, "no first report in %v", firstReport))
	})
	return quiet.Attend(str, func(msg *chandlerv1.ReportRequest) error {
		late.Stop()
		return h.take(msg)
	}, func() {
		late.Stop()
		if h.reporter != nil {
			s.c.fleet.end(h.reporter)
		}
	})
}

// hearing is one node's report stream.
type hearing struct {
	c        *Control
	str      grpc.BidiStreamingServer[chandlerv1.ReportRequest, chandlerv1.ReportResponse]
	claim    chandler.Node
	reporter *reporter // nil before the first message
	checked  time.Time // who it is
}

// begin finds out whose stream it is.
func (h *hearing) begin(claimed *chandlerv1.Node) (err error) {
	if h.claim, err = wire.NodeFromProto(claimed); err != nil {
		return wire.Refusal(codes.InvalidArgument, chandler.CodeXDSNode, "%s", err)
	}
	node, err := h.c.cfg.Authenticator.Authenticate(h.str.Context(), h.claim)
	if err != nil {
		return err
	}
	h.reporter, err = h.c.fleet.begin(node, func(sequence uint64, interval, spread time.Duration) error {
		return h.str.Send(&chandlerv1.ReportResponse{Sequence: sequence, TrafficInterval: wire.IntervalToProto(interval), Spread: wire.IntervalToProto(spread)})
	})
	if err == nil && reflect.DeepEqual(h.claim, h.reporter.node) {
		h.claim = h.reporter.node // what is the same is kept once
	}
	h.checked = time.Now()
	return err
}

// take takes a report in.
func (h *hearing) take(msg *chandlerv1.ReportRequest) error {
	if h.reporter == nil {
		if err := h.begin(msg.GetNode()); err != nil {
			return err
		}
	}
	if h.c.cfg.Recheck > 0 && time.Since(h.checked) >= h.c.cfg.Recheck {
		if _, err := h.c.cfg.Authenticator.Authenticate(h.str.Context(), h.claim); refusal(err) {
			return err
		}
		h.checked = time.Now()
	}
	rep, err := wire.ReportFromProto(msg)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if id := h.reporter.node.ID(); rep.Node != nil && rep.Node.ID() != id {
		return status.Errorf(codes.InvalidArgument, "node changed from %s to %s", chandler.Quote(id), chandler.Quote(rep.Node.ID()))
	}
	if err := h.c.fleet.take(h.reporter, rep); err != nil {
		return err
	}
	if rep.Silent {
		return nil
	}
	_, err = h.c.fleet.say(&h.reporter.asked)
	return err
}

// refusal tells whether an agent is no longer believed; that nobody can tell now
// is none.
func refusal(err error) bool {
	code := status.Code(err)
	return code == codes.Unauthenticated || code == codes.PermissionDenied
}
