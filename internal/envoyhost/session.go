package envoyhost

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"chandler.dev/chandler/internal/exchange"
)

const (
	// patience is how long a plugin may hold a request back while Envoy has nothing else
	// to do, beside what answers to call-outs take.
	patience = 5 * time.Second
	// answerTime bounds an exchange: an Envoy that comes to no end with it is ended.
	answerTime = 30 * time.Second
	// tickTime is how long a tick may be late.
	tickTime = 30 * time.Second
	// metricPrefix is what Envoy puts before a plugin's metrics.
	metricPrefix = "wasmcustom."
	// maxAdmin bounds an answer of Envoy's own.
	maxAdmin = 64 << 20
)

// session is a plugin in a VM of its own. Its name there has a number behind it: what a
// plugin shares, it shares by that name, and nothing of one session is for the next.
type session struct {
	engine  *Engine
	process *process
	setup   exchange.Setup
	vm      string

	logs   []exchange.Log
	calls  []exchange.Call // of no exchange
	late   []string        // call-outs that were made and did not come to a server yet
	period time.Duration   // of ticks
	extra  int             // ticks that passed beside those that were asked for
	broken bool            // Envoy is of no use any more
}

// prefix is what Envoy puts before the plugin's own lines.
func (s *session) prefix() string {
	prefix := " " + s.setup.Name
	if s.setup.RootID != "" {
		prefix += " " + s.setup.RootID
	}
	return prefix + " " + s.vm
}

// outcome is what the log says of something that went through the plugin.
type outcome struct {
	details, trap string
	calls         []string // cluster and URL of those that the worker made
}

// read takes what was logged since the last time. Only the thread that serves counts:
// Envoy starts the plugin on others too.
func (s *session) read() outcome {
	p := s.process
	records := p.log.take()
	var o outcome
	stream := ""
	for i := range records {
		r := &records[i]
		if r.thread != p.worker {
			continue
		}
		if l, ok := r.own(s.prefix()); ok {
			s.logs = append(s.logs, l)
			continue
		}
		switch {
		case r.traced():
			if tickPattern.MatchString(r.text) {
				s.extra++
			}
			s.trace(r.text)
		case r.component == "wasm" && o.trap == "" && trapPattern.MatchString(r.text):
			o.trap = trapPattern.FindString(r.text)
		case r.component == "router":
			if m := callPattern.FindStringSubmatch(r.text); m != nil && m[1] != upstreamCluster {
				o.calls = append(o.calls, m[1]+" "+m[2])
			}
		}
		tags := tagPattern.FindStringSubmatch(r.text)
		if r.component != "http" || tags == nil || tags[1] == p.barriers || tags[2] == "" {
			continue
		}
		if stream == "" && strings.Contains(r.text, "request headers complete") {
			stream = tags[2]
		}
		if m := replyPattern.FindStringSubmatch(r.text); m != nil && tags[2] == stream {
			o.details = m[1]
		}
	}
	return o
}

func (s *session) trace(text string) {
	if m := periodPattern.FindStringSubmatch(text); m != nil {
		ms, _ := strconv.ParseInt(m[1], 10, 32)
		s.period = time.Duration(ms) * time.Millisecond
	}
	if s.setup.Trace != nil {
		s.setup.Trace(text)
	}
}

// Do implements exchange.Session.
func (s *session) Do(ctx context.Context, e exchange.Exchange) (*exchange.Outcome, error) {
	if s.broken {
		return nil, errors.New("envoy: it has ended")
	}
	for name := range e.Properties {
		return nil, fmt.Errorf("envoy: property %s cannot be set there", name)
	}
	limit := answerTime
	for _, a := range e.Answers {
		limit += a.Delay
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	o, err := s.do(ctx, e)
	if err != nil {
		s.broken = true
		return nil, fmt.Errorf("envoy: %w", err)
	}
	return o, nil
}

func (s *session) do(ctx context.Context, e exchange.Exchange) (*exchange.Outcome, error) {
	p := s.process
	if err := s.quiet(ctx); err != nil {
		return nil, err
	}
	s.gather(s.read())
	// An answer can be on its way when the exchange is over, and its context has ended.
	p.servers.set(e.Upstream, e.Answers, p.pacer(p.servers.ctx))
	o := &exchange.Outcome{}
	if err := s.ask(ctx, &e, o); err != nil {
		return nil, err
	}
	if err := s.quiet(ctx); err != nil {
		return nil, err
	}
	said := s.read()
	o.Trap, o.Details = said.trap, said.details
	o.Upstream, o.Calls, s.late = p.servers.take(said.calls)
	if o.Details == "" && o.Upstream != nil && o.Response != nil {
		o.Details = "via_upstream"
	}
	return o, nil
}

// pacer waits until Envoy has taken a piece of a message.
func (p *process) pacer(ctx context.Context) func() error {
	return func() error { return p.settle(ctx) }
}

// quiet waits until the plugin has done all that it does for what it was sent: the calls
// that it made have come to the servers and were answered, and Envoy, which has had the
// last of the answers by then, says of no more.
func (s *session) quiet(ctx context.Context) error {
	p := s.process
	for before := -1; ; {
		if err := p.settle(ctx); err != nil {
			return err
		}
		made := p.dispatched()
		if p.servers.count() >= made && p.servers.idle() {
			if made == before {
				return nil
			}
			before = made
			continue
		}
		before = -1
		waiting, cancel := context.WithTimeout(ctx, patience)
		done := p.servers.await(waiting, func() bool { return len(p.servers.calls) >= made && p.servers.open == 0 })
		cancel()
		if !done {
			return ctx.Err() // it is over for the plugin: it gave the call up
		}
	}
}

// ask sends the request and reads the response.
func (s *session) ask(ctx context.Context, e *exchange.Exchange, o *exchange.Outcome) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", s.process.path("plugin"))
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	sent := make(chan struct{})
	method, first, more := line(&e.Request)
	go func() {
		defer close(sent)
		// An answer may come before all was sent, and ends the connection.
		_ = send(conn, pieces(first, &e.Request, false, false, more...), s.process.pacer(ctx))
	}()
	defer func() { <-sent }()
	type answer struct {
		m   *exchange.Message
		cut bool
	}
	came := make(chan answer, 1)
	go func() {
		m, cut := response(reader{bufio.NewReader(conn)}, method)
		came <- answer{m, cut}
	}()
	held := max(patience, s.setup.Deadline)
	for _, a := range e.Answers {
		held += a.Delay
	}
	timer := time.NewTimer(held)
	defer timer.Stop()
	var a answer
	select {
	case a = <-came:
	case <-timer.C:
		// Held back by the plugin, or is Envoy itself stuck?
		<-sent
		if err := s.alive(ctx); err != nil {
			return err
		}
		if s.process.servers.idle() {
			_ = conn.SetDeadline(time.Now())
		}
		a = <-came
	}
	o.Response, o.Cut = a.m, a.cut
	return ctx.Err()
}

// alive tells an Envoy that waits from one in which a callback does not come back.
func (s *session) alive(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	err := s.process.settle(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = errors.New("the plugin does not come back from a callback")
	}
	return err
}

// line is a request's first line, with the headers that HTTP/1.1 has for the others that
// begin with a colon. The connection is for this request.
func line(m *exchange.Message) (method, first string, more []exchange.Header) {
	get := func(name, otherwise string) string {
		if value, ok := m.Get(name); ok {
			return value
		}
		return otherwise
	}
	method = get(":method", "GET")
	more = []exchange.Header{{Name: "host", Value: get(":authority", "localhost")}, {Name: "connection", Value: "close"}}
	if get(":scheme", "http") == "https" {
		more = append(more, exchange.Header{Name: "x-forwarded-proto", Value: "https"})
	}
	return method, method + " " + get(":path", "/") + " HTTP/1.1", more
}

// response reads what the client gets to the end of the connection; nil: no whole
// response came. cut: its body is not as long as it says.
func response(r reader, method string) (m *exchange.Message, cut bool) {
	var first string
	var fields []exchange.Header
	for {
		var err error
		if first, fields, err = r.head(); err != nil {
			return nil, false
		}
		if !strings.HasPrefix(first, "HTTP/1.1 1") {
			break
		}
	}
	_, rest, _ := strings.Cut(first, " ")
	status, _, _ := strings.Cut(rest, " ")
	m = &exchange.Message{Headers: append([]exchange.Header{{Name: ":status", Value: status}}, fields...)}
	var err error
	if method != http.MethodHead && status != "204" && status != "304" {
		err = r.body(m, true)
	}
	_, said := m.Get("content-length")
	switch {
	case errors.Is(err, errCut) && said:
		cut = true
	case err != nil:
		return nil, false // cut off before the last chunk
	default:
		_, err := r.ReadByte() // Envoy ends the connection after the response
		cut = err == nil
	}
	m.Headers = without(m.Headers, func(h exchange.Header) bool { return exchange.Own(h.Name) })
	m.Trailers = without(m.Trailers, func(h exchange.Header) bool { return exchange.Own(h.Name) })
	return m, cut
}

// gather keeps what was done outside of exchanges.
func (s *session) gather(o outcome) {
	_, calls, late := s.process.servers.take(append(s.late, o.calls...))
	s.late = late
	s.calls = append(s.calls, calls...)
}

// Tick implements exchange.Session.
func (s *session) Tick(ctx context.Context, n int) error {
	if s.broken {
		return errors.New("envoy: it has ended")
	}
	limited, cancel := context.WithTimeout(ctx, time.Duration(n)*s.period+tickTime)
	defer cancel()
	ticks, err := s.tick(limited, n)
	s.extra -= min(n, ticks)
	if err != nil {
		s.broken = true
		return fmt.Errorf("envoy: %d of %d ticks: %w", ticks, n, err)
	}
	return nil
}

func (s *session) tick(ctx context.Context, want int) (ticks int, err error) {
	if err := s.quiet(ctx); err != nil {
		return 0, err
	}
	s.gather(s.read())
	if want == 0 || s.period == 0 {
		return 0, nil
	}
	p, last := s.process, -1
	err = p.until(ctx, func(n int, r *record) bool {
		if n > last && r.thread == p.worker && r.traced() && tickPattern.MatchString(r.text) {
			ticks, last = ticks+1, n
		}
		return ticks >= want
	})
	if err == nil {
		err = s.quiet(ctx)
	}
	s.gather(s.read())
	return ticks, err
}

// Extra implements exchange.Clocked.
func (s *session) Extra() int { return s.extra }

// Answer implements exchange.Session.
func (s *session) Answer(answers []exchange.Answer) {
	s.process.servers.expect(answers)
}

// Calls implements exchange.Session.
func (s *session) Calls() []exchange.Call {
	calls := s.calls
	s.calls = nil
	return calls
}

// Logs implements exchange.Session.
func (s *session) Logs() []exchange.Log {
	if !s.broken {
		s.gather(s.read())
	}
	logs := s.logs
	s.logs = nil
	return logs
}

// Metrics implements exchange.Session.
func (s *session) Metrics(ctx context.Context) (map[string]int64, error) {
	all, err := s.process.metrics(ctx)
	if err != nil {
		return nil, fmt.Errorf("envoy: %w", err)
	}
	return all, nil
}

// Close implements exchange.Session. It returns when the plugin's VMs are gone, with
// their metrics: those of the next would be added to them.
func (s *session) Close() error {
	defer func() { <-s.engine.turn }()
	if !s.broken {
		ctx, cancel := context.WithTimeout(context.Background(), settleTime)
		defer cancel()
		s.broken = s.process.clear(ctx) != nil
	}
	if s.broken {
		s.engine.drop()
	}
	return nil
}

// clear takes the plugin out, and waits until nothing is left of it.
func (p *process) clear(ctx context.Context) error {
	p.log.take()
	if err := p.tell(ctx, trySlot, nothing(trySlot), settleTime); err != nil {
		return err
	}
	if err := p.settle(ctx); err != nil {
		return err
	}
	none := func(answer string) bool { return strings.TrimSpace(answer) == "" }
	if err := p.poll(ctx, "/stats?filter="+url.QueryEscape(`^wasmcustom\.`), none); err != nil {
		return err
	}
	// What is not shown any more is counted on as long as a thread has it in its cache:
	// the main thread tells the worker to forget it, and hears that it did.
	for range 2 {
		if _, err := p.get(ctx, "/ready"); err != nil {
			return err
		}
		if err := p.settle(ctx); err != nil {
			return err
		}
	}
	_, err := p.get(ctx, "/ready")
	return err
}

// metrics are those of plugins.
func (p *process) metrics(ctx context.Context) (map[string]int64, error) {
	text, err := p.get(ctx, "/stats?format=json&filter="+url.QueryEscape(`^wasmcustom\.`))
	if err != nil {
		return nil, err
	}
	var list struct {
		Stats []struct {
			Name  string `json:"name"`
			Value int64  `json:"value"`
		} `json:"stats"`
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, err
	}
	all := map[string]int64{}
	for _, m := range list.Stats {
		if name, ok := strings.CutPrefix(m.Name, metricPrefix); ok {
			all[name] = m.Value
		}
	}
	return all, nil
}

// get asks Envoy's admin interface.
func (p *process) get(ctx context.Context, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://envoy"+path, nil)
	if err != nil {
		return "", err
	}
	res, err := p.admin.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAdmin))
	return string(b), err
}

// poll asks until an answer is as it should be.
func (p *process) poll(ctx context.Context, path string, ok func(string) bool) error {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	for {
		answer, err := p.get(ctx, path)
		if err == nil && ok(answer) {
			return nil
		}
		select {
		case <-time.After(time.Millisecond):
		case <-p.ended:
			return p.gone()
		case <-ctx.Done():
			return fmt.Errorf("its %s does not become what it should: %w", path, ctx.Err())
		}
	}
}
