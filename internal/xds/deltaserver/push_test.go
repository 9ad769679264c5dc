package deltaserver

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler"
)

// listener is a stream that takes an answer, once it may.
type listener struct {
	grpc.ServerStream
	ctx  context.Context
	may  <-chan struct{} // nil: at once
	told *atomic.Int64
}

func (l *listener) Context() context.Context                          { return l.ctx }
func (l *listener) Send(*discoveryv3.DeltaDiscoveryResponse) error    { return nil }
func (l *listener) Recv() (*discoveryv3.DeltaDiscoveryRequest, error) { return nil, context.Canceled }

func (l *listener) SendMsg(any) error {
	if l.may != nil {
		<-l.may
	}
	l.told.Add(1)
	return nil
}

// Those that cannot be written to, more than there are goroutines for a pass, hold up
// nobody for longer than it takes to notice, and are told once they listen.
func TestPassGoesByThoseThatAreStuck(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const deaf, others = 200, 800
		var version atomic.Int64
		s := New(Config{TypeURL: thing, View: func(chandler.Node) ([]*Resource, bool) {
			v := version.Load()
			return []*Resource{{Name: "x", Version: fmt.Sprint(v), Body: &anypb.Any{TypeUrl: thing}}}, v > 0
		}})
		var told, late atomic.Int64
		may := make(chan struct{})
		for i := range deaf + others {
			l := &listener{ctx: t.Context(), told: &told}
			if i < deaf {
				l.may, l.told = may, &late
			}
			st := &stream{server: s, str: l, name: fmt.Sprint(i)}
			if err := st.take(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: thing}); err != nil {
				t.Fatal(err)
			}
			s.streams[st] = struct{}{}
		}
		version.Store(1)
		s.Refresh()
		time.Sleep(deaf * stuck)
		synctest.Wait()
		if told.Load() != others || late.Load() != 0 {
			t.Errorf("%d of %d are told, beside %d of those that do not listen", told.Load(), others, late.Load())
		}
		close(may)
		synctest.Wait()
		if late.Load() != deaf {
			t.Errorf("%d of %d are told once they listen", late.Load(), deaf)
		}
	})
}

// What becomes new while others are told reaches everyone, without a pass for each time.
func TestPassesAreShared(t *testing.T) {
	t.Parallel()
	var passes int
	var mu sync.Mutex
	var p pusher
	done := make(chan struct{})
	p.list = func() []*stream {
		mu.Lock()
		defer mu.Unlock()
		if passes++; passes == 2 {
			close(done)
		}
		return []*stream{}
	}
	p.mu.Lock()
	p.running, p.working = true, 1 // a pass is under way
	p.mu.Unlock()
	for range 1000 {
		p.push()
	}
	if passes != 0 {
		t.Fatalf("%d passes beside the one that is under way", passes)
	}
	if _, more := p.next(); more {
		t.Fatal("there is a stream")
	}
	p.push()
	<-done
	mu.Lock()
	defer mu.Unlock()
	if passes > 2 {
		t.Errorf("%d passes", passes)
	}
}
