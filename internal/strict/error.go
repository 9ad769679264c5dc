package strict

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"chandler.dev/chandler"
)

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
			lines = append(lines, e.Path+": "+chandler.Count(len(e.Mistakes)-maxTold, "more mistake", "more mistakes"))
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

// Unreadable is the Error of a file that cannot be read.
func Unreadable(path string, err error) *Error {
	p := chandler.Problemf(chandler.CodeConfRead, "", "", "cannot be read: %v", err)
	var large *chandler.Problem
	if errors.As(err, &large) {
		p = large
	}
	return &Error{Path: path, Mistakes: []Mistake{{Problem: *p}}}
}

// ReadFile gives the content of a file of at most so many bytes. A link, as in a mounted ConfigMap, leads to
// one whole content or another.
func ReadFile(path string, most int64) ([]byte, error) {
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
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = chandler.Problemf(chandler.CodeConfSize, "", "make it smaller, or divide it", "the file is larger than %d bytes", most)
	}
	return b, err
}
