package store

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"syscall"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
)

// Ingest takes in the module that r gives, up to its EOF, and tells its digest
// and its size in bytes. With want the content must have that digest, and r is
// not read at all when the store has it already.
//
// What is wrong is a *chandler.Problem: DigestMismatch, ModuleTooLarge, CacheFull
// (after dropping all that may be dropped, so that another try is worth it) or
// CacheUnwritable. An error of r is given back as it is, with context. Whatever
// the error, the store is as before and nothing partial stays.
//
// The module is not leased: it may be dropped again before it is acquired, and
// is then to be ingested anew.
func (s *Store) Ingest(r io.Reader, want chandler.ModuleDigest) (chandler.ModuleDigest, int64, error) {
	if want != "" {
		if _, ok := chandler.ParseDigest[chandler.ModuleDigest](string(want)); !ok {
			return "", 0, chandler.Problemf(chandler.CodeDigestSyntax, "", "write sha256: and 64 lower-case hex digits",
				"%s is not the digest of a module", chandler.Quote(string(want)))
		}
		switch l, err := s.Acquire(want); {
		case err == nil:
			defer l.Release()
			return want, l.Size(), nil
		case !errors.Is(err, fs.ErrNotExist):
			return "", 0, err
		}
	}
	if err := s.renew(); err != nil {
		return "", 0, err
	}
	p, err := durable.Create(s.FS, filepath.Join(s.Dir, "incoming"))
	if err != nil {
		return "", 0, s.diskProblem(err, 0)
	}
	in := &intake{Pending: p}
	defer s.end(in)
	got, err := s.receive(in, r)
	if err != nil {
		return "", 0, err
	}
	if want != "" && got != want {
		return "", 0, chandler.Problemf(chandler.CodeDigestMismatch, "",
			"the source gives other bytes than were asked for: correct the digest, or look at the source",
			"module is %s (%d bytes), want %s", got, in.size, want)
	}
	if err := s.commit(in, got); err != nil {
		return "", 0, err
	}
	return got, in.size, nil
}

// renew makes the store's directory again if somebody removed it. What was in it is
// absent from then on, as what else is gone behind the store's back.
func (s *Store) renew() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("ingest: %w", fs.ErrClosed)
	}
	anew, err := s.lock.Renew()
	if anew {
		s.Log.Warn("the directory of the store was removed, and was made again", "directory", s.Dir)
	}
	return err
}

// intake is a module that is being written.
type intake struct {
	*durable.Pending
	size     int64 // written so far
	reserved int64 // of the budget
}

// end drops what was not committed and gives its part of the budget back.
func (s *Store) end(in *intake) {
	in.Abort()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending -= in.reserved
}

// receive writes all that r gives and hashes it.
func (s *Store) receive(in *intake, r io.Reader) (chandler.ModuleDigest, error) {
	h := sha256.New()
	buf := make([]byte, bufferSize)
	r = &progress{Reader: r}
	for {
		n, readErr := r.Read(buf)
		if in.size+int64(n) > s.MaxModule {
			return "", chandler.Problemf(chandler.CodeModuleTooLarge, "",
				"build a smaller module, or raise the limit",
				"module is larger than the limit of %d bytes", s.MaxModule)
		}
		if err := s.reserve(in, int64(n)); err != nil {
			return "", err
		}
		h.Write(buf[:n])
		if _, err := in.Write(buf[:n]); err != nil {
			return "", s.diskProblem(err, in.size)
		}
		in.size += int64(n)
		switch {
		case readErr == io.EOF:
			return chandler.DigestOf[chandler.ModuleDigest](h.Sum(nil)), nil
		case readErr != nil:
			return "", fmt.Errorf("read module: %w", readErr)
		}
	}
}

// progress ends a reader that gives nothing again and again.
type progress struct {
	io.Reader
	empty int
}

func (p *progress) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	if n > 0 {
		p.empty = 0
	} else if p.empty++; err == nil && p.empty > 100 {
		err = io.ErrNoProgress
	}
	return n, err
}

// commit makes what was written an entry, unless there is a good one already.
// When two ingests of one digest end together the second finds the first's entry.
func (s *Store) commit(in *intake, d chandler.ModuleDigest) error {
	defer s.busy.lock(d)()
	if l, err := s.pin(d); err == nil {
		defer l.Release()
		if err := s.check(l, false); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := in.CommitAs(d.Hex() + suffix); err != nil {
		// It may have its name already without being safe on disk: not written.
		_ = s.FS.Remove(s.path(d))
		return s.diskProblem(err, in.size)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("ingest module %s: %w", d, fs.ErrClosed)
	}
	now := s.Now()
	s.entries[d] = &entry{size: in.size, verified: true, used: now, noted: now}
	s.bytes += in.size
	s.pending -= in.reserved
	in.reserved = 0
	return nil
}

// reserve takes n more bytes of the budget for in, making room if need be.
func (s *Store) reserve(in *intake, n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("ingest: %w", fs.ErrClosed)
	}
	if err := s.makeRoom(n); n > 0 && err != nil {
		return err
	}
	s.pending += n
	in.reserved += n
	return nil
}

// Trim drops what was used longest ago and is not leased until the store is
// within its budget. It is for a budget that shrank; Ingest makes its own room.
func (s *Store) Trim() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.makeRoom(0)
}

// Drop drops what was used longest ago, is not leased and is not among those to
// keep, until at most most bytes stay, and tells what it dropped; dry only tells.
// What cannot be removed from disk is gone from the store all the same.
func (s *Store) Drop(keep func(chandler.ModuleDigest) bool, most int64, dry bool) []Entry {
	list := s.List()
	s.mu.Lock()
	defer s.mu.Unlock()
	var dropped []Entry
	bytes := s.bytes
	for _, e := range slices.Backward(list) {
		if bytes <= most {
			break
		}
		now := s.entries[e.Digest]
		if now == nil || now.leases > 0 || keep(e.Digest) {
			continue
		}
		bytes -= now.size
		dropped = append(dropped, e)
		if !dry {
			s.remove(e.Digest)
		}
	}
	return dropped
}

// makeRoom drops entries until n more bytes are within the budget. s.mu is held.
func (s *Store) makeRoom(n int64) error {
	for s.bytes+s.pending+n > s.MaxBytes {
		if !s.dropOldest() {
			leased, bytes := 0, int64(0)
			for _, e := range s.entries {
				if e.leases > 0 {
					leased, bytes = leased+1, bytes+e.size
				}
			}
			return chandler.Problemf(chandler.CodeCacheFull, "", "raise the store's limit, or remove plugins",
				"store of %d bytes is full: %d modules of %d bytes are in use and %d bytes are being written",
				s.MaxBytes, leased, bytes, s.pending+n)
		}
	}
	return nil
}

// dropOldest drops the entry that was used longest ago among those that are not
// leased and tells whether there was one. It may come back after a loss of
// power, which harms nobody. s.mu is held, so that no lease begins meanwhile.
func (s *Store) dropOldest() bool {
	var oldest chandler.ModuleDigest
	for d, e := range s.entries {
		if e.leases > 0 {
			continue
		}
		if o := s.entries[oldest]; o == nil || e.used.Before(o.used) || (e.used.Equal(o.used) && d < oldest) {
			oldest = d
		}
	}
	if s.entries[oldest] == nil {
		return false
	}
	s.remove(oldest)
	s.evicted++
	return true
}

// remove takes an entry out that is not leased. s.mu is held.
func (s *Store) remove(d chandler.ModuleDigest) {
	s.bytes -= s.entries[d].size
	delete(s.entries, d)
	if err := s.FS.Remove(s.path(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.Log.Warn("module could not be removed from disk", "module", d, "error", err)
	}
}

// diskProblem tells what a failed write of size bytes means. On a full disk it
// makes room there, so that the next try finds some.
func (s *Store) diskProblem(err error, size int64) error {
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return unwritable(s.Dir, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.bytes
	for before-s.bytes <= size && s.dropOldest() {
		continue
	}
	return chandler.Problemf(chandler.CodeCacheFull, "", "free some space or inodes there, or lower the store's limit",
		"the disk of store %s is full; %d bytes of modules that are not in use were dropped", chandler.Quote(s.Dir), before-s.bytes)
}
