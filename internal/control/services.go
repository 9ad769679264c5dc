package control

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"reflect"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/wire"
	"chandler.dev/chandler/internal/xds/deltaserver"
	"chandler.dev/chandler/internal/xds/quiet"
)

const (
	chunkSize   = 64 << 10
	maxReads    = 256              // modules being sent at a time; more wait
	firstReport = 10 * time.Second // for the first message of a report stream
)

// reports is the service that agents tell their state.
type reports struct {
	chandlerv1.UnimplementedReportsServer
	c *Control
}

// Report takes in one node's reports until its stream ends.
func (s *reports) Report(str grpc.BidiStreamingServer[chandlerv1.ReportRequest, chandlerv1.ReportResponse]) error {
	h := &hearing{c: s.c, str: str}
	defer func() {
		if h.reporter != nil {
			s.c.fleet.end(h.reporter)
		}
	}()
	late := time.AfterFunc(firstReport, func() {
		quiet.End(str.Context(), status.Errorf(codes.DeadlineExceeded, "no first report in %v", firstReport))
	})
	defer late.Stop()
	for {
		received, err := quiet.Receive(str, func(msg *chandlerv1.ReportRequest) error {
			late.Stop()
			return h.take(msg)
		})
		switch {
		case err == nil:
		case received:
			return err
		case errors.Is(err, io.EOF):
			return nil
		default:
			return quiet.Because(str.Context(), err)
		}
	}
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
	h.reporter, err = h.c.fleet.begin(node, func(sequence uint64, interval time.Duration) error {
		return h.str.Send(&chandlerv1.ReportResponse{Sequence: sequence, TrafficInterval: wire.IntervalToProto(interval)})
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
	_, err = h.c.fleet.say(&h.reporter.asked)
	return err
}

// refusal tells whether an agent is no longer believed; that nobody can tell now
// is none.
func refusal(err error) bool {
	code := status.Code(err)
	return code == codes.Unauthenticated || code == codes.PermissionDenied
}

// modules is the service that gives agents the bytes of what is attached to them.
type modules struct {
	chandlerv1.UnimplementedModulesServer
	c *Control
}

// Read sends a module from an offset on. A node that may not have it gets the
// same answer as for a digest that nobody has.
func (s *modules) Read(req *chandlerv1.ReadRequest, str grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error {
	d, ok := chandler.ParseDigest[chandler.ModuleDigest](req.GetDigest())
	err := s.allowed(str.Context(), req, d)
	if err == nil && !ok {
		err = errNoModule
	}
	if errors.Is(err, errNoModule) {
		s.c.metrics.asked.WithLabelValues(string(deltaserver.AskedOther)).Inc()
	}
	if err != nil {
		return err
	}
	select {
	case s.c.reading <- struct{}{}:
		defer func() { <-s.c.reading }()
	case <-str.Context().Done():
		return status.FromContextError(str.Context().Err()).Err()
	}
	return s.c.send(str, d, req.GetOffset())
}

var errNoModule = status.Error(codes.NotFound, "no such module for this node")

// allowed tells whether whoever asks may have a module: another replica may have
// any, an agent those that are attached to its node.
func (s *modules) allowed(ctx context.Context, req *chandlerv1.ReadRequest, d chandler.ModuleDigest) error {
	if req.GetNode() == nil {
		return s.c.admitPeer(ctx)
	}
	node, err := s.c.authenticate(ctx, req.GetNode())
	if err != nil {
		return err
	}
	p := s.c.published.Load()
	switch {
	case p == nil:
		return status.Error(codes.Unavailable, "the resources have not been read yet")
	case !s.c.attached(p, node, d):
		return errNoModule
	}
	return nil
}

// attached tells whether a module is named by an attachment of a node.
func (c *Control) attached(p *publication, n chandler.Node, d chandler.ModuleDigest) bool {
	found := false
	p.of(n, c.cfg.RootNamespace, func(v *variant) bool {
		found = slices.Contains(v.modules, d)
		return !found
	})
	return found
}

func (c *Control) send(str grpc.ServerStreamingServer[chandlerv1.ReadResponse], d chandler.ModuleDigest, offset uint64) error {
	lease, err := c.cfg.Store.Acquire(d)
	if errors.Is(err, fs.ErrNotExist) {
		select {
		case c.missing <- d:
		default: // the loop has enough to do
		}
		return status.Error(codes.Unavailable, "the module is being fetched")
	}
	if err != nil {
		return c.unreadable(d, err)
	}
	defer lease.Release()
	size := uint64(lease.Size())
	if offset > size {
		return status.Errorf(codes.OutOfRange, "offset %d of %d bytes", offset, size)
	}
	f, err := lease.Open()
	if err != nil {
		return c.unreadable(d, err)
	}
	defer f.Close()
	if _, err := f.Seek(int64(offset), io.SeekStart); err != nil {
		return c.unreadable(d, err)
	}
	first, buf := size, make([]byte, chunkSize)
	for left := size - offset; ; {
		n := min(left, chunkSize)
		if _, err := io.ReadFull(f, buf[:n]); err != nil {
			return c.unreadable(d, err)
		}
		if err := str.Send(&chandlerv1.ReadResponse{Size: first, Chunk: buf[:n]}); err != nil {
			return err
		}
		c.metrics.sent.Add(float64(n))
		first = 0
		if left -= n; left == 0 {
			return nil
		}
	}
}

// unreadable answers for a module that is there and cannot be read; why is not
// the agent's business.
func (c *Control) unreadable(d chandler.ModuleDigest, err error) error {
	if errors.Is(err, context.Canceled) {
		return status.FromContextError(err).Err()
	}
	c.log.Error("a module cannot be read from the store", "module", d, "error", err)
	return status.Error(codes.Unavailable, "the module cannot be read here")
}
