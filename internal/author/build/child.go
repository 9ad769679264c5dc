package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"chandler.dev/chandler"
)

const (
	// maxSaid is how much of what a compiler says is kept: the first and the last half.
	maxSaid = 64 << 10
	// maxAnswer bounds the standard output of a program that is asked something.
	maxAnswer = 16 << 20
	// grace is how long an ended child's own children may hold its output.
	grace = 3 * time.Second
)

// run runs a program in the source's folder until it ends. What it says goes to Talk; a
// program that fails is a problem, with what it said.
func (j *job) run(environ []string, name string, args ...string) error {
	_, err := j.start(environ, false, name, args...)
	return err
}

// ask is run for a program whose standard output is wanted.
func (j *job) ask(environ []string, name string, args ...string) ([]byte, error) {
	return j.start(environ, true, name, args...)
}

func (j *job) start(environ []string, wanted bool, name string, args ...string) ([]byte, error) {
	said := &excerpt{}
	answer := &bounded{left: maxAnswer}
	cmd := exec.CommandContext(j.ctx, name, args...)
	cmd.Dir = j.Dir
	cmd.Env = append(j.Environ[:len(j.Environ):len(j.Environ)], environ...)
	cmd.Stdout, cmd.Stderr = said, said
	if wanted {
		cmd.Stdout = answer
	}
	// Compilers have children; they end with them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = grace
	err := cmd.Run()
	if text := said.String(); text != "" {
		fmt.Fprintln(j.Talk, text)
	}
	tool := filepath.Base(name)
	switch {
	case errors.Is(j.ctx.Err(), context.DeadlineExceeded):
		return nil, chandler.Problemf(chandler.CodeBuild, "", "give it more time with --timeout", "%s came to no end in time", tool)
	case j.ctx.Err() != nil:
		return nil, j.ctx.Err()
	case answer.full:
		return nil, fmt.Errorf("%s says more than %d MiB", tool, maxAnswer>>20)
	case err != nil:
		return nil, chandler.Problemf(chandler.CodeBuild, "", explain(said.String()), "%s failed: %v", tool, err)
	}
	return answer.Bytes(), nil
}

// explain gives a hint for what is known of compilers' words.
func explain(said string) string {
	switch {
	case strings.Contains(said, "undefined symbol: proxy_"):
		return `in .cargo/config.toml say that the proxy's functions may be missing: rustflags = ["-Clink-arg=--allow-undefined"]`
	case strings.Contains(said, "-buildmode=c-shared not supported on wasip1"):
		return "install Go 1.24 or newer"
	case strings.Contains(said, "missing go.sum entry"):
		return "go mod tidy"
	}
	return "its words are above"
}

// excerpt keeps the beginning and the end of a text.
type excerpt struct {
	head, tail []byte
	cut        int
}

func (e *excerpt) Write(b []byte) (int, error) {
	n := len(b)
	if room := maxSaid/2 - len(e.head); room > 0 {
		take := min(room, len(b))
		e.head, b = append(e.head, b[:take]...), b[take:]
	}
	e.tail = append(e.tail, b...)
	if over := len(e.tail) - maxSaid/2; over > 0 {
		e.cut += over
		e.tail = append(e.tail[:0], e.tail[over:]...)
	}
	return n, nil
}

func (e *excerpt) String() string {
	text := string(e.head)
	if e.cut > 0 {
		text += fmt.Sprintf("\n... %d bytes ...\n", e.cut)
	}
	return strings.TrimRight(text+string(e.tail), "\n")
}

// bounded keeps what fits, and says whether that was all.
type bounded struct {
	bytes.Buffer
	left int
	full bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if len(p) > b.left {
		b.full = true
		return len(p), nil
	}
	b.left -= len(p)
	return b.Buffer.Write(p)
}
