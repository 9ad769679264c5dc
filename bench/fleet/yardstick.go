package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
)

// What the yardstick writes to how many connections, how often: so little that nobody has
// to read it.
const (
	yardConns  = 100
	yardBytes  = 1000
	yardRounds = 10
)

// yardstick is what telling somebody something takes on this machine at this hour at
// least: the CPU time of a write to one of many loopback connections after a while of
// quiet, as that to an agent is. A figure that is missed while this is large says more of
// the machine than of the control plane.
func yardstick(ctx context.Context, quiet time.Duration) (_ time.Duration, err error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer lis.Close()
	var open, told []net.Conn
	defer func() {
		for _, c := range append(open, told...) {
			err = errors.Join(err, c.Close())
		}
	}()
	for range yardConns {
		c, err := net.Dial("tcp", lis.Addr().String())
		if err != nil {
			return 0, fmt.Errorf("yardstick: %w", err)
		}
		open = append(open, c)
		if c, err = lis.Accept(); err != nil {
			return 0, fmt.Errorf("yardstick: %w", err)
		}
		told = append(told, c)
	}
	var spent time.Duration
	message := make([]byte, yardBytes)
	for range yardRounds {
		if err := pause(ctx, quiet); err != nil {
			return 0, err
		}
		before, err := ownCPU()
		if err != nil {
			return 0, err
		}
		for _, c := range told {
			if _, err := c.Write(message); err != nil {
				return 0, fmt.Errorf("yardstick: %w", err)
			}
		}
		after, err := ownCPU()
		if err != nil {
			return 0, err
		}
		spent += after - before
	}
	return spent / (yardRounds * yardConns), nil
}

// ownCPU is how long this process has run, on all cores, to the microsecond: a round is
// shorter than the ticks that cpu counts in.
func ownCPU() (time.Duration, error) {
	var u syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}
