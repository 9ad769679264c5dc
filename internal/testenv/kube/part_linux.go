package kube

import (
	"os/exec"
	"runtime"
	"syscall"
)

// run starts a program, says so, and waits for its end. The kernel kills the
// program when this process dies, a test's panic included. It takes the death of
// the thread that started it for that, so the thread is kept.
func run(cmd *exec.Cmd, started chan<- error, done chan<- struct{}) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(done)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := cmd.Start()
	started <- err
	if err == nil {
		_ = cmd.Wait() // how it ended is in its ProcessState
	}
}
