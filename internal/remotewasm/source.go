package remotewasm

import (
	"cmp"
	"crypto/sha256"
	"maps"
	"slices"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

// hash is a SHA-256.
type hash [sha256.Size]byte

// key names what a resource asks for. Resources share a module only if they show the same
// secret for it.
type key struct {
	what   hash // where it is, its pin and, if it is to be asked for anew with each version of the resource, that
	secret hash
}

// source is one module that was asked for.
type source struct {
	key key
	// request is nil if the module cannot be asked for: of what was only restored, and of
	// what a resource says that cannot be.
	request *Request
	digest  chandler.ModuleDigest // once known
	module  Module                // once it is here, and kept here
	flying  bool                  // it is being brought
	attempt uint32                // that failed
	nextTry time.Time
	problem *chandler.Problem
	users   map[*entry]bool
}

// ready says that the module is here.
func (s *source) ready() bool { return s.module != nil }

// askAll gives the sources that a resource names, in its order. A module that is new to what
// Envoy has with stand-ins in it is waited for like a first one: what it replaces may work.
func (st *state) askAll(e *entry, r *attach.Remote, now time.Time) []*source {
	sources := make([]*source, len(r.Wasm))
	e.now = 0
	for i, w := range r.Wasm {
		s, isNew := st.ask(e, w, len(r.Wasm), now)
		sources[i] = s
		if isNew && e.given.modules != "" && !e.given.whole && e.given != e.refused {
			e.deadline, e.overdue = time.Time{}, false
		}
	}
	return sources
}

// ask gives the source of one of n modules that a resource names, a new one if need be. What
// the name had before under the same terms it has still, whatever secret is shown now.
func (st *state) ask(e *entry, r *attach.RemoteWasm, n int, now time.Time) (s *source, isNew bool) {
	k := keyOf(r)
	at := slices.IndexFunc(e.wanted, func(s *source) bool { return s.key == k || s.key.what == k.what && s.digest != "" })
	switch isNew = at < 0; {
	case isNew:
		s = st.source(k)
		st.want(e, s, n, now)
		e.now++
	case at >= e.now:
		s = e.wanted[at]
		copy(e.wanted[1:at+1], e.wanted[:at])
		e.wanted[0] = s
		e.now++
	default: // the resource names it twice
		s = e.wanted[at]
	}
	e.asked[s] = now
	switch {
	case r.Problem != nil:
		if !s.ready() {
			s.problem = r.Problem
		}
	case s.request == nil || s.key != k || s.request.Cluster != r.Cluster: // the way there is no part of what it is
		if s.problem != nil {
			s.problem, s.attempt, s.nextTry = nil, 0, time.Time{}
		}
		s.request = requestOf(r)
	}
	return s, isNew
}

// keyOf names what a resource asks for, by its own terms.
func keyOf(r *attach.RemoteWasm) key {
	version := ""
	wasm := chandler.Wasm{Reference: r.Reference, SHA256: r.SHA256, PullPolicy: r.PullPolicy}
	if wasm.EffectivePullPolicy() == chandler.PullAlways {
		if version = r.ResourceVersion; version == "" {
			own := sha256.Sum256(r.Own())
			version = string(own[:])
		}
	}
	k := key{what: hash(sha256.Sum256([]byte(r.Reference.String() + "\x00" + r.SHA256 + "\x00" + version)))}
	if r.PullSecret != nil {
		k.secret = sha256.Sum256(r.PullSecret)
	}
	return k
}

func requestOf(r *attach.RemoteWasm) *Request {
	return &Request{
		Name: r.Name, Reference: r.Reference, SHA256: r.SHA256, Cluster: r.Cluster, PullSecret: r.PullSecret,
		Timeout: r.Timeout, RetryBase: r.RetryBase, RetryMax: r.RetryMax,
	}
}

// source gives the one of a key, a new one if need be.
func (st *state) source(k key) *source {
	s := st.sources[k]
	if s == nil {
		s = &source{key: k, users: map[*entry]bool{}}
		st.sources[k] = s
	}
	return s
}

// want adds a source to a name, whose resource names n, in the first place. Of too many the
// one asked for the longest ago goes, but what the resource names now and what is in force
// stay, and what may be in force if there is another.
func (st *state) want(e *entry, s *source, n int, now time.Time) {
	for len(e.wanted) >= maxWanted*max(n, len(e.good)) {
		at := -1
		for i, s := range e.wanted {
			if i >= e.now && !e.good[s] && (!e.gave[s] || at < 0 || e.gave[e.wanted[at]]) {
				at = i
			}
		}
		st.unwant(e, at)
	}
	e.wanted = slices.Insert(e.wanted, 0, s)
	e.asked[s], s.users[e] = now, true
}

// unwant takes a source from a name, and lets go of it if nobody else has it.
func (st *state) unwant(e *entry, at int) {
	s := e.wanted[at]
	e.wanted = slices.Delete(e.wanted, at, at+1)
	delete(e.asked, s)
	delete(e.gave, s)
	delete(s.users, e)
	delete(e.good, s)
	st.todo.save = st.todo.save || s.digest != ""
	if len(s.users) > 0 {
		return
	}
	if st.sources[s.key] == s {
		delete(st.sources, s.key)
	}
	if s.flying {
		st.todo.cancel = append(st.todo.cancel, s)
	}
	if s.module != nil {
		st.todo.release = append(st.todo.release, s.module)
		s.module = nil
	}
}

// begin starts to bring what is due, what waits the longest first.
func (st *state) begin(due func(time.Time) bool) {
	if st.flying >= maxFetches {
		return // whichever ends makes room
	}
	ready := map[*source]string{}
	for name, e := range st.names {
		for i, s := range e.wanted {
			// What is not the newest is only looked for on disk.
			wanted := s.digest != "" || i < max(1, e.now) && s.request != nil
			if !s.flying && !s.ready() && wanted && (s.nextTry.IsZero() || due(s.nextTry)) && (ready[s] == "" || name < ready[s]) {
				ready[s] = name
			}
		}
	}
	order := slices.SortedFunc(maps.Keys(ready), func(a, b *source) int {
		return cmp.Or(a.nextTry.Compare(b.nextTry), cmp.Compare(ready[a], ready[b]), slices.Compare(a.key.what[:], b.key.what[:]))
	})
	for _, s := range order[:min(len(order), maxFetches-st.flying)] {
		s.flying = true
		st.flying++
		st.todo.start = append(st.todo.start, s)
	}
}

// Pauses between tries.
const (
	minTemporary = 200 * time.Millisecond
	maxTemporary = 3 * time.Second
	minLasting   = 5 * time.Second
	maxLasting   = 5 * time.Minute
	maxAsked     = time.Hour // that a server may ask for
)

// pause is how long after a failure a module is asked for again: doubled each time, and at
// least what the server asks for. What will hardly change by itself waits longer. A
// resource may say itself how long the first pause and the longest one are.
func pause(attempt uint32, why *Failure, q *Request, chance float64) time.Duration {
	least, most := minTemporary, maxTemporary
	if !why.Temporary {
		least, most = minLasting, maxLasting
	} else if q != nil && q.RetryBase > 0 {
		least = min(max(q.RetryBase, least), maxLasting)
		most = min(max(q.RetryMax, most, least), maxLasting)
	}
	d := least
	for range min(attempt, 16) - min(attempt, 1) {
		d = min(2*d, most)
	}
	d -= time.Duration(float64(d) / 2 * chance)
	return max(d, min(why.RetryAfter, maxAsked))
}
