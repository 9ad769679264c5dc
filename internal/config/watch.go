package config

import (
	"bytes"
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// interval is how often the file is looked at. It is read each time: that sees a
// rename, a link that leads elsewhere (as in a mounted ConfigMap) and a write in
// place alike, on every file system, for microseconds.
const interval = time.Second

// Watcher keeps what is in use in step with the file. A file that cannot be used is
// told once and leaves the one before in use, so that a slip of the pen loosens
// nothing.
type Watcher struct {
	path string
	log  *slog.Logger

	content []byte // as it was last judged
	told    string // why it is not in use
	hash    string // of what is in use

	reloads *prometheus.CounterVec
	stale   prometheus.Gauge
}

// Open reads the file and gives it with a watcher of its changes. The error is an
// *Error, or one of the registerer's.
func Open(path string, metrics prometheus.Registerer, log *slog.Logger) (*Watcher, *File, error) {
	b, err := read(path)
	if err != nil {
		return nil, nil, unreadable(path, err)
	}
	f, err := parse(path, b)
	if err != nil {
		return nil, nil, err
	}
	factory := promauto.With(metrics)
	w := &Watcher{
		path: path, log: log, content: b, hash: f.Hash(),
		reloads: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "chandler_config_reloads_total", Help: "Changes of the file of --config, by what became of them (taken, refused).",
		}, []string{"result"}),
		stale: factory.NewGauge(prometheus.GaugeOpts{
			Name: "chandler_config_stale", Help: "1 while the file of --config cannot be used and the one before is in use.",
		}),
	}
	return w, f, nil
}

// Run looks at the file until ctx ends, and hands over what it says whenever that
// is something else.
func (w *Watcher) Run(ctx context.Context, changed func(*File)) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
			if f := w.look(); f != nil {
				changed(f)
			}
		}
	}
}

// look gives the file when it says something else than what is in use.
func (w *Watcher) look() *File {
	b, err := read(w.path)
	if err != nil {
		w.content = nil
		w.refused(unreadable(w.path, err))
		return nil
	}
	if w.content != nil && bytes.Equal(b, w.content) {
		return nil
	}
	w.content = b
	f, err := parse(w.path, b)
	if err != nil {
		w.refused(err)
		return nil
	}
	w.told = ""
	w.stale.Set(0)
	if hash := f.Hash(); hash != w.hash {
		w.hash = hash
		w.reloads.WithLabelValues("taken").Inc()
		w.log.Info("the configuration file has changed and is in use", "file", w.path)
		return f
	}
	return nil
}

// refused tells why the file is not taken, once a reason.
func (w *Watcher) refused(err error) {
	if w.told == err.Error() {
		return
	}
	w.told = err.Error()
	w.stale.Set(1)
	w.reloads.WithLabelValues("refused").Inc()
	w.log.Error("the configuration file cannot be used; the one before stays in use", "error", err)
}
