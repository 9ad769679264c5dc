package fetch

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"chandler.dev/chandler"
)

// moduleName is the file that an image is looked through for.
const moduleName = "plugin.wasm"

const (
	maxRatio   = 100
	ratioSlack = 1 << 20 // below this a ratio says nothing
)

// opener unwraps a blob: what it gives is read to its end, where it says whether
// all was well. what names the blob in messages.
type opener func(what string, r *bufio.Reader, l limits) (io.Reader, error)

// limits are what one unpacking may take.
type limits struct {
	blob      int64 // its size
	maxModule int64
}

// unpack opens a blob that was checked, and streams its module into sink. The
// sink sees the end of the module only after all that is around it was found
// good.
func (c *Client) unpack(what string, f *os.File, b blob, open opener, sink Sink, want chandler.ModuleDigest) (Artifact, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return Artifact{}, diskError(err)
	}
	if b.size == 0 {
		return Artifact{}, refuse(chandler.CodeWasmEmpty, "look at how it is served", "%s is empty", what)
	}
	r, err := open(what, bufio.NewReaderSize(f, 64<<10), limits{blob: b.size, maxModule: c.MaxModule})
	if err != nil {
		return Artifact{}, err
	}
	module, size, err := sink.Ingest(&moduleReader{r: r, what: what, limit: c.MaxModule}, want)
	if err != nil {
		return Artifact{}, sinkError(err)
	}
	if want != "" && module != want {
		return Artifact{}, refuse(chandler.CodeDigestMismatch, "correct sha256, or look at the server", "%s: module is %s, sha256 says %s", what, module, want)
	}
	return Artifact{Blob: b.digest, BlobSize: b.size, Module: module, Size: size}, nil
}

// sinkError keeps what is known: an *Error of the module's reader, a Problem of
// the sink, a full disk. Else the sink's own words are shown.
func sinkError(err error) error {
	var (
		known   *Error
		problem *chandler.Problem
	)
	if errors.As(err, &known) || errors.As(err, &problem) || isDisk(err) {
		return err
	}
	return temporary(chandler.CodeInternal, "the module cannot be kept: %s", chandler.Printable(err.Error(), 300))
}

// moduleReader lets through what begins as a core module does and is not too
// large. What else is in a module is for others to judge.
type moduleReader struct {
	r     io.Reader
	what  string
	limit int64
	n     int64
	begun bool
	err   error
}

func (m *moduleReader) Read(p []byte) (int, error) {
	if m.err != nil {
		return 0, m.err
	}
	if !m.begun {
		m.begun = true
		if m.err = m.begin(); m.err != nil {
			return 0, m.err
		}
	}
	n, err := m.r.Read(p)
	m.n += int64(n)
	if m.n > m.limit {
		n, err = 0, refuse(chandler.CodeModuleTooLarge, "build a smaller module, or let the operator raise the limit", "%s: the module is over %d bytes", m.what, m.limit)
	}
	if err != nil && err != io.EOF {
		n = 0
	}
	m.err = err
	return n, err
}

var wasmMagic = []byte("\x00asm")

func (m *moduleReader) begin() error {
	var head [8]byte
	n, err := io.ReadFull(m.r, head[:])
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return err
	}
	switch {
	case n == 0:
		return refuse(chandler.CodeWasmEmpty, "build the module again", "%s: the module is empty", m.what)
	case !bytes.HasPrefix(head[:n], wasmMagic):
		return refuse(chandler.CodeWasmMagic, "build a core Wasm module; "+readableFiles, "%s: %s, which is no Wasm module", m.what, startsWith(head[:n]))
	}
	m.r = io.MultiReader(bytes.NewReader(head[:n]), m.r)
	return nil
}

const readableFiles = "what can be read is a module as it is, in gzip, in a tar and in a tar.gz"

// startsWith says what the first bytes of something look like.
func startsWith(head []byte) string {
	for _, known := range []struct{ magic, name string }{
		{"\x1f\x8b", "gzip"},
		{"\x28\xb5\x2f\xfd", "zstd"},
		{"PK\x03\x04", "a zip archive"},
		{"\x7fELF", "an ELF binary"},
		{"BZh", "bzip2"},
		{"\xfd7zXZ", "xz"},
		{"(module", "Wasm in text form"},
		{"<", "HTML or XML"},
		{"{", "JSON"},
		{"version ", "a Git LFS pointer"},
	} {
		if bytes.HasPrefix(head, []byte(known.magic)) {
			return fmt.Sprintf("it starts with %q as %s does", head[:min(len(head), 4)], known.name)
		}
	}
	return fmt.Sprintf("it starts with %q", head[:min(len(head), 4)])
}

// layerOpener opens a layer that says how it is packed; it is held to that.
func layerOpener(how packing, layer string) opener {
	return func(_ string, r *bufio.Reader, l limits) (io.Reader, error) {
		head, _ := r.Peek(4)
		if why := how.contradicts(head); why != "" {
			return nil, refuse(chandler.CodeLayerType, "push it again with the right media type", "%s %s, but %s", layer, why, startsWith(head))
		}
		var in io.Reader = r
		switch how.compression {
		case "gzip":
			in = l.bound(layer, chandler.CodeLayerGzip, newGzip(r))
		case "zstd":
			z, err := newZstd(r)
			if err != nil {
				return nil, err
			}
			in = l.bound(layer, chandler.CodeLayerZstd, z)
		}
		if !how.tar {
			return in, nil
		}
		return newTarModule(layer, in, l, isModuleFile), nil
	}
}

func (how packing) contradicts(head []byte) string {
	gzipped, zipped := bytes.HasPrefix(head, []byte("\x1f\x8b")), bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd"))
	switch {
	case how.compression == "gzip" && !gzipped:
		return "is marked gzip"
	case how.compression == "zstd" && !zipped:
		return "is marked zstd"
	case how.tar && how.compression == "" && (gzipped || zipped || bytes.HasPrefix(head, wasmMagic)):
		return "is marked as a plain tar"
	case !how.tar && !bytes.HasPrefix(head, wasmMagic):
		return "is marked as a Wasm module"
	}
	return ""
}

// openSniffed opens what a web server gave by its first bytes: gzip or not, and
// in it a tar or not.
func openSniffed(what string, r *bufio.Reader, l limits) (io.Reader, error) {
	if head, _ := r.Peek(2); bytes.Equal(head, []byte("\x1f\x8b")) {
		r = bufio.NewReaderSize(l.bound(what, chandler.CodeLayerGzip, newGzip(r)), 64<<10)
	}
	head, err := r.Peek(512)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if isTar(head) {
		return newTarModule(what, r, l, isWasmFile), nil
	}
	return r, nil
}

// bound stops an inflation that is out of proportion, and names the decoder's
// errors.
func (l limits) bound(what string, code chandler.Code, r io.Reader) io.Reader {
	return &inflation{r: r, what: what, code: code, blob: l.blob, most: 2 * l.maxModule}
}

type inflation struct {
	r          io.Reader
	what       string
	code       chandler.Code
	blob, most int64
	n          int64
}

func (i *inflation) Read(p []byte) (int, error) {
	n, err := i.r.Read(p)
	i.n += int64(n)
	switch {
	case i.n > ratioSlack && i.n > maxRatio*i.blob:
		return 0, refuse(chandler.CodeLayerRatio, "push it with less compression", "%s: stopped at %d:1 after %d bytes", i.what, maxRatio, i.n)
	case i.n > i.most:
		return 0, refuse(chandler.CodeLayerRatio, "leave out what is not needed", "%s: unpacks to over %d bytes", i.what, i.most)
	}
	if err != nil && err != io.EOF {
		err = i.name(err)
	}
	return n, err
}

func (i *inflation) name(err error) error {
	var known *Error
	if errors.As(err, &known) || isDisk(err) {
		return err
	}
	format := "gzip"
	if i.code == chandler.CodeLayerZstd {
		format = "zstd"
	}
	return refuse(i.code, "push it again", "%s: %s: %s after %d bytes", i.what, format, inflateReason(err), i.n)
}
