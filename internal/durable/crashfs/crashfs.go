// Package crashfs is a file system in memory for tests of what is written
// through package durable. It forgets what was not synced when it crashes, it can
// crash at any call or refuse any call, and its disk can fill up.
//
// It is for tests only and makes no attempt at speed or at permissions.
package crashfs

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"chandler.dev/chandler/internal/durable"
)

// ErrCrashed is the answer to every call from the crash on.
var ErrCrashed = errors.New("crashfs: the machine has stopped")

// FS is a file system in memory. Its root directory exists. It is safe for
// concurrent use.
type FS struct {
	mu      sync.Mutex
	root    *node
	locks   map[string]bool
	calls   int
	crashAt int
	failAt  int
	failure error
	limit   int64
}

// node is a file or, when entries is not nil, a directory. Of each part there is
// the present state and the one that the disk is known to hold.
type node struct {
	bytes, synced          []byte
	entries, syncedEntries map[string]*node
	modified               time.Time
}

// New makes an empty file system.
func New() *FS {
	return &FS{root: newDir(), locks: map[string]bool{}, limit: 1 << 40}
}

func newDir() *node {
	return &node{entries: map[string]*node{}, syncedEntries: map[string]*node{}}
}

// CrashAt stops the machine at the n-th call from now, the first being 1: that
// call (of a write the first half is done) and all later ones give ErrCrashed.
func (f *FS) CrashAt(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.crashAt = f.calls + n
}

// FailAt makes the n-th call from now fail once with err, for instance
// syscall.ENOSPC; of a write the first half is done.
func (f *FS) FailAt(n int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failAt, f.failure = f.calls+n, err
}

// Limit gives the disk a size in bytes: a write that needs more is ENOSPC.
func (f *FS) Limit(bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.limit = bytes
}

// Calls tells how many calls there were so far.
func (f *FS) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// Corrupt changes the file at path behind everybody's back.
func (f *FS) Corrupt(path string, change func([]byte) []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.file("corrupt", path)
	if err != nil {
		return err
	}
	n.bytes = change(slices.Clone(n.bytes))
	n.synced = n.bytes
	return nil
}

// Loss is what a crash takes away. Real file systems do any of these.
type Loss int

// The losses.
const (
	// LoseNothing: the process was killed, the machine lives on.
	LoseNothing Loss = iota
	// LoseUnsynced: names and contents are as last synced.
	LoseUnsynced
	// LoseContents: names are as they were, contents as last synced.
	LoseContents
	// ZeroContents: names and lengths are as they were, bytes not synced are zero.
	ZeroContents
)

// Losses lists every Loss.
func Losses() []Loss { return []Loss{LoseNothing, LoseUnsynced, LoseContents, ZeroContents} }

func (l Loss) String() string {
	return [...]string{"LoseNothing", "LoseUnsynced", "LoseContents", "ZeroContents"}[l]
}

// Restart gives the file system as it is found after a crash, without locks.
// The old one is to be used no more.
func (f *FS) Restart(loss Loss) *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	after := New()
	after.root = f.root.after(loss)
	after.calls = f.calls // times go on
	return after
}

func (n *node) after(loss Loss) *node {
	if n.entries == nil {
		b := n.synced
		switch loss {
		case LoseNothing:
			b = n.bytes
		case ZeroContents:
			b = make([]byte, len(n.bytes))
			copy(b, n.synced)
		}
		b = slices.Clone(b)
		return &node{bytes: b, synced: b, modified: n.modified}
	}
	entries := n.entries
	if loss == LoseUnsynced {
		entries = n.syncedEntries
	}
	d := newDir()
	for name, child := range entries {
		c := child.after(loss)
		d.entries[name], d.syncedEntries[name] = c, c
	}
	return d
}

// call counts a call and tells whether it must fail. The lock is held.
func (f *FS) call(op, path string) error {
	f.calls++
	var err error
	switch {
	case f.crashAt > 0 && f.calls >= f.crashAt:
		err = ErrCrashed
	case f.failAt > 0 && f.calls == f.failAt:
		err = f.failure
	default:
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}

func (f *FS) now() time.Time { return time.Unix(1_700_000_000+int64(f.calls), 0) }

// find gives the node at path, or nil.
func (f *FS) find(path string) *node {
	n := f.root
	for _, part := range strings.Split(filepath.Clean(path), string(filepath.Separator)) {
		if part == "" || part == "." {
			continue
		}
		if n = n.entries[part]; n == nil {
			return nil
		}
	}
	return n
}

func (f *FS) dir(op, path string) (*node, error) {
	n := f.find(path)
	if n == nil {
		return nil, &fs.PathError{Op: op, Path: path, Err: fs.ErrNotExist}
	}
	if n.entries == nil {
		return nil, &fs.PathError{Op: op, Path: path, Err: syscall.ENOTDIR}
	}
	return n, nil
}

func (f *FS) file(op, path string) (*node, error) {
	n := f.find(path)
	if n == nil {
		return nil, &fs.PathError{Op: op, Path: path, Err: fs.ErrNotExist}
	}
	if n.entries != nil {
		return nil, &fs.PathError{Op: op, Path: path, Err: syscall.EISDIR}
	}
	return n, nil
}

// Create implements durable.FS.
func (f *FS) Create(path string) (durable.File, error) {
	return f.add("create", path, func() *node { return &node{modified: f.now()} })
}

// Mkdir implements durable.FS.
func (f *FS) Mkdir(path string) error {
	_, err := f.add("mkdir", path, newDir)
	return err
}

func (f *FS) add(op, path string, make func() *node) (durable.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call(op, path); err != nil {
		return nil, err
	}
	d, err := f.dir(op, filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	name := filepath.Base(path)
	if d.entries[name] != nil {
		return nil, &fs.PathError{Op: op, Path: path, Err: fs.ErrExist}
	}
	n := make()
	d.entries[name] = n
	return &file{fsys: f, path: path, node: n, writable: true}, nil
}

// Open implements durable.FS.
func (f *FS) Open(path string) (durable.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("open", path); err != nil {
		return nil, err
	}
	n, err := f.file("open", path)
	if err != nil {
		return nil, err
	}
	return &file{fsys: f, path: path, node: n}, nil
}

// Stat implements durable.FS.
func (f *FS) Stat(path string) (fs.FileInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("stat", path); err != nil {
		return nil, err
	}
	n := f.find(path)
	if n == nil {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: fs.ErrNotExist}
	}
	return n.stat(filepath.Base(path)), nil
}

// ReadDir implements durable.FS.
func (f *FS) ReadDir(path string) ([]fs.DirEntry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("readdir", path); err != nil {
		return nil, err
	}
	d, err := f.dir("readdir", path)
	if err != nil {
		return nil, err
	}
	var list []fs.DirEntry
	for _, name := range slices.Sorted(maps.Keys(d.entries)) {
		list = append(list, fs.FileInfoToDirEntry(d.entries[name].stat(name)))
	}
	return list, nil
}

// Rename implements durable.FS.
func (f *FS) Rename(oldPath, newPath string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("rename", newPath); err != nil {
		return err
	}
	n, err := f.file("rename", oldPath)
	if err != nil {
		return err
	}
	to, err := f.dir("rename", filepath.Dir(newPath))
	if err != nil {
		return err
	}
	from, err := f.dir("rename", filepath.Dir(oldPath))
	if err != nil {
		return err
	}
	delete(from.entries, filepath.Base(oldPath))
	to.entries[filepath.Base(newPath)] = n
	return nil
}

// Remove implements durable.FS.
func (f *FS) Remove(path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("remove", path); err != nil {
		return err
	}
	n := f.find(path)
	if n == nil {
		return &fs.PathError{Op: "remove", Path: path, Err: fs.ErrNotExist}
	}
	if len(n.entries) > 0 {
		return &fs.PathError{Op: "remove", Path: path, Err: syscall.ENOTEMPTY}
	}
	d, err := f.dir("remove", filepath.Dir(path))
	if err != nil {
		return err
	}
	delete(d.entries, filepath.Base(path))
	return nil
}

// SyncDir implements durable.FS.
func (f *FS) SyncDir(path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("syncdir", path); err != nil {
		return err
	}
	d, err := f.dir("syncdir", path)
	if err != nil {
		return err
	}
	d.syncedEntries = maps.Clone(d.entries)
	return nil
}

// Touch implements durable.FS.
func (f *FS) Touch(path string, at time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("touch", path); err != nil {
		return err
	}
	n, err := f.file("touch", path)
	if err != nil {
		return err
	}
	n.modified = at
	return nil
}

// Lock implements durable.FS.
func (f *FS) Lock(path string) (io.Closer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("lock", path); err != nil {
		return nil, err
	}
	d, err := f.dir("lock", filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	path = filepath.Clean(path)
	if f.locks[path] {
		return nil, &fs.PathError{Op: "lock", Path: path, Err: durable.ErrLocked}
	}
	if name := filepath.Base(path); d.entries[name] == nil {
		d.entries[name] = &node{modified: f.now()}
	}
	f.locks[path] = true
	return &lock{f, path}, nil
}

type lock struct {
	fsys *FS
	path string
}

func (l *lock) Close() error {
	l.fsys.mu.Lock()
	defer l.fsys.mu.Unlock()
	delete(l.fsys.locks, l.path)
	return nil
}

func (f *FS) used() int64 {
	var sum func(*node) int64
	sum = func(n *node) int64 {
		total := int64(len(n.bytes))
		for _, c := range n.entries {
			total += sum(c)
		}
		return total
	}
	return sum(f.root)
}
