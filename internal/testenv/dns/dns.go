// Package dns is a name server on loopback that answers what a test tells it to,
// and a resolver that asks it. It knows addresses only, over UDP.
package dns

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/dns/dnsmessage"
)

// Answer is what is said of a name. The zero value says that there is no such
// name.
type Answer struct {
	Addrs []netip.Addr
	// Silent: nothing is said at all.
	Silent bool
}

// Server answers for all names. Start gives one.
type Server struct {
	conn net.PacketConn
	done chan struct{}

	mu      sync.Mutex
	closed  bool
	clients []net.Conn // of resolvers, which wait for seconds unless they are closed
	answers map[string][]Answer
	asked   map[string]int
}

// Start opens a server. It runs until Close.
func Start() (*Server, error) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &Server{conn: conn, done: make(chan struct{}), answers: map[string][]Answer{}, asked: map[string]int{}}
	go s.serve()
	return s, nil
}

// Close ends the server, and the lookups that wait for it.
func (s *Server) Close() {
	s.conn.Close()
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, conn := range s.clients {
		conn.Close()
	}
}

// Resolver gives a resolver that asks nobody but this server.
func (s *Server) Resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.closed {
			return nil, net.ErrClosed
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, "udp", s.conn.LocalAddr().String())
		if err == nil {
			s.clients = append(s.clients, conn)
		}
		return conn, err
	}}
}

// Set tells what is said of a name: one answer a question, the last one again and
// again.
func (s *Server) Set(name string, answers ...Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[name] = answers
}

// Asked is how often a name's IPv4 address was asked for.
func (s *Server) Asked(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[name]
}

// At is an answer with addresses.
func At(addrs ...string) Answer {
	var a Answer
	for _, addr := range addrs {
		a.Addrs = append(a.Addrs, netip.MustParseAddr(addr))
	}
	return a
}

func (s *Server) serve() {
	defer close(s.done)
	buf := make([]byte, 1500)
	for {
		n, from, err := s.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		if reply := s.reply(slices.Clone(buf[:n])); reply != nil {
			_, _ = s.conn.WriteTo(reply, from)
		}
	}
}

// reply gives nil where nothing is to be said.
func (s *Server) reply(message []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(message) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	a := s.answer(strings.TrimSuffix(q.Name.String(), "."), q.Type)
	if a.Silent {
		return nil
	}
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	if len(a.Addrs) == 0 {
		m.RCode = dnsmessage.RCodeNameError
	}
	for _, addr := range a.Addrs {
		h := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}
		switch {
		case q.Type == dnsmessage.TypeA && addr.Is4():
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: addr.As4()}})
		case q.Type == dnsmessage.TypeAAAA && addr.Is6():
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}})
		}
	}
	packed, err := m.Pack()
	if err != nil {
		return nil
	}
	return packed
}

// answer takes the name's next answer. A resolver asks for both kinds of address
// at once and in any order, so that each kind has a turn of its own.
func (s *Server) answer(name string, typ dnsmessage.Type) Answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	count := name
	if typ != dnsmessage.TypeA {
		count += " " + typ.String()
	}
	answers, turn := s.answers[name], s.asked[count]
	s.asked[count]++
	if len(answers) == 0 {
		return Answer{}
	}
	return answers[min(turn, len(answers)-1)]
}
