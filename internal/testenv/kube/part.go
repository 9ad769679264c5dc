package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Part is one program of a cluster. It keeps its address and what it stored over
// any number of ends and starts. Its methods are for one goroutine at a time.
type Part struct {
	name    string
	program string
	args    []string
	dir     string
	ready   func(context.Context) error

	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
}

// Start runs the program and returns when it answers. It fails when the program
// ends before, or takes minutes; the error then has the end of its log.
func (p *Part) Start(ctx context.Context) error {
	if p.running() {
		return fmt.Errorf("%s runs already", p.name)
	}
	log, err := os.OpenFile(p.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.program, p.args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.dir, log, log
	cmd.Env = []string{"HOME=" + p.dir}
	done, started := make(chan struct{}), make(chan error, 1)
	go run(cmd, started, done)
	if err := <-started; err != nil {
		return err
	}
	p.cmd, p.done = cmd, done
	if err := p.Ready(ctx); err != nil {
		return errors.Join(err, p.Kill())
	}
	return nil
}

// Ready returns when the program answers, with what it depends on.
func (p *Part) Ready(ctx context.Context) error {
	if p.cmd == nil {
		return fmt.Errorf("%s was not started", p.name)
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		answer := p.ready(ctx)
		if answer == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s has ended: %s\n%s", p.name, p.cmd.ProcessState, p.tail())
		case <-ctx.Done():
			return fmt.Errorf("%s does not become ready: %w\n%s", p.name, answer, p.tail())
		case <-tick.C:
		}
	}
}

// Stop ends the program as an operator does, and by force if that takes too long,
// which is an error.
func (p *Part) Stop() error {
	if !p.running() {
		return nil
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(stopLimit):
		return errors.Join(fmt.Errorf("%s did not stop in %s", p.name, stopLimit), p.Kill())
	}
}

// Kill ends the program at once; one that has ended is no error.
func (p *Part) Kill() error {
	if !p.running() {
		return nil
	}
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	return nil
}

// Pause has the program stand still until Resume, with all its connections open.
func (p *Part) Pause() error { return p.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume undoes Pause.
func (p *Part) Resume() error { return p.cmd.Process.Signal(syscall.SIGCONT) }

// Log is the path of what the program wrote, of all its runs.
func (p *Part) Log() string { return filepath.Join(p.dir, p.name+".log") }

func (p *Part) running() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// tail is the last of the log.
func (p *Part) tail() string {
	const most = 4 << 10
	f, err := os.Open(p.Log())
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, end-most), io.SeekStart)
	}
	b, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return err.Error()
	}
	return string(b)
}
