package dashboard

import (
	"cmp"
	"fmt"
	"html/template"
	"slices"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
)

// Pages of rollouts: that of all, and that of one, with its steps and gates.

func (d *dashboard) rollouts(v *view) (string, string, any, error) {
	type content struct{ Under, Others []*plugin }
	var c content
	for _, p := range v.plugins {
		switch {
		case p.Rollout == nil:
		case p.Under(), p.Rollout.State == chandler.RolloutDegraded, p.Rollout.Pinned, len(p.Rollout.Disabled) > 0:
			c.Under = append(c.Under, p)
		default:
			c.Others = append(c.Others, p)
		}
	}
	return "rollouts", "Rollouts", c, nil
}

// step is a step of a plan as it is drawn.
type step struct {
	Word, Class, Says string
	At                bool
}

// stepWord writes a step as the annotation has it, but for a bare number.
func stepWord(s chandler.RolloutStep) string {
	if s.Count > 0 {
		return plural(s.Count, "proxy", "proxies")
	}
	return s.String()
}

// steps are those of the plan, with where the rollout is.
func steps(r *chandler.Rollout) []step {
	if r.Plan == nil {
		return nil
	}
	var all []step
	for i, s := range r.Plan.Steps {
		one := step{Word: stepWord(s), Class: "later", Says: "not yet"}
		switch {
		case i < r.Step || r.State == chandler.RolloutHealthy:
			one.Class, one.Says = "done", "done"
		case i == r.Step && r.State == chandler.RolloutPaused:
			one.Class, one.Says, one.At = "paused", "paused here", true
		case i == r.Step && r.State == chandler.RolloutDegraded:
			one.Class, one.Says, one.At = "back", "taken back here", true
		case i == r.Step:
			one.Class, one.Says, one.At = "now", "now", true
		}
		all = append(all, one)
	}
	return all
}

// StepNow says where a rollout is, in words.
func (p *plugin) StepNow() string {
	r := p.Rollout
	if r == nil || r.Plan == nil || !p.Under() {
		return ""
	}
	n := min(r.Step, len(r.Plan.Steps)-1)
	return fmt.Sprintf("step %d of %d, %s", n+1, len(r.Plan.Steps), stepWord(r.Plan.Steps[n]))
}

// gate is a measure as it is drawn.
type gate struct {
	chandler.Measure
	Word, Class            string
	At, Beside, Past, Most string // of the measure, for people; empty: there is none
	Bar                    template.HTML
}

// gateWords says what each gate is about.
func gateWords(g chandler.Gate) string {
	switch g {
	case chandler.GateInForce:
		return "In force on all that are chosen"
	case chandler.GateRejections:
		return "Rejections and failed fetches"
	case chandler.GateTraps:
		return "Faults of the plugin, and reloads"
	case chandler.GateSuccess:
		return "Share of 2xx"
	case chandler.GateRedirect:
		return "Share of 3xx"
	case chandler.GateClientError:
		return "Share of 4xx"
	case chandler.GateServerError:
		return "Share of 5xx"
	case chandler.GateLatency:
		return "Latency, p99"
	}
	return string(g)
}

func gates(r *chandler.Rollout) []gate {
	var all []gate
	for _, m := range r.Gates {
		g := gate{Measure: m, Word: gateWords(m.Gate), Class: strings.ToLower(string(m.Result))}
		compared := false
		write := func(f float64) string { return number(int(f)) }
		switch m.Gate {
		case chandler.GateSuccess, chandler.GateRedirect, chandler.GateClientError, chandler.GateServerError:
			write, compared = func(f float64) string { return fmt.Sprintf("%.2f %%", f*100) }, true
		case chandler.GateLatency:
			write, compared = milliseconds, true
		}
		g.At, g.Most = write(m.Chosen), write(m.Limit)
		if m.HasOthers {
			g.Beside = write(m.Others)
		}
		if m.HasBefore {
			g.Past = write(m.Before)
		}
		if compared && m.Result != chandler.GateWaiting {
			g.Bar = gauge(m)
		}
		all = append(all, g)
	}
	return all
}

func milliseconds(s float64) string {
	switch ms := s * 1000; {
	case ms >= 10_000:
		return fmt.Sprintf("%.1f s", s)
	case ms >= 100:
		return fmt.Sprintf("%.0f ms", ms)
	default:
		return fmt.Sprintf("%.1f ms", ms)
	}
}

// gauge draws what was measured on the chosen proxies as a bar, what it is compared
// with as strokes, and the limit as a line across. The numbers stand beside it.
func gauge(m chandler.Measure) template.HTML {
	const width, height = 160, 18
	most := max(m.Chosen, m.Limit)
	if m.HasOthers {
		most = max(most, m.Others)
	}
	if m.HasBefore {
		most = max(most, m.Before)
	}
	if most <= 0 {
		most = 1
	}
	at := func(f float64) float64 { return min(max(f/(most*1.1), 0), 1) * width }
	class := "m-force"
	if m.Result == chandler.GateFailed {
		class = "m-failed"
	} else if m.Result == chandler.GateInconclusive {
		class = "m-way-solid"
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="gauge" width="%d" height="%d" viewBox="0 0 %d %d" aria-hidden="true"><rect class="ground" y="4" width="%d" height="10"/>`, width, height, width, height, width)
	fmt.Fprintf(&b, `<rect class="%s" y="4" width="%.1f" height="10"/>`, class, at(m.Chosen))
	if m.HasOthers {
		fmt.Fprintf(&b, `<path class="others" d="M%.1f 2v14"/>`, at(m.Others))
	}
	if m.HasBefore {
		fmt.Fprintf(&b, `<path class="before" d="M%.1f 2v14"/>`, at(m.Before))
	}
	fmt.Fprintf(&b, `<path class="limit" d="M%.1f 0v18"/></svg>`, at(m.Limit))
	return template.HTML(b.String())
}

// The verbs that are about proxies, not steps, and those that forms ask more for.
const (
	disable = "disable"
	enable  = "enable"
	undo    = string(control.Undo)
)

// action is a button. Verb is its word in addresses, and order what it is in the
// control plane, if that is an order about steps.
type action struct {
	Verb    string
	order   control.Verb
	Word    string
	Says    string // what will come of it
	Grave   bool   // it takes something away from requests
	Address string
}

// actions are what makes sense of a plugin now.
func actions(p *plugin) []action {
	r := p.Rollout
	if r == nil {
		r = &chandler.Rollout{Key: p.Key}
	}
	before := "the release before, " + cmp.Or(r.From.Short(), "none")
	has := func(states ...chandler.RolloutState) bool { return slices.Contains(states, r.State) }
	under := p.Under()
	all := []struct {
		action
		when bool
	}{
		{action{Verb: "promote", order: control.Promote, Word: "Promote", Says: "It goes on to the next step now, whatever its gates say."}, under},
		{action{Verb: "promote-full", order: control.PromoteFull, Word: "Promote fully", Says: "All proxies that the plugin selects get the new release now, whatever the gates say."}, under},
		{action{Verb: "pause", order: control.Pause, Word: "Pause", Says: "It stays where it is until somebody resumes it."}, under && has(chandler.RolloutProgressing)},
		{action{Verb: "resume", order: control.Resume, Word: "Resume", Says: "It goes on by its gates from where it is."}, under && has(chandler.RolloutPaused)},
		{action{Verb: "abort", order: control.Abort, Word: "Abort", Grave: true, Says: "The proxies that have the new release go back to " + before + ". The resource stays as it is."}, under},
		{action{Verb: "retry", order: control.Retry, Word: "Retry", Says: "What was taken back is rolled out once more, from the first step."}, has(chandler.RolloutDegraded)},
		{action{Verb: undo, order: control.Undo, Word: "Undo", Grave: true, Says: "All proxies go back to an earlier release, and stay there until the resource changes or the pin is lifted."}, !under && !p.Gone && len(r.History) > 1},
		{action{Verb: "unpin", order: control.Unpin, Word: "Unpin", Says: "What the resource says is rolled out again."}, r.Pinned},
		{action{Verb: disable, Word: "Disable", Grave: true, Says: "The plugin is taken out, at once, of all its proxies or of some. Requests pass without it. It holds until somebody enables it again."}, !p.DisabledEverywhere()},
		{action{Verb: enable, Word: "Enable", Says: "The plugin is put back where it was taken out."}, len(r.Disabled) > 0},
	}
	var out []action
	for _, a := range all {
		if a.when {
			a.Address = rolloutPath(p.Key) + "/" + a.Verb
			out = append(out, a.action)
		}
	}
	return out
}

type rolloutContent struct {
	*plugin
	Steps    []step
	Gates    []gate
	Unseen   string // why there are no gates; empty: there are, or are to be none
	Margins  []string
	Actions  []action
	MaySteer bool
	History  []past
	Events   []event
}

func (d *dashboard) rollout(v *view) (string, string, any, error) {
	key := v.key()
	p := v.byKey[key]
	if p == nil {
		return "", "", nil, missing{"There is no such plugin, or you may not see it."}
	}
	c := rolloutContent{plugin: p, MaySteer: d.cfg.Rollouts != nil && v.sight.May(d.cfg.Steers, key.Namespace), History: p.history()}
	if r := p.Rollout; r != nil {
		c.Steps, c.Gates = steps(r), gates(r)
		if p.Under() && len(c.Gates) == 0 {
			c.Unseen = cmp.Or(v.partial, "nothing was measured in this step yet")
		}
	}
	if c.MaySteer {
		c.Actions = actions(p)
	}
	c.Events = v.latest(maxRecent, func(e *chandler.Event) bool { return e.Key == key })
	return "rollout", "Rollout of " + key.Name, c, nil
}
