package deltaserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/xds/quiet"
)

const thing = "type.googleapis.com/test.Thing"

// reader is the stream of an agent that acknowledges all at once.
type reader struct {
	grpc.ServerStream
	ctx      context.Context
	requests chan *discoveryv3.DeltaDiscoveryRequest
	got      func(*discoveryv3.DeltaDiscoveryResponse)
}

func (r *reader) Context() context.Context { return r.ctx }

// Messages have no wire here.
func (r *reader) Send(*discoveryv3.DeltaDiscoveryResponse) error { return errors.ErrUnsupported }

func (r *reader) Recv() (*discoveryv3.DeltaDiscoveryRequest, error) {
	return nil, errors.ErrUnsupported
}

func (r *reader) SendMsg(v any) error {
	m := &discoveryv3.DeltaDiscoveryResponse{}
	if err := proto.Unmarshal(slices.Concat(v.(quiet.Parts)...), m); err != nil {
		return err
	}
	r.got(m)
	r.requests <- &discoveryv3.DeltaDiscoveryRequest{TypeUrl: thing, ResponseNonce: m.GetNonce()}
	return nil
}

func (r *reader) RecvMsg(v any) error {
	select {
	case req := <-r.requests:
		proto.Merge(v.(proto.Message), req)
		return nil
	case <-r.ctx.Done():
		return io.EOF
	}
}

// board is a view with versions by name, and the record of what an agent was sent.
type board struct {
	t        *testing.T
	server   *Server
	mu       sync.Mutex
	versions map[string]int
	held     map[string]string
	messages int
	sent     map[string]int // answers that a name was in
	last     time.Time
}

// flap runs fn beside an agent's stream, in time that does not pass by itself.
func flap(t *testing.T, fn func(b *board)) {
	synctest.Test(t, func(t *testing.T) {
		b := &board{t: t, versions: map[string]int{}, held: map[string]string{}, sent: map[string]int{}}
		b.server = New(Config{
			TypeURL:      thing,
			Claimed:      func(*corev3.Node) (chandler.Node, error) { return chandler.Node{Name: "n"}, nil },
			Authenticate: func(_ context.Context, n chandler.Node) (chandler.Node, error) { return n, nil },
			View: func(chandler.Node) ([]*Resource, bool) {
				b.mu.Lock()
				defer b.mu.Unlock()
				var view []*Resource
				for name, v := range b.versions {
					view = append(view, &Resource{Name: name, Version: fmt.Sprint(v), Body: &anypb.Any{TypeUrl: thing}})
				}
				return view, true
			},
		})
		ctx, cancel := context.WithCancelCause(t.Context())
		r := &reader{ctx: quiet.Endable(ctx, cancel), requests: make(chan *discoveryv3.DeltaDiscoveryRequest, 10), got: b.take}
		r.requests <- &discoveryv3.DeltaDiscoveryRequest{TypeUrl: thing, Node: &corev3.Node{Id: "n"}, ResourceNamesSubscribe: []string{"*"}}
		done := make(chan struct{})
		go func() { defer close(done); _ = b.server.DeltaAggregatedResources(r) }()
		synctest.Wait()
		fn(b)
		cancel(nil)
		<-done
	})
}

func (b *board) take(m *discoveryv3.DeltaDiscoveryResponse) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.messages++
	b.last = time.Now()
	for _, res := range m.GetResources() {
		b.held[res.GetName()] = res.GetVersion()
		b.sent[res.GetName()]++
	}
	for _, name := range m.GetRemovedResources() {
		delete(b.held, name)
		b.sent[name]++
	}
}

// edit changes a resource and lets everything that follows at once happen.
func (b *board) edit(names ...string) {
	b.mu.Lock()
	for _, name := range names {
		b.versions[name]++
	}
	b.mu.Unlock()
	b.settle()
}

// set gives a resource a version; 0 removes it.
func (b *board) set(name string, version int) {
	b.mu.Lock()
	b.versions[name] = version
	if version == 0 {
		delete(b.versions, name)
	}
	b.mu.Unlock()
	b.settle()
}

func (b *board) settle() {
	b.server.Refresh()
	synctest.Wait()
}

func (b *board) newest(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held[name] == fmt.Sprint(b.versions[name])
}

// count is in how many answers a name was.
func (b *board) count(name string) int { return b.all()[name] }

func (b *board) all() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.sent)
}

// Ten minutes of a hundred edits a second: the agent is sent ten a second beyond
// the allowance, and the last one; an edit of another plugin waits for nothing.
func TestFault_F49_FlappingIsPaced(t *testing.T) {
	t.Parallel()
	flap(t, func(b *board) {
		const minutes, rate = 10, 100
		before := 0
		for n := range minutes * 60 * rate {
			if n%(10*rate) == 0 {
				if sent := b.count("flapping") - before; n > 10*rate && sent > 101 {
					b.t.Fatalf("%d answers in the ten seconds before second %d", sent, n/rate)
				}
				before = b.count("flapping")
			}
			b.edit("flapping")
			if n%(10*rate) == 0 {
				if b.edit("calm"); !b.newest("calm") {
					b.t.Fatalf("an edit of another plugin is held back at %d", n)
				}
			}
			time.Sleep(time.Second / rate)
		}
		time.Sleep(paceEvery)
		synctest.Wait()
		if !b.newest("flapping") {
			b.t.Errorf("in the end it has version %s of %d", b.held["flapping"], b.versions["flapping"])
		}
		if most := int(paceWindow/paceEvery) + minutes*60*10 + 1; b.count("flapping") > most {
			b.t.Errorf("%d answers for %d edits, at most %d are to be", b.count("flapping"), b.versions["flapping"], most)
		}
		b.t.Logf("%d answers for %d edits", b.count("flapping"), b.versions["flapping"])
		if n := len(b.server.streams); n != 1 {
			b.t.Errorf("%d streams", n)
		}
	})
}

// Plugins that flap together share their answers, and one that comes and goes is
// paced as well.
func TestFault_F49_SeveralThatFlap(t *testing.T) {
	t.Parallel()
	flap(t, func(b *board) {
		names := []string{"a", "b", "c", "d", "comes and goes"}
		messages, before := 0, map[string]int{}
		for n := range 3000 {
			if n == 1000 {
				synctest.Wait()
				messages, before = b.messages, b.all()
			}
			b.set("comes and goes", n%2)
			b.edit(names[n%4])
			time.Sleep(2 * time.Millisecond)
		}
		synctest.Wait()
		for _, name := range names {
			if n := b.count(name) - before[name]; n > 42 {
				b.t.Errorf("%s was sent %d times in 4 s", name, n)
			}
		}
		if n := b.messages - messages; n > 100 {
			b.t.Errorf("%d messages in 4 s", n)
		}
		b.set("comes and goes", 0)
		time.Sleep(paceEvery)
		synctest.Wait()
		if _, there := b.held["comes and goes"]; there || !b.newest("a") {
			b.t.Errorf("in the end it has %v of %v", b.held, b.versions)
		}
	})
}

// Who edits one plugin and waits each time is never held back: 25 edits a second
// for five seconds, or ten a second for ever.
func TestPaceLeavesEditsAlone(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ rate, edits int }{{25, 125}, {10, 5000}, {1, 100}} {
		flap(t, func(b *board) {
			for n := range c.edits {
				began := time.Now()
				if b.edit("p"); !b.newest("p") || b.last != began {
					b.t.Fatalf("edit %d at %d a second is held back", n, c.rate)
				}
				time.Sleep(time.Second / time.Duration(c.rate))
			}
		})
	}
}

// Where there are ten thousand agents each is sent what flaps every other second, and
// what it is in the end as soon.
func TestPaceOfALargeFleet(t *testing.T) {
	t.Parallel()
	flap(t, func(b *board) {
		b.server.count.Add(9_999)
		const seconds, rate = 60, 100
		for n := range seconds * rate {
			b.edit("flapping")
			if n%(10*rate) == 0 {
				if b.edit("calm"); !b.newest("calm") {
					b.t.Fatalf("an edit of another plugin is held back at %d", n)
				}
			}
			time.Sleep(time.Second / rate)
		}
		const every = 10_000 * paceAgent
		if most := int((paceWindow + seconds*time.Second) / every); b.count("flapping") > most {
			b.t.Errorf("%d answers in %d s, at most %d are to be", b.count("flapping"), seconds, most)
		}
		time.Sleep(every)
		synctest.Wait()
		if !b.newest("flapping") {
			b.t.Errorf("in the end it has version %s of %d", b.held["flapping"], b.versions["flapping"])
		}
	})
}

// What is remembered of what was sent goes.
func TestPaceForgets(t *testing.T) {
	t.Parallel()
	var p pace
	now := time.Now()
	ticks := tempo{begun: now, every: paceEvery}
	for i := range 10_000 {
		p.spend([]string{fmt.Sprint(i)}, ticks, now)
		now = now.Add(paceEvery)
	}
	if n := len(p.spent); n > 2*int(paceWindow/paceEvery)+2 {
		t.Errorf("%d resources are remembered", n)
	}
}
