package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"chandler.dev/chandler/internal/author/inspect"
)

// terminal gives what is a terminal, or nil.
func terminal(w io.Writer) io.Writer {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return f
	}
	return nil
}

// meter shows on a terminal how far a transfer is, in one line that is written over.
// Without a terminal it is nil, and silent.
type meter struct {
	w   io.Writer
	now func() time.Time

	mu    sync.Mutex
	last  time.Time
	shown bool
}

// meterPause is how long a line stays at least.
const meterPause = 100 * time.Millisecond

func newMeter(tty io.Writer, now func() time.Time) *meter {
	if tty == nil {
		return nil
	}
	return &meter{w: tty, now: now}
}

// tell is the Progress of a fetch.Config.
func (m *meter) tell(what string, done, size int64) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	if now.Sub(m.last) < meterPause {
		return
	}
	m.last, m.shown = now, true
	fmt.Fprint(m.w, "\r\x1b[K"+escape([]byte(meterLine(what, done, size))))
}

// clear takes the line away.
func (m *meter) clear() {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.shown {
		fmt.Fprint(m.w, "\r\x1b[K")
		m.shown = false
	}
}

func meterLine(what string, done, size int64) string {
	if size <= 0 {
		return fmt.Sprintf("%s  %s", what, inspect.SizeText(done))
	}
	const width = 20
	full := int(min(done, size) * width / size)
	return fmt.Sprintf("%s  [%s%s] %3d%%  %s of %s", what, strings.Repeat("#", full), strings.Repeat(" ", width-full), min(done, size)*100/size, inspect.SizeText(done), inspect.SizeText(size))
}
