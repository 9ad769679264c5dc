package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// quietTime is how long nothing changes before tests run again: a build writes more than
// once.
const quietTime = 200 * time.Millisecond

// watchTests runs the tests of a file, and again whenever something changes in its
// folder or in the module's, until ctx ends.
func (e *env) watchTests(ctx context.Context, path string, f *testFlags) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	watched := map[string]bool{}
	watch := func(dir string) error {
		if watched[dir] {
			return nil
		}
		watched[dir] = true
		return w.Add(dir)
	}
	for {
		if err := watch(filepath.Dir(path)); err != nil {
			return err
		}
		if file, _, err := f.load(path); err == nil {
			if err := watch(filepath.Dir(file.Module)); err != nil {
				return err
			}
		}
		err := e.testFile(ctx, path, f)
		var exit *exitError
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &exit) && exit.code == exitUsage:
			return err
		case err != nil && err.Error() != "":
			fmt.Fprintf(e.stderr, "chandler: %v\n", err)
		}
		fmt.Fprintln(e.stderr, "Waiting for a change.")
		if !changed(ctx, w) {
			return nil
		}
		fmt.Fprintln(e.stdout)
	}
}

// changed waits for a change, and until nothing changes any more; false: ctx ended.
func changed(ctx context.Context, w *fsnotify.Watcher) bool {
	var quiet <-chan time.Time
	for {
		select {
		case ev := <-w.Events:
			if name := filepath.Base(ev.Name); !ev.Has(fsnotify.Chmod) && !strings.HasPrefix(name, ".") && !strings.HasSuffix(name, "~") {
				quiet = time.After(quietTime)
			}
		case <-w.Errors:
			quiet = time.After(quietTime) // something was missed
		case <-quiet:
			return true
		case <-ctx.Done():
			return false
		}
	}
}
