//go:build !linux

package agent

import "syscall"

// killWithThread: only Linux has such a thing.
func killWithThread(*syscall.SysProcAttr) {}
