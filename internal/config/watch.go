package config

import (
	"context"
	"log/slog"
	"maps"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// interval is how often the file is looked at. It is read each time: that sees a
// rename, a link that leads elsewhere (as in a mounted ConfigMap) and a write in
// place alike, on every file system, for microseconds.
const interval = time.Second / 2

// Watcher keeps what is in use in step with the file, and those that it names. A file
// that cannot be used is told once and leaves the one before in use, so that a slip of
// the pen loosens nothing.
type Watcher struct {
	path string
	log  *slog.Logger

	seen inputs // as they were judged last
	next inputs // as they were in the last look, if otherwise
	told string // why they are not in use

	reloads *prometheus.CounterVec
	stale   prometheus.Gauge
}

// Open reads the file and gives it with a watcher of its changes. The error is an
// *Error.
func Open(path string, metrics prometheus.Registerer, log *slog.Logger) (*Watcher, *File, error) {
	f, err := load(path)
	if err != nil {
		return nil, nil, err
	}
	factory := promauto.With(metrics)
	w := &Watcher{
		path: path, log: log, seen: f.inputs,
		reloads: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "chandler_config_reloads_total", Help: "Changes of the file of --config, by what became of them (taken, refused).",
		}, []string{"result"}),
		stale: factory.NewGauge(prometheus.GaugeOpts{
			Name: "chandler_config_stale", Help: "1 while the file of --config cannot be used and the one before is in use.",
		}),
	}
	for _, result := range []string{"taken", "refused"} {
		w.reloads.WithLabelValues(result) // there from the start
	}
	return w, f, nil
}

// Run looks at the file until ctx ends, and hands it over whenever it has changed. That
// need not mean that it says something else.
func (w *Watcher) Run(ctx context.Context, changed func(*File)) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if f := w.look(); f != nil {
				changed(f)
				w.log.Info("the configuration file has changed and is in use", "file", w.path)
			}
		}
	}
}

// look gives the file when it has changed and can be used. Two looks have to see the same:
// one that is written in place is empty at first, and then has some of its rules.
func (w *Watcher) look() *File {
	if !w.seen.changed() {
		w.next = nil
		return nil
	}
	f, err := load(w.path)
	if !maps.Equal(f.inputs, w.next) {
		w.next = f.inputs
		return nil
	}
	w.seen, w.next = f.inputs, nil
	if err != nil {
		if w.told != err.Error() {
			w.told = err.Error()
			w.stale.Set(1)
			w.reloads.WithLabelValues("refused").Inc()
			w.log.Error("the configuration file cannot be used; the one before stays in use", "error", err)
		}
		return nil
	}
	w.told = ""
	w.stale.Set(0)
	w.reloads.WithLabelValues("taken").Inc()
	return f
}
