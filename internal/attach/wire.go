package attach

import (
	"bytes"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// place is where in a message something stands. It becomes text only when somebody
// is told of it.
type place struct {
	up    *place
	name  string
	index int // in a list; -1: not in one
}

func (p *place) field(name string) *place          { return &place{p, name, -1} }
func (p *place) item(name string, i int) *place    { return &place{p, name, i} }
func (p *place) problem(hint, text string) error   { return problem(p.String(), hint, "%s", text) }
func (p *place) problemf(f string, a ...any) error { return problem(p.String(), "", f, a...) }

func (p *place) String() string {
	switch {
	case p == nil:
		return ""
	case p.index >= 0:
		return fmt.Sprintf("%s[%d]", sub(p.up.String(), p.name), p.index)
	}
	return sub(p.up.String(), p.name)
}

// scanner goes over the fields of a message in the wire format, one after the other.
// What it does not ask for it does not read.
type scanner struct {
	at   *place
	rest []byte
	num  protowire.Number
	typ  protowire.Type
	raw  []byte // the field at hand with its tag
	tag  int    // the tag's length
	seen uint64 // of fields that one was asked for
	err  error
}

func scan(message []byte, at *place) *scanner { return &scanner{at: at, rest: message} }

// next goes to the next field; false: there is none, or err says why.
func (s *scanner) next() bool {
	if s.err != nil || len(s.rest) == 0 {
		return false
	}
	num, typ, n := protowire.ConsumeField(s.rest)
	if n < 0 {
		s.err = s.at.problemf("it is no message of protocol buffers: %v", protowire.ParseError(n))
		return false
	}
	_, _, s.tag = protowire.ConsumeTag(s.rest)
	s.num, s.typ, s.raw, s.rest = num, typ, s.rest[:n:n], s.rest[n:]
	return true
}

// bytes is the content of the field at hand, a message or a text; never nil.
func (s *scanner) bytes(name string) []byte {
	if s.typ != protowire.BytesType {
		s.fail(name, "the field is neither a message nor a text")
		return []byte{}
	}
	content, _ := protowire.ConsumeBytes(s.raw[s.tag:])
	return content
}

// one is bytes of a field that may stand there once: parts of a message that is given
// in pieces mean something only together.
func (s *scanner) one(name string) []byte {
	if bit := uint64(1) << uint(s.num); s.seen&bit != 0 {
		s.fail(name, "the field is given twice")
	} else {
		s.seen |= bit
	}
	return s.bytes(name)
}

// number is the value of the field at hand, a number.
func (s *scanner) number(name string) uint64 {
	if s.typ != protowire.VarintType {
		s.fail(name, "the field is no number")
		return 0
	}
	v, _ := protowire.ConsumeVarint(s.raw[s.tag:])
	return v
}

func (s *scanner) fail(name, text string) {
	if s.err == nil {
		s.err = s.at.field(name).problem("", text)
	}
}

// keep appends the field at hand as it is.
func (s *scanner) keep(out []byte) []byte { return append(out, s.raw...) }

// replace appends the field at hand, a message, with another content; with the same
// one it stays as it is, however its length was written.
func (s *scanner) replace(out, content []byte) []byte {
	if old, _ := protowire.ConsumeBytes(s.raw[s.tag:]); bytes.Equal(old, content) {
		return s.keep(out)
	}
	out = append(out, s.raw[:s.tag]...)
	return protowire.AppendBytes(out, content)
}

// rewrite gives a message for whose fields edit appends what is to stand there. An
// error of edit ends it.
func rewrite(message []byte, at *place, edit func(s *scanner, out []byte) ([]byte, error)) ([]byte, error) {
	out := make([]byte, 0, len(message)+len(message)/8)
	s := scan(message, at)
	for s.next() {
		var err error
		if out, err = edit(s, out); err != nil {
			return nil, err
		}
	}
	return out, s.err
}
