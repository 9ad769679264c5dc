package edge

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	buffer "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/buffer/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"chandler.dev/chandler/internal/testenv/upstream"
	"chandler.dev/chandler/internal/xds/relay"
)

// slot is a local name and its owner.
type slot struct {
	*testing.T
	name string
	told chan relay.LocalEvent

	mu      sync.Mutex
	version string
	body    []byte
}

func (s *slot) local() map[string]relay.Local {
	return map[string]relay.Local{upstream.Extensions: {Prefix: "own/", Tell: func(ev relay.LocalEvent) { s.told <- ev },
		Get: func(name string) ([]byte, string, bool) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.body, s.version, name == s.name && s.version != ""
		}}}
}

// set gives the slot a filter, and tells what Envoy says of it.
func (s *slot) set(e *Edge, version string, filter proto.Message) relay.LocalEvent {
	s.Helper()
	body, err := proto.Marshal(upstream.Extension(s.name, filter))
	if err != nil {
		s.Fatal(err)
	}
	s.mu.Lock()
	s.version, s.body = version, body
	s.mu.Unlock()
	e.Changed(upstream.Extensions, s.name)
	return s.hears(version, relay.Acked, relay.Nacked)
}

// hears waits for one of those events of a version.
func (s *slot) hears(version string, whats ...relay.LocalWhat) relay.LocalEvent {
	s.Helper()
	for {
		select {
		case ev := <-s.told:
			if ev.Name != s.name || ev.Type != upstream.Extensions {
				s.Fatalf("told %+v", ev)
			}
			if ev.Version == version && slices.Contains(whats, ev.What) {
				return ev
			}
		case <-time.After(bound):
			s.Fatalf("nothing was told of version %s (%v)", version, whats)
		}
	}
}

func limits(bytes uint32) proto.Message {
	return &buffer.Buffer{MaxRequestBytes: wrapperspb.UInt32(bytes)}
}

// A real Envoy takes a local name on its one stream, or on one of its own, beside what the
// upstream sends, and when that is away; the upstream never hears of it.
func TestLocalNames(t *testing.T) {
	t.Parallel()
	for _, v := range upstream.Variants {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			own := &slot{T: t, name: "own/slot", told: make(chan relay.LocalEvent, 100)}
			s := newSite(t, v, relay.Hooks{Local: own.local()})
			set := func(version string) {
				t.Helper()
				l := v.Listener("l", filepath.Join(s.dir, "l"), "r", v.Discovered(own.name, bufferType, wasmType), v.Discovered("limit", bufferType))
				var n uint32
				_, _ = fmt.Sscan(version, &n)
				s.Set(version, upstream.Resources{l, v.Cluster("c"), upstream.Route("r", "c", version), upstream.Backend("c", s.backend),
					upstream.Extension("limit", limits(1000+n))})
			}
			s.startEdge()
			s.startEnvoy()
			set("1")
			own.hears("", relay.Subscribed)
			if ev := own.set(s.edge, "a", limits(1)); ev.What != relay.Acked || ev.Current {
				t.Errorf("told %+v", ev)
			}
			s.serves("1")
			ev := own.set(s.edge, "b", missing)
			if ev.What != relay.Nacked || !strings.Contains(ev.Words, "/missing") {
				t.Errorf("told %+v", ev)
			}
			set("2")
			s.serves("2")
			if ev := own.set(s.edge, "c", limits(2)); ev.What != relay.Acked {
				t.Errorf("told %+v", ev)
			}
			s.Await("the upstream's is taken", func() bool { return s.Acked(upstream.Extensions, "2") })
			if got := s.Subscribed(upstream.Extensions); !slices.Equal(got, []string{"limit"}) {
				t.Errorf("the upstream is asked for %q", got)
			}

			s.Stop()
			if ev := own.set(s.edge, "d", limits(3)); ev.What != relay.Acked || ev.Current {
				t.Errorf("without an upstream told %+v", ev)
			}
			s.stopEnvoy()
			s.edge.Another()
			s.startEnvoy()
			own.hears("", relay.Subscribed)
			if ev := own.hears("d", relay.Acked); ev.Current {
				t.Error("another Envoy is said to have it already")
			}
			s.serves("2")
			s.Start()
			set("3")
			s.serves("3")
			s.Await("the upstream's is taken", func() bool { return s.Acked(upstream.Extensions, "3") })
			for _, r := range s.Requests() {
				if strings.Contains(fmt.Sprintf("%+v", r), "own/") || r.Type == upstream.Extensions && r.Again > 0 {
					t.Errorf("the upstream was told %+v", r)
				}
			}
		})
	}
}
