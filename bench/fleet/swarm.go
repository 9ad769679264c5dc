package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/swarm"
)

// swarmCommand is the argument by which this program is the swarm. It is told by lines
// of JSON on its standard input, first who it is, and answers each with one; it ends with
// its input.
const swarmCommand = "be-swarm"

// orders for a swarm.
const (
	orderConnected = "connected" // how many agents are
	orderTold      = "told"      // how many know of a change
	orderTimes     = "times"     // when each that knows of it came to know
	orderMessages  = "messages"  // how often agents were told something
	orderHush      = "hush"      // they are not to report, or again to
)

// muster is who the swarm is.
type muster struct {
	Target        string
	Agents        int
	CA, Cert, Key string // in PEM; without them there is no TLS
}

// order asks something. Change is of Plugin.
type order struct {
	What   string
	Plugin string
	Change int64
	Hush   bool
}

// answer is for one order.
type answer struct {
	Count int64
	Times []int64 // UnixNano, by the machine's clock
	Error string
}

// fewEvery is which agents the second plugin is for: one in a hundred.
const fewEvery = 100

// beSwarm runs the agents until the input ends.
func beSwarm(ctx context.Context, in io.Reader, out io.Writer) error {
	debug.SetGCPercent(400) // it shares the machine with the control plane, which is what is measured
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lines, answers := json.NewDecoder(bufio.NewReader(in)), json.NewEncoder(out)
	var m muster
	if err := lines.Decode(&m); err != nil {
		return fmt.Errorf("who the swarm is: %w", err)
	}
	secure, err := m.tls()
	if err != nil {
		return err
	}
	h := newHeard(m.Agents)
	fleet := swarm.New(swarm.Config{
		Target: m.Target, TLS: secure, Agents: m.Agents, Conduct: h.conduct,
		Node: func(i int) chandler.Node {
			n := chandler.Node{
				Namespace: "default", Name: fmt.Sprintf("agent-%d", i), AgentVersion: "bench", EnvoyVersion: "1.40.0",
				Labels: map[string]string{"app": "bench", "version": "v1"},
			}
			if i%fewEvery == 0 {
				n.Labels["few"] = "yes"
			}
			return n
		},
	})
	var running sync.WaitGroup
	running.Go(func() { err = errors.Join(err, fleet.Run(ctx)) })
	for {
		var o order
		if derr := lines.Decode(&o); derr != nil {
			cancel()
			running.Wait()
			if errors.Is(derr, io.EOF) {
				derr = nil
			}
			return errors.Join(derr, err)
		}
		var a answer
		switch o.What {
		case orderConnected:
			a.Count = int64(fleet.Connected())
		case orderHush:
			fleet.Hush(o.Hush)
		default:
			a = h.answer(o)
		}
		if werr := answers.Encode(a); werr != nil {
			cancel()
			running.Wait()
			return errors.Join(werr, err)
		}
	}
}

// tls is what an agent shows and expects. All show one certificate, which is good for any
// node of their namespace.
func (m *muster) tls() (*tls.Config, error) {
	if m.CA == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(m.CA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("no certificate in " + m.CA)
	}
	own, err := tls.LoadX509KeyPair(m.Cert, m.Key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS13}, nil
}

// heard is what the agents were told, and when.
type heard struct {
	mu       sync.Mutex
	marks    map[string][]mark // by plugin, then by agent
	changes  map[*chandler.Attachment]int64
	messages int64
}

// mark is the last change that an agent was told of.
type mark struct{ change, at int64 }

func newHeard(agents int) *heard {
	h := &heard{marks: map[string][]mark{}, changes: map[*chandler.Attachment]int64{}}
	for _, plugin := range []string{pluginAll, pluginFew} {
		h.marks[plugin] = make([]mark, agents)
	}
	return h
}

// maxChanges bounds what is remembered of attachments that agents share.
const maxChanges = 4096

// conduct notes that an agent is told of a change; its Envoy then takes it at once.
func (h *heard) conduct(n chandler.Node, a *chandler.Attachment) swarm.Conduct {
	at := time.Now().UnixNano()
	i, err := strconv.Atoi(strings.TrimPrefix(n.Name, "agent-"))
	h.mu.Lock()
	defer h.mu.Unlock()
	h.messages++
	marks := h.marks[a.Key.Name]
	if err != nil || i >= len(marks) {
		return swarm.Conduct{}
	}
	change, known := h.changes[a]
	if !known {
		change = changeOf(a.Config)
		if len(h.changes) >= maxChanges {
			clear(h.changes)
		}
		h.changes[a] = change
	}
	marks[i] = mark{change, at}
	return swarm.Conduct{}
}

func (h *heard) answer(o order) (a answer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch o.What {
	case orderMessages:
		a.Count = h.messages
	case orderTold, orderTimes:
		for _, m := range h.marks[o.Plugin] {
			if m.at == 0 || m.change < o.Change {
				continue
			}
			a.Count++
			if o.What == orderTimes {
				a.Times = append(a.Times, m.at)
			}
		}
	default:
		a.Error = "no such order: " + o.What
	}
	return a
}
