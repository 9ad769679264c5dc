package control

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/xds/deltaserver"
	"chandler.dev/chandler/internal/xds/quiet"
)

const (
	// chunkSize is of a module that is sent as it is: with the rest of its message what
	// is written to a connection at a time.
	chunkSize = 32<<10 - 64
	maxReads  = 256 // modules being sent at a time; more wait for their turn
	// turnSize is what one may get of a module before those who wait get theirs.
	turnSize = 1 << 20
	// stillWaiting is how often one who waits is told so: agents give up a stream on
	// which nothing comes for half a minute, and would lose their place.
	stillWaiting = 10 * time.Second
	// takePatience is how long one may take nothing while others wait.
	takePatience = 30 * time.Second
)

// modules is the service that gives agents the bytes of what is attached to them.
type modules struct {
	chandlerv1.UnimplementedModulesServer
	c *Control
}

// Read sends a module from an offset on. A node that may not have it gets the
// same answer as for a digest that nobody has.
func (s *modules) Read(req *chandlerv1.ReadRequest, str grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error {
	d, ok := chandler.ParseDigest[chandler.ModuleDigest](req.GetDigest())
	err := quiet.Aside(func() error { return s.allowed(str.Context(), req, d) })
	if err == nil && !ok {
		err = errNoModule
	}
	if errors.Is(err, errNoModule) {
		s.c.metrics.asked.WithLabelValues(string(deltaserver.AskedOther)).Inc()
	}
	if err != nil {
		return err
	}
	return s.c.send(str, d, req)
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

// send sends a module from an offset on.
func (c *Control) send(str grpc.ServerStreamingServer[chandlerv1.ReadResponse], d chandler.ModuleDigest, req *chandlerv1.ReadRequest) error {
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
	t := &transfer{c: c, str: str, lease: lease, at: req.GetOffset(), size: uint64(lease.Size())}
	if t.at > t.size {
		return status.Errorf(codes.OutOfRange, "offset %d of %d bytes", t.at, t.size)
	}
	if req.GetZstd() {
		t.encoding = c.encodings.of(lease)
		defer c.encodings.done(t.encoding)
	}
	return t.run()
}

// transfer is a module on its way to one who asked for it.
type transfer struct {
	c        *Control
	str      grpc.ServerStreamingServer[chandlerv1.ReadResponse]
	lease    *store.Lease
	encoding *encoding // nil: the module is sent as it is
	at, size uint64
	begun    bool // the size was told
}

// run sends all that is left, a turn at a time.
func (t *transfer) run() error {
	if t.encoding != nil {
		if err := t.await(t.encoding.ready); err != nil {
			return err
		}
	}
	for !t.begun || t.at < t.size {
		if err := t.turn(); err != nil {
			return err
		}
	}
	return nil
}

// turn waits for a turn and uses it.
func (t *transfer) turn() error {
	mine := t.c.turns.join()
	defer t.c.turns.leave(mine)
	if err := t.await(mine.come); err != nil {
		return err
	}
	f, err := t.lease.Open()
	if err != nil {
		return t.c.unreadable(t.lease.Digest(), err)
	}
	defer f.Close()
	var buf []byte
	for end := min(t.at+turnSize, t.size); !t.begun || t.at < end; {
		if block := t.encoding.at(t.at); block != nil {
			err = t.giveBlock(block)
		} else {
			if buf == nil {
				buf = make([]byte, chunkSize)
			}
			err = t.giveChunk(f, buf[:min(chunkSize, t.size-t.at, blockSize-t.at%blockSize)])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// await waits for what is closed then, and says so now and then.
func (t *transfer) await(come <-chan struct{}) error {
	tick := time.NewTicker(stillWaiting)
	defer tick.Stop()
	for {
		select {
		case <-come:
			return nil
		case <-tick.C:
			if err := t.sendMsg(quiet.Parts{}); err != nil {
				return err
			}
		case <-t.str.Context().Done():
			return status.FromContextError(t.str.Context().Err()).Err()
		}
	}
}

// giveBlock sends what was compressed for all.
func (t *transfer) giveBlock(block []byte) error {
	parts := quiet.Parts{block}
	if !t.begun {
		size, err := proto.Marshal(&chandlerv1.ReadResponse{Size: t.size})
		if err != nil {
			return err
		}
		parts = append(parts, size)
	}
	return t.give(parts, len(block), min(blockSize, t.size-t.at))
}

// giveChunk sends the next bytes as they are.
func (t *transfer) giveChunk(f io.ReadSeeker, buf []byte) error {
	_, err := f.Seek(int64(t.at), io.SeekStart)
	if err == nil {
		_, err = io.ReadFull(f, buf)
	}
	if err != nil {
		return t.c.unreadable(t.lease.Digest(), err)
	}
	m := &chandlerv1.ReadResponse{Chunk: buf}
	if !t.begun {
		m.Size = t.size
	}
	return t.give(m, len(buf), uint64(len(buf)))
}

// give sends a message of sent bytes that brings the next n.
func (t *transfer) give(m any, sent int, n uint64) error {
	if err := t.sendMsg(m); err != nil {
		return err
	}
	t.c.metrics.sent.Add(float64(sent))
	t.begun = true
	t.at += n
	return nil
}

// sendMsg sends a message to one who takes it in time: who does not, does not keep
// a turn from others.
func (t *transfer) sendMsg(m any) error {
	ctx := t.str.Context()
	late := time.AfterFunc(takePatience, func() {
		quiet.End(ctx, status.Errorf(codes.Unavailable, "nothing was taken of the module for %v", takePatience))
	})
	defer late.Stop()
	return t.str.SendMsg(m)
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
