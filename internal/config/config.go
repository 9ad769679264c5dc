// Package config is the operator's file ("chandler serve --config"): its sections,
// strict reading with the place of every mistake, and the watch for changes.
//
// It only puts sections together. What a section means, and what can be wrong in
// it beyond its form, is the business of the package whose type it is.
package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/access"
	"chandler.dev/chandler/internal/identity"
	"chandler.dev/chandler/internal/policy"
	"chandler.dev/chandler/internal/trust"
)

// maxFile is how large the file may be, in bytes.
const maxFile = 1 << 20

// File is what the operator's file says. The zero value is an empty file, which
// restricts nothing.
//
// A section is a field here: decoding and the place of mistakes follow from its
// type and yaml tags, and its Check or Load method (see checker, loader), if it has
// one, is called.
type File struct {
	policy.Policy `yaml:",inline"`
	// Signatures say whose signatures modules must have.
	Signatures []trust.Rule `yaml:"signatures"`
	// Identities say what agents' certificates mean.
	Identities []identity.Rule `yaml:"identities"`
	// Access says who may do what at the admin port.
	Access []access.Grant `yaml:"access"`

	inputs inputs
}

// inputs are the contents of a file and of those that it names, by path.
type inputs map[string]string

// read gives the content of a file and remembers it.
func (in inputs) read(path string) ([]byte, error) {
	b, err := read(path)
	if in[path] = string(b); err != nil {
		in[path] = "cannot be read: " + err.Error()
	}
	return b, err
}

// changed tells whether one of them is not what it was.
func (in inputs) changed() bool {
	now := inputs{}
	for path, was := range in {
		if _, _ = now.read(path); now[path] != was {
			return true
		}
	}
	return false
}

// Load reads a file. The error is an *Error.
func Load(path string) (*File, error) {
	f, err := load(path)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// load gives a file with what it was made of, also where it cannot be used.
func load(path string) (*File, error) {
	f := &File{inputs: inputs{}}
	b, err := f.inputs.read(path)
	if err != nil {
		return f, unreadable(path, err)
	}
	mistakes := decode(b, f, func(name string) ([]byte, error) {
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(path), name)
		}
		return f.inputs.read(name)
	})
	if len(mistakes) > 0 {
		return f, &Error{Path: path, Mistakes: mistakes}
	}
	return f, nil
}

func unreadable(path string, err error) *Error {
	p := chandler.Problemf(chandler.CodeConfRead, "", "", "cannot be read: %v", err)
	var large *chandler.Problem
	if errors.As(err, &large) {
		p = large
	}
	return &Error{Path: path, Mistakes: []Mistake{{Problem: *p}}}
}

// read gives the content of a file. A link, as in a mounted ConfigMap, leads to
// one whole content or another.
func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		var inner *os.PathError
		if errors.As(err, &inner) {
			err = inner.Err // the path is told already
		}
		return nil, err
	}
	defer f.Close()
	if stat, err := f.Stat(); err != nil {
		return nil, err
	} else if !stat.Mode().IsRegular() {
		return nil, errors.New("it is not a file")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = chandler.Problemf(chandler.CodeConfSize, "", "make it smaller; keys may be files of their own", "the file is larger than %d bytes", maxFile)
	}
	return b, err
}

// Mistake is something wrong at a place of the file; Line and Column begin at 1,
// and are 0 for what concerns the file as a whole.
type Mistake struct {
	Line, Column int
	chandler.Problem
}

// Error is why a file is not taken: all that is wrong with it, in its order.
type Error struct {
	Path     string
	Mistakes []Mistake
}

// maxTold is how many mistakes an error's text tells.
const maxTold = 10

// Error gives a line for every mistake, with the place first, as compilers do.
func (e *Error) Error() string {
	var lines []string
	for i := range e.Mistakes {
		if i == maxTold {
			lines = append(lines, fmt.Sprintf("%s: %d more mistakes", e.Path, len(e.Mistakes)-maxTold))
			break
		}
		m := &e.Mistakes[i]
		at := e.Path
		if m.Line > 0 {
			at += fmt.Sprintf(":%d:%d", m.Line, m.Column)
		}
		lines = append(lines, fmt.Sprintf("%s: %s (%s)", at, m.Problem.Error(), m.Code))
	}
	return strings.Join(lines, "\n")
}
