// Package swarm runs many agents in one process, each with an Envoy that follows a
// script: they speak the real protocol with a control plane (delta ADS, Report with
// facts and traffic, Modules.Read), and answer requests by a clock, with no socket but
// those to the control plane.
//
// It is for tests and benchmarks of what the control plane makes of a fleet. Of what
// an agent decides, and of what Envoy does, it proves nothing.
package swarm

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/wire"
)

// Config is a swarm. All but Target may be left out.
type Config struct {
	// Target is the control plane's host and port, TLS what is shown and expected there,
	// nil being without encryption, and DialContext how to get there; nil: over TCP.
	Target      string
	TLS         *tls.Config
	DialContext func(ctx context.Context, target string) (net.Conn, error)
	// Message is told of every message that agents send or are sent, by its method and
	// size; it is called from many goroutines.
	Message func(method string, sent bool, bytes int)
	// Agents is how many there are, and Node who they are: default/agent-0, with the
	// label "agent" that has its number, and so on.
	Agents int
	Node   func(i int) chandler.Node
	// Mode and Port are of the one listener of each; SERVER and 8080.
	Mode chandler.Mode
	Port uint32
	// Conduct is what an agent's Envoy makes of a release. It is called from many
	// goroutines, once for each release and agent.
	Conduct func(n chandler.Node, a *chandler.Attachment) Conduct
	// Rate is how many requests a second each Envoy answers, Usual how, when no
	// plugin decides otherwise, and History for how long it did so before it began.
	Rate    float64
	Usual   *Answers
	History time.Duration
	// Fetch has every agent read each module of the control plane before it comes in
	// force.
	Fetch bool
	// Now is the clock by which Envoys answer; time.Now when nil. Waiting goes by the
	// real one.
	Now func() time.Time
}

// Swarm is many agents. New starts nothing; Run does.
type Swarm struct {
	cfg    Config
	agents []*Agent
	hushed atomic.Bool
	zstd   *zstd.Decoder // for all, without goroutines

	mu   sync.Mutex
	read map[string]*chandler.Attachment // by version: agents share what is the same
}

// New gives a swarm.
func New(cfg Config) *Swarm {
	cfg.Mode, cfg.Port = cmp.Or(cfg.Mode, chandler.ModeServer), cmp.Or(cfg.Port, 8080)
	cfg.Usual = cmp.Or(cfg.Usual, Usual())
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Conduct == nil {
		cfg.Conduct = func(chandler.Node, *chandler.Attachment) Conduct { return Conduct{} }
	}
	if cfg.Node == nil {
		cfg.Node = func(i int) chandler.Node {
			return chandler.Node{Namespace: "default", Name: fmt.Sprintf("agent-%d", i), Labels: map[string]string{"agent": fmt.Sprint(i)}}
		}
	}
	decoder, _ := zstd.NewReader(nil) // it fails for options only
	s := &Swarm{cfg: cfg, zstd: decoder, read: map[string]*chandler.Attachment{}}
	for i := range cfg.Agents {
		s.agents = append(s.agents, newAgent(s, i))
	}
	return s
}

// Run has the agents connected until ctx ends, and returns when all that it started has
// ended.
func (s *Swarm) Run(ctx context.Context) error {
	if s.cfg.Target == "" {
		return errors.New("swarm: a target is required")
	}
	var wg sync.WaitGroup
	for _, a := range s.agents {
		wg.Go(func() { a.run(ctx) })
	}
	wg.Wait()
	return nil
}

// Agents gives all of them, in their order.
func (s *Swarm) Agents() []*Agent { return s.agents }

// Connected is how many agents have an answer of the control plane.
func (s *Swarm) Connected() (n int) {
	for _, a := range s.agents {
		a.mu.Lock()
		if a.connected {
			n++
		}
		a.mu.Unlock()
	}
	return n
}

// Hush has agents tell nothing that is new, or tell all of it after they did not.
func (s *Swarm) Hush(hushed bool) {
	s.hushed.Store(hushed)
	if !hushed {
		for _, a := range s.agents {
			a.tell()
		}
	}
}

// Told is how many agents were ever told each release of a plugin.
func (s *Swarm) Told(key chandler.Key) map[chandler.ReleaseID]int {
	told := map[chandler.ReleaseID]int{}
	for _, a := range s.agents {
		seen := map[chandler.ReleaseID]bool{}
		for _, id := range a.Told(key) {
			if !seen[id] {
				seen[id] = true
				told[id]++
			}
		}
	}
	return told
}

// InForce is on how many agents each release of a plugin decides requests now; ""
// stands for none.
func (s *Swarm) InForce(key chandler.Key) map[chandler.ReleaseID]int {
	in := map[chandler.ReleaseID]int{}
	for _, a := range s.agents {
		in[a.InForce(key)]++
	}
	return in
}

// understand reads an attachment, once for all agents that get the same.
func (s *Swarm) understand(body []byte) (*chandler.Attachment, error) {
	version := wire.Version(body)
	s.mu.Lock()
	known := s.read[version]
	s.mu.Unlock()
	if known != nil {
		return known, nil
	}
	a, err := wire.UnmarshalAttachment(body)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.read[version]; known != nil {
		return known, nil
	}
	if len(s.read) >= maxRead {
		clear(s.read) // who has one keeps it
	}
	s.read[version] = &a
	return &a, nil
}

// maxRead is how many attachments are kept to be shared.
const maxRead = 4096
