package control

import (
	"sync"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/wire"
)

// wishes are whose traffic is to be told, and how often.
type wishes struct {
	interval time.Duration
	who      func(chandler.Node) bool // nil: all
	// bidden is what the leader wants of all our agents; zero: nothing.
	bidden time.Duration
	relays map[*relay]bool // that are open here
}

// wants tells whether a node's traffic is wanted here.
func (w *wishes) wants(n chandler.Node) bool {
	return w.interval > 0 && (w.who == nil || w.who(n))
}

// of is how often an agent of ours is to tell its traffic; zero: not at all.
func (w *wishes) of(n chandler.Node) time.Duration {
	if w.wants(n) && (w.bidden == 0 || w.interval < w.bidden) {
		return w.interval
	}
	return w.bidden
}

// ask says how often the nodes that who picks are to tell their traffic (nil: all of
// them), in place of what was asked before; zero: none is. It is for whoever leads, and
// is heard at once by the agents that are connected, also at other replicas. What they
// say is member.traffic. who is called with the fleet's lock held: it decides by the
// node alone.
func (f *fleet) ask(interval time.Duration, who func(chandler.Node) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wishes.interval, f.wishes.who = interval, who
	f.spread()
	wanted := map[*relay]time.Duration{}
	for _, m := range f.members {
		if r := m.relayed; r != nil && r.connected && f.wishes.wants(r.node) {
			wanted[r.from] = interval
		}
	}
	for r := range f.wishes.relays {
		f.request(&r.asked, wanted[r])
	}
}

// bid notes what the leader asks of this replica's agents.
func (f *fleet) bid(interval time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wishes.bidden = interval
	f.spread()
}

// spread tells the agents that are connected here.
func (f *fleet) spread() {
	for _, m := range f.members {
		if m.stream != nil {
			f.request(&m.stream.asked, f.wishes.of(m.stream.node))
		}
	}
}

// relays notes that a replica's stream is open, or no more.
func (f *fleet) relays(r *relay, open bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.wishes.relays == nil {
		f.wishes.relays = map[*relay]bool{}
	}
	if open {
		f.wishes.relays[r] = true
	} else {
		delete(f.wishes.relays, r)
	}
}

// askRelay asks a replica that tells of a node whose traffic is wanted.
func (f *fleet) askRelay(r *relay, n chandler.Node) {
	if r.asked.interval == 0 && f.wishes.wants(n) {
		f.request(&r.asked, f.wishes.interval)
	}
}

// asked is a stream on which is said how often traffic is to be told.
type asked struct {
	// sequence is the last report that was taken in, interval what is to be; both are
	// behind the fleet's lock. telling: somebody is saying it.
	sequence uint64
	interval time.Duration
	telling  bool

	sending sync.Mutex // one Send at a time
	send    func(sequence uint64, interval, spread time.Duration) error
}

// request has an interval said, unless it is known. A stream whose other end does not
// read holds up nobody else; its goroutine ends with it.
func (f *fleet) request(a *asked, interval time.Duration) {
	if a.interval == interval {
		return
	}
	a.interval = interval
	if a.telling {
		return // and will see it
	}
	a.telling = true
	go func() {
		for {
			said, err := f.say(a)
			if err != nil {
				return
			}
			f.mu.Lock()
			a.telling = a.interval != said
			again := a.telling
			f.mu.Unlock()
			if !again {
				return
			}
		}
	}()
}

// say answers on a stream, with what holds by now.
func (f *fleet) say(a *asked) (time.Duration, error) {
	a.sending.Lock()
	defer a.sending.Unlock()
	f.mu.Lock()
	sequence, interval, spread := a.sequence, a.interval, Spread(f.online)
	f.mu.Unlock()
	return interval, a.send(sequence, interval, spread)
}

// Spread is within what time a fleet of so many agents is to report a change. A report
// takes its control plane some 50 µs, for which telling others must not wait.
func Spread(agents int) time.Duration {
	const few, each = 500, 100 * time.Microsecond
	if agents < few {
		return 0
	}
	return min(time.Duration(agents)*each, wire.MaxSpread)
}
