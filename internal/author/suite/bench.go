package suite

import (
	"context"
	"fmt"
	"regexp"
	"time"

	"chandler.dev/chandler/internal/exchange"
)

// Measure is how long a case's plugin takes on an engine.
type Measure struct {
	Name   string     `json:"name"`
	Engine EngineName `json:"engine"`
	// Load is from a module that was compiled before to a plugin that is configured.
	Load time.Duration `json:"loadNanoseconds"`
	// Request is the case's first request with all that stands around it, Callback the
	// share of one callback in it.
	Request   time.Duration `json:"requestNanoseconds"`
	Callbacks int           `json:"callbacks"`
	Callback  time.Duration `json:"callbackNanoseconds"`
	// Memory is what the host had the module allocate for a request; nil: unknown.
	Memory *int64 `json:"memoryBytes,omitempty"`
}

const (
	// benchTime is how long a request is repeated, warmUp how often before that.
	benchTime, warmUp = 300 * time.Millisecond, 20
)

// Bench measures the first request of each test that has one.
func Bench(ctx context.Context, tests []Test, engine exchange.Engine) ([]Measure, error) {
	var all []Measure
	for i := range tests {
		t := &tests[i]
		if len(t.steps) == 0 || t.steps[0].Request == nil || t.skipped(EngineName(engine.Name())) != "" {
			continue
		}
		m, err := bench(ctx, t, engine)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.Name, err)
		}
		all = append(all, *m)
	}
	return all, nil
}

// A callback, and what the host has the module allocate, in a trace.
var (
	callbackPattern = regexp.MustCompile(`^(?:\[host->vm\] )?proxy_on_([a-z_]+)\(`)
	allocPattern    = regexp.MustCompile(`^(?:\[host->vm\] )?(?:malloc|proxy_on_memory_allocate)\((\d+)\)`)
)

func bench(ctx context.Context, t *Test, engine exchange.Engine) (*Measure, error) {
	m := &Measure{Name: t.Name, Engine: EngineName(engine.Name())}
	// The first is for the compiler, and says what a request is made of.
	traced := t.Setup
	counting := false
	traced.Trace = func(line string) {
		switch {
		case !counting:
		case allocPattern.MatchString(line):
			var n int64
			_, _ = fmt.Sscan(allocPattern.FindStringSubmatch(line)[1], &n)
			if m.Memory == nil {
				m.Memory = new(int64)
			}
			*m.Memory += n
		case callbackPattern.MatchString(line):
			m.Callbacks++
		}
	}
	session, err := engine.Start(ctx, traced)
	if err != nil {
		return nil, err
	}
	counting = true
	_, err = session.Do(ctx, t.steps[0].exchange)
	if cerr := session.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	if session, err = engine.Start(ctx, t.Setup); err != nil {
		return nil, err
	}
	defer session.Close()
	m.Load = time.Since(begin)
	for range warmUp {
		if _, err := session.Do(ctx, t.steps[0].exchange); err != nil {
			return nil, err
		}
	}
	n := 0
	for begin = time.Now(); n == 0 || time.Since(begin) < benchTime; n++ {
		if _, err := session.Do(ctx, t.steps[0].exchange); err != nil {
			return nil, err
		}
	}
	m.Request = time.Since(begin) / time.Duration(n)
	if m.Callbacks > 0 {
		m.Callback = m.Request / time.Duration(m.Callbacks)
	}
	return m, nil
}
