package control

import (
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/wire"
)

// relayRetry is the longest wait before the leader is called again.
const relayRetry = time.Second

// relayed is what another replica says of a node. It is immutable.
type relayed struct {
	from      *relay
	node      chandler.Node
	connected bool
	states    map[chandler.Key]chandler.AttachmentState
	facts     *chandler.Facts
	traffic   []chandler.Traffic
	trafficAt time.Time
}

// relay is one replica's stream at the leader.
type relay struct{ asked asked }

// relayed takes in what a replica says. An agent that is connected here as well
// has just come or is about to go: what it says here counts as long as it stays.
func (f *fleet) relayed(from *relay, r wire.Relayed) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := r.Node.ID()
	if err := f.room(id); err != nil {
		return err
	}
	m := f.members[id]
	if !r.Connected && (m == nil || m.relayed != nil && m.relayed.from != from) {
		return nil // it is somewhere else by now
	}
	m = f.member(r.Node)
	before := m.online()
	if m.stream == nil && !m.connected {
		m.node = r.Node
	}
	states := make(map[chandler.Key]chandler.AttachmentState, len(r.States))
	for _, s := range r.States {
		states[s.Key] = s
	}
	now := &relayed{
		from: from, node: r.Node, connected: r.Connected, states: states,
		facts: shared(r.Facts, states), traffic: r.Traffic, trafficAt: f.now(),
	}
	if len(r.Traffic) == 0 && m.relayed != nil {
		now.traffic, now.trafficAt = m.relayed.traffic, m.relayed.trafficAt
	}
	m.relayed, f.retold = now, true
	f.askRelay(from, r.Node)
	f.turned(m, before)
	return nil
}

// silent notes that a replica says nothing any more.
func (f *fleet) silent(from *relay) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.members {
		if m.relayed == nil || m.relayed.from != from {
			continue
		}
		before, gone := m.online(), *m.relayed
		gone.connected = false
		m.relayed = &gone
		f.turned(m, before)
	}
}

// tell notes that the leader is to hear of a node, and whether of its traffic.
func (f *fleet) tell(id string, traffic bool) {
	if f.news == nil {
		return
	}
	f.news[id] = f.news[id] || traffic
	select {
	case f.heard <- struct{}{}:
	default:
	}
}

// hear begins with everything that is known of our own agents.
func (f *fleet) hear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.news = map[string]bool{}
	for id, m := range f.members {
		if m.connected || m.stream != nil {
			f.tell(id, false) // its traffic is told when the leader asks for it
		}
	}
}

func (f *fleet) unhear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.news = nil
}

// takeNews gives what the leader is to hear. Of one node only the newest is told.
func (f *fleet) takeNews() []wire.Relayed {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]wire.Relayed, 0, len(f.news))
	for id, traffic := range f.news {
		m := f.members[id]
		if m == nil {
			continue
		}
		r := wire.Relayed{Node: m.node, Connected: m.connected, States: slices.Collect(maps.Values(m.states)), Facts: m.facts}
		if traffic {
			r.Traffic = m.traffic
		}
		out = append(out, r)
	}
	clear(f.news)
	return out
}

// Relay takes in what another replica says of its agents.
func (s *reports) Relay(str grpc.BidiStreamingServer[chandlerv1.RelayRequest, chandlerv1.RelayResponse]) error {
	if err := s.c.admitPeer(str.Context()); err != nil {
		return err
	}
	from := &relay{asked: asked{send: func(_ uint64, d, _ time.Duration) error {
		return str.Send(&chandlerv1.RelayResponse{TrafficInterval: wire.IntervalToProto(d)})
	}}}
	s.c.fleet.relays(from, true)
	defer s.c.fleet.silent(from)
	defer s.c.fleet.relays(from, false)
	for {
		msg, err := str.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		r, err := wire.RelayFromProto(msg)
		if err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		if err := s.c.fleet.relayed(from, r); err != nil {
			return err
		}
	}
}

// relay tells whoever leads what our agents say, until ctx ends.
func (c *Control) relay(ctx context.Context) error {
	for ctx.Err() == nil {
		leader, changed := c.office.holder()
		var again <-chan time.Time
		if !leader.Self && leader.Address != "" {
			err := c.relayTo(ctx, leader.Address, changed)
			if ctx.Err() == nil && err != nil {
				c.log.Warn("the leader does not hear of our agents", "leader", leader.Address, "error", err)
			}
			again = time.After(relayRetry/2 + rand.N(relayRetry/2))
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-again:
		}
	}
	return ctx.Err()
}

// relayTo is one stream, which ends at the latest when leaders change.
func (c *Control) relayTo(ctx context.Context, address string, changed <-chan struct{}) error {
	conn, err := c.cfg.Peers.Dial(address)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	str, err := chandlerv1.NewReportsClient(conn).Relay(ctx)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		for {
			resp, err := str.Recv()
			if err != nil {
				ended <- err
				return
			}
			c.fleet.bid(wire.IntervalFromProto(resp.GetTrafficInterval()))
		}
	}()
	defer c.fleet.bid(0)
	c.fleet.hear()
	defer c.fleet.unhear()
	for {
		select {
		case <-changed:
			cancel()
			<-ended
			return nil
		case err := <-ended:
			return err
		case <-c.fleet.heard:
		}
		for _, r := range c.fleet.takeNews() {
			if err := str.Send(wire.RelayToProto(r)); err != nil && !errors.Is(err, io.EOF) {
				cancel()
				<-ended
				return err
			}
		}
	}
}
