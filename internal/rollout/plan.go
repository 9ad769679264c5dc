package rollout

import (
	"fmt"
	"maps"
	"regexp"
	"strconv"
	"strings"
	"time"

	"chandler.dev/chandler"
)

// Bounds of a plan.
const (
	MaxSteps        = 20
	MinInterval     = time.Second
	MaxInterval     = 7 * 24 * time.Hour
	DefaultInterval = time.Minute

	maxText   = 4 << 10 // bytes of an annotation
	maxCount  = 1_000_000
	maxLabels = 8 // of one step
)

var (
	labelKey   = regexp.MustCompile(`^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$`)
	labelValue = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$`)
)

// DefaultMargins are those of a plan that says nothing else.
func DefaultMargins() chandler.Margins {
	return chandler.Margins{
		Requests: 100,
		Success:  0.05, Redirect: 0.05, ClientError: 0.05, ServerError: 0.01,
		Latency: 1.5, LatencyFloor: 20 * time.Millisecond,
	}
}

// Parse reads the annotations that say how a change of a plugin comes to proxies; nil:
// they do not, or are wrong.
func Parse(annotations map[string]string) (*chandler.RolloutPlan, []chandler.Problem) {
	var problems []chandler.Problem
	wrong := func(annotation string, p *chandler.Problem) {
		if p != nil {
			p.Field = `metadata.annotations["` + annotation + `"]`
			problems = append(problems, *p)
		}
	}
	plan := chandler.RolloutPlan{Interval: DefaultInterval, OnFailure: chandler.OnFailureRollback, Margins: DefaultMargins()}
	var p *chandler.Problem
	text, given := annotations[chandler.AnnotationRollout]
	if given {
		if len(text) > maxText {
			p = chandler.Problemf(chandler.CodeSpecValue, "", "write fewer steps", "%d bytes, limit %d", len(text), maxText)
		} else {
			plan.Steps, p = ParseSteps(strings.Split(text, ","))
		}
		wrong(chandler.AnnotationRollout, p)
	}
	if text, ok := annotations[chandler.AnnotationRolloutInterval]; ok {
		plan.Interval, p = ParseInterval(text)
		wrong(chandler.AnnotationRolloutInterval, p)
	}
	if text, ok := annotations[chandler.AnnotationRolloutOnFailure]; ok {
		plan.OnFailure, p = ParseOnFailure(text)
		wrong(chandler.AnnotationRolloutOnFailure, p)
	}
	for _, annotation := range []string{chandler.AnnotationRolloutInterval, chandler.AnnotationRolloutOnFailure} {
		if _, ok := annotations[annotation]; ok && !given {
			wrong(annotation, chandler.Problemf(chandler.CodeSpecValue, "", `write the steps, for instance "10%,50%,100%", or leave this out`,
				"it has no meaning without %s", chandler.AnnotationRollout))
		}
	}
	if !given || len(problems) > 0 {
		return nil, problems
	}
	return &plan, nil
}

// ParseInterval reads how long a step is watched.
func ParseInterval(s string) (time.Duration, *chandler.Problem) {
	d, err := time.ParseDuration(strings.TrimSpace(s))
	if err != nil || d < MinInterval || d > MaxInterval {
		return 0, chandler.Problemf(chandler.CodeSpecValue, "", `write a time from 1s to 168h, for instance "5m"`, "interval %s is none", chandler.Quote(s))
	}
	return d, nil
}

// ParseOnFailure reads what becomes of a rollout whose gate fails.
func ParseOnFailure(s string) (chandler.OnFailure, *chandler.Problem) {
	switch f := chandler.OnFailure(strings.TrimSpace(s)); f {
	case chandler.OnFailureRollback, chandler.OnFailurePause:
		return f, nil
	}
	return "", chandler.Problemf(chandler.CodeSpecEnum, "", "write rollback or pause", "%s is unknown", chandler.Quote(s))
}

// ParseSteps reads steps. They grow, and the last one is everyone, which need not be
// written.
func ParseSteps(written []string) ([]chandler.RolloutStep, *chandler.Problem) {
	var steps []chandler.RolloutStep
	var percent, number int
	for _, w := range written {
		if len(steps) == MaxSteps {
			return nil, tooMany()
		}
		step, p := parseStep(strings.TrimSpace(w))
		if p != nil {
			return nil, p
		}
		was := ""
		switch {
		case percent == 100:
			was = "100%"
		case step.Percent > 0 && step.Percent <= percent:
			was = fmt.Sprintf("%d%%", percent)
		case step.Count > 0 && step.Count <= number:
			was = strconv.Itoa(number)
		}
		for _, earlier := range steps {
			if len(step.Labels) > 0 && maps.Equal(earlier.Labels, step.Labels) {
				was = earlier.String()
			}
		}
		if was != "" {
			return nil, chandler.Problemf(chandler.CodeSpecValue, "", "write steps of which each has more proxies than the one before",
				"step %s comes after %s and adds nobody", chandler.Quote(step.String()), was)
		}
		percent, number = max(percent, step.Percent), max(number, step.Count)
		steps = append(steps, step)
	}
	if percent < 100 {
		if len(steps) == MaxSteps {
			return nil, tooMany()
		}
		steps = append(steps, chandler.RolloutStep{Percent: 100})
	}
	return steps, nil
}

func tooMany() *chandler.Problem {
	return chandler.Problemf(chandler.CodeSpecValue, "", "write fewer", "more than %d steps, the last one being everyone", MaxSteps)
}

const stepHint = `write a part of the proxies ("10%"), a number of them ("2") or labels that they have ("canary=true", "canary=true+zone=a")`

func parseStep(s string) (chandler.RolloutStep, *chandler.Problem) {
	wrong := func(why string) (chandler.RolloutStep, *chandler.Problem) {
		return chandler.RolloutStep{}, chandler.Problemf(chandler.CodeSpecValue, "", stepHint, "step %s %s", chandler.Quote(s), why)
	}
	if strings.Contains(s, "=") {
		labels, why := parseLabels(s)
		if why != "" {
			return wrong(why)
		}
		return chandler.RolloutStep{Labels: labels}, nil
	}
	digits, percent := strings.CutSuffix(s, "%")
	n, err := strconv.ParseUint(digits, 10, 32)
	switch {
	case err != nil:
		return wrong("is neither a part, a number nor labels")
	case percent && (n < 1 || n > 100):
		return wrong("is not from 1% to 100%")
	case percent:
		return chandler.RolloutStep{Percent: int(n)}, nil
	case n < 1 || n > maxCount:
		return wrong(fmt.Sprintf("is not from 1 to %d", maxCount))
	}
	return chandler.RolloutStep{Count: int(n)}, nil
}

func parseLabels(s string) (labels map[string]string, wrong string) {
	labels = map[string]string{}
	for _, pair := range strings.Split(s, "+") {
		key, value, ok := strings.Cut(pair, "=")
		_, twice := labels[key]
		switch {
		case !ok || !labelKey.MatchString(key) || !labelValue.MatchString(value):
			return nil, "has no label and its value at " + chandler.Quote(pair)
		case twice:
			return nil, "has label " + chandler.Quote(key) + " twice"
		case len(labels) == maxLabels:
			return nil, fmt.Sprintf("has more than %d labels", maxLabels)
		}
		labels[key] = value
	}
	return labels, ""
}
