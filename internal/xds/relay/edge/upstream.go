package edge

import (
	"context"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// Pauses before a stream to the upstream is begun anew: by chance, up to firstPause, a
// bound that doubles up to maxPause. A stream that lasted for maxPause went well.
const (
	minPause   = 20 * time.Millisecond
	firstPause = 500 * time.Millisecond
	maxPause   = 10 * time.Second
)

// quietly is how long a stream is there without an answer and without an end until it
// counts as one: to those who have everything already an upstream sends nothing.
const quietly = time.Second

// link is one stream to the upstream.
type link struct {
	cancel context.CancelCauseFunc
	out    chan []byte
}

// upstream keeps a link until ctx ends.
func (p *passage) upstream(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; failures++ {
		began := time.Now()
		err := p.converse(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) >= maxPause {
			failures = 0
		}
		wait := pause(failures, rand.Float64())
		p.edge.config.Linked(p.method, err)
		p.edge.config.Log.Debug("a stream to the upstream is lost", "method", p.method, "error", err, "retry_in", wait)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// pause is how long to wait after so many failures.
func pause(failures int, chance float64) time.Duration {
	bound := min(firstPause<<min(failures, 16), maxPause)
	return max(minPause, time.Duration(chance*float64(bound)))
}

var streaming = grpc.StreamDesc{ClientStreams: true, ServerStreams: true}

// converse is one link, from its begin to its end.
func (p *passage) converse(whole context.Context) error {
	ctx, cancel := context.WithCancelCause(metadata.NewOutgoingContext(whole, p.headers))
	defer cancel(nil)
	rpc, err := p.edge.config.Upstream.NewStream(ctx, &streaming, p.method, grpc.ForceCodecV2(p.edge.codec), grpc.MaxCallRecvMsgSize(maxMessage))
	if err != nil {
		return err
	}
	l := &link{cancel: cancel, out: make(chan []byte)}
	if !p.tell(ctx, event{link: l}) {
		return context.Cause(ctx)
	}
	sender := make(chan struct{})
	go func() {
		defer close(sender)
		l.send(ctx, rpc, func() { p.edge.config.Linked(p.method, nil) })
	}()
	err = p.listen(ctx, rpc, l)
	cancel(nil)
	<-sender
	p.tell(whole, event{link: l, lost: true})
	return err
}

// tell hands an event to the handler; false: ctx has ended.
func (p *passage) tell(ctx context.Context, ev event) bool {
	select {
	case p.events <- ev:
		return true
	case <-ctx.Done():
		return false
	}
}

// send sends what the handler gives, and tells once that the link stays; one that cannot
// send is one that ends.
func (l *link) send(ctx context.Context, rpc grpc.ClientStream, stays func()) {
	quiet := time.NewTimer(quietly)
	defer quiet.Stop()
	for {
		select {
		case <-quiet.C:
			stays()
		case m := <-l.out:
			if rpc.SendMsg(m) != nil {
				return // why is what listen is told
			}
		case <-ctx.Done():
			return
		}
	}
}

// listen reads until the link ends, and tells why.
func (p *passage) listen(ctx context.Context, rpc grpc.ClientStream, l *link) error {
	for first := true; ; first = false {
		m := scanned{delta: p.delta}
		if err := rpc.RecvMsg(&m); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return err
		}
		if first {
			p.edge.config.Linked(p.method, nil)
		}
		if !p.tell(ctx, event{link: l, response: &m}) {
			return context.Cause(ctx)
		}
	}
}
