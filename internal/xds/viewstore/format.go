package viewstore

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"slices"
)

// A file is a line that names the format; the source, the type, and of each resource
// its name, version and body, each with its length before it; and SHA-256 of all that.
// Resources are in the order of their names, so that the same view is the same file.
const magic = "chandler view 1\n"

var errTorn = errors.New("it is not whole")

// sorted is the view with its resources in order.
func sorted(v *View) *View {
	byName := func(a, b Resource) int { return cmp.Compare(a.Name, b.Name) }
	if slices.IsSortedFunc(v.Resources, byName) {
		return v
	}
	c := *v
	c.Resources = slices.Clone(v.Resources)
	slices.SortStableFunc(c.Resources, byName)
	return &c
}

// counter counts what is written on the way to a hash.
type counter struct {
	hash.Hash
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	c.n += int64(len(b))
	return c.Hash.Write(b)
}

// measure gives the size of a view's file and what stands at its end.
func measure(v *View) (size int64, sum [sha256.Size]byte) {
	c := &counter{Hash: sha256.New()}
	w := bufio.NewWriter(c)
	content(w, v)
	_ = w.Flush() // a hash takes everything
	c.Sum(sum[:0])
	return c.n + sha256.Size, sum
}

// encode writes a view's file.
func encode(to io.Writer, v *View) error {
	h := sha256.New()
	w := bufio.NewWriterSize(io.MultiWriter(to, h), 64<<10)
	content(w, v)
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := to.Write(h.Sum(nil))
	return err
}

// content writes all but the end; w keeps its first error.
func content(w *bufio.Writer, v *View) {
	var length [binary.MaxVarintLen64]byte
	field := func(n int) { _, _ = w.Write(length[:binary.PutUvarint(length[:], uint64(n))]) }
	text := func(s string) {
		field(len(s))
		_, _ = w.WriteString(s)
	}
	_, _ = w.WriteString(magic)
	text(v.Source)
	text(v.Type)
	for _, r := range v.Resources {
		text(r.Name)
		text(r.Version)
		field(len(r.Body))
		_, _ = w.Write(r.Body)
	}
}

// decode reads a view's file; its bodies are parts of text.
func decode(text []byte) (v View, sum [sha256.Size]byte, err error) {
	end := len(text) - sha256.Size
	if end < 0 || sha256.Sum256(text[:end]) != [sha256.Size]byte(text[end:]) {
		return View{}, sum, errTorn
	}
	sum = [sha256.Size]byte(text[end:])
	rest, ok := bytes.CutPrefix(text[:end], []byte(magic))
	if !ok {
		return View{}, sum, errors.New("it is of another format")
	}
	r := reader{rest: rest}
	v.Source, v.Type = string(r.field()), string(r.field())
	for !r.torn && len(r.rest) > 0 {
		v.Resources = append(v.Resources, Resource{Name: string(r.field()), Version: string(r.field()), Body: r.field()})
	}
	if r.torn {
		return View{}, sum, errTorn
	}
	return v, sum, nil
}

// reader takes fields off the front.
type reader struct {
	rest []byte
	torn bool
}

func (r *reader) field() []byte {
	n, used := binary.Uvarint(r.rest)
	if used <= 0 || n > uint64(len(r.rest)-used) {
		r.torn, r.rest = true, nil
		return nil
	}
	b := r.rest[used : used+int(n) : used+int(n)]
	r.rest = r.rest[used+int(n):]
	return b
}
