package viewstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"chandler.dev/chandler/internal/xds/relay"
)

// A view's file is a line that names the format, the view, and SHA-256 of both, from which
// it has its name: a name never changes its meaning. The set is a text of lines: the format,
// whose resources they are, the names of the files, and SHA-256 of these. Another format's
// files have other names and stay beside them, for the agent that wrote them.
const (
	magic      = "chandler view 3\n"
	filePrefix = "view-3-"
	setMagic   = "chandler views 3\n"
	setName    = "set-3"
	// aside begins the name of one that could not be read.
	aside = "damaged-"

	maxSet = 64 << 10
)

// seal is what stands at the end of a file.
type seal = [sha256.Size]byte

// hashing writes on, and hashes.
type hashing struct {
	hash.Hash
	to io.Writer
}

func (h hashing) Write(b []byte) (int, error) {
	_, _ = h.Hash.Write(b) // a hash takes everything
	return h.to.Write(b)
}

// encode writes a view's file, and gives its size and its end.
func encode(to io.Writer, v relay.View, end *seal) (int64, error) {
	w := hashing{sha256.New(), to}
	if _, err := io.WriteString(w, magic); err != nil {
		return 0, err
	}
	n, err := v.WriteTo(w)
	if err != nil {
		return 0, err
	}
	w.Sum(end[:0])
	_, err = to.Write(end[:])
	return int64(len(magic)) + n + sha256.Size, err
}

// decode reads a view's file.
func decode(text []byte) (v relay.View, sum seal, err error) {
	end := len(text) - sha256.Size
	if end < 0 || sha256.Sum256(text[:end]) != seal(text[end:]) {
		return v, sum, errors.New("it is not whole")
	}
	content, ok := bytes.CutPrefix(text[:end], []byte(magic))
	if !ok {
		return v, sum, errors.New("it is of another format")
	}
	v, err = relay.ReadView(content)
	return v, seal(text[end:]), err
}

// fileName is that of a view with such an end.
func fileName(end seal) string { return filePrefix + hex.EncodeToString(end[:16]) }

// set is the views that belong together, by the names of their files, and whose they are.
type set struct {
	source string
	files  map[string]bool
}

func (s set) encode() []byte {
	var b bytes.Buffer
	b.WriteString(setMagic)
	b.WriteString(strconv.Quote(s.source) + "\n")
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		b.WriteString(name + "\n")
	}
	end := sha256.Sum256(b.Bytes())
	b.WriteString(hex.EncodeToString(end[:]) + "\n")
	return b.Bytes()
}

func decodeSet(text []byte) (set, error) {
	const tail = 2*sha256.Size + 1
	s := set{files: map[string]bool{}}
	if len(text) < tail {
		return s, errors.New("it is not whole")
	}
	content, end := text[:len(text)-tail], sha256.Sum256(text[:len(text)-tail])
	if string(text[len(content):]) != hex.EncodeToString(end[:])+"\n" {
		return s, errors.New("it is not whole")
	}
	lines, ok := strings.CutPrefix(string(content), setMagic)
	source, names, _ := strings.Cut(lines, "\n")
	var err error
	if s.source, err = strconv.Unquote(source); !ok || err != nil {
		return s, errors.New("it is of another format")
	}
	for name := range strings.Lines(names) {
		name = strings.TrimSuffix(name, "\n")
		if !strings.HasPrefix(name, filePrefix) || strings.ContainsAny(name, "/\\\x00") {
			return s, errors.New("it names what is no view")
		}
		s.files[name] = true
	}
	return s, nil
}
