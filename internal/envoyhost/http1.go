package envoyhost

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"chandler.dev/chandler/internal/exchange"
)

// HTTP/1.1 as it is on the wire: net/http repairs and refuses what a plugin does wrong
// before anybody sees it.

const (
	// maxHead bounds the lines of a message, and maxBody its body.
	maxHead = 1 << 20
	maxBody = 64 << 20
)

// errCut: a message's body is shorter than it says.
var errCut = errors.New("the message is not complete")

// reader reads messages.
type reader struct{ *bufio.Reader }

// line reads one, without its end.
func (r reader) line(left *int) (string, error) {
	var b []byte
	for {
		part, more, err := r.ReadLine()
		if err != nil {
			return "", err
		}
		b = append(b, part...)
		if *left -= len(part) + 2; *left < 0 {
			return "", fmt.Errorf("a head of more than %d bytes", maxHead)
		}
		if !more {
			return string(b), nil
		}
	}
}

// fields reads headers or trailers to the empty line.
func (r reader) fields(left *int) ([]exchange.Header, error) {
	var fields []exchange.Header
	for {
		line, err := r.line(left)
		if err != nil || line == "" {
			return fields, err
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return nil, fmt.Errorf("a header without a colon: %q", line)
		}
		fields = append(fields, exchange.Header{Name: strings.ToLower(name), Value: strings.Trim(value, " \t")})
	}
}

// head reads the first line and the headers.
func (r reader) head() (first string, fields []exchange.Header, err error) {
	left := maxHead
	if first, err = r.line(&left); err != nil {
		return "", nil, err
	}
	fields, err = r.fields(&left)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return first, fields, err
}

// body reads what follows the head of m. open: it goes on to the end of the connection
// when nothing says how long it is. After errCut m holds what came.
func (r reader) body(m *exchange.Message, open bool) error {
	if coding, _ := m.Get("transfer-encoding"); strings.EqualFold(coding, "chunked") {
		m.Chunked = true
		return r.chunks(m)
	}
	length, said := m.Get("content-length")
	switch {
	case said:
		n, err := strconv.ParseInt(length, 10, 64)
		if err != nil || n < 0 || n > maxBody {
			return fmt.Errorf("content-length: %q", length)
		}
		return r.take(m, n)
	case open:
		b, err := io.ReadAll(io.LimitReader(r, maxBody))
		if len(b) > 0 {
			m.Chunks = append(m.Chunks, b)
		}
		m.Chunked = true
		return err
	}
	return nil
}

// take reads a piece of the body.
func (r reader) take(m *exchange.Message, n int64) error {
	b, err := io.ReadAll(io.LimitReader(r, n))
	if len(b) > 0 {
		m.Chunks = append(m.Chunks, b)
	}
	if err != nil || int64(len(b)) < n {
		return errCut
	}
	return nil
}

func (r reader) chunks(m *exchange.Message) error {
	for {
		left := maxHead
		line, err := r.line(&left)
		if err != nil {
			return errCut
		}
		size, _, _ := strings.Cut(line, ";")
		n, err := strconv.ParseInt(strings.TrimSpace(size), 16, 64)
		if err != nil || n < 0 || n > maxBody {
			return fmt.Errorf("a chunk of size %q", line)
		}
		if n == 0 {
			m.Trailers, err = r.fields(&left)
			if err != nil {
				return errCut
			}
			return nil
		}
		if err := r.take(m, n); err != nil {
			return err
		}
		if end, err := r.line(&left); err != nil || end != "" {
			return errCut
		}
	}
}

// framing are the headers that say how a message is sent.
var framing = []string{"content-length", "transfer-encoding", "connection", "keep-alive"}

// pieces gives a message as it is sent: the head, and what follows piece by piece.
// bare: there is no body whatever the message says, as in an answer to HEAD.
func pieces(first string, m *exchange.Message, response, bare bool, more ...exchange.Header) [][]byte {
	var b strings.Builder
	b.WriteString(first + "\r\n")
	for _, h := range append(more, m.Headers...) {
		if !strings.HasPrefix(h.Name, ":") && !slices.Contains(framing, h.Name) || slices.Contains(more, h) {
			fmt.Fprintf(&b, "%s: %s\r\n", h.Name, h.Value)
		}
	}
	body := m.Body()
	switch {
	case m.Chunked:
		b.WriteString("transfer-encoding: chunked\r\n")
	case len(body) > 0 || response:
		fmt.Fprintf(&b, "content-length: %d\r\n", len(body))
	}
	b.WriteString("\r\n")
	all := [][]byte{[]byte(b.String())}
	if bare {
		return all
	}
	if !m.Chunked {
		return append(all, m.Chunks...)
	}
	for _, c := range m.Chunks {
		all = append(all, fmt.Appendf(nil, "%x\r\n%s\r\n", len(c), c))
	}
	b.Reset()
	b.WriteString("0\r\n")
	for _, h := range m.Trailers {
		fmt.Fprintf(&b, "%s: %s\r\n", h.Name, h.Value)
	}
	return append(all, []byte(b.String()+"\r\n"))
}

// without leaves fields out.
func without(fields []exchange.Header, drop func(exchange.Header) bool) []exchange.Header {
	return slices.DeleteFunc(slices.Clone(fields), drop)
}
