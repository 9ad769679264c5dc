package trust

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/fetch"
)

// Bounds of what is kept on disk, for what counted once.
const (
	maxKept     = 2048
	maxKeptFile = 256 << 10
	keptSuffix  = ".json"
)

// shelf keeps signatures as files, one an artifact. What is read from it is
// verified like what is fetched, so nobody has to trust the disk.
type shelf struct {
	fsys durable.FS
	dir  string // empty: nothing is kept
}

func (s shelf) path(of subject) string {
	return filepath.Join(s.dir, hash(of.ref.String(), of.artifact)+keptSuffix)
}

func (s shelf) load(of subject) (fetch.Signatures, bool) {
	if s.dir == "" {
		return fetch.Signatures{}, false
	}
	b, err := durable.Read(s.fsys, s.path(of), maxKeptFile)
	if err != nil {
		return fetch.Signatures{}, false
	}
	var found fetch.Signatures
	if err := json.Unmarshal(b, &found.Found); err != nil || len(found.Found) > fetch.MaxSignatures {
		return fetch.Signatures{}, false
	}
	found.Listed = len(found.Found)
	return found, true
}

// save keeps signatures, and gives up the oldest ones when there are too many.
func (s shelf) save(of subject, found fetch.Signatures) error {
	if s.dir == "" {
		return nil
	}
	b, err := json.Marshal(found.Found)
	if err != nil { // plain types only
		panic(fmt.Sprintf("trust: marshal: %v", err))
	}
	if len(b) > maxKeptFile {
		return nil
	}
	if err := durable.Mkdir(s.fsys, s.dir); err != nil {
		return err
	}
	if err := durable.Write(s.fsys, s.path(of), b); err != nil {
		return err
	}
	return s.trim()
}

func (s shelf) trim() error {
	entries, err := s.fsys.ReadDir(s.dir)
	if err != nil || len(entries) <= maxKept {
		return err
	}
	var files []fs.FileInfo
	for _, e := range entries {
		if info, err := e.Info(); err == nil && strings.HasSuffix(e.Name(), keptSuffix) {
			files = append(files, info)
		}
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, f := range files[:max(0, len(files)-maxKept)] {
		if err := durable.Remove(s.fsys, filepath.Join(s.dir, f.Name())); err != nil {
			return err
		}
	}
	return nil
}
