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

// run reports over conn until ctx ends or the stream breaks.
func (r *reporter) run(ctx context.Context, conn *grpc.ClientConn) error {
	stream, err := chandlerv1.NewReportsClient(conn).Report(ctx)
	if err != nil {
		return err
	}
	sent := map[chandler.Key]chandler.AttachmentState{}
	for sequence := uint64(1); ; sequence++ {
		r.mu.Lock()
		states := maps.Clone(r.states)
		r.mu.Unlock()
		msg := difference(sent, states)
		if sequence == 1 {
			msg.Node, msg.Full = r.node, true
		}
		if sequence == 1 || len(msg.States)+len(msg.Removed) > 0 {
			msg.Sequence = sequence
			if err := stream.Send(msg); err != nil {
				return err
			}
			if _, err := stream.Recv(); err != nil {
				return err
			}
			sent = states
		} else {
			sequence--
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-r.changed:
		}
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
