package agent

import "syscall"

// killWithThread has the kernel kill the process when the thread that starts it ends. (It
// does not where the program has capabilities of its own, by its file.)
func killWithThread(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }
