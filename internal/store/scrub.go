package store

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"chandler.dev/chandler"
)

// DefaultScrub is the period of Scrub when none is given.
const DefaultScrub = 24 * time.Hour

// lookEvery is how often it is looked whether the files of modules in use are
// there; that costs next to nothing.
const lookEvery = 5 * time.Second

// Scrub watches over the modules until ctx ends. Every few seconds it looks
// whether the files of those in use are there and of their size, and within each
// period it hashes every module once, one at a time and evenly spread. What is
// corrupt goes into quarantine, also from under its leases. lost is told of each
// module that is found to be gone or corrupt while it was in use.
func (s *Store) Scrub(ctx context.Context, period time.Duration, lost func(chandler.ModuleDigest)) {
	if period <= 0 {
		period = DefaultScrub
	}
	var last chandler.ModuleDigest
	look, hash := time.Now(), time.Now()
	for {
		list := s.List()
		each := period / time.Duration(max(1, len(list)))
		timer := time.NewTimer(max(min(time.Until(hash.Add(each)), time.Until(look.Add(lookEvery))), time.Millisecond))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		if time.Since(look) >= lookEvery {
			look = time.Now()
			for _, e := range list {
				if e.Leased && s.gone(e.Digest) {
					lost(e.Digest)
				}
			}
			list = s.List() // what was lost is told of once
		}
		if time.Since(hash) >= each && len(list) > 0 {
			hash = time.Now()
			e := after(list, last)
			last = e.Digest
			if err := s.Verify(e.Digest); isAbsent(err) && e.Leased {
				lost(e.Digest)
			}
		}
	}
}

// gone tells whether a module's file is not there, or of another size.
func (s *Store) gone(d chandler.ModuleDigest) bool {
	l, err := s.pin(d)
	if err != nil {
		return isAbsent(err)
	}
	defer l.Release()
	defer s.busy.lock(d)()
	return isAbsent(s.check(l, false))
}

func isAbsent(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// after is the entry that follows last in the order of digests, in a circle.
func after(list []Entry, last chandler.ModuleDigest) Entry {
	var next, first *Entry
	for i := range list {
		e := &list[i]
		if first == nil || e.Digest < first.Digest {
			first = e
		}
		if e.Digest > last && (next == nil || e.Digest < next.Digest) {
			next = e
		}
	}
	if next == nil {
		next = first
	}
	return *next
}
