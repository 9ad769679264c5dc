package relay

import (
	"slices"
	"time"
)

// keepLeft is how long what Envoy acknowledged is remembered after the last stream that
// wanted it was closed, counted while Envoy is there: one that was started anew has
// asked by then for what it wants.
const keepLeft = 10 * time.Minute

// shelfKey names what is remembered together: the bytes of the two protocols differ.
type shelfKey struct {
	typeURL string
	delta   bool
}

// shelf is what Envoy acknowledged of a type, on whatever stream.
type shelf struct {
	relay   *Relay
	key     shelfKey
	version string // the upstream's of the state of the world, or of its system
	known   bool   // that all of it is here: Envoy wants everything there is
	changes uint64
	items   map[string]*kept
	refused map[string]refusal // of extensions
	// missing are names that Envoy asks for and of which it has nothing yet, since when.
	missing map[string]time.Time
	// unread are those of which it is not looked yet what they name.
	unread map[string]bool // of types that lead to others
}

// refusal is an extension that Envoy refused. The same process of Envoy would acknowledge
// it if it came again, on whatever stream, and not take it.
type refusal struct {
	item *Item  // the upstream's
	no   []byte // Envoy's answer
}

// kept is one resource on a shelf.
type kept struct {
	item    *Item
	users   int32 // streams that have it
	process int32 // of Envoy, that acknowledged it; zero also for the one of before Restore
	left    int64 // when the last of them was closed, in seconds
}

func (r *Relay) shelf(key shelfKey) *shelf {
	s := r.memory[key]
	if s == nil {
		s = &shelf{relay: r, key: key, items: map[string]*kept{}, refused: map[string]refusal{}, missing: map[string]time.Time{}, unread: map[string]bool{}}
		r.memory[key] = s
	}
	return s
}

func (s *shelf) changed(n int) {
	s.changes += uint64(n)
	s.relay.changes += uint64(n)
}

// keep remembers what an entry's Envoy has acknowledged.
func (s *shelf) keep(e *entry) {
	item := e.acked.origin()
	k := e.kept
	if k == nil {
		k = s.items[e.name]
	}
	if k == nil {
		k = &kept{}
		s.items[e.name] = k
	}
	if k.process = int32(s.relay.process); k.item != item {
		k.item = item
		s.changed(1)
		if leads[s.key.typeURL] {
			s.unread[e.name] = true
		}
	}
	s.found(item)
	s.use(e, k)
}

func (s *shelf) use(e *entry, k *kept) {
	if e.kept == nil {
		e.kept = k
		k.users++
	}
}

// refuse remembers what Envoy refused.
func (s *shelf) refuse(e *entry, no []byte) {
	if s.key.typeURL == extensionType {
		s.refused[e.name] = refusal{e.refused.origin(), no}
		s.changed(1)
	}
}

// pardon is for what Envoy has, or wants no more.
func (s *shelf) pardon(e *entry) {
	if _, ok := s.refused[e.name]; ok {
		delete(s.refused, e.name)
		s.changed(1)
	}
}

// Another says that Envoy is another process from now on, which has refused nothing yet.
// Without it, extensions that Envoy refused are refused in its place as long as they stay
// the same. It is best said before that process is started.
func (r *Relay) Another() {
	r.process++
	r.opening = opening{isAwaited: true}
	for _, l := range r.locals {
		l.another()
	}
	for _, s := range r.memory {
		s.changed(len(s.refused))
		clear(s.refused)
	}
}

// forget is for what Envoy wants no more, or the upstream has no more.
func (s *shelf) forget(e *entry) {
	k := e.kept
	if k == nil {
		return
	}
	e.kept = nil
	if k.users--; k.users == 0 {
		delete(s.items, e.name)
		delete(s.unread, e.name)
		s.changed(1)
	}
}

// leave is for a stream that is closed: Envoy may come back for it.
func (s *shelf) leave(e *entry, now time.Time) {
	k := e.kept
	if k == nil {
		return
	}
	e.kept = nil
	if k.users--; k.users == 0 {
		k.left = now.Unix()
	}
}

// Trim forgets what no stream wants that Envoy has open by now. It is to be called now
// and then.
func (r *Relay) Trim(now time.Time) {
	if len(r.streams) == 0 || now.Sub(r.since) < keepLeft {
		return
	}
	for key, s := range r.memory {
		var left []string
		for name, k := range s.items {
			if k.users == 0 && now.Sub(time.Unix(k.left, 0)) >= keepLeft {
				delete(s.items, name)
				left = append(left, name)
			}
		}
		s.changed(len(left))
		slices.Sort(left)
		r.left(key.typeURL, left)
	}
}
