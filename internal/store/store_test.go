package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"pgregory.net/rapid"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/durable/crashfs"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/testenv/leaks"
)

func TestMain(m *testing.M) { leaks.Main(m) }

func open(t testing.TB, cfg store.Config) *store.Store {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = "/store"
	}
	s, err := store.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// module gives content of that size and its digest; the same seed gives the same.
func module(seed, size int) ([]byte, chandler.ModuleDigest) {
	b := bytes.Repeat([]byte{byte(seed), byte(seed >> 8)}, size/2+1)[:size]
	return b, chandler.Digest[chandler.ModuleDigest](b)
}

func ingest(t testing.TB, s *store.Store, seed, size int) chandler.ModuleDigest {
	t.Helper()
	b, want := module(seed, size)
	d, n, err := s.Ingest(bytes.NewReader(b), "")
	if err != nil || d != want || n != int64(size) {
		t.Fatalf("ingest: %s, %d, %v", d, n, err)
	}
	return d
}

func acquire(t testing.TB, s *store.Store, d chandler.ModuleDigest) *store.Lease {
	t.Helper()
	l, err := s.Acquire(d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Release)
	return l
}

// holds fails unless what the lease's path has is what its digest says.
func holds(t testing.TB, l *store.Lease) {
	t.Helper()
	f, err := l.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if got := chandler.Digest[chandler.ModuleDigest](b); got != l.Digest() || int64(len(b)) != l.Size() {
		t.Errorf("%s has %d bytes of %s, want %d of %s", l.Path(), len(b), got, l.Size(), l.Digest())
	}
}

func code(err error) chandler.Code {
	var p *chandler.Problem
	if errors.As(err, &p) {
		return p.Code
	}
	return ""
}

func wantCode(t *testing.T, err error, want chandler.Code) {
	t.Helper()
	if code(err) != want {
		t.Errorf("got %v, want code %s", err, want)
	}
}

func wantAbsent(t *testing.T, s *store.Store, d chandler.ModuleDigest) {
	t.Helper()
	if _, err := s.Acquire(d); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("acquire: %v, want fs.ErrNotExist", err)
	}
}

func TestIngestAndReopenOnRealDisk(t *testing.T) {
	t.Chdir(t.TempDir())
	s := open(t, store.Config{Dir: "a/modules"})
	d := ingest(t, s, 1, 300_000)
	l := acquire(t, s, d)
	if !filepath.IsAbs(l.Path()) {
		t.Errorf("path %s is not absolute", l.Path())
	}
	holds(t, l)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("a/modules/notes.txt", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("a/modules/.durable-X.tmp", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, store.Config{Dir: "a/modules"})
	if n, size := s.Stats(); n != 1 || size != 300_000 || !s.Has(d) {
		t.Errorf("after reopening: %d entries, %d bytes", n, size)
	}
	holds(t, acquire(t, s, d))
	if _, err := os.Stat("a/modules/notes.txt"); err != nil {
		t.Error("a file of another kind was touched")
	}
	if _, err := os.Stat("a/modules/.durable-X.tmp"); err == nil {
		t.Error("what a crash left behind is still there")
	}
}

func TestFault_F12_TwoStoresOnOneDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, store.Config{Dir: dir})
	_, err := store.Open(store.Config{Dir: dir})
	wantCode(t, err, chandler.CodeCacheLocked)
	_ = s.Close()
	open(t, store.Config{Dir: dir})
}

func TestFault_F19_UnusableDirectory(t *testing.T) {
	t.Parallel()
	fsys := crashfs.New()
	open(t, store.Config{FS: fsys}).Close()
	for at := 2; at <= 4; at++ { // past the lock
		fsys.FailAt(at, syscall.EROFS)
		if s, err := store.Open(store.Config{Dir: "/store", FS: fsys}); err == nil {
			_ = s.Close()
		} else {
			wantCode(t, err, chandler.CodeCacheUnwritable)
		}
	}
}

func TestIngestOfWhatIsThereReadsNothing(t *testing.T) {
	t.Parallel()
	s := open(t, store.Config{FS: crashfs.New()})
	d := ingest(t, s, 1, 100)
	got, size, err := s.Ingest(iotest.ErrReader(errors.New("was read")), d)
	if err != nil || got != d || size != 100 {
		t.Errorf("%s, %d, %v", got, size, err)
	}
}

func TestIngestRefusals(t *testing.T) {
	t.Parallel()
	s := open(t, store.Config{FS: crashfs.New(), MaxModule: 1000, MaxBytes: 2000})
	_, other := module(2, 10)
	b, d := module(1, 1000)

	_, _, err := s.Ingest(bytes.NewReader(b), other)
	wantCode(t, err, chandler.CodeDigestMismatch)
	_, _, err = s.Ingest(bytes.NewReader(b), "sha256:short")
	wantCode(t, err, chandler.CodeDigestSyntax)
	_, _, err = s.Ingest(bytes.NewReader(append(b, 'x')), "")
	wantCode(t, err, chandler.CodeModuleTooLarge)
	broken := errors.New("reset by peer")
	if _, _, err = s.Ingest(io.MultiReader(bytes.NewReader(b), iotest.ErrReader(broken)), ""); !errors.Is(err, broken) {
		t.Errorf("the reader's error is gone: %v", err)
	}
	if _, _, err = s.Ingest(idle{}, ""); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("a reader without end: %v", err)
	}
	if n, size := s.Stats(); n != 0 || size != 0 || s.Has(d) {
		t.Errorf("something stayed: %d entries", n)
	}
	// Nothing of the budget was kept by the failures.
	for i := range 2 {
		acquire(t, s, ingest(t, s, 10+i, 1000))
	}
}

type idle struct{}

func (idle) Read([]byte) (int, error) { return 0, nil }

func TestFault_F22_FullOfWhatIsInUse(t *testing.T) {
	t.Parallel()
	s := open(t, store.Config{FS: crashfs.New(), MaxBytes: 2500})
	kept := acquire(t, s, ingest(t, s, 1, 1000))
	old := ingest(t, s, 2, 1000)
	ingest(t, s, 3, 1000) // drops 2
	wantAbsent(t, s, old)
	kept2 := acquire(t, s, ingest(t, s, 4, 1000)) // drops 3
	b, _ := module(5, 1000)
	_, _, err := s.Ingest(bytes.NewReader(b), "")
	wantCode(t, err, chandler.CodeCacheFull)
	if err == nil || !strings.Contains(err.Error(), "store of 2500 bytes is full: 2 modules of 2000 bytes are in use") {
		t.Errorf("no figures: %v", err)
	}
	holds(t, kept)
	holds(t, kept2)
	kept.Release()
	kept.Release() // twice is once
	ingest(t, s, 5, 1000)
	holds(t, kept2)
	if s.Evictions() != 3 {
		t.Errorf("%d evictions, want 3", s.Evictions())
	}
}

func TestTrimDropsWhatWasUsedLongestAgo(t *testing.T) {
	t.Parallel()
	fsys := crashfs.New()
	now := time.Unix(1_800_000_000, 0)
	clock := func() time.Time { now = now.Add(2 * time.Hour); return now }
	s := open(t, store.Config{FS: fsys, Now: clock})
	var d []chandler.ModuleDigest
	for i := range 4 {
		d = append(d, ingest(t, s, i, 1000))
	}
	acquire(t, s, d[0]).Release() // now d[1] is the oldest, also after a restart
	_ = s.Close()
	s = open(t, store.Config{FS: fsys, Now: clock, MaxBytes: 2000})
	if err := s.Trim(); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false, false, true} {
		if s.Has(d[i]) != want {
			t.Errorf("module %d is there: %v, want %v", i, !want, want)
		}
	}
	if l := s.List(); len(l) != 2 || l[0].Digest != d[0] || l[1].Digest != d[3] {
		t.Errorf("list %v", l)
	}
}

// Drop goes by last use and leaves what is leased or is to be kept; a dry one
// changes nothing.
func TestDrop(t *testing.T) {
	t.Parallel()
	fsys := crashfs.New()
	now := time.Unix(1_800_000_000, 0)
	s := open(t, store.Config{FS: fsys, Now: func() time.Time { now = now.Add(2 * time.Hour); return now }})
	var d []chandler.ModuleDigest
	for i := range 5 {
		d = append(d, ingest(t, s, i, 1000))
	}
	leased := acquire(t, s, d[0])
	keep := func(m chandler.ModuleDigest) bool { return m == d[1] }
	drop := func(most int64, dry bool, want ...chandler.ModuleDigest) {
		t.Helper()
		var got []chandler.ModuleDigest
		for _, e := range s.Drop(keep, most, dry) {
			got = append(got, e.Digest)
		}
		if !slices.Equal(got, want) {
			t.Errorf("at most %d bytes, dry %v: dropped %v, want %v", most, dry, got, want)
		}
	}
	drop(0, true, d[2], d[3], d[4])
	if n, _ := s.Stats(); n != 5 {
		t.Errorf("after a dry one %d are there", n)
	}
	drop(5000, false)
	drop(4000, false, d[2])
	drop(0, false, d[3], d[4])
	drop(0, false)
	leased.Release()
	drop(0, false, d[0])
	list, err := store.Read(fsys, s.Dir)
	if n, bytes := s.Stats(); err != nil || len(list) != 1 || list[0].Digest != d[1] || list[0].Size != 1000 || n != 1 || bytes != 1000 {
		t.Errorf("on disk %v, %v; stats %d of %d", list, err, n, bytes)
	}
}

func TestFault_F16_F17_F18_CorruptEntries(t *testing.T) {
	t.Parallel()
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	for name, spoil := range map[string]func(fsys *crashfs.FS, path string) error{
		"bit flip": func(fsys *crashfs.FS, path string) error { return fsys.Corrupt(path, flip) },
		"cut": func(fsys *crashfs.FS, path string) error {
			return fsys.Corrupt(path, func(b []byte) []byte { return b[:len(b)-1] })
		},
		"emptied": func(fsys *crashfs.FS, path string) error {
			return fsys.Corrupt(path, func([]byte) []byte { return nil })
		},
		"removed":    func(fsys *crashfs.FS, path string) error { return fsys.Remove(path) },
		"unreadable": func(fsys *crashfs.FS, _ string) error { fsys.FailAt(4, syscall.EIO); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fsys := crashfs.New()
			s := open(t, store.Config{FS: fsys})
			d := ingest(t, s, 1, 1000)
			l, err := s.Acquire(d)
			if err != nil {
				t.Fatal(err)
			}
			l.Release()
			_ = s.Close()
			s = open(t, store.Config{FS: fsys})
			if err := spoil(fsys, l.Path()); err != nil {
				t.Fatal(err)
			}
			wantAbsent(t, s, d)
			if n, size := s.Stats(); n != 0 || size != 0 {
				t.Errorf("still counted: %d entries, %d bytes", n, size)
			}
			ingest(t, s, 1, 1000)
			holds(t, acquire(t, s, d))
		})
	}
}

func TestCorruptWhileInUse(t *testing.T) {
	t.Parallel()
	fsys := crashfs.New()
	s := open(t, store.Config{FS: fsys})
	d := ingest(t, s, 1, 1000)
	l := acquire(t, s, d)
	if err := s.Verify(d); err != nil {
		t.Fatal(err)
	}
	if err := fsys.Corrupt(l.Path(), func(b []byte) []byte { b[0]++; return b }); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(d); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("verify: %v", err)
	}
	ingest(t, s, 1, 1000)
	holds(t, l) // the same content is at the same path again
}

func TestQuarantineIsBounded(t *testing.T) {
	t.Parallel()
	fsys := crashfs.New()
	s := open(t, store.Config{FS: fsys})
	for i := range 10 {
		d := ingest(t, s, i, 1000)
		l := acquire(t, s, d)
		if err := fsys.Corrupt(l.Path(), func([]byte) []byte { return []byte{byte(i)} }); err != nil {
			t.Fatal(err)
		}
		wantAbsent(t, s, d)
	}
	if files, err := fsys.ReadDir("/store/quarantine"); err != nil || len(files) != 4 {
		t.Errorf("%d files in quarantine (%v)", len(files), err)
	}
}

// A crash at any moment of an ingest leaves the older modules, and the new one
// whole or not at all.
func TestFault_F2_F3_F20_CrashInIngest(t *testing.T) {
	t.Parallel()
	older, olderDigest := module(1, 1000)
	newer, newerDigest := module(2, 300_000)
	put := func(content []byte) func(*crashfs.FS) error {
		return func(fsys *crashfs.FS) error {
			s, err := store.Open(store.Config{Dir: "/store", FS: fsys})
			if err != nil {
				return err
			}
			_, _, err = s.Ingest(bytes.NewReader(content), "")
			return errors.Join(err, s.Close())
		}
	}
	crashfs.Sweep(t, put(older), put(newer), func(t *testing.T, after *crashfs.FS, finished bool) {
		s := open(t, store.Config{FS: after})
		holds(t, acquire(t, s, olderDigest))
		l, err := s.Acquire(newerDigest)
		switch {
		case err == nil:
			holds(t, l)
			l.Release()
		case finished || !errors.Is(err, fs.ErrNotExist):
			t.Errorf("ingest finished: %v, but acquire: %v", finished, err)
		}
		onlyModules(t, after)
		ingest(t, s, 2, 300_000)
		holds(t, acquire(t, s, newerDigest))
	})
}

func TestFault_F14_F15_F21_DiskErrorsInIngest(t *testing.T) {
	t.Parallel()
	older, olderDigest := module(1, 1000)
	newer, _ := module(2, 300_000)
	var s *store.Store
	prepare := func(fsys *crashfs.FS) (err error) {
		if s, err = store.Open(store.Config{Dir: "/store", FS: fsys}); err != nil {
			return err
		}
		if _, _, err = s.Ingest(bytes.NewReader(older), ""); err != nil {
			return err
		}
		_, err = s.Acquire(olderDigest)
		return err
	}
	work := func(*crashfs.FS) error {
		_, _, err := s.Ingest(bytes.NewReader(newer), "")
		return err
	}
	crashfs.SweepErrors(t, prepare, work, func(t *testing.T, fsys *crashfs.FS, err error) {
		if c := code(err); err != nil && c != chandler.CodeCacheFull && c != chandler.CodeCacheUnwritable {
			t.Errorf("not a problem: %v", err)
		}
		if err != nil {
			if n, _ := s.Stats(); n != 1 {
				t.Errorf("%d entries after %v", n, err)
			}
			onlyModules(t, fsys)
		}
		holds(t, acquire(t, s, olderDigest))
		holds(t, acquire(t, s, ingest(t, s, 2, 300_000)))
	})
}

func onlyModules(t *testing.T, fsys durable.FS) {
	t.Helper()
	files, err := fsys.ReadDir("/store")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Name() != "lock" && !strings.HasSuffix(f.Name(), ".wasm") {
			t.Errorf("%s is left over", f.Name())
		}
	}
}

func TestFault_F14_FullDiskDropsWhatIsNotInUse(t *testing.T) {
	t.Parallel()
	fsys := crashfs.New()
	s := open(t, store.Config{FS: fsys})
	used := acquire(t, s, ingest(t, s, 1, 400_000))
	ingest(t, s, 2, 400_000)
	fsys.Limit(1_000_000)
	b, want := module(3, 400_000)
	_, _, err := s.Ingest(bytes.NewReader(b), want)
	wantCode(t, err, chandler.CodeCacheFull)
	if _, _, err := s.Ingest(bytes.NewReader(b), want); err != nil {
		t.Errorf("the second try: %v", err)
	}
	holds(t, used)
	holds(t, acquire(t, s, want))
}

func TestFault_F23_LeasesAgainstTrim(t *testing.T) {
	t.Parallel()
	s := open(t, store.Config{Dir: t.TempDir(), MaxBytes: 6 * 20_000})
	stop := make(chan struct{})
	var trimming, using sync.WaitGroup
	trimming.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = s.Trim()
			}
		}
	})
	for worker := range 4 {
		using.Go(func() {
			random := rand.New(rand.NewPCG(uint64(worker), 0))
			for range 60 {
				b, d := module(random.IntN(12), 20_000)
				if _, _, err := s.Ingest(bytes.NewReader(b), d); err != nil && code(err) != chandler.CodeCacheFull {
					t.Errorf("ingest: %v", err)
				}
				l, err := s.Acquire(d)
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err != nil {
					t.Errorf("acquire: %v", err)
					return
				}
				holds(t, l)
				l.Release()
			}
		})
	}
	using.Wait()
	close(stop)
	trimming.Wait()
	if _, size := s.Stats(); size > 6*20_000 {
		t.Errorf("%d bytes are over the budget", size)
	}
}

func TestConcurrentIngestOfOneDigest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, store.Config{Dir: dir})
	b, d := module(7, 500_000)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			want := d
			if i%2 == 0 {
				want = ""
			}
			if got, _, err := s.Ingest(bytes.NewReader(b), want); err != nil || got != d {
				t.Errorf("ingest %d: %s, %v", i, got, err)
			}
			l, err := s.Acquire(d)
			if err != nil {
				t.Errorf("acquire %d: %v", i, err)
				return
			}
			holds(t, l)
			l.Release()
		})
	}
	all.Wait()
	if n, size := s.Stats(); n != 1 || size != 500_000 {
		t.Errorf("%d entries, %d bytes", n, size)
	}
	if files, _ := os.ReadDir(dir); len(files) != 2 { // the module and the lock
		t.Errorf("files: %v", files)
	}
}

func TestIngestMemoryIsBounded(t *testing.T) {
	s := open(t, store.Config{Dir: t.TempDir()})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, _, err := s.Ingest(io.LimitReader(zeros{}, 32<<20), ""); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("32 MiB took %d bytes of memory", n)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestAfterClose(t *testing.T) {
	t.Parallel()
	s := open(t, store.Config{FS: crashfs.New()})
	d := ingest(t, s, 1, 10)
	l := acquire(t, s, d)
	_ = s.Close()
	if err := s.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	l.Release()
	if _, err := s.Acquire(d); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("acquire: %v", err)
	}
	if _, _, err := s.Ingest(strings.NewReader("x"), ""); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("ingest: %v", err)
	}
}

// Any order of ingests, leases, corruptions, restarts and losses of power: what
// is acquired is what its name says, and a lease lives as long as its store.
func TestAnyOrder(t *testing.T) {
	t.Parallel()
	const budget = 5000
	rapid.Check(t, func(t *rapid.T) {
		fsys := crashfs.New()
		cfg := store.Config{Dir: "/store", MaxBytes: budget}
		var s *store.Store
		leases := map[chandler.ModuleDigest]*store.Lease{}
		reopen := func() {
			if s != nil {
				_ = s.Close()
			}
			cfg.FS = fsys
			clear(leases)
			var err error
			if s, err = store.Open(cfg); err != nil {
				t.Fatal(err)
			}
		}
		reopen()
		pick := func() ([]byte, chandler.ModuleDigest) {
			n := rapid.IntRange(1, 8).Draw(t, "module")
			return module(n, n*300)
		}
		t.Repeat(map[string]func(*rapid.T){
			"ingest": func(t *rapid.T) {
				b, d := pick()
				if _, _, err := s.Ingest(bytes.NewReader(b), d); err != nil && code(err) != chandler.CodeCacheFull {
					t.Fatal(err)
				}
			},
			"lease": func(t *rapid.T) {
				_, d := pick()
				l, err := s.Acquire(d)
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
				if err == nil && leases[d] == nil {
					leases[d] = l
				} else if err == nil {
					l.Release()
				}
			},
			"release": func(t *rapid.T) {
				_, d := pick()
				if l := leases[d]; l != nil {
					l.Release()
					delete(leases, d)
				}
			},
			"corrupt": func(t *rapid.T) {
				_, d := pick()
				if leases[d] == nil {
					_ = s.Close()
					_ = fsys.Corrupt("/store/"+d.Hex()+".wasm", func(b []byte) []byte { b[0]++; return b })
					reopen()
				}
			},
			"crash": func(t *rapid.T) {
				fsys = fsys.Restart(rapid.SampledFrom(crashfs.Losses()).Draw(t, "loss"))
				s = nil
				reopen()
			},
			"": func(t *rapid.T) {
				for d, l := range leases {
					f, err := l.Open()
					if err != nil {
						t.Fatalf("leased %s: %v", d, err)
					}
					b, _ := io.ReadAll(f)
					_ = f.Close()
					if chandler.Digest[chandler.ModuleDigest](b) != d {
						t.Fatalf("leased %s has other content", d)
					}
				}
				var sum int64
				list := s.List()
				for _, e := range list {
					sum += e.Size
				}
				if n, size := s.Stats(); n != len(list) || size != sum || size > budget {
					t.Fatal(fmt.Sprintf("%d entries and %d bytes counted, %d and %d listed", n, size, len(list), sum))
				}
			},
		})
	})
}

// A directory that somebody removed is made again by the next module, and is this store's
// alone as before; what was in it is absent, leased or not, and can be taken in anew.
func TestDirectoryIsRemoved(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data", "modules")
	s := open(t, store.Config{Dir: dir})
	leased, other := ingest(t, s, 1, 100), ingest(t, s, 2, 100)
	acquire(t, s, leased)
	for _, gone := range []string{dir, filepath.Dir(dir)} {
		if err := os.RemoveAll(gone); err != nil {
			t.Fatal(err)
		}
		wantAbsent(t, s, leased)
		wantAbsent(t, s, other)
		holds(t, acquire(t, s, ingest(t, s, 3, 100)))
		holds(t, acquire(t, s, ingest(t, s, 1, 100)))
		_, err := store.Open(store.Config{Dir: dir})
		wantCode(t, err, chandler.CodeCacheLocked)
	}
	if n, size := s.Stats(); n != 2 || size != 200 {
		t.Errorf("%d modules of %d bytes", n, size)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, store.Config{Dir: dir})
}

// A directory that cannot be made again is told as that, and is made once it can be.
func TestDirectoryStaysAway(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	s := open(t, store.Config{Dir: filepath.Join(data, "modules")})
	if err := errors.Join(os.RemoveAll(data), os.WriteFile(data, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	_, _, err := s.Ingest(strings.NewReader("a module"), "")
	wantCode(t, err, chandler.CodeCacheUnwritable)
	if err := os.Remove(data); err != nil {
		t.Fatal(err)
	}
	holds(t, acquire(t, s, ingest(t, s, 1, 100)))
}

// What went into a directory that was made again survives a loss of power, and a failure
// of any call on the way is told and keeps nothing from being taken in later.
func TestDirectoryMadeAgainLasts(t *testing.T) {
	t.Parallel()
	for fail := 0; ; fail++ {
		fsys := crashfs.New()
		s := open(t, store.Config{Dir: "/data/store", FS: fsys})
		for _, file := range []string{"lock", ingest(t, s, 1, 100).Hex() + ".wasm", ""} {
			if err := fsys.Remove(filepath.Join("/data/store", file)); err != nil {
				t.Fatal(err)
			}
		}
		before := fsys.Calls()
		if fail > 0 {
			fsys.FailAt(fail, syscall.EIO)
		}
		b, d := module(2, 100)
		_, _, err := s.Ingest(bytes.NewReader(b), "")
		if passed := fsys.Calls()-before < fail; passed {
			break
		}
		if err != nil {
			wantCode(t, err, chandler.CodeCacheUnwritable)
			_, _, err = s.Ingest(bytes.NewReader(b), "")
		}
		if err != nil {
			t.Fatalf("after a failure of call %d: %v", fail, err)
		}
		s = open(t, store.Config{Dir: "/data/store", FS: fsys.Restart(crashfs.LoseUnsynced)})
		holds(t, acquire(t, s, d))
	}
}
