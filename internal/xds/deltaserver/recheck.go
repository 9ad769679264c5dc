package deltaserver

import (
	"context"
	"maps"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/xds/quiet"
)

// checkPause is between two streams at least, so that what Authenticate asks is
// asked for no more than this often on behalf of streams that are there.
const checkPause = 40 * time.Millisecond

// Recheck asks Authenticate about every stream again, each once in a period (less
// often where there are too many), until ctx ends. A stream whose node has other
// labels by now goes on with those, and one that is refused ends. That nobody can
// tell now changes nothing.
func (s *Server) Recheck(ctx context.Context, period time.Duration) {
	for {
		streams := s.list()
		pause := max(period/time.Duration(max(1, len(streams))), checkPause)
		if len(streams) == 0 {
			pause = period
			streams = []*stream{nil}
		}
		for _, st := range streams {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			if st != nil {
				s.recheck(st)
			}
		}
	}
}

// Dismiss ends the streams that there are, with a gRPC status.
func (s *Server) Dismiss(why error) {
	for _, st := range s.list() {
		quiet.End(st.str.Context(), why)
	}
}

func (s *Server) recheck(st *stream) {
	node, err := s.cfg.Authenticate(st.str.Context(), st.claim)
	switch status.Code(err) {
	case codes.OK:
	case codes.Unauthenticated, codes.PermissionDenied:
		quiet.End(st.str.Context(), err)
		return
	default:
		return
	}
	if s.relabel(st, node) {
		st.refresh()
	}
}

// relabel gives a stream's node other labels; false when it has them, or has gone.
func (s *Server) relabel(st *stream, node chandler.Node) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, open := s.streams[st]; !open || node.ID() != st.name {
		return false
	}
	st.mu.Lock()
	same := maps.Equal(st.node.Labels, node.Labels)
	st.node.Labels = node.Labels
	st.mu.Unlock()
	if !same {
		s.nodes[st.name].node = node
		s.cfg.Connected(node, true)
	}
	return !same
}
