package source

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"chandler.dev/chandler"
)

// Limits of a directory of files.
const (
	maxFile    = 4 << 20   // bytes
	maxTotal   = 256 << 20 // bytes of all files
	maxFiles   = 10_000
	maxFolders = 1000
	maxNested  = 8 // folders in folders
	// settled is how old a file must be for its time of modification to tell that
	// it is the same: clocks of file systems are coarse.
	settled = 2 * time.Second
)

// stamp tells whether a file may be another than the one that was read.
type stamp struct {
	stat fs.FileInfo
	read time.Time
	sum  [sha256.Size]byte
}

func (s stamp) same(now fs.FileInfo) bool {
	return s.stat != nil && os.SameFile(s.stat, now) && s.stat.Size() == now.Size() && s.stat.ModTime().Equal(now.ModTime()) &&
		s.read.Sub(now.ModTime()) > settled
}

// scan is one reading of all files.
type scan struct {
	old    map[string]*file
	files  map[string]*file
	unread map[string]chandler.Problem
	// points are what to watch, for changes of the next scan.
	points map[string]names
	// busy: a file was written while it was read; look again soon.
	busy bool
	// failed: the system could not do what it was asked, and may the next time: it had no
	// descriptor left, or no answer of a server. Look again before the poll.
	failed bool
	// skip is a folder that is not read.
	skip    fs.FileInfo
	total   int64
	folders int
}

// names are the entries of a folder that matter; nil: all of them.
type names map[string]bool

func newScan(old map[string]*file) *scan {
	return &scan{old: old, files: map[string]*file{}, unread: map[string]chandler.Problem{}, points: map[string]names{}}
}

// root reads a directory and the folders in it.
func (s *scan) root(dir string, user bool) {
	s.follow(dir)
	stat, err := os.Stat(dir)
	if err != nil {
		s.fail(dir, err)
		return
	}
	s.dir(dir, user, []fs.FileInfo{stat})
}

// fail takes down what cannot be listed. Nothing in it is taken for gone.
func (s *scan) fail(path string, err error) {
	why := err
	var in *fs.PathError
	if errors.As(err, &in) {
		why = in.Err
	}
	hint := "make it readable; until then its last good objects stay"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		hint = "make it, or give another; until then its last good objects stay"
	case in != nil && !errors.Is(err, fs.ErrPermission):
		s.failed = true
	}
	s.unread[path] = *chandler.Problemf(chandler.CodeStale, "", hint, "cannot be read: %s", chandler.Printable(why.Error(), 256))
}

func (s *scan) dir(dir string, user bool, above []fs.FileInfo) {
	if s.folders++; s.folders > maxFolders || len(above) > maxNested {
		s.fail(dir, fmt.Errorf("more than %d folders, or nested deeper than %d", maxFolders, maxNested))
		return
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		s.points[real] = nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		s.fail(dir, err)
		return
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), ".") {
			continue // git's, editors', and the inner side of a ConfigMap
		}
		if e.Type()&fs.ModeSymlink != 0 {
			s.follow(path)
		}
		stat, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist) && e.Type()&fs.ModeSymlink == 0: // gone since
		case err != nil:
			s.fail(path, err)
		case stat.IsDir() && s.skip != nil && os.SameFile(s.skip, stat):
		case stat.IsDir() && slices.ContainsFunc(above, func(a fs.FileInfo) bool { return os.SameFile(a, stat) }):
			s.fail(path, errors.New("the folder is inside itself"))
		case stat.IsDir():
			s.dir(path, user, append(slices.Clone(above), stat))
		case isManifest(e.Name()), user && e.Name() == LockName && len(above) == 1:
			s.file(path, user, stat)
		}
	}
}

func isManifest(name string) bool {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// file reads one file, or takes what is known of it if it is the same.
func (s *scan) file(path string, user bool, stat fs.FileInfo) {
	old := s.old[path]
	s.total += stat.Size()
	switch {
	case !stat.Mode().IsRegular():
		s.fail(path, errors.New("not a regular file"))
		return
	case stat.Size() > maxFile:
		s.fail(path, fmt.Errorf("it has %d bytes, limit %d", stat.Size(), maxFile))
		return
	case s.total > maxTotal || len(s.files) >= maxFiles:
		s.fail(path, fmt.Errorf("more than %d files, or more than %d bytes in all", maxFiles, maxTotal))
		return
	case old != nil && old.stamp.same(stat):
		s.files[path] = old
		return
	}
	at := time.Now()
	text, stat, err := readFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case errors.Is(err, errBusy):
		if s.busy = true; old != nil {
			s.files[path] = old
		} else if filepath.Base(path) == LockName {
			s.fail(path, err) // what it will say counts from the beginning
		}
		return
	case err != nil:
		s.fail(path, err)
		return
	}
	st := stamp{stat, at, sha256.Sum256(text)}
	if old != nil && old.stamp.sum == st.sum {
		same := *old
		same.stamp = st
		s.files[path] = &same
		return
	}
	f := parse(path, user, text)
	f.stamp = st
	s.files[path] = f
}

var errBusy = errors.New("file changes while it is read")

// readFile reads a file that is not being written.
func readFile(path string) ([]byte, fs.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, nil, err
	}
	after, err := f.Stat()
	switch {
	case err != nil:
		return nil, nil, err
	case before.Size() != after.Size() || !before.ModTime().Equal(after.ModTime()) || int64(len(text)) != after.Size():
		return nil, nil, errBusy
	}
	return text, after, nil
}

// parse decodes the text of a file. An empty file is a mistake, not the end of
// its objects: many programs empty a file before they fill it.
func parse(path string, user bool, text []byte) *file {
	f := &file{path: path, user: user}
	if len(bytes.TrimSpace(text)) == 0 {
		f.problems = []chandler.Problem{*chandler.Problemf(chandler.CodeSpecParse, "", "to delete its objects remove the file", "the file is empty")}
		return f
	}
	if filepath.Base(path) == LockName {
		f.lock, f.problems = ParseLock(text)
		return f
	}
	f.docs = Decode(text, defaultNamespace)
	return f
}

// follow notes what makes path what it is: each link on the way, the name itself,
// or the first part that is missing.
func (s *scan) follow(path string) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return
	}
	const maxLinks = 40
	separator := string(filepath.Separator)
	at := filepath.VolumeName(abs) + separator
	rest := strings.Split(strings.Trim(abs[len(at)-1:], separator), separator)
	for links := 0; len(rest) > 0 && links < maxLinks; {
		name := rest[0]
		rest = rest[1:]
		next := filepath.Join(at, name)
		stat, err := os.Lstat(next)
		if err != nil {
			s.note(at, name)
			return
		}
		if stat.Mode()&fs.ModeSymlink == 0 {
			if len(rest) == 0 {
				s.note(at, name)
			}
			at = next
			continue
		}
		s.note(at, name)
		links++
		target, err := os.Readlink(next)
		if err != nil {
			return
		}
		if filepath.IsAbs(target) {
			at = filepath.VolumeName(target) + separator
		}
		parts := strings.Split(strings.Trim(filepath.Clean(target), separator), separator)
		rest = append(parts, rest...)
	}
}

func (s *scan) note(dir, name string) {
	known, ok := s.points[dir]
	switch {
	case ok && known == nil: // all of it
	case !ok:
		s.points[dir] = names{name: true}
	default:
		known[name] = true
	}
}
