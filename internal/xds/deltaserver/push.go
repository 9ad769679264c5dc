package deltaserver

import (
	"runtime"
	"sync"
	"time"
)

// stuck is how long one agent may take to be written to before others are not to wait
// for it any more. Writing goes into a buffer, so that nearly all take microseconds.
const stuck = 100 * time.Millisecond

// pusher asks every stream to look at its view again, one pass after the other: what
// becomes new during a pass is for the next, however often that is. A few goroutines
// share a pass, as to wake one for each stream would cost as much as the rest, and
// their stacks more. They end with the pass.
type pusher struct {
	list func() []*stream

	mu      sync.Mutex
	streams []*stream // of this pass, that are still to be asked
	working int       // goroutines that are to go on with this pass
	running bool
	again   bool
}

// push has a pass made, from a moment on that is not before now.
func (p *pusher) push() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running {
		p.again = true
		return
	}
	p.begin()
}

// begin starts a pass. The lock is held.
func (p *pusher) begin() {
	p.running, p.again = true, false
	p.streams, p.working = p.list(), runtime.GOMAXPROCS(0)
	for range p.working {
		go p.work()
	}
}

// next gives a stream, or tells that there is none left: then who asks is done, and the
// last one begins the next pass if there is to be one.
func (p *pusher) next() (*stream, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.streams) - 1; n >= 0 {
		st := p.streams[n]
		p.streams[n], p.streams = nil, p.streams[:n]
		return st, true
	}
	if p.working--; p.working == 0 {
		p.running = false
		if p.again {
			p.begin()
		}
	}
	return nil, false
}

// work asks stream after stream. While one cannot be written to, another goroutine takes
// this one's place.
func (p *pusher) work() {
	for {
		st, ok := p.next()
		if !ok {
			return
		}
		relief := time.AfterFunc(stuck, p.work)
		st.refresh()
		if !relief.Stop() {
			return
		}
	}
}
