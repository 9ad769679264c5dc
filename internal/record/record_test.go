package record

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/durable/crashfs"
)

func release(generation int64) chandler.Release {
	return chandler.Release{
		Key: chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: "p"}, UID: "u", Generation: generation,
		Behaviour:  chandler.Behaviour{Type: chandler.HTTP, Config: []byte(`{"a":1}`)},
		ResolvedAt: time.Unix(1_700_000_000, 0).UTC(),
	}.WithID()
}

func rollout(sequence uint64) Rollout {
	return Rollout{UID: "u", Key: release(1).Key, Sequence: sequence, Release: release(int64(sequence)).ID}
}

// Every store passes the same tests.
func TestStores(t *testing.T) {
	t.Parallel()
	stores := map[string]func(t *testing.T) Store{
		"memory": func(*testing.T) Store { return NewMemory() },
		"directory": func(t *testing.T) Store {
			d, err := OpenDirectory(durable.OS(), t.TempDir(), nil)
			if err != nil {
				t.Fatal(err)
			}
			return d
		},
	}
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			t.Run("releases", func(t *testing.T) { testReleases(t, open(t)) })
			t.Run("rollouts", func(t *testing.T) { testRollouts(t, open(t)) })
			t.Run("concurrent swaps", func(t *testing.T) { testConcurrentSwaps(t, open(t)) })
		})
	}
}

func testReleases(t *testing.T, s Store) {
	ctx := t.Context()
	a, b := release(1), release(2)
	for _, r := range []chandler.Release{a, b, a} {
		if err := s.PutRelease(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	forged := a
	forged.Generation = 99
	if err := s.PutRelease(ctx, forged); err == nil {
		t.Error("a release whose id is not that of its content was kept")
	}
	got, err := s.Releases(ctx)
	if err != nil || len(got) != 2 {
		t.Fatalf("%d releases, %v; want 2", len(got), err)
	}
	for _, r := range got {
		if r.WithID().ID != r.ID || string(r.Config) != `{"a":1}` {
			t.Errorf("release came back changed: %+v", r)
		}
	}
	for range 2 {
		if err := s.DeleteRelease(ctx, a.ID); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if got, _ := s.Releases(ctx); len(got) != 1 || got[0].ID != b.ID {
		t.Errorf("after the deletion: %v", got)
	}
}

func testRollouts(t *testing.T, s Store) {
	ctx := t.Context()
	if _, err := s.SwapRollout(ctx, nil, rollout(1)); err != nil {
		t.Fatal(err)
	}
	first := only(t, s)
	if _, err := s.SwapRollout(ctx, nil, rollout(2)); !errors.Is(err, ErrConflict) {
		t.Errorf("a second creation: %v, want a conflict", err)
	}
	if _, err := s.SwapRollout(ctx, &first, rollout(2)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.SwapRollout(ctx, &first, rollout(3)); !errors.Is(err, ErrConflict) {
		t.Errorf("a swap from what is no longer there: %v, want a conflict", err)
	}
	if got := only(t, s); got.Sequence != 2 {
		t.Errorf("sequence %d, want 2", got.Sequence)
	}
	if err := s.DeleteRollout(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	second := rollout(2)
	if _, err := s.SwapRollout(ctx, &second, rollout(3)); !errors.Is(err, ErrConflict) {
		t.Errorf("a swap from a deleted record: %v, want a conflict", err)
	}
}

func only(t *testing.T, s Store) Rollout {
	t.Helper()
	all, err := s.Rollouts(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatalf("rollouts: %v, %v; want one", all, err)
	}
	return all[0]
}

// Of many who swap from the same record one wins.
func testConcurrentSwaps(t *testing.T, s Store) {
	ctx := t.Context()
	if _, err := s.SwapRollout(ctx, nil, rollout(1)); err != nil {
		t.Fatal(err)
	}
	known := only(t, s)
	var mu sync.Mutex
	won := 0
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			_, err := s.SwapRollout(ctx, &known, rollout(uint64(2+i)))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !errors.Is(err, ErrConflict) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d swaps won, want 1", won)
	}
}

// What cannot be read as a record is kept aside, never destroyed, and holds
// nothing up.
func TestUnreadableRecordsAreKeptAside(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d, err := OpenDirectory(durable.OS(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	good := release(1)
	if err := d.PutRelease(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	path := func(name string) string { return filepath.Join(dir, releasesDir, name+extension) }
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
		place := path(name) + asideExtension
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
	d, err := OpenDirectory(durable.OS(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	const newer = `{"Format": 2, "UID": "u", "Sequence": 9}`
	path := filepath.Join(dir, rolloutsDir, "u.json")
	if err := os.WriteFile(path, []byte(newer), 0o600); err != nil {
		t.Fatal(err)
	}
	if all, err := d.Rollouts(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("rollouts %v, %v; want none", all, err)
	}
	if _, err := d.SwapRollout(t.Context(), nil, rollout(1)); err == nil {
		t.Error("a rollout of a newer format was written over")
	}
	if b, _ := os.ReadFile(path); string(b) != newer {
		t.Errorf("it is now %s", b)
	}
}

// Power may go at any call: a record is then the old one or the new one.
func TestFault_F20_SwapIsOldOrNew(t *testing.T) {
	t.Parallel()
	open := func(fsys *crashfs.FS) (*Directory, error) { return OpenDirectory(fsys, "/data", nil) }
	crashfs.Sweep(t,
		func(fsys *crashfs.FS) error {
			d, err := open(fsys)
			if err != nil {
				return err
			}
			_, err = d.SwapRollout(t.Context(), nil, rollout(1))
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
			_, err = d.SwapRollout(t.Context(), &all[0], rollout(2))
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
