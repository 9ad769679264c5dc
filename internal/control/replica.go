package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/record"
)

// Several control planes of one source and one record store are replicas. All
// serve agents; one leads: it alone resolves, and moves and deletes records. The
// others learn of its releases from the records, and tell it what their agents
// say. Two that both believe to lead do no harm: a rollout record is moved by
// compare-and-swap.

const (
	// settled is how long after a start, or after a change of leaders, agents and
	// replicas may take to say what they know.
	settled = 5 * time.Second
	// maxPeers bounds how many are asked for a module.
	maxPeers = 16
	// peerTimeout is for one of them to begin with its answer.
	peerTimeout = 3 * time.Second
)

// Leader says who leads.
type Leader struct {
	// Self: this replica does.
	Self bool
	// Address is the other one's port for agents; empty when nobody leads.
	Address string
}

// Election tells replicas who leads.
type Election interface {
	// Run takes part until ctx ends and calls changed with every new leader; calls
	// do not overlap. Before the first, nobody leads. It gives up what it has when
	// ctx ends.
	Run(ctx context.Context, changed func(Leader)) error
}

// Peers is how replicas reach each other.
type Peers struct {
	// Dial makes a connection to the one at an address.
	Dial func(address string) (*grpc.ClientConn, error)
	// Addresses are those of the others; nil: there are none to ask.
	Addresses func(ctx context.Context) []string
	// Admit tells whether the caller is one of them. Its error is a gRPC status.
	Admit func(ctx context.Context) error
	// Heard is when the source said something last, whatever it was; zero: never.
	// It speaks every few seconds while it can be reached. Nil: it always can.
	Heard func() time.Time
}

// office is who leads at present.
type office struct {
	mu      sync.Mutex
	leader  Leader
	since   time.Time
	changed chan struct{} // closed at the next change
}

func (o *office) set(l Leader, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.changed != nil {
		close(o.changed)
	}
	o.leader, o.since, o.changed = l, now, make(chan struct{})
}

// holder gives who leads, and what is closed when that is over.
func (o *office) holder() (Leader, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.leader, o.changed
}

func (o *office) self() (leads bool, since time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.leader.Self, o.since
}

func (c *Control) leads() bool {
	leads, _ := c.office.self()
	return leads
}

// Leader tells who leads; without an election this control plane does.
func (c *Control) Leader() Leader {
	l, _ := c.office.holder()
	return l
}

// Partial says what this replica does not know, for people; empty: it leads, and knows all
// that is to be known.
func (c *Control) Partial() string {
	switch l := c.Leader(); {
	case l.Self:
		return ""
	case l.Address != "":
		return "this replica does not lead, " + l.Address + " does: only that one knows all proxies and measures gates; this one counts those connected to it"
	}
	return "no replica leads at present: none knows all proxies or measures gates; this one counts those connected to it"
}

// Authoritative tells whether what Objects says of proxies is all there is to be
// known: this replica leads, and has done so for long enough that agents and
// other replicas have had their say.
func (c *Control) Authoritative() bool {
	leads, since := c.office.self()
	return leads && c.cfg.Now().Sub(since) >= settled && c.Ready() == nil
}

// elected is told by the election.
func (c *Control) elected(l Leader) {
	c.office.set(l, c.cfg.Now())
	c.fleet.touch()
	switch {
	case l.Self:
		c.log.Info("this replica leads")
	case l.Address != "":
		c.log.Info("another replica leads", "leader", l.Address)
	default:
		c.log.Warn("no replica leads")
	}
}

// replicate does what a replica does beside serving, as long as g runs.
func (c *Control) replicate(ctx context.Context, run func(func() error)) {
	if w, ok := c.cfg.Records.(record.Watcher); ok {
		run(func() error {
			return w.Watch(ctx, func(ch record.Change) {
				select {
				case c.changes <- ch:
				case <-ctx.Done():
				}
			})
		})
	}
	if c.cfg.Election == nil {
		c.office.set(Leader{Self: true}, c.cfg.Now())
		return
	}
	c.office.set(Leader{}, c.cfg.Now())
	run(func() error { return c.cfg.Election.Run(ctx, c.elected) })
	if c.cfg.Peers != nil {
		run(func() error { return c.relay(ctx) })
		run(func() error { return c.lookOut(ctx) })
	}
}

// recorded takes in what became of a record, perhaps by another replica. Nothing
// older than what is known ever wins; our own records come back here too.
func (l *loop) recorded(ch record.Change) {
	switch r, ro := ch.Release, ch.Rollout; {
	case r != nil && ch.Deleted:
		if !l.c.leads() {
			l.forgetRelease(r)
		}
	case r != nil && l.releases[r.ID] == nil:
		l.released(r)
		l.stale[r.Key] = true
		if ahead, ok := l.ahead[r.UID]; ok && ahead.Release == r.ID {
			l.moved(ahead)
		}
	case ro == nil:
	case ch.Deleted:
		l.rolloutLost(*ro)
	case ro.Release != "" && l.releases[ro.Release] == nil:
		// The two are written side by side, and may come in any order. To go by it
		// now would give agents the release before under the sequence of this one.
		l.ahead[ro.UID] = *ro
	default:
		l.moved(*ro)
	}
}

// moved takes in a rollout record whose release is known.
func (l *loop) moved(ro record.Rollout) {
	delete(l.ahead, ro.UID)
	l.keep(ro)
}

// keep takes a rollout record in, unless it is older than the one that is known.
func (l *loop) keep(ro record.Rollout) {
	known, ok := l.rollouts[ro.UID]
	if ok && (older(&ro, known) || ro.Sequence == known.Sequence && ro.Revision == known.Revision && ro.Revision != 0) {
		return
	}
	l.rollouts[ro.UID] = &ro
	l.stale[ro.Key] = true
	if ro.Stage != nil && ro.Stage.Order != "" {
		l.kicked = true // whichever replica took the order
	}
	l.consider(ro.UID)
}

// older tells whether a record was written before another. One that was lost has no
// revision.
func older(a, b *record.Rollout) bool {
	return a.Sequence < b.Sequence || a.Sequence == b.Sequence && a.Revision != 0 && b.Revision != 0 && a.Revision < b.Revision
}

// rolloutLost takes in that a rollout record is gone. That of a plugin which is
// there was deleted by a stranger: what it said stays true here, and its next move
// makes a new record.
func (l *loop) rolloutLost(ro record.Rollout) {
	delete(l.ahead, ro.UID)
	known, ok := l.rollouts[ro.UID]
	switch {
	case !ok:
	case l.byUID[ro.UID] == nil:
		delete(l.rollouts, ro.UID)
		l.stale[ro.Key] = true
		l.consider(ro.UID)
	case known.Sequence == ro.Sequence:
		lost := *known
		lost.Revision = 0
		l.rollouts[ro.UID] = &lost
	}
}

// admitPeer tells whether another replica is calling.
func (c *Control) admitPeer(ctx context.Context) error {
	if c.cfg.Peers == nil || c.cfg.Peers.Admit == nil {
		return status.Error(codes.PermissionDenied, "this control plane has no replicas")
	}
	return c.cfg.Peers.Admit(ctx)
}

// fromPeers brings a module into the store from whichever replica has it.
func (c *Control) fromPeers(ctx context.Context, d chandler.ModuleDigest) error {
	if c.cfg.Peers == nil || c.cfg.Peers.Addresses == nil {
		return errors.New("there are no replicas to ask")
	}
	addresses := c.cfg.Peers.Addresses(ctx)
	err := errors.New("no replica has it")
	for _, address := range addresses[:min(len(addresses), maxPeers)] {
		if err = c.fromPeer(ctx, address, d); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

func (c *Control) fromPeer(ctx context.Context, address string, d chandler.ModuleDigest) error {
	conn, err := c.cfg.Peers.Dial(address)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	slow := time.AfterFunc(peerTimeout, cancel)
	defer slow.Stop()
	str, err := chandlerv1.NewModulesClient(conn).Read(ctx, &chandlerv1.ReadRequest{Digest: string(d)})
	if err != nil {
		return err
	}
	_, _, err = c.cfg.Store.Ingest(&moduleReader{str: str, began: func() { slow.Stop() }}, d)
	if err != nil {
		return fmt.Errorf("replica %s: %w", address, err)
	}
	c.log.Info("a module came from another replica", "module", d, "replica", address)
	return nil
}

// moduleReader reads the bytes of a module as they come.
type moduleReader struct {
	str   grpc.ServerStreamingClient[chandlerv1.ReadResponse]
	began func()
	left  []byte
}

func (r *moduleReader) Read(b []byte) (int, error) {
	for len(r.left) == 0 {
		m, err := r.str.Recv()
		if err != nil {
			return 0, err // io.EOF at the end
		}
		r.began()
		r.left = m.GetChunk()
	}
	n := copy(b, r.left)
	r.left = r.left[n:]
	return n, nil
}

var _ io.Reader = (*moduleReader)(nil)
