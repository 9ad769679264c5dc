package agent

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// logFile is a file that Envoy would log to.
type logFile struct {
	t    *testing.T
	path string
}

func newLogFile(t *testing.T) logFile {
	return logFile{t, filepath.Join(t.TempDir(), "envoy.log")}
}

// write appends, as Envoy does.
func (f logFile) write(text string) {
	f.t.Helper()
	file, err := os.OpenFile(f.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		f.t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString(text); err != nil {
		f.t.Fatal(err)
	}
}

func wasmError(text string) string {
	return "[2026-08-01 10:00:00.000][12][error][wasm] [source/extensions/common/wasm/x.cc:1] " + text + "\n"
}

const rejectedLine = "[2026-08-01 10:00:00.003][12][warning][config] [source/x.cc:4] gRPC config for type rejected: no\n"

func (l *envoyLog) all() string { return strings.Join(l.since(0), "|") }

func TestEnvoyLogPartialLines(t *testing.T) {
	t.Parallel()
	f := newLogFile(t)
	var out bytes.Buffer
	l := &envoyLog{path: f.path, out: &out}
	l.pump() // before there is a file
	f.write("one\ntw")
	if got := l.all(); got != "one" {
		t.Errorf("lines %q", got)
	}
	f.write("o")
	f.write("\n\nthree\n")
	if got := l.all(); got != "one|two||three" {
		t.Errorf("lines %q", got)
	}
	if out.String() != "one\ntwo\n\nthree\n" {
		t.Errorf("copied on: %q", out.String())
	}
	if got := strings.Join(l.tail(2), "|"); got != "|three" {
		t.Errorf("the last two are %q", got)
	}
	if got := l.tail(100); len(got) != 4 {
		t.Errorf("of four lines the last hundred are %q", got)
	}
}

// It begins where the log ends when an agent starts, and goes on from marks.
func TestEnvoyLogMarks(t *testing.T) {
	t.Parallel()
	f := newLogFile(t)
	f.write("of another agent\n")
	l := &envoyLog{path: f.path, offset: int64(len("of another agent\n"))}
	f.write("a\n")
	mark := l.mark()
	if got := l.since(mark); got != nil {
		t.Errorf("after the mark there is %q already", got)
	}
	f.write("b\nc\n")
	if got := strings.Join(l.since(mark), "|"); got != "b|c" {
		t.Errorf("after the mark: %q", got)
	}
}

// What keeps lines is bounded, whatever is logged.
func TestEnvoyLogBounds(t *testing.T) {
	t.Parallel()
	f := newLogFile(t)
	l := &envoyLog{path: f.path}
	f.write(strings.Repeat("x", 3*logLineLimit))
	l.pump()
	if len(l.partial) > logLineLimit {
		t.Errorf("%d bytes of an unfinished line are kept", len(l.partial))
	}
	f.write(strings.Repeat("y", logLineLimit) + "\n")
	var many strings.Builder
	for i := range 10 * logLinesKept {
		fmt.Fprintf(&many, "%d\n", i)
	}
	if got := l.since(0); len(got) != 1 || len(got[0]) != logLineLimit {
		t.Errorf("the long line has become %d lines", len(got))
	}
	f.write(many.String())
	mark := l.mark() - logLinesKept
	if got := l.since(mark); len(got) != logLinesKept || got[logLinesKept-1] != fmt.Sprint(10*logLinesKept-1) {
		t.Errorf("of the last lines %d are kept, up to %q", len(got), got[len(got)-1])
	}
	if len(l.lines) > 2*logLinesKept || cap(l.lines) > 8*logLinesKept {
		t.Errorf("%d lines are kept", len(l.lines))
	}
}

// The agent's own log file is emptied in place when it is large, and what was in
// it is in one file beside it.
func TestEnvoyLogRotation(t *testing.T) {
	t.Parallel()
	f := newLogFile(t)
	var out bytes.Buffer
	l := &envoyLog{path: f.path, out: &out, own: true}
	f.write("small\n")
	l.pump()
	l.rotate()
	if _, err := os.Stat(f.path + ".1"); err == nil {
		t.Error("a small log was rotated")
	}
	line := strings.Repeat("x", 1023) + "\n"
	f.write(strings.Repeat(line, logRotateAt/len(line)+1))
	l.pump()
	f.write("just before\n")
	l.rotate()
	f.write("just after\n")
	l.pump()
	if st, err := os.Stat(f.path); err != nil || st.Size() != int64(len("just after\n")) {
		t.Errorf("the log has %d bytes, error %v", st.Size(), err)
	}
	old, err := os.ReadFile(f.path + ".1")
	if err != nil || !strings.HasPrefix(string(old), "small\n") || !strings.HasSuffix(string(old), "just before\n") {
		t.Errorf("the file beside it has %d bytes, error %v", len(old), err)
	}
	if got := strings.Join(l.tail(2), "|"); got != "just before|just after" {
		t.Errorf("the last lines are %.80q", got)
	}
	if !strings.HasSuffix(out.String(), "just before\njust after\n") {
		t.Error("not everything was copied on")
	}

	other := &envoyLog{path: f.path + ".1"}
	other.pump()
	other.rotate()
	if _, err := os.Stat(f.path + ".1.1"); err == nil {
		t.Error("a log that is the user's was rotated")
	}
}

// A file that somebody else empties, or puts another one in place of, is read
// from its beginning.
func TestEnvoyLogTruncatedAndReplaced(t *testing.T) {
	t.Parallel()
	f := newLogFile(t)
	l := &envoyLog{path: f.path}
	f.write("one\ntwo\n")
	l.pump()
	if err := os.Truncate(f.path, 0); err != nil {
		t.Fatal(err)
	}
	f.write("three\n")
	l.pump()
	if err := os.Rename(f.path, f.path+".old"); err != nil {
		t.Fatal(err)
	}
	l.pump()
	f.write("four, which is longer than what was there before\n")
	if got := l.all(); got != "one|two|three|four, which is longer than what was there before" {
		t.Errorf("lines %q", got)
	}
}

// What Envoy logs at its end is not lost.
func TestEnvoyLogRunsToTheEnd(t *testing.T) {
	f := newLogFile(t)
	synctest.Test(t, func(t *testing.T) {
		l := &envoyLog{path: f.path, own: true}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); l.run(ctx) }()
		f.write("one\n")
		time.Sleep(2 * logInterval) // of the bubble's clock
		l.mu.Lock()
		if l.count != 1 {
			t.Errorf("after its interval it has seen %d lines", l.count)
		}
		l.mu.Unlock()
		f.write("two\n")
		cancel()
		<-done
		if l.count != 2 {
			t.Errorf("at its end it has seen %d lines", l.count)
		}
	})
}

func TestEnvoyLogReason(t *testing.T) {
	f := newLogFile(t)
	synctest.Test(t, func(t *testing.T) {
		l := &envoyLog{path: f.path}
		f.write(wasmError("wasm log WasmPlugin/ns/a: of an earlier push"))
		mark, message := l.mark(), "Unable to create Wasm plugin WasmPlugin/ns/a"

		began := time.Now()
		f.write(wasmError("wasm log WasmPlugin/ns/b: another plugin talks") +
			wasmError("wasm log WasmPlugin/ns/ab root: and one with a longer name") +
			wasmError("wasm log WasmPlugin/ns/a my_root vm: realm: is no string"))
		go func() {
			time.Sleep(reasonPatience / 2)
			f.write(rejectedLine + wasmError("wasm log WasmPlugin/ns/a: of what comes after"))
		}()
		if got := l.reason(t.Context(), mark, message); got != "realm: is no string" {
			t.Errorf("the reason is %q", got)
		}
		if took := time.Since(began); took >= reasonPatience {
			t.Errorf("it took %v though Envoy had said that it rejects", took)
		}

		mark = l.mark()
		began = time.Now()
		f.write(wasmError("Wasm VM failed Failed to parse corrupted Wasm module") + wasmError("Plugin WasmPlugin/ns/a failed to load"))
		if got := l.reason(t.Context(), mark, message); got != "Failed to parse corrupted Wasm module" {
			t.Errorf("the reason is %q", got)
		}
		if took := time.Since(began); took < reasonPatience || took > 2*reasonPatience {
			t.Errorf("without Envoy's word it took %v", took)
		}

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		began = time.Now()
		if got := l.reason(ctx, l.mark(), message); got != "" || time.Since(began) != 0 {
			t.Errorf("the reason is %q after %v, though nobody waits", got, time.Since(began))
		}
	})
}

// A plugin's words are bounded and fit to be shown.
func TestReasonIsBoundedAndPrintable(t *testing.T) {
	t.Parallel()
	line := wasmError("wasm log WasmPlugin/ns/a: \x1b[31m" + strings.Repeat("x", 2*reasonLimit))
	got := reasonIn([]string{strings.TrimSuffix(line, "\n")}, "Unable to create Wasm plugin WasmPlugin/ns/a")
	if got == "" || len(got) > 2*reasonLimit || strings.Contains(got, "\x1b") {
		t.Errorf("the reason has %d bytes: %.40q", len(got), got)
	}
}
