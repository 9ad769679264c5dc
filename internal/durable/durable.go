// Package durable is the one committer of bytes: whatever must survive a crash,
// a full disk or a loss of power is written through it. A file is either the
// old one or the new one, whole; nothing partial is ever visible under its name.
//
// It is no store and no cache: it knows nothing of what it writes, keeps nothing
// in memory and never retries. Everything goes through FS, a small file-system
// seam, so that crash sweeps and full disks are tested once (package crashfs).
package durable

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
)

// A temporary file is named tempPrefix + random + tempSuffix, in the directory of
// the file that it will become. The name does not contain the final one, so that
// a name of the greatest length can be written too.
const (
	tempPrefix = ".durable-"
	tempSuffix = ".tmp"
)

// ErrTooLarge is what Read gives for a file over its limit.
var ErrTooLarge = errors.New("file is larger than the limit")

// Write commits data as the file at path, mode 0600: to a temporary file beside
// it, fsync, rename, fsync of the directory. When it returns nil the bytes survive
// a loss of power. When it returns an error, or the machine stops on the way, the
// file is the old one or the new one, whole.
func Write(fsys FS, path string, data []byte) error {
	p, err := Create(fsys, path)
	if err != nil {
		return err
	}
	defer p.Abort()
	if _, err := p.Write(data); err != nil {
		return err
	}
	return p.Commit()
}

// Pending is a file that is being written and is not yet visible. Exactly one of
// Commit, CommitAs and Abort ends it; those called after that do nothing, so that
// Abort can be deferred. It is for one goroutine.
type Pending struct {
	fsys FS
	path string
	temp string
	file File  // nil once ended
	err  error // of the first write that failed
}

// Create begins the file that will stand at path. The directory must exist.
func Create(fsys FS, path string) (*Pending, error) {
	const tries = 8 // a collision of random names is a fault of the file system
	var err error
	for range tries {
		temp := filepath.Join(filepath.Dir(path), tempPrefix+rand.Text()+tempSuffix)
		var f File
		if f, err = fsys.Create(temp); err == nil {
			return &Pending{fsys: fsys, path: path, temp: temp, file: f}, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	return nil, fmt.Errorf("create temporary file for %s: %w", path, err)
}

// Write appends b. After an error every later Write and Commit fails too.
func (p *Pending) Write(b []byte) (int, error) {
	if p.file == nil {
		return 0, fs.ErrClosed
	}
	if p.err != nil {
		return 0, p.err
	}
	n, err := p.file.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		p.err = fmt.Errorf("write %s: %w", p.path, err)
	}
	return n, p.err
}

// Commit makes the file visible at its path and durable; the promise is Write's.
func (p *Pending) Commit() error { return p.CommitAs(filepath.Base(p.path)) }

// CommitAs is Commit under another name in the same directory, for files that
// are named after their content.
func (p *Pending) CommitAs(name string) error {
	if p.file == nil {
		return fs.ErrClosed
	}
	if p.err != nil {
		return p.err
	}
	dir := filepath.Dir(p.path)
	path := filepath.Join(dir, name)
	// A failed fsync is never tried again on the same file: the kernel may have
	// dropped the pages and would say yes the second time.
	if err := p.file.Sync(); err != nil {
		p.Abort()
		return fmt.Errorf("sync %s: %w", path, err)
	}
	err := p.file.Close()
	p.file = nil
	if err == nil {
		err = p.fsys.Rename(p.temp, path)
	}
	if err != nil {
		_ = p.fsys.Remove(p.temp) // what stays is swept
		return fmt.Errorf("commit %s: %w", path, err)
	}
	if err := p.fsys.SyncDir(dir); err != nil {
		return fmt.Errorf("sync directory of %s: %w", path, err)
	}
	return nil
}

// Abort drops the file. What cannot be removed is left to Sweep.
func (p *Pending) Abort() {
	if p.file == nil {
		return
	}
	_ = p.file.Close()
	p.file = nil
	_ = p.fsys.Remove(p.temp)
}

// Remove removes the file at path for good, also over a loss of power. A file
// that is not there is removed already.
func Remove(fsys FS, path string) error {
	if err := fsys.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	if err := fsys.SyncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("sync directory of %s: %w", path, err)
	}
	return nil
}

// SetAside renames a file that its owner cannot read, for people and later versions to
// find: to PATH.aside, or PATH.aside-1 and so on, so that nothing that was set aside
// before is replaced. It gives the new name.
func SetAside(fsys FS, path string) (string, error) {
	aside := path + ".aside"
	for n := 1; ; n++ {
		if _, err := fsys.Stat(aside); errors.Is(err, fs.ErrNotExist) {
			break
		} else if err != nil {
			return "", fmt.Errorf("set %s aside: %w", path, err)
		}
		aside = fmt.Sprintf("%s.aside-%d", path, n)
	}
	if err := errors.Join(fsys.Rename(path, aside), fsys.SyncDir(filepath.Dir(path))); err != nil {
		return "", fmt.Errorf("set %s aside: %w", path, err)
	}
	return aside, nil
}

// Mkdir makes dir and what is missing above it, mode 0700, durably. It is no
// error that it exists.
func Mkdir(fsys FS, dir string) error {
	st, err := fsys.Stat(dir)
	switch {
	case err == nil && st.IsDir():
		return nil
	case err == nil:
		return fmt.Errorf("make directory %s: a file is in its place", dir)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("make directory %s: %w", dir, err)
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := Mkdir(fsys, parent); err != nil {
			return err
		}
	}
	if err := fsys.Mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make directory %s: %w", dir, err)
	}
	if err := fsys.SyncDir(parent); err != nil {
		_ = fsys.Remove(dir) // or the next call would take it for durable
		return fmt.Errorf("sync directory of %s: %w", dir, err)
	}
	return nil
}

// Read gives the whole file at path, of at most limit bytes; a longer one is
// ErrTooLarge.
func Read(fsys FS, path string, limit int64) ([]byte, error) {
	f, err := fsys.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("read %s: %w of %d bytes", path, ErrTooLarge, limit)
	}
	return b, nil
}

// IsTemp tells whether name, a file's name without its directory, is one of this
// package's temporary files. Who lists a directory passes these by.
func IsTemp(name string) bool {
	return strings.HasPrefix(name, tempPrefix) && strings.HasSuffix(name, tempSuffix)
}

// Sweep removes the temporary files that a crash left in dir. Only who holds the
// lock of the directory may call it, before anything is written there.
func Sweep(fsys FS, dir string) error {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("sweep %s: %w", dir, err)
	}
	for _, e := range entries {
		if !IsTemp(e.Name()) || !e.Type().IsRegular() {
			continue
		}
		if err := fsys.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("sweep %s: %w", dir, err)
		}
	}
	return nil
}
