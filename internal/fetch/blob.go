package fetch

import (
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"os"

	"chandler.dev/chandler"
)

// blob is what was transferred.
type blob struct {
	digest chandler.BlobDigest
	size   int64
}

// download writes a body to f and hashes it. It stops after one byte more than
// limit, which then is the blob's size.
func download(f *os.File, resp *http.Response, what string, limit int64) (blob, error) {
	defer resp.Body.Close()
	h := sha256.New()
	src := &source{r: io.LimitReader(resp.Body, limit+1)}
	n, err := io.Copy(io.MultiWriter(f, h), src)
	if src.err != nil {
		return blob{}, shortBody(what, src.err, resp.ContentLength, n)
	}
	if err != nil {
		return blob{}, diskError(err)
	}
	return blob{digest: chandler.DigestOf[chandler.BlobDigest](h.Sum(nil)), size: n}, nil
}

// source keeps the error of reading apart from that of writing.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// shortBody explains a body that broke off.
func shortBody(what string, err error, said, got int64) error {
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if said < 0 {
		return temporary(chandler.CodeFetchShort, "%s: the body broke off after %d bytes", what, got)
	}
	return temporary(chandler.CodeFetchShort, "%s: the server said %d bytes and sent %d", what, said, got)
}

// shown tells Progress of what is read of a body.
func (c *Client) shown(what string, size int64, body io.ReadCloser) io.ReadCloser {
	if c.Progress == nil {
		return body
	}
	return &shownBody{ReadCloser: body, tell: func(done int64) { c.Progress(what, done, size) }}
}

type shownBody struct {
	io.ReadCloser
	done int64
	tell func(done int64)
}

func (s *shownBody) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	s.done += int64(n)
	s.tell(s.done)
	return n, err
}
