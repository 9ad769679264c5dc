package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// FS is the file system as far as it is needed here. Paths are the operating
// system's own. Errors satisfy errors.Is with those of io/fs and syscall.
type FS interface {
	// Create makes a new file for writing, mode 0600; it must not exist.
	Create(path string) (File, error)
	// Open opens a file for reading.
	Open(path string) (File, error)
	Stat(path string) (fs.FileInfo, error)
	// ReadDir lists a directory by name.
	ReadDir(dir string) ([]fs.DirEntry, error)
	// Mkdir makes one directory, mode 0700.
	Mkdir(dir string) error
	// Rename moves a file over whatever file is at the new path.
	Rename(oldPath, newPath string) error
	Remove(path string) error
	// SyncDir makes what was created, renamed and removed in dir durable.
	SyncDir(dir string) error
	// Touch sets the time of modification.
	Touch(path string, at time.Time) error
	// Lock makes the file at path if need be and takes it for this process alone,
	// until Close or the end of the process. While another holds it: ErrLocked.
	Lock(path string) (io.Closer, error)
}

// File is an open file; *os.File is one.
type File interface {
	io.Reader
	io.ReaderAt
	io.Seeker
	io.Writer
	io.Closer
	Sync() error
	Stat() (fs.FileInfo, error)
}

// ErrLocked is FS.Lock's answer while somebody else holds the lock.
var ErrLocked = errors.New("locked by another")

// OS is the file system of the operating system.
func OS() FS { return osFS{} }

type osFS struct{}

func (osFS) Create(path string) (File, error) {
	return opened(os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600))
}

func (osFS) Open(path string) (File, error)            { return opened(os.Open(path)) }
func (osFS) Stat(path string) (fs.FileInfo, error)     { return os.Stat(path) }
func (osFS) ReadDir(dir string) ([]fs.DirEntry, error) { return os.ReadDir(dir) }
func (osFS) Mkdir(dir string) error                    { return os.Mkdir(dir, 0o700) }
func (osFS) Rename(oldPath, newPath string) error      { return os.Rename(oldPath, newPath) }
func (osFS) Remove(path string) error                  { return os.Remove(path) }
func (osFS) Touch(path string, at time.Time) error     { return os.Chtimes(path, time.Time{}, at) }

// opened keeps a nil *os.File from becoming a File that is not nil.
func opened(f *os.File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	// Some network and user-space file systems have no fsync of a directory;
	// there is nothing better to do on them.
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

func (osFS) Lock(path string) (io.Closer, error) {
	// Not through a temporary file: the lock belongs to the file, so the file
	// must stay the same one. It is never removed, for the same reason.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, errors.Join(&fs.PathError{Op: "flock", Path: path, Err: err}, f.Close())
	}
	// The number is for people who read the file; the lock does not depend on it.
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	return flock{f}, nil
}

// flock is a locked file.
type flock struct{ *os.File }

// Close lets go at once: to close the file would not, while a child that is just
// being started still has it open.
func (l flock) Close() error {
	err := syscall.Flock(int(l.Fd()), syscall.LOCK_UN)
	return errors.Join(err, l.File.Close())
}
