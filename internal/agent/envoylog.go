package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"chandler.dev/chandler"
)

// Limits on what is kept of Envoy's log.
const (
	logLineLimit   = 4 << 10
	logLinesKept   = 256
	logRotateAt    = 16 << 20
	reasonLimit    = 1 << 10
	reasonPatience = 500 * time.Millisecond
	logInterval    = 100 * time.Millisecond
)

// envoyLog follows the regular file that Envoy logs to: copies it on, keeps its
// last lines, and finds in them why Envoy refused something. A file never holds
// Envoy up, as a pipe that nobody reads would.
type envoyLog struct {
	path string
	out  io.Writer
	// own: the file is the agent's, and it keeps it small.
	own bool

	mu      sync.Mutex
	file    fs.FileInfo // which offset is in
	offset  int64
	partial []byte
	lines   []string // the last ones, at least logLinesKept
	count   int64    // lines seen in all

	faults faultLog
}

// run copies new lines on until ctx ends, then once more.
func (l *envoyLog) run(ctx context.Context) {
	tick := time.NewTicker(logInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			l.pump()
			return
		case <-tick.C:
			l.pump()
			l.rotate()
		}
	}
}

// mark gives the place in the log that it has grown to.
func (l *envoyLog) mark() int64 {
	l.pump()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count
}

// pump takes in what was written since the last call.
func (l *envoyLog) pump() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pumpLocked()
}

func (l *envoyLog) pumpLocked() {
	if l.path == "" {
		return // it cannot be read: the Envoy is somebody else's
	}
	f, err := os.Open(l.path)
	if err != nil {
		return // not there yet
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil {
		// A smaller file was emptied, another one put in its place.
		if st.Size() < l.offset || l.file != nil && !os.SameFile(l.file, st) {
			l.offset = 0
		}
		l.file = st
	}
	if _, err := f.Seek(l.offset, io.SeekStart); err != nil {
		return
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		l.offset += int64(n)
		l.take(buf[:n])
		if err != nil || n == 0 {
			return
		}
	}
}

func (l *envoyLog) take(b []byte) {
	if l.out != nil && len(b) > 0 {
		_, _ = l.out.Write(visible(b)) // where the agent's own talk goes
	}
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			l.partial = append(l.partial, b[:min(len(b), max(0, logLineLimit-len(l.partial)))]...)
			return
		}
		line := append(l.partial, b[:min(i, max(0, logLineLimit-len(l.partial)))]...)
		l.partial = nil
		l.lines = append(l.lines, string(line))
		if len(l.lines) >= 2*logLinesKept {
			l.lines = slices.Clone(l.lines[len(l.lines)-logLinesKept:])
		}
		l.count++
		l.faults.take(l.lines[len(l.lines)-1])
		b = b[i+1:]
	}
}

// visible has spaces in place of what a terminal would take for a command: plugins
// log what they like.
func visible(b []byte) []byte {
	return bytes.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, b)
}

// rotate keeps the file small, and what was in it in one file beside it. Envoy
// holds the file open and appends to it, so it is emptied in place; all that is
// in it has been copied on before.
func (l *envoyLog) rotate() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.own || l.offset < logRotateAt {
		return
	}
	if copyFile(l.path+".1", l.path) != nil {
		return // tried again at the next tick
	}
	l.pumpLocked() // what came meanwhile
	if os.Truncate(l.path, 0) == nil {
		l.offset = 0
	}
}

func copyFile(to, from string) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, io.LimitReader(r, 2*logRotateAt))
	return errors.Join(err, w.Close())
}

// since gives the lines after a mark that are still kept.
func (l *envoyLog) since(mark int64) []string {
	l.pump()
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(l.count-mark, int64(len(l.lines)))
	if n <= 0 {
		return nil
	}
	return append([]string(nil), l.lines[int64(len(l.lines))-n:]...)
}

// tail gives the last n lines.
func (l *envoyLog) tail(n int64) []string {
	return l.since(max(l.mark()-n, 0))
}

// reason finds why Envoy refused, with that message, the configuration that was
// sent after mark. The log may come later than the answer, so it waits, with a
// bound, for the line in which Envoy says that it rejects.
func (l *envoyLog) reason(ctx context.Context, mark int64, message string) string {
	if l.path == "" {
		return ""
	}
	deadline := time.Now().Add(reasonPatience)
	for {
		lines := l.since(mark)
		for i, line := range lines {
			if strings.Contains(line, " rejected: ") {
				return reasonIn(lines[:i], message)
			}
		}
		if time.Now().After(deadline) {
			return reasonIn(lines, message)
		}
		select {
		case <-ctx.Done():
			return reasonIn(lines, message)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// logHead matches the head of a line in Envoy's default format:
// [time][thread][level][component] [file:line] text.
var logHead = regexp.MustCompile(`^\[[^\]]*\]\[\d+\]\[(\w+)\]\[(\w+)\] \[[^\]]*\] (.*)$`)

// pluginHead matches what Envoy puts before a plugin's own words: the plugin's
// name, and more.
var pluginHead = regexp.MustCompile(`^wasm log(?: ([^ :]+)[^:]*)?: (.*)$`)

// dull are lines that only repeat that something failed.
var dull = regexp.MustCompile(`^(Plugin .* failed to load|Wasm VM failed .*Failed to (start|configure) base Wasm.*)$`)

// mute are lines that say only that something failed, as the refusal itself does.
// Of a plugin that it refused before Envoy says no more.
var mute = regexp.MustCompile(`^Plugin .* failed to load$`)

// reasonIn puts the lines that explain a refusal together: the plugin's own
// words first, as its author meant them for the user. Other plugins talk too
// meanwhile; if the message of the refusal names one, only its words count.
func reasonIn(lines []string, message string) string {
	var own, engine, rest []string
	named := named(message)
	for _, line := range lines {
		m := logHead.FindStringSubmatch(line)
		if m == nil || m[1] != "error" && m[1] != "critical" && m[1] != "warning" || m[2] != "wasm" && m[2] != "lua" {
			continue
		}
		switch words := pluginHead.FindStringSubmatch(m[3]); {
		case words != nil && named && !slices.Contains(strings.Fields(message), words[1]):
			// of another plugin
		case words != nil:
			own = append(own, words[2])
		case dull.MatchString(m[3]):
			rest = append(rest, m[3])
		default:
			engine = append(engine, strings.TrimPrefix(m[3], "Wasm VM failed "))
		}
	}
	parts := append(own, engine...)
	if len(parts) == 0 && slices.ContainsFunc(rest, func(s string) bool { return !mute.MatchString(s) }) {
		parts = rest
	}
	return chandler.Printable(strings.Join(unique(parts), "; "), reasonLimit)
}

// named tells whether the message of a refusal says which plugin it is about.
func named(message string) bool { return strings.Contains(message, "Wasm plugin ") }

func unique(list []string) []string {
	seen := map[string]bool{}
	var out []string
	for _, s := range list {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}
