// Package sweep has only tests: the files of the control plane are written by a
// real process on a real disk, and at every system call it is killed, or the call
// fails, or the disk is full. They are built with -tags faults and run by "make
// faults", because they need strace and mounts. What a loss of power does is
// shown by package crashfs.
package sweep
