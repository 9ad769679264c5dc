package upstream

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/buffer/v3" // is in recordings
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Replay is a control plane that says what another one said once, each stream of a client
// in the place of one of then. The next message goes out when the client wants what is in
// it, and has answered the one before of its type.
type Replay struct {
	Addr string

	t       testing.TB
	variant Variant
	steps   []step

	mu      sync.Mutex
	next    int
	open    map[*replayed]bool
	taken   map[int]*replayed // for one of the recording
	changed chan struct{}
}

// replayed is one stream, and what its client said.
type replayed struct {
	method  string
	taken   bool                       // it stands for one of the recording
	wants   map[string]map[string]bool // by type
	awaited map[string]string          // by type: the nonce that is not answered
	over    chan struct{}
}

// NewReplay starts one of a recording in that file, of a control plane of that variant;
// what has paths is in dir. It stops when the test ends.
func NewReplay(t testing.TB, v Variant, file, dir string) *Replay {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	steps, err := readSteps(f, dir)
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &Replay{Addr: lis.Addr().String(), t: t, variant: v, steps: steps, open: map[*replayed]bool{}, taken: map[int]*replayed{}, changed: make(chan struct{})}
	server := grpc.NewServer(grpc.UnknownServiceHandler(r.serve), grpc.WaitForHandlers(true))
	done := make(chan error, 1)
	go func() { done <- server.Serve(lis) }()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return r
}

// Bootstrap is as an Upstream's.
func (r *Replay) Bootstrap(node, adminSocket string) string {
	return (&Upstream{config: Config{Variant: r.variant}, Addr: r.Addr}).Bootstrap(node, adminSocket)
}

// Await waits until everything was said and answered; it ends the test if it never is.
func (r *Replay) Await() {
	r.t.Helper()
	for deadline := time.After(bound); ; {
		r.mu.Lock()
		changed, next, answered := r.changed, r.next, true
		for s := range r.open {
			answered = answered && len(s.awaited) == 0
		}
		r.mu.Unlock()
		if next == len(r.steps) && answered {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			what := "the last answers"
			if next < len(r.steps) {
				what = fmt.Sprintf("what makes %.300s due", r.steps[next].Message)
			}
			r.t.Fatalf("after %d of %d messages the replay waited %v for %s", next, len(r.steps), bound, what)
		}
	}
}

// tell wakes all that wait; mu is held.
func (r *Replay) tell() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// serve serves a stream of any method.
func (r *Replay) serve(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	if !slices.ContainsFunc(r.steps, func(s step) bool { return s.Method == method }) {
		return status.Errorf(codes.Unimplemented, "%s is not in the recording", method)
	}
	s := &replayed{method: method, wants: map[string]map[string]bool{}, awaited: map[string]string{}, over: make(chan struct{})}
	r.mu.Lock()
	r.open[s] = true
	r.mu.Unlock()
	defer r.ended(s)
	gone := make(chan struct{})
	go func() { // until the stream ends
		defer close(gone)
		for r.hear(stream, s) == nil {
		}
	}()
	for {
		r.mu.Lock()
		changed := r.changed
		m := r.due(s)
		r.mu.Unlock()
		if m != nil {
			if err := stream.SendMsg(m); err != nil {
				return err
			}
			continue
		}
		select {
		case <-changed:
		case <-gone:
			return nil
		case <-s.over:
			return status.Error(codes.Unavailable, "cut")
		}
	}
}

// ended has nobody wait for that stream.
func (r *Replay) ended(s *replayed) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, s)
	r.tell()
}

func (s *replayed) delta() bool { return strings.Contains(s.method, "/Delta") }

// hear takes one request.
func (r *Replay) hear(stream grpc.ServerStream, s *replayed) error {
	var q proto.Message = &discovery.DiscoveryRequest{}
	if s.delta() {
		q = &discovery.DeltaDiscoveryRequest{}
	}
	if err := stream.RecvMsg(q); err != nil {
		return err
	}
	typeURL, nonce, wants, leaves := asked(q)
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.wants[typeURL] == nil || !s.delta() {
		s.wants[typeURL] = map[string]bool{}
	}
	for _, n := range wants {
		s.wants[typeURL][n] = true
	}
	for _, n := range leaves {
		delete(s.wants[typeURL], n)
	}
	if nonce != "" && s.awaited[typeURL] == nonce {
		delete(s.awaited, typeURL)
	}
	r.tell()
	return nil
}

// due gives what is to be said next, if it is on that stream and its time has come; mu is
// held.
func (r *Replay) due(s *replayed) proto.Message {
	if r.next == len(r.steps) || !r.open[s] {
		return nil
	}
	if r.steps[r.next].Method == "" {
		r.cut()
		return nil
	}
	of := r.taken[r.steps[r.next].Stream]
	if of != nil && !r.open[of] { // the client wanted it no more
		r.next++
		r.tell()
		return nil
	}
	if r.steps[r.next].Method != s.method || of != s && (of != nil || s.taken) {
		return nil
	}
	m, err := r.steps[r.next].response()
	if err != nil {
		r.t.Errorf("the recording cannot be read: %v", err)
		return nil
	}
	typeURL, nonce, names := contents(m)
	if s.awaited[typeURL] != "" || s.wants[typeURL] == nil {
		return nil
	}
	all := typeURL == Listeners || typeURL == Clusters
	names = append(names, r.steps[r.next].Wants...)
	if slices.ContainsFunc(names, func(n string) bool { return !all && !s.wants[typeURL][n] }) {
		return nil
	}
	r.taken[r.steps[r.next].Stream], s.taken = s, true
	s.awaited[typeURL] = nonce
	r.next++
	r.tell()
	return m
}

// cut ends all streams once all of them have answered; mu is held.
func (r *Replay) cut() {
	for s := range r.open {
		if len(s.awaited) > 0 {
			return
		}
	}
	for s := range r.open {
		close(s.over)
	}
	clear(r.open)
	r.next++
	r.tell()
}

// contents gives what a client must want before it is told.
func contents(m proto.Message) (typeURL, nonce string, names []string) {
	switch m := m.(type) {
	case *discovery.DeltaDiscoveryResponse:
		for _, res := range m.GetResources() {
			names = append(names, res.GetName())
		}
		return m.GetTypeUrl(), m.GetNonce(), names
	case *discovery.DiscoveryResponse:
		for _, a := range m.GetResources() {
			if res, err := a.UnmarshalNew(); err == nil {
				names = append(names, cache.GetResourceName(res))
			}
		}
		return m.GetTypeUrl(), m.GetNonce(), names
	}
	return "", "", nil
}
