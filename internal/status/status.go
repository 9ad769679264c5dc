// Package status says what is true of a plugin: it joins the object, what the
// control plane resolved, and what the proxies report into conditions, counts
// and a line for every proxy. It is pure and reads no status back, except for
// the times at which conditions last changed.
//
// What it never does is to claim: a proxy counts as in force only when its own
// report says so of the very release that is the target.
package status

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"chandler.dev/chandler"
)

// Input is all that a status is derived from.
type Input struct {
	// Generation is the object's newest; Problems say why it was not taken.
	Generation int64
	Problems   []chandler.Problem
	Warnings   []chandler.Problem
	// Against is what the operator's policy has against Plugin.
	Against []chandler.Problem
	// Detached are the releases that are taken out because they are against the policy:
	// Target, that of the proxies that are not chosen, or both.
	Detached []Detached
	// Plugin is the last valid version; nil when there never was one.
	Plugin *chandler.Plugin
	// Target is the release that is being put in force; nil before the first.
	Target *chandler.Release
	// Meant is the release that the resource means, where that is another: it was taken
	// back, or is not to be.
	Meant   *chandler.Release
	Resolve Resolve
	// Rollout is where the plugin's rollout is; nil: Target is for everyone.
	Rollout *chandler.Rollout
	// Incomplete are releases that some proxies are to have and cannot be given.
	Incomplete []*chandler.Release
	// Denied: there is no release, and proxies refuse requests meanwhile.
	Denied bool
	// Withheld: what was not tried in the version of Envoy that a proxy runs is not
	// given to it.
	Withheld bool
	// Proxies are those that the plugin selects.
	Proxies []Proxy
	// Waypoints are connected proxies that the plugin means and that run no plugins;
	// WaypointField is where in the resource they are meant.
	Waypoints     []chandler.Node
	WaypointField string
	// Previous is the status before, for the times of transition; it may be nil.
	Previous *chandler.Status
	Now      time.Time
}

// Detached is a release that proxies are to have and for a reason have not.
type Detached struct {
	Release *chandler.Release
	Why     chandler.Problem
	// Whole: it is everyone's, and so nobody has anything; Chosen: it is that of the
	// chosen ones.
	Whole, Chosen bool
}

// String says what became of it, and why.
func (d Detached) String() string {
	what := "release " + d.Release.ID.Short()
	if d.Release.Generation > 0 {
		what = fmt.Sprintf("generation %d", d.Release.Generation)
	}
	whose := "the proxies that are not chosen"
	switch {
	case d.Whole:
		whose = "all proxies"
	case d.Chosen:
		whose = "the chosen proxies"
	}
	return fmt.Sprintf("%s is taken out of %s, as it is against the operator's policy: %s", what, whose, d.Why.Error())
}

// ofTarget gives why the target is taken out; nil: it is not.
func (in *Input) ofTarget() *Detached {
	for i := range in.Detached {
		if d := &in.Detached[i]; d.Whole || d.Chosen {
			return d
		}
	}
	return nil
}

// Resolve is where the control plane's own work on the plugin stands.
type Resolve struct {
	// Problem is that of the last try; nil when it went well or none was made.
	Problem *chandler.Problem
	Attempt uint32
	NextTry time.Time
}

// Proxy is a node that the plugin selects, with what it said of the plugin.
type Proxy struct {
	Node      chandler.Node
	Connected bool
	// State is nil before the node said anything.
	State *chandler.AttachmentState
	// Nothing: it is to have nothing of the plugin now. Wants is the release that it is
	// to have; nil: Input.Target.
	Nothing bool
	Wants   *chandler.Release
}

// wants is the release that a proxy is to have; nil: none.
func (p *Proxy) wants(in *Input) *chandler.Release {
	switch {
	case p.Nothing:
		return nil
	case p.Wants != nil:
		return p.Wants
	}
	return in.Target
}

const maxMessage = 1 << 10 // bytes of a condition's message

// Join derives the status.
func Join(in Input) chandler.Status {
	s := chandler.Status{
		ObservedGeneration: in.Generation,
		Release:            in.Target,
		Attempt:            in.Resolve.Attempt,
		NextTry:            in.Resolve.NextTry,
		Problems:           slices.Concat(in.Problems, in.Against),
		Warnings:           warnings(in),
		Rollout:            in.Rollout,
	}
	t := tally(in, &s)
	accepted := accepted(s.Problems)
	resolved := resolved(in)
	programmed := programmed(in, &s, t, accepted, resolved)
	for _, d := range in.Detached {
		if said := d.String(); !strings.Contains(programmed.Message, said) {
			programmed.Message += "; " + said
		}
	}
	for _, r := range in.Incomplete {
		if why := Incomplete(r); !strings.Contains(programmed.Message, why.Message) { // a rollout that waits for that says it
			programmed.Message += "; " + why.Error()
		}
	}
	s.Conditions = []chandler.Condition{accepted, resolved, programmed, ready(t, accepted, resolved, programmed)}
	for i := range s.Conditions {
		finish(&s.Conditions[i], in)
	}
	return s
}

// warnings adds what follows from the release.
func warnings(in Input) []chandler.Problem {
	all := slices.Clone(in.Warnings)
	if why := waypoints(in); why != nil {
		all = append(all, *why)
	}
	for _, r := range in.Incomplete {
		all = append(all, Incomplete(r))
	}
	if in.Target == nil {
		return all
	}
	if in.Target.Program.File != nil {
		all = append(all, chandler.Problem{
			Code:    chandler.CodeUnvetted,
			Field:   "spec.url",
			Message: "the module is a file on each proxy's machine, which the control plane has not seen",
			Hint:    "push it to a registry to have it checked before it reaches a proxy",
		})
	}
	if why := in.Target.SchemaUnusable(); why != "" {
		all = append(all, chandler.Problem{
			Code:    chandler.CodeSchemaUnusable,
			Field:   urlField(in.Target.Kind),
			Message: "the configuration is not judged by the schema that the module's artifact carries: " + why,
			Hint:    "push the module with a schema that can be used",
		})
	}
	if in.Plugin != nil && len(in.Plugin.Probes) > 0 && !slices.ContainsFunc(in.Target.Verdicts, func(v chandler.Verdict) bool { return v.Probed }) {
		all = append(all, chandler.Problem{
			Code:    chandler.CodeUnvetted,
			Field:   fmt.Sprintf("metadata.annotations[%q]", chandler.AnnotationProbe),
			Message: "the release that is assigned was not probed",
			Hint:    "have the control plane try plugins in an Envoy (chandler serve --envoy); probes count from the next change of spec on",
		})
	}
	return append(all, untried(in)...)
}

// waypoints tells of the waypoints that a plugin means; nil: there are none.
func waypoints(in Input) *chandler.Problem {
	if len(in.Waypoints) == 0 {
		return nil
	}
	first := chandler.Printable(slices.MinFunc(in.Waypoints, chandler.Node.Compare).ID(), 256)
	message := first + " is a waypoint, which runs no plugins"
	if n := len(in.Waypoints); n > 1 {
		message = fmt.Sprintf("%d of the proxies that it means are waypoints, which run no plugins: %s and others", n, first)
	}
	return chandler.Problemf(chandler.CodeUnsupportedTarget, in.WaypointField, chandler.HintUnsupportedTarget, "%s", message)
}

// unsupported tells why a plugin without a proxy can have none; nil: one may come.
func unsupported(in Input) *chandler.Problem {
	if why := waypoints(in); why != nil {
		return why
	}
	if in.Plugin == nil || len(in.Plugin.TargetRefs) == 0 {
		return nil
	}
	for _, r := range in.Plugin.TargetRefs {
		if r.Unsupported() == "" {
			return nil
		}
	}
	for i := range in.Warnings { // they have the field
		if in.Warnings[i].Code == chandler.CodeUnsupportedTarget {
			return &in.Warnings[i]
		}
	}
	return chandler.Problemf(chandler.CodeUnsupportedTarget, "spec.targetRefs", chandler.HintUnsupportedTarget, "%s", in.Plugin.TargetRefs[0].Unsupported())
}

// urlField is where a resource says where its module comes from.
func urlField(kind string) string {
	if kind == chandler.KindTrafficExtension {
		return "spec.wasm.url"
	}
	return "spec.url"
}

// untried warns of the versions of Envoy among the plugin's connected proxies in
// which nobody tried the release, where it was tried in an Envoy at all.
func untried(in Input) []chandler.Problem {
	tried := in.Target.TriedIn()
	lacking := map[string]int{}
	for _, p := range in.Proxies {
		if p.Connected && !in.Target.FitFor(p.Node.EnvoyVersion) {
			lacking[p.Node.EnvoyVersion]++
		}
	}
	if len(lacking) == 0 || len(tried) == 0 && !in.Withheld {
		return nil
	}
	var parts []string
	for _, version := range slices.Sorted(maps.Keys(lacking)) {
		shown := version
		if shown == "" {
			shown = "an unknown version"
		}
		runs := "run"
		if lacking[version] == 1 {
			runs = "runs"
		}
		parts = append(parts, fmt.Sprintf("not in %s, which %s %s", shown, proxies(lacking[version]), runs))
	}
	message := "tried in no Envoy; "
	if len(tried) > 0 {
		message = "tried in Envoy " + strings.Join(tried, ", ") + "; "
	}
	message += strings.Join(parts, ", ")
	if in.Withheld {
		message += "; they keep what they have"
	}
	return []chandler.Problem{{
		Code: chandler.CodeEnvoyUntried, Message: chandler.Printable(message, maxMessage),
		Hint: "name an Envoy of that version too (chandler serve --envoy)",
	}}
}

// counts is what the proxies' lines come to.
type counts struct {
	away, unmatched int
	failing         *chandler.ProxyStatus // the first one
	trapped         *chandler.ProxyStatus
	stopped         *chandler.ProxyStatus // without Envoy
	untried         int                   // to whom it is not given
}

// tally writes the lines of the proxies and counts. Proxies that are not
// connected, or have no listener for the plugin, are shown and not desired.
func tally(in Input, s *chandler.Status) counts {
	var t counts
	s.Proxies = slices.Grow(s.Proxies, len(in.Proxies))
	proxies := in.Proxies
	if byNode := func(a, b Proxy) int { return a.Node.Compare(b.Node) }; !slices.IsSortedFunc(proxies, byNode) {
		proxies = slices.SortedFunc(slices.Values(proxies), byNode)
	}
	for _, p := range proxies {
		s.Proxies = append(s.Proxies, line(in, p))
	}
	for i := range s.Proxies {
		p, wants := &s.Proxies[i], proxies[i].wants(&in)
		current := wants != nil && p.Release == wants.ID
		if p.Nothing = proxies[i].Nothing; wants != nil {
			p.Wanted = wants.ID
		}
		switch {
		case proxies[i].Nothing:
			continue // it says what it has all the same
		case !p.Connected:
			t.away++
			continue
		case p.State == chandler.StateUnmatched && current:
			t.unmatched++
			continue
		}
		s.Desired++
		if in.Withheld && wants != nil && !current && !wants.FitFor(p.EnvoyVersion) {
			t.untried++
		}
		switch {
		case !current:
		case p.Reason == chandler.CodeEnvoyDown:
			t.stopped = first(t.stopped, p)
		case p.State == chandler.StateInForce && p.InForce == wants.ID:
			s.InForce++
			if p.Reason == chandler.CodeVMTrap {
				t.trapped = first(t.trapped, p)
			}
		case p.State.Failing():
			s.Failed++
			t.failing = first(t.failing, p)
		}
	}
	return t
}

func first(have, p *chandler.ProxyStatus) *chandler.ProxyStatus {
	if have != nil {
		return have
	}
	return p
}

// line is what a proxy said; what it said of another plugin of the same name is
// nothing said.
func line(in Input, p Proxy) chandler.ProxyStatus {
	l := chandler.ProxyStatus{
		Node: p.Node.Name, Namespace: p.Node.Namespace, Connected: p.Connected,
		AgentVersion: p.Node.AgentVersion, EnvoyVersion: p.Node.EnvoyVersion,
	}
	if p.State != nil && (in.Plugin == nil || p.State.UID == in.Plugin.UID) {
		l.AttachmentState = *p.State
		return l
	}
	l.State = chandler.StatePending
	if in.Plugin != nil {
		l.Key, l.UID = in.Plugin.Key, in.Plugin.UID
	}
	return l
}

// accepted is False when the resource is not valid or not allowed.
func accepted(problems []chandler.Problem) chandler.Condition {
	c := chandler.Condition{Type: chandler.ConditionAccepted}
	switch len(problems) {
	case 0:
		c.Status, c.Reason, c.Message = chandler.True, chandler.CodeAccepted, "the resource is valid"
	case 1:
		c.Status, c.Reason, c.Message = chandler.False, problems[0].Code, problems[0].Error()
	default:
		var all []string
		for i := range problems {
			all = append(all, problems[i].Error())
		}
		c.Status, c.Reason, c.Message = chandler.False, chandler.CodeInvalid, strings.Join(all, "; ")
	}
	return c
}

func resolved(in Input) chandler.Condition {
	c := chandler.Condition{Type: chandler.ConditionResolvedRefs}
	meant := in.Meant
	if meant == nil {
		meant = in.Target
	}
	switch {
	case in.Plugin == nil:
		c.Status, c.Reason, c.Message = chandler.Unknown, chandler.CodeInvalid, "there is nothing to resolve before the resource is valid"
	case in.Resolve.Problem != nil:
		c.Status, c.Reason, c.Message = chandler.False, in.Resolve.Problem.Code, in.Resolve.Problem.Error()
	case meant != nil && meant.UID == in.Plugin.UID && meant.Generation == in.Plugin.Generation:
		c.Status, c.Reason, c.Message = chandler.True, chandler.CodeResolved, describe(meant)
	case len(in.Against) > 0:
		c.Status, c.Reason, c.Message = chandler.Unknown, in.Against[0].Code, "nothing is fetched of what the operator's policy does not allow"
	default:
		c.Status, c.Reason, c.Message = chandler.Unknown, chandler.CodeResolving, "the module is being resolved"
	}
	return c
}

func describe(r *chandler.Release) string {
	switch p := r.Program; {
	case p.Module != nil:
		return fmt.Sprintf("%s is module %s, %d bytes%s%s", r.ShownReference(), p.Module.Digest, p.Module.Size, judged(r)+vetted(r), signed(r))
	case p.File != nil:
		return fmt.Sprintf("file %s of each proxy's machine, not seen by the control plane", p.File.Path)
	}
	return "inline Lua" + vetted(r)
}

// signed says whose signatures counted.
func signed(r *chandler.Release) string {
	var by []string
	for _, v := range r.Verdicts {
		by = append(by, v.SignedBy...)
	}
	if len(by) == 0 {
		return ""
	}
	return ", signed by " + strings.Join(by, ", ")
}

// judged says what became of the schema that the artifact carries.
func judged(r *chandler.Release) string {
	switch why := r.SchemaUnusable(); {
	case why != "":
		return fmt.Sprintf(", with a schema that is of no use (%s)", chandler.Printable(why, 200))
	case r.Schema != nil:
		return ", configured as its schema has it"
	}
	return ""
}

// vetted says who tried it and found nothing against it.
func vetted(r *chandler.Release) string {
	said := ""
	if tried := r.TriedIn(); len(tried) > 0 {
		said = ", tried in Envoy " + strings.Join(tried, ", ")
	} else if slices.ContainsFunc(r.Verdicts, func(v chandler.Verdict) bool { return v.Judge == chandler.JudgeHost }) {
		said = ", tried in the Proxy-Wasm host and in no Envoy"
	}
	if slices.ContainsFunc(r.Verdicts, func(v chandler.Verdict) bool { return v.Weak }) {
		said += " (in a weaker sandbox)"
	}
	return said
}

// programmed is True only when the newest generation is in force on every
// connected proxy that it is for.
func programmed(in Input, s *chandler.Status, t counts, accepted, resolved chandler.Condition) chandler.Condition {
	c := chandler.Condition{Type: chandler.ConditionProgrammed, Status: chandler.False}
	if accepted.Status != chandler.True || resolved.Status != chandler.True {
		before := accepted
		if accepted.Status == chandler.True {
			before = resolved
		}
		c.Reason = before.Reason
		switch {
		case in.ofTarget() != nil:
			c.Message = in.ofTarget().String()
		case in.Target != nil:
			c.Message = fmt.Sprintf("generation %d stays assigned, in force on %d of %s", in.Target.Generation, s.InForce, proxies(s.Desired))
		case in.Denied:
			c.Message = "there is no release yet; requests are refused meanwhile"
		default:
			c.Message = "there is no release yet; proxies are as they were"
		}
		return c
	}
	if out := in.ofTarget(); out != nil {
		c.Reason, c.Message = out.Why.Code, out.String()
		return c
	}
	share := fmt.Sprintf("in force on %d of %s", s.InForce, proxies(s.Desired))
	switch why, said := steered(in.Rollout); {
	case why != "":
		c.Reason, c.Message = why, said+"; "+share
		if t.failing != nil {
			c.Message += "; " + tell(t.failing)
		}
	case s.Desired == 0 && t.unmatched > 0:
		c.Status, c.Reason, c.Message = chandler.Unknown, chandler.CodeNoListener, fmt.Sprintf("%s selected, with no listener that the plugin matches", proxies(t.unmatched))
	case s.Desired == 0 && unsupported(in) != nil:
		c.Reason, c.Message = chandler.CodeUnsupportedTarget, unsupported(in).Error()
	case s.Desired == 0:
		c.Status, c.Reason, c.Message = chandler.Unknown, chandler.CodeNoProxies, "no connected proxy is selected"
	case s.InForce == s.Desired:
		c.Status, c.Reason, c.Message = chandler.True, chandler.CodeProgrammed, "in force on "+All(s.Desired)
	case t.failing != nil:
		c.Reason, c.Message = reason(t.failing), share+"; "+tell(t.failing)
	case t.stopped != nil:
		c.Reason, c.Message = chandler.CodeEnvoyDown, share+"; "+tell(t.stopped)
	case t.untried > 0:
		c.Reason, c.Message = chandler.CodeEnvoyUntried, fmt.Sprintf("%s; not given to %s, in whose version of Envoy nobody tried it", share, proxies(t.untried))
	default:
		c.Reason, c.Message = chandler.CodeProgressing, share
	}
	if t.away > 0 {
		c.Message += fmt.Sprintf("; %s disconnected", proxies(t.away))
	}
	return c
}

// All writes of all the proxies that a plugin is for, how many these are.
func All(n int) string {
	if n == 1 {
		return "the 1 proxy it is for"
	}
	return "all " + proxies(n)
}

func proxies(n int) string { return chandler.Count(n, "proxy", "proxies") }

// reason of a failing proxy; an agent that gives none failed all the same.
func reason(p *chandler.ProxyStatus) chandler.Code {
	switch {
	case p.Reason != "":
		return p.Reason
	case p.State == chandler.StateRejected:
		return chandler.CodeRejected
	}
	return chandler.CodeFetchFailed
}

func tell(p *chandler.ProxyStatus) string {
	b := fmt.Sprintf("%s/%s: %s", p.Namespace, p.Node, p.Message)
	switch {
	case p.InForce == p.Release:
	case p.InForce != "":
		b += fmt.Sprintf(" (release %s stays in force there)", p.InForce.Short())
	case p.StandIn == chandler.StandInDeny:
		b += " (requests are refused there)"
	case p.StandIn == chandler.StandInPass:
		b += " (left out there)"
	}
	return b
}

// ready sums up: the first condition that is False, else the first that is
// Unknown, else it is True.
func ready(t counts, conditions ...chandler.Condition) chandler.Condition {
	c := chandler.Condition{
		Type: chandler.ConditionReady, Status: chandler.True, Reason: chandler.CodeReady,
		Message: conditions[len(conditions)-1].Message,
	}
	for _, want := range []chandler.ConditionStatus{chandler.False, chandler.Unknown} {
		for _, o := range conditions {
			if o.Status == want {
				c.Status, c.Reason, c.Message = o.Status, o.Reason, o.Message
				return c
			}
		}
	}
	if t.trapped != nil {
		c.Status, c.Reason, c.Message = chandler.False, chandler.CodeVMTrap, "faults while serving; "+tell(t.trapped)
	}
	return c
}

// finish bounds the message and dates the condition: a time of transition is
// kept as long as the status is the same.
func finish(c *chandler.Condition, in Input) {
	c.Message = chandler.Printable(c.Message, maxMessage)
	c.ObservedGeneration = in.Generation
	c.LastTransition = in.Now
	if in.Previous == nil {
		return
	}
	for _, p := range in.Previous.Conditions {
		if p.Type == c.Type && p.Status == c.Status {
			c.LastTransition = p.LastTransition
		}
	}
}
