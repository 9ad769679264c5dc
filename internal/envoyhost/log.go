package envoyhost

import (
	"bufio"
	"bytes"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"

	"chandler.dev/chandler/internal/exchange"
)

const (
	// mark begins a record of Envoy's log, so that texts of several lines are one.
	mark = '\x1e'
	// logFormat: thread, level, component, text.
	logFormat = string(mark) + "%t|%l|%n|%v"
	// maxRecords is how many records are kept, and maxRecord how long each is.
	maxRecords, maxRecord = 1 << 20, 64 << 10
	// barrierPath is that of requests which only serve to be seen in the log.
	barrierPath = "/chandler-barrier-"
)

// record is one of Envoy's log.
type record struct{ thread, level, component, text string }

// journal is what Envoy logged since it was emptied.
type journal struct {
	mu      sync.Mutex
	records []record
	changed chan struct{} // closed and replaced when there is more
	tail    []string      // the last words, to say why Envoy ended
}

func newJournal() *journal { return &journal{changed: make(chan struct{})} }

// follow reads a log to its end.
func (j *journal) follow(r io.Reader) {
	lines := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := lines.ReadSlice('\n')
		if len(line) > 0 {
			j.add(line)
		}
		if err != nil && err != bufio.ErrBufferFull {
			return
		}
	}
}

func (j *journal) add(line []byte) {
	j.mu.Lock()
	defer j.mu.Unlock()
	defer func() {
		close(j.changed)
		j.changed = make(chan struct{})
	}()
	text := strings.TrimSuffix(string(line), "\n")
	j.tail = append(j.tail[max(0, len(j.tail)-9):], text)
	if !bytes.HasPrefix(line, []byte{mark}) {
		if n := len(j.records); n > 0 && len(j.records[n-1].text) < maxRecord {
			j.records[n-1].text += "\n" + text
		}
		return
	}
	parts := strings.SplitN(text[1:], "|", 4)
	if len(parts) < 4 {
		return
	}
	if len(j.records) >= maxRecords {
		return
	}
	j.records = append(j.records, record{parts[0], parts[1], parts[2], parts[3]})
}

// since gives the records behind the first n, and what is closed when there are more.
func (j *journal) since(n int) ([]record, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.records[min(n, len(j.records)):]), j.changed // the last may grow
}

// take gives the records and begins anew.
func (j *journal) take() []record {
	j.mu.Lock()
	defer j.mu.Unlock()
	records := j.records
	j.records = nil
	return records
}

// last are the last words.
func (j *journal) last() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.tail, "\n")
}

var (
	tagPattern    = regexp.MustCompile(`^\[Tags: "ConnectionId":"(\d+)"(?:,"StreamId":"(\d+)")?\] `)
	replyPattern  = regexp.MustCompile(`local reply with details (\S+)`)
	callPattern   = regexp.MustCompile(`cluster '([^']*)' match for URL '([^']*)'`)
	tickPattern   = regexp.MustCompile(`^\[host->vm\] proxy_on_tick\(`)
	periodPattern = regexp.MustCompile(`^\[vm->host\] env\.proxy_set_tick_period_milliseconds\((\d+)\)`)
	trapPattern   = regexp.MustCompile(`^Function: \S+ failed: .*`)
)

// levels are the names of levels that differ.
var levels = map[string]string{"warning": "warn"}

// own gives the line of a plugin that a record is, if it is one of those with a prefix.
// Before a plugin is configured Envoy leaves the first words of it out.
func (r *record) own(prefix string) (exchange.Log, bool) {
	who, text, ok := strings.Cut(strings.TrimPrefix(r.text, "wasm log"), ": ")
	if !ok || r.component != "wasm" || len(who)+len(text) == len(r.text)-2 || who == "" || !strings.HasSuffix(prefix, who) {
		return exchange.Log{}, false
	}
	level := r.level
	if l, ok := levels[level]; ok {
		level = l
	}
	return exchange.Log{Level: level, Text: text}, true
}

// traced tells whether a record is of a call between host and module.
func (r *record) traced() bool {
	return r.component == "wasm" && r.level == "trace" && strings.HasPrefix(r.text, "[")
}
