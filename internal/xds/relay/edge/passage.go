package edge

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler/internal/xds/relay"
)

// passage is one stream of Envoy's and that to the upstream. One goroutine, Envoy's
// handler, deals with all that happens, and sends to Envoy itself: while Envoy does not
// read, nobody reads from the upstream.
type passage struct {
	edge    *Edge
	method  string
	delta   bool
	headers metadata.MD
	stream  *relay.Stream
	wake    chan struct{} // a transform changed

	requests chan relay.Request
	failed   chan error // why Envoy's stream ended
	events   chan event // of the upstream

	link    *link  // to the upstream; nil: none
	pending []byte // what is to be sent on it
}

// event is something of the upstream, in the order in which it happened: a link that
// begins, a response on it, or its loss.
type event struct {
	link     *link
	response *scanned
	lost     bool
}

// pass relays one stream of xDS until it ends.
func (e *Edge) pass(rpc grpc.ServerStream, method string, kind relay.Kind, headers metadata.MD, started *sync.WaitGroup) error {
	ctx, cancel := context.WithCancel(rpc.Context())
	p := &passage{edge: e, method: method, delta: kind.Delta, headers: headers, wake: make(chan struct{}, 1),
		requests: make(chan relay.Request), failed: make(chan error, 1), events: make(chan event)}
	e.mu.Lock()
	p.stream = e.relay.Open(kind, time.Now())
	e.open[p] = true
	e.mu.Unlock()
	started.Go(func() { p.receive(ctx, rpc) })
	var upstream sync.WaitGroup
	upstream.Go(func() { p.upstream(ctx) })
	defer func() {
		e.mu.Lock()
		delete(e.open, p)
		p.stream.Close(time.Now())
		e.mu.Unlock()
		e.config.Ended(method)
		cancel()
		upstream.Wait()
	}()
	return p.run(ctx, rpc)
}

// receive reads from Envoy until its stream ends.
func (p *passage) receive(ctx context.Context, rpc grpc.ServerStream) {
	for {
		m := request{delta: p.delta}
		if err := rpc.RecvMsg(&m); err != nil {
			p.failed <- err
			return
		}
		select {
		case p.requests <- m.Request:
		case <-ctx.Done():
			return
		}
	}
}

func (p *passage) run(ctx context.Context, rpc grpc.ServerStream) error {
	for {
		wait, err := p.send(rpc)
		if err != nil {
			return err
		}
		var timer <-chan time.Time
		if !wait.IsZero() {
			timer = time.After(time.Until(wait))
		}
		var out chan<- []byte
		if p.pending != nil {
			out = p.link.out
		}
		select {
		case q := <-p.requests:
			err = p.do(func(s *relay.Stream) error { return s.FromEnvoy(q, time.Now()) })
		case ev := <-p.events:
			p.happened(ev)
		case out <- p.pending:
			p.pending = nil
		case <-p.wake:
		case <-timer:
		case err := <-p.failed:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
		if err != nil {
			return status.Error(codes.ResourceExhausted, err.Error())
		}
	}
}

// send sends what there is for Envoy, and looks what there is for the upstream. It tells
// when to look again.
func (p *passage) send(rpc grpc.ServerStream) (wait time.Time, err error) {
	for {
		var m *relay.Response
		var q *relay.Request
		_ = p.do(func(s *relay.Stream) error {
			m = s.ToEnvoy(time.Now())
			if p.pending == nil {
				q = s.ToUpstream()
			}
			wait = s.Wake()
			return nil
		})
		if q != nil {
			p.pending = q.Bytes(p.delta)
		}
		if m == nil {
			return wait, nil
		}
		if err := rpc.SendMsg(&response{*m, p.delta}); err != nil {
			return wait, err
		}
	}
}

// happened takes what the upstream did.
func (p *passage) happened(ev event) {
	if ev.response != nil {
		defer ev.response.buffer.Free()
	}
	err := p.do(func(s *relay.Stream) error {
		switch {
		case ev.response != nil && ev.link == p.link:
			return s.FromUpstream(ev.response.Response)
		case ev.lost:
			p.link, p.pending = nil, nil
			s.Disconnected()
		case ev.response == nil:
			p.link, p.pending = ev.link, nil
			s.Connected(time.Now())
		}
		return nil
	})
	if err != nil {
		p.edge.config.Log.Error("the upstream is not listened to", "error", err)
		ev.link.cancel(err)
	}
}

// do has something done to the stream, and tells whether it moved what is remembered.
func (p *passage) do(what func(*relay.Stream) error) error {
	p.edge.mu.Lock()
	before := p.edge.relay.Changes()
	err := what(p.stream)
	moved, isNews := p.edge.relay.Changes() != before, len(p.edge.news) > 0
	p.edge.mu.Unlock()
	if moved {
		p.edge.config.Took()
	}
	if isNews {
		p.edge.tell()
	}
	return err
}
