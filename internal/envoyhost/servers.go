package envoyhost

import (
	"bufio"
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"chandler.dev/chandler/internal/exchange"
)

// servers answer for the upstream and for all clusters of call-outs. What they answer is
// set anew for each exchange.
type servers struct {
	ctx context.Context

	mu       sync.Mutex
	upstream exchange.Message
	answers  []exchange.Answer
	reached  *exchange.Message
	calls    []exchange.Call
	open     int           // requests that have no answer yet
	changed  chan struct{} // closed and replaced with every change
	pace     func() error  // between two pieces
}

func newServers(ctx context.Context) *servers {
	return &servers{ctx: ctx, changed: make(chan struct{}), pace: func() error { return nil }}
}

// set says what is answered from now on; pace is called between two pieces.
func (s *servers) set(upstream exchange.Message, answers []exchange.Answer, pace func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.upstream, s.answers, s.reached, s.calls, s.pace = upstream, slices.Clone(answers), nil, nil, pace
}

// change does something to it under its lock.
func (s *servers) change(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
	close(s.changed)
	s.changed = make(chan struct{})
}

// await waits until something holds of it.
func (s *servers) await(ctx context.Context, holds func() bool) bool {
	for {
		s.mu.Lock()
		ok, changed := holds(), s.changed
		s.mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// count is how many calls came.
func (s *servers) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.calls)
}

// idle tells whether all requests were answered.
func (s *servers) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open == 0
}

// take gives what came since it was set: the upstream's request, and of the calls those
// that are in a list, in its order. late are those of the list that did not come yet.
func (s *servers) take(made []string) (reached *exchange.Message, calls []exchange.Call, late []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range made {
		i := slices.IndexFunc(s.calls, func(c exchange.Call) bool {
			path, _ := c.Request.Get(":path")
			return c.Cluster+" "+path == name
		})
		if i < 0 {
			late = append(late, name)
			continue
		}
		calls = append(calls, s.calls[i])
		s.calls = slices.Delete(s.calls, i, i+1)
	}
	reached, s.reached = s.reached, nil
	return reached, calls, late
}

// expect says what call-outs get from now on.
func (s *servers) expect(answers []exchange.Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers = slices.Clone(answers)
}

// serve answers on a socket for a cluster until ctx ends; all connections have ended
// when it returns.
func (s *servers) serve(ctx context.Context, lis net.Listener, cluster string) {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { _ = lis.Close() })
	defer stop()
	for {
		conn, err := lis.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer stop()
			defer conn.Close()
			s.one(ctx, conn, reader{bufio.NewReader(conn)}, cluster)
		})
	}
}

// one answers the request that a connection is for. Without an answer it ends it.
func (s *servers) one(ctx context.Context, conn net.Conn, r reader, cluster string) {
	first, fields, err := r.head()
	if err != nil {
		return
	}
	m := request(first, fields)
	s.change(func() { s.open++ })
	defer s.change(func() { s.open-- })
	err = r.body(m, false)
	var answer *exchange.Message
	var delay time.Duration
	var pace func() error
	s.change(func() {
		m.Headers = without(m.Headers, func(h exchange.Header) bool { return exchange.Own(h.Name) })
		pace = s.pace
		if err != nil {
			return
		}
		if cluster == upstreamCluster {
			s.reached, answer = m, &s.upstream
			return
		}
		s.calls = append(s.calls, exchange.Call{Cluster: cluster, Request: *m})
		if a := s.fitting(cluster, m); a != nil && !a.Fails {
			answer, delay = &a.Message, a.Delay
		}
	})
	if err != nil || answer == nil || !wait(ctx, delay) {
		return
	}
	method, _ := m.Get(":method")
	status, _ := answer.Get(":status")
	bare := method == "HEAD" || status == "204" || status == "304"
	_ = send(conn, pieces("HTTP/1.1 "+status+" ", answer, true, bare), pace) // a plugin may have answered meanwhile
}

// send writes pieces, each when the one before has been taken.
func send(conn net.Conn, pieces [][]byte, pace func() error) error {
	for i, b := range pieces {
		if i > 0 {
			if err := pace(); err != nil {
				return err
			}
		}
		if _, err := conn.Write(b); err != nil {
			return err
		}
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) bool {
	if d == 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// fitting takes the first answer that fits a call and is not used up.
func (s *servers) fitting(cluster string, m *exchange.Message) *exchange.Answer {
	method, _ := m.Get(":method")
	path, _ := m.Get(":path")
	for i := range s.answers {
		a := &s.answers[i]
		if a.Times < 0 || a.Cluster != "" && a.Cluster != cluster || a.Method != "" && a.Method != method || a.Path != "" && !glob(a.Path, path) {
			continue
		}
		given := *a
		if a.Times == 1 {
			a.Times = -1 // used up
		} else if a.Times > 1 {
			a.Times--
		}
		return &given
	}
	return nil
}

// glob compares with a pattern in which * is anything.
func glob(pattern, text string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == text
	}
	rest, ok := strings.CutPrefix(text, parts[0])
	for _, p := range parts[1 : len(parts)-1] {
		if i := strings.Index(rest, p); ok && i >= 0 {
			rest = rest[i+len(p):]
		} else {
			ok = false
		}
	}
	return ok && strings.HasSuffix(rest, parts[len(parts)-1])
}

// request is the head of a request with the pseudo-headers that HTTP/1.1 writes
// otherwise.
func request(first string, fields []exchange.Header) *exchange.Message {
	method, rest, _ := strings.Cut(first, " ")
	path, _, _ := strings.Cut(rest, " ")
	m := &exchange.Message{Headers: []exchange.Header{{Name: ":method", Value: method}, {Name: ":path", Value: path}}}
	for _, h := range fields {
		if h.Name == "host" {
			h.Name = ":authority"
		}
		m.Headers = append(m.Headers, h)
	}
	return m
}
