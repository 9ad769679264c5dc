package durable

import (
	"errors"
	"io/fs"
	"os"
)

// OSFor is the file system of the operating system for files that a group may read:
// files are made with mode 0640 and directories with 0750, both of the group, and what
// anybody makes in such a directory is of the group too. Who calls must be in the group.
// Locks stay private.
func OSFor(group int) FS { return groupFS{group: group} }

type groupFS struct {
	osFS
	group int
}

func (g groupFS) Create(path string) (File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Chown(-1, g.group), f.Chmod(0o640)); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	return f, nil
}

func (g groupFS) Mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := Share(dir, g.group, 0o750); err != nil {
		return errors.Join(err, os.Remove(dir))
	}
	return nil
}

// Share gives a file, a directory or a socket to a group, with that mode. A directory
// also gets the bit that makes what is new in it the group's, where the system permits.
func Share(path string, group int, mode fs.FileMode) error {
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if st.Mode()&fs.ModeSymlink != 0 {
		return &fs.PathError{Op: "share", Path: path, Err: errors.New("it is a symbolic link")}
	}
	if err := os.Chown(path, -1, group); err != nil { // it takes some bits away, so it comes first
		return err
	}
	if st.IsDir() && os.Chmod(path, mode|fs.ModeSetgid) == nil {
		return nil
	}
	return os.Chmod(path, mode)
}
