package control

import (
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/wire"
)

// Limits of what is remembered of nodes.
const (
	MaxNodes   = 20_000
	forgetNode = 24 * time.Hour // after its disconnect
)

// fleet is the nodes and what they report.
type fleet struct {
	now     func() time.Time
	rejects interface{ Add(float64) }

	mu      sync.Mutex
	members map[string]*member // by node id
	order   []*member          // all of them, by namespace and name; nil: to be made
	online  int
	swept   time.Time

	dirty    map[chandler.Key]bool // plugins about which something was said
	allDirty bool
	changed  chan struct{} // closed when something is said; nil: nobody waits for it

	turns  map[string]bool // whether it was connected, of whom came or went; see takeTurns
	retold bool            // somebody told facts since the last look at them
	// news are ids of our agents that the leader is to hear of, and whether of their
	// traffic too; nil: nobody is.
	news  map[string]bool
	heard chan struct{} // holds one when there are news

	wishes wishes
}

// member is one node.
type member struct {
	node      chandler.Node
	connected bool
	left      time.Time // of its disconnect
	since     time.Time // when it last came or went
	stream    *reporter // the report stream that counts: the newest
	states    map[chandler.Key]chandler.AttachmentState
	facts     *chandler.Facts // nil: not told yet; never changed in place
	// traffic is what it said last of that, at trafficAt; never changed in place.
	traffic   []chandler.Traffic
	trafficAt time.Time
	relayed   *relayed // what another replica says of it, or nil
}

// online tells whether its agent is connected here or at another replica.
func (m *member) online() bool {
	return m.connected || m.relayed != nil && m.relayed.connected
}

// seen is a node as whichever replica says that it is connected to.
func (m *member) seen() member {
	seen := *m
	if r := m.relayed; r != nil && !m.connected {
		seen.node, seen.connected, seen.states, seen.facts = r.node, r.connected, r.states, r.facts
		seen.traffic, seen.trafficAt = r.traffic, r.trafficAt
	}
	return seen
}

// reporter is one report stream.
type reporter struct {
	node chandler.Node
	asked
}

func newFleet(now func() time.Time, rejects interface{ Add(float64) }) *fleet {
	return &fleet{now: now, rejects: rejects, members: map[string]*member{}, dirty: map[chandler.Key]bool{}, turns: map[string]bool{}, heard: make(chan struct{}, 1)}
}

// admit makes room for a node, or tells that there is none.
func (f *fleet) admit(n chandler.Node) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.room(n.ID())
}

// room drops whom to forget, and at need who has been away longest.
func (f *fleet) room(id string) error {
	now := f.now()
	if now.Sub(f.swept) > time.Minute {
		f.swept, f.order = now, nil
		maps.DeleteFunc(f.members, func(_ string, m *member) bool {
			return !m.online() && m.stream == nil && now.Sub(m.left) > forgetNode
		})
	}
	if f.members[id] != nil || len(f.members) < MaxNodes {
		return nil
	}
	oldest := ""
	for id, m := range f.members {
		if !m.online() && m.stream == nil && (oldest == "" || m.left.Before(f.members[oldest].left)) {
			oldest = id
		}
	}
	if oldest == "" {
		return status.Errorf(codes.ResourceExhausted, "%d nodes are connected, limit %d", len(f.members), MaxNodes)
	}
	delete(f.members, oldest)
	f.order = nil
	return nil
}

func (f *fleet) member(n chandler.Node) *member {
	m := f.members[n.ID()]
	if m == nil {
		m = &member{left: f.now(), states: map[chandler.Key]chandler.AttachmentState{}}
		f.members[n.ID()], f.order = m, nil
	}
	return m
}

// connected is told by the xDS server.
func (f *fleet) connected(n chandler.Node, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.member(n)
	before := m.online()
	m.node, m.connected = n, ok
	f.turned(m, before)
	f.tell(n.ID(), false)
}

// turned counts a node that came or went.
func (f *fleet) turned(m *member, before bool) {
	after := m.online()
	if after != before {
		m.since = f.now()
		if id := m.node.ID(); f.members[id] == m {
			if _, ok := f.turns[id]; !ok {
				f.turns[id] = before
			}
		}
	}
	switch {
	case after && !before:
		f.online++
	case !after && before:
		f.online--
		m.left = f.now()
	}
	f.allDirty = true
	f.signal()
}

// begin makes a report stream the one that counts for its node.
func (f *fleet) begin(n chandler.Node, send func(sequence uint64, interval, spread time.Duration) error) (*reporter, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.room(n.ID()); err != nil {
		return nil, err
	}
	m := f.member(n)
	switch {
	case !m.connected:
		m.node = n
	case reflect.DeepEqual(m.node, n):
		n = m.node // what is the same is kept once
	}
	r := &reporter{node: n, asked: asked{interval: f.wishes.of(n), send: send}}
	m.stream = r
	return r, nil
}

func (f *fleet) end(r *reporter) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.members[r.node.ID()]; m != nil && m.stream == r {
		m.stream = nil
		if !m.connected {
			m.left = f.now()
		}
	}
}

// take takes a report in. The first of a stream is full, sequences grow, and what
// a stream says after a newer one began counts for nothing.
func (f *fleet) take(r *reporter, rep wire.Report) error {
	switch {
	case rep.Sequence <= r.sequence:
		return status.Errorf(codes.InvalidArgument, "report %d after %d", rep.Sequence, r.sequence)
	case r.sequence == 0 && !rep.Full:
		return status.Error(codes.InvalidArgument, "the first report of a stream must be full")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.members[r.node.ID()]
	if m == nil || m.stream != r {
		return status.Error(codes.Aborted, "a newer stream of this node took over")
	}
	states := map[chandler.Key]chandler.AttachmentState{}
	if !rep.Full {
		states = maps.Clone(m.states)
	}
	for _, key := range rep.Removed {
		delete(states, key)
		f.dirty[key] = true
	}
	for _, s := range rep.States {
		states[s.Key] = s
		f.dirty[s.Key] = true
	}
	if len(states) > wire.MaxStates {
		return status.Errorf(codes.ResourceExhausted, "%d plugins on one node, limit %d", len(states), wire.MaxStates)
	}
	if rep.Full {
		for key := range m.states {
			f.dirty[key] = true
		}
	}
	f.count(m.states, states)
	r.sequence, m.states = rep.Sequence, states
	if rep.Full || rep.Facts != nil {
		m.facts, f.retold = shared(rep.Facts, states), true
	}
	if len(rep.Traffic) > 0 {
		m.traffic, m.trafficAt = rep.Traffic, f.now()
	}
	f.tell(r.node.ID(), len(rep.Traffic) > 0)
	if rep.Full || rep.Facts != nil || len(rep.States)+len(rep.Removed) > 0 {
		f.signal()
	}
	return nil
}

// shared has the texts of states in place of the same ones in facts: each slot of each
// listener repeats the names of what is in it.
func shared(facts *chandler.Facts, states map[chandler.Key]chandler.AttachmentState) *chandler.Facts {
	if facts == nil {
		return nil
	}
	for _, l := range facts.Listeners {
		for _, s := range l.Slots {
			for i := range s.Members {
				m := &s.Members[i]
				st, ok := states[m.Key]
				if !ok {
					continue
				}
				m.Key = st.Key
				if m.Release == st.InForce {
					m.Release = st.InForce
				}
			}
		}
	}
	return facts
}

// count adds the rejections that are new. The counter of a node begins at zero
// when its agent does, so one that is lower than before counts whole.
func (f *fleet) count(before, after map[chandler.Key]chandler.AttachmentState) {
	for key, s := range after {
		grown := s.Rejections
		if b, ok := before[key]; ok && b.UID == s.UID && b.Rejections <= s.Rejections {
			grown -= b.Rejections
		}
		if grown > 0 {
			f.rejects.Add(float64(min(grown, 1<<20)))
		}
	}
}

// touch marks every plugin as one about which something was said.
func (f *fleet) touch() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.allDirty = true
	f.signal()
}

// wake has those who watch look again, though no proxy said anything of a plugin.
func (f *fleet) wake() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.signal()
}

// watch gives a channel that is closed when something is said of any plugin.
func (f *fleet) watch() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.changed == nil {
		f.changed = make(chan struct{})
	}
	return f.changed
}

// signal wakes whoever watches.
func (f *fleet) signal() {
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

// takeDirty tells about which plugins something was said since the last call.
func (f *fleet) takeDirty() (all bool, some map[chandler.Key]bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all, f.allDirty = f.allDirty, false
	if len(f.dirty) > 0 { // an empty one goes on being written to
		some, f.dirty = f.dirty, map[chandler.Key]bool{}
	}
	return all, some
}

// list gives all members as they are now. States are never changed in place, so
// they may be read without the lock.
func (f *fleet) list() []member {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.order == nil {
		f.order = slices.SortedFunc(maps.Values(f.members), func(a, b *member) int { return a.node.Compare(b.node) })
	}
	members := make([]member, 0, len(f.order))
	for _, m := range f.order {
		members = append(members, m.seen())
	}
	return members
}

// size is how many nodes are connected.
func (f *fleet) size() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.online
}

// away is how many nodes are remembered that are not connected.
func (f *fleet) away() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.members) - f.online
}

// bypassed counts the connected proxies on which a plugin is taken out by hand.
func (f *fleet) bypassed() map[named]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	counts := map[named]int{}
	for _, m := range f.members {
		if seen := m.seen(); seen.connected && seen.facts != nil {
			for _, b := range seen.facts.Bypassed {
				counts[named{b.Namespace, b.Name}]++
			}
		}
	}
	return counts
}
