// Package envoyads serves slots to one Envoy: a small loop of the incremental
// aggregated discovery protocol that never breaks what serves. One resource goes
// out a response, the next after the answer to it; nothing goes out that was not
// set; nothing is ever removed; and bytes that were just refused are not sent
// again, because Envoy would acknowledge them without effect.
//
// It is no general xDS server: it knows one resource type and one client, and
// does not decide what a slot holds.
package envoyads

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler"
)

// TypeURL is the only type of resource that is served.
const TypeURL = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"

// Bounds on what a client may make the server keep.
const (
	maxSlots   = 4096
	maxName    = 512
	maxMessage = 4 << 10
)

// Config is the configuration of a Server.
type Config struct {
	// Events is told what happens, one event at a time and in order, never from
	// within Set. While it blocks the stream waits; it must not block any more
	// once the context of Serve has ended. Required.
	Events func(Event)
	// Log may be nil.
	Log *slog.Logger
}

// Server serves slots to one process of Envoy. The next one, which has seen nothing of
// what this one was sent, takes another Server, that listens when this one does not
// any more: of a connection alone nobody can tell whose it is.
type Server struct {
	config Config
	log    *slog.Logger
	wake   chan struct{} // something was set

	mu      sync.Mutex
	ledger  *ledger
	current *session // the stream whose word counts; nil: none
}

// session is one stream.
type session struct {
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when it has ended, its last event told
}

// errReplaced is why a stream is ended from this side.
var errReplaced = errors.New("another stream of Envoy's took its place")

// New gives a server that serves nothing yet.
func New(config Config) *Server {
	log := config.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Server{config: config, log: log, wake: make(chan struct{}, 1), ledger: newLedger()}
}

// Serve answers on ln until ctx ends; all that it started has ended when it
// returns. It closes ln. The error is nil when ctx was the reason. It must be
// called once.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	var started sync.WaitGroup
	server := grpc.NewServer(grpc.WaitForHandlers(true))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, &service{server: s, started: &started})
	until, cancel := context.WithCancel(ctx)
	started.Go(func() {
		<-until.Done()
		server.Stop() // and waits for the streams
	})
	err := server.Serve(ln)
	cancel()
	started.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve slots to Envoy: %w", err)
}

// Set says what slot shall hold: a TypedExtensionConfig named like the slot, as
// a resource body. It is sent when Envoy has subscribed to the slot, in the
// order of the calls to Set; what waits in the queue is replaced in its place.
// The answer is an Acked or Nacked of that version. body must not change any
// more.
func (s *Server) Set(slot, version string, body *anypb.Any) {
	s.mu.Lock()
	s.ledger.set(slot, &push{version: version, body: body})
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// Drop forgets a slot that Envoy does not want any more; one that it has
// subscribed to stays.
func (s *Server) Drop(slot string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sl := s.ledger.slots[slot]; sl != nil && !sl.subscribed {
		delete(s.ledger.slots, slot)
	}
}

// service keeps the protocol's methods out of Server's.
type service struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	server  *Server
	started *sync.WaitGroup // what Serve waits for
}

// DeltaAggregatedResources is Envoy's stream.
func (sv *service) DeltaAggregatedResources(rpc discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	ctx, cancel := context.WithCancelCause(rpc.Context())
	defer cancel(nil)
	mine := &session{cancel: cancel, done: make(chan struct{})}
	defer close(mine.done)
	requests, failed := sv.receive(ctx, rpc)
	// The first message makes it a stream; until then another one may serve.
	var first *discoveryv3.DeltaDiscoveryRequest
	select {
	case first = <-requests:
	case err := <-failed:
		return ignoreEOF(err)
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
	s := sv.server
	s.take(mine)
	s.config.Events(Connected{Version: envoyVersion(first.Node)})
	err := s.converse(ctx, rpc, first, requests, failed)
	if cause := context.Cause(ctx); errors.Is(cause, errReplaced) {
		err = cause
	}
	s.config.Events(Disconnected{Err: err})
	s.leave(mine) // not before that is told: until then the next one waits
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	return nil
}

// receive reads the stream until it ends; then failed says why.
func (sv *service) receive(ctx context.Context, rpc discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) (<-chan *discoveryv3.DeltaDiscoveryRequest, <-chan error) {
	requests, failed := make(chan *discoveryv3.DeltaDiscoveryRequest), make(chan error, 1)
	sv.started.Go(func() {
		for {
			req, err := rpc.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case requests <- req:
			case <-ctx.Done():
				return
			}
		}
	})
	return requests, failed
}

// take makes the session the one that counts, once the one before has ended,
// and begins a stream in the ledger.
func (s *Server) take(mine *session) {
	s.mu.Lock()
	before := s.current
	s.current = mine
	s.mu.Unlock()
	if before != nil {
		before.cancel(errReplaced)
		<-before.done
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ledger.open()
}

func (s *Server) leave(mine *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == mine {
		s.current = nil
	}
}

// converse answers requests and sends what is due, until the stream ends.
func (s *Server) converse(ctx context.Context, rpc discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer,
	req *discoveryv3.DeltaDiscoveryRequest, requests <-chan *discoveryv3.DeltaDiscoveryRequest, failed <-chan error) error {
	for {
		if req != nil {
			events, err := s.request(req)
			s.tell(events)
			if err != nil {
				return err
			}
		}
		out, events := s.next()
		s.tell(events)
		if out != nil {
			if err := rpc.Send(out); err != nil {
				return err
			}
		}
		req = nil
		select {
		case req = <-requests:
		case err := <-failed:
			return ignoreEOF(err)
		case <-s.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// request enters a request into the ledger: first the answer that it is, then the
// change of subscriptions, which counts even when the answer is stale.
func (s *Server) request(req *discoveryv3.DeltaDiscoveryRequest) ([]Event, error) {
	if req.TypeUrl != TypeURL {
		s.log.Warn("Envoy asks for resources that the agent does not serve", "type", chandler.Printable(req.TypeUrl, maxName))
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var events []Event
	if req.ResponseNonce != "" {
		a := answer{acked: req.ErrorDetail == nil}
		if !a.acked {
			a.message = chandler.Printable(req.ErrorDetail.GetMessage(), maxMessage)
		}
		events = s.ledger.answered(req.ResponseNonce, a)
	}
	for _, name := range req.ResourceNamesUnsubscribe {
		events = append(events, s.ledger.unsubscribe(name)...)
	}
	for _, name := range req.ResourceNamesSubscribe {
		if name == "*" {
			continue
		}
		if len(name) > maxName || len(s.ledger.slots) >= maxSlots && s.ledger.slots[name] == nil {
			return events, status.Errorf(codes.ResourceExhausted, "more than %d slots, or a name of more than %d bytes", maxSlots, maxName)
		}
		events = append(events, s.ledger.subscribe(name, req.InitialResourceVersions[name])...)
	}
	return events, nil
}

// next gives the response that goes out now; nil when none does.
func (s *Server) next() (*discoveryv3.DeltaDiscoveryResponse, []Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, events := s.ledger.next()
	if d == nil {
		return nil, events
	}
	return &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl:           TypeURL,
		Nonce:             d.nonce,
		SystemVersionInfo: d.version,
		Resources:         []*discoveryv3.Resource{{Name: d.slot.name, Version: d.version, Resource: d.body}},
	}, events
}

func (s *Server) tell(events []Event) {
	for _, ev := range events {
		s.config.Events(ev)
	}
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) || status.Code(err) == codes.Canceled {
		return nil
	}
	return err
}

// envoyVersion is what a node says of its Envoy, such as "1.40.0".
func envoyVersion(node *corev3.Node) string {
	if v := node.GetUserAgentBuildVersion().GetVersion(); v != nil {
		return fmt.Sprintf("%d.%d.%d", v.GetMajorNumber(), v.GetMinorNumber(), v.GetPatch())
	}
	return chandler.Printable(node.GetUserAgentVersion(), maxName)
}
