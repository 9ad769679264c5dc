package crashfs

import (
	"io"
	"io/fs"
	"slices"
	"syscall"
	"time"
)

// file is an open file. Writes append, as all that durable does.
type file struct {
	fsys     *FS
	path     string
	node     *node
	offset   int64
	writable bool
	closed   bool
}

// begin counts a call on an open file. On success the lock is held.
func (h *file) begin(op string) error {
	h.fsys.mu.Lock()
	err := h.fsys.call(op, h.path)
	if err == nil && h.closed {
		err = &fs.PathError{Op: op, Path: h.path, Err: fs.ErrClosed}
	}
	if err != nil {
		h.fsys.mu.Unlock()
	}
	return err
}

func (h *file) Read(b []byte) (int, error) {
	if err := h.begin("read"); err != nil {
		return 0, err
	}
	defer h.fsys.mu.Unlock()
	n, err := h.readAt(b, h.offset)
	h.offset += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

func (h *file) ReadAt(b []byte, off int64) (int, error) {
	if err := h.begin("read"); err != nil {
		return 0, err
	}
	defer h.fsys.mu.Unlock()
	return h.readAt(b, off)
}

func (h *file) readAt(b []byte, off int64) (int, error) {
	if off >= int64(len(h.node.bytes)) {
		return 0, io.EOF
	}
	n := copy(b, h.node.bytes[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (h *file) Seek(offset int64, whence int) (int64, error) {
	h.fsys.mu.Lock()
	defer h.fsys.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		offset += h.offset
	case io.SeekEnd:
		offset += int64(len(h.node.bytes))
	}
	if offset < 0 {
		return 0, &fs.PathError{Op: "seek", Path: h.path, Err: fs.ErrInvalid}
	}
	h.offset = offset
	return offset, nil
}

func (h *file) Write(b []byte) (int, error) {
	f := h.fsys
	f.mu.Lock()
	defer f.mu.Unlock()
	if h.closed || !h.writable {
		return 0, &fs.PathError{Op: "write", Path: h.path, Err: fs.ErrClosed}
	}
	stopped := f.crashAt > 0 && f.calls >= f.crashAt
	err := f.call("write", h.path)
	if err == nil && f.used()+int64(len(b)) > f.limit {
		err = &fs.PathError{Op: "write", Path: h.path, Err: syscall.ENOSPC}
	}
	switch {
	case stopped:
		b = nil // the machine stopped at an earlier call
	case err != nil:
		b = b[:len(b)/2] // as a disk does that is full in the middle
		b = b[:max(0, min(int64(len(b)), f.limit-f.used()))]
	}
	h.node.bytes = append(h.node.bytes, b...)
	h.node.modified = f.now()
	return len(b), err
}

func (h *file) Sync() error {
	if err := h.begin("sync"); err != nil {
		return err
	}
	defer h.fsys.mu.Unlock()
	h.node.synced = slices.Clone(h.node.bytes)
	return nil
}

func (h *file) Close() error {
	h.fsys.mu.Lock()
	defer h.fsys.mu.Unlock()
	err := h.fsys.call("close", h.path)
	if h.closed {
		return &fs.PathError{Op: "close", Path: h.path, Err: fs.ErrClosed}
	}
	h.closed = true // also when close fails, as in Unix
	return err
}

func (h *file) Stat() (fs.FileInfo, error) {
	if err := h.begin("stat"); err != nil {
		return nil, err
	}
	defer h.fsys.mu.Unlock()
	return h.node.stat(h.path), nil
}

func (n *node) stat(name string) fs.FileInfo {
	return stat{name, int64(len(n.bytes)), n.entries != nil, n.modified}
}

type stat struct {
	name     string
	size     int64
	dir      bool
	modified time.Time
}

func (s stat) Name() string       { return s.name }
func (s stat) Size() int64        { return s.size }
func (s stat) ModTime() time.Time { return s.modified }
func (s stat) IsDir() bool        { return s.dir }
func (s stat) Sys() any           { return nil }
func (s stat) Mode() fs.FileMode {
	if s.dir {
		return fs.ModeDir | 0o700
	}
	return 0o600
}
