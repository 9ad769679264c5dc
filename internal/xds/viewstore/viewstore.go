// Package viewstore keeps on disk what a control plane of somebody else's last sent and
// an Envoy took, so that an Envoy and its agent can start while that control plane is
// away.
//
// It is a store of opaque bytes, one file a type, each the old one or the new one,
// whole. What cannot be read is told and left out; what cannot be written is told, and
// leaves what was there before. It decides nothing about what is served.
package viewstore

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
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
)

const (
	// DefaultMaxBytes is the bound of a store that is given none.
	DefaultMaxBytes = 256 << 20
	// Pace is how often is written at most, however often something changes.
	Pace = time.Second

	maxPause = 30 * time.Second // between tries to write to a disk that takes nothing
	maxViews = 256              // types times control planes; Envoy knows a score of types
)

// Resource is one as the control plane sent it.
type Resource struct {
	Name, Version string
	// Body is its message, in bytes that nobody changes any more.
	Body []byte
}

// View is all that one control plane has sent of one type.
type View struct {
	// Source is the control plane, by a name that stays the same.
	Source string
	// Type is the type URL.
	Type      string
	Resources []Resource
}

type key struct{ source, typeURL string }

// Config is where views are kept. Zero values mean the default named with the field.
type Config struct {
	// FS and Dir are the directory, for this store alone; FS is by default the system's.
	FS  durable.FS
	Dir string
	// MaxBytes bounds all files together; default DefaultMaxBytes.
	MaxBytes int64
	Log      *slog.Logger
}

// Store keeps views. Its methods may be called at any time, Run once.
type Store struct {
	cfg   Config
	dirty chan struct{} // of one: there is something to write

	mu       sync.Mutex
	waiting  map[key]*View // nil: to be dropped
	problems map[key]*chandler.Problem

	// Of Run alone, once it runs:
	saved  map[key][sha256.Size]byte // what is in the files
	sizes  map[string]int64          // of the files, by name
	failed bool                      // the disk takes nothing
}

// Open gives the store and the views in it, in order of source and type. Files that
// cannot be read are told in problems, and stay until their type is put anew. The error
// is of a directory that cannot be used at all.
func Open(cfg Config) (s *Store, views []View, problems []*chandler.Problem, err error) {
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, DefaultMaxBytes)
	if cfg.FS == nil {
		cfg.FS = durable.OS()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s = &Store{
		cfg: cfg, dirty: make(chan struct{}, 1), waiting: map[key]*View{}, problems: map[key]*chandler.Problem{},
		saved: map[key][sha256.Size]byte{}, sizes: map[string]int64{},
	}
	if err := durable.Mkdir(cfg.FS, cfg.Dir); err != nil {
		return nil, nil, nil, err
	}
	if err := durable.Sweep(cfg.FS, cfg.Dir); err != nil {
		return nil, nil, nil, err
	}
	entries, err := cfg.FS.ReadDir(cfg.Dir)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read %s: %w", cfg.Dir, err)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || !strings.HasPrefix(e.Name(), filePrefix) {
			continue // another format's
		}
		view, err := s.load(e)
		if err != nil {
			problems = append(problems, chandler.Problemf(chandler.CodeDigestMismatch, "", "nothing is to be done: it is written anew when the control plane sends its type",
				"%s cannot be read, and what it keeps is left out: %s", filepath.Join(cfg.Dir, e.Name()), chandler.Printable(err.Error(), 256)))
			continue
		}
		views = append(views, view)
	}
	slices.SortFunc(views, func(a, b View) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Type, b.Type))
	})
	return s, views, problems, nil
}

func (s *Store) load(e fs.DirEntry) (View, error) {
	if st, err := e.Info(); err == nil {
		s.sizes[e.Name()] = st.Size()
	}
	text, err := durable.Read(s.cfg.FS, filepath.Join(s.cfg.Dir, e.Name()), s.cfg.MaxBytes)
	if err != nil {
		return View{}, err
	}
	view, sum, err := decode(text)
	if err != nil {
		return View{}, err
	}
	k := key{view.Source, view.Type}
	if k.file() != e.Name() {
		return View{}, errors.New("it is of another name's content")
	}
	s.saved[k], s.sizes[e.Name()] = sum, int64(len(text))
	return view, nil
}

// filePrefix begins the names of this format's files: another one's stay beside them,
// for the agent that wrote them.
const filePrefix = "view-1-"

func (k key) file() string {
	sum := sha256.Sum256([]byte(k.source + "\x00" + k.typeURL))
	return filePrefix + hex.EncodeToString(sum[:12])
}

// Put keeps a view in place of the one before of its source and type. It is written in
// due time by Run; of several views that wait the newest is.
func (s *Store) Put(v View) { s.wait(key{v.Source, v.Type}, &v) }

// Drop forgets a view, for instance of a control plane that is no more.
func (s *Store) Drop(source, typeURL string) { s.wait(key{source, typeURL}, nil) }

func (s *Store) wait(k key, v *View) {
	s.mu.Lock()
	s.waiting[k] = v
	s.mu.Unlock()
	s.wake()
}

// wake lets Run write.
func (s *Store) wake() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// Problems tells what is not kept as it is now, in order of source and type.
func (s *Store) Problems() []*chandler.Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*chandler.Problem
	for _, k := range slices.SortedFunc(maps.Keys(s.problems), compare) {
		list = append(list, s.problems[k])
	}
	return list
}

func compare(a, b key) int {
	return cmp.Or(cmp.Compare(a.source, b.source), cmp.Compare(a.typeURL, b.typeURL))
}

// Run writes what is put until ctx ends, and then once more what still waits.
func (s *Store) Run(ctx context.Context) {
	pause := Pace
	for {
		select {
		case <-ctx.Done():
			s.write()
			return
		case <-s.dirty:
		}
		s.write()
		pause = min(2*pause, maxPause)
		if !s.failed {
			pause = Pace
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// write writes all that waits; what cannot be written waits on.
func (s *Store) write() {
	s.mu.Lock()
	waiting := s.waiting
	s.waiting = map[key]*View{}
	s.mu.Unlock()
	s.failed = false
	// What goes makes room for what comes.
	order := slices.SortedFunc(maps.Keys(waiting), func(a, b key) int {
		if (waiting[a] == nil) != (waiting[b] == nil) {
			if waiting[a] == nil {
				return -1
			}
			return 1
		}
		return compare(a, b)
	})
	for _, k := range order {
		err := s.save(k, waiting[k])
		s.tell(k, err)
		if err == nil {
			continue
		}
		s.mu.Lock()
		if _, newer := s.waiting[k]; !newer {
			s.waiting[k] = waiting[k]
		}
		s.mu.Unlock()
		if err.Code != chandler.CodeCacheFull { // that only another change can mend
			s.failed = true
			s.wake()
		}
	}
}

// tell notes what became of a view, and logs it when that is news.
func (s *Store) tell(k key, p *chandler.Problem) {
	s.mu.Lock()
	before := s.problems[k]
	if p == nil {
		delete(s.problems, k)
	} else {
		s.problems[k] = p
	}
	s.mu.Unlock()
	switch {
	case p != nil && (before == nil || before.Error() != p.Error()):
		s.cfg.Log.Warn("a control plane's resources are not kept for a start without it", "source", k.source, "type", k.typeURL, "error", p)
	case p == nil && before != nil:
		s.cfg.Log.Info("a control plane's resources are kept again", "source", k.source, "type", k.typeURL)
	}
}

func (s *Store) save(k key, v *View) *chandler.Problem {
	name := k.file()
	path := filepath.Join(s.cfg.Dir, name)
	if v == nil {
		if err := durable.Remove(s.cfg.FS, path); err != nil {
			return unwritable(err)
		}
		delete(s.saved, k)
		delete(s.sizes, name)
		return nil
	}
	v = sorted(v)
	size, sum := measure(v)
	if before, ok := s.saved[k]; ok && before == sum {
		return nil
	}
	all := size - s.sizes[name]
	for _, n := range s.sizes {
		all += n
	}
	if _, known := s.sizes[name]; all > s.cfg.MaxBytes || !known && len(s.sizes) >= maxViews {
		return chandler.Problemf(chandler.CodeCacheFull, "", "give the agent more room for them, or let the control plane send less",
			"%s of type %s in %d bytes do not fit: all that is kept for a start without the control plane may have %d bytes in %d files",
			chandler.Count(len(v.Resources), "resource", "resources"), chandler.Quote(k.typeURL), size, s.cfg.MaxBytes, maxViews)
	}
	p, err := durable.Create(s.cfg.FS, path)
	if err != nil {
		return unwritable(err)
	}
	defer p.Abort()
	if err := encode(p, v); err != nil {
		return unwritable(err)
	}
	if err := p.Commit(); err != nil {
		// It may be there all the same, so that neither is known to be.
		delete(s.saved, k)
		s.sizes[name] = max(size, s.sizes[name])
		return unwritable(err)
	}
	s.saved[k], s.sizes[name] = sum, size
	return nil
}

func unwritable(err error) *chandler.Problem {
	return chandler.Problemf(chandler.CodeCacheUnwritable, "", "make room on the disk and see that the agent may write there; it tries again",
		"the control plane's resources cannot be written: %s", chandler.Printable(err.Error(), 256))
}
