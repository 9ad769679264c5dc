//go:build !linux

package kube

import "os/exec"

// run starts a program, says so, and waits for its end.
func run(cmd *exec.Cmd, started chan<- error, done chan<- struct{}) {
	defer close(done)
	err := cmd.Start()
	started <- err
	if err == nil {
		_ = cmd.Wait() // how it ended is in its ProcessState
	}
}
