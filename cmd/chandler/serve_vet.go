package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"chandler.dev/chandler/internal/sandbox"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/vet"
)

// vetFlags are about the Envoys that try a plugin before any proxy gets it.
type vetFlags struct {
	envoys  []string
	timeout time.Duration
	memory  store.Size
}

func (f *vetFlags) add(flags *pflag.FlagSet) {
	f.memory = sandbox.DefaultMemory
	flags.StringArrayVar(&f.envoys, "envoy", nil, "Envoy binary in which every plugin is tried before any proxy gets it; may be given several times, for several versions")
	flags.DurationVar(&f.timeout, "vet-timeout", sandbox.DefaultTime, "how long such an Envoy may take for one plugin")
	flags.Var(&f.memory, "vet-memory", "how much memory a plugin may take while it starts there, for example 128MiB")
}

// open gives what has plugins tried, in a folder of its own; nil: nobody does.
func (f *vetFlags) open(ctx context.Context, dir string, metrics prometheus.Registerer, log *slog.Logger) (*vet.Vetter, error) {
	if f.timeout <= 0 || f.memory <= 0 {
		return nil, usagef("--vet-timeout and --vet-memory must be more than nothing")
	}
	if len(f.envoys) == 0 {
		return nil, nil
	}
	// What is there was left by one that was killed.
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return nil, err
	}
	cfg := vet.Config{Registerer: metrics, Log: log}
	for _, path := range f.envoys {
		s, err := sandbox.Open(ctx, sandbox.Config{Envoy: path, Dir: dir, Time: f.timeout, Memory: int64(f.memory)})
		if err != nil {
			return nil, usagef("--envoy: %v", err)
		}
		log.Info("plugins are tried in an Envoy before any proxy gets them", "envoy", s.Version())
		if s.Weak() != "" {
			log.Warn("the sandbox of that Envoy is weaker than it could be", "envoy", s.Version(), "reason", s.Weak())
		}
		cfg.Judges = append(cfg.Judges, s)
	}
	return vet.New(cfg), nil
}
