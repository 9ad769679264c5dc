package fetch

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"path"
	"slices"
	"strings"

	"chandler.dev/chandler"
)

const (
	maxEntries  = 1024
	maxPathName = 255
)

// isModuleFile picks the module of an image layer.
func isModuleFile(name string) bool { return path.Base(name) == moduleName }

// isWasmFile picks the module of an archive from a web server.
func isWasmFile(name string) bool {
	base := path.Base(name)
	return strings.HasSuffix(base, ".wasm") && !strings.HasPrefix(base, "._")
}

// isTar knows a tar by its first block, the oldest kind by its check value.
func isTar(block []byte) bool {
	if len(block) < 512 || bytes.HasPrefix(block, wasmMagic) {
		return false
	}
	if bytes.HasPrefix(block[257:], []byte("ustar")) {
		return true
	}
	_, err := tar.NewReader(bytes.NewReader(block)).Next()
	return err == nil
}

// tarModule reads the one module of a tar. At the module's end it looks through
// the rest of the archive before it says EOF, so that whoever has read it to EOF
// knows that the archive is good and has no second one.
type tarModule struct {
	what   string
	in     io.Reader // below tar, to be read to its end
	tar    *tar.Reader
	limits limits
	picks  func(name string) bool

	entries int
	names   []string // of the files that are not the module
	found   string
	err     error
}

func newTarModule(what string, in io.Reader, l limits, picks func(string) bool) *tarModule {
	// Without this, a tar that is no gzip could be as long as the blob, no more.
	return &tarModule{what: what, in: in, tar: tar.NewReader(in), limits: l, picks: picks}
}

func (t *tarModule) Read(p []byte) (int, error) {
	if t.err != nil {
		return 0, t.err
	}
	if t.found == "" {
		if t.err = t.advance(); t.err != nil {
			return 0, t.err
		}
	}
	n, err := t.tar.Read(p)
	if err == io.EOF {
		if err = t.advance(); err == nil {
			err = io.EOF
		}
	} else if err != nil {
		err = t.name(err)
	}
	t.err = err
	return n, err
}

// advance goes to the module, or from it to the end; its nil means that it got
// there.
func (t *tarModule) advance() error {
	for {
		h, err := t.tar.Next()
		if err == io.EOF {
			return t.end()
		}
		if err != nil {
			return t.name(err)
		}
		hit, err := t.look(h)
		if err != nil || hit {
			return err
		}
	}
}

// end reads what follows the archive, so that a decoder below sees its own end.
func (t *tarModule) end() error {
	if _, err := io.Copy(io.Discard, t.in); err != nil {
		return t.name(err)
	}
	if t.found == "" {
		return refuse(chandler.CodeTarMissing, "put the module into it as "+moduleName, "%s has no %s; it has %s", t.what, moduleName, list(t.names))
	}
	return nil
}

// look judges one entry and tells whether it is the module.
func (t *tarModule) look(h *tar.Header) (bool, error) {
	if t.entries++; t.entries > maxEntries {
		return false, refuse(chandler.CodeTarEntries, "leave out what is not needed", "%s has more than %d entries", t.what, maxEntries)
	}
	name := chandler.Quote(h.Name)
	parts := strings.Split(h.Name, "/")
	switch {
	case h.Typeflag == tar.TypeXGlobalHeader:
		return false, nil // such as git archive writes; it names no file
	case len(h.Name) > maxPathName:
		return false, refuse(chandler.CodeTarPath, "use shorter names", "%s: entry name %s has %d bytes, limit %d", t.what, name, len(h.Name), maxPathName)
	case strings.HasPrefix(h.Name, "/"), slices.Contains(parts, ".."):
		return false, refuse(chandler.CodeTarPath, "pack it with relative names", "%s: entry name leaves the archive: %s", t.what, name)
	case strings.ContainsAny(h.Name, "\x00\\"):
		return false, refuse(chandler.CodeTarPath, "pack it with plain names", "%s: entry name %s has a NUL or a backslash", t.what, name)
	case isSparse(h):
		return false, refuse(chandler.CodeTarHeader, "pack it without sparse files", "%s: entry %s is sparse, which is not accepted", t.what, name)
	case h.Size > t.limits.maxModule:
		return false, refuse(chandler.CodeTarSize, "leave out what is not needed", "%s: entry %s declares %d bytes, limit %d", t.what, name, h.Size, t.limits.maxModule)
	}
	base := path.Base(h.Name)
	if deleted, ok := strings.CutPrefix(base, ".wh."); ok && (t.picks(deleted) || (deleted == ".wh..opq" && t.found != "")) {
		return false, refuse(chandler.CodeTarWhiteout, "put the module into the last layer", "%s deletes the module with %s", t.what, name)
	}
	if h.Typeflag != tar.TypeDir {
		t.names = append(t.names, name)
	}
	if h.Typeflag == tar.TypeDir || !t.picks(h.Name) {
		return false, nil
	}
	switch {
	case h.Typeflag != tar.TypeReg:
		return false, refuse(chandler.CodeTarHeader, "put the file itself into it", "%s: entry %s is a link or a device, not a file", t.what, name)
	case t.found != "":
		return false, refuse(chandler.CodeTarDuplicate, "leave one", "%s has the module as %s and as %s", t.what, chandler.Quote(t.found), name)
	case h.Size == 0:
		return false, refuse(chandler.CodeWasmEmpty, "build it again", "%s: %s is empty", t.what, name)
	}
	t.found = h.Name
	return true, nil
}

func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// name gives archive/tar's errors a name; what lies below has named its own.
func (t *tarModule) name(err error) error {
	var known *Error
	switch {
	case errors.As(err, &known), isDisk(err):
		return err
	case errors.Is(err, tar.ErrFieldTooLong):
		return refuse(chandler.CodeTarHeader, "pack it with smaller headers", "%s: a header after %d entries is too long", t.what, t.entries)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return refuse(chandler.CodeTarHeader, "pack it again", "%s: the tar is truncated after %d entries", t.what, t.entries)
	}
	return refuse(chandler.CodeTarHeader, "pack it again", "%s: the header after %d entries is no valid one", t.what, t.entries)
}
