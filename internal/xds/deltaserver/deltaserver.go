// Package deltaserver is the control plane's side of the delta xDS stream
// towards agents. What a node may see is asked from a View, and only differences
// from what the agent holds are sent.
//
// It keeps no resources of its own and has no queue: while an answer is under
// way to an agent nothing more is prepared for it, and its acknowledgement gets
// whatever is newest by then. So a slow agent costs nothing and delays nobody. A
// resource that changes without pause is sent a few times a second at most.
//
// A stream has no goroutine of its own, and resources are encoded once for all: with
// ten thousand agents these are what memory and time go for.
package deltaserver

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/wire"
)

// Limits of what one agent may ask.
const (
	MaxName     = 512    // bytes of a resource name
	MaxNames    = 1024   // names in one request
	MaxVersions = 10_000 // initial resource versions, and names in all requests of a stream
	maxTypes    = 8      // type URLs on one stream
	maxStreams  = 8      // streams of one node
	maxResponse = 4 << 20
	maxDetail   = 4 << 10
	maxRequest  = 1 << 20 // bytes of a request, without its error detail

	firstTimeout = 10 * time.Second // for the first message of a stream
)

// Config says who may connect and what they get.
type Config struct {
	// TypeURL is the one resource type that is served.
	TypeURL string
	// Identity stands in every answer, as control_plane.identifier: agents hold against
	// each other only what one identity says. Empty: it is left out.
	Identity string
	// Claimed reads who an agent says that it is, and Authenticate decides who that is;
	// their errors, best a gRPC status, end the stream. The claim is kept, the message not.
	Claimed      func(*corev3.Node) (chandler.Node, error)
	Authenticate func(ctx context.Context, claimed chandler.Node) (chandler.Node, error)
	// View gives all that a node shall have, with unique names. False: it is not
	// known yet, and the node waits for the Refresh after it is. View is called
	// from many goroutines and must not call back.
	View func(chandler.Node) ([]*Resource, bool)
	// Connected, when set, is told when the first stream of a node opens and when
	// its last one ends; each further stream tells the node anew, its claim may
	// differ. It must neither block nor call back.
	Connected func(node chandler.Node, connected bool)
	// Nacked, when set, is told what an agent refused and why (printable text).
	Nacked func(node chandler.Node, names []string, detail string)
	// Pushed, when set, is told how long an answer took from its making to its
	// acknowledgement.
	Pushed func(time.Duration)
	// Sent, when set, is told of every answer how many bytes of resources are in
	// it: none in the first answer to an agent that is up to date. It must neither
	// block nor call back.
	Sent func(bytes int)
	// Asked, when set, is told what agents ask for, and for how many names. It must
	// neither block nor call back.
	Asked func(what Asked, names int)
	Log   *slog.Logger
}

// Asked is what an agent asks for.
type Asked string

// What agents ask for. Whatever it is, they get what is for their node.
const (
	AskedAll   Asked = "all"   // the wildcard
	AskedOwn   Asked = "own"   // something by a name that is for the node
	AskedOther Asked = "other" // by a name that is not, whether there is such a thing or not
)

// Server serves delta ADS. New starts nothing; streams live with the gRPC
// server that it is registered at, a quiet one.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	cfg    Config
	pusher pusher
	begun  time.Time
	due    atomic.Bool  // all streams will be asked when a tick begins
	count  atomic.Int64 // of the streams

	mu      sync.Mutex
	streams map[*stream]struct{}
	nodes   map[string]*presence // by node id
}

// presence is a node with at least one stream.
type presence struct {
	node    chandler.Node
	streams int
}

// New gives a server without streams.
func New(cfg Config) *Server {
	if cfg.Connected == nil {
		cfg.Connected = func(chandler.Node, bool) {}
	}
	if cfg.Nacked == nil {
		cfg.Nacked = func(chandler.Node, []string, string) {}
	}
	if cfg.Pushed == nil {
		cfg.Pushed = func(time.Duration) {}
	}
	if cfg.Sent == nil {
		cfg.Sent = func(int) {}
	}
	if cfg.Asked == nil {
		cfg.Asked = func(Asked, int) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, begun: time.Now(), streams: map[*stream]struct{}{}, nodes: map[string]*presence{}}
	s.pusher.list = s.list
	return s
}

// Register puts the service on a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(r, s)
}

// Refresh has View asked again for every stream and what differs sent. It waits for
// nothing.
func (s *Server) Refresh() { s.pusher.push() }

// list gives the streams that are open.
func (s *Server) list() []*stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	streams := make([]*stream, 0, len(s.streams))
	for st := range s.streams {
		streams = append(streams, st)
	}
	return streams
}

// Nodes gives the nodes that are connected, by id.
func (s *Server) Nodes() []chandler.Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	nodes := make([]chandler.Node, 0, len(s.nodes))
	for _, p := range s.nodes {
		nodes = append(nodes, p.node)
	}
	slices.SortFunc(nodes, func(a, b chandler.Node) int {
		if a.ID() < b.ID() {
			return -1
		}
		return 1
	})
	return nodes
}

// DeltaAggregatedResources is one stream, from its first message, which must
// name the node, to its end.
func (s *Server) DeltaAggregatedResources(str discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return (&stream{server: s, str: str}).serve()
}

// begin finds out whose stream it is, by its first message.
func (s *Server) begin(st *stream, first *discoveryv3.DeltaDiscoveryRequest) error {
	if first.GetNode().GetId() == "" {
		return wire.Refusal(codes.InvalidArgument, chandler.CodeXDSNode, "node id missing in first message")
	}
	claim, err := s.cfg.Claimed(first.GetNode())
	if err == nil {
		st.node, err = s.cfg.Authenticate(st.str.Context(), claim)
	}
	if err != nil {
		if _, ok := status.FromError(err); !ok {
			err = status.Error(codes.Unauthenticated, err.Error())
		}
		return err
	}
	st.claim, st.name, st.id = claim, st.node.ID(), strings.Clone(first.GetNode().GetId())
	return s.enter(st)
}

func (s *Server) enter(st *stream) error {
	id := st.name
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.nodes[id]
	if p == nil {
		p = &presence{}
		s.nodes[id] = p
	}
	if p.streams >= maxStreams {
		return wire.Refusal(codes.ResourceExhausted, chandler.CodeXDSLimit, "node %s has %d streams, limit %d", chandler.Quote(id), p.streams, maxStreams)
	}
	p.streams++
	p.node, st.entered = st.node, true
	s.streams[st] = struct{}{}
	s.count.Add(1)
	s.cfg.Connected(st.node, true)
	return nil
}

func (s *Server) leave(st *stream) {
	id := st.name
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	s.count.Add(-1)
	p := s.nodes[id]
	if p.streams--; p.streams == 0 {
		delete(s.nodes, id)
		s.cfg.Connected(p.node, false)
	}
}
