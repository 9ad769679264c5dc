package suite

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"chandler.dev/chandler/internal/exchange"
)

// Verdict is how a case ended.
type Verdict string

// The verdicts. Broken is a case that could not be run.
const (
	Passed  Verdict = "passed"
	Failed  Verdict = "failed"
	Skipped Verdict = "skipped"
	Broken  Verdict = "broken"
)

// Result is what came of a case.
type Result struct {
	Name    string  `json:"name"`
	Verdict Verdict `json:"verdict"`
	Runs    []Run   `json:"runs"`
	// Differences are those between the engines: Want is what the first gave, Got what
	// the second.
	Differences []Failure `json:"differences,omitempty"`
}

// Run is a case on one engine.
type Run struct {
	Engine   EngineName    `json:"engine"`
	Verdict  Verdict       `json:"verdict"`
	Time     time.Duration `json:"nanoseconds"`
	Reason   string        `json:"reason,omitempty"` // of what was skipped or is broken
	Failures []Failure     `json:"failures,omitempty"`
	Trace    []string      `json:"trace,omitempty"`

	seen  []seen
	extra bool // more ticks passed than the test asked for
}

// tries is how often a test is run in which more ticks passed than it asked for.
const tries = 5

// maxTrace is how many lines of a trace are kept.
const maxTrace = 10_000

// Options say how tests are run.
type Options struct {
	// Engines are those that every case runs on.
	Engines []exchange.Engine
	// Parallel is how many cases run at a time; at least one.
	Parallel int
	// Trace keeps the calls between host and module, and what was logged.
	Trace bool
	// Done is told of each result, in the order of the cases.
	Done func(*Result)
}

// RunTests runs tests and gives the results in their order. The error is that ctx
// ended; what was not run then has no result.
func RunTests(ctx context.Context, tests []Test, opts Options) ([]Result, error) {
	results := make([]Result, len(tests))
	ready := make([]chan struct{}, len(tests))
	for i := range ready {
		ready[i] = make(chan struct{})
	}
	next := make(chan int)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer close(next)
		for i := range tests {
			select {
			case next <- i:
			case <-ctx.Done():
				return
			}
		}
	})
	for range max(1, opts.Parallel) {
		wg.Go(func() {
			for i := range next {
				results[i] = opts.test(ctx, &tests[i])
				close(ready[i])
			}
		})
	}
	for i := range results {
		select {
		case <-ready[i]:
		case <-ctx.Done():
			return results[:i], ctx.Err()
		}
		if opts.Done != nil {
			opts.Done(&results[i])
		}
	}
	return results, nil
}

// test runs a test on each engine. What is found in a run in which more ticks passed than
// were asked for may come of these, so that it is run again.
func (o *Options) test(ctx context.Context, t *Test) Result {
	r := Result{Name: t.Name}
	for _, e := range o.Engines {
		r.Runs = append(r.Runs, o.run(ctx, t, e))
	}
	r.judge()
	for range tries - 1 {
		if r.Verdict == Passed || !slices.ContainsFunc(r.Runs, func(run Run) bool { return run.extra }) {
			break
		}
		for i, e := range o.Engines {
			if r.Runs[i].extra {
				r.Runs[i] = o.run(ctx, t, e)
			}
		}
		r.judge()
	}
	return r
}

// judge says what came of the runs.
func (r *Result) judge() {
	r.Verdict, r.Differences = Skipped, differences(r.Runs)
	for _, run := range r.Runs {
		r.Verdict = worse(r.Verdict, run.Verdict)
	}
	if len(r.Differences) > 0 {
		r.Verdict = worse(r.Verdict, Failed)
	}
}

func worse(a, b Verdict) Verdict {
	order := []Verdict{Skipped, Passed, Failed, Broken}
	return order[max(slices.Index(order, a), slices.Index(order, b))]
}

// differences compares the runs of a test that came to their end.
func differences(runs []Run) []Failure {
	var c comparison
	for i := 1; i < len(runs); i++ {
		for j := range min(len(runs[0].seen), len(runs[i].seen)) {
			c.step = j + 1
			c.agree(&runs[0].seen[j], &runs[i].seen[j])
		}
	}
	return c.failures
}

// skipped is why a test does not run on an engine; empty: it does.
func (t *Test) skipped(e EngineName) string {
	switch reason, skip := t.Scope.Skip[e]; {
	case skip && reason == "":
		return "the test file says so"
	case skip:
		return reason
	case len(t.Scope.Engines) > 0 && !slices.Contains(t.Scope.Engines, e):
		return "it is for other engines"
	case e == Envoy && t.clocked():
		return "the clock cannot be set there"
	}
	if e == Envoy && slices.ContainsFunc(t.steps, func(s planned) bool { return len(s.Properties) > 0 }) {
		return "properties cannot be set there"
	}
	return ""
}

// run runs a test on one engine.
func (o *Options) run(ctx context.Context, t *Test, e exchange.Engine) Run {
	r := Run{Engine: EngineName(e.Name()), Verdict: Passed}
	if r.Reason = t.skipped(r.Engine); r.Reason != "" {
		r.Verdict = Skipped
		return r
	}
	setup := t.Setup
	if len(t.steps) > 0 {
		setup.Answers = t.steps[0].exchange.Answers
	}
	if o.Trace {
		setup.Trace = func(line string) { r.trace(line) }
	}
	c := &comparison{}
	begin := time.Now()
	err := r.carry(ctx, t, e, setup, c)
	r.Time = time.Since(begin)
	if r.Failures = c.failures; len(r.Failures) > 0 {
		r.Verdict = Failed
	}
	if err != nil {
		r.Verdict, r.Reason = Broken, err.Error()
	}
	return r
}

func (r *Run) trace(line string) {
	if len(r.Trace) < maxTrace {
		r.Trace = append(r.Trace, line)
	}
}

// carry starts the plugin and takes the steps.
func (r *Run) carry(ctx context.Context, t *Test, e exchange.Engine, setup exchange.Setup, c *comparison) error {
	session, err := e.Start(ctx, setup)
	var refusal *exchange.Refusal
	switch {
	case errors.As(err, &refusal):
		r.logged(refusal.Logs)
		c.refused(t, refusal)
		return nil
	case err != nil:
		return err
	}
	defer func() {
		clocked, ok := session.(exchange.Clocked)
		r.extra = ok && clocked.Extra() > 0
		_ = session.Close()
	}()
	if t.configure != nil {
		logs := session.Logs()
		r.logged(logs)
		c.accepted(t.configure, logs)
		return nil
	}
	for i := range t.steps {
		c.step = i + 1
		s, err := step(ctx, session, &t.steps[i])
		if err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
		r.logged(s.logs)
		r.seen = append(r.seen, *s)
		c.judge(&t.steps[i].Expect, s)
	}
	return nil
}

func (r *Run) logged(logs []exchange.Log) {
	for _, l := range logs {
		r.trace("log " + l.Level + ": " + l.Text)
	}
}

// step lets ticks pass and sends the request.
func step(ctx context.Context, session exchange.Session, p *planned) (*seen, error) {
	s := &seen{}
	if p.Ticks > 0 {
		session.Answer(p.exchange.Answers)
		if err := session.Tick(ctx, p.Ticks); err != nil {
			return nil, err
		}
	}
	s.calls = session.Calls()
	if p.Request != nil {
		o, err := session.Do(ctx, p.exchange)
		if err != nil {
			return nil, err
		}
		s.outcome, s.calls = o, append(s.calls, o.Calls...)
	}
	s.logs = session.Logs()
	if len(p.Expect.Metrics) > 0 {
		var err error
		if s.metrics, err = session.Metrics(ctx); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// refused judges a plugin that was not taken.
func (c *comparison) refused(t *Test, r *exchange.Refusal) {
	want := t.configure
	if want == nil || want.Accepted {
		c.fail("configuration", "taken", "refused: "+r.Reason+said(r.Logs))
		return
	}
	if !want.Refused.MatchString(r.Reason) && !slices.ContainsFunc(r.Logs, func(l exchange.Log) bool { return want.Refused.MatchString(l.Text) }) {
		c.fail("reason", "matches "+want.Refused.String(), r.Reason+said(r.Logs))
	}
	if want.Logs != nil {
		c.logs(want.Logs, r.Logs)
	}
}

func said(logs []exchange.Log) string {
	if len(logs) == 0 {
		return ""
	}
	return "\n" + strings.TrimSpace(lines(logs))
}

// accepted judges a plugin that was taken.
func (c *comparison) accepted(want *Configure, logs []exchange.Log) {
	if !want.Accepted {
		c.fail("configuration", "refused, for a reason that matches "+want.Refused.String(), "taken")
	}
	if want.Logs != nil {
		c.logs(want.Logs, logs)
	}
}
