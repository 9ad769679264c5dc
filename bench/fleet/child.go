package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// maxLog is how much of a child's words is kept, for when it ends by itself.
const maxLog = 16 << 10

// child is a process that was started here.
type child struct {
	cmd  *exec.Cmd
	log  *tail
	done chan struct{}
}

// startChild starts a program in a group of its own, so that a terminal's interrupt
// reaches this one alone, which then ends it.
func startChild(cmd *exec.Cmd) (*child, error) {
	c := &child{cmd: cmd, log: &tail{}, done: make(chan struct{})}
	cmd.Stderr = c.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(c.done)
		_ = cmd.Wait() // that it ended is told by done, and why by its words
	}()
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// stop ends it, kindly at first.
func (c *child) stop() {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.done:
	case <-time.After(10 * time.Second):
		_ = c.cmd.Process.Kill()
		<-c.done
	}
}

// await asks until it is so, the child has ended, or the time is over.
func (c *child) await(ctx context.Context, what string, bound time.Duration, so func() (bool, error)) error {
	deadline := time.Now().Add(bound)
	for {
		ok, err := so()
		if ok {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("%s: not within %s", what, bound), err, c.last())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.done:
			return errors.Join(fmt.Errorf("%s: the process has ended", what), c.last())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// last gives its last words.
func (c *child) last() error {
	select {
	case <-c.done:
	default:
		return nil
	}
	return fmt.Errorf("%s said at last:\n%s", c.cmd.Path, c.log.String())
}

// tail keeps the end of what is written to it. It is read when its writer has ended.
type tail struct{ bytes.Buffer }

func (t *tail) Write(p []byte) (int, error) {
	n, _ := t.Buffer.Write(p)
	if over := t.Len() - maxLog; over > 0 {
		t.Next(over)
	}
	return n, nil
}

var _ io.Writer = (*tail)(nil)

// pause waits, unless ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// scratch makes a folder that is gone afterwards.
func scratch() (string, func(), error) {
	dir, err := os.MkdirTemp("", "chandler-fleet-")
	return dir, func() { _ = os.RemoveAll(dir) }, err
}
