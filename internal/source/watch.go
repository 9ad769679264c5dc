package source

import (
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/fsnotify/fsnotify"
)

// watcher tells that something may have changed. It is a hint only: what is so
// is found out by a scan, and there is a slow poll beside it.
type watcher struct {
	log     *slog.Logger
	notify  *fsnotify.Watcher // nil: there are no notifications here
	points  map[string]names
	watched map[string]fs.FileInfo
}

func newWatcher(log *slog.Logger) *watcher {
	w := &watcher{log: log, watched: map[string]fs.FileInfo{}}
	n, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("no notifications of changed files; looking from time to time instead", "error", err)
		return w
	}
	w.notify = n
	return w
}

func (w *watcher) close() {
	if w.notify != nil {
		_ = w.notify.Close()
	}
}

func (w *watcher) events() <-chan fsnotify.Event {
	if w.notify == nil {
		return nil
	}
	return w.notify.Events
}

func (w *watcher) errors() <-chan error {
	if w.notify == nil {
		return nil
	}
	return w.notify.Errors
}

// matters tells whether an event is about something that was noted.
func (w *watcher) matters(e fsnotify.Event) bool {
	dir, name := filepath.Split(e.Name)
	if names, ok := w.points[filepath.Clean(dir)]; ok && (names == nil || names[name]) {
		return true
	}
	_, ok := w.points[e.Name] // a watched folder itself
	return ok
}

// watch sets what is watched. It tells whether something is watched now that was
// not before: it may have changed in between.
func (w *watcher) watch(points map[string]names) (more bool) {
	w.points = points
	if w.notify == nil {
		return false
	}
	live := map[string]bool{}
	for _, dir := range w.notify.WatchList() {
		live[dir] = true
	}
	for dir, was := range w.watched {
		stat, err := os.Stat(dir)
		if _, wanted := points[dir]; wanted && live[dir] && err == nil && os.SameFile(was, stat) {
			continue
		}
		if live[dir] {
			_ = w.notify.Remove(dir) // a folder that is gone takes its watch along
		}
		delete(w.watched, dir)
	}
	for dir := range points {
		if w.watched[dir] != nil {
			continue
		}
		stat, err := os.Stat(dir)
		if err == nil {
			err = w.notify.Add(dir)
		}
		if err != nil {
			w.log.Debug("a folder cannot be watched; looking from time to time instead", "folder", dir, "error", err)
			continue
		}
		w.watched[dir] = stat
		more = true
	}
	return more
}
