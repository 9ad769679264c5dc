package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"
)

const (
	// maxOutput is how much of what a child says is kept; the rest is read and dropped.
	maxOutput = 64 << 10
	// ended is how long a killed child's pipes are waited for.
	ended = 5 * time.Second
)

// errMemory: a child took more memory than it may.
var errMemory = errors.New("too much memory")

// jail runs one program in children that are shut off as far as the system does it.
type jail struct {
	program string
	dir     string // for children's files
	weak    string // what children cannot be denied here; empty: nothing
}

// settle finds out how far children can be shut off, by a trial of the program.
func (j *jail) settle(ctx context.Context, try func() error) error {
	j.weak = unconfined
	err := try()
	if err != nil && ctx.Err() == nil && j.weak == "" {
		j.weak = fmt.Sprintf("the system does not shut a child off from the network: %v", err)
		err = try()
	}
	return err
}

// within gives fn a folder of a child's own.
func (j *jail) within(fn func(dir string) error) error {
	dir, err := os.MkdirTemp(j.dir, "chandler-vet-")
	if err != nil {
		return fmt.Errorf("sandbox: %w", err)
	}
	defer os.RemoveAll(dir)
	return fn(dir)
}

// folder gives a folder whose sockets have paths that are short enough.
func (j *jail) folder() (string, error) {
	dir, err := os.MkdirTemp(j.dir, "chandler-vet-")
	if err == nil && len(dir) > maxSocket {
		_ = os.Remove(dir)
		dir, err = os.MkdirTemp("", "chandler-vet-")
	}
	if err != nil {
		return "", fmt.Errorf("sandbox: %w", err)
	}
	return dir, nil
}

// child is a program that runs in a jail.
type child struct {
	cmd    *exec.Cmd
	out    *capped
	cancel context.CancelCauseFunc
	ended  chan struct{} // closed when it has
	end    error         // how, once it has: nil for well
}

// start starts a child in a folder of its own, with a bound on its memory unless
// that is zero. It ends with ctx at the latest.
func (j *jail) start(ctx context.Context, dir string, memory int64, args ...string) (*child, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	c := &child{out: &capped{}, cancel: cancel, ended: make(chan struct{}), cmd: exec.CommandContext(ctx, j.program, args...)}
	c.cmd.Dir, c.cmd.Env, c.cmd.Stdout, c.cmd.Stderr, c.cmd.WaitDelay = dir, []string{}, c.out, c.out, ended
	confine(c.cmd, j.weak == unconfined)
	if err := c.cmd.Start(); err != nil {
		cancel(nil)
		return nil, err
	}
	bound(c.cmd.Process.Pid)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if memory == 0 {
			return
		}
		watchMemory(ctx, c.cmd.Process.Pid, memory, func() { cancel(errMemory) })
	}()
	go func() {
		defer close(c.ended)
		c.end = c.cmd.Wait()
		if errors.Is(context.Cause(ctx), errMemory) {
			c.end = errMemory
		}
		cancel(nil)
		<-watched
	}()
	return c, nil
}

// run runs a child and waits for its end, which is how it ended: nil for well. The
// error is that it could not be started.
func (j *jail) run(ctx context.Context, dir string, memory int64, args ...string) (out []byte, end, err error) {
	c, err := j.start(ctx, dir, memory, args...)
	if err != nil {
		return nil, nil, err
	}
	<-c.ended
	return c.out.Bytes(), c.end, nil
}

// kill ends a child and waits until it has.
func (c *child) kill() {
	c.cancel(nil)
	<-c.ended
}

// capped keeps the beginning of what is written to it since it was emptied.
type capped struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

// Write implements io.Writer.
func (c *capped) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buffer.Write(p[:min(len(p), max(0, maxOutput-c.buffer.Len()))])
	return len(p), nil
}

// Bytes gives a copy of what is kept.
func (c *capped) Bytes() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.buffer.Bytes())
}

// await waits until text was written, but not for long.
func (c *capped) await(ctx context.Context, text string, atMost time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !bytes.Contains(c.Bytes(), []byte(text)) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// empty begins anew.
func (c *capped) empty() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buffer.Reset()
}
