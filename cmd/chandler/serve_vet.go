package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/spf13/pflag"

	"chandler.dev/chandler/internal/sandbox"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/vet"
)

// vetFlags are about the Envoys that try a plugin before any proxy gets it.
type vetFlags struct {
	envoys  []string
	off     bool
	warm    int
	timeout time.Duration
	memory  store.Size
}

func (f *vetFlags) add(flags *pflag.FlagSet) {
	f.memory = sandbox.DefaultMemory
	flags.StringArrayVar(&f.envoys, "envoy", nil, "Envoy binary in which every plugin is tried before any proxy gets it; may be given several times, for several versions; without one a Proxy-Wasm host is asked")
	flags.BoolVar(&f.off, "no-vet", false, "do not try plugins before proxies get them")
	flags.IntVar(&f.warm, "vet-warm", sandbox.DefaultWarm, "how many Envoys of each version are kept, each with a module, to try other configurations of it within milliseconds; 0 for none")
	flags.DurationVar(&f.timeout, "vet-timeout", sandbox.DefaultTime, "how long a plugin may take there")
	flags.Var(&f.memory, "vet-memory", "how much memory a plugin may take while it starts there, for example 128MiB")
}

// open gives what has plugins tried, in a folder of its own: the Envoys that were
// named, or else the Proxy-Wasm host. Nil: nobody does, as is asked for.
func (f *vetFlags) open(ctx context.Context, dir string, metrics prometheus.Registerer, log *slog.Logger) (*vet.Vetter, error) {
	if f.timeout <= 0 || f.memory <= 0 || f.warm < 0 {
		return nil, usagef("--vet-timeout and --vet-memory must be more than nothing, and --vet-warm not less")
	}
	if f.off {
		if len(f.envoys) > 0 {
			return nil, usagef("--no-vet and --envoy exclude each other")
		}
		log.Warn("plugins are not tried before proxies get them")
		return nil, nil
	}
	// What is there was left by one that was killed.
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return nil, err
	}
	trials := promauto.With(metrics).NewCounterVec(prometheus.CounterOpts{
		Name: "chandler_vet_envoys_total", Help: "Trials in Envoys, by whether one that was kept gave the verdict (kept, started).",
	}, []string{"envoy"})
	for _, envoy := range []string{"kept", "started"} {
		trials.WithLabelValues(envoy) // there from the start
	}
	cfg := sandbox.Config{Dir: dir, Time: f.timeout, Memory: int64(f.memory), Warm: f.warm, Judged: func(kept bool) {
		if kept {
			trials.WithLabelValues("kept").Inc()
		} else {
			trials.WithLabelValues("started").Inc()
		}
	}}
	if f.warm == 0 {
		cfg.Warm = -1
	}
	judges, err := f.judges(ctx, cfg)
	if err != nil {
		return nil, err
	}
	for _, j := range judges {
		log := log.With("judge", j.Name(), "envoy", j.Version())
		log.Info("every plugin is tried before any proxy gets it")
		if j.Weak() != "" {
			log.Warn("the sandbox is weaker than it could be", "reason", j.Weak())
		}
	}
	return vet.New(vet.Config{Judges: judges, Registerer: metrics, Log: log}), nil
}

func (f *vetFlags) judges(ctx context.Context, cfg sandbox.Config) (judges []vet.Judge, err error) {
	for _, cfg.Envoy = range f.envoys {
		s, err := sandbox.Open(ctx, cfg)
		if err != nil {
			return nil, usagef("--envoy: %v", err)
		}
		judges = append(judges, s)
	}
	if len(judges) > 0 {
		return judges, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	h, err := sandbox.OpenHost(ctx, cfg, self, judgeArgs()...)
	return []vet.Judge{h}, err
}
