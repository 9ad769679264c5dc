package airgap

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/fetch"
)

// Folder is an image layout in a folder, as skopeo and oras have it, too: a registry
// for a machine that has none. Its index is read for every request, so that what is
// loaded counts at once. Its RoundTrip is for several goroutines.
type Folder struct {
	dir string

	mu     sync.Mutex
	raw    []byte // the index that layout is of
	layout *layout
}

// NewFolder gives the folder at dir, which need not be there yet.
func NewFolder(dir string) *Folder { return &Folder{dir: dir} }

// RoundTrip implements http.RoundTripper: it answers as a registry does that is only
// read. A folder that cannot be used is a temporary *fetch.Error, which does not say
// where the folder is.
func (f *Folder) RoundTrip(req *http.Request) (*http.Response, error) {
	l, err := f.read()
	var resp *http.Response
	if err == nil {
		resp, err = l.roundTrip(req)
	}
	if err != nil {
		return nil, &fetch.Error{Temporary: true, Problem: *chandler.Problemf(chandler.CodeFetchFailed, "",
			"let the operator look at the folder that hosts.toml names, and load into it; it is tried again by itself",
			"the folder in the registry's place cannot be used: %s", reason(err))}
	}
	return resp, nil
}

// Client reads the folder, with what else cfg says.
func (f *Folder) Client(cfg fetch.Config) *fetch.Client {
	cfg.Transport, cfg.Hosts, cfg.Keychain = f, nil, nil
	return fetch.New(cfg)
}

// Found are the artifacts of the folder, in its order. What is wrong with it is a
// *chandler.Problem, or an error of the file system.
func (f *Folder) Found() ([]Found, error) {
	l, err := f.read()
	if err != nil {
		return nil, err
	}
	return slices.Clone(l.found), nil
}

// reason is an error without the name of a file.
func reason(err error) string {
	var at *fs.PathError
	if errors.As(err, &at) {
		return fmt.Sprintf("%s: %v", filepath.Base(at.Path), at.Err)
	}
	return err.Error()
}

// read gives what the index says now.
func (f *Folder) read() (*layout, error) {
	raw, err := readIndex(f.dir)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.layout != nil && bytes.Equal(raw, f.raw) {
		return f.layout, nil
	}
	l, err := parseLayout(raw, shelf(f.dir))
	if err != nil {
		return nil, err
	}
	f.raw, f.layout = raw, l
	return l, nil
}

func readIndex(dir string) ([]byte, error) {
	file, size, err := shelf(dir).open(fileIndex)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if size > maxJSON {
		return nil, problem(chandler.CodeTarSize, "begin another folder", "%s is over %d bytes", fileIndex, maxJSON)
	}
	return io.ReadAll(io.LimitReader(file, maxJSON))
}

// shelf is a folder in which blobs lie.
type shelf string

func (shelf) kind() string { return "the folder" }

func (s shelf) blob(digest string) (io.ReadCloser, int64, error) {
	if _, ok := chandler.ParseDigest[chandler.BlobDigest](digest); !ok {
		return nil, 0, fs.ErrNotExist
	}
	return s.open(blobFolder + hexOf(digest))
}

// open opens a file in the folder: one that is none, or lies elsewhere, is an error.
func (s shelf) open(name string) (io.ReadCloser, int64, error) {
	root, err := os.OpenRoot(string(s))
	if err != nil {
		return nil, 0, err
	}
	defer root.Close()
	file, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // or a pipe would be waited for
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: errors.New("not a file")}
	}
	if err != nil {
		file.Close()
		return nil, 0, err
	}
	return file, info.Size(), nil
}

// Loading puts artifacts into a folder. They are to be found when Commit has been
// called, all of them or none.
type Loading struct {
	dir     string
	lock    *durable.DirLock
	entries entries // that were put
}

// Load begins to put artifacts into the folder at dir, which is made if need be, for
// this user alone, and is nobody else's to load into until Close. What is wrong with
// the folder is a *chandler.Problem, or an error of the file system.
func Load(dir string) (*Loading, error) {
	lock, err := durable.Lock(dir)
	if err != nil {
		return nil, err
	}
	l := &Loading{dir: dir, lock: lock}
	blobs := filepath.Join(dir, blobFolder)
	if err := errors.Join(durable.Mkdir(durable.OS(), blobs), durable.Sweep(durable.OS(), dir)); err != nil {
		return nil, errors.Join(err, lock.Unlock())
	}
	if err := durable.Sweep(durable.OS(), blobs); err != nil {
		return nil, errors.Join(err, lock.Unlock())
	}
	return l, nil
}

// Repository takes in artifacts of one repository.
func (l *Loading) Repository(ref chandler.Reference) fetch.Receiver {
	ref.Tag, ref.Digest = "", ""
	return receiver{l.keep, &l.entries, ref}
}

// keep writes a blob, unless it is there and whole.
func (l *Loading) keep(d fetch.Descriptor, from io.ReaderAt) error {
	if l.has(d) {
		return nil
	}
	file, err := durable.Create(durable.OS(), filepath.Join(l.dir, blobFolder, hexOf(d.Digest)))
	if err != nil {
		return err
	}
	defer file.Abort()
	if _, err := io.Copy(file, io.NewSectionReader(from, 0, d.Size)); err != nil {
		return err
	}
	return file.Commit()
}

func (l *Loading) has(d fetch.Descriptor) bool {
	blob, size, err := shelf(l.dir).blob(d.Digest)
	if err != nil {
		return false
	}
	defer blob.Close()
	if size != d.Size {
		return false
	}
	digest, _, err := fetch.Copy(io.Discard, blob)
	return err == nil && string(digest) == d.Digest
}

// Commit enters in the index what was put. A tag is that of the artifact that was put
// last; the one before keeps its digest.
func (l *Loading) Commit() error {
	var all entries
	raw, err := readIndex(l.dir)
	if err == nil {
		all, err = parseIndex(raw, shelf(l.dir).kind())
	} else if errors.Is(err, fs.ErrNotExist) {
		err = durable.Write(durable.OS(), filepath.Join(l.dir, fileLayout), []byte(contentLayout))
	}
	if err != nil {
		return err
	}
	for _, e := range l.entries {
		all.replace(e)
	}
	if raw, err = json.Marshal(index{2, typeIndex, all}); err != nil {
		return fmt.Errorf("index of a folder: %w", err)
	}
	if len(raw) > maxJSON || len(all) > maxEntries {
		return problem(chandler.CodeTarEntries, "load what is in use into a new folder, and name that in hosts.toml", "the folder would have %d entries in %d bytes, limit %d in %d", len(all), len(raw), maxEntries, maxJSON)
	}
	return durable.Write(durable.OS(), filepath.Join(l.dir, fileIndex), raw)
}

// replace adds an entry, and takes its name from the one that had it.
func (all *entries) replace(e entry) {
	name, tag := e.Annotations[annotationName], e.Annotations[annotationTag]
	i := slices.IndexFunc(*all, func(other entry) bool {
		return name != "" && other.Annotations[annotationName] == name && other.Digest != e.Digest
	})
	if i >= 0 {
		old := (*all)[i]
		*all = slices.Delete(*all, i, i+1)
		if ref, p := chandler.ParseReference(name); p == nil && !attachmentTag.MatchString(tag) {
			ref.Tag, ref.Digest = "", chandler.ArtifactDigest(old.Digest)
			old.Annotations = map[string]string{annotationName: nameOf(ref)}
			all.add(old)
		}
	}
	all.add(e)
}

// Close lets others load. Without Commit before it nothing was put.
func (l *Loading) Close() error { return l.lock.Unlock() }
