// Package vet has releases judged before any proxy hears of them, by each Envoy that
// the operator named, and remembers the verdicts: of one module with one
// configuration an Envoy says the same each time.
//
// It judges nothing itself (package sandbox does) and knows nothing of plugins'
// resources; that a refused release is not recorded is the control plane's matter.
package vet

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

// Envoy is what judges; *sandbox.Sandbox is one.
type Envoy interface {
	Version() string
	// Judge tells what Envoy has against a plugin, or nil. The error is that it
	// could not be asked.
	Judge(ctx context.Context, m attach.Member, size int64) (*chandler.Problem, error)
}

// maxKnown bounds the verdicts that are remembered. What is forgotten costs a trial.
const maxKnown = 4096

// Config holds what a Vetter works with.
type Config struct {
	Envoys []Envoy
	// Trials is how many may run at a time; the number of processors when zero, and
	// two at least, so that one that comes to no end does not hold up all others.
	Trials     int
	Now        func() time.Time // time.Now when nil
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Vetter has releases judged. It is safe for concurrent use; whoever asks the same
// at the same time waits for one trial.
type Vetter struct {
	cfg   Config
	slots chan struct{}

	mu    sync.Mutex
	known map[trial]*chandler.Problem // what was said; nil: nothing against it
	under map[trial]chan struct{}     // trials under way; closed at their end

	trials   *prometheus.CounterVec
	duration prometheus.Histogram
}

// trial is what a verdict depends on.
type trial struct {
	envoy   string
	content [sha256.Size]byte
}

// New starts nothing.
func New(cfg Config) *Vetter {
	if cfg.Trials <= 0 {
		cfg.Trials = max(2, runtime.NumCPU())
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	f := promauto.With(cfg.Registerer)
	return &Vetter{
		cfg: cfg, slots: make(chan struct{}, cfg.Trials), known: map[trial]*chandler.Problem{}, under: map[trial]chan struct{}{},
		trials:   f.NewCounterVec(prometheus.CounterOpts{Name: "chandler_vet_total", Help: "Trials of plugins in an Envoy, by what came of them."}, []string{"result"}),
		duration: f.NewHistogram(prometheus.HistogramOpts{Name: "chandler_vet_duration_seconds", Help: "How long trials took.", Buckets: prometheus.ExponentialBuckets(0.03125, 2, 11)}),
	}
}

// Vet gives the verdicts on a release whose module, if it has one, is at path. The
// error holds a *chandler.Problem when an Envoy refuses it; any other says that
// nothing is known. A file on the proxies' own machines is judged by nobody.
func (v *Vetter) Vet(ctx context.Context, r *chandler.Release, path string) ([]chandler.Verdict, error) {
	if r.Program.File != nil {
		return nil, nil
	}
	var verdicts []chandler.Verdict
	for _, e := range v.cfg.Envoys {
		problem, err := v.verdict(ctx, e, r, path)
		if err != nil {
			return nil, fmt.Errorf("it could not be tried in Envoy %s: %w", e.Version(), err)
		}
		if problem != nil {
			return nil, problem
		}
		verdicts = append(verdicts, chandler.Verdict{Judge: chandler.JudgeEnvoy, EnvoyVersion: e.Version(), At: v.cfg.Now().UTC()})
	}
	return verdicts, nil
}

// Know tells of verdicts that releases recorded, so that a restart costs no trial.
func (v *Vetter) Know(releases []chandler.Release) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := range releases {
		for _, said := range releases[i].Verdicts {
			if said.Judge == chandler.JudgeEnvoy && len(v.known) < maxKnown {
				v.known[newTrial(said.EnvoyVersion, &releases[i])] = nil
			}
		}
	}
}

func newTrial(envoy string, r *chandler.Release) trial {
	var module chandler.ModuleDigest
	if r.Program.Module != nil {
		module = r.Program.Module.Digest
	}
	b, err := json.Marshal([]any{module, r.Program.Lua, r.Type, r.RootID, r.Config, r.Env, r.Capabilities, r.Key})
	if err != nil { // plain types only
		panic(fmt.Sprintf("vet: marshal: %v", err))
	}
	return trial{envoy, sha256.Sum256(b)}
}

// verdict remembers, joins a trial that is under way, or begins one.
func (v *Vetter) verdict(ctx context.Context, e Envoy, r *chandler.Release, path string) (*chandler.Problem, error) {
	t := newTrial(e.Version(), r)
	for {
		v.mu.Lock()
		problem, ok := v.known[t]
		running := v.under[t]
		if !ok && running == nil {
			v.under[t] = make(chan struct{})
		}
		v.mu.Unlock()
		switch {
		case ok:
			return problem, nil
		case running == nil:
			return v.try(ctx, t, e, r, path)
		}
		select {
		case <-running:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// try has e judge, when it is its turn, and remembers what it says.
func (v *Vetter) try(ctx context.Context, t trial, e Envoy, r *chandler.Release, path string) (problem *chandler.Problem, err error) {
	defer func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if err == nil && !passing(problem) {
			if len(v.known) >= maxKnown {
				clear(v.known)
			}
			v.known[t] = problem
		}
		close(v.under[t])
		delete(v.under, t)
	}()
	select {
	case v.slots <- struct{}{}:
		defer func() { <-v.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	began := time.Now()
	problem, err = e.Judge(ctx, member(r, path), size(r))
	if errors.Is(err, context.Canceled) {
		return nil, err
	}
	v.duration.Observe(time.Since(began).Seconds())
	result := "accepted"
	switch {
	case err != nil:
		result = "failed"
	case problem != nil:
		result = string(problem.Code)
	}
	v.trials.WithLabelValues(result).Inc()
	return problem, err
}

// passing tells whether a verdict may be another one next time: what a machine that
// is too busy makes of a module is not the module's.
func passing(p *chandler.Problem) bool { return p != nil && p.Code == chandler.CodeWasmTimeout }

func size(r *chandler.Release) int64 {
	if r.Program.Module == nil {
		return 0
	}
	return r.Program.Module.Size
}

// member is the release as a proxy would have it, without what only a proxy knows.
// Whatever the plugin says of failures, here a failure is one.
func member(r *chandler.Release, path string) attach.Member {
	a := &chandler.Attachment{Key: r.Key, Program: r.Program, Behaviour: r.Behaviour, Capabilities: r.Capabilities}
	a.FailStrategy = chandler.FailClose
	return attach.Member{Attachment: a, ModulePath: path}
}
