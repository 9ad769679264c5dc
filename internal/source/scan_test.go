package source

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"chandler.dev/chandler"
)

// What the system could not read is tried again after a moment, also where no
// notification tells that it can; what is as it is waits for the poll.
func TestUnreadIsReadAgain(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(path string) error
		again time.Duration
	}{
		"a link to itself": {func(path string) error { return os.Symlink(path, path) }, retry},
		"too large": {func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, maxFile+1))
		}, 0},
		"nothing": {func(string) error { return nil }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := OpenDirectory(DirectoryConfig{Dir: t.TempDir(), Data: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			d.deliver = func(Snapshot) {}
			if err := c.spoil(filepath.Join(d.cfg.Dir, "a.yaml")); err != nil {
				t.Fatal(err)
			}
			w := newWatcher(d.cfg.Log)
			defer w.close()
			if wait := d.look(w, time.Now()); wait != c.again {
				t.Errorf("it looks again after %v, want %v", wait, c.again)
			}
		})
	}
}

// What is away for less than the grace stays, however long the machine stood still while
// the files were read.
func TestGraceIsBetweenReadings(t *testing.T) {
	t.Parallel()
	key := chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: "a"}
	objects := map[chandler.Key]known{key: {entry: newEntry(key, time.Now())}}
	read := func(from, to time.Time) bool {
		t.Helper()
		p := reconcile(view{known: objects, from: from, to: to})
		objects = p.known
		return len(p.known) == 1
	}
	t0 := time.Now()
	slow := t0.Add(10 * time.Second)
	if !read(t0, slow) || !read(slow.Add(grace-1), slow.Add(time.Hour)) {
		t.Error("it went before the grace was over")
	}
	if read(slow.Add(grace), slow.Add(grace)) {
		t.Error("it stays after the grace")
	}
}
