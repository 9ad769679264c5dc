package relay

import (
	"slices"
	"strings"
	"time"
)

// answered takes Envoy's answer to a response. One that is not awaited is stale.
func (f *feed) answered(q Request, now time.Time) {
	i := slices.IndexFunc(f.sent, func(d delivery) bool { return d.nonce == q.Nonce })
	if i < 0 {
		return
	}
	d := f.sent[i]
	f.sent = slices.Delete(f.sent, 0, i+1)
	ev := Event{Type: f.typeURL}
	no, amended := q.Error, false
	if q.Error == nil {
		f.refusals = 0
		f.shelf.settled(f, d)
		for _, p := range d.parts {
			f.take(p, &ev)
		}
	} else if amended = f.refuse(d, q.Error, now, &ev); amended && len(ev.Refused) == 0 {
		no = nil
	}
	switch {
	case d.epoch != f.epoch:
	case amended && d.upNonce != "" && d.upNonce == f.nonce && !f.owes:
		if f.owes, f.no = true, d.no; no != nil { // the amended answer for it
			f.no = no
		}
	default:
		f.pass(d, no)
	}
	if len(ev.Acked)+len(ev.Removed)+len(ev.Refused) > 0 {
		f.stream.relay.hooks.Tell(ev)
	}
}

// pass tells the upstream Envoy's answer, once all of its response is answered: a part
// that was refused makes it refused. What it thinks accepted already, because it was held
// back, is refused late.
func (f *feed) pass(d delivery, no []byte) {
	if no == nil {
		no = d.no
	}
	i := slices.IndexFunc(f.sent, func(later delivery) bool { return later.upNonce != "" && later.epoch == f.epoch })
	switch {
	case d.upNonce != "":
		f.reply(answer{d.upNonce, d.version, no})
	case no == nil || !d.isFresh:
	case i >= 0:
		f.sent[i].no = no
	case f.owes:
		f.no = no
	case f.nonce != "":
		f.reply(answer{f.nonce, d.version, no})
	}
}

// settled notes with which version of the upstream Envoy has what is remembered.
func (s *shelf) settled(f *feed, d delivery) {
	known := s.known || f.wants.all
	if s.version != d.version || s.known != known {
		s.version, s.known = d.version, known
		s.changed(1)
	}
}

// take notes that Envoy has a part.
func (f *feed) take(p part, ev *Event) {
	e := p.entry
	if e.gone {
		return
	}
	if p.item == nil {
		if e.up == nil { // else it is back, and may be on its way
			ev.Removed = append(ev.Removed, e.name)
		}
		e.acked = nil
		f.shelf.forget(e)
		if e.up == nil && e.due == notDue {
			f.delete(e)
		}
		return
	}
	ev.Acked = append(ev.Acked, e.name)
	e.acked = p.item
	if p.item.origin() == e.up {
		e.refused, e.ours = nil, false
		f.shelf.pardon(e)
	}
	f.shelf.keep(e)
}

// refuse notes that Envoy has refused some parts of a delivery. Those that are amended do
// not count: they are due in another form.
func (f *feed) refuse(d delivery, no []byte, now time.Time, ev *Event) (amended bool) {
	ev.Words = words(no)
	f.lastNo = no
	bad, exact := f.accused(d.parts, ev.Words)
	for _, p := range d.parts {
		e := p.entry
		if p.item == nil || !bad[e.name] {
			f.take(p, ev)
			continue
		}
		if e.gone || p.item == e.acked {
			continue // as part of a whole; it was taken before
		}
		// What Envoy has taken in another form it refuses for what the transform made of it.
		ours := e.acked != nil && e.acked.origin() == p.item.origin()
		if f.amend(p, ours, ev.Words) {
			amended = true
			continue
		}
		ev.Refused = append(ev.Refused, e.name)
		if ours {
			ev.Ours = append(ev.Ours, e.name)
		}
		e.refused, e.ours = p.item, ours
		f.shelf.refuse(e, no)
		if !exact && len(bad) > 1 && !f.isFull() && e.due == notDue && e.up != nil {
			e.solo = true
			f.mark(e, own)
		}
		if f.typeURL == extensionType && e.acked != nil {
			f.restores = append(f.restores, e)
		}
	}
	if len(ev.Refused) > 0 {
		f.pause(d.wasAgain, now)
	}
	f.enqueue(true)
	return amended
}

// amend asks the owner whether it makes something else of what Envoy refused in the form
// that the transform gave it, and has that sent. What the upstream has replaced meanwhile
// is nobody's matter any more.
func (f *feed) amend(p part, ours bool, words string) bool {
	e, ask := p.entry, f.stream.relay.hooks.Amend[f.typeURL]
	switch {
	case ask == nil || p.item.from == nil:
		return false
	case e.up != p.item.from:
		return true
	case !ask(e.name, ours, words):
		return false
	}
	e.made, e.refused, e.ours = nil, nil, false
	f.mark(e, own)
	return true
}

// pause has what was refused wait if it comes once more, longer each time.
func (f *feed) pause(isAgain bool, now time.Time) {
	f.refusals++
	if !isAgain {
		f.refusals = 1
	}
	f.retryAt = now.Add(min(minPause<<min(f.refusals-1, 16), maxPause))
}

// accused are the names that a refusal is about. Of listeners and clusters Envoy takes
// those that are good and names the others, exactly; elsewhere, and where it had no room
// for all names, all are.
func (f *feed) accused(parts []part, words string) (names map[string]bool, exact bool) {
	all, named := map[string]bool{}, map[string]bool{}
	for _, p := range parts {
		if p.item == nil {
			continue
		}
		all[p.entry.name] = true
		if isNamed(words, p.entry.name) {
			named[p.entry.name] = true
		}
	}
	if f.typeURL != listenerType && f.typeURL != clusterType || len(named) == 0 || strings.HasSuffix(words, "(truncated)") {
		return all, false
	}
	return named, true
}

// isNamed says whether a refusal has "NAME: why", after a space or at the begin of a line.
func isNamed(words, name string) bool {
	for rest := words; ; {
		i := strings.Index(rest, name+":")
		if i < 0 {
			return false
		}
		if i == 0 && len(rest) == len(words) || i > 0 && (rest[i-1] == ' ' || rest[i-1] == '\n') {
			return true
		}
		rest = rest[i+1:]
	}
}

// refuseWaiting answers the upstream for what Envoy refused before, with the same words,
// and does not trouble Envoy.
func (f *feed) refuseWaiting(now time.Time) {
	if !f.onlyAgain() {
		return
	}
	for _, e := range f.due {
		e.due, e.listed = notDue, false
	}
	f.due, f.must = nil, false
	f.pause(true, now)
	if f.owes {
		f.owes = false
		f.reply(answer{f.nonce, f.version, f.lastNo})
	}
}

// settle acknowledges a response of which nothing goes on to Envoy by now.
func (f *feed) settle() {
	if f.owes {
		f.owes = false
		f.reply(answer{f.nonce, f.version, f.no})
	}
}

func (f *feed) reply(a answer) {
	if len(f.answers) == maxAnswers {
		f.answers = slices.Delete(f.answers, 0, 1)
	}
	f.answers = append(f.answers, a)
}

// reconnect begins a stream to the upstream, which knows nothing.
func (f *feed) reconnect() {
	f.epoch++
	f.told, f.nonce, f.owes, f.no, f.answers, f.orders = false, "", false, nil, nil, orders{}
}

// request gives what there is to say to the upstream; nil: nothing.
func (f *feed) request() *Request {
	q := &Request{Type: f.typeURL}
	switch {
	case !f.told:
		if f.wants.isEmpty() {
			return nil
		}
		f.told = true
		f.greet(q)
		return q
	case len(f.answers) > 0:
		a := f.answers[0]
		f.answers = slices.Delete(f.answers, 0, 1)
		if q.Nonce, q.Error = a.nonce, a.no; a.no == nil {
			f.taken = a.version
		}
	case f.delta() && len(f.orders.add)+len(f.orders.drop) > 0:
	case !f.delta() && f.ask && !f.isAwaited():
		q.Nonce = f.nonce
	default:
		return nil
	}
	if f.delta() {
		q.Subscribe, q.Unsubscribe = f.orders.add, f.orders.drop
		f.orders = orders{}
	} else {
		q.Subscribe, q.Version, f.ask = f.wants.list, f.taken, false
	}
	return q
}

// greet is the first request on a stream: what Envoy wants, and what it has.
func (f *feed) greet(q *Request) {
	if f.delta() {
		q.Subscribe, q.Held = f.wants.first(), f.held()
		return
	}
	q.Subscribe = f.wants.list
	if !f.isSettled() {
		f.taken = ""
	}
	q.Version, f.ask = f.taken, false
}

// held are the versions that the upstream need not send: what it says there is, and
// Envoy has acknowledged. It is asked for the rest under no version, and so tells also
// what is gone.
func (f *feed) held() map[string]string {
	if len(f.entries) == 0 {
		return nil
	}
	versions := make(map[string]string, len(f.entries))
	for name, e := range f.entries {
		versions[name] = ""
		if e.up != nil && e.acked != nil && e.acked.origin() == e.up {
			versions[name] = e.up.Version
		}
	}
	return versions
}

// isSettled says that Envoy has acknowledged all that the upstream said to what it wants.
func (f *feed) isSettled() bool {
	if f.ask || len(f.sent) > 0 || f.isDue() {
		return false
	}
	for _, e := range f.entries {
		if e.refused != nil || e.held || e.up == nil {
			return false
		}
	}
	return true
}

// isAwaited says that Envoy, or the relay for it, will answer the upstream's last
// response: until then a request would be stale.
func (f *feed) isAwaited() bool {
	return f.owes || slices.ContainsFunc(f.sent, func(d delivery) bool { return d.upNonce != "" && d.epoch == f.epoch })
}
