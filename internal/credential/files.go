package credential

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"
)

const (
	maxFile = 1 << 20 // bytes of a file of certificates or a token
	// settle is how old a file must be before its time of change tells that it has
	// not changed since: clocks of file systems are coarse.
	settle = 2 * time.Second
	// retry is how soon files that could not be used are read again although they
	// look the same: they may be half written, or not valid yet.
	retry = time.Second
)

// files is a value that is made of files, and made anew when one of them changes.
// Nothing polls: whoever needs the value looks at the files. What cannot be used
// leaves the value before in use.
type files[T any] struct {
	paths []string
	parse func(contents [][]byte, now time.Time) (T, error)
	now   func() time.Time
	// told, when set, is told why the newest files are not in use, once a reason,
	// and nil when they are again.
	told func(error)

	mu     sync.Mutex
	states []fs.FileInfo // of the files as they were read last; nil: not there
	read   time.Time     // when that was
	recent bool          // a file was too young for its time to say much
	value  T
	usable bool
	err    error // why what is there now is not the value
}

// get gives the newest value that was usable. The error tells why there is none.
func (f *files[T]) get() (T, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refresh()
	if !f.usable {
		return f.value, f.err
	}
	return f.value, nil
}

// stale tells why the newest files are not in use; nil when they are.
func (f *files[T]) stale() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refresh()
	return f.err
}

func (f *files[T]) refresh() {
	now := f.now()
	states := make([]fs.FileInfo, len(f.paths))
	for i, path := range f.paths {
		states[i], _ = os.Stat(path) // what cannot be looked at cannot be read either
	}
	same := f.states != nil && !f.recent && slices.EqualFunc(f.states, states, unchanged)
	if same && (f.err == nil || now.Sub(f.read) < retry) {
		return
	}
	f.states, f.read = states, now
	f.recent = slices.ContainsFunc(states, func(s fs.FileInfo) bool { return s != nil && now.Sub(s.ModTime()) < settle })
	value, err := f.load(states, now)
	if err == nil {
		f.value, f.usable = value, true
	}
	before := f.err
	f.err = err
	if f.told != nil && text(before) != text(err) {
		f.told(err)
	}
}

func (f *files[T]) load(states []fs.FileInfo, now time.Time) (value T, err error) {
	contents := make([][]byte, len(f.paths))
	for i, path := range f.paths {
		if s := states[i]; s != nil && !s.Mode().IsRegular() {
			return value, fmt.Errorf("%s is not a file", path)
		}
		if contents[i], err = readFile(path); err != nil {
			return value, err
		}
	}
	return f.parse(contents, now)
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) > maxFile:
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	case len(b) == 0:
		return nil, fmt.Errorf("%s: %w", path, errEmpty)
	}
	return b, nil
}

var errEmpty = errors.New("the file is empty")

// unchanged compares a file with what it was. A file that another one was renamed
// over, or that a link now leads to, is another file.
func unchanged(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
