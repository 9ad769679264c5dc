// Package files writes trees of files into archives, so that the same files give the
// same bytes: in the order of their names, of root, with one time for all. It knows
// nothing of what the files are.
package files

import (
	"archive/tar"
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// File is one of a tree: text, what a file on disk has in it, a link or a folder.
type File struct {
	Name string // with slashes, without one before it
	Mode fs.FileMode
	Text []byte
	From string // a file on disk, in place of Text
	Link string // what a symbolic link leads to
	Dir  bool
}

// Text is a file that everybody may read.
func Text[T string | []byte](name string, text T) File {
	return File{Name: name, Mode: 0o644, Text: []byte(text)}
}

// From is a file on disk under another name.
func From(name, from string, mode fs.FileMode) File {
	return File{Name: name, Mode: mode, From: from}
}

// Folder gives the files below a folder on disk, under another one's name; executable
// ones stay so. It fails for what is neither a file nor a folder.
func Folder(name, from string) ([]File, error) {
	var found []File
	err := filepath.WalkDir(from, func(at string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if !d.Type().IsRegular() {
			return fmt.Errorf("%s is no plain file", at)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		below, err := filepath.Rel(from, at)
		found = append(found, From(path.Join(name, filepath.ToSlash(below)), at, 0o644|info.Mode()&0o111))
		return err
	})
	return found, err
}

// Below puts files into a folder.
func Below(folder string, of []File) []File {
	below := slices.Clone(of)
	for i := range below {
		below[i].Name = path.Join(folder, below[i].Name)
	}
	return below
}

// Open reads what is in a file.
func (f File) Open() (io.ReadCloser, int64, error) {
	if f.From == "" {
		return io.NopCloser(strings.NewReader(string(f.Text))), int64(len(f.Text)), nil
	}
	file, err := os.Open(f.From)
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, 0, err
	}
	return file, info.Size(), nil
}

// Write puts a file on disk.
func (f File) Write(to string) error {
	in, _, err := f.Open()
	if err != nil {
		return err
	}
	defer in.Close()
	return Create(to, f.Mode, func(w io.Writer) error {
		_, err := io.Copy(w, in)
		return err
	})
}

// Create makes a file, with the folders that it is in.
func Create(name string, mode fs.FileMode, write func(io.Writer) error) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	err = write(file)
	if closed := file.Close(); err == nil {
		err = closed
	}
	return err
}

// TarGz writes a tar that is compressed.
func TarGz(w io.Writer, of []File, at time.Time) error {
	z, err := gzip.NewWriterLevel(w, gzip.DefaultCompression)
	if err != nil {
		return err
	}
	if err := Tar(z, of, at); err != nil {
		return err
	}
	return z.Close()
}

// Tar writes a tar with every folder before what is in it. Two files of one name are
// an error.
func Tar(w io.Writer, of []File, at time.Time) error {
	all, err := whole(of)
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	for _, f := range all {
		if err := add(t, f, at); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return t.Close()
}

// whole is a tree in order, with the folders that were not said.
func whole(of []File) ([]File, error) {
	named := map[string]File{}
	for _, f := range of {
		if _, twice := named[f.Name]; twice {
			return nil, fmt.Errorf("two files are named %s", f.Name)
		}
		named[f.Name] = f
	}
	for _, f := range of {
		for dir := path.Dir(f.Name); dir != "." && dir != "/"; dir = path.Dir(dir) {
			if _, said := named[dir]; !said {
				named[dir] = File{Name: dir, Mode: 0o755, Dir: true}
			}
		}
	}
	all := make([]File, 0, len(named))
	for _, f := range named {
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

func add(t *tar.Writer, f File, at time.Time) error {
	header := &tar.Header{Name: f.Name, Mode: int64(f.Mode.Perm()), ModTime: at, Format: tar.FormatPAX}
	if f.Mode&fs.ModeSticky != 0 {
		header.Mode |= 0o1000
	}
	switch {
	case f.Dir:
		header.Typeflag, header.Name = tar.TypeDir, f.Name+"/"
		return t.WriteHeader(header)
	case f.Link != "":
		header.Typeflag, header.Linkname, header.Mode = tar.TypeSymlink, f.Link, 0o777
		return t.WriteHeader(header)
	}
	in, size, err := f.Open()
	if err != nil {
		return err
	}
	defer in.Close()
	header.Typeflag, header.Size = tar.TypeReg, size
	if err := t.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(t, in)
	return err
}
