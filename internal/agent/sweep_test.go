//go:build faults && linux

package agent

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/testenv/strace"
)

// commitTo makes the test binary the process that is killed: it writes all that an
// agent keeps beside its modules, and ends.
var commitTo = flag.String("commit", "", "only commit everything to this `directory`; for the tests themselves")

func TestMain(m *testing.M) {
	flag.Parse()
	if *commitTo == "" {
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // strace counts the calls of every thread
	var err error
	for range 3 { // as an agent does
		if err = commitAll(*commitTo, "newer"); err == nil {
			os.Exit(0)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// commitAll writes the last good set, Envoy's listeners and the record of its
// process, large enough for what a crash in the middle would show.
func commitAll(dir, word string) error {
	save := SaveLastGood{Envoy: word}
	for i := range 50 {
		save.Versions = append(save.Versions, version(fmt.Sprintf("%s-%d", word, i)))
	}
	if err := saveLastGood(durable.OS(), dir, save); err != nil {
		return err
	}
	a := &Agent{derived: attach.Derived{ListenersFile: filepath.Join(dir, "listeners")}}
	if err := a.writeListeners(listenersFile{text: bytes.Repeat([]byte(word+"\n"), 5000)}); err != nil {
		return err
	}
	return saveProcess(dir, processRecord{PID: 1, Config: word})
}

// Every file that the agent keeps is the old one or the new one, whole, wherever
// the agent is killed or a call fails; what fails once is written all the same.
func TestFault_F2_F3_F14_F15_AgentsFilesAtEveryCall(t *testing.T) {
	t.Parallel()
	whole := map[string]map[string][]byte{} // by word, then by file
	for _, word := range []string{"older", "newer"} {
		dir := t.TempDir()
		if err := commitAll(dir, word); err != nil {
			t.Fatal(err)
		}
		whole[word] = contents(t, dir)
	}
	for what, calls := range map[string][]string{
		strace.Kill:    {"openat", "write", "fsync", "close", "renameat"},
		"error=ENOSPC": {"openat", "write", "fsync", "close", "renameat"},
		"error=EIO":    {"write", "fsync", "close", "renameat"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			strace.Sweep(t, what, false, calls, func(t *testing.T) strace.Case {
				dir := t.TempDir()
				if err := commitAll(dir, "older"); err != nil {
					t.Fatal(err)
				}
				return strace.Case{Dir: dir, Command: []string{os.Args[0], "-commit", dir}, Check: func(t *testing.T, o strace.Outcome) {
					oldOrNew(t, dir, whole, o)
				}}
			})
		})
	}
}

func oldOrNew(t *testing.T, dir string, whole map[string]map[string][]byte, o strace.Outcome) {
	t.Helper()
	all := contents(t, dir)
	if !slices.Equal(slices.Sorted(maps.Keys(all)), slices.Sorted(maps.Keys(whole["older"]))) {
		t.Errorf("there are %v", slices.Sorted(maps.Keys(all)))
	}
	for name, b := range all {
		isNew := bytes.Equal(b, whole["newer"][name])
		if !isNew && (!bytes.Equal(b, whole["older"][name]) || !o.Killed) {
			t.Errorf("%s is neither old nor new, or old though nothing was killed: %.100q", name, b)
		}
	}
	if !o.Killed && o.ExitCode != 0 {
		t.Errorf("exit code %d: %s", o.ExitCode, o.Output)
	}
	if _, ok, err := loadLastGood(durable.OS(), dir); !ok || err != nil {
		t.Errorf("last good: %v, %v", ok, err)
	}
}

// contents gives all files but temporary ones.
func contents(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]byte{}
	for _, e := range entries {
		if durable.IsTemp(e.Name()) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = b
	}
	return all
}
