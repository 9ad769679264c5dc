package envoyads

import (
	"bytes"
	"fmt"

	"google.golang.org/protobuf/types/known/anypb"
)

// push is one content of a slot.
type push struct {
	version string
	body    *anypb.Any
}

func (p *push) same(o *push) bool { return bytes.Equal(p.body.Value, o.body.Value) }

// answer is what Envoy said of a push.
type answer struct {
	acked   bool
	message string // of a NACK
}

// slot is what is known of one slot: what it shall hold, and what Envoy has.
type slot struct {
	name string

	want *push   // the newest that was set; nil: nothing yet
	told *answer // of want; nil while it is due
	turn uint64  // its place in the queue

	subscribed bool
	// interest counts subscriptions: an answer to what went out for an earlier
	// one says nothing about this one.
	interest uint64
	acked    *push // in force; nil: nothing, or unknown
	// held is the version that Envoy says is in force, when acked is unknown.
	held string
	// last is what Envoy received last for this subscription, and said of it;
	// nil: nothing, or unknown.
	last     *push
	lastTold answer

	// broken: it was subscribed when a stream ended, and lost is what was under
	// way then, whose answer nobody heard.
	broken bool
	lost   *push
}

// lostAnswer is told of what went out, was not answered, and cannot go out again:
// if Envoy refused it, it would acknowledge it now without a look.
const lostAnswer = "the stream ended before Envoy answered"

func (s *slot) due() bool { return s.subscribed && s.want != nil && s.told == nil }

// fresh forgets what Envoy has: it begins anew with this slot.
func (s *slot) fresh() {
	s.interest++
	s.acked, s.held, s.last, s.broken, s.lost = nil, "", nil, false, nil
	s.told = nil
}

// resume takes up a subscription of which Envoy says it holds a version; its word
// counts, whatever it said before.
func (s *slot) resume(held string) {
	broken, lost := s.broken, s.lost
	s.broken, s.lost, s.held = false, nil, ""
	switch {
	case broken && lost != nil && lost.version == held:
		s.acked, s.last, s.lastTold = lost, lost, answer{acked: true}
	case broken && s.acked != nil && s.acked.version == held:
	case broken && s.acked == nil && held == "":
		if lost != nil {
			s.last, s.lastTold = lost, answer{message: lostAnswer}
		}
	default:
		s.fresh()
		s.held = held
	}
}

// holds tells whether Envoy has p in force, as far as it says.
func (s *slot) holds(p *push) bool {
	return s.acked != nil && s.acked.version == p.version || s.held != "" && s.held == p.version
}

// delivery is a push that awaits its answer.
type delivery struct {
	*push
	slot     *slot
	interest uint64
	nonce    string
	// again: it is in force already and goes out once more, so that Envoy's
	// memory is known; nobody is told of the answer.
	again bool
}

// ledger holds the slots of one Envoy. It is pure and decides what goes out
// next; the caller serializes.
type ledger struct {
	slots map[string]*slot
	turns uint64
	nonce uint64
	sent  *delivery // one at a time
}

func newLedger() *ledger { return &ledger{slots: map[string]*slot{}} }

func (l *ledger) slot(name string) *slot {
	s := l.slots[name]
	if s == nil {
		s = &slot{name: name}
		l.slots[name] = s
	}
	return s
}

// set notes what a slot shall hold. What is queued already is replaced in place.
func (l *ledger) set(name string, p *push) {
	s := l.slot(name)
	flying := l.sent != nil && l.sent.push == s.want
	if s.want != nil && s.told == nil && s.want.version == p.version && s.want.same(p) {
		return
	}
	if s.want == nil || s.told != nil || flying {
		l.turns++
		s.turn = l.turns
	}
	s.want, s.told = p, nil
}

// open begins a stream, on which nothing is subscribed and nothing under way.
func (l *ledger) open() {
	if d := l.sent; d != nil && d.slot.interest == d.interest {
		d.slot.last = nil
		if !d.again {
			d.slot.lost = d.push
		}
	}
	l.sent = nil
	for _, s := range l.slots {
		s.broken = s.broken || s.subscribed
		s.subscribed = false
		s.interest++
		if s.told != nil && s.told.acked {
			s.told = nil // it may have to be sent again, or is told again
		}
	}
}

// subscribe notes that Envoy asks for a slot, of which it has version held.
func (l *ledger) subscribe(name, held string) []Event {
	s := l.slot(name)
	s.resume(held)
	s.subscribed = true
	return []Event{Subscribed{Slot: name, Version: held}}
}

// unsubscribe notes that Envoy has forgotten a slot. What it shall hold is kept:
// it goes out again when the slot is subscribed to again.
func (l *ledger) unsubscribe(name string) []Event {
	s := l.slots[name]
	if s == nil || !s.subscribed {
		return nil
	}
	s.fresh()
	s.subscribed = false
	if s.want == nil {
		delete(l.slots, name)
	}
	return []Event{Unsubscribed{Slot: name}}
}

// answered notes what Envoy said of the response with that nonce. Answers to
// other responses are stale.
func (l *ledger) answered(nonce string, a answer) []Event {
	d := l.sent
	if d == nil || d.nonce != nonce {
		return nil
	}
	l.sent = nil
	s := d.slot
	if s.interest != d.interest {
		return nil // of a subscription that is gone
	}
	s.last, s.lastTold = d.push, a
	if a.acked {
		s.acked = d.push
	}
	if d.again {
		return nil
	}
	if s.want == d.push {
		s.told = &a
	}
	return []Event{s.event(d.push, a, false)}
}

func (s *slot) event(p *push, a answer, current bool) Event {
	if a.acked {
		return Acked{Slot: s.name, Version: p.version, Current: current}
	}
	return Nacked{Slot: s.name, Version: p.version, Message: a.message}
}

// next gives what goes out now; nil when nothing does. Bytes that Envoy received
// last are not sent again, as it would acknowledge them without a look, even if
// it had just refused them: what it said of them is said again. For the same
// reason what is in force goes out first where Envoy's memory is unknown.
func (l *ledger) next() (*delivery, []Event) {
	if l.sent != nil {
		return nil, nil
	}
	var events []Event
	for {
		s := l.first()
		switch {
		case s == nil:
			return nil, events
		case s.last != nil && s.last.same(s.want):
			events = append(events, s.settle(s.lastTold))
		case s.last == nil && s.holds(s.want):
			s.acked, s.held = s.want, ""
			events = append(events, s.settle(answer{acked: true}))
		case s.last == nil && s.acked != nil:
			return l.deliver(s, s.acked, true), events
		default:
			return l.deliver(s, s.want, false), events
		}
	}
}

// settle answers what a slot shall hold without sending it.
func (s *slot) settle(a answer) Event {
	s.told = &a
	return s.event(s.want, a, true)
}

// first is the slot that is due and whose turn it is.
func (l *ledger) first() *slot {
	var first *slot
	for _, s := range l.slots {
		if s.due() && (first == nil || s.turn < first.turn) {
			first = s
		}
	}
	return first
}

func (l *ledger) deliver(s *slot, p *push, again bool) *delivery {
	l.nonce++
	l.sent = &delivery{push: p, slot: s, interest: s.interest, nonce: fmt.Sprint(l.nonce), again: again}
	return l.sent
}
