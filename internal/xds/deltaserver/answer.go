package deltaserver

import (
	"sync"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler/internal/xds/quiet"
)

// Resource is one named body at one version. Resources are immutable and shared
// by all streams. Without a body it is nothing to send, and no removal either: an
// agent that holds the name keeps what it holds. With Newcomers the body is for
// agents that do not hold the name; the others keep what they hold, too.
type Resource struct {
	Name      string
	Version   string
	Body      *anypb.Any
	Newcomers bool

	once    sync.Once
	encoded []byte
	err     error
}

// encode gives the resource as it stands in an answer, made once for all streams: a
// change costs its bytes once, not once for each agent that is told of it.
func (r *Resource) encode() ([]byte, error) {
	r.once.Do(func() {
		r.encoded, r.err = proto.Marshal(&discoveryv3.DeltaDiscoveryResponse{
			Resources: []*discoveryv3.Resource{{Name: r.Name, Version: r.Version, Resource: r.Body}},
		})
	})
	return r.encoded, r.err
}

// answer is one answer to an agent that waits.
type answer struct {
	typeURL string
	nonce   string
	from    string // who says it
	changed []*Resource
	removed []string
	bytes   int // of what changed
}

func (a *answer) names() []string {
	names := make([]string, 0, len(a.changed)+len(a.removed))
	for _, res := range a.changed {
		names = append(names, res.Name)
	}
	return append(names, a.removed...)
}

// encode puts the answer together. Messages of protobuf are merged by writing one
// behind the other, so what is of this stream alone stands behind resources that are
// shared.
func (a *answer) encode() (quiet.Parts, error) {
	rest := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: a.typeURL, Nonce: a.nonce, RemovedResources: a.removed}
	if a.from != "" {
		rest.ControlPlane = &corev3.ControlPlane{Identifier: a.from}
	}
	own, err := proto.Marshal(rest)
	if err != nil {
		return nil, err
	}
	out := make(quiet.Parts, 0, len(a.changed)+1)
	for _, res := range a.changed {
		b, err := res.encode()
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return append(out, own), nil
}
