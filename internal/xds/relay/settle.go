package relay

import (
	"maps"
	"strings"
	"time"
)

// What Envoy has of all types belongs together when it has been given all that it asks for,
// and all that what it took names: it takes a listener before it asks for the routes of this
// one. In between, what it took is not worth keeping for another Envoy, which would wait for
// the routes. Clusters, for which it does not ask by name, are there when routes that it took
// lead to them (awaitsClusters).

const (
	// missingPatience is how long an upstream that is there may take to answer for a name.
	// What does not come by then may never.
	missingPatience = 5 * time.Second
	// unsettledPatience is how long something may be missing without pause.
	unsettledPatience = 30 * time.Second
)

// leads are the types of which Hooks.Names is asked what they name.
var leads = map[string]bool{clusterType: true, listenerType: true}

// Settled gives Views when they belong together; a time in their place is when to ask again,
// or after something happened. While there is no upstream what is missing stays so.
func (r *Relay) Settled(now time.Time) ([]View, time.Time) {
	at, alone := r.missing(now)
	switch {
	case at.IsZero():
		r.unsettled = time.Time{}
	case alone:
		return nil, at
	case r.unsettled.IsZero():
		r.unsettled = now
		return nil, at
	case now.Sub(r.unsettled) < unsettledPatience:
		return nil, at
	default:
		r.unsettled = time.Time{}
	}
	return r.Views(), time.Time{}
}

// missing tells when all that is missing will have been waited for; zero: nothing is. alone:
// there is no upstream.
func (r *Relay) missing(now time.Time) (last time.Time, alone bool) {
	alone = true
	for s := range r.streams {
		alone = alone && !s.connected
	}
	for key, s := range r.memory {
		for name := range s.unread {
			if k := s.items[name]; k != nil {
				r.hooks.Names(key.typeURL, k.item.body(key.delta), func(typeURL, name string) {
					if other := r.memory[shelfKey{typeURL, !key.delta}]; other == nil || other.items[name] == nil {
						r.shelf(shelfKey{typeURL, key.delta}).await(nil, []string{name}, now)
					}
				})
			}
		}
		clear(s.unread)
	}
	for _, s := range r.memory {
		for name, since := range s.missing {
			at := since.Add(missingPatience)
			if alone {
				at = now.Add(missingPatience)
			}
			if !at.After(now) {
				delete(s.missing, name)
			} else if at.After(last) {
				last = at
			}
		}
	}
	if at := r.awaitsClusters(now, alone); at.After(last) {
		last = at
	}
	return last, alone
}

// awaitAnew is for an upstream that is back.
func (r *Relay) awaitAnew(now time.Time) {
	for _, s := range r.memory {
		for name := range s.missing {
			s.missing[name] = now
		}
	}
	for name, since := range r.lacking.since {
		if !since.IsZero() {
			r.lacking.since[name] = now
		}
	}
}

// await notes what is missing of names that Envoy asks for, or will, and did not before.
func (s *shelf) await(before map[string]bool, names []string, now time.Time) {
	for _, name := range names {
		if before[name] || name == wildcard || strings.HasSuffix(name, "/"+wildcard) || s.items[name] != nil || len(s.missing) >= maxNames {
			continue
		}
		if _, ok := s.missing[name]; !ok {
			s.missing[name] = now
		}
	}
}

// found notes that Envoy has something it asked for, perhaps by another name.
func (s *shelf) found(it *Item) {
	if len(s.missing) == 0 {
		return
	}
	delete(s.missing, it.Name)
	for _, name := range it.aliases {
		delete(s.missing, name)
	}
}

// waive is for names that Envoy asks for no more.
func (s *shelf) waive(gone func(name string) bool) {
	maps.DeleteFunc(s.missing, func(name string, _ time.Time) bool { return gone(name) })
}
