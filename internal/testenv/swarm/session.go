package swarm

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"math/rand/v2"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/testenv/swarm/lite"
	"chandler.dev/chandler/internal/wire"
	"chandler.dev/chandler/internal/xds/deltaclient"
)

// session is an agent's connection, from dial to loss. What is in it is touched by its
// connection's turns and calls alone.
type session struct {
	agent    *Agent
	conn     *lite.Conn
	assigned *lite.Stream
	answered bool
	begun    time.Time
	lost     error // the stream of assignments has ended

	// Reports: nil if there is no stream, when it is opened then, and what was told on it.
	reports          *lite.Stream
	open             time.Time
	told             reported
	interval, spread time.Duration
	due              time.Time // when traffic is to be told, if an interval is
	look             time.Time // when there may be something else to tell
	spreading        bool      // it is so because of a change

	reading bool      // a module
	read    time.Time // when one may be read
}

// again is how soon a call that failed is made anew.
const again = 100 * time.Millisecond

// maxDetail is the bytes of a refusal's reason.
const maxDetail = 4 << 10

func newSession(a *Agent) *session { return &session{agent: a, begun: time.Now()} }

// serve connects, and serves until ctx ends or the connection is lost.
func (s *session) serve(ctx context.Context) (err error) {
	a, cfg := s.agent, &s.agent.swarm.cfg
	dialing, cancel := context.WithTimeout(ctx, deltaclient.FirstTimeout)
	defer cancel()
	s.conn, err = lite.Dial(dialing, lite.Config{
		Target: cfg.Target, TLS: cfg.TLS, DialContext: cfg.DialContext, Message: cfg.Message, Turn: s.turn,
	})
	if err != nil {
		return err
	}
	set := func(c *lite.Conn) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.conn = c
	}
	set(s.conn)
	defer set(nil)
	return s.conn.Serve(ctx)
}

// turn says what there is to say.
func (s *session) turn(now time.Time) (time.Time, error) {
	switch {
	case s.assigned == nil:
		s.subscribe()
	case s.lost != nil:
		return now, s.lost
	}
	if first := s.begun.Add(deltaclient.FirstTimeout); !s.answered {
		if now.After(first) {
			return now, fmt.Errorf("no answer within %v", deltaclient.FirstTimeout)
		}
		return first, nil
	}
	fetch, err := s.fetch(now)
	if err != nil {
		return now, err
	}
	report, err := s.report(now)
	return earlier(fetch, report), err
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// subscribe begins the stream of assignments.
func (s *session) subscribe() {
	a := s.agent
	s.assigned = s.conn.Open(discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName, s.assign, func(err error) {
		s.lost = cmp.Or(err, errEnded)
	})
	s.lost = s.assigned.Send(&discoveryv3.DeltaDiscoveryRequest{
		Node: wire.NodeToXDS(a.node), TypeUrl: wire.AttachmentTypeURL,
		ResourceNamesSubscribe: []string{"*"}, InitialResourceVersions: a.known(),
	}, false)
}

var errEnded = errors.New("the control plane has ended the stream")

// assign takes an answer in, and acknowledges or refuses it.
func (s *session) assign(b []byte) error {
	var resp discoveryv3.DeltaDiscoveryResponse
	if err := proto.Unmarshal(b, &resp); err != nil {
		return err
	}
	if !s.answered {
		s.answered = true
		s.agent.mu.Lock()
		s.agent.connected = true
		s.agent.mu.Unlock()
	}
	ack := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
	if err := s.agent.handle(&resp); err != nil {
		ack.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: chandler.Printable(err.Error(), maxDetail)}
	}
	return s.assigned.Send(ack, false)
}

// report tells everything at first, and then what changes; it gives when there may be
// more.
func (s *session) report(now time.Time) (time.Time, error) {
	a := s.agent
	if s.reports == nil {
		if now.Before(s.open) {
			return s.open, nil
		}
		s.told, s.interval, s.spread, s.look, s.spreading = reported{}, 0, 0, now, false
		s.reports = s.conn.Open(chandlerv1.Reports_Report_FullMethodName, s.asked, func(error) {
			s.reports, s.open = nil, time.Now().Add(again)
		})
		a.changed.Store(false)
	}
	if a.changed.Swap(false) && !s.spreading {
		s.look, s.spreading = earlier(s.look, now.Add(rand.N(s.spread+1))), true
	}
	traffic := s.interval > 0 && !now.Before(s.due)
	if (traffic || !now.Before(s.look)) && !s.reports.Busy() {
		msg, wait := a.message(&s.told, traffic)
		s.look, s.spreading = now.Add(wait), false
		if traffic {
			s.due = now.Add(s.interval)
		}
		if msg != nil {
			if err := s.reports.Send(msg, false); err != nil {
				return now, err
			}
		}
	}
	if s.reports.Busy() {
		return now.Add(again), nil
	}
	if s.interval > 0 {
		return earlier(s.look, s.due), nil
	}
	return s.look, nil
}

// asked takes in how reports are to be made.
func (s *session) asked(b []byte) error {
	var resp chandlerv1.ReportResponse
	if err := proto.Unmarshal(b, &resp); err != nil {
		return err
	}
	s.spread = wire.SpreadFromProto(resp.GetSpread())
	if every := wire.IntervalFromProto(resp.GetTrafficInterval()); every != s.interval {
		s.interval, s.due = every, time.Now()
	}
	return nil
}

// fetch reads a module that is not there yet, if there is one; it gives when to try
// again at the latest.
func (s *session) fetch(now time.Time) (time.Time, error) {
	later := now.Add(time.Hour)
	if s.reading || !s.agent.swarm.cfg.Fetch {
		return later, nil
	}
	next := s.agent.lacks()
	if next == nil {
		return later, nil
	}
	if now.Before(s.read) {
		return s.read, nil
	}
	s.reading = true
	m := &incoming{swarm: s.agent.swarm, sum: sha256.New(), digest: next.Program.Module.Digest}
	stream := s.conn.Open(chandlerv1.Modules_Read_FullMethodName, m.add, func(err error) {
		s.reading = false
		if err != nil || !m.whole() {
			s.read = time.Now().Add(again)
			return
		}
		s.agent.arrived(next, m.digest)
	})
	req := &chandlerv1.ReadRequest{Node: wire.NodeToProto(s.agent.node), Digest: string(m.digest), Zstd: true}
	return later, stream.Send(req, true)
}

// incoming is a module that is read.
type incoming struct {
	swarm  *Swarm
	sum    hash.Hash
	plain  []byte
	digest chandler.ModuleDigest
}

// add takes in the next part.
func (m *incoming) add(b []byte) (err error) {
	var part chandlerv1.ReadResponse
	if err := proto.Unmarshal(b, &part); err != nil {
		return err
	}
	m.sum.Write(part.GetChunk())
	if m.plain, err = m.swarm.zstd.DecodeAll(part.GetZstd(), m.plain[:0]); err != nil {
		return err
	}
	m.sum.Write(m.plain)
	return nil
}

// whole holds what came against the digest.
func (m *incoming) whole() bool {
	return "sha256:"+hex.EncodeToString(m.sum.Sum(nil)) == string(m.digest)
}
