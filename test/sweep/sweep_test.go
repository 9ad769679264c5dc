//go:build faults && linux

package sweep

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/testenv/strace"
)

// The calls that change something; a kill between two of them is one at the next.
var changing = []string{"openat", "write", "fsync", "close", "renameat", "unlinkat"}

// Killed at every call that it makes, the process leaves each file old or new,
// and the next start brings everything to what it is to be, without a hand.
func TestFault_F2_F3_F5_KilledAtEveryCall(t *testing.T) {
	t.Parallel()
	strace.Sweep(t, strace.Kill, false, changing, func(t *testing.T) strace.Case {
		dir := template(t)
		return strace.Case{Dir: dir, Command: commandFor(dir), Check: func(t *testing.T, o strace.Outcome) {
			if !o.Killed && o.ExitCode != 0 {
				t.Errorf("exit code %d: %s", o.ExitCode, o.Output)
			}
			check(t, dir, false)
			restart(t, dir)
		}}
	})
}

// A call fails once: it is as if nothing had been written, and the next try
// succeeds in the same process. What cannot be read is not taken for good.
func TestFault_F14_F15_F16_EveryCallFailsOnce(t *testing.T) {
	t.Parallel()
	for what, calls := range map[string][]string{
		"error=ENOSPC": {"openat", "write", "fsync", "close", "renameat"},
		"error=EIO":    {"openat", "read", "write", "fsync", "close", "renameat", "unlinkat"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			strace.Sweep(t, what, false, calls, func(t *testing.T) strace.Case {
				dir := template(t)
				return strace.Case{Dir: dir, Command: commandFor(dir), Check: func(t *testing.T, o strace.Outcome) {
					// A close that fails here has closed nothing, unlike the kernel's: a
					// lock may stay held until the process ends.
					if o.ExitCode != 0 && !strings.Contains(t.Name(), "/close-") {
						t.Errorf("exit code %d: %s", o.ExitCode, o.Output)
					}
					check(t, dir, o.ExitCode == 0)
					restart(t, dir)
				}}
			})
		})
	}
}

// From some call on all fail: the disk is full, or gone. Nothing that stood is
// lost, and the next start without the fault ends the work.
func TestFault_F14_F15_EveryCallFailsFromThenOn(t *testing.T) {
	t.Parallel()
	for what, calls := range map[string][]string{
		"error=ENOSPC": {"write", "fsync", "renameat"},
		"error=EIO":    {"fsync", "renameat", "unlinkat"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			strace.Sweep(t, what, true, calls, func(t *testing.T) strace.Case {
				dir := template(t)
				return strace.Case{Dir: dir, Command: commandFor(dir), Check: func(t *testing.T, o strace.Outcome) {
					check(t, dir, o.ExitCode == 0)
					restart(t, dir)
				}}
			})
		})
	}
}

// template has everything as it was before.
func template(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := commit(dir, oldest); err != nil {
		t.Fatal(err)
	}
	return dir
}

func copied(t *testing.T, from string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func commandFor(dir string) []string { return []string{os.Args[0], "-commit", dir} }

// restart commits again without a fault: all is as it is to be.
func restart(t *testing.T, dir string) {
	t.Helper()
	if t.Failed() {
		return
	}
	if err := commit(dir, newest); err != nil {
		t.Fatalf("the next start: %v", err)
	}
	check(t, dir, true)
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if durable.IsTemp(filepath.Base(path)) {
			t.Errorf("%s was not swept", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// check holds that every file under its name is whole, the old one or the new
// one; with finished, that all are as they are to be.
func check(t *testing.T, dir string, finished bool) {
	t.Helper()
	checkModules(t, filepath.Join(dir, "modules"), finished)
	checkRecords(t, filepath.Join(dir, "records"), finished)
	checkObjects(t, dir, finished)
}

// files gives what stands in a directory under a name of its own.
func files(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]byte{}
	for _, e := range entries {
		if durable.IsTemp(e.Name()) || e.IsDir() {
			continue
		}
		if strings.Contains(e.Name(), ".aside") {
			t.Errorf("%s was torn, and set aside", e.Name())
		}
		if all[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func checkModules(t *testing.T, dir string, finished bool) {
	t.Helper()
	all := files(t, dir)
	for name, b := range all {
		if hex, ok := strings.CutSuffix(name, ".wasm"); ok && chandler.Digest[chandler.ModuleDigest](b).Hex() != hex {
			t.Errorf("%s holds %d bytes that are not what its name says", name, len(b))
		}
	}
	for _, m := range newest.modules {
		if finished && all[chandler.Digest[chandler.ModuleDigest](m).Hex()+".wasm"] == nil {
			t.Error("a module is missing")
		}
	}
}

func checkRecords(t *testing.T, dir string, finished bool) {
	t.Helper()
	releases := map[chandler.ReleaseID]bool{}
	for name, b := range files(t, filepath.Join(dir, "releases")) {
		var r chandler.Release
		if err := json.Unmarshal(b, &r); err != nil || r.WithID().ID != r.ID || string(r.ID)+".json" != name {
			t.Errorf("release %s: %v", name, err)
		}
		releases[r.ID] = true
	}
	d, err := record.OpenDirectory(durable.OS(), copied(t, dir), nil)
	if err != nil {
		t.Fatal(err)
	}
	rollouts, err := d.Rollouts(context.Background())
	if err != nil || len(rollouts) != 1 {
		t.Fatalf("rollouts: %v, %v", rollouts, err)
	}
	r := rollouts[0]
	want := map[chandler.ReleaseID]uint64{oldest.release.ID: 1, newest.release.ID: 2}[r.Release]
	if r.Revision != want || !releases[r.Release] {
		t.Errorf("rollout %+v, with releases %v", r, releases)
	}
	if finished && (r.Release != newest.release.ID || len(releases) != 1) {
		t.Errorf("not finished: rollout %+v, releases %v", r, releases)
	}
}

func checkObjects(t *testing.T, dir string, finished bool) {
	t.Helper()
	applied := files(t, filepath.Join(dir, "applied"))
	p := applied["wasmplugin_edge_p.yaml"]
	if !bytes.Contains(p, []byte("p:v2")) && (finished || !bytes.Contains(p, []byte("p:v1"))) {
		t.Errorf("applied is %q", p)
	}
	objects := files(t, filepath.Join(dir, "objects"))
	for name, b := range objects {
		var o struct {
			Generation       int64
			Name, UID        string
			Manifest, Digest string
		}
		if err := json.Unmarshal(b, &o); err != nil || o.UID == "" {
			t.Errorf("object %s: %v: %s", name, err, b)
		}
		if finished && (o.Name != "p" || o.Generation != 2) {
			t.Errorf("object %s has generation %d", o.Name, o.Generation)
		}
	}
	if finished && (len(objects) != 1 || len(applied) != 1) {
		t.Errorf("%d objects, %d applied", len(objects), len(applied))
	}
}
