package upstream

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Recorder keeps what an Upstream sends, and when it cuts connections, in that order.
type Recorder struct {
	mu      sync.Mutex
	steps   []step
	streams int
}

// step is a message on the stream of that number and method, or, without one, that all
// connections were cut. A recording is a file with one in each line.
type step struct {
	Stream int    `json:"stream,omitempty"`
	Method string `json:"method,omitempty"`
	// Wants is, with a stream's first message, what its client asked for before.
	Wants   []string        `json:"wants,omitempty"`
	Message json.RawMessage `json:"message,omitempty"`
}

// here stands in a recording for the directory of what is addressed by paths.
const here = "${HERE}"

// Write makes a file of it, to be replayed with sockets in another directory.
func (r *Recorder) Write(file, dir string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b bytes.Buffer
	for _, s := range r.steps {
		line, err := json.Marshal(s) // which compacts
		if err != nil {
			return err
		}
		b.WriteString(strings.ReplaceAll(string(line), dir, here) + "\n")
	}
	return os.WriteFile(file, b.Bytes(), 0o644)
}

func (r *Recorder) note(s step) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.steps = append(r.steps, s)
}

// Len is how many steps there are.
func (r *Recorder) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.steps)
}

// intercept has the recorder see what is sent on a stream.
func (r *Recorder) intercept(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	r.mu.Lock()
	r.streams++
	id := r.streams
	r.mu.Unlock()
	return handler(srv, &recorded{ServerStream: s, by: r, id: id, method: info.FullMethod})
}

type recorded struct {
	grpc.ServerStream
	by     *Recorder
	id     int
	method string

	mu    sync.Mutex // go-control-plane receives and sends in goroutines of their own
	wants []string   // until the first message
	said  bool
}

func (s *recorded) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wants == nil {
		_, _, s.wants, _ = asked(m.(proto.Message))
	}
	return nil
}

func (s *recorded) SendMsg(m any) error {
	text, err := protojson.Marshal(m.(proto.Message)) // as all messages of xDS are
	if err != nil {
		return err
	}
	s.mu.Lock()
	next := step{Stream: s.id, Method: s.method, Message: text}
	if !s.said {
		next.Wants, s.said = s.wants, true
	}
	s.mu.Unlock()
	s.by.note(next)
	return s.ServerStream.SendMsg(m)
}

// asked gives what a client says in a request: that it answers a nonce, and names that it
// wants, or no longer.
func asked(m proto.Message) (typeURL, nonce string, wants, leaves []string) {
	switch q := m.(type) {
	case *discovery.DeltaDiscoveryRequest:
		return q.GetTypeUrl(), q.GetResponseNonce(), q.GetResourceNamesSubscribe(), q.GetResourceNamesUnsubscribe()
	case *discovery.DiscoveryRequest:
		return q.GetTypeUrl(), q.GetResponseNonce(), q.GetResourceNames(), nil
	}
	return "", "", nil, nil
}

// readSteps reads a recording; paths in it are in dir then.
func readSteps(r io.Reader, dir string) (steps []step, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var s step
		if err := json.Unmarshal([]byte(strings.ReplaceAll(lines.Text(), here, dir)), &s); err != nil {
			return nil, fmt.Errorf("line %d: %w", len(steps)+1, err)
		}
		steps = append(steps, s)
	}
	return steps, lines.Err()
}

// response is a message of a recording.
func (s step) response() (m proto.Message, err error) {
	m = &discovery.DiscoveryResponse{}
	if strings.Contains(s.Method, "/Delta") {
		m = &discovery.DeltaDiscoveryResponse{}
	}
	return m, protojson.Unmarshal(s.Message, m)
}
