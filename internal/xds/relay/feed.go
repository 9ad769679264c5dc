package relay

import (
	"bytes"
	"encoding/hex"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// maxUnanswered is how many responses of a type Envoy may leave unanswered: it
	// answers some only when another type has come. More wait, the newest wins.
	maxUnanswered = 16
	// maxAnswers is how many the upstream may leave unread; the oldest are dropped.
	maxAnswers = 64
	// What was refused and comes again waits, from minPause doubled up to maxPause.
	minPause = time.Second
	maxPause = time.Minute
)

// feed is one type on one stream.
type feed struct {
	stream  *Stream
	typeURL string
	shelf   *shelf
	wants   subscription
	locals  *locals // nil: there are none
	look    bool    // one of them may be due
	flying  *flight // the one that Envoy has not answered
	entries map[string]*entry
	round   int32 // counts responses of the upstream

	// Towards Envoy.
	due      []*entry
	restores []*entry
	must     bool // a response is owed even when there is nothing in it
	everSent bool
	sent     []delivery
	refusals int // in a row, of the same
	retryAt  time.Time
	lastNo   []byte // Envoy's last refusal

	// From the upstream: its last response, on whatever stream, and what is said to it on
	// the stream at hand.
	version string
	rest    []byte
	nonce   string // empty: none on this stream
	owes    bool   // nonce is not answered, nor in a delivery
	no      []byte // by which it will be
	epoch   int    // counts streams
	told    bool
	ask     bool // the names are others than it was told (state of the world)
	orders  orders
	answers []answer
	taken   string // the version that was acknowledged last (state of the world)
}

// entry is one name.
type entry struct {
	name                 string
	up                   *Item // the upstream's; nil: it has none
	made                 *Item // what Envoy gets for it, once that is known
	sent, acked, refused *Item // of Envoy
	beat                 *Item // its upstream's word that it lives longer
	at, round            int32
	due                  dueness
	kept                 *kept // on the shelf; nil: it is not
	listed, held, gone   bool
	solo                 bool // it was refused together with others
	ours                 bool // it was refused for what the transform made of it
}

// dueness is why an entry is to be sent.
type dueness int8

const (
	notDue dueness = iota
	again          // Envoy refused it, and it is the same
	same           // Envoy has it; the upstream said it once more
	own            // the upstream said nothing
	fresh
)

// delivery is a response that Envoy has not answered.
type delivery struct {
	nonce             string
	parts             []part
	upNonce, version  string // the upstream's response that it answers; no nonce: none
	epoch             int
	isFresh, wasAgain bool
	no                []byte // of a part of the upstream's response that went before
}

// part is what a delivery had for an entry; nil: its removal.
type part struct {
	entry *entry
	item  *Item
}

// answer is one for the upstream.
type answer struct {
	nonce, version string
	no             []byte
}

func newFeed(s *Stream, typeURL string) *feed {
	return &feed{stream: s, typeURL: typeURL, entries: map[string]*entry{}, locals: s.relay.locals[typeURL],
		shelf: s.relay.shelf(shelfKey{typeURL, s.kind.Delta})}
}

func (f *feed) delta() bool { return f.stream.kind.Delta }

// isFull says that a response holds all there is, and what is not in it is gone.
func (f *feed) isFull() bool {
	return !f.delta() && (f.wants.all || f.typeURL == listenerType || f.typeURL == clusterType)
}

// entry gives that of a name, a new one if need be.
func (f *feed) entry(name string) *entry {
	e := f.entries[name]
	if e == nil {
		e = &entry{name: name}
		f.entries[name] = e
		if no, ok := f.shelf.refused[name]; ok {
			e.refused, f.lastNo = no.item, no.no
		}
	}
	return e
}

func (f *feed) delete(e *entry) {
	f.keepUp(e, nil)
	f.shelf.forget(e)
	f.shelf.pardon(e)
	e.gone, e.due = true, notDue
	delete(f.entries, e.name)
}

// keepUp notes what the upstream has, and how large that is.
func (f *feed) keepUp(e *entry, it *Item) {
	if e.up != nil {
		f.stream.size -= len(e.up.Raw)
	}
	if it != nil {
		f.stream.size += len(it.Raw)
	}
	e.up = it
}

// read gives the resources of a response. Those that are as they were are not made anew.
func (f *feed) read(p Response) ([]*Item, error) {
	if len(p.scanned) == 0 {
		return p.Items, nil
	}
	items, none := make([]*Item, len(p.scanned)), Item{}
	for i, raw := range p.scanned {
		h, err := readHead(raw, f.delta())
		if err != nil {
			return nil, err
		}
		like := &none
		if e := f.entries[string(h.name)]; e != nil && e.up != nil {
			like = e.up
		}
		if like != &none && bytes.Equal(like.Raw, raw) {
			items[i] = like
			continue
		}
		items[i] = h.item(bytes.Clone(raw), like)
	}
	return items, nil
}

// receive takes a response of the upstream.
func (f *feed) receive(p Response) error {
	items, err := f.read(p)
	if err != nil {
		return err
	}
	f.version, f.rest, f.nonce, f.owes = p.Version, p.Rest, p.Nonce, true
	f.round++
	f.due = slices.Grow(f.due, len(items))
	for i, it := range items {
		if !f.isLocal(it.Name) {
			f.put(it, i)
		}
	}
	if f.isFull() {
		for _, e := range f.entries {
			if e.up != nil && e.round != f.round {
				f.remove(e)
			}
		}
	}
	for _, name := range p.Removed {
		if !f.isLocal(name) {
			f.remove(f.entry(name))
		}
	}
	empty := len(items)+len(p.Removed) == 0
	f.must = f.must || empty && !f.everSent || !f.delta() && (empty || f.isFull())
	if !f.isDue() {
		f.settle()
	}
	f.enqueue(false)
	return nil
}

// put takes one resource.
func (f *feed) put(it *Item, at int) {
	if it.Name == "" {
		it.Name = "#" + strconv.Itoa(at) // of a type that nobody here knows
	}
	e := f.entry(it.Name)
	e.at, e.round = int32(at), f.round
	if it.beat {
		e.beat = it
		f.mark(e, max(e.due, same))
		return
	}
	if e.up != nil && it != e.up && bytes.Equal(e.up.Raw, it.Raw) {
		it = e.up
	}
	f.keepUp(e, it)
	e.beat = nil
	switch {
	case e.refused != nil && (e.refused.origin() == it || bytes.Equal(e.refused.origin().body(f.delta()), it.body(f.delta()))):
		f.mark(e, again)
	case e.sent != nil && e.sent.origin() == it:
		f.mark(e, same)
	default:
		f.mark(e, fresh)
	}
}

// remove takes that the upstream has no such resource.
func (f *feed) remove(e *entry) {
	f.keepUp(e, nil)
	e.held, e.ours, e.beat, e.made, e.refused = false, false, nil, nil, nil
	delete(f.shelf.missing, e.name) // there is none
	f.mark(e, fresh)
}

// mark has an entry sent.
func (f *feed) mark(e *entry, why dueness) {
	e.due = why
	if !e.listed {
		e.listed = true
		f.due = append(f.due, e)
	}
}

func (f *feed) isDue() bool { return f.must || len(f.due) > 0 || len(f.restores) > 0 }

func (f *feed) enqueue(own bool) {
	if f.isDue() {
		f.stream.enqueue(f, own)
	}
}

// canSend says that Envoy does not leave too much unanswered.
func (f *feed) canSend() bool { return len(f.sent) < maxUnanswered && f.flying == nil }

// onlyAgain says that there is nothing to send but what Envoy refused.
func (f *feed) onlyAgain() bool {
	if len(f.restores) > 0 || f.must && !f.everSent {
		return false
	}
	found := false
	for _, e := range f.due {
		if e.due == fresh || e.due == own {
			return false
		}
		found = found || e.due == again
	}
	return found
}

// changed looks what the transform makes of entries by now.
func (f *feed) changed(names []string) {
	look := func(e *entry) {
		e.made = nil
		if e.up == nil {
			return
		}
		m, ready := f.make(e)
		e.held = !ready
		switch {
		case !ready:
		case e.due != notDue, e.refused != nil && bytes.Equal(e.refused.Raw, m.Raw):
		case e.sent == nil || !bytes.Equal(e.sent.Raw, m.Raw):
			f.mark(e, own)
		}
	}
	if len(names) == 0 {
		names = sorted(f.entries)
	}
	for _, name := range names {
		if e := f.entries[name]; e != nil {
			look(e)
		}
	}
	f.enqueue(true)
}

// make gives what Envoy gets for an entry; not ready: nothing yet.
func (f *feed) make(e *entry) (*Item, bool) {
	if e.made != nil && e.made.origin() == e.up {
		return e.made, true
	}
	transform := f.stream.relay.hooks.Transforms[f.typeURL]
	if transform == nil {
		return e.up, true
	}
	body := e.up.body(f.delta())
	to, ready := transform(Resource{Type: f.typeURL, Name: e.name, Version: e.up.Version, Body: body})
	if !ready {
		return nil, false
	}
	e.made = e.up
	if !bytes.Equal(body, to) {
		e.made = e.up.with(f.delta(), to)
	}
	return e.made, true
}

// next makes the next response to Envoy; nil: none yet.
func (f *feed) next(now time.Time) *Response {
	if !f.isDue() || !f.canSend() {
		return nil
	}
	if len(f.restores) > 0 {
		return f.restore()
	}
	if f.typeURL == listenerType && !f.opens(now) || f.isFull() && f.lacks() {
		return nil
	}
	onlyAgain := f.onlyAgain()
	if onlyAgain && now.Before(f.retryAt) {
		return nil
	}
	if onlyAgain && f.typeURL == extensionType {
		f.refuseWaiting(now) // Envoy would acknowledge the same extension without taking it
		return nil
	}
	d := delivery{epoch: f.epoch, wasAgain: onlyAgain}
	p := &Response{Type: f.typeURL}
	heldBack := false
	for list := f.candidates(); len(list) > 0; list = f.candidates() {
		p.Items, d.parts = make([]*Item, 0, len(list)), make([]part, 0, len(list))
		for _, e := range list {
			f.add(e, p, &d)
			heldBack = heldBack || e.held
		}
		if len(d.parts)+len(p.Items) > 0 || len(f.due) == 0 {
			break
		}
	}
	if len(d.parts)+len(p.Items) == 0 && (!f.must || heldBack) {
		if f.must = false; len(f.due) == 0 {
			f.settle()
		}
		return nil
	}
	if f.owes && len(f.due) == 0 {
		d.upNonce, d.no, f.owes, f.no = f.nonce, f.no, false, nil
		p.Rest, f.rest = f.rest, nil
	}
	f.must = false
	f.deliver(p, d)
	return p
}

// lacks says that Envoy has something that cannot be given yet, and that nobody here has the
// bytes of, as it took them of a relay before this one: it would be gone if it were not in a
// response that holds all there is.
func (f *feed) lacks() bool {
	for _, e := range f.entries {
		if e.acked != nil || e.up == nil || e.kept == nil || int(e.kept.process) != f.stream.relay.process {
			continue
		}
		if _, ready := f.make(e); !ready {
			e.held = true
			return true
		}
	}
	return false
}

// candidates are the entries of the next response, none of which is due afterwards.
// Extensions go one by one, as does what was refused together with something else: so
// what is good is not refused with what is bad. One that was refused stays behind.
func (f *feed) candidates() []*entry {
	list := slices.DeleteFunc(f.due, func(e *entry) bool {
		if e.listed = !e.gone && e.due != notDue; e.listed {
			return false
		}
		return true
	})
	f.due = nil
	if !f.isFull() && len(list) > 0 {
		n := slices.IndexFunc(list, func(e *entry) bool { return e.solo })
		switch {
		case f.typeURL == extensionType:
			slices.SortStableFunc(list, func(a, b *entry) int { return min(int(b.due), int(same)) - min(int(a.due), int(same)) })
			n = 1
			if list[0].due == again {
				n = 0
			}
		case n == 0:
			n = 1
		case n < 0:
			n = len(list)
		}
		list, f.due = list[:n:n], list[n:]
	}
	for _, e := range list {
		e.listed, e.solo = false, false
	}
	if !f.isFull() || len(list) == len(f.entries) {
		return list
	}
	list = list[:0]
	for _, e := range f.entries {
		if e.up != nil || e.due != notDue {
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b *entry) int {
		if a.at != b.at {
			return int(a.at - b.at)
		}
		return strings.Compare(a.name, b.name)
	})
	return list
}

// add puts an entry into a response.
func (f *feed) add(e *entry, p *Response, d *delivery) {
	e.due = notDue
	if e.up == nil && e.beat == nil {
		e.sent = nil
		d.parts = append(d.parts, part{entry: e})
		if f.delta() {
			p.Removed = append(p.Removed, e.name)
		}
		return
	}
	if beat := e.beat; beat != nil {
		e.beat = nil
		if e.up == nil || e.sent != nil && e.sent.origin() == e.up {
			p.Items = append(p.Items, beat)
			return
		}
	}
	m, ready := f.make(e)
	if e.held = !ready; e.held {
		if !f.isFull() || e.acked == nil {
			return
		}
		m = e.acked // what is not in the response would be gone
	}
	if e.ours && e.acked != nil && bytes.Equal(m.Raw, e.refused.Raw) {
		m = e.acked // the upstream must not hear that it is to blame
	}
	isTold := e.refused != nil && e.refused.origin() == m.origin()
	d.isFresh = d.isFresh || !isTold && (e.acked == nil || e.acked.origin() != m.origin())
	e.sent = m
	p.Items = append(p.Items, m)
	d.parts = append(d.parts, part{e, m})
}

// restore sends what Envoy acknowledged before it refused something: as long as it
// remembers a refused extension, it does not take a listener that names it.
func (f *feed) restore() *Response {
	d := delivery{epoch: f.epoch}
	p := &Response{Type: f.typeURL}
	for _, e := range f.restores {
		if e.gone || e.up == nil || e.acked == nil {
			continue
		}
		e.sent = e.acked
		p.Items = append(p.Items, e.acked)
		d.parts = append(d.parts, part{e, e.acked})
	}
	f.restores = nil
	if len(d.parts) == 0 {
		return nil
	}
	f.deliver(p, d)
	return p
}

// deliver gives a response its nonce and version and awaits the answer.
func (f *feed) deliver(p *Response, d delivery) {
	p.Nonce, p.Version = f.stream.nextNonce(), f.version
	d.nonce, d.version = p.Nonce, f.version
	if !f.delta() {
		p.Version = ownVersion(f.version, p.Items)
	}
	f.everSent = true
	f.sent = append(f.sent, d)
}

// ownVersion is that of a response of the state of the world with resources that are not
// the upstream's.
func ownVersion(version string, items []*Item) string {
	h := fnv.New64a()
	changed := false
	for _, it := range items {
		if it.from != nil {
			changed = true
			_, _ = h.Write([]byte(it.Name + it.Version))
		}
	}
	if !changed {
		return version
	}
	return version + "+" + hex.EncodeToString(h.Sum(nil))
}
