package record_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/durable/crashfs"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/record/recordtest"
)

// Every store passes the same tests.
func TestStores(t *testing.T) {
	t.Parallel()
	stores := map[string]func(t *testing.T) record.Store{
		"memory": func(*testing.T) record.Store { return record.NewMemory() },
		"directory": func(t *testing.T) record.Store {
			d, err := record.OpenDirectory(durable.OS(), t.TempDir(), nil)
			if err != nil {
				t.Fatal(err)
			}
			return d
		},
	}
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			recordtest.TestStore(t, open)
		})
	}
}

// What cannot be read as a record is kept aside, never destroyed, and holds
// nothing up.
func TestUnreadableRecordsAreKeptAside(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d, err := record.OpenDirectory(durable.OS(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	good := recordtest.Release(1)
	if err := d.PutRelease(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	path := func(name string) string { return filepath.Join(dir, "releases", name+".json") }
	whole, err := os.ReadFile(path(string(good.ID)))
	if err != nil {
		t.Fatal(err)
	}
	odd := map[string]string{
		"torn":    string(whole[:len(whole)/2]),
		"renamed": string(whole),
		"newer":   strings.Replace(string(whole), `"Format": 1`, `"Format": 2`, 1),
	}
	for name, content := range odd {
		if err := os.WriteFile(path(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := d.Releases(t.Context())
	if err != nil || len(got) != 1 || got[0].ID != good.ID {
		t.Fatalf("%v, %v; want the good one alone", got, err)
	}
	for name, content := range odd {
		place := path(name) + ".aside"
		if name == "newer" { // for the version that wrote it
			place = path(name)
		}
		if b, err := os.ReadFile(place); err != nil || string(b) != content {
			t.Errorf("%s is not kept as it was: %v", name, err)
		}
	}
}

// A rollout of a newer format is not written over: its sequence would begin anew
// and agents would take what follows for older than what they have.
func TestNewerRolloutIsLeftAlone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d, err := record.OpenDirectory(durable.OS(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	const newer = `{"Format": 2, "UID": "u", "Sequence": 9}`
	path := filepath.Join(dir, "rollouts", "u.json")
	if err := os.WriteFile(path, []byte(newer), 0o600); err != nil {
		t.Fatal(err)
	}
	if all, err := d.Rollouts(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("rollouts %v, %v; want none", all, err)
	}
	if _, err := d.SwapRollout(t.Context(), nil, recordtest.Rollout(1)); err == nil {
		t.Error("a rollout of a newer format was written over")
	}
	if b, _ := os.ReadFile(path); string(b) != newer {
		t.Errorf("it is now %s", b)
	}
}

// Power may go at any call: a record is then the old one or the new one.
func TestFault_F20_SwapIsOldOrNew(t *testing.T) {
	t.Parallel()
	open := func(fsys *crashfs.FS) (*record.Directory, error) { return record.OpenDirectory(fsys, "/data", nil) }
	crashfs.Sweep(t,
		func(fsys *crashfs.FS) error {
			d, err := open(fsys)
			if err != nil {
				return err
			}
			_, err = d.SwapRollout(t.Context(), nil, recordtest.Rollout(1))
			return err
		},
		func(fsys *crashfs.FS) error {
			d, err := open(fsys)
			if err != nil {
				return err
			}
			all, err := d.Rollouts(t.Context())
			if err != nil {
				return err
			}
			_, err = d.SwapRollout(t.Context(), &all[0], recordtest.Rollout(2))
			return err
		},
		func(t *testing.T, fsys *crashfs.FS, done bool) {
			d, err := open(fsys)
			if err != nil {
				t.Fatal(err)
			}
			all, err := d.Rollouts(t.Context())
			if err != nil || len(all) != 1 {
				t.Fatalf("rollouts %v, %v", all, err)
			}
			if s := all[0].Sequence; s != 2 && (s != 1 || done) {
				t.Errorf("sequence %d after the crash (done %v)", s, done)
			}
		})
}
