package remotewasm

import (
	"cmp"
	"crypto/sha256"
	"maps"
	"slices"
	"strings"
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
	// maxModules are those that one resource names. Only listeners name more than one.
	maxModules = 64
	// maxWanted are the modules that are kept for each that a resource names now: what was in
	// force, and what other streams say under the same name.
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

// form is one way in which a resource is given to Envoy with its modules. One in which
// stand-ins are in all places is the zero form.
type form struct {
	body    hash
	modules string // the digests of those in it, each with a space before
	whole   bool   // none is missing
}

// formOf gives the form of a resource with what is here of what it names.
func formOf(body hash, sources []*source) form {
	f := form{body: body, whole: true}
	for _, s := range sources {
		if s.ready() {
			f.modules += " " + string(s.digest)
			continue
		}
		f.modules, f.whole = f.modules+" ", false
	}
	if strings.TrimSpace(f.modules) == "" {
		return form{}
	}
	return f
}

// has says that a module is in the form.
func (f form) has(d chandler.ModuleDigest) bool {
	return d != "" && slices.Contains(strings.Fields(f.modules), string(d))
}

// entry is one resource, by its name.
type entry struct {
	name   string
	wanted []*source             // those asked for last first
	now    int                   // so many of them the resource names now
	asked  map[*source]time.Time // when last, of all that are wanted
	gave   map[*source]bool      // those that Envoy was given
	good   map[*source]bool      // of what Envoy took last

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

// give decides what Envoy gets for a resource: the local form with the paths of the modules;
// one in which a stand-in is where there is no path; or for now nothing.
func (st *state) give(name string, r *attach.Remote, patience time.Duration, now time.Time) (paths []string, what answer) {
	if st.asking.IsZero() {
		st.asking = now
	}
	var e *entry
	if len(r.Wasm) <= maxModules {
		e = st.entry(name)
	}
	if e == nil {
		return nil, standIn
	}
	sources := st.askAll(e, r, now)
	if body := hash(sha256.Sum256(r.Discreet().GetValue())); body != e.body {
		e.body, e.since, e.counted = body, now, false
	}
	f := formOf(e.body, sources)
	switch {
	case f.whole && (e.has() || e.refused != f):
		if e.given != f {
			e.open, e.gaveAt = e.open+1, now
		}
		return e.gives(f, sources), local
	case e.has():
		return nil, held
	case f != (form{}) && e.refused == f:
		f = form{}
	case e.deadline.IsZero():
		e.deadline = now.Add(patience)
		return nil, held
	case now.Before(e.deadline):
		return nil, held
	}
	e.overdue = true
	return e.gives(f, sources), standIn
}

// gives notes what Envoy is given, and tells where the modules in it are.
func (e *entry) gives(f form, sources []*source) (paths []string) {
	e.given, e.stands = f, !f.whole
	if f == (form{}) {
		return nil
	}
	for _, s := range sources {
		path := ""
		if s.ready() {
			path, e.gave[s] = s.module.Path(), true
		}
		paths = append(paths, path)
	}
	return paths
}

// has says that Envoy runs a module for the name, as far as is known: it takes what it is
// given unless it says otherwise.
func (e *entry) has() bool { return e.took || e.open > 0 }

// isSure says that what Envoy has a module of is known: the last form that it was given,
// unless it refused that. An answer comes without a word on what it is to, so that of some
// that were given in a row any may be in force once one was refused.
func (e *entry) isSure() bool {
	return !e.has() || e.given.whole && e.given != e.refused
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
		e = newEntry(name)
		st.names[name] = e
	}
	e.left = time.Time{}
	return e
}

func newEntry(name string) *entry {
	return &entry{name: name, asked: map[*source]time.Time{}, gave: map[*source]bool{}, good: map[*source]bool{}}
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
	if !e.given.whole {
		return
	}
	st.todo.save = st.todo.save || !e.took
	e.took, e.deadline, e.overdue = true, time.Time{}, false
	good, found := map[*source]bool{}, map[chandler.ModuleDigest]bool{}
	for _, s := range e.wanted {
		if e.given.has(s.digest) && !found[s.digest] {
			good[s], found[s.digest] = true, true
		}
	}
	if len(good) > 0 && !maps.Equal(good, e.good) {
		e.good, st.todo.save = good, true
	}
}

// rejected notes that Envoy refused what was given. Where it has nothing else the stand-in
// follows; else it goes on with what it has.
func (st *state) rejected(name string, now time.Time) {
	e := st.names[name]
	if e == nil || e.given == (form{}) {
		return
	}
	e.refused, e.offerAt = e.given, now.Add(refusedPause)
	if e.given.whole {
		e.open = max(0, e.open-1)
	}
	if !e.has() {
		st.todo.changed[name] = true
	}
}

// spared notes that Envoy refused what was given for another reason than its modules.
func (st *state) spared(name string) {
	e := st.names[name]
	if e == nil || !e.given.whole || e.took {
		return
	}
	e.given, e.open = form{}, max(0, e.open-1)
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
		for i := len(e.wanted) - 1; i >= max(1, e.now) && e.isSure(); i-- {
			if s := e.wanted[i]; !e.good[s] && due(later(e.asked[s], e.gaveAt).Add(keepLeft)) {
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
