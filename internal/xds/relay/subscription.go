package relay

import (
	"slices"
	"strings"
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
