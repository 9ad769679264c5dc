package relay

import (
	"slices"
	"strings"
	"time"
)

// wildcard asks for everything.
const wildcard = "*"

// subscription is what Envoy wants of a type.
type subscription struct {
	asked bool // at all
	// all: everything, also what is not named. tacit: because nothing was ever named.
	all, tacit bool
	names      map[string]bool
	list       []string // the names as a state-of-the-world client gave them last
}

// isWanted says whether a resource belongs to the subscription: by its name, by an
// alias, as a member of a collection, whose name ends in "/*", or as a virtual host of a
// route configuration, whose name stands before its own.
func (w *subscription) isWanted(name string, aliases []string) bool {
	if w.all || w.names[name] || slices.ContainsFunc(aliases, func(a string) bool { return w.names[a] }) {
		return true
	}
	i := strings.LastIndexByte(name, '/')
	return i >= 0 && (w.names[name[:i]] || strings.HasPrefix(name, "xdstp:") && w.names[name[:i]+"/*"])
}

// isEmpty says that nothing is wanted (any more).
func (w *subscription) isEmpty() bool { return !w.all && len(w.names) == 0 }

// name notes that Envoy asks by name, if it has not asked before.
func (w *subscription) name() {
	if !w.asked {
		w.asked, w.names = true, map[string]bool{}
	}
}

// set takes all names of a state-of-the-world request; changed says whether they are
// others than before. No names are everything until some were given.
func (w *subscription) set(names []string) (changed bool) {
	changed = !w.asked || !slices.Equal(names, w.list)
	if !changed {
		return false
	}
	w.tacit = len(names) == 0 && (!w.asked || w.tacit)
	w.asked, w.list, w.names = true, names, make(map[string]bool, len(names))
	w.all = w.tacit
	for _, n := range names {
		w.all = w.all || n == wildcard
		w.names[n] = true
	}
	return true
}

// change takes the names of a delta request. Its first one asks for everything if it
// names nothing.
func (w *subscription) change(add, drop []string) {
	if !w.asked {
		w.asked, w.names = true, map[string]bool{}
		w.tacit = len(add) == 0
		w.all = w.tacit
	}
	for _, n := range add {
		w.names[n] = true
		w.all = w.all || n == wildcard
	}
	for _, n := range drop {
		delete(w.names, n)
		if n == wildcard {
			w.all, w.tacit = false, false
		}
	}
}

// first is what a delta stream to the upstream is told when it begins.
func (w *subscription) first() []string {
	names := sorted(w.names)
	if w.tacit && len(names) > 0 && !w.names[wildcard] {
		names = append([]string{wildcard}, names...)
	}
	return names
}

// orders are changes of a delta subscription that the upstream is not told yet.
type orders struct{ add, drop []string }

// note adds those of a request; what is asked for last holds.
func (o *orders) note(add, drop []string) {
	o.add, o.drop = merged(o.add, add, drop), merged(o.drop, drop, add)
}

// merged gives a list without what is revoked, with what comes new.
func merged(list, more, revoked []string) []string {
	if len(list) > 0 && len(revoked) > 0 {
		gone := make(map[string]bool, len(revoked))
		for _, n := range revoked {
			gone[n] = true
		}
		list = slices.DeleteFunc(list, func(n string) bool { return gone[n] })
	}
	if len(list) == 0 {
		return slices.Clone(more)
	}
	there := make(map[string]bool, len(list))
	for _, n := range list {
		there[n] = true
	}
	for _, n := range more {
		if !there[n] {
			there[n], list = true, append(list, n)
		}
	}
	return list
}

// subscribe takes what a request says of names.
func (f *feed) subscribe(q Request, now time.Time) {
	first := !f.wants.asked
	if f.typeURL == listenerType {
		r := f.stream.relay
		r.opening.asked(q, now, r.hooks.ListenersTimeout)
	}
	if !f.delta() {
		before := f.wants.names
		if !f.wants.set(q.Subscribe) {
			return
		}
		f.ask = true
		f.shelf.await(before, q.Subscribe, now)
		f.shelf.waive(func(name string) bool { return before[name] && !f.wants.names[name] })
		f.refuseWaiting(now)
		f.dropUnwanted(sorted(f.entries))
		f.recall(q.Subscribe, nil)
		return
	}
	f.shelf.await(nil, q.Subscribe, now)
	f.wants.change(q.Subscribe, q.Unsubscribe)
	for _, name := range q.Unsubscribe {
		delete(f.shelf.missing, name)
	}
	if f.told {
		f.orders.note(q.Subscribe, q.Unsubscribe)
	}
	if len(q.Unsubscribe) > 0 {
		f.dropUnwanted(q.Unsubscribe)
	}
	if first || len(q.Subscribe) > 0 {
		f.recall(q.Subscribe, q.Held)
	}
	if first {
		for name := range q.Held {
			if f.wants.isWanted(name, nil) {
				f.entry(name) // the upstream must be asked whether it is still there
			}
		}
	}
}

// dropUnwanted forgets those of the names that Envoy does not want any more: the upstream
// will not tell of them either.
func (f *feed) dropUnwanted(names []string) {
	if f.isNamedOtherwise(names) {
		names = sorted(f.entries)
	}
	var left []string
	for _, name := range names {
		e := f.entries[name]
		if e == nil {
			continue
		}
		var aliases []string
		if e.up != nil {
			aliases = e.up.aliases
		}
		if !f.wants.isWanted(name, aliases) {
			f.delete(e)
			left = append(left, name)
		}
	}
	f.stream.relay.left(f.typeURL, left)
}

// isNamedOtherwise says that a subscription to those names may be to resources that have
// others: everything, collections, aliases of virtual hosts.
func (f *feed) isNamedOtherwise(names []string) bool {
	return len(names) == 0 || f.typeURL == virtualHostType ||
		slices.ContainsFunc(names, func(n string) bool { return strings.HasSuffix(n, wildcard) })
}

// recall gives Envoy at once what it acknowledged before of those names, as far as it does
// not hold it.
func (f *feed) recall(names []string, held map[string]string) {
	if len(f.shelf.items) == 0 && !f.shelf.known {
		return
	}
	if f.version == "" {
		f.version = f.shelf.version
	}
	found := false
	if f.isNamedOtherwise(names) {
		names = sorted(f.shelf.items)
	}
	for i, name := range names {
		k := f.shelf.items[name]
		if k == nil || !f.wants.isWanted(name, k.item.aliases) || f.entries[name] != nil && f.entries[name].up != nil {
			continue
		}
		e := f.entry(name)
		f.keepUp(e, k.item)
		f.shelf.use(e, k)
		e.at, found = int32(i), true
		if m, ready := f.make(e); ready && f.delta() && held[name] != "" && held[name] == m.Version {
			e.sent, e.acked = m, m
			f.stream.relay.hooks.Tell(Event{Type: f.typeURL, Acked: []string{name}}) // its answer may be lost
			continue
		}
		f.mark(e, own)
	}
	if !found && f.shelf.known && f.wants.all && !f.everSent {
		f.must = true // Envoy waits to be told that there is nothing
	}
	f.enqueue(true)
}
