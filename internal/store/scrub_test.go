package store_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable/crashfs"
	"chandler.dev/chandler/internal/store"
)

// A scrub finds what is gone and what is corrupt within its period, of modules in
// use and others; only of those in use anybody is told, and once for each loss.
func TestFault_F17_F18_Scrub(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, store.Config{Dir: dir})
	used, gone, unused, whole := ingest(t, s, 1, 100), ingest(t, s, 2, 100), ingest(t, s, 3, 100), ingest(t, s, 4, 100)
	for _, d := range []chandler.ModuleDigest{used, gone, whole} {
		defer acquire(t, s, d).Release()
	}
	file := func(d chandler.ModuleDigest) string { return filepath.Join(dir, d.Hex()+".wasm") }
	for _, d := range []chandler.ModuleDigest{used, unused} {
		if err := os.WriteFile(file(d), make([]byte, 100), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(file(gone)); err != nil {
		t.Fatal(err)
	}

	var mu sync.Mutex
	lost := map[chandler.ModuleDigest]int{}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Scrub(ctx, 20*time.Millisecond, func(d chandler.ModuleDigest) {
			mu.Lock()
			defer mu.Unlock()
			lost[d]++
		})
	}()
	for until := time.Now().Add(time.Minute); s.Has(used) || s.Has(gone) || s.Has(unused); {
		if time.Now().After(until) {
			t.Fatal("the scrub does not find it")
		}
		<-time.After(time.Millisecond)
	}
	<-time.After(50 * time.Millisecond) // rounds in which nothing is to be found
	cancel()
	<-ended
	if len(lost) != 2 || lost[used] != 1 || lost[gone] != 1 {
		t.Errorf("told of %v, want once of %s and of %s", lost, used, gone)
	}
	if _, err := s.Acquire(unused); !errors.Is(err, fs.ErrNotExist) || !s.Has(whole) {
		t.Errorf("%v; the whole one is there: %v", err, s.Has(whole))
	}
}

// Also when it is looked for and hashed at the same moment.
func TestScrubTellsOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fsys := crashfs.New()
		s := open(t, store.Config{FS: fsys})
		if err := fsys.Remove(acquire(t, s, ingest(t, s, 1, 100)).Path()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		told := 0
		go s.Scrub(ctx, 5*time.Second, func(chandler.ModuleDigest) { told++ })
		time.Sleep(time.Minute)
		cancel()
		synctest.Wait()
		if told != 1 {
			t.Errorf("told %d times", told)
		}
	})
}
