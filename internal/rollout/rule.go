package rollout

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"chandler.dev/chandler"
)

// Rule is an entry of `rollouts:` in the operator's file: the plan of plugins that have
// none of their own.
type Rule struct {
	// Namespaces are those of plugins, * inside for any characters; all without any.
	Namespaces []string `yaml:"namespaces"`
	// Selector has labels of plugins, all of which they have.
	Selector map[string]string `yaml:"selector"`

	// Steps are as in the annotation chandler.dev/rollout, one each.
	Steps []string `yaml:"steps"`
	// Interval is how long each step is watched; nil: a minute.
	Interval *time.Duration `yaml:"interval"`
	// OnFailure is rollback, the default, or pause.
	OnFailure chandler.OnFailure `yaml:"onFailure"`
	// Requests are how many each side needs; nil: as in DefaultMargins.
	Requests *int `yaml:"requests"`
	// Margins are by how much a release may do worse than the one before.
	Margins Margins `yaml:"margins"`

	plan chandler.RolloutPlan // what Check made of it
}

// Margins are chandler.Margins as they are written; what is nil is that of
// DefaultMargins.
type Margins struct {
	Success      *Part          `yaml:"success"`      // how much smaller the share of 2xx may be, such as 5%
	Redirects    *Part          `yaml:"redirects"`    // how much larger that of 3xx
	ClientErrors *Part          `yaml:"clientErrors"` // ... of 4xx
	ServerErrors *Part          `yaml:"serverErrors"` // ... of 5xx
	Latency      *Factor        `yaml:"latency"`      // how many times as long p99 may be
	LatencyFloor *time.Duration `yaml:"latencyFloor"` // by how much it may be longer in any case
}

// Part is a part of all requests, written as "0.5%".
type Part float64

// UnmarshalText reads it.
func (p *Part) UnmarshalText(b []byte) error {
	digits, ok := strings.CutSuffix(string(b), "%")
	n, err := strconv.ParseFloat(digits, 64)
	if !ok || err != nil || !(n >= 0 && n <= 100) {
		return chandler.Problemf(chandler.CodeConfValue, "", `write points of a hundred, from "0%" to "100%"`, "%s is no part of the requests", chandler.Quote(string(b)))
	}
	*p = Part(n / 100)
	return nil
}

// Factor is how many times as long something may take.
type Factor float64

// UnmarshalText reads it.
func (f *Factor) UnmarshalText(b []byte) error {
	n, err := strconv.ParseFloat(string(b), 64)
	if err != nil || !(n >= 1 && n <= 1000) {
		return chandler.Problemf(chandler.CodeConfValue, "", "write a number from 1 to 1000, such as 1.5", "%s is no factor", chandler.Quote(string(b)))
	}
	*f = Factor(n)
	return nil
}

const maxRequests = 1_000_000

var namespacePattern = regexp.MustCompile(`^[a-z0-9*-]{1,63}$`)

// Check tells what is wrong with a rule, and makes its plan; fields are those of the
// entry.
func (r *Rule) Check() []chandler.Problem {
	var problems []chandler.Problem
	bad := func(field, hint, format string, args ...any) {
		problems = append(problems, *chandler.Problemf(chandler.CodeConfValue, field, hint, format, args...))
	}
	if r.Namespaces != nil && len(r.Namespaces) == 0 {
		bad("namespaces", "name one at least, or leave it out", "the list is empty")
	}
	for i, n := range r.Namespaces {
		if !namespacePattern.MatchString(n) {
			bad(fmt.Sprintf("namespaces[%d]", i), "write a namespace's name, * for any characters", "namespace %s is not valid", chandler.Quote(n))
		}
	}
	r.plan = chandler.RolloutPlan{Interval: DefaultInterval, OnFailure: chandler.OnFailureRollback, Margins: r.margins()}
	var p *chandler.Problem
	if len(r.Steps) == 0 {
		bad("steps", stepHint, "there are no steps")
	} else if r.plan.Steps, p = ParseSteps(r.Steps); p != nil {
		bad("steps", p.Hint, "%s", p.Message)
	}
	if r.Interval != nil {
		if r.plan.Interval, p = ParseInterval(r.Interval.String()); p != nil {
			bad("interval", p.Hint, "%s", p.Message)
		}
	}
	if r.OnFailure != "" {
		if r.plan.OnFailure, p = ParseOnFailure(string(r.OnFailure)); p != nil {
			bad("onFailure", p.Hint, "%s", p.Message)
		}
	}
	if n := r.Requests; n != nil && (*n < 1 || *n > maxRequests) {
		bad("requests", fmt.Sprintf("write a number from 1 to %d", maxRequests), "%d requests are out of range", *n)
	}
	if floor := r.Margins.LatencyFloor; floor != nil && (*floor < 0 || *floor > time.Minute) {
		bad("margins.latencyFloor", "write a time from 0s to 1m", "%v is out of range", *floor)
	}
	return problems
}

// margins are the default ones, but for what is written.
func (r *Rule) margins() chandler.Margins {
	m := DefaultMargins()
	if n := r.Requests; n != nil && *n > 0 {
		m.Requests = uint64(*n)
	}
	for _, part := range []struct {
		from *Part
		to   *float64
	}{{r.Margins.Success, &m.Success}, {r.Margins.Redirects, &m.Redirect}, {r.Margins.ClientErrors, &m.ClientError}, {r.Margins.ServerErrors, &m.ServerError}} {
		if part.from != nil {
			*part.to = float64(*part.from)
		}
	}
	if f := r.Margins.Latency; f != nil {
		m.Latency = float64(*f)
	}
	if d := r.Margins.LatencyFloor; d != nil {
		m.LatencyFloor = *d
	}
	return m
}

// Names tells whether a plugin is meant.
func (r *Rule) Names(p *chandler.Plugin) bool {
	named := len(r.Namespaces) == 0 || slices.ContainsFunc(r.Namespaces, func(pattern string) bool { return chandler.Glob(pattern, p.Namespace) })
	return named && chandler.HasLabels(p.Labels, r.Selector)
}

// Plan is what a rule says, once it was checked.
func (r *Rule) Plan() *chandler.RolloutPlan {
	plan := r.plan
	return &plan
}
