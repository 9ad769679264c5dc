package durable_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/durable/crashfs"
)

const path = "/d/file"

func write(content string) func(*crashfs.FS) error {
	return func(fsys *crashfs.FS) error {
		if err := durable.Mkdir(fsys, "/d"); err != nil {
			return err
		}
		return durable.Write(fsys, path, []byte(content))
	}
}

func read(t *testing.T, fsys durable.FS) string {
	t.Helper()
	b, err := durable.Read(fsys, path, 1<<20)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return string(b)
}

// onlyTheFile fails when, after a sweep, anything but the file is in its
// directory.
func onlyTheFile(t *testing.T, fsys durable.FS) {
	t.Helper()
	if _, err := fsys.Stat("/d"); errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err := durable.Sweep(fsys, "/d"); err != nil {
		t.Fatal(err)
	}
	entries, err := fsys.ReadDir("/d")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "file" {
			t.Errorf("%s is left over", e.Name())
		}
	}
}

func TestFault_F3_F20_WriteIsOldOrNew(t *testing.T) {
	t.Parallel()
	crashfs.Sweep(t, write("the old"), write("and the new one"), func(t *testing.T, after *crashfs.FS, finished bool) {
		got := read(t, after)
		if got != "and the new one" && (finished || got != "the old") {
			t.Errorf("after the crash (write finished: %v): %q", finished, got)
		}
		onlyTheFile(t, after)
	})
}

func TestFault_F3_F20_FirstWriteIsNoneOrWhole(t *testing.T) {
	t.Parallel()
	empty := func(*crashfs.FS) error { return nil }
	crashfs.Sweep(t, empty, write("the first"), func(t *testing.T, after *crashfs.FS, finished bool) {
		if got := read(t, after); got != "the first" && (finished || got != "") {
			t.Errorf("after the crash (write finished: %v): %q", finished, got)
		}
		onlyTheFile(t, after)
	})
}

func TestFault_F15_ErrorsAreNotWritten(t *testing.T) {
	t.Parallel()
	crashfs.SweepErrors(t, write("the old"), write("and the new one"), func(t *testing.T, fsys *crashfs.FS, err error) {
		if err == nil {
			t.Error("an error of the disk was swallowed")
		}
		if got := read(t, fsys); got != "the old" && got != "and the new one" {
			t.Errorf("after %v: %q", err, got)
		}
		onlyTheFile(t, fsys)
		if err := write("once more")(fsys); err != nil {
			t.Fatalf("the next write: %v", err)
		}
		if got := read(t, fsys.Restart(crashfs.LoseUnsynced)); got != "once more" {
			t.Errorf("the next write gave %q", got)
		}
	})
}

func TestFault_F14_FullDiskKeepsTheOld(t *testing.T) {
	t.Parallel()
	fsys := crashfs.New()
	if err := write("the old")(fsys); err != nil {
		t.Fatal(err)
	}
	fsys.Limit(100)
	err := durable.Write(fsys, path, bytes.Repeat([]byte("x"), 200))
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("got %v, want ENOSPC", err)
	}
	if got := read(t, fsys); got != "the old" {
		t.Errorf("got %q", got)
	}
	entries, _ := fsys.ReadDir("/d")
	if len(entries) != 1 {
		t.Errorf("the partial file stayed: %v", entries)
	}
}

func TestRemoveSurvivesPowerLoss(t *testing.T) {
	t.Parallel()
	fsys := crashfs.New()
	if err := write("x")(fsys); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second has nothing to do
		if err := durable.Remove(fsys, path); err != nil {
			t.Fatal(err)
		}
	}
	if got := read(t, fsys.Restart(crashfs.LoseUnsynced)); got != "" {
		t.Errorf("it is back: %q", got)
	}
}

func TestOS(t *testing.T) {
	t.Parallel()
	fsys := durable.OS()
	dir := filepath.Join(t.TempDir(), "a", "b c")
	if err := durable.Mkdir(fsys, dir); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, strings.Repeat("n", 255)) // the longest there is
	for _, content := range []string{"one", "two"} {
		if err := durable.Write(fsys, name, []byte(content)); err != nil {
			t.Fatal(err)
		}
		if b, err := durable.Read(fsys, name, 3); err != nil || string(b) != content {
			t.Fatalf("%q, %v", b, err)
		}
	}
	if _, err := durable.Read(fsys, name, 2); !errors.Is(err, durable.ErrTooLarge) {
		t.Errorf("over the limit: %v", err)
	}
	for p, want := range map[string]fs.FileMode{name: 0o600, dir: 0o700 | fs.ModeDir} {
		if st, err := os.Stat(p); err != nil || st.Mode() != want {
			t.Errorf("mode %v, want %v (%v)", st.Mode(), want, err)
		}
	}
}

func TestPending(t *testing.T) {
	t.Parallel()
	fsys := durable.OS()
	dir := t.TempDir()
	p, err := durable.Create(fsys, filepath.Join(dir, "incoming"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Write([]byte("content")); err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 1 || !durable.IsTemp(entries[0].Name()) {
		t.Fatalf("before the commit: %v", entries)
	}
	if err := p.CommitAs("named"); err != nil {
		t.Fatal(err)
	}
	p.Abort() // nothing to do any more
	if b, err := os.ReadFile(filepath.Join(dir, "named")); err != nil || string(b) != "content" {
		t.Fatalf("%q, %v", b, err)
	}
	if _, err := p.Write(nil); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("write after commit: %v", err)
	}

	p, _ = durable.Create(fsys, filepath.Join(dir, "named"))
	p.Abort()
	if err := p.Commit(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("commit after abort: %v", err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "named")); string(b) != "content" {
		t.Errorf("abort changed the file: %q", b)
	}
}

func TestSweepLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{".durable-AAAA.tmp", "mine.tmp", ".durable-notes"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := durable.Sweep(durable.OS(), dir); err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 2 {
		t.Errorf("left: %v", entries)
	}
}

func code(err error) chandler.Code {
	var p *chandler.Problem
	if errors.As(err, &p) {
		return p.Code
	}
	return ""
}

func TestFault_F12_LockedDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	first, err := durable.Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = durable.Lock(dir)
	if code(err) != chandler.CodeCacheLocked || !strings.Contains(err.Error(), "pid ") {
		t.Fatalf("second lock: %v", err)
	}
	// A child does not keep the lock.
	sleep := exec.Command("sleep", "60")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sleep.Process.Kill(); _ = sleep.Wait() }()
	if err := first.Unlock(); err != nil {
		t.Fatal(err)
	}
	second, err := durable.Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Unlock()
}

// Whoever holds a directory that was removed takes it anew, and lets nobody else in; while
// all is there nothing is done.
func TestLockIsRenewed(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	lock, err := durable.Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, removed := range []bool{false, true, true, false} {
		if removed {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
		if anew, err := lock.Renew(); err != nil || anew != removed {
			t.Errorf("made anew: %v, %v, want %v", anew, err, removed)
		}
		if _, err := durable.Lock(dir); code(err) != chandler.CodeCacheLocked {
			t.Errorf("second lock: %v", err)
		}
	}
	if err := errors.Join(lock.Unlock(), lock.Unlock()); err != nil {
		t.Error(err)
	}
	second, err := durable.Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Unlock()
}

func TestFault_F19_UnwritableDirectory(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := durable.Lock(filepath.Join(file, "dir")); code(err) != chandler.CodeCacheUnwritable {
		t.Errorf("got %v", err)
	}
}
