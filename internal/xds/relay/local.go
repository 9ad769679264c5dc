package relay

import (
	"bytes"
	"maps"
	"slices"
	"strings"

	"chandler.dev/chandler"
)

// Local is for names of a type that the owner answers itself, on the same stream, whether
// there is an upstream or not. The upstream is never asked for them, and what it sends
// under such a name does not go on. Only types that Envoy asks for by name can have them.
//
// One resource goes out a response, and nothing else of its type until Envoy has answered:
// so an answer is about that one. Nothing goes out that Get did not give, and nothing is
// ever removed. After a refusal what is in force goes out again, before anything else: as
// long as Envoy remembers what it refused, it takes no listener that names it, and would
// acknowledge the same bytes without effect.
type Local struct {
	// Prefix is how the names begin.
	Prefix string
	// Get gives what a name holds: the resource's message and its version. Not ok: nothing
	// yet; Envoy keeps what it has. It is asked when Envoy subscribes and at Changed, and the
	// answer is an Acked or Nacked of that version. body must not change any more.
	//
	// To one that has nothing of a name, as far as this relay knows, only what is known to be
	// good should be given until it is answered, and after a Nacked what was in force before.
	Get func(name string) (body []byte, version string, ok bool)
	// Tell is told what Envoy does. It may be nil.
	Tell func(LocalEvent)
}

// LocalEvent tells what Envoy did with a local name.
type LocalEvent struct {
	What LocalWhat
	Type string
	Name string
	// Version is that of which Envoy is: of a subscription what Envoy says it holds from a
	// stream before, or nothing.
	Version string
	// Current means that nothing had to be sent for an answer that is known.
	Current bool
	// Words are Envoy's, of a Nacked, made printable and bounded.
	Words string
}

// LocalWhat is what Envoy did.
type LocalWhat string

// What Envoy does with local names.
const (
	Subscribed   LocalWhat = "subscribed"
	Unsubscribed LocalWhat = "unsubscribed"
	// Acked: the version is in force.
	Acked LocalWhat = "acked"
	// Nacked: it was refused, and what was in force stays.
	Nacked LocalWhat = "nacked"
)

// Bounds on what an Envoy can make the relay keep of local names.
const (
	maxLocals    = 4096
	maxLocalName = 512
	maxWords     = 4 << 10
)

// locals are the local names of a type.
type locals struct {
	Local
	typeURL string
	names   map[string]*local
	turns   uint64
}

// local is one of them.
type local struct {
	name    string
	feed    *feed // by which Envoy subscribed; nil: not by one that is open
	process int   // of Envoy
	// interest counts subscriptions: an answer to what went out for an earlier one says
	// nothing about this one.
	interest uint64

	want *content // nil: nothing yet
	told *verdict // of want; nil while it is due
	turn uint64   // its place in the queue

	acked *content // in force; nil: nothing, or unknown
	held  string   // the version that Envoy says is in force, when acked is unknown
	mute  bool     // Envoy does not say whether acked is still in force
	// last is what Envoy received last for this subscription, and lastTold what it said of
	// it; nil: nothing, or unknown.
	last     *content
	lastTold verdict
	// restore: acked is to go out again, because something else was refused.
	restore bool
	// broken: it was subscribed when a stream ended, and lost is what was under way then.
	broken bool
	lost   *content
}

// content is what a name holds.
type content struct {
	version string
	body    []byte
}

func (c *content) isSame(o *content) bool { return bytes.Equal(c.body, o.body) }

// verdict is what Envoy said of a content; no words: it is in force.
type verdict struct {
	refused bool
	words   string
}

// flight is a local resource that Envoy has not answered.
type flight struct {
	*content
	local    *local
	interest uint64
	nonce    string
	// again: it is in force already and goes out once more, so that Envoy's memory is known;
	// nobody is told of the answer.
	again bool
}

func newLocals(hooks map[string]Local) map[string]*locals {
	all := make(map[string]*locals, len(hooks))
	for typeURL, l := range hooks {
		if l.Tell == nil {
			l.Tell = func(LocalEvent) {}
		}
		all[typeURL] = &locals{Local: l, typeURL: typeURL, names: map[string]*local{}}
	}
	return all
}

// isLocal says whether a name is answered here.
func (f *feed) isLocal(name string) bool {
	return f.locals != nil && strings.HasPrefix(name, f.locals.Prefix)
}

// split gives names without the local ones, and these.
func (f *feed) split(names []string) (upstreams, own []string) {
	if !slices.ContainsFunc(names, f.isLocal) {
		return names, nil
	}
	for _, n := range names {
		if f.isLocal(n) {
			own = append(own, n)
		} else {
			upstreams = append(upstreams, n)
		}
	}
	return upstreams, own
}

// takeLocal takes what a request says of local names, and gives it without that.
func (f *feed) takeLocal(q Request) (Request, error) {
	if f.locals == nil {
		return q, nil
	}
	add, drop, first := []string(nil), []string(nil), !f.wants.asked
	q.Subscribe, add = f.split(q.Subscribe)
	if len(add) > 0 && len(q.Subscribe) == 0 {
		f.wants.name()
	}
	if f.delta() {
		q.Unsubscribe, drop = f.split(q.Unsubscribe)
	} else {
		add, drop = f.compare(add)
	}
	for _, n := range drop {
		f.unsubscribeLocal(n)
	}
	for _, n := range add {
		if err := f.locals.admit(n); err != nil {
			return q, err
		}
		f.subscribeLocal(n, q.Held[n], first && q.Version != "")
	}
	maps.DeleteFunc(q.Held, func(n, _ string) bool { return f.isLocal(n) })
	return q, nil
}

// compare gives what is new and what is gone in all the local names that Envoy wants.
func (f *feed) compare(names []string) (add, drop []string) {
	wanted := make(map[string]bool, len(names))
	for _, n := range names {
		wanted[n] = true
		if l := f.locals.names[n]; l == nil || l.feed != f {
			add = append(add, n)
		}
	}
	for n, l := range f.locals.names {
		if l.feed == f && !wanted[n] {
			drop = append(drop, n)
		}
	}
	slices.Sort(drop)
	return add, drop
}

// admit bounds the names.
func (l *locals) admit(name string) error {
	if l.names[name] == nil && len(l.names) >= maxLocals {
		maps.DeleteFunc(l.names, func(_ string, s *local) bool { return s.feed == nil })
	}
	if len(name) > maxLocalName || l.names[name] == nil && len(l.names) >= maxLocals {
		return limit("Envoy asks for more than %d slots, or by a name of more than %d bytes", maxLocals, maxLocalName)
	}
	return nil
}

// subscribeLocal notes that Envoy asks for a name. In increments it says which version it
// holds; in the state of the world it may hold something if it is back.
func (f *feed) subscribeLocal(name, held string, isBack bool) {
	s := f.locals.names[name]
	if s == nil {
		s = &local{name: name}
		f.locals.names[name] = s
	}
	if s.feed != nil && s.feed != f {
		s.feed.lose(s)
	}
	switch {
	case s.process != f.stream.process:
		s.fresh(held)
	case f.delta():
		s.resume(held)
	case s.broken && isBack:
		s.broken, s.lost, s.last, s.mute = false, nil, nil, true
	default:
		s.fresh("")
	}
	s.feed, s.process, f.look = f, f.stream.process, true
	f.locals.Tell(LocalEvent{What: Subscribed, Type: f.typeURL, Name: name, Version: held})
	f.locals.look(s)
}

// fresh forgets what Envoy has, but for the version that it says: it begins anew with this
// name.
func (s *local) fresh(held string) {
	s.interest++
	s.acked, s.held, s.mute, s.last, s.broken, s.lost, s.told, s.restore = nil, held, false, nil, false, nil, nil, false
}

// resume takes up a subscription of which Envoy says what it holds; its word counts,
// whatever it said before. What was under way when the stream broke, and is not what it
// holds, it may have refused, and would acknowledge without effect: so it gets what it holds
// before that, if it holds something. If not, that was known to be good.
func (s *local) resume(held string) {
	broken, lost := s.broken, s.lost
	s.broken, s.lost, s.held = false, nil, ""
	switch {
	case broken && lost != nil && lost.version == held:
		s.acked, s.last, s.lastTold = lost, lost, verdict{}
	case broken && s.acked != nil && s.acked.version == held:
	default:
		s.fresh(held)
	}
}

// unsubscribeLocal notes that Envoy has forgotten a name.
func (f *feed) unsubscribeLocal(name string) {
	s := f.locals.names[name]
	if s == nil || s.feed != f {
		return
	}
	s.interest++ // what is under way is for nobody
	s.feed = nil
	delete(f.locals.names, name)
	f.locals.Tell(LocalEvent{What: Unsubscribed, Type: f.typeURL, Name: name})
}

// lose is for a name whose stream has ended. What was under way will not be answered.
func (f *feed) lose(s *local) {
	if d := f.flying; d != nil && d.local == s && d.interest == s.interest {
		s.last, f.flying = nil, nil
		if !d.again {
			s.lost = d.content
		}
		s.restore = s.restore || d.again
	}
	s.interest++
	s.feed, s.broken = nil, true
	if s.told != nil && !s.told.refused {
		s.told = nil // it may have to be sent again, or is told again
	}
}

// closeLocals is for a stream that ends.
func (f *feed) closeLocals() {
	if f.locals == nil {
		return
	}
	for _, s := range f.locals.names {
		if s.feed == f {
			f.lose(s)
		}
	}
}

// another is for another process of Envoy.
func (l *locals) another() {
	for _, s := range l.names {
		s.fresh("")
		if s.feed != nil {
			s.feed.look = true
		}
	}
}

// changed looks what names hold now, all if none is given, and gives those that are not
// local; more says whether there are any.
func (l *locals) changed(names []string) (others []string, more bool) {
	if len(names) == 0 {
		for _, n := range sorted(l.names) {
			l.look(l.names[n])
		}
		return nil, true
	}
	for _, n := range names {
		if !strings.HasPrefix(n, l.Prefix) {
			others = append(others, n)
		} else if s := l.names[n]; s != nil {
			l.look(s)
		}
	}
	return others, len(others) > 0
}

// look asks what a name holds, and queues it. What is queued already is replaced in its
// place.
func (l *locals) look(s *local) {
	body, version, ok := l.Get(s.name)
	if !ok {
		s.want = nil
		return
	}
	c := &content{version, body}
	if s.want != nil && s.told == nil && s.want.version == version && s.want.isSame(c) {
		return
	}
	isFlying := s.feed != nil && s.feed.flying != nil && s.feed.flying.content == s.want
	if s.want == nil || s.told != nil || isFlying {
		l.turns++
		s.turn = l.turns
	}
	s.want, s.told = c, nil
	if s.feed != nil {
		s.feed.look = true
	}
}

// nextLocal gives the local resource that goes out now; nil: none. Where Envoy's memory is
// unknown, what is in force goes out first: Envoy may have refused just what is wanted.
func (f *feed) nextLocal() *Response {
	if !f.look || f.flying != nil || len(f.sent) > 0 {
		return nil
	}
	for {
		s := f.firstLocal()
		switch {
		case s == nil:
			f.look = false
			return nil
		case s.restore:
			s.restore = false
			return f.fly(s, s.acked, true)
		case s.last != nil && s.last.isSame(s.want):
			f.settleLocal(s, s.lastTold)
		case s.last == nil && s.holds(s.want):
			s.acked, s.held = s.want, ""
			f.settleLocal(s, verdict{})
		case s.last == nil && s.acked != nil && !s.acked.isSame(s.want):
			return f.fly(s, s.acked, true)
		default:
			return f.fly(s, s.want, false)
		}
	}
}

// firstLocal is the one that is due and whose turn it is; one to restore is first.
func (f *feed) firstLocal() *local {
	var first *local
	for _, s := range f.locals.names {
		switch {
		case s.feed != f:
		case s.restore:
			return s
		case s.want != nil && s.told == nil && (first == nil || s.turn < first.turn):
			first = s
		}
	}
	return first
}

// holds tells whether Envoy has c in force, as far as it says.
func (s *local) holds(c *content) bool {
	return s.acked != nil && !s.mute && s.acked.version == c.version || s.held != "" && s.held == c.version
}

// settleLocal answers what a name holds without sending it.
func (f *feed) settleLocal(s *local, v verdict) {
	s.told = &v
	f.tellLocal(s, s.want, v, true)
}

func (f *feed) tellLocal(s *local, c *content, v verdict, current bool) {
	ev := LocalEvent{What: Acked, Type: f.typeURL, Name: s.name, Version: c.version, Current: current}
	if v.refused {
		ev.What, ev.Words = Nacked, v.words
	}
	f.locals.Tell(ev)
}

func (f *feed) fly(s *local, c *content, again bool) *Response {
	f.flying = &flight{content: c, local: s, interest: s.interest, nonce: f.stream.nextNonce(), again: again}
	return &Response{Type: f.typeURL, Version: c.version, Nonce: f.flying.nonce,
		Items: []*Item{newItem(f.delta(), f.typeURL, s.name, c.version, c.body)}}
}

// answeredLocal takes Envoy's answer if it is one to a local resource.
func (f *feed) answeredLocal(q Request) bool {
	d := f.flying
	if d == nil || d.nonce != q.Nonce {
		return false
	}
	f.flying, f.look = nil, true
	s := d.local
	if s.interest != d.interest {
		return true // of a subscription that is gone
	}
	v := verdict{}
	if q.Error != nil {
		v = verdict{true, chandler.Printable(words(q.Error), maxWords)}
	}
	s.last, s.lastTold = d.content, v
	if !v.refused {
		s.acked, s.mute, s.held = d.content, false, ""
	}
	if d.again {
		return true
	}
	s.restore = v.refused && s.acked != nil
	if s.want == d.content {
		s.told = &v
	}
	f.tellLocal(s, d.content, v, false)
	return true
}
