package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
)

const (
	defaultPoll = 5 * time.Second
	// quiet is how long nothing must happen before files are read, and maxQuiet
	// when they are read although something always happens.
	quiet    = 20 * time.Millisecond
	maxQuiet = 200 * time.Millisecond
	retry    = time.Second // after a read or a write that failed
)

// DirectoryConfig says where a Directory reads and writes.
type DirectoryConfig struct {
	// Dir is the user's own directory, which is only read, with its folders: files
	// ending in .yaml, .yml and .json. Empty: there is none, and all objects are
	// applied ones. It need not exist yet.
	Dir string
	// Data is the control plane's directory; the caller holds its lock. Applied
	// objects go to applied/ in it, identities to objects/.
	Data string
	// FS is where Data is; nil: the operating system's.
	FS durable.FS
	// Poll is how often files are looked at without a notification; zero: 5 s.
	Poll time.Duration
	// Now is the clock of creation times; nil: time.Now.
	Now func() time.Time
	Log *slog.Logger
}

// Directory is a Source and an Editor on files: a directory of the user's, and
// one of its own for what is applied. An object in both comes from the user's.
//
// A file that cannot be read, or a document in it, never takes a good object
// away; only its absence from a readable directory does.
type Directory struct {
	cfg      DirectoryConfig
	ledger   ledger
	versions versions
	applied  string
	running  atomic.Bool
	requests chan request
	ended    chan struct{}

	// Run's own from here.
	known   map[chandler.Key]known
	secrets map[SecretName]kept
	files   map[string]*file
	unread  map[string]chandler.Problem
	from    time.Time // when files began to be read last
	to      time.Time // when they had been
	lock    *lockState
	last    *Snapshot       // delivered
	dirty   bool            // a write failed
	cause   context.Context // of the call that is being done
	deliver func(Snapshot)
}

type request struct {
	do    func() []Result
	reply chan []Result // of one place
}

// OpenDirectory reads the identities that are kept under Data and makes what is
// missing there. Nothing runs before Run.
func OpenDirectory(cfg DirectoryConfig) (*Directory, error) {
	if cfg.FS == nil {
		cfg.FS = durable.OS()
	}
	if cfg.Poll <= 0 {
		cfg.Poll = defaultPoll
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	for _, dir := range []*string{&cfg.Dir, &cfg.Data} {
		if *dir == "" {
			continue
		}
		abs, err := filepath.Abs(*dir) // paths are told to people, and kept
		if err != nil {
			return nil, err
		}
		*dir = abs
	}
	d := &Directory{
		cfg: cfg, applied: filepath.Join(cfg.Data, "applied"), ledger: ledger{cfg.FS, filepath.Join(cfg.Data, "objects")},
		requests: make(chan request), ended: make(chan struct{}), known: map[chandler.Key]known{}, files: map[string]*file{},
	}
	if err := durable.Mkdir(cfg.FS, d.applied); err != nil {
		return nil, err
	}
	if err := durable.Sweep(cfg.FS, d.applied); err != nil {
		return nil, err
	}
	entries, err := d.ledger.load(cfg.Log)
	if err != nil {
		return nil, fmt.Errorf("read the state of objects: %w", err)
	}
	if d.versions, err = d.ledger.versions(); err != nil {
		return nil, err
	}
	for key, e := range entries {
		d.known[key] = known{entry: e}
	}
	return d, nil
}

// Run implements Source. It can be called once.
func (d *Directory) Run(ctx context.Context, deliver func(Snapshot)) error {
	if !d.running.CompareAndSwap(false, true) {
		return errors.New("source: Run was called before")
	}
	defer close(d.ended)
	d.deliver = deliver
	w := newWatcher(d.cfg.Log)
	defer w.close()

	var first time.Time     // of the events that wait for quiet
	var due, poll time.Time // when to look
	soon := func(now time.Time, wait time.Duration) {
		if at := now.Add(wait); due.IsZero() || at.Before(due) {
			due = at
		}
	}
	look := func() {
		now := time.Now()
		due, first, poll = time.Time{}, time.Time{}, now.Add(d.cfg.Poll)
		if wait := d.look(w, now); wait > 0 {
			soon(now, wait)
		}
	}
	look()
	for {
		now := time.Now()
		wait := poll.Sub(now)
		if !due.IsZero() {
			wait = min(wait, due.Sub(now))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
			look()
		case r := <-d.requests:
			r.reply <- r.do()
			if d.dirty {
				soon(now, retry)
			}
		case e := <-w.events():
			if now = time.Now(); w.matters(e) {
				if first.IsZero() {
					first = now
				}
				due = now.Add(min(quiet, max(0, maxQuiet-now.Sub(first))))
			}
		case err := <-w.errors(): // events were lost
			d.cfg.Log.Debug("notifications of changed files were lost", "error", err)
			soon(time.Now(), quiet)
		}
		timer.Stop()
	}
}

// look reads all files and brings the objects up to them. It gives when to look
// again, or zero.
func (d *Directory) look(w *watcher, now time.Time) time.Duration {
	const rounds = 5 // of folders that appear meanwhile; the poll finds the rest
	var s *scan
	for range rounds {
		d.from = time.Now()
		s = newScan(d.files)
		if d.cfg.Dir != "" {
			s.skip, _ = os.Stat(d.cfg.Data) // it may be in the user's
			s.root(d.cfg.Dir, true)
		}
		s.root(d.applied, false)
		if !w.watch(s.points) {
			break
		}
	}
	same := maps.EqualFunc(s.files, d.files, func(a, b *file) bool { return a.stamp.sum == b.stamp.sum }) && maps.Equal(s.unread, d.unread)
	d.files, d.unread, d.to = s.files, s.unread, time.Now()
	waiting := false
	if lock := d.lock; d.cfg.Dir != "" {
		_, err := os.Stat(d.cfg.Dir)
		d.lock = lock.after(s, filepath.Join(d.cfg.Dir, LockName), errors.Is(err, fs.ErrNotExist), d.from, d.to)
		waiting = lock != d.lock || lock != nil && !lock.gone.IsZero()
	}
	for _, k := range d.known {
		waiting = waiting || !k.gone.IsZero()
	}
	for _, k := range d.secrets {
		waiting = waiting || !k.gone.IsZero()
	}
	var wait time.Duration
	if !same || d.dirty || waiting || d.last == nil {
		wait = d.settle(now, nil)
	}
	switch {
	case s.busy:
		wait = quiet
	case s.failed && (wait == 0 || wait > retry):
		wait = retry
	}
	return wait
}

// settle reconciles, commits and delivers. Nothing is delivered that is not
// committed. It gives when to look again, or zero.
func (d *Directory) settle(now time.Time, drop map[chandler.Key]bool) time.Duration {
	p := reconcile(view{
		known: d.known, secrets: d.secrets, dir: d.cfg.Dir, applied: d.applied, files: d.ordered(), unread: d.unread, lock: d.lock,
		drop: drop, first: d.last == nil, from: d.from, to: d.to, wall: d.cfg.Now(), version: d.versions.of,
	})
	if err := d.commit(p); err != nil {
		d.dirty = true
		d.cfg.Log.Error("the state of objects cannot be written; nothing changes until it can", "error", err)
		return retry
	}
	d.known, d.secrets, d.dirty = p.known, p.secrets, false
	if d.last == nil || !reflect.DeepEqual(*d.last, p.snapshot) {
		d.tell(p.snapshot.Broken)
		d.last = &p.snapshot
		told := p.snapshot
		told.Cause = d.cause
		d.deliver(told)
	}
	if p.next.IsZero() {
		return 0
	}
	return max(time.Millisecond, p.next.Sub(now))
}

// ordered gives the files of the user before the applied ones, each by path.
func (d *Directory) ordered() []*file {
	return slices.SortedFunc(maps.Values(d.files), func(a, b *file) int {
		if a.user != b.user {
			if a.user {
				return -1
			}
			return 1
		}
		return strings.Compare(a.path, b.path)
	})
}

// commit writes the entries that changed. What was written before an error is
// known from then on, so that no generation is counted twice.
func (d *Directory) commit(p plan) error {
	for _, key := range p.write {
		k := p.known[key]
		if err := d.ledger.put(k.entry); err != nil {
			return err
		}
		d.known[key] = k
	}
	for _, key := range p.remove {
		if err := d.ledger.remove(key); err != nil {
			return err
		}
		delete(d.known, key)
	}
	return nil
}

// tell logs files that are newly broken.
func (d *Directory) tell(broken []Broken) {
	for _, b := range broken {
		if d.last == nil || !slices.ContainsFunc(d.last.Broken, func(o Broken) bool { return reflect.DeepEqual(o, b) }) {
			d.cfg.Log.Warn("a file cannot be taken as it is", "file", b.Path, "problems", len(b.Problems), "first", b.Problems[0].Error())
		}
	}
}
