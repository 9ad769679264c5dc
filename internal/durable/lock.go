package durable

import (
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"strings"

	"chandler.dev/chandler"
)

// lockName is the file in a locked directory.
const lockName = "lock"

// DirLock is the sole use of a directory among all processes that ask for it.
// The operating system lets go of it when the process ends, however it ends;
// children do not inherit it.
type DirLock struct {
	fsys FS
	dir  string
	held io.Closer // nil: let go, or lost
}

// Lock takes dir, making it if need be. A directory that is held by another is a
// *chandler.Problem with code CacheLocked that names the holder's pid, one
// that cannot be made or written is CacheUnwritable.
func Lock(dir string) (*DirLock, error) { return LockOn(OS(), dir) }

// LockOn is Lock on another file system.
func LockOn(fsys FS, dir string) (*DirLock, error) {
	l := &DirLock{fsys: fsys, dir: dir}
	if err := l.take(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *DirLock) take() error {
	if err := Mkdir(l.fsys, l.dir); err != nil {
		return unwritable(l.dir, err)
	}
	path := filepath.Join(l.dir, lockName)
	held, err := l.fsys.Lock(path)
	if errors.Is(err, ErrLocked) {
		by := "another process"
		if pid, err := Read(l.fsys, path, 32); err == nil && len(pid) > 0 {
			by += " (pid " + chandler.Printable(strings.TrimSpace(string(pid)), 16) + ")"
		}
		return chandler.Problemf(chandler.CodeCacheLocked, "",
			"stop the other one, or give this one a directory of its own",
			"directory %s is in use by %s", chandler.Quote(l.dir), by)
	}
	if err != nil {
		return unwritable(l.dir, err)
	}
	l.held = held
	return nil
}

// Renew makes the directory again and takes it anew when somebody removed it, or the
// file by which it is held; anew tells whether. The errors are those of Lock, and the
// next call tries once more. It is for one goroutine at a time.
func (l *DirLock) Renew() (anew bool, err error) {
	_, err = l.fsys.Stat(filepath.Join(l.dir, lockName))
	if !errors.Is(err, fs.ErrNotExist) {
		return false, nil // anything else shows where the directory is used
	}
	_ = l.Unlock() // of a file that has no name any more
	if err := l.take(); err != nil {
		return false, err
	}
	return true, nil
}

// Unlock lets go of the directory. A second call does nothing.
func (l *DirLock) Unlock() error {
	held := l.held
	if l.held = nil; held == nil {
		return nil
	}
	return held.Close()
}

func unwritable(dir string, err error) error {
	return chandler.Problemf(chandler.CodeCacheUnwritable, "",
		"make the directory writable for the user this runs as, or name another one",
		"directory %s cannot be written: %s", chandler.Quote(dir), chandler.Printable(err.Error(), 256))
}
