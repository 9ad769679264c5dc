package agent

import (
	"context"
	"maps"
	"reflect"
	"sync"

	"google.golang.org/grpc"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/wire"
)

// reporter tells the control plane what is true here: everything at connect,
// then what changed. One message is under way at a time, so that a slow control
// plane gets the newest state and no queue builds up.
type reporter struct {
	mu      sync.Mutex
	node    *chandlerv1.Node
	states  map[chandler.Key]chandler.AttachmentState
	changed chan struct{} // capacity 1
}

// set gives the state to report.
func (r *reporter) set(states map[chandler.Key]chandler.AttachmentState) {
	r.mu.Lock()
	r.states = states
	r.mu.Unlock()
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// run reports over conn until ctx ends or the stream does, and tells why it did.
func (r *reporter) run(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := chandlerv1.NewReportsClient(conn).Report(ctx)
	if err != nil {
		cancel()
		return err
	}
	answers := make(chan error) // nil: an acknowledgement; else the stream's end
	var receiving sync.WaitGroup
	receiving.Go(func() { receive(ctx, stream, answers) })
	defer receiving.Wait()
	defer cancel()

	sent := map[chandler.Key]chandler.AttachmentState{}
	for sequence := uint64(1); ; {
		states := r.current()
		msg := difference(sent, states)
		if sequence == 1 {
			msg.Node, msg.Full = r.node, true
		}
		if msg.Full || len(msg.States)+len(msg.Removed) > 0 {
			msg.Sequence = sequence
			_ = stream.Send(msg) // if it failed, the stream's end says why
			if err := await(ctx, answers); err != nil {
				return err
			}
			sent = states
			sequence++
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-answers:
			if err != nil {
				return err
			}
		case <-r.changed:
		}
	}
}

func (r *reporter) current() map[chandler.Key]chandler.AttachmentState {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.states)
}

// receive passes on what the control plane answers, until the stream ends.
func receive(ctx context.Context, stream grpc.BidiStreamingClient[chandlerv1.ReportRequest, chandlerv1.ReportResponse], answers chan<- error) {
	for {
		_, err := stream.Recv()
		select {
		case answers <- err:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

func await(ctx context.Context, answers <-chan error) error {
	select {
	case err := <-answers:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// difference is what turns one set of states into another.
func difference(from, to map[chandler.Key]chandler.AttachmentState) *chandlerv1.ReportRequest {
	msg := &chandlerv1.ReportRequest{}
	for key, st := range to {
		if old, ok := from[key]; !ok || !reflect.DeepEqual(old, st) {
			msg.States = append(msg.States, wire.StateToProto(st))
		}
	}
	for key := range from {
		if _, ok := to[key]; !ok {
			msg.Removed = append(msg.Removed, key.String())
		}
	}
	return msg
}
