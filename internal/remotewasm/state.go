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

// Limits of what an upstream can make the agent keep.
const (
	// maxNames are the resources with remote modules. A proxy with more has other troubles
	// first; those that are too many get their stand-ins.
	maxNames = 4096
	maxName  = 2048 // bytes of one
	// maxWanted are the modules that are kept for one name, of which the resource names one
	// now: what was in force, and what other streams say under the same name.
	maxWanted = 4
	// maxFetches go on at a time, so many that a few which trickle hold nobody up.
	maxFetches = 32
)

// How long things take.
const (
	// servingPatience is how long a listener that waits for a module is held before its
	// failStrategy applies, startingPatience while Envoy starts: then all of its listeners
	// wait for the slowest.
	servingPatience  = 30 * time.Second
	startingPatience = 5 * time.Second
	// refusedPause is after how long a module that Envoy refused is offered once more.
	refusedPause = 5 * time.Minute
	// keepLeft is how long is kept what nobody asks for: what goes may come back, for
	// instance when a listener is made anew, or Envoy is.
	keepLeft = 10 * time.Minute
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

// form is one way in which a resource is given to Envoy with its module. A stand-in has
// none.
type form struct {
	body   hash
	digest chandler.ModuleDigest
}

// entry is one resource, by its name.
type entry struct {
	name   string
	wanted []*source             // the one asked for last first
	asked  map[*source]time.Time // when last, of all that are wanted
	gave   map[*source]bool      // those that Envoy was given
	good   *source               // of what Envoy took last

	body    hash // of the resource as it was asked for last
	since   time.Time
	counted bool // that it was made local

	given, refused form // the last one, and the one that Envoy does not take
	gaveAt         time.Time
	took           bool      // Envoy has taken one with a module
	open           int       // those with a module that it has not refused, while it has taken none
	offerAt        time.Time // the refused one, once more
	deadline       time.Time // from when on a stand-in is better than nothing
	overdue        bool
	stands         bool      // a stand-in was given
	left           time.Time // since when nobody asks, which counts while Envoy asks for others; zero: somebody does
}

// state is all that is known. Its methods are the whole of the decisions: they do no input
// or output and read no clock. What is to be done gathers in todo.
type state struct {
	names   map[string]*entry
	sources map[key]*source
	flying  int
	asking  time.Time // since when this Envoy asks; zero: it has not yet
	chance  func() float64
	todo    todo
}

// todo is what the shell has to do.
type todo struct {
	start   []*source
	cancel  []*source
	release []Module
	changed map[string]bool // names whose resources may be given in another form now
	save    bool            // what is known is other than what is on disk
	told    []notice
}

// notice is for the log.
type notice struct {
	source  *source
	names   []string
	problem *chandler.Problem // nil: it is well again
	nextTry time.Time
}

func newState(chance func() float64) *state {
	return &state{names: map[string]*entry{}, sources: map[key]*source{}, chance: chance, todo: todo{changed: map[string]bool{}}}
}

// take gives what is to be done.
func (st *state) take() todo {
	t := st.todo
	st.todo = todo{changed: map[string]bool{}}
	return t
}

// give decides what Envoy gets for a resource: the local form with the path of the module,
// the stand-in, or for now nothing.
func (st *state) give(r *attach.RemoteWasm, patience time.Duration, now time.Time) (path string, what answer) {
	if st.asking.IsZero() {
		st.asking = now
	}
	e := st.entry(r.Name)
	if e == nil {
		return "", standIn
	}
	body := hash(sha256.Sum256(r.Discreet().GetValue()))
	s := st.ask(e, r, body, now)
	if body != e.body {
		e.body, e.since, e.counted = body, now, false
	}
	f := form{body, s.digest}
	switch {
	case s.ready() && (e.has() || e.refused != f):
		if e.given != f {
			e.open, e.gaveAt = e.open+1, now
		}
		e.given, e.stands, e.gave[s] = f, false, true
		return s.module.Path(), local
	case e.has():
		return "", held
	case e.refused == f && s.ready():
	case e.deadline.IsZero():
		e.deadline = now.Add(patience)
		return "", held
	case now.Before(e.deadline):
		return "", held
	}
	e.given, e.stands, e.overdue = form{}, true, true
	return "", standIn
}

// has says that Envoy runs a module for the name, as far as is known: it takes what it is
// given unless it says otherwise.
func (e *entry) has() bool { return e.took || e.open > 0 }

// isSure says that what Envoy has a module of is known: the last form that it was given,
// unless it refused that. An answer comes without a word on what it is to, so that of some
// that were given in a row any may be in force once one was refused.
func (e *entry) isSure() bool {
	return !e.has() || e.given != (form{}) && e.given != e.refused
}

// answer is what Envoy gets.
type answer int

const (
	held answer = iota // what it has
	local
	standIn
)

// entry gives that of a name, a new one if need be; nil: there are too many.
func (st *state) entry(name string) *entry {
	e := st.names[name]
	if e == nil {
		if len(name) > maxName || len(st.names) >= maxNames && !st.dropLeft() {
			return nil
		}
		e = &entry{name: name, asked: map[*source]time.Time{}, gave: map[*source]bool{}}
		st.names[name] = e
	}
	e.left = time.Time{}
	return e
}

// dropLeft makes room: what nobody asks for the longest goes.
func (st *state) dropLeft() bool {
	var oldest *entry
	for _, e := range st.names {
		if !e.left.IsZero() && (oldest == nil || cmp.Or(e.left.Compare(oldest.left), cmp.Compare(e.name, oldest.name)) < 0) {
			oldest = e
		}
	}
	if oldest != nil {
		st.drop(oldest)
	}
	return oldest != nil
}

// ask gives the source that a resource names, a new one if need be. What the name had before
// under the same terms it has still, whatever secret is shown now.
func (st *state) ask(e *entry, r *attach.RemoteWasm, body hash, now time.Time) *source {
	k := keyOf(r, body)
	at := slices.IndexFunc(e.wanted, func(s *source) bool { return s.key == k || s.key.what == k.what && s.digest != "" })
	if at < 0 {
		st.want(e, st.source(k), now)
		at = 0
	}
	s := e.wanted[at]
	copy(e.wanted[1:at+1], e.wanted[:at])
	e.wanted[0], e.asked[s] = s, now
	switch {
	case r.Problem != nil:
		if !s.ready() {
			s.problem = r.Problem
		}
	case s.request == nil || s.key != k:
		if s.problem != nil {
			s.problem, s.attempt, s.nextTry = nil, 0, time.Time{}
		}
		s.request = requestOf(r)
	}
	return s
}

// keyOf names what a resource asks for, by its own terms.
func keyOf(r *attach.RemoteWasm, body hash) key {
	version := ""
	wasm := chandler.Wasm{Reference: r.Reference, SHA256: r.SHA256, PullPolicy: r.PullPolicy}
	if wasm.EffectivePullPolicy() == chandler.PullAlways {
		if version = r.ResourceVersion; version == "" {
			version = string(body[:])
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
		Name: r.Name, Reference: r.Reference, SHA256: r.SHA256, PullSecret: r.PullSecret,
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

// want adds a source to a name in the first place. Of too many the one asked for the
// longest ago goes, but what is in force stays, and what may be if there is another.
func (st *state) want(e *entry, s *source, now time.Time) {
	if len(e.wanted) >= maxWanted {
		at := -1
		for i, s := range e.wanted {
			if s != e.good && (!e.gave[s] || at < 0 || e.gave[e.wanted[at]]) {
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
	if e.good == s {
		e.good = nil
	}
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

// drop forgets a name.
func (st *state) drop(e *entry) {
	for len(e.wanted) > 0 {
		st.unwant(e, len(e.wanted)-1)
	}
	delete(st.names, e.name)
}

// leave notes that nobody asks for a name any more.
func (st *state) leave(name string, now time.Time) {
	e := st.names[name]
	if e == nil {
		return
	}
	st.todo.save = st.todo.save || e.took
	e.fresh()
	if e.left.IsZero() {
		e.left = now
	}
}

// fresh is for an Envoy of which nothing is known.
func (e *entry) fresh() {
	e.given, e.refused, e.took, e.open, e.stands = form{}, form{}, false, 0, false
	e.deadline, e.overdue, e.offerAt = time.Time{}, false, time.Time{}
}

// acked notes that Envoy has taken what was given for a name.
func (st *state) acked(name string) {
	e := st.names[name]
	if e == nil {
		return
	}
	e.left = time.Time{} // it has asked
	if e.given == (form{}) {
		return
	}
	st.todo.save = st.todo.save || !e.took
	e.took, e.deadline, e.overdue = true, time.Time{}, false
	for _, s := range e.wanted {
		if s.digest == e.given.digest && s != e.good {
			e.good, st.todo.save = s, true
			break
		}
	}
}

// rejected notes that Envoy refused what was given. Where it has nothing else the stand-in
// follows; else it goes on with what it has.
func (st *state) rejected(name string, now time.Time) {
	e := st.names[name]
	if e == nil || e.given == (form{}) {
		return
	}
	e.refused, e.offerAt, e.open = e.given, now.Add(refusedPause), max(0, e.open-1)
	if !e.has() {
		st.todo.changed[name] = true
	}
}

// fetched ends the bringing of a module: it is here, or it is not.
func (st *state) fetched(s *source, m Module, why *Failure, now time.Time) {
	s.flying = false
	st.flying--
	switch {
	case len(s.users) == 0: // nobody waits any more
		if m != nil {
			st.todo.release = append(st.todo.release, m)
		}
	case why == nil:
		if s.problem != nil {
			st.tell(s, nil)
		}
		s.module, s.digest, s.problem, s.attempt, s.nextTry = m, m.Digest(), nil, 0, time.Time{}
		st.todo.save = true
		for e := range s.users {
			st.todo.changed[e.name] = true
		}
	default:
		st.failed(s, why, now)
	}
}

// failed notes why a module is not here, and when it is asked for again.
func (st *state) failed(s *source, why *Failure, now time.Time) {
	if s.digest != "" && why.Lost { // it was here once
		s.digest, s.nextTry, st.todo.save = "", now, true
		return
	}
	s.attempt++
	s.nextTry = now.Add(pause(s.attempt, why, s.request, st.chance()))
	news := s.problem == nil || s.problem.Error() != why.Problem.Error()
	s.problem = &why.Problem
	if news {
		st.tell(s, s.problem)
	}
}

func (st *state) tell(s *source, p *chandler.Problem) {
	st.todo.told = append(st.todo.told, notice{source: s, names: s.names(), problem: p, nextTry: s.nextTry})
}

// names are those of the resources that wait for a module.
func (s *source) names() []string {
	var names []string
	for e := range s.users {
		names = append(names, e.name)
	}
	slices.Sort(names)
	return names
}

// lost notes that the file of a module is gone, or corrupt. Envoy runs it from its memory
// meanwhile.
func (st *state) lost(d chandler.ModuleDigest) {
	for _, e := range st.names {
		for _, s := range e.wanted {
			if s.digest == d && s.module != nil {
				st.todo.release = append(st.todo.release, s.module)
				s.module, s.attempt, s.nextTry = nil, 0, time.Time{}
			}
		}
	}
}

// another is for another process of Envoy, which has asked for nothing yet.
func (st *state) another(now time.Time) {
	st.asking = time.Time{}
	for name := range st.names {
		st.leave(name, now)
	}
}

// step does what is due, and tells when something is next; zero: never.
func (st *state) step(now time.Time) (wake time.Time) {
	due := func(t time.Time) bool {
		if t.IsZero() || t.After(now) {
			if !t.IsZero() && (wake.IsZero() || t.Before(wake)) {
				wake = t
			}
			return false
		}
		return true
	}
	for _, name := range slices.Sorted(maps.Keys(st.names)) {
		e := st.names[name]
		if !e.left.IsZero() && !st.asking.IsZero() && due(later(e.left, st.asking).Add(keepLeft)) {
			st.drop(e)
			continue
		}
		if !e.overdue && due(e.deadline) {
			e.overdue, st.todo.changed[name] = true, true
		}
		if e.refused != (form{}) && !e.has() && due(e.offerAt) {
			e.refused, st.todo.changed[name] = form{}, true
		}
		for i := len(e.wanted) - 1; i > 0 && e.isSure(); i-- {
			if s := e.wanted[i]; s != e.good && due(later(e.asked[s], e.gaveAt).Add(keepLeft)) {
				st.unwant(e, i)
			}
		}
	}
	st.begin(due)
	return wake
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
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
			wanted := s.digest != "" || i == 0 && s.request != nil
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
