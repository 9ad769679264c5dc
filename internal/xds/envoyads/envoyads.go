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
	"log/slog"
	"net"

	"google.golang.org/protobuf/types/known/anypb"
)

// TypeURL is the only type of resource that is served.
const TypeURL = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"

// Config is the configuration of a Server.
type Config struct {
	// Events is told what happens, one event at a time and in order, never from
	// within Set. While it blocks the stream waits. Required.
	Events func(Event)
	// Log may be nil.
	Log *slog.Logger
}

// Server serves slots to one Envoy.
type Server struct{ config Config }

// New gives a server that serves nothing yet.
func New(config Config) *Server { return &Server{config: config} }

// Serve answers on ln until ctx ends; all that it started has ended when it
// returns. It closes ln. The error is nil when ctx was the reason.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error { return nil }

// Set says what slot shall hold: a TypedExtensionConfig named like the slot, as
// a resource body. It is sent when Envoy has subscribed to the slot, in the
// order of the calls to Set; what waits in the queue is replaced in its place.
// The answer is an Acked or Nacked of that version. body must not change any
// more.
func (s *Server) Set(slot, version string, body *anypb.Any) {}

// Reset forgets all that was set and answered, and ends the stream. It must be
// called before another Envoy is started, which has seen nothing of it.
func (s *Server) Reset() {}

// Event is something that Envoy did.
type Event interface{ isEvent() }

type (
	// Connected begins a stream. Version is Envoy's, such as "1.40.0".
	Connected struct{ Version string }
	// Subscribed tells that Envoy asks for a slot. Version is what it says it
	// holds, from a stream before; empty: nothing.
	Subscribed struct{ Slot, Version string }
	// Unsubscribed tells that it does not want the slot any more.
	Unsubscribed struct{ Slot string }
	// Acked tells that the version is in force. Current means that nothing had to
	// be sent, because Envoy had it already.
	Acked struct {
		Slot, Version string
		Current       bool
	}
	// Nacked tells that Envoy refused the version, in its own words, made
	// printable; what was in force stays.
	Nacked struct{ Slot, Version, Message string }
	// Disconnected ends a stream; what was sent and not answered is not lost but
	// sent again on the next one. Err may be nil.
	Disconnected struct{ Err error }
)

func (Connected) isEvent()    {}
func (Subscribed) isEvent()   {}
func (Unsubscribed) isEvent() {}
func (Acked) isEvent()        {}
func (Nacked) isEvent()       {}
func (Disconnected) isEvent() {}
