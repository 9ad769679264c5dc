package durable_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"chandler.dev/chandler/internal/durable"
)

// otherGroup is one that this process may give files to, if there is one beside its own.
func otherGroup(t *testing.T) int {
	t.Helper()
	if os.Getuid() == 0 {
		return 4242
	}
	groups, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		if g != os.Getgid() {
			return g
		}
	}
	return os.Getgid()
}

func belongs(t *testing.T, path string, group int, mode fs.FileMode) {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := int(st.Sys().(*syscall.Stat_t).Gid); got != group || st.Mode() != mode {
		t.Errorf("%s has group %d and mode %v, want %d and %v", filepath.Base(path), got, st.Mode(), group, mode)
	}
}

// What is written for a group can be read by it, and by nobody else; what is written
// without it in the same directory stays the owner's alone.
func TestGroup(t *testing.T) {
	t.Parallel()
	group := otherGroup(t)
	fsys := durable.OSFor(group)
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := durable.Mkdir(fsys, dir); err != nil {
		t.Fatal(err)
	}
	belongs(t, dir, group, 0o750|fs.ModeDir|fs.ModeSetgid)
	belongs(t, filepath.Dir(dir), group, 0o750|fs.ModeDir|fs.ModeSetgid)
	for _, content := range []string{"one", "two"} {
		if err := durable.Write(fsys, filepath.Join(dir, "shared"), []byte(content)); err != nil {
			t.Fatal(err)
		}
		belongs(t, filepath.Join(dir, "shared"), group, 0o640)
	}
	if err := durable.Write(durable.OS(), filepath.Join(dir, "private"), []byte("x")); err != nil {
		t.Fatal(err)
	}
	belongs(t, filepath.Join(dir, "private"), group, 0o600)

	if err := durable.Share(filepath.Join(dir, "private"), group, 0o660); err != nil {
		t.Fatal(err)
	}
	belongs(t, filepath.Join(dir, "private"), group, 0o660)
	link := filepath.Join(dir, "link")
	if err := os.Symlink("shared", link); err != nil {
		t.Fatal(err)
	}
	if err := durable.Share(link, group, 0o777); err == nil {
		t.Error("what a link leads to is shared")
	}
	belongs(t, filepath.Join(dir, "shared"), group, 0o640)
}
