package crashfs

import (
	"fmt"
	"syscall"
	"testing"
)

// Sweep runs work once for each call that it makes and each Loss, on a fresh
// file system that prepare filled, and stops the machine at that call. What a
// restart finds is handed to check, with finished telling whether work had
// returned nil before the crash (only then must its result be there). A last
// round crashes after work's end.
func Sweep(t *testing.T, prepare, work func(*FS) error, check func(t *testing.T, after *FS, finished bool)) {
	t.Helper()
	for _, loss := range Losses() {
		for at, reached := 1, true; reached; at++ {
			fsys := prepared(t, prepare)
			before := fsys.Calls()
			fsys.CrashAt(at)
			err := work(fsys)
			reached = fsys.Calls()-before >= at
			if err != nil && !reached {
				t.Fatalf("work failed without a crash: %v", err)
			}
			t.Run(fmt.Sprintf("%v/%d", loss, at), func(t *testing.T) { check(t, fsys.Restart(loss), err == nil) })
		}
	}
}

// SweepErrors runs work once for each call that it makes and each of ENOSPC and
// EIO, on a fresh file system that prepare filled, and makes that one call fail.
// The file system, still alive, is handed to check with what work returned.
func SweepErrors(t *testing.T, prepare, work func(*FS) error, check func(t *testing.T, fsys *FS, err error)) {
	t.Helper()
	for _, failure := range []error{syscall.ENOSPC, syscall.EIO} {
		for at := 1; ; at++ {
			fsys := prepared(t, prepare)
			before := fsys.Calls()
			fsys.FailAt(at, failure)
			err := work(fsys)
			if fsys.Calls()-before < at {
				break // it made fewer calls: nothing failed
			}
			t.Run(fmt.Sprintf("%v/%d", failure, at), func(t *testing.T) { check(t, fsys, err) })
		}
	}
}

func prepared(t *testing.T, prepare func(*FS) error) *FS {
	t.Helper()
	fsys := New()
	if err := prepare(fsys); err != nil {
		t.Fatalf("prepare: %v", err)
	}
	return fsys
}
