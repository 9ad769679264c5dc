// Package vet has releases judged before any proxy hears of them, by each Envoy that
// the operator named, or by the Proxy-Wasm host where none is, and remembers the
// verdicts: of one module with one configuration a judge says the same each time.
// Where many want to be judged at once it sees to it that nobody waits for a flood of
// others' (turns.go).
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
	"chandler.dev/chandler/internal/sandbox"
)

// Judge is what plugins are tried in; *sandbox.Sandbox is one.
type Judge interface {
	// Name is chandler.JudgeEnvoy or chandler.JudgeHost, Version that of the Envoy.
	Name() string
	Version() string
	// Weak says what the judge's children could not be denied; empty: nothing.
	Weak() string
	// Judge tells what there is against a plugin, or nil. The error is that it could
	// not be asked.
	Judge(ctx context.Context, c sandbox.Case) (*chandler.Problem, error)
}

// maxKnown bounds the verdicts that are remembered. What is forgotten costs a trial.
const maxKnown = 4096

// Config holds what a Vetter works with.
type Config struct {
	Judges []Judge
	// Trials is how many may run at a time, and as many slow ones beside them; the
	// number of processors when zero, and two at least, so that one that comes to no
	// end does not hold up all others.
	Trials     int
	Now        func() time.Time // time.Now when nil
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Vetter has releases judged. It is safe for concurrent use; whoever asks the same
// at the same time waits for one trial.
type Vetter struct {
	cfg   Config
	turns *turns

	mu    sync.Mutex
	known map[trial]*chandler.Problem // what was said; nil: nothing against it
	long  map[trial]bool              // those that took longer than a slice
	under map[trial]chan struct{}     // trials under way; closed at their end

	trials   *prometheus.CounterVec
	duration prometheus.Histogram
}

// trial is what a verdict depends on.
type trial struct {
	judge, version string
	content        [sha256.Size]byte
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
	v := &Vetter{
		cfg: cfg, turns: newTurns(cfg.Trials), known: map[trial]*chandler.Problem{}, long: map[trial]bool{}, under: map[trial]chan struct{}{},
		trials:   f.NewCounterVec(prometheus.CounterOpts{Name: "chandler_vet_total", Help: "Trials of plugins, by what came of them: accepted, failed (nothing is known), or the code of what there is against the plugin."}, []string{"result"}),
		duration: f.NewHistogram(prometheus.HistogramOpts{Name: "chandler_vet_duration_seconds", Help: "How long trials took.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 16)}),
	}
	for _, result := range []string{"accepted", "failed"} {
		v.trials.WithLabelValues(result) // there from the start
	}
	f.NewGaugeFunc(prometheus.GaugeOpts{Name: "chandler_vet_waiting", Help: "Trials that wait for their turn."},
		func() float64 { return float64(v.turns.queued()) })
	f.NewGauge(prometheus.GaugeOpts{Name: "chandler_vet_weak_sandboxes", Help: "Judges whose children this system does not shut off as it could."}).Set(float64(v.weak()))
	return v
}

// Close ends what the judges keep for themselves. Nothing may be judged afterwards; a
// nil Vetter keeps nothing.
func (v *Vetter) Close() {
	if v == nil {
		return
	}
	for _, j := range v.cfg.Judges {
		if c, ok := j.(interface{ Close() }); ok {
			c.Close()
		}
	}
}

// weak counts the judges in weaker sandboxes.
func (v *Vetter) weak() (n int) {
	for _, j := range v.cfg.Judges {
		if j.Weak() != "" {
			n++
		}
	}
	return n
}

// Request asks for one release.
type Request struct {
	Release *chandler.Release
	// Path is where its module is, if it has one.
	Path string
	// Probes are what is asked of the plugin once it has loaded.
	Probes []chandler.Probe
	// Settled: the plugin had a release before.
	Settled bool
}

// Vet gives the verdicts on a release. The error holds a *chandler.Problem when a
// judge refuses it; any other says that nothing is known. A file on the proxies' own
// machines is judged by nobody, and the host knows modules only.
func (v *Vetter) Vet(ctx context.Context, req Request) ([]chandler.Verdict, error) {
	r := req.Release
	if r.Program.File != nil {
		return nil, nil
	}
	var verdicts []chandler.Verdict
	for _, j := range v.cfg.Judges {
		if j.Name() == chandler.JudgeHost && r.Program.Module == nil {
			continue
		}
		problem, err := v.verdict(ctx, j, req)
		if err != nil {
			return nil, fmt.Errorf("it could not be tried in %s: %w", title(j), err)
		}
		if problem != nil {
			return nil, problem
		}
		verdicts = append(verdicts, chandler.Verdict{
			Judge: j.Name(), EnvoyVersion: j.Version(), At: v.cfg.Now().UTC(),
			Weak: j.Weak() != "", Probed: len(req.Probes) > 0 && j.Name() == chandler.JudgeEnvoy,
		})
	}
	return verdicts, nil
}

func title(j Judge) string {
	if j.Name() == chandler.JudgeHost {
		return "the Proxy-Wasm host"
	}
	return "Envoy " + j.Version()
}

// Know tells of verdicts that releases recorded, so that a restart costs no trial.
func (v *Vetter) Know(releases []chandler.Release) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := range releases {
		if len(releases[i].ConfigFrom) > 0 {
			continue // with what configuration it was tried is not in its record
		}
		for _, said := range releases[i].Verdicts {
			if said.Judge != chandler.JudgeStatic && len(v.known) < maxKnown {
				v.known[newTrial(said.Judge, said.EnvoyVersion, Request{Release: &releases[i]})] = nil
			}
		}
	}
}

func newTrial(judge, version string, req Request) trial {
	r := req.Release
	var module chandler.ModuleDigest
	if r.Program.Module != nil {
		module = r.Program.Module.Digest
	}
	b, err := json.Marshal([]any{module, r.Program.Lua, r.Type, r.RootID, r.Config, r.Env, r.Capabilities, r.Key, req.Probes})
	if err != nil { // plain types only
		panic(fmt.Sprintf("vet: marshal: %v", err))
	}
	return trial{judge, version, sha256.Sum256(b)}
}

// verdict remembers, joins a trial that is under way, or begins one.
func (v *Vetter) verdict(ctx context.Context, j Judge, req Request) (*chandler.Problem, error) {
	t := newTrial(j.Name(), j.Version(), req)
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
			return v.try(ctx, t, j, req)
		}
		select {
		case <-running:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// try has j judge, when it is its turn, and remembers what it says.
func (v *Vetter) try(ctx context.Context, t trial, j Judge, req Request) (problem *chandler.Problem, err error) {
	v.mu.Lock()
	mine := &turn{namespace: req.Release.Namespace, settled: req.Settled, slow: v.long[t]}
	v.mu.Unlock()
	for done := false; !done; {
		problem, done, err = v.once(ctx, mine, j, req)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if passing(problem) || mine.slow {
		remember(v.long, t, true)
	}
	if err == nil && !passing(problem) {
		remember(v.known, t, problem)
	}
	close(v.under[t])
	delete(v.under, t)
	return problem, err
}

func remember[T any](in map[trial]T, t trial, what T) {
	if len(in) >= maxKnown {
		clear(in)
	}
	in[t] = what
}

// once has j judge for as long as it may. It is not done when it had to make room.
func (v *Vetter) once(ctx context.Context, mine *turn, j Judge, req Request) (problem *chandler.Problem, done bool, err error) {
	limited, err := v.turns.take(ctx, mine)
	if err != nil {
		return nil, true, err
	}
	began := time.Now()
	problem, err = j.Judge(limited, sandbox.Case{Member: member(req.Release, req.Path), Probes: req.Probes})
	yielded := err != nil && ctx.Err() == nil && errors.Is(context.Cause(limited), errYield)
	v.turns.give(mine)
	switch {
	case yielded:
		mine.slow = true
		return nil, false, nil
	case errors.Is(err, context.Canceled):
		return nil, true, err
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
	return problem, true, err
}

// passing tells whether a verdict may be another one next time: what a machine that
// is too busy makes of a module is not the module's.
func passing(p *chandler.Problem) bool { return p != nil && p.Code == chandler.CodeWasmTimeout }

// member is the release as a proxy would have it, without what only a proxy knows.
// Whatever the plugin says of failures, here a failure is one.
func member(r *chandler.Release, path string) attach.Member {
	a := &chandler.Attachment{Key: r.Key, Program: r.Program, Behaviour: r.Behaviour, Capabilities: r.Capabilities}
	a.FailStrategy = chandler.FailClose
	return attach.Member{Attachment: a, ModulePath: path}
}
