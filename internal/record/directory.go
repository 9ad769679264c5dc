package record

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/later"
)

// maxRecord bounds one file: a release holds a plugin's configuration.
const maxRecord = 4 << 20

// Directory keeps a file a record: releases/ID.json and rollouts/UID.json.
// Whoever opens it holds the lock of the directory above.
type Directory struct {
	fsys durable.FS
	dir  string
	log  *slog.Logger

	mu sync.Mutex // orders the reading and writing of one swap
}

// OpenDirectory makes what is missing of the directory and clears what a crash
// left. log may be nil.
func OpenDirectory(fsys durable.FS, dir string, log *slog.Logger) (*Directory, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	d := &Directory{fsys: fsys, dir: dir, log: log}
	for _, sub := range []string{releasesDir, rolloutsDir} {
		path := filepath.Join(dir, sub)
		if err := durable.Mkdir(fsys, path); err != nil {
			return nil, err
		}
		if err := durable.Sweep(fsys, path); err != nil {
			return nil, err
		}
	}
	return d, nil
}

const (
	releasesDir = "releases"
	rolloutsDir = "rollouts"
	extension   = ".json"
)

func (d *Directory) path(sub, name string) (string, error) {
	if name == "" || strings.ContainsAny(name, `/\`) || strings.HasPrefix(name, ".") {
		return "", fmt.Errorf("%s is no name of a record", chandler.Quote(name))
	}
	return filepath.Join(d.dir, sub, name+extension), nil
}

// Releases implements Store. A file that is not what its name says is set aside,
// and one of another format passed by, with a log line.
func (d *Directory) Releases(context.Context) ([]chandler.Release, error) {
	var out []chandler.Release
	err := d.each(releasesDir, func(name string, b []byte) error {
		r, err := DecodeRelease(b)
		if err != nil {
			return err
		}
		if string(r.ID) != name {
			return errors.New("its content is not what its name says")
		}
		out = append(out, r)
		return nil
	})
	return out, err
}

// Rollouts implements Store, with the same care.
func (d *Directory) Rollouts(context.Context) ([]Rollout, error) {
	var out []Rollout
	err := d.each(rolloutsDir, func(name string, b []byte) error {
		r, err := DecodeRollout(b)
		if err != nil {
			return err
		}
		if r.UID != name {
			return errors.New("its content is not what its name says")
		}
		out = append(out, r)
		return nil
	})
	return out, err
}

// each reads every record of a kind. What cannot be read as a record is set
// aside; an error is one of the disk.
func (d *Directory) each(sub string, read func(name string, b []byte) error) error {
	entries, err := d.fsys.ReadDir(filepath.Join(d.dir, sub))
	if err != nil {
		return fmt.Errorf("records: %w", err)
	}
	for _, e := range entries {
		name, isRecord := strings.CutSuffix(e.Name(), extension)
		if !isRecord || durable.IsTemp(e.Name()) {
			continue
		}
		path := filepath.Join(d.dir, sub, e.Name())
		b, err := durable.Read(d.fsys, path, maxRecord)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return fmt.Errorf("records: %w", err)
		}
		if err := read(name, b); err != nil {
			if err := d.setAside(path, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// setAside deals with a file that is no record to us.
func (d *Directory) setAside(path string, reason error) error {
	if errors.Is(reason, ErrFormat) {
		d.log.Warn("a record is passed by", "file", path, "reason", reason)
		return nil
	}
	aside, err := durable.SetAside(d.fsys, path)
	if err != nil {
		return fmt.Errorf("records: %w", err)
	}
	d.log.Warn("a record is set aside", "file", aside, "reason", reason)
	return nil
}

// PutRelease implements Store.
func (d *Directory) PutRelease(_ context.Context, r chandler.Release) error {
	if err := Check(r); err != nil {
		return err
	}
	path, err := d.path(releasesDir, string(r.ID))
	if err != nil {
		return err
	}
	if _, err := d.fsys.Stat(path); err == nil {
		return nil
	}
	return d.write(path, r, nil)
}

// write writes a record, and with it what a later version wrote into the one before.
func (d *Directory) write(path string, v any, more later.Fields) error {
	b, err := json.Marshal(v)
	if err == nil {
		b, err = more.AddTo(b)
	}
	var text bytes.Buffer
	if err == nil {
		err = json.Indent(&text, b, "", "  ")
	}
	if err != nil {
		return fmt.Errorf("records: %w", err)
	}
	if text.Len() > maxRecord {
		return fmt.Errorf("records: %s would be %d bytes, limit %d", path, text.Len(), maxRecord)
	}
	return durable.Write(d.fsys, path, append(text.Bytes(), '\n'))
}

// DeleteRelease implements Store.
func (d *Directory) DeleteRelease(_ context.Context, id chandler.ReleaseID) error {
	return d.remove(releasesDir, string(id))
}

// DeleteRollout implements Store.
func (d *Directory) DeleteRollout(_ context.Context, uid string) error {
	return d.remove(rolloutsDir, uid)
}

func (d *Directory) remove(sub, name string) error {
	path, err := d.path(sub, name)
	if err != nil {
		return err
	}
	if err := durable.Remove(d.fsys, path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// SwapRollout implements Store.
func (d *Directory) SwapRollout(_ context.Context, old *Rollout, next Rollout) (Rollout, error) {
	path, err := d.path(rolloutsDir, next.UID)
	if err != nil {
		return Rollout{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var stored *Rollout
	b, err := durable.Read(d.fsys, path, maxRecord)
	switch {
	case err == nil:
		r, err := DecodeRollout(b)
		if err != nil {
			return Rollout{}, fmt.Errorf("records: %s: %w", path, err)
		}
		stored = &r
	case !errors.Is(err, fs.ErrNotExist):
		return Rollout{}, fmt.Errorf("records: %w", err)
	}
	next, err = swap(stored, old, next)
	if err != nil {
		return Rollout{}, err
	}
	return next, d.write(path, next, later.Of(b, next))
}
