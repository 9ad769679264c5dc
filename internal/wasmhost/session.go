package wasmhost

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"chandler.dev/chandler/internal/exchange"
)

// session is a VM with one plugin through which exchanges are sent.
type session struct {
	setup exchange.Setup
	host  *Host
	root  *scope
	leave func() error
	logs  []exchange.Log

	// answers are those of the last exchange; known: there was one.
	answers []exchange.Answer
	used    []int
	known   bool
}

const (
	maxLogs = 1 << 14 // lines that are kept until they are asked for
	// patience is how long a stream may be held, by the time of the VM, besides what its
	// answers take.
	patience = 5 * time.Second
	maxTicks = 1 << 12
)

func (s *session) log(l Level, text string) {
	if len(s.logs) < maxLogs {
		s.logs = append(s.logs, exchange.Log{Level: l.String(), Text: text})
	}
}

// String names a level.
func (l Level) String() string {
	switch l {
	case LevelTrace:
		return "trace"
	case LevelDebug:
		return "debug"
	case LevelInfo:
		return "info"
	case LevelWarn:
		return "warn"
	case LevelError:
		return "error"
	}
	return "critical"
}

// Logs implements exchange.Session.
func (s *session) Logs() []exchange.Log {
	logs := s.logs
	s.logs = nil
	return logs
}

// Metrics implements exchange.Session. Histograms are left out.
func (s *session) Metrics(context.Context) (map[string]int64, error) {
	all := map[string]int64{}
	for name, m := range s.host.metrics.byName {
		if m.kind != histogram {
			all[name.name] = int64(m.value)
		}
	}
	return all, nil
}

// Close implements exchange.Session.
func (s *session) Close() error {
	return errors.Join(s.host.Close(context.Background()), s.leave())
}

// bounded has the VM end with a context.
func (s *session) bounded(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, s.host.cancel)
}

// Tick implements exchange.Session: the time of the VM goes on for so long.
func (s *session) Tick(ctx context.Context, n int) error {
	defer s.bounded(ctx)()
	h := s.host
	s.settle()
	for until := h.ticks + min(n, maxTicks); h.ticks < until && h.failed == nil && s.root.period > 0; s.settle() {
		if !h.clock.step(h.clock.now + s.root.period) {
			break
		}
	}
	// What is answered later is for what comes then.
	s.quiet(func() time.Duration { return h.clock.now + roundTrip })
	return ctx.Err()
}

// end is how long something may be held from now on.
func (s *session) end() time.Duration {
	until := s.host.clock.now + patience
	for _, a := range s.answers {
		until += a.Delay
	}
	return until
}

// quiet lets time pass until all calls were answered, or there is none that is answered
// until then.
func (s *session) quiet(until func() time.Duration) {
	h := s.host
	for n := 0; n < maxEvents && h.calls.open > 0 && h.clock.step(until()); n++ {
		s.settle()
	}
}

// wait is quiet for as long as something may be held.
func (s *session) wait() {
	end := s.end()
	s.quiet(func() time.Duration { return end })
}

// Answer implements exchange.Session.
func (s *session) Answer(answers []exchange.Answer) {
	s.answers, s.used, s.known = answers, make([]int, len(answers)), true
	s.settle()
	s.wait()
}

// Calls implements exchange.Session.
func (s *session) Calls() []exchange.Call {
	calls := s.host.calls.made
	s.host.calls.made = nil
	for i := range calls {
		calls[i].Request = *plain(calls[i].Request)
	}
	return calls
}

// settle lets happen what is due.
func (s *session) settle() {
	s.route()
	for n := 0; n < maxEvents && s.host.clock.step(s.host.clock.now); n++ {
		s.route()
	}
}

// route finds the answers to the calls that were made. Before the first exchange
// nobody knows any, and they wait.
func (s *session) route() {
	k := &s.host.calls
	if !s.known {
		return
	}
	for len(k.waiting) > 0 {
		o := k.waiting[0]
		k.waiting = k.waiting[1:]
		none := exchange.Answer{Fails: true}
		a := &none
		for i := range s.answers {
			if this := &s.answers[i]; (this.Times == 0 || s.used[i] < this.Times) && fits(this, o.call) {
				s.used[i]++
				a = this
				break
			}
		}
		s.host.deliver(o, a)
	}
}

// Do implements exchange.Session.
func (s *session) Do(ctx context.Context, e exchange.Exchange) (*exchange.Outcome, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	defer s.bounded(ctx)()
	if err := settable(e.Properties); err != nil {
		return nil, err
	}
	s.answers, s.used, s.known = e.Answers, make([]int, len(e.Answers)), true
	s.settle()
	failed := s.host.failed
	x := newStream(s.host, s.root)
	x.properties = e.Properties
	x.bare = failed != nil && s.setup.Open
	s.carry(x, e)
	x.finish()
	s.settle()
	s.wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return s.outcome(x, failed), nil
}

// carry lets the message come in piece by piece, with all that is due between them,
// and then the upstream's; and when nothing else goes on it lets the time pass.
func (s *session) carry(x *stream, e exchange.Exchange) {
	pieces := x.request.pieces(arriving(e.Request))
	var answer []func()
	until := s.end()
	for ticks := s.host.ticks; !x.over; {
		switch {
		case len(pieces) > 0 && !x.response.complete && !x.request.full():
			pieces[0]()
			pieces = pieces[1:]
		case x.asked && answer == nil && x.response.headers == nil:
			answer = x.response.pieces(served(e.Upstream, x))
			x.details = "via_upstream"
			continue
		case len(answer) > 0 && !x.response.full():
			answer[0]()
			answer = answer[1:]
		case !s.host.clock.step(until) || s.host.ticks > ticks+maxTicks:
			x.details = "nothing lets the stream go on"
			x.cutOff()
		}
		s.settle()
	}
}

// pieces are the steps in which a message comes in.
func (l *lane) pieces(m exchange.Message) (steps []func()) {
	l.headers = newHeaderMap(m.Headers)
	bare := len(m.Chunks) == 0 && len(m.Trailers) == 0 && !m.Chunked
	last := func() { l.onData(&body{}, true) }
	if len(m.Trailers) > 0 {
		last = func() { l.trailers = newHeaderMap(m.Trailers); l.onTrailers() }
	}
	steps = append(steps, func() { l.onHeaders(bare) })
	for i, chunk := range m.Chunks {
		steps = append(steps, func() {
			l.onData(&body{bytes: append([]byte(nil), chunk...)}, false)
			if i == len(m.Chunks)-1 && !l.x.over {
				last()
			}
		})
	}
	if !bare && len(m.Chunks) == 0 {
		steps = append(steps, last)
	}
	return steps
}

// framed gives a message with the fields that say how long it is, behind the others.
// first is a field that comes before all if it is not there.
func framed(m exchange.Message, first string) exchange.Message {
	headers := append([]exchange.Header(nil), m.Headers...)
	if _, there := m.Get(first); first != "" && !there {
		headers = append([]exchange.Header{{Name: first, Value: "200"}}, headers...)
	}
	m.Headers = headers
	_, said := m.Get("content-length")
	m.Chunked = m.Chunked || len(m.Trailers) > 0
	if length := len(m.Body()); m.Chunked {
		m.Headers = append(m.Headers, exchange.Header{Name: "transfer-encoding", Value: "chunked"})
	} else if !said && (length > 0 || first != "") {
		m.Headers = append(m.Headers, exchange.Header{Name: "content-length", Value: strconv.Itoa(length)})
	}
	if m.Chunked {
		return m
	}
	if len(m.Body()) == 0 {
		m.Chunks = nil
	}
	return m
}

// arriving gives a request as the connection manager hands it to the filters.
func arriving(m exchange.Message) exchange.Message {
	m = framed(m, "")
	var first, rest []exchange.Header
	for _, f := range []exchange.Header{{Name: ":authority", Value: "localhost"}, {Name: ":path", Value: "/"}, {Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"}} {
		if value, there := m.Get(f.Name); there {
			f.Value = value
		}
		first = append(first, f)
	}
	for _, f := range m.Headers {
		if !strings.HasPrefix(f.Name, ":") && f.Name != "transfer-encoding" {
			rest = append(rest, f)
		}
	}
	m.Headers = append(append(first, rest...),
		exchange.Header{Name: "x-forwarded-proto", Value: first[len(first)-1].Value},
		exchange.Header{Name: "x-request-id", Value: "00000000-0000-4000-8000-000000000000"})
	return m
}

// served gives a response as the router hands it to the filters.
func served(m exchange.Message, x *stream) exchange.Message {
	m = framed(m, ":status")
	if method, _ := x.upstream.Get(":method"); method == http.MethodHead {
		m.Chunks, m.Trailers, m.Chunked = nil, nil, false
	}
	m.Headers = append(m.Headers, exchange.Header{Name: "x-envoy-upstream-service-time", Value: "0"})
	return m
}

// outcome tells what came of a stream. failed is why the VM was of no use before.
func (s *session) outcome(x *stream, failed error) *exchange.Outcome {
	o := &exchange.Outcome{Details: x.details, Cut: x.cut, Calls: s.host.calls.made}
	s.host.calls.made = nil
	if failed == nil && s.host.failed != nil {
		o.Trap = firstLine(s.host.explain(s.host.failed))
	}
	if x.asked {
		o.Upstream = plain(x.upstream)
	}
	_, said := declared(&x.client)
	if o.Cut = o.Cut || x.reset && x.started && said; o.Cut || !x.reset {
		o.Response = plain(x.client)
	}
	for i := range o.Calls {
		o.Calls[i].Request = *plain(o.Calls[i].Request)
	}
	return o
}

// plain leaves out of a message what is no plugin's.
func plain(m exchange.Message) *exchange.Message {
	m.Headers = (&headerMap{fields: m.Headers}).own()
	return &m
}

func settable(properties map[string]string) error {
	for path, value := range properties {
		if _, err := encodeProperty(path, value); err != nil {
			return fmt.Errorf("property %s: %w", path, err)
		}
	}
	return nil
}
