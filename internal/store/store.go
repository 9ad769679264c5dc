// Package store keeps module files on disk by the digest of their content. The
// control plane and every agent have one; Envoy reads modules from its paths.
//
// What is in it is whole: bytes are hashed while they are written and committed
// through package durable, and an entry from an earlier run is hashed again
// before its first use. What does not match its name is put into quarantine and
// is absent from then on. The store stays within its budget by dropping what was
// used longest ago, never what is leased. It fetches nothing and does not look
// into modules.
package store

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
)

// The limits of a Config that names none.
const (
	DefaultMaxModule = 64 << 20
	DefaultMaxBytes  = 2 << 30
)

const (
	suffix = ".wasm"
	// quarantineDir holds the last few files that did not match their names, for
	// people to look at; they are not part of the budget.
	quarantineDir  = "quarantine"
	maxQuarantined = 4
	// touchEvery bounds how often a use is noted on disk. The note only orders
	// what is dropped first after a restart.
	touchEvery = time.Hour
	bufferSize = 128 << 10
)

// Config says where a store is and how large it may grow. Only Dir is required.
type Config struct {
	// Dir is made if need be, mode 0700, also when it was removed meanwhile, and used by
	// one store at a time.
	Dir string
	// FS is the operating system's when nil.
	FS durable.FS
	// MaxModule limits one module and MaxBytes all of them together, those being
	// written included, in bytes; zero means the defaults.
	MaxModule, MaxBytes int64
	// Now is the clock, time.Now when nil.
	Now func() time.Time
	// Log is told of entries put into quarantine; nil is silence.
	Log *slog.Logger
}

// Store is a directory of modules. It is safe for concurrent use.
type Store struct {
	Config
	lock *durable.DirLock
	busy keyed // one check or commit of a digest at a time

	mu      sync.Mutex
	entries map[chandler.ModuleDigest]*entry
	bytes   int64 // of entries
	pending int64 // being written
	evicted uint64
	closed  bool
}

// entry is a file of the store. Its fields but size are guarded by Store.mu.
type entry struct {
	size     int64 // never changes
	verified bool  // hashed since Open, or written since
	leases   int
	used     time.Time
	noted    time.Time // the time of use that is on disk
}

// Open takes the directory, clears what a crash left behind and lists what is
// there; nothing is hashed yet. A directory that another store holds is a
// *chandler.Problem with code CacheLocked, one that cannot be used is
// CacheUnwritable.
func Open(cfg Config) (*Store, error) {
	if cfg.FS == nil {
		cfg.FS = durable.OS()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.MaxModule = cmp.Or(cfg.MaxModule, DefaultMaxModule)
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, DefaultMaxBytes)
	dir, err := filepath.Abs(cfg.Dir) // Envoy's working directory is another one
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	cfg.Dir = dir
	lock, err := durable.LockOn(cfg.FS, dir)
	if err != nil {
		return nil, err
	}
	s := &Store{Config: cfg, lock: lock, entries: map[chandler.ModuleDigest]*entry{}}
	if err := s.load(); err != nil {
		_ = lock.Unlock()
		return nil, unwritable(dir, err)
	}
	return s, nil
}

// load lists the directory. Files of other names are left alone: a newer version
// may have put them there.
func (s *Store) load() error {
	if err := durable.Sweep(s.FS, s.Dir); err != nil {
		return err
	}
	list, err := Read(s.FS, s.Dir)
	if err != nil {
		return err
	}
	now := s.Now()
	for _, e := range list {
		// How long ago, and from then on the clock of this run: what a clock set
		// to next year once left on disk does not stay the newest for a year.
		age := max(0, now.Sub(e.Used))
		s.entries[e.Digest] = &entry{size: e.Size, used: now.Add(-age), noted: e.Used}
		s.bytes += e.Size
	}
	return nil
}

// Read lists the modules in a directory, the one used last first, without taking
// it: a store may be at work there, whose leases are not seen. Used is right to
// the hour.
func Read(fsys durable.FS, dir string) ([]Entry, error) {
	files, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var list []Entry
	for _, f := range files {
		hex, ok := strings.CutSuffix(f.Name(), suffix)
		if !ok || !chandler.IsSHA256Hex(hex) || !f.Type().IsRegular() {
			continue
		}
		st, err := f.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // dropped meanwhile
		}
		if err != nil {
			return nil, err
		}
		list = append(list, Entry{Digest: chandler.ModuleDigest("sha256:" + hex), Size: st.Size(), Used: st.ModTime()})
	}
	slices.SortFunc(list, Entry.compare)
	return list, nil
}

// Close gives the directory back. Later calls fail with fs.ErrClosed; files stay
// where they are.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return s.lock.Unlock()
}

// Has tells whether there is an entry. It may turn out corrupt when it is
// acquired.
func (s *Store) Has(d chandler.ModuleDigest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entries[d] != nil
}

// Stats tells how many modules there are and their size together.
func (s *Store) Stats() (entries int, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.entries), s.bytes
}

// Evictions tells how many modules were dropped for want of room since Open.
func (s *Store) Evictions() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.evicted
}

// Entry is one module as it is listed.
type Entry struct {
	Digest chandler.ModuleDigest
	Size   int64
	Used   time.Time
	Leased bool
}

// compare puts what was used last first.
func (e Entry) compare(o Entry) int {
	return cmp.Or(o.Used.Compare(e.Used), cmp.Compare(e.Digest, o.Digest))
}

// List gives all modules, the one used last first.
func (s *Store) List() []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Entry, 0, len(s.entries))
	for d, e := range s.entries {
		list = append(list, Entry{d, e.size, e.used, e.leases > 0})
	}
	slices.SortFunc(list, Entry.compare)
	return list
}

// Lease keeps an entry from being dropped until Release.
type Lease struct {
	store   *Store
	digest  chandler.ModuleDigest
	size    int64
	entry   *entry
	release sync.Once
}

// Acquire leases an entry. One that was not used since Open is hashed first, and
// what is corrupt, unreadable or gone is absent: errors.Is(err, fs.ErrNotExist).
// Any other error says nothing of the entry.
func (s *Store) Acquire(d chandler.ModuleDigest) (*Lease, error) {
	l, err := s.pin(d)
	if err != nil {
		return nil, err
	}
	if !s.intact(l) {
		unlock := s.busy.lock(d)
		err = s.check(l, false)
		unlock()
	}
	if err != nil {
		l.Release()
		return nil, err
	}
	s.use(l)
	return l, nil
}

// Verify hashes an entry again, whether it is in use or not. A corrupt one goes
// into quarantine, also from under its leases, and the answer is that of Acquire.
func (s *Store) Verify(d chandler.ModuleDigest) error {
	l, err := s.pin(d)
	if err != nil {
		return err
	}
	defer l.Release()
	defer s.busy.lock(d)()
	return s.check(l, true)
}

// pin leases what is listed, unseen.
func (s *Store) pin(d chandler.ModuleDigest) (*Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("module %s: %w", d, fs.ErrClosed)
	}
	e := s.entries[d]
	if e == nil {
		return nil, absent(d)
	}
	e.leases++
	return &Lease{store: s, digest: d, size: e.size, entry: e}, nil
}

// intact tells whether a pinned entry was hashed before and still is there as
// far as can be seen from outside.
func (s *Store) intact(l *Lease) bool {
	s.mu.Lock()
	verified := l.entry.verified
	s.mu.Unlock()
	st, err := s.FS.Stat(l.Path())
	return verified && err == nil && st.Size() == l.size
}

// check makes sure that a pinned entry is what its name says: by its size, and
// by its hash when it was not hashed yet or when again is set. The digest is
// locked, so that no commit replaces the file meanwhile.
func (s *Store) check(l *Lease, again bool) error {
	s.mu.Lock()
	there, verified := s.entries[l.digest] == l.entry, l.entry.verified
	s.mu.Unlock()
	if !there { // dropped by whoever checked it before
		return absent(l.digest)
	}
	st, err := s.FS.Stat(l.Path())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.drop(l)
		return absent(l.digest)
	case err != nil:
		return fmt.Errorf("look for module %s: %w", l.digest, err)
	case st.Size() != l.size:
		return s.quarantine(l, st.Size(), fmt.Sprintf("it has %d bytes instead of %d", st.Size(), l.size))
	case verified && !again:
		return nil
	}
	f, err := s.FS.Open(l.Path())
	if err != nil {
		return fmt.Errorf("open module %s: %w", l.digest, err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(h, onlyRead{f}, make([]byte, bufferSize)); err != nil {
		return s.quarantine(l, l.size, chandler.Printable(err.Error(), 256))
	}
	if got := chandler.DigestOf[chandler.ModuleDigest](h.Sum(nil)); got != l.digest {
		return s.quarantine(l, l.size, "its content is "+string(got))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l.entry.verified = true
	return nil
}

// use notes that an entry was used now, on disk only now and then.
func (s *Store) use(l *Lease) {
	now := s.Now()
	s.mu.Lock()
	l.entry.used = now
	note := now.Sub(l.entry.noted).Abs() > touchEvery
	if note {
		l.entry.noted = now
	}
	s.mu.Unlock()
	if note {
		_ = s.FS.Touch(l.Path(), now) // the order of dropping is worth no failure
	}
}

// quarantine takes a corrupt entry out of the store; the digest is locked. A file
// that is larger than any module may be is removed.
func (s *Store) quarantine(l *Lease, size int64, why string) error {
	s.drop(l)
	s.Log.Error("module in the store is corrupt and was put into quarantine", "module", l.digest, "why", why)
	dir := filepath.Join(s.Dir, quarantineDir)
	kept := size <= s.MaxModule && durable.Mkdir(s.FS, dir) == nil && s.roomInQuarantine(dir) &&
		s.FS.Rename(l.Path(), filepath.Join(dir, l.digest.Hex()+suffix)) == nil
	if !kept {
		// If even that fails the file is hashed once more after the next Open, and
		// replaced when the module is fetched again.
		_ = s.FS.Remove(l.Path())
	}
	return absent(l.digest)
}

func (s *Store) roomInQuarantine(dir string) bool {
	files, err := s.FS.ReadDir(dir)
	if err != nil {
		return false
	}
	for len(files) >= maxQuarantined { // any one will do
		if s.FS.Remove(filepath.Join(dir, files[0].Name())) != nil {
			return false
		}
		files = files[1:]
	}
	return true
}

// drop forgets a pinned entry if it still is listed.
func (s *Store) drop(l *Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries[l.digest] == l.entry {
		delete(s.entries, l.digest)
		s.bytes -= l.entry.size
	}
}

// Digest gives the digest of the leased module.
func (l *Lease) Digest() chandler.ModuleDigest { return l.digest }

// Path gives the absolute path of the module's file.
func (l *Lease) Path() string { return l.store.path(l.digest) }

// Size gives the size of the module in bytes.
func (l *Lease) Size() int64 { return l.size }

// Open opens the module for reading.
func (l *Lease) Open() (io.ReadSeekCloser, error) { return l.store.FS.Open(l.Path()) }

// Release ends the lease; the path must not be used any more. A second call does
// nothing.
func (l *Lease) Release() {
	l.release.Do(func() {
		l.store.mu.Lock()
		defer l.store.mu.Unlock()
		l.entry.leases--
	})
}

func (s *Store) path(d chandler.ModuleDigest) string {
	return filepath.Join(s.Dir, d.Hex()+suffix)
}

func absent(d chandler.ModuleDigest) error {
	return fmt.Errorf("module %s is not in the store: %w", d, fs.ErrNotExist)
}

func unwritable(dir string, err error) error {
	return chandler.Problemf(chandler.CodeCacheUnwritable, "",
		"make the directory writable for the user this runs as, and look at the disk",
		"store %s cannot be used: %s", chandler.Quote(dir), chandler.Printable(err.Error(), 256))
}

// onlyRead hides a file's WriteTo, so that the buffer is ours.
type onlyRead struct{ io.Reader }
