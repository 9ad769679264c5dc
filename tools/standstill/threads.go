//go:build linux

package main

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// stopThreads stops single threads of processes of a name that descend from a process,
// one at a time, until done; it returns how often it did. Threads that somebody else
// traces are left alone, as are all where tracing is forbidden.
func stopThreads(done <-chan struct{}, root int, name string) int {
	runtime.LockOSThread() // a tracer is a thread
	defer runtime.UnlockOSThread()
	count := 0
	for {
		rest := 100 * time.Millisecond
		if threads := threadsOf(root, name); len(threads) > 0 {
			rest = time.Duration(rand.IntN(10_000)) * time.Microsecond
			if stopThread(threads[rand.IntN(len(threads))], pauseOfThread()) {
				count++
			}
		}
		select {
		case <-done:
			return count
		case <-time.After(rest):
		}
	}
}

// pauseOfThread is mostly up to 10 ms, at times 70, seldom 400.
func pauseOfThread() time.Duration {
	ms := 1 + rand.IntN(10)
	switch dice := rand.IntN(100); {
	case dice >= 95:
		ms = 100 + rand.IntN(300)
	case dice >= 60:
		ms = 10 + rand.IntN(60)
	}
	return time.Duration(ms) * time.Millisecond
}

// stopThread stops a thread for a while and lets it go, with the signal that had stopped
// it, if one had. See ptrace(2), PTRACE_SEIZE.
func stopThread(thread int, pause time.Duration) bool {
	if unix.PtraceSeize(thread) != nil {
		return false
	}
	_ = unix.PtraceInterrupt(thread) // else it has been killed, which is waited for likewise
	var status unix.WaitStatus
	if _, err := unix.Wait4(thread, &status, unix.WALL, nil); err != nil || !status.Stopped() {
		return false // it has ended
	}
	time.Sleep(pause)
	signal := 0
	if status>>16 == 0 {
		signal = int(status.StopSignal())
	}
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_DETACH, uintptr(thread), 0, uintptr(signal), 0, 0)
	if errno != 0 { // killed meanwhile; its parent hears of that once its tracer has
		_, _ = unix.Wait4(thread, &status, unix.WALL, nil)
	}
	return true
}

// threadsOf are the threads of the processes of a name that descend from a process.
func threadsOf(root int, name string) []int {
	parents := map[int]int{}
	var named []int
	for _, pid := range numbers("/proc") {
		command, parent, ok := stat(pid)
		if !ok {
			continue
		}
		parents[pid] = parent
		if strings.Contains(command, name) {
			named = append(named, pid)
		}
	}
	var threads []int
	for _, pid := range named {
		if descends(parents, pid, root) {
			threads = append(threads, numbers(filepath.Join("/proc", strconv.Itoa(pid), "task"))...)
		}
	}
	return threads
}

func descends(parents map[int]int, pid, root int) bool {
	for range len(parents) { // those that came and went while they were read may form a ring
		if pid == root {
			return true
		}
		pid = parents[pid]
	}
	return false
}

// stat is a process's name and parent. See proc_pid_stat(5): the name is in parentheses
// and may have some itself.
func stat(pid int) (command string, parent int, ok bool) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return "", 0, false
	}
	line := string(data)
	first, last := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if first < 0 || last < first {
		return "", 0, false
	}
	rest := strings.Fields(line[last+1:]) // state, parent, ...
	if len(rest) < 2 {
		return "", 0, false
	}
	parent, err = strconv.Atoi(rest[1])
	return line[first+1 : last], parent, err == nil
}

// numbers are the entries of a directory that are numbers.
func numbers(dir string) []int {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // it has ended
	}
	var all []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, n)
		}
	}
	return all
}
