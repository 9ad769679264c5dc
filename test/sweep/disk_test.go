//go:build faults && linux

package sweep

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/store"
)

var inNamespace = flag.Bool("mounts", false, "mounts are of this process alone; for the tests themselves")

// onDisk runs a test on a small file system of its own, which it mounts in a
// namespace of its own: for that the test binary starts itself again.
func onDisk(t *testing.T, options string, test func(t *testing.T, dir string)) {
	t.Helper()
	if *inNamespace {
		dir := t.TempDir()
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
			t.Fatalf("mount: %v", err)
		}
		defer func() {
			if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}()
		test(t, dir)
		return
	}
	again := func(flags uintptr) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-mounts", "-test.v", "-test.run", "^"+t.Name()+"$")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | flags, Unshareflags: syscall.CLONE_NEWNS}
		if flags != 0 {
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
		}
		return cmd
	}
	out, err := again(syscall.CLONE_NEWUSER).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && os.Getuid() == 0 { // no namespace of users here
		out, err = again(0).CombinedOutput()
	}
	if err != nil {
		t.Fatalf("%v (it needs a mount namespace: be root, or allow user namespaces)\n%s", err, out)
	}
	t.Logf("%s", out)
}

// stored is a module of a size, and its digest.
func stored(size int, fill byte) ([]byte, chandler.ModuleDigest) {
	b := bytes.Repeat([]byte{fill}, size)
	return b, chandler.Digest[chandler.ModuleDigest](b)
}

// filled is a store with a module that is in use.
func filled(t *testing.T, dir string, size int) (*store.Store, *store.Lease) {
	t.Helper()
	s, err := store.Open(store.Config{Dir: filepath.Join(dir, "store")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	used, digest := stored(size, 'u')
	if err := ingest(s, used); err != nil {
		t.Fatal(err)
	}
	l, err := s.Acquire(digest)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Release)
	return s, l
}

func ingest(s *store.Store, b []byte) error {
	_, _, err := s.Ingest(bytes.NewReader(b), chandler.Digest[chandler.ModuleDigest](b))
	return err
}

// refused wants a problem with a code, no trace of what was refused, and what is
// in use whole.
func refused(t *testing.T, s *store.Store, l *store.Lease, err error, code chandler.Code) {
	t.Helper()
	var p *chandler.Problem
	if !errors.As(err, &p) || p.Code != code {
		t.Fatalf("got %v, want %s", err, code)
	}
	if err := s.Verify(l.Digest()); err != nil {
		t.Errorf("what is in use: %v", err)
	}
	names, err := filepath.Glob(filepath.Join(s.Dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	entries, _ := s.Stats()
	if modules := slices.DeleteFunc(names, func(n string) bool { return filepath.Ext(n) != ".wasm" }); len(modules) != entries {
		t.Errorf("files %v for %d modules", modules, entries)
	}
	if temps, _ := filepath.Glob(filepath.Join(s.Dir, ".durable-*")); len(temps) > 0 {
		t.Errorf("left: %v", temps)
	}
}

// A module does not fit: what is not in use goes, what is stays, and the next
// try fits. Records that do not fit leave the old ones.
func TestFault_F14_SmallDisk(t *testing.T) {
	onDisk(t, "size=8m", func(t *testing.T, dir string) {
		s, l := filled(t, dir, 3<<20)
		unused, _ := stored(3<<20, 'n')
		if err := ingest(s, unused); err != nil {
			t.Fatal(err)
		}
		next, digest := stored(4<<20, 'x')
		refused(t, s, l, ingest(s, next), chandler.CodeCacheFull)
		if err := ingest(s, next); err != nil {
			t.Fatalf("the next try: %v", err)
		}
		if err := s.Verify(digest); err != nil {
			t.Error(err)
		}

		all := filepath.Join(dir, "all")
		if err := os.Mkdir(all, 0o700); err != nil {
			t.Fatal(err)
		}
		filler := filepath.Join(dir, "filler")
		recordsOnFullDisk(t, all, func() {
			f, err := os.Create(filler)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for _, size := range []int{64 << 10, 4 << 10, 1} {
				for {
					if _, err := f.Write(make([]byte, size)); err != nil {
						break
					}
				}
			}
		}, func() {
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
		})
	})
}

// recordsOnFullDisk brings a control plane's files from old to new while there is
// no room, and again when there is.
func recordsOnFullDisk(t *testing.T, dir string, fill, free func()) {
	t.Helper()
	small := func(v version) version { v.modules = v.modules[:0]; return v }
	if err := commit(dir, small(oldest)); err != nil {
		t.Fatal(err)
	}
	fill()
	err := commit(dir, small(newest))
	if err == nil {
		t.Error("all was committed on a full disk")
	}
	t.Logf("on a full disk: %v", err)
	checkRecords(t, filepath.Join(dir, "records"), false)
	checkObjects(t, dir, false)
	free()
	if err := commit(dir, small(newest)); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	checkRecords(t, filepath.Join(dir, "records"), true)
	checkObjects(t, dir, true)
}

// No inode is left: as a full disk.
func TestFault_F21_NoInodes(t *testing.T) {
	onDisk(t, "nr_inodes=64", func(t *testing.T, dir string) {
		all := filepath.Join(dir, "all")
		if err := os.Mkdir(all, 0o700); err != nil {
			t.Fatal(err)
		}
		fillers := filepath.Join(dir, "fillers")
		recordsOnFullDisk(t, all, func() {
			if err := os.Mkdir(fillers, 0o700); err != nil {
				t.Fatal(err)
			}
			for n := 0; ; n++ {
				if err := os.WriteFile(filepath.Join(fillers, fmt.Sprint(n)), nil, 0o600); err != nil {
					break
				}
			}
		}, func() {
			if err := os.RemoveAll(fillers); err != nil {
				t.Fatal(err)
			}
		})

		s, l := filled(t, dir, 100)
		var err error
		last := 0
		for ; err == nil && last < 64; last++ {
			m, _ := stored(200+last, 'n')
			err = ingest(s, m)
		}
		refused(t, s, l, err, chandler.CodeCacheFull)
		m, _ := stored(200+last-1, 'n')
		if err := ingest(s, m); err != nil {
			t.Errorf("the next try: %v", err)
		}
	})
}

// The file system becomes read-only: what is there is read, what is new is
// refused with words, and taken when it can be written again.
func TestFault_F19_ReadOnly(t *testing.T) {
	onDisk(t, "size=8m", func(t *testing.T, dir string) {
		s, l := filled(t, dir, 1<<20)
		// The same files once more on top, read-only: the kernel makes none so in
		// which a file is open for writing, as the store's lock is.
		for _, flags := range []uintptr{syscall.MS_BIND, syscall.MS_BIND | syscall.MS_REMOUNT | syscall.MS_RDONLY} {
			if err := syscall.Mount(dir, dir, "", flags, ""); err != nil {
				t.Fatalf("mount: %v", err)
			}
		}
		next, digest := stored(1<<20, 'x')
		refused(t, s, l, ingest(s, next), chandler.CodeCacheUnwritable)
		var p *chandler.Problem
		if other, err := store.Open(store.Config{Dir: filepath.Join(dir, "other")}); !errors.As(err, &p) || p.Code != chandler.CodeCacheUnwritable {
			t.Errorf("a store that cannot be made: %v, %v", other, err)
		}
		if _, err := s.Acquire(digest); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("what was refused: %v", err)
		}
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		if err := ingest(s, next); err != nil {
			t.Errorf("writable again: %v", err)
		}
	})
}
