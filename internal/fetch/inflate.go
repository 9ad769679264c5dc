package fetch

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip" // twice as fast as the standard one here
	"github.com/klauspost/compress/zstd"
)

const (
	maxMembers    = 1024
	maxZstdWindow = 8 << 20
)

var errMembers = fmt.Errorf("more than %d members", maxMembers)

// gzipReader reads the members of a gzip file one after the other, and no more
// than maxMembers.
type gzipReader struct {
	in      *bufio.Reader
	z       *gzip.Reader
	members int
}

func newGzip(r *bufio.Reader) *gzipReader { return &gzipReader{in: r} }

func (g *gzipReader) Read(p []byte) (int, error) {
	for {
		if g.z == nil {
			if err := g.next(); err != nil {
				return 0, err
			}
		}
		n, err := g.z.Read(p)
		if err == io.EOF {
			if _, peek := g.in.Peek(1); peek == io.EOF {
				return n, io.EOF
			}
			if err = g.next(); err != nil {
				return n, err
			}
			if n == 0 {
				continue
			}
		}
		return n, err
	}
}

// next begins a member. The end of the file here is never a clean one.
func (g *gzipReader) next() error {
	if g.members++; g.members > maxMembers {
		return errMembers
	}
	var err error
	if g.z == nil {
		g.z, err = gzip.NewReader(g.in)
	} else {
		err = g.z.Reset(g.in)
	}
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	if err == nil {
		g.z.Multistream(false)
	}
	return err
}

// newZstd reads zstd in the caller's goroutine, with a bounded window.
func newZstd(r io.Reader) (io.Reader, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
	if err != nil {
		return nil, fmt.Errorf("zstd decoder: %w", err)
	}
	return z, nil
}

// inflateReason says in words of ours why a decoder stopped.
func inflateReason(err error) string {
	switch {
	case errors.Is(err, errMembers):
		return errMembers.Error()
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "it is truncated"
	case errors.Is(err, gzip.ErrChecksum), errors.Is(err, zstd.ErrCRCMismatch):
		return "its check value is wrong"
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, zstd.ErrMagicMismatch):
		return "something else follows it"
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return fmt.Sprintf("its window is over %d bytes", maxZstdWindow)
	}
	return "it is corrupt"
}
