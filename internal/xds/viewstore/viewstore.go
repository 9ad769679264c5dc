// Package viewstore keeps on disk what an Envoy last took of its own control plane, so
// that it and its agent can start while that control plane is away.
//
// It keeps the views of internal/xds/relay, one file a type, each the old one or the new
// one, whole: what changes often does not have the rest written. What cannot be read is
// told and set aside; what cannot be written is told, and leaves what was there before. It
// decides nothing about what is served.
//
//	store, views, problems, err := viewstore.Open(config)
//	e := edge.New(edge.Config{Remembered: views, Took: store.Changed, ...})
//	store.Run(ctx, e.Views)
package viewstore

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
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
	// Pace is how often a file is written at most, however often something changes. A large
	// one is written more seldom, so that it is no more than maxRate bytes a second, but for
	// once in maxPause.
	Pace     = time.Second
	maxRate  = 1 << 20
	maxPause = 30 * time.Second // also between tries to write to a disk that takes nothing

	maxFiles = 256 // types times protocols; Envoy knows a score of types
)

// A file is a line that names the format, the view, and SHA-256 of both. Another format's
// files have other names and stay beside them, for the agent that wrote them.
const (
	magic      = "chandler view 2\n"
	filePrefix = "view-2-"
	// aside begins the name of one that could not be read.
	aside = "damaged-"
)

// Config is where views are kept. Zero values mean the default named with the field.
type Config struct {
	// FS and Dir are the directory, for this store and one control plane alone; FS is by
	// default the system's.
	FS  durable.FS
	Dir string
	// MaxBytes bounds all files together; default DefaultMaxBytes.
	MaxBytes int64
	Log      *slog.Logger
}

// Store keeps views. Changed and Problems may be called at any time, Run once.
type Store struct {
	cfg   Config
	dirty chan struct{} // of one: there is something to write

	mu       sync.Mutex
	problems map[string]*chandler.Problem // by the name of the file

	// Of Run alone, once it runs:
	files  map[string]*file // by name
	aside  map[string]int64 // sizes of those set aside
	failed int              // rounds in a row in which the disk took something not
}

// file is one view's.
type file struct {
	size    int64
	sum     [sha256.Size]byte // of what is in it; zero: unknown
	changes uint64            // of the view that was written
	next    time.Time         // when it may be written again
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
	s = &Store{cfg: cfg, dirty: make(chan struct{}, 1), problems: map[string]*chandler.Problem{}, files: map[string]*file{}, aside: map[string]int64{}}
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
		name, size := e.Name(), int64(0)
		if st, err := e.Info(); err == nil {
			size = st.Size()
		}
		switch {
		case !e.Type().IsRegular():
		case strings.HasPrefix(name, aside+filePrefix):
			s.aside[name] = max(size, s.aside[name])
		case strings.HasPrefix(name, filePrefix):
			view, err := s.load(name)
			if err != nil {
				problems = append(problems, s.setAside(name, size, err))
				continue
			}
			views = append(views, view)
		}
	}
	slices.SortFunc(views, func(a, b relay.View) int { return cmp.Compare(a.Type, b.Type) })
	return s, views, problems, nil
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
	if nameOf(view) != name {
		return relay.View{}, errors.New("it is of another name's content")
	}
	s.files[name] = &file{size: int64(len(text)), sum: sum}
	return view, nil
}

// setAside renames a file that cannot be read, in place of one before, and tells it.
func (s *Store) setAside(name string, size int64, why error) *chandler.Problem {
	what := "it is set aside as " + aside + name
	if err := s.cfg.FS.Rename(s.path(name), s.path(aside+name)); err != nil {
		what = "it cannot be set aside: " + chandler.Printable(err.Error(), 256)
	} else {
		s.aside[aside+name] = size
	}
	return chandler.Problemf(chandler.CodeDigestMismatch, "", "nothing is to be done: it is written anew when the control plane sends its type",
		"%s cannot be read, and what it keeps is not served without the control plane; %s: %s", s.path(name), what, chandler.Printable(why.Error(), 256))
}

func (s *Store) path(name string) string { return filepath.Join(s.cfg.Dir, name) }

func nameOf(v relay.View) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%v", v.Type, v.Delta))
	return filePrefix + hex.EncodeToString(sum[:12])
}

// Changed says that there is something new to write.
func (s *Store) Changed() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// Problems tells what is not kept as it is now.
func (s *Store) Problems() []*chandler.Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*chandler.Problem
	for _, name := range slices.Sorted(maps.Keys(s.problems)) {
		list = append(list, s.problems[name])
	}
	return list
}

// Run writes what views gives, in due time after each Changed, until ctx ends, and then
// once more. A view that is not there any more has its file removed.
func (s *Store) Run(ctx context.Context, views func() []relay.View) {
	for {
		var due <-chan time.Time
		if wait := s.write(views(), time.Now()); wait > 0 {
			due = time.After(wait)
		}
		select {
		case <-ctx.Done():
			s.write(views(), time.Time{})
			return
		case <-due:
		case <-s.dirty:
		}
		select {
		case <-ctx.Done():
		case <-time.After(Pace):
		}
	}
}

// write writes what changed and is due, all at the time zero, and tells how long until
// there is more to do; zero: nothing.
func (s *Store) write(views []relay.View, now time.Time) (wait time.Duration) {
	there := map[string]relay.View{}
	for _, v := range views {
		there[nameOf(v)] = v
	}
	failed := false
	for _, name := range slices.Sorted(maps.Keys(s.files)) { // what goes makes room for what comes
		if _, ok := there[name]; !ok {
			p := s.drop(name)
			s.tell(name, "", p)
			failed = failed || p != nil
		}
	}
	for _, name := range slices.Sorted(maps.Keys(there)) {
		v, f := there[name], s.files[name]
		if f != nil && f.sum != [sha256.Size]byte{} && f.changes == v.Changes {
			s.tell(name, v.Type, nil)
			continue
		}
		if f != nil && !now.IsZero() && now.Before(f.next) {
			wait = sooner(wait, f.next.Sub(now))
			continue
		}
		p := s.save(name, v, now)
		s.tell(name, v.Type, p)
		failed = failed || p != nil
	}
	if !failed {
		s.failed = 0
		return wait
	}
	s.failed++
	return sooner(wait, min(Pace<<min(s.failed, 16), maxPause))
}

func sooner(a, b time.Duration) time.Duration {
	if a == 0 {
		return b
	}
	return min(a, b)
}

// tell notes what became of a view, and logs it when that is news.
func (s *Store) tell(name, typeURL string, p *chandler.Problem) {
	s.mu.Lock()
	before := s.problems[name]
	if p == nil {
		delete(s.problems, name)
	} else {
		s.problems[name] = p
	}
	s.mu.Unlock()
	switch {
	case p != nil && (before == nil || before.Error() != p.Error()):
		s.cfg.Log.Warn("resources are not kept for a start without the control plane", "type", typeURL, "error", p)
	case p == nil && before != nil:
		s.cfg.Log.Info("resources are kept again", "type", typeURL)
	}
}

func (s *Store) drop(name string) *chandler.Problem {
	if err := durable.Remove(s.cfg.FS, s.path(name)); err != nil {
		return unwritable(err)
	}
	delete(s.files, name)
	return nil
}

// save writes a view, unless that is what its file has.
func (s *Store) save(name string, v relay.View, now time.Time) *chandler.Problem {
	var end seal
	size, err := encode(io.Discard, v, &end)
	if err != nil {
		return unwritable(err)
	}
	f := s.files[name]
	if f != nil && f.sum == end {
		f.changes = v.Changes
		return nil
	}
	if p := s.makeRoom(name, v, size); p != nil {
		return p
	}
	p, err := durable.Create(s.cfg.FS, s.path(name))
	if err != nil {
		return unwritable(err)
	}
	defer p.Abort()
	if _, err := encode(p, v, &end); err != nil {
		return unwritable(err)
	}
	if f == nil {
		f = &file{}
		s.files[name] = f
	}
	if err := p.Commit(); err != nil {
		// It may be there all the same, so that neither is known to be.
		f.sum, f.size = seal{}, max(size, f.size)
		return unwritable(err)
	}
	pause := min(max(time.Duration(size)*time.Second/maxRate, Pace), maxPause)
	*f = file{size: size, sum: end, changes: v.Changes, next: now.Add(pause)}
	return nil
}

// makeRoom sees that a view may be written. What was set aside goes before it is not.
func (s *Store) makeRoom(name string, v relay.View, size int64) *chandler.Problem {
	all, files := size, 1
	for n, f := range s.files {
		if n != name {
			all, files = all+f.size, files+1
		}
	}
	if all > s.cfg.MaxBytes || files > maxFiles {
		return chandler.Problemf(chandler.CodeCacheFull, "", "give the agent more room for them, or let the control plane send less",
			"%s of type %s in %d bytes do not fit: all that is kept for a start without the control plane may have %d bytes in %d files",
			chandler.Count(v.Len(), "resource", "resources"), chandler.Quote(v.Type), size, s.cfg.MaxBytes, maxFiles)
	}
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

// seal is what stands at the end of a file.
type seal = [sha256.Size]byte

// hashing writes on, and hashes.
type hashing struct {
	hash.Hash
	to io.Writer
}

func (h hashing) Write(b []byte) (int, error) {
	_, _ = h.Hash.Write(b) // a hash takes everything
	return h.to.Write(b)
}

// encode writes a view's file, and gives its size and its end.
func encode(to io.Writer, v relay.View, end *seal) (int64, error) {
	w := hashing{sha256.New(), to}
	if _, err := io.WriteString(w, magic); err != nil {
		return 0, err
	}
	n, err := v.WriteTo(w)
	if err != nil {
		return 0, err
	}
	w.Sum(end[:0])
	_, err = to.Write(end[:])
	return int64(len(magic)) + n + sha256.Size, err
}

// decode reads a view's file.
func decode(text []byte) (v relay.View, sum seal, err error) {
	end := len(text) - sha256.Size
	if end < 0 || sha256.Sum256(text[:end]) != seal(text[end:]) {
		return v, sum, errors.New("it is not whole")
	}
	content, ok := bytes.CutPrefix(text[:end], []byte(magic))
	if !ok {
		return v, sum, errors.New("it is of another format")
	}
	v, err = relay.ReadView(content)
	return v, seal(text[end:]), err
}
