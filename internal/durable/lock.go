package durable

import (
	"errors"
	"io"
	"path/filepath"
	"strings"

	"chandler.dev/chandler"
)

// lockName is the file in a locked directory.
const lockName = "lock"

// DirLock is the sole use of a directory among all processes that ask for it.
// The operating system lets go of it when the process ends, however it ends;
// children do not inherit it.
type DirLock struct{ held io.Closer }

// Lock takes dir, making it if need be. A directory that is held by another is a
// *chandler.Problem with code CacheLocked that names the holder's pid, one
// that cannot be made or written is CacheUnwritable.
func Lock(dir string) (*DirLock, error) { return LockOn(OS(), dir) }

// LockOn is Lock on another file system.
func LockOn(fsys FS, dir string) (*DirLock, error) {
	if err := Mkdir(fsys, dir); err != nil {
		return nil, unwritable(dir, err)
	}
	path := filepath.Join(dir, lockName)
	held, err := fsys.Lock(path)
	if errors.Is(err, ErrLocked) {
		by := "another process"
		if pid, err := Read(fsys, path, 32); err == nil && len(pid) > 0 {
			by += " (pid " + chandler.Printable(strings.TrimSpace(string(pid)), 16) + ")"
		}
		return nil, chandler.Problemf(chandler.CodeCacheLocked, "",
			"stop the other one, or give this one a directory of its own",
			"directory %s is in use by %s", chandler.Quote(dir), by)
	}
	if err != nil {
		return nil, unwritable(dir, err)
	}
	return &DirLock{held}, nil
}

// Unlock lets go of the directory.
func (l *DirLock) Unlock() error { return l.held.Close() }

func unwritable(dir string, err error) error {
	return chandler.Problemf(chandler.CodeCacheUnwritable, "",
		"make the directory writable for the user this runs as, or name another one",
		"directory %s cannot be written: %s", chandler.Quote(dir), chandler.Printable(err.Error(), 256))
}
