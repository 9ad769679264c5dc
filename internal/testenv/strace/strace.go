// Package strace runs a command with a fault at one of its system calls: the
// call fails, or the process is killed as it makes it. It is for tests, on Linux,
// with the strace program; package crashfs is what needs neither. It knows
// nothing of what the command does.
package strace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Calls are the system calls by which Go makes, writes, commits, reads and
// removes files.
var Calls = []string{"openat", "write", "fsync", "close", "renameat", "unlinkat", "mkdirat", "read"}

// Kill is the fault that ends the process at the call, which is then not made.
const Kill = "signal=SIGKILL"

// Fault is what happens at one call, or from that one on.
type Fault struct {
	Call string // one of Calls
	When int    // at which call of a thread, counted from 1
	On   bool   // at all later ones, too
	Path string // when not empty, only calls that name this file count
	What string // Kill, or "error=EIO" and the like: the call fails and is not made
}

func (f Fault) String() string {
	s := fmt.Sprintf("%s:%s:when=%d", f.Call, f.What, f.When)
	if f.On {
		s += "+"
	}
	return s
}

// Outcome is how a command ended.
type Outcome struct {
	// Hit is the line in which strace tells of the fault, with the paths of files;
	// empty if it did not happen. Killed tells whether it ended the process.
	Hit      string
	Killed   bool
	ExitCode int
	Output   string
	// Calls counts, for each of Calls, the most that one thread made: a command that
	// wants every one of them to be reached keeps its work on one thread.
	Calls map[string]int
}

// Beside gives a command that runs with strace beside it, and beside its
// children, for as long as they run: the process that is started is the command
// itself. What strace sees it writes to log.
func Beside(t testing.TB, f Fault, log string, command ...string) []string {
	t.Helper()
	return slices.Concat([]string{program(t), "-D"}, arguments(&f, log), command)
}

func program(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal("strace is missing: run sh tools/strace.sh")
	}
	return path
}

func arguments(f *Fault, log string) []string {
	args := []string{"-f", "-qq", "-y", "-o", log, "-e", "signal=none"}
	if f == nil {
		return append(args, "-e", "trace="+strings.Join(Calls, ","), "--")
	}
	if f.Path != "" {
		args = append(args, "-P", f.Path)
	}
	return append(args, "-e", "trace="+f.Call, "-e", "inject="+f.String(), "--")
}

// Run runs a command to its end, for at most a minute; with a nil fault it only
// counts.
func Run(t testing.TB, f *Fault, command ...string) Outcome {
	t.Helper()
	log := filepath.Join(t.TempDir(), "strace")
	cmd := exec.Command(program(t), slices.Concat(arguments(f, log), command)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })()
	defer cancel()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v\n%s", f, err, out.String())
	}
	if ctx.Err() != nil {
		t.Fatalf("%v: the command came to no end\n%s", f, out.String())
	}
	o := Outcome{ExitCode: cmd.ProcessState.ExitCode(), Output: out.String(), Calls: map[string]int{}}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok {
		o.Killed = ws.Signaled() && ws.Signal() == syscall.SIGKILL
	}
	told, err := os.ReadFile(log)
	if err != nil {
		t.Fatalf("strace does not run: %v\n%s", err, out.String())
	}
	o.Hit = string(injected.Find(told))
	count(o.Calls, told)
	return o
}

// injected is a call that failed for the fault, or that was never made.
var injected = regexp.MustCompile(`(?m)^.*(\(INJECTED\)|= \?)$`)

var called = regexp.MustCompile(`(?m)^(\d+) +(\w+)\(`)

func count(calls map[string]int, told []byte) {
	threads := map[string]int{}
	for _, m := range called.FindAllSubmatch(told, -1) {
		threads[string(m[1])+" "+string(m[2])]++
	}
	for key, n := range threads {
		_, call, _ := strings.Cut(key, " ")
		calls[call] = max(calls[call], n)
	}
}

// varying are calls of which a process makes a few more or less each time.
var varying = []string{"openat", "close", "read", "write"}

// Case is a command and what it is to leave behind.
type Case struct {
	// Dir is the directory whose files are in danger: a call that fails elsewhere,
	// in the loader or the runtime, says nothing.
	Dir     string
	Command []string
	Check   func(*testing.T, Outcome)
}

// Sweep runs a command with the fault what at the first call, the second, and so
// on to the last, for each of the named calls; when on is set, at all later ones
// too. prepare gives a fresh case each time.
func Sweep(t *testing.T, what string, on bool, calls []string, prepare func(*testing.T) Case) {
	t.Helper()
	c := prepare(t)
	o := Run(t, nil, c.Command...)
	if o.ExitCode != 0 {
		t.Fatalf("it fails without any fault: %s", o.Output)
	}
	c.Check(t, o)
	t.Logf("calls: %v", o.Calls)
	for _, call := range calls {
		if o.Calls[call] == 0 {
			t.Errorf("the command does not call %s: is it named otherwise here?", call)
		}
		for n := 1; n <= o.Calls[call]; n++ {
			f := Fault{Call: call, When: n, On: on, What: what}
			t.Run(fmt.Sprintf("%s-%d", call, n), func(t *testing.T) {
				t.Parallel()
				c := prepare(t)
				o := Run(t, &f, c.Command...)
				switch {
				case o.Hit == "" && !o.Killed && !slices.Contains(varying, call):
					t.Error("the call was not reached, though it was made before")
				case what != Kill && !strings.Contains(o.Hit, c.Dir):
					t.Logf("no call of ours: %s", o.Hit)
				default:
					c.Check(t, o)
				}
			})
		}
	}
}
