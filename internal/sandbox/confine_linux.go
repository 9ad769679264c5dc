package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// unconfined is what children cannot be denied on this system.
const unconfined = ""

// nobody is who a child is to itself.
const nobody = 65534

// confine has a child die with us, and unless it cannot be, makes it a nobody in
// namespaces of its own: of users, so that it has no privileges, of the network, in
// which there is nothing, and of processes, so that none of its own outlives it.
func confine(cmd *exec.Cmd, whole bool) {
	attr := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if whole {
		attr.Cloneflags = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: nobody, HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: nobody, HostID: os.Getgid(), Size: 1}}
	}
	cmd.SysProcAttr = attr
	cmd.Cancel = func() error {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its group too
		return cmd.Process.Kill()
	}
}

// bound forbids a child what no verdict needs: cores and large files, and to outlast
// others when the system's memory is at its end.
func bound(pid int) {
	_ = unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
	_ = unix.Prlimit(pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}, nil)
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("1000"), 0)
}

// freeze has a child stand still, with all that it started, or go on.
func (c *child) freeze(still bool) {
	signal := syscall.SIGCONT
	if still {
		signal = syscall.SIGSTOP
	}
	_ = syscall.Kill(-c.cmd.Process.Pid, signal) // one that has ended says so to who asks it
}

// crashed tells whether a child ended by a fault of its own, and not by somebody's
// hand.
func crashed(end error) bool {
	var exit *exec.ExitError
	if !errors.As(end, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && slices.Contains([]syscall.Signal{
		syscall.SIGSEGV, syscall.SIGABRT, syscall.SIGBUS, syscall.SIGFPE, syscall.SIGILL, syscall.SIGTRAP,
	}, status.Signal())
}

// watchMemory calls over once when a process has more than limit bytes of its own in
// memory, and returns then or when ctx ends. V8 reserves far more addresses than it
// ever uses, so that limits of the system's own are of no use. Pages of files, such as
// its program, are not its own: how many of them are mapped is the system's affair.
func watchMemory(ctx context.Context, pid int, limit int64, over func()) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	page := int64(os.Getpagesize())
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			return // it has ended
		}
		if pages, ok := ownPages(b); ok && pages*page > limit {
			over()
			return
		}
	}
}

// ownPages reads /proc/PID/statm: what is resident without what is of files.
func ownPages(statm []byte) (int64, bool) {
	f := bytes.Fields(statm)
	if len(f) < 3 {
		return 0, false
	}
	resident, err1 := strconv.ParseInt(string(f[1]), 10, 64)
	ofFiles, err2 := strconv.ParseInt(string(f[2]), 10, 64)
	return resident - ofFiles, err1 == nil && err2 == nil
}
