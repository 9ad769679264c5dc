// Package viewstore keeps on disk what an Envoy last took of its own control plane, so
// that it and its agent can start while that control plane is away.
//
// It keeps the views of internal/xds/relay, one file a type, and a set that names those
// which belong together: the set is replaced at once, when all that it names is there. So
// what is read is what Envoy had at one moment, of all types, whenever the machine stopped:
// never a listener of now with the routes of before. What changes often does not have the
// rest written. What cannot be read is told and set aside; what cannot be written is told,
// and leaves what was there before. It decides nothing about what is served.
//
//	store, views, problems, err := viewstore.Open(config)
//	e := edge.New(edge.Config{Remembered: views, Took: store.Changed, ...})
//	store.Run(ctx, e.Taken)
package viewstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/xds/relay"
)

const (
	// DefaultMaxBytes is the bound of a store that is given none.
	DefaultMaxBytes = 256 << 20
	// gather is how long after a change is written, with what comes meanwhile: an agent may
	// be killed soon after.
	gather = 50 * time.Millisecond
	// Pace is how often is written at most, however often something changes. Much is written
	// more seldom, so that it is no more than maxRate bytes a second, but for once in maxPause.
	Pace     = time.Second
	maxRate  = 1 << 20
	maxPause = 30 * time.Second // also between tries to write to a disk that takes nothing

	// patience is how long is waited in the end for what may belong together in a moment.
	patience = time.Second / 4

	maxFiles = 256 // types times protocols; Envoy knows a score of types
)

// Config is where views are kept. Zero values mean the default named with the field.
type Config struct {
	// FS and Dir are the directory, for this store and one control plane alone; FS is by
	// default the system's.
	FS  durable.FS
	Dir string
	// Source names whose resources they are. What was kept of another source is given all
	// the same, as View.Anew: its versions say nothing to the one of now.
	Source string
	// MaxBytes bounds all that is kept together; default DefaultMaxBytes. While a set is
	// replaced its changed files are there twice.
	MaxBytes int64
	Log      *slog.Logger
}

// Store keeps views. Changed and Problem may be called at any time, Run once.
type Store struct {
	cfg   Config
	dirty chan struct{} // of one: there is something to write

	mu      sync.Mutex
	problem *chandler.Problem

	// Of Run alone, once it runs:
	files map[string]*file // all that there are, by name
	there set              // in force
	// maybe is a set that may be in force all the same, though to write it failed; nil: none.
	maybe *set
	known map[kind]record  // what is written of each view
	aside map[string]int64 // sizes of those set aside
	next  time.Time        // when may be written again
	// failed are the rounds in a row in which the disk took something not.
	failed int
}

// file is a view's.
type file struct {
	size  int64
	whole bool // it is what its name says, for good
}

// kind is what there is one view of.
type kind struct {
	typeURL string
	delta   bool
}

// record is the file of a view, and its count of changes.
type record struct {
	name    string
	changes uint64
}

// Open gives the store and the views in it, in order of type. Files that cannot be read
// are told in problems, and set aside. The error is of a directory that cannot be used at
// all.
func Open(cfg Config) (s *Store, views []relay.View, problems []*chandler.Problem, err error) {
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, DefaultMaxBytes)
	if cfg.FS == nil {
		cfg.FS = durable.OS()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s = &Store{cfg: cfg, dirty: make(chan struct{}, 1), files: map[string]*file{}, known: map[kind]record{}, aside: map[string]int64{}}
	if err := durable.Mkdir(cfg.FS, cfg.Dir); err != nil {
		return nil, nil, nil, err
	}
	if err := durable.Sweep(cfg.FS, cfg.Dir); err != nil {
		return nil, nil, nil, err
	}
	if err := s.list(); err != nil {
		return nil, nil, nil, err
	}
	if s.there, err = s.readSet(); err != nil {
		s.there = set{source: cfg.Source}
		problems = append(problems, s.setAside(setName, maxSet, err))
	}
	isOther := s.there.source != cfg.Source
	for _, name := range slices.Sorted(maps.Keys(s.there.files)) {
		view, err := s.load(name)
		if err != nil {
			problems = append(problems, s.setAside(name, 0, err))
			continue
		}
		if isOther {
			view = view.Anew()
		}
		views = append(views, view)
	}
	slices.SortFunc(views, func(a, b relay.View) int { return cmp.Compare(a.Type, b.Type) })
	return s, views, problems, nil
}

// list notes which files there are.
func (s *Store) list() error {
	entries, err := s.cfg.FS.ReadDir(s.cfg.Dir)
	if err != nil {
		return fmt.Errorf("read %s: %w", s.cfg.Dir, err)
	}
	for _, e := range entries {
		name, size := e.Name(), int64(0)
		if st, err := e.Info(); err == nil {
			size = st.Size()
		}
		switch {
		case !e.Type().IsRegular():
		case strings.HasPrefix(name, aside+filePrefix), name == aside+setName:
			s.aside[name] = size
		case strings.HasPrefix(name, filePrefix):
			s.files[name] = &file{size: size}
		}
	}
	return nil
}

func (s *Store) readSet() (set, error) {
	text, err := durable.Read(s.cfg.FS, s.path(setName), maxSet)
	if errors.Is(err, fs.ErrNotExist) {
		return set{source: s.cfg.Source}, nil
	}
	if err != nil {
		return set{source: s.cfg.Source}, err
	}
	return decodeSet(text)
}

func (s *Store) load(name string) (relay.View, error) {
	text, err := durable.Read(s.cfg.FS, s.path(name), s.cfg.MaxBytes)
	if err != nil {
		return relay.View{}, err
	}
	view, sum, err := decode(text)
	if err != nil {
		return relay.View{}, err
	}
	if fileName(sum) != name {
		return relay.View{}, errors.New("it is of another name's content")
	}
	s.files[name] = &file{size: int64(len(text)), whole: true}
	s.known[kindOf(view)] = record{name, view.Changes}
	return view, nil
}

// setAside renames a file that cannot be read, in place of one before, and tells it.
func (s *Store) setAside(name string, size int64, why error) *chandler.Problem {
	if f := s.files[name]; f != nil {
		size = f.size
	}
	what := "it is set aside as " + aside + name
	if err := s.cfg.FS.Rename(s.path(name), s.path(aside+name)); err != nil {
		what = "it cannot be set aside: " + chandler.Printable(err.Error(), 256)
	} else {
		s.aside[aside+name] = size
		delete(s.files, name)
	}
	return chandler.Problemf(chandler.CodeDigestMismatch, "", "nothing is to be done: it is written anew when the control plane sends its type",
		"%s cannot be read, and what it keeps is not served without the control plane; %s: %s", s.path(name), what, chandler.Printable(why.Error(), 256))
}

func (s *Store) path(name string) string { return filepath.Join(s.cfg.Dir, name) }

func kindOf(v relay.View) kind { return kind{v.Type, v.Delta} }

// Changed says that there is something new to write.
func (s *Store) Changed() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// Problem tells why what Envoy has is not kept as it is now; nil: it is.
func (s *Store) Problem() *chandler.Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.problem
}

// Run writes what taken gives, in due time after each Changed, until ctx ends, and then
// once more. A time in its place is when to ask again at the latest: what there is now does
// not belong together. What is not there any more has its file removed.
func (s *Store) Run(ctx context.Context, taken func() ([]relay.View, time.Time)) {
	for {
		var due <-chan time.Time
		if wait := s.round(taken, time.Now()); wait > 0 {
			due = time.After(wait)
		}
		select {
		case <-ctx.Done():
			s.last(taken)
			return
		case <-due:
		case <-s.dirty:
			select {
			case <-ctx.Done():
			case <-time.After(gather):
			}
		}
	}
}

// last writes what there is in the end, unless that does not belong together.
func (s *Store) last(taken func() ([]relay.View, time.Time)) {
	for range 2 {
		s.next = time.Time{}
		wait := s.round(taken, time.Now())
		if wait == 0 || wait > patience {
			return
		}
		time.Sleep(wait) // it may in a moment
	}
}

// round writes if that is due, and tells how long until there is more to do; zero: nothing.
func (s *Store) round(taken func() ([]relay.View, time.Time), now time.Time) (wait time.Duration) {
	if now.Before(s.next) {
		return s.next.Sub(now)
	}
	views, until := taken()
	if !until.IsZero() {
		return max(until.Sub(now), gather)
	}
	written, p := s.write(views)
	s.tell(p)
	if p == nil {
		s.failed = 0
		if written > 0 {
			s.next = now.Add(min(max(time.Duration(written)*time.Second/maxRate, Pace), maxPause))
		}
		return 0
	}
	s.failed++
	wait = min(Pace<<min(s.failed, 16), maxPause)
	s.next = now.Add(wait)
	return wait
}

// tell notes what became of a round, and logs it when that is news.
func (s *Store) tell(p *chandler.Problem) {
	s.mu.Lock()
	before := s.problem
	s.problem = p
	s.mu.Unlock()
	switch {
	case p != nil && (before == nil || before.Error() != p.Error()):
		s.cfg.Log.Warn("resources are not kept for a start without the control plane", "error", p)
	case p == nil && before != nil:
		s.cfg.Log.Info("resources are kept again")
	}
}

// plan is a set that is to be in force.
type plan struct {
	set
	known map[kind]record
	fresh map[string]relay.View // by file, those that are to be written
	size  int64
}

// write has a set of views in force, all of it or nothing. It gives the bytes that it
// wrote.
func (s *Store) write(views []relay.View) (written int64, p *chandler.Problem) {
	if err := s.settle(); err != nil {
		return 0, unwritable(err)
	}
	next, err := s.plan(views)
	if err != nil {
		return 0, unwritable(err)
	}
	if len(next.fresh) == 0 && next.source == s.there.source && maps.Equal(next.files, s.there.files) {
		s.known = next.known
		if err := s.prune(s.there.files); err != nil { // of a round that failed
			return 0, unwritable(err)
		}
		return 0, nil
	}
	if p := s.makeRoom(next, views); p != nil {
		return 0, p
	}
	for _, name := range slices.Sorted(maps.Keys(next.fresh)) {
		if err := s.save(name, next.fresh[name]); err != nil {
			return written, unwritable(err)
		}
		written += s.files[name].size
	}
	text := next.encode()
	if err := durable.Write(s.cfg.FS, s.path(setName), text); err != nil {
		s.maybe = &next.set
		return written, unwritable(err)
	}
	written += int64(len(text))
	s.there, s.known = next.set, next.known
	if err := s.prune(s.there.files); err != nil {
		return written, unwritable(err)
	}
	return written, nil
}

// settle finds out which set is in force after one could not be written with certainty.
func (s *Store) settle() error {
	if s.maybe == nil {
		return nil
	}
	if err := s.cfg.FS.SyncDir(s.cfg.Dir); err != nil {
		return fmt.Errorf("sync directory %s: %w", s.cfg.Dir, err)
	}
	text, err := durable.Read(s.cfg.FS, s.path(setName), maxSet)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if string(text) == string(s.maybe.encode()) {
		s.there, s.known = *s.maybe, map[kind]record{}
	}
	s.maybe = nil
	return nil
}

// plan tells what is to be written for a set of views.
func (s *Store) plan(views []relay.View) (*plan, error) {
	p := &plan{set: set{s.cfg.Source, map[string]bool{}}, known: map[kind]record{}, fresh: map[string]relay.View{}}
	for _, v := range views {
		r, ok := s.known[kindOf(v)]
		if f := s.files[r.name]; ok && r.changes == v.Changes && f != nil && f.whole {
			p.size += f.size
		} else {
			var end seal
			size, err := encode(io.Discard, v, &end)
			if err != nil {
				return nil, err
			}
			p.size, r = p.size+size, record{fileName(end), v.Changes}
			if f := s.files[r.name]; f == nil || !f.whole {
				p.fresh[r.name] = v
			}
		}
		p.known[kindOf(v)], p.files[r.name] = r, true
	}
	return p, nil
}

// save writes a view's file.
func (s *Store) save(name string, v relay.View) error {
	f := &file{}
	s.files[name] = f // of a failure it may be there all the same
	p, err := durable.Create(s.cfg.FS, s.path(name))
	if err != nil {
		return err
	}
	defer p.Abort()
	var end seal
	if f.size, err = encode(p, v, &end); err != nil {
		return err
	}
	if err := p.Commit(); err != nil {
		return err
	}
	f.whole = true
	return nil
}

// prune removes the files of views that are in none of the sets.
func (s *Store) prune(sets ...map[string]bool) error {
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		if slices.ContainsFunc(sets, func(files map[string]bool) bool { return files[name] }) {
			continue
		}
		if err := durable.Remove(s.cfg.FS, s.path(name)); err != nil {
			return err
		}
		delete(s.files, name)
	}
	return nil
}

// makeRoom sees that a set may be written. What was set aside goes before it is not.
func (s *Store) makeRoom(next *plan, views []relay.View) *chandler.Problem {
	if next.size > s.cfg.MaxBytes || len(next.files) > maxFiles {
		n := 0
		for _, v := range views {
			n += v.Len()
		}
		return chandler.Problemf(chandler.CodeCacheFull, "", "give the agent more room for them, or let the control plane send less",
			"%s of %s in %d bytes do not fit: all that is kept for a start without the control plane may have %d bytes in %d files; what was kept before stays",
			chandler.Count(n, "resource", "resources"), chandler.Count(len(views), "type", "types"), next.size, s.cfg.MaxBytes, maxFiles)
	}
	if err := s.prune(s.there.files, next.files); err != nil {
		return unwritable(err)
	}
	all := next.size
	for _, n := range s.aside {
		all += n
	}
	for _, n := range slices.Sorted(maps.Keys(s.aside)) {
		if all <= s.cfg.MaxBytes && len(s.aside) <= maxFiles {
			break
		}
		if err := durable.Remove(s.cfg.FS, s.path(n)); err != nil {
			return unwritable(err)
		}
		all -= s.aside[n]
		delete(s.aside, n)
	}
	return nil
}

func unwritable(err error) *chandler.Problem {
	return chandler.Problemf(chandler.CodeCacheUnwritable, "", "make room on the disk and see that the agent may write there; it tries again",
		"the control plane's resources cannot be written: %s", chandler.Printable(err.Error(), 256))
}
