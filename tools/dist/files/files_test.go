package files

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var at = time.Unix(1764000000, 0).UTC()

// The same files give the same bytes, whatever their order, their times and who owns them.
func TestSameBytes(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "on disk")
	if err := Text("", "disk").Write(name); err != nil {
		t.Fatal(err)
	}
	of := []File{Text("b/two", "2"), From("a", name, 0o755), {Name: "b/link", Link: "two"}, {Name: "tmp", Dir: true, Mode: 0o777 | os.ModeSticky}}
	var first, second bytes.Buffer
	if err := TarGz(&first, of, at); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(name, at, at.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	slices.Reverse(of)
	if err := TarGz(&second, of, at); err != nil || !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Fatalf("%v; the order shows", err)
	}
	z, err := gzip.NewReader(&first)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, _ := io.ReadAll(r)
		if !h.ModTime.Equal(at) || h.Uid != 0 || h.Uname != "" {
			t.Errorf("%+v", h)
		}
		got = append(got, strings.TrimSpace(h.FileInfo().Mode().String()+" "+h.Name+" "+h.Linkname+string(content)))
	}
	want := []string{"-rwxr-xr-x a disk", "drwxr-xr-x b/", "Lrwxrwxrwx b/link two", "-rw-r--r-- b/two 2", "dtrwxrwxrwx tmp/"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for why, of := range map[string][]File{
		"two files are named a": {Text("a", ""), Text("a", "")},
		"no such file":          {From("a", filepath.Join(t.TempDir(), "none"), 0o644)},
	} {
		if err := Tar(io.Discard, of, at); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%v, want %q", err, why)
		}
	}
	dir := t.TempDir()
	if err := os.Symlink("elsewhere", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := Folder("x", dir); err == nil || !strings.Contains(err.Error(), "no plain file") {
		t.Errorf("a link in a folder: %v", err)
	}
}
