package relay

import (
	"slices"
	"time"
)

// An upstream may answer for routes before the clusters to which they lead, and takes
// clusters away before routes that lead to them are gone. Envoy asks for no cluster, so
// nothing is missing in its eyes, but such routes lead nowhere for another Envoy that begins
// with them.

// routing are the types of which Hooks.Clusters is asked.
var routing = map[string]bool{listenerType: true, routeType: true, virtualHostType: true}

// lacking are the clusters to which something leads that is kept, and which are not.
type lacking struct {
	changes uint64               // of the relay, when it was looked
	since   map[string]time.Time // zero: it is not waited for any more
}

// awaitsClusters tells when all clusters that are lacking will have been waited for; zero: none is.
// alone: there is no upstream that could send them. What did not come in time may never.
func (r *Relay) awaitsClusters(now time.Time, alone bool) (last time.Time) {
	l := &r.lacking
	if l.since == nil || l.changes != r.changes {
		l.changes = r.changes
		before := l.since
		l.since = map[string]time.Time{}
		r.astray(func(cluster string) {
			since, ok := before[cluster]
			if !ok {
				since = now
			}
			l.since[cluster] = since
		})
	}
	for name, since := range l.since {
		at := since.Add(missingPatience)
		switch {
		case since.IsZero():
		case alone:
			last = now.Add(missingPatience)
		case !at.After(now):
			l.since[name] = time.Time{}
		case at.After(last):
			last = at
		}
	}
	return last
}

// astray tells of clusters to which something leads that is kept, and which are not. Where
// Envoy does not ask for clusters they are another control plane's.
func (r *Relay) astray(to func(cluster string)) {
	var clusters []*shelf
	for _, delta := range []bool{false, true} {
		if s := r.memory[shelfKey{clusterType, delta}]; s != nil {
			clusters = append(clusters, s)
		}
	}
	if clusters == nil {
		return
	}
	for key, s := range r.memory {
		if !routing[key.typeURL] {
			continue
		}
		for _, k := range s.items {
			r.hooks.Clusters(key.typeURL, k.item.body(key.delta), func(name string) {
				if !slices.ContainsFunc(clusters, func(s *shelf) bool { return s.items[name] != nil }) {
					to(name)
				}
			})
		}
	}
}
