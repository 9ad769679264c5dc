package record_test

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/record/recordtest"
)

// recorded gives a copy of the records that a control plane of before has written.
func recorded(t *testing.T) (*record.Directory, string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/format-1")); err != nil {
		t.Fatal(err)
	}
	d, err := record.OpenDirectory(durable.OS(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return d, dir
}

// Records of before mean what they meant, and the same written today is the same
// to the byte, so that the control plane of before reads it, too.
func TestFault_F78_RecordsOfBefore(t *testing.T) {
	t.Parallel()
	d, dir := recorded(t)
	releases, err := d.Releases(t.Context())
	if err != nil || len(releases) != 2 {
		t.Fatalf("%d releases, %v", len(releases), err)
	}
	fresh := t.TempDir()
	again, err := record.OpenDirectory(durable.OS(), fresh, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range releases {
		want := recordtest.Release(r.Generation)
		if want.Format = r.Format; !reflect.DeepEqual(r, want) {
			t.Errorf("read %+v, want %+v", r, want)
		}
		if err := again.PutRelease(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join("releases", string(r.ID)+".json")
		before, _ := os.ReadFile(filepath.Join(dir, name))
		now, err := os.ReadFile(filepath.Join(fresh, name))
		if err != nil || !bytes.Equal(before, now) {
			t.Errorf("written:\n%s\nrecorded:\n%s\nerror %v", now, before, err)
		}
	}
	rollouts, err := d.Rollouts(t.Context())
	if err != nil || len(rollouts) != 1 {
		t.Fatalf("rollouts: %+v, %v", rollouts, err)
	}
	r := rollouts[0]
	if r.UID != "u" || r.Sequence != 2 || r.Release != recordtest.Release(2).ID || r.Previous != recordtest.Release(1).ID || r.Generation != 2 || r.Revision != 2 {
		t.Errorf("rollout %+v", r)
	}
	next := recordtest.Rollout(3)
	if stored, err := d.SwapRollout(t.Context(), &r, next); err != nil || stored.Revision != 3 {
		t.Errorf("it cannot be gone on from: %+v, %v", stored, err)
	}
}

// A later control plane's records stay where they are, for it to find again: those
// of another format, and releases that say more. More in a rollout does no harm, and is
// still there when the rollout has changed.
func TestFault_F78_RecordsOfLater(t *testing.T) {
	t.Parallel()
	d, dir := recorded(t)
	later := func(path, from, to string) []byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b = bytes.Replace(b, []byte(from), []byte(to), 1)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return b
	}
	path := func(sub, name string) string { return filepath.Join(dir, sub, name+".json") }
	one, two, other := string(recordtest.Release(1).ID), string(recordtest.Release(2).ID), strings.Repeat("f", 64)
	if err := os.Rename(path("releases", two), path("releases", other)); err != nil {
		t.Fatal(err)
	}
	later(path("releases", other), two, other) // its name is the hash of what it says
	kept := map[string][]byte{
		path("releases", one):   later(path("releases", one), `"Format": 1`, `"Format": 2`),
		path("releases", other): later(path("releases", other), `"Format": 1`, `"Colour": "red", "Format": 1`),
	}
	later(path("rollouts", "u"), `"Format": 1`, `"Colour": "red", "Format": 1`)
	releases, err := d.Releases(t.Context())
	if err != nil || len(releases) != 0 {
		t.Errorf("releases: %+v, %v", releases, err)
	}
	rollouts, err := d.Rollouts(t.Context())
	if err != nil || len(rollouts) != 1 || rollouts[0].Sequence != 2 {
		t.Fatalf("rollouts: %+v, %v", rollouts, err)
	}
	if _, err := d.SwapRollout(t.Context(), &rollouts[0], recordtest.Rollout(3)); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path("rollouts", "u")); err != nil || !bytes.Contains(b, []byte("\n  \"Colour\": \"red\"\n}")) || !bytes.Contains(b, []byte(`"Sequence": 3`)) {
		t.Errorf("written anew the rollout is\n%s%v", b, err)
	}
	for path, want := range kept {
		if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, want) {
			t.Errorf("%s was not left alone: %v", path, err)
		}
	}
}
