// Package hosts reads the operator's registry hosts in the form of containerd's
// hosts.toml: mirrors of a registry, authorities, client certificates, headers and
// proxies, one folder a registry. A folder made for containerd (such as
// /etc/containerd/certs.d) can be used as it is. Files are looked at when they are
// needed and read again when they have changed; what cannot be used leaves what was
// before in use. In place of a server there may be a folder (file://), as
// "chandler load" fills it.
//
// It fetches nothing: package fetch asks it where to.
package hosts

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
)

const (
	fileName = "hosts.toml"
	// fallback is the folder of registries that have none of their own.
	fallback = "_default"
	maxFile  = 1 << 20 // bytes, of every file
	// settle is how old a file must be before its time of change tells that it has
	// not changed since: clocks of file systems are coarse.
	settle = 2 * time.Second
)

// Directory is a folder of such folders. It implements fetch.Hosts.
type Directory struct {
	dir string
	now func() time.Time
	log *slog.Logger

	mu    sync.Mutex
	files map[string]*file // by the name of their folder, which is there
}

// Open reads all that is in dir, which must be usable now. now is the clock, time.Now
// when nil; log is told of files that cannot be used later; nil: nobody.
func Open(dir string, now func() time.Time, log *slog.Logger) (*Directory, error) {
	if now == nil {
		now = time.Now
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	d := &Directory{dir: dir, now: now, log: log, files: map[string]*file{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, e := range entries {
		if _, err := d.read(e.Name()); err != nil && !errors.Is(err, errNone) {
			errs = append(errs, err)
		}
	}
	return d, errors.Join(errs...)
}

// Endpoints gives where the repositories of a registry (host, with its port if there
// is one) can be had from, in their order. With no file for the registry there are
// none. The error is the operator's matter: it may name files of this machine.
func (d *Directory) Endpoints(registry string) ([]fetch.Endpoint, error) {
	for _, name := range folders(registry) {
		c, err := d.read(name)
		if errors.Is(err, errNone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return c.endpoints(registry), nil
	}
	return nil, nil
}

// folders are the names that the folder of a registry may have, the first that is
// there counts.
func folders(registry string) []string {
	if registry == chandler.DefaultRegistry {
		registry = "docker.io"
	}
	if strings.ContainsAny(registry, `/\`) || strings.Trim(registry, ".") == "" {
		return []string{fallback}
	}
	if i := strings.LastIndexByte(registry, ':'); i > 0 && !strings.HasSuffix(registry, "]") {
		return []string{registry[:i] + "_" + registry[i+1:] + "_", registry, fallback}
	}
	return []string{registry, fallback}
}

// file is what a hosts.toml said when it could be used last.
type file struct {
	paths  []string // it, and what it names
	states []fs.FileInfo
	recent bool // one of them was too young for its time to say much
	value  *config
	err    error // why what is there now is not the value
}

// errNone: a folder has no hosts.toml.
var errNone = errors.New("no " + fileName)

// read gives what a folder's hosts.toml says, or errNone.
func (d *Directory) read(name string) (*config, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	path := filepath.Join(d.dir, name, fileName)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		delete(d.files, name)
		return nil, errNone
	}
	f := d.files[name]
	if f == nil {
		f = &file{paths: []string{path}}
		d.files[name] = f
	}
	d.refresh(f)
	if f.value == nil {
		return nil, f.err
	}
	return f.value, nil
}

func (d *Directory) refresh(f *file) {
	now := d.now()
	if f.states != nil && !f.recent && slices.EqualFunc(f.states, look(f.paths), unchanged) {
		return
	}
	before := f.err
	value, paths, err := load(f.paths[0])
	f.paths, f.states, f.err = paths, look(paths), err
	f.recent = slices.ContainsFunc(f.states, func(s fs.FileInfo) bool { return s != nil && now.Sub(s.ModTime()) < settle })
	if err == nil {
		// Young files are read at every use: what they say is kept if it is the same,
		// so that connections are, too.
		if f.value == nil || !f.value.same(value) {
			f.value = value
		}
	}
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		d.log.Warn("a hosts.toml cannot be used; what it said before stays, if it said anything", "error", err)
	case err == nil && before != nil:
		d.log.Info("a hosts.toml can be used again", "file", f.paths[0])
	}
}

func look(paths []string) []fs.FileInfo {
	states := make([]fs.FileInfo, len(paths))
	for i, path := range paths {
		states[i], _ = os.Stat(path) // what cannot be looked at cannot be read either
	}
	return states
}

// unchanged compares a file with what it was. A file that another one was renamed
// over, or that a link now leads to, is another file.
func unchanged(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// load reads a hosts.toml and all that it names. paths are those that were looked
// at, the file itself first.
func load(path string) (c *config, paths []string, err error) {
	paths = []string{path}
	read := func(name string) ([]byte, error) {
		if !slices.Contains(paths, name) {
			paths = append(paths, name)
		}
		return readFile(name)
	}
	raw, err := readFile(path)
	if err != nil {
		return nil, paths, err
	}
	c, err = parse(raw)
	if err == nil {
		err = c.open(filepath.Dir(path), read)
	}
	if err != nil {
		return nil, paths, fmt.Errorf("%s: %w", path, err)
	}
	return c, paths, nil
}
