package relay

import (
	"slices"
	"strconv"
	"time"

	"chandler.dev/chandler"
)

// Limits of what one stream makes the relay keep. An Envoy with more resources than this
// has other troubles first.
const (
	maxTypes = 64
	maxNames = 1 << 20
	maxBytes = 1 << 30 // of the upstream's resources
)

// Stream is one stream of Envoy's, and the one of the same kind to the upstream.
type Stream struct {
	relay   *Relay
	kind    Kind
	process int // of Envoy, that opened it
	feeds   map[string]*feed
	order   []*feed // as Envoy asked for the types
	queue   []*feed // those that have something for Envoy, in the order in which it came
	size    int     // bytes of the upstream's resources

	node     []byte
	everNode bool // Envoy says its node in every message
	requests int  // that Envoy made

	nonce     int  // the last one shown to Envoy
	connected bool // there is a stream to the upstream
	greeted   bool // and it was sent something
}

// FromEnvoy takes a request. The error is a limit; the stream has to end then.
func (s *Stream) FromEnvoy(q Request, now time.Time) error {
	s.requests++
	if q.Node != nil {
		s.node, s.everNode = q.Node, s.requests > 1
	}
	f, err := s.feed(q.Type)
	if err != nil {
		return err
	}
	if q.Nonce != "" && !f.answeredLocal(q) {
		f.answered(q, now)
	}
	if q, err = f.takeLocal(q); err != nil {
		return err
	}
	f.subscribe(q, now)
	if len(f.wants.names) > maxNames {
		return limit("Envoy asks for more than %d resources of type %s", maxNames, chandler.Quote(f.typeURL))
	}
	return nil
}

// feed gives that of a type, a new one if Envoy asks for it the first time.
func (s *Stream) feed(typeURL string) (*feed, error) {
	if typeURL == "" {
		typeURL = s.kind.Type
	}
	f := s.feeds[typeURL]
	if f == nil {
		if len(s.feeds) == maxTypes {
			return nil, limit("Envoy asks for more than %d types of resources", maxTypes)
		}
		f = newFeed(s, typeURL)
		s.feeds[typeURL] = f
		s.order = append(s.order, f)
	}
	return f, nil
}

// FromUpstream takes a response. A type that Envoy does not ask for is passed over, as
// Envoy would. The error is a limit, or that a resource cannot be read; the stream to the
// upstream has to end then.
func (s *Stream) FromUpstream(p Response) error {
	if p.Type == "" {
		p.Type = s.kind.Type
	}
	if f := s.feeds[p.Type]; f != nil {
		if err := f.receive(p); err != nil {
			return err
		}
	}
	if s.size > maxBytes {
		return limit("the upstream's resources are over %d MiB", maxBytes>>20)
	}
	return nil
}

func limit(format string, args ...any) error {
	return chandler.Problemf(chandler.CodeXDSLimit, "", "give the proxy a configuration that is smaller", format, args...)
}

// Connected says that there is a stream to the upstream, a new one.
func (s *Stream) Connected(now time.Time) {
	s.connected, s.greeted = true, false
	s.relay.awaitAnew(now)
	for _, f := range s.order {
		f.reconnect()
	}
}

// Disconnected says that it is gone.
func (s *Stream) Disconnected() { s.connected = false }

// Close ends the stream. What Envoy acknowledged stays in the relay's memory.
func (s *Stream) Close(now time.Time) {
	for _, f := range s.order {
		f.closeLocals()
		for _, e := range f.entries {
			f.shelf.leave(e, now)
		}
	}
	delete(s.relay.streams, s)
}

// ToEnvoy gives the next message to Envoy, nil for none.
func (s *Stream) ToEnvoy(now time.Time) *Response {
	for _, f := range s.order {
		if p := f.nextLocal(); p != nil {
			return p
		}
	}
	for i := 0; i < len(s.queue); {
		f := s.queue[i]
		p := f.next(now)
		if !f.isDue() {
			s.queue = slices.Delete(s.queue, i, i+1)
		} else if p == nil {
			i++
		}
		if p != nil {
			return p
		}
	}
	return nil
}

// ToUpstream gives the next message to the upstream, nil for none.
func (s *Stream) ToUpstream() *Request {
	if !s.connected {
		return nil
	}
	for _, f := range s.order {
		q := f.request()
		if q == nil {
			continue
		}
		if !s.greeted || s.everNode {
			q.Node = s.relay.hooks.Node(s.node)
		}
		s.greeted = true
		return q
	}
	return nil
}

// Wake gives the time at which ToEnvoy is to be asked if nothing happens before; zero:
// never.
func (s *Stream) Wake() time.Time {
	var first time.Time
	due := func(t time.Time) {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	for _, f := range s.queue {
		if !f.canSend() {
			continue
		}
		if f.onlyAgain() {
			due(f.retryAt)
		}
		if o := s.relay.opening; f.typeURL == listenerType && o.isAwaited {
			due(o.until)
		}
	}
	return first
}

// enqueue has a type's resources sent after all that waits already; those that the relay
// changes itself go before types that name them.
func (s *Stream) enqueue(f *feed, own bool) {
	if slices.Contains(s.queue, f) {
		return
	}
	at := len(s.queue)
	if own {
		if i := slices.IndexFunc(s.queue, func(o *feed) bool { return rank(o.typeURL) > rank(f.typeURL) }); i >= 0 {
			at = i
		}
	}
	s.queue = slices.Insert(s.queue, at, f)
}

func (s *Stream) nextNonce() string {
	s.nonce++
	return strconv.Itoa(s.nonce)
}
