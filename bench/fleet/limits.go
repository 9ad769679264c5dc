package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// spare are file descriptors that a process needs beside one for each agent.
const spare = 256

// roomFor tells why there is no room for so many agents: each takes a file descriptor in
// either process, and a port. Go raises the soft limit to the hard one by itself.
func roomFor(agents int) error {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("the limit of open files cannot be read: %w", err)
	}
	if need := uint64(agents + spare); files.Max < need {
		return fmt.Errorf("%d agents need %d open files in a process, the limit is %d: raise it as root (\"ulimit -Hn %[2]d\" in the shell that starts this, or LimitNOFILE, or /etc/security/limits.conf), or give fewer with -sizes",
			agents, need, files.Max)
	}
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return nil // no Linux; whether there are ports shows
	}
	var from, to int
	// Those of connections that ended a minute ago are not free yet.
	if _, err := fmt.Sscan(string(b), &from, &to); err == nil && to-from < 2*agents {
		return fmt.Errorf("%d agents need %d local ports, as they come back once, and there are %d: as root, sysctl -w net.ipv4.ip_local_port_range=\"10240 65000\"",
			agents, 2*agents, to-from)
	}
	return nil
}

// The files of /proc that tell of a process, whose clock ticks a hundred times a second
// on every Linux that Go runs on.
const tick = 10 * time.Millisecond

// cpu is how long a process has run, on all cores.
func cpu(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name is in parentheses and may hold anything.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	const user, system = 11, 12
	if len(fields) <= system {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	var sum time.Duration
	for _, at := range []int{user, system} {
		n, err := strconv.ParseInt(fields[at], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

// memory is what a process holds of the machine's memory, and the most since the last
// call, in MB.
func memory(pid int) (now, most float64, err error) {
	sizes, err := resident(pid)
	if err != nil {
		return 0, 0, err
	}
	// "5" has the kernel begin anew with the most.
	return sizes["VmRSS"], sizes["VmHWM"], os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

// resident is what the kernel says of a process's resident set, in MB.
func resident(pid int) (map[string]float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	sizes := map[string]float64{}
	for line := range strings.Lines(string(b)) {
		switch name, rest, _ := strings.Cut(line, ":"); name {
		case "VmRSS", "VmHWM", "RssFile":
			var kib float64
			if _, err := fmt.Sscan(rest, &kib); err != nil {
				return nil, err
			}
			sizes[name] = kib * 1024 / 1e6
		}
	}
	return sizes, nil
}
