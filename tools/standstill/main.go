//go:build linux

// Standstill runs a command on a machine that stands still now and then: before a
// goroutine runs, its thread may sleep for a while, in every Go program that is built
// beneath the command; and single threads of its Envoys are stopped for as long. What
// then fails has counted on two things happening one soon after the other, as they do
// on any machine but a busy one. Pauses are short (a few milliseconds, seldom up to
// 0.3 s) so that what has a minute is in time; how much is done in a second is not
// judged, and a test of that may fail.
//
// It is not a fault injector of the product's: it knows none of its parts.
//
// Usage, from this module's directory: go run ./standstill go test ./test/e2e
// The command runs in the directory above. It is ended by an interrupt.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// pause is what is added to the runtime's scheduler: standstill, to be called before a
// goroutine runs.
//
//go:embed pause.go.txt
var pause []byte

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: standstill COMMAND ARG...")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "standstill:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	overlay, err := writeOverlay(ctx, filepath.Join("..", ".run", "standstill"))
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "GOFLAGS="+strings.TrimSpace(os.Getenv("GOFLAGS")+" -overlay="+overlay))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	stopped := make(chan int)
	go func() { stopped <- stopThreads(done, cmd.Process.Pid, "envoy") }()
	err = cmd.Wait()
	close(done)
	fmt.Fprintf(os.Stderr, "standstill: threads of Envoys were stopped %d times\n", <-stopped)
	return err
}

// scheduler begins the runtime's function that every goroutine goes through before it
// runs.
const scheduler = "func execute(gp *g, inheritTime bool) {\n"

// writeOverlay writes a runtime with pauses to a directory, which is to be the same each
// time so that what was compiled can be had again, and returns the file that has go
// build take it (go help build, -overlay).
func writeOverlay(ctx context.Context, dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	original := filepath.Join(string(bytes.TrimSpace(root)), "src", "runtime", "proc.go")
	source, err := os.ReadFile(original)
	if err != nil {
		return "", err
	}
	if bytes.Count(source, []byte(scheduler)) != 1 {
		return "", errors.New("this Go's scheduler is not the one that is known here: see the constant scheduler")
	}
	source = bytes.Replace(source, []byte(scheduler), []byte(scheduler+"\tstandstill(gp)\n"), 1)
	changed := filepath.Join(dir, "proc.go")
	if err := os.WriteFile(changed, append(source, pause...), 0o600); err != nil {
		return "", err
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{original: changed}})
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "overlay.json")
	return file, os.WriteFile(file, overlay, 0o600)
}
