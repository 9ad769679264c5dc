package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

// plugin makes a folder with a module and its tests.
func plugin(t *testing.T, code []byte, tests string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "hello")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	replace(t, filepath.Join(dir, "hello.wasm"), code)
	replace(t, filepath.Join(dir, "chandler.test.yaml"), []byte(tests))
	return dir
}

// replace writes a file as a compiler does: another takes its name, which had none before
// that is watched, so that there is one change, however long this takes.
func replace(t *testing.T, path string, content []byte) {
	t.Helper()
	hidden := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.WriteFile(hidden, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(hidden, path); err != nil {
		t.Fatal(err)
	}
}

func noEnvironment(string) string { return "" }

func TestTestExitCodes(t *testing.T) {
	t.Parallel()
	const denied = "cases: [{name: a, request: /, expect: 403}]"
	for name, c := range map[string]struct {
		code  []byte
		tests string
		args  []string
		want  int
	}{
		"all pass":       {module.Deny(403), denied, nil, 0},
		"one fails":      {module.Deny(404), denied, nil, exitUnhealthy},
		"it is refused":  {module.BadABI(), denied, nil, exitUnhealthy},
		"no file":        {module.Deny(403), denied, []string{"--module", "nowhere.wasm"}, exitFailed},
		"a bad file":     {module.Deny(403), "cases: [{}]", nil, exitFailed},
		"a bad flag":     {module.Deny(403), denied, []string{"--run", "("}, exitUsage},
		"no such case":   {module.Deny(403), denied, []string{"--run", "b"}, exitUsage},
		"not on Envoy":   {module.Deny(403), "cases: [{name: a, request: /, properties: {x: y}, expect: 403}]", []string{"--engine", "envoy", "--envoy", module.Envoy(t)}, 0},
		"not to be run":  {module.Deny(403), denied, []string{"--engine", "envoy", "--envoy", "/bin/false"}, exitFailed},
		"an Envoy, none": {module.Deny(403), denied, []string{"--engine", "envoy", "--envoy", "nowhere"}, exitUsage},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			args := append([]string{"chandler", "test", plugin(t, c.code, c.tests)}, c.args...)
			if got := run(args, noEnvironment, strings.NewReader(""), &out, &out); got != c.want {
				t.Errorf("exit code %d, want %d\n%s", got, c.want, out.String())
			}
		})
	}
}

// lockedBuffer is written by one and read by another.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Tests run again when the module changes, when the file does, and when it is right
// again after a mistake.
func TestTestWatches(t *testing.T) {
	t.Parallel()
	dir := plugin(t, module.Deny(403), "cases: [{name: a, request: /, expect: 403}]")
	out := &lockedBuffer{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		root := rootCommand(&env{getenv: noEnvironment, stdout: out, stderr: out, exact: out})
		root.SetArgs([]string{"test", "--watch", dir})
		done <- root.ExecuteContext(ctx)
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	runs := 0
	after := func(want string, change func()) {
		t.Helper()
		change()
		runs++
		for until := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) { // between looks at a condition
			all := strings.Split(out.String(), "Waiting for a change.\n")
			if len(all) > runs {
				if !strings.Contains(all[runs-1], want) {
					t.Fatalf("run %d never said %q:\n%s", runs, want, out.String())
				}
				return
			}
			if time.Now().After(until) {
				t.Fatalf("no run %d:\n%s", runs, out.String())
			}
		}
	}
	file := filepath.Join(dir, "chandler.test.yaml")
	after("1 passed", func() {})
	after("got: 404", func() { replace(t, filepath.Join(dir, "hello.wasm"), module.Deny(404)) })
	after("1 passed", func() { replace(t, file, []byte("cases: [{name: b, request: /, expect: 404}]")) })
	after("unknown key", func() { replace(t, file, []byte("cases: [{nam: b}]")) })
	after("2 passed", func() {
		replace(t, file, []byte("cases: [{name: b, request: /, expect: 404}, {name: c, request: /, expect: 404}]"))
	})
}
