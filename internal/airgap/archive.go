package airgap

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"chandler.dev/chandler"
)

const (
	maxFiles = 16 << 10
	maxName  = 255
)

// Archive is an image layout in a tar, read as a registry is. Opening it has held
// every blob against the digest that is its name.
type Archive struct{ layout *layout }

// tarball is where the blobs of an archive lie.
type tarball struct {
	r     io.ReaderAt
	blobs map[string]span // by digest
}

// span is where a blob lies in the file.
type span struct{ at, size int64 }

func (tarball) kind() string { return "the archive" }

func (t tarball) blob(digest string) (io.ReadCloser, int64, error) {
	at, ok := t.blobs[digest]
	if !ok {
		return nil, 0, fs.ErrNotExist
	}
	return io.NopCloser(io.NewSectionReader(t.r, at.at, at.size)), at.size, nil
}

// Open reads through a file of size bytes. What is wrong with it is a
// *chandler.Problem, any other error one of the file.
func Open(r io.ReaderAt, size int64) (*Archive, error) {
	t := tarball{r: r, blobs: map[string]span{}}
	files, err := t.scan(size)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{fileLayout, fileIndex} {
		if files[name] == nil {
			return nil, problem(chandler.CodeTarMissing, "write it with chandler save, docker save or skopeo copy oci-archive:", "the archive has no %s: it is no OCI image layout", name)
		}
	}
	l, err := parseLayout(files[fileIndex], t)
	if err != nil {
		return nil, err
	}
	return &Archive{l}, nil
}

// Found are the artifacts of the archive, in its order.
func (a *Archive) Found() []Found { return slices.Clone(a.layout.found) }

// scan goes through the tar once: it notes where blobs lie, hashes them, and gives
// the small files.
func (t tarball) scan(size int64) (map[string][]byte, error) {
	in := &counter{r: io.NewSectionReader(t.r, 0, size)}
	files := tar.NewReader(in)
	small := map[string][]byte{}
	for n := 0; ; n++ {
		h, err := files.Next()
		if err == io.EOF {
			return small, nil
		}
		if err != nil {
			return nil, in.explain(err, n)
		}
		if n >= maxFiles {
			return nil, problem(chandler.CodeTarEntries, "write several archives", "the archive has more than %d entries", maxFiles)
		}
		name, err := judge(h)
		if err != nil {
			return nil, err
		}
		switch hex, isBlob := strings.CutPrefix(name, blobFolder); {
		case h.Typeflag == tar.TypeDir, h.Typeflag == tar.TypeXGlobalHeader:
		case isBlob:
			err = t.note(hex, h.Size, in, files)
		case name == fileLayout || name == fileIndex:
			if small[name] != nil {
				return nil, problem(chandler.CodeTarDuplicate, "write it again", "the archive has %s twice", name)
			}
			if small[name], err = io.ReadAll(io.LimitReader(files, maxJSON+1)); len(small[name]) > maxJSON {
				return nil, problem(chandler.CodeTarSize, "write several archives", "%s is over %d bytes", name, maxJSON)
			}
		}
		if err != nil {
			return nil, in.explain(err, n)
		}
	}
}

// judge tells whether an entry of the tar may be there at all, and its name.
func judge(h *tar.Header) (string, error) {
	quoted := chandler.Quote(h.Name)
	switch {
	case h.Typeflag == tar.TypeXGlobalHeader:
		return "", nil
	case len(h.Name) > maxName:
		return "", problem(chandler.CodeTarPath, "write it again", "entry name %s has %d bytes, limit %d", quoted, len(h.Name), maxName)
	case strings.HasPrefix(h.Name, "/"), slices.Contains(strings.Split(h.Name, "/"), ".."), strings.ContainsAny(h.Name, "\x00\\"):
		return "", problem(chandler.CodeTarPath, "write it again", "entry name leaves the archive: %s", quoted)
	case h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir:
		return "", problem(chandler.CodeTarHeader, "write it again, of files alone", "entry %s is a link or a device, not a file", quoted)
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return "", problem(chandler.CodeTarHeader, "write it again without sparse files", "entry %s is sparse, which is not accepted", quoted)
		}
	}
	return path.Clean(h.Name), nil
}

// note notes where a blob lies, which must be what it is called.
func (t tarball) note(hex string, size int64, in *counter, content io.Reader) error {
	at, sum := in.n, sha256.New()
	if _, err := io.Copy(sum, content); err != nil {
		return err
	}
	digest := string(chandler.DigestOf[chandler.BlobDigest](sum.Sum(nil)))
	if digest != "sha256:"+hex {
		return problem(chandler.CodeDigestMismatch, "write it again; the file was changed or is damaged", "blob %s has other bytes: they have %s", chandler.Quote(hex), digest)
	}
	if _, twice := t.blobs[digest]; twice {
		return problem(chandler.CodeTarDuplicate, "write it again", "the archive has blob %s twice", digest)
	}
	t.blobs[digest] = span{at, size}
	return nil
}

// counter tells where in the file one is: the tar reader reads no further than it
// must.
type counter struct {
	r   io.Reader
	n   int64
	err error // of the file
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil && err != io.EOF {
		c.err = err
	}
	return n, err
}

// explain gives archive/tar's errors words.
func (c *counter) explain(err error, entries int) error {
	var known *chandler.Problem
	switch {
	case c.err != nil:
		return fmt.Errorf("read the archive: %w", c.err)
	case errors.As(err, &known):
		return err
	case entries == 0:
		return problem(chandler.CodeTarHeader, "give an uncompressed tar of an OCI image layout; gunzip it if it is compressed", "the file is no tar")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return problem(chandler.CodeTarHeader, "copy it again", "the archive is truncated after %d entries", entries)
	}
	return problem(chandler.CodeTarHeader, "write it again", "the header after %d entries is no valid one", entries)
}
