package agent

import (
	"context"
	"maps"
	"math/rand/v2"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/wire"
)

// factsPause is between two messages in which only facts are told.
const factsPause = time.Second

// Of reports that the control plane has not said to have taken in there are mostUnderWay
// at most, so that a slow one gets the newest state and no queue builds up. It is asked
// to say so of every fourth, as an answer costs it as much as a report.
const (
	mostUnderWay = 8
	answerEvery  = 4
)

// reporter tells the control plane what is true here: everything at connect,
// then what changed.
type reporter struct {
	mu      sync.Mutex
	node    *chandlerv1.Node
	states  map[chandler.Key]chandler.AttachmentState
	facts   *chandler.Facts // never changed
	traffic []chandler.Traffic
	changed chan struct{} // capacity 1

	// interval is how often traffic is to be told, zero: not at all; asked, of
	// capacity 1, says that it changed.
	interval atomic.Int64
	asked    chan struct{}

	// Of the stream, and touched by run alone: the last report that was taken in, and
	// within what time a change is to be told.
	taken  uint64
	spread time.Duration
}

func newReporter(node chandler.Node) *reporter {
	return &reporter{node: wire.NodeToProto(node), changed: make(chan struct{}, 1), asked: make(chan struct{}, 1)}
}

// signal leaves a word in a channel of capacity 1.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// set gives the state to report.
func (r *reporter) set(states map[chandler.Key]chandler.AttachmentState, facts *chandler.Facts) {
	r.mu.Lock()
	r.states, r.facts = states, facts
	r.mu.Unlock()
	signal(r.changed)
}

// count gives the traffic to tell next.
func (r *reporter) count(traffic []chandler.Traffic) {
	r.mu.Lock()
	r.traffic = traffic
	r.mu.Unlock()
	signal(r.changed)
}

// every is how often traffic is to be told; zero: not at all.
func (r *reporter) every() time.Duration { return time.Duration(r.interval.Load()) }

// ask notes how often that is.
func (r *reporter) ask(interval time.Duration) {
	if r.interval.Swap(int64(interval)) != int64(interval) {
		signal(r.asked)
	}
}

// answer is one of the control plane's, or the stream's end.
type answer struct {
	resp *chandlerv1.ReportResponse
	err  error
}

// run reports over conn until ctx ends or the stream does, and tells why it did.
func (r *reporter) run(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := chandlerv1.NewReportsClient(conn).Report(ctx)
	if err != nil {
		cancel()
		return err
	}
	answers := make(chan answer)
	var receiving sync.WaitGroup
	receiving.Go(func() { receive(ctx, stream, answers) })
	defer receiving.Wait()
	defer cancel()
	defer r.ask(0)

	r.taken, r.spread = 0, 0
	sent := said{states: map[chandler.Key]chandler.AttachmentState{}}
	for sequence := uint64(1); ; {
		for sequence > r.taken+mostUnderWay {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case a := <-answers:
				if err := r.heard(a); err != nil {
					return err
				}
			}
		}
		now := r.current()
		msg, later := sent.difference(now, sequence == 1)
		if msg != nil {
			msg.Sequence, msg.Silent = sequence, sequence%answerEvery != 1
			if sequence == 1 {
				msg.Node = r.node
			}
			_ = stream.Send(msg) // if it failed, the stream's end says why
			sent.note(now, msg)
			sequence++
		}
		var again <-chan time.Time
		if later > 0 {
			again = time.After(later)
		}
		if err := r.news(ctx, answers, again); err != nil {
			return err
		}
	}
}

// news waits until there is something to tell, and then until it is to be told.
func (r *reporter) news(ctx context.Context, answers <-chan answer, again <-chan time.Time) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case a := <-answers:
		return r.heard(a)
	case <-again:
		return nil
	case <-r.changed:
	}
	due := time.NewTimer(rand.N(r.spread + 1))
	defer due.Stop()
	for {
		select {
		case <-due.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case a := <-answers:
			if err := r.heard(a); err != nil {
				return err
			}
		}
	}
}

// current is what is to be said. Traffic is said once.
func (r *reporter) current() said {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := said{states: maps.Clone(r.states), facts: r.facts, traffic: r.traffic}
	r.traffic = nil
	return now
}

// heard takes an answer in: some only say how often traffic is to be told.
func (r *reporter) heard(a answer) error {
	if a.err == nil {
		r.ask(wire.IntervalFromProto(a.resp.GetTrafficInterval()))
		r.taken, r.spread = max(r.taken, a.resp.GetSequence()), wire.SpreadFromProto(a.resp.GetSpread())
	}
	return a.err
}

// receive passes on what the control plane answers, until the stream ends.
func receive(ctx context.Context, stream grpc.BidiStreamingClient[chandlerv1.ReportRequest, chandlerv1.ReportResponse], answers chan<- answer) {
	for {
		resp, err := stream.Recv()
		select {
		case answers <- answer{resp, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// said is what is true here, or what was told of it.
type said struct {
	states  map[chandler.Key]chandler.AttachmentState
	facts   *chandler.Facts
	factsAt time.Time
	traffic []chandler.Traffic
}

// difference is the message that turns what was said into what is true, in full if it
// is the first; nil: there is none, or not before a while, which it gives.
func (s *said) difference(now said, full bool) (msg *chandlerv1.ReportRequest, later time.Duration) {
	msg = &chandlerv1.ReportRequest{Full: full, Traffic: wire.TrafficToProto(now.traffic)}
	for key, st := range now.states {
		if old, ok := s.states[key]; !ok || !reflect.DeepEqual(old, st) {
			msg.States = append(msg.States, wire.StateToProto(st))
		}
	}
	for key := range s.states {
		if _, ok := now.states[key]; !ok {
			msg.Removed = append(msg.Removed, key.String())
		}
	}
	something := full || len(msg.States)+len(msg.Removed)+len(msg.Traffic) > 0
	if now.facts != nil && !reflect.DeepEqual(s.facts, now.facts) {
		if later = factsPause - time.Since(s.factsAt); something || later <= 0 {
			msg.Facts = wire.FactsToProto(now.facts)
			something, later = true, 0
		}
	}
	if !something {
		return nil, later
	}
	return msg, 0
}

// note keeps what a message said.
func (s *said) note(now said, msg *chandlerv1.ReportRequest) {
	s.states = now.states
	if msg.Facts != nil {
		s.facts, s.factsAt = now.facts, time.Now()
	}
}
