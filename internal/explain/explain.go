// Package explain says why a plugin is or is not on a proxy, and what a change of a
// resource would do to proxies. It is pure: it asks the very rules by which plugins are
// assigned (package assign) and find their slots (package attach), of what it is given.
//
// It decides nothing: what comes to proxies is the control plane's and the agents' matter.
package explain

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/assign"
	"chandler.dev/chandler/internal/attach"
)

// Input is all that decides whether a plugin is on a proxy.
type Input struct {
	Key chandler.Key
	// Node is the proxy's "namespace/name".
	Node string

	Object *Object // nil: there is no such plugin
	Proxy  *Proxy  // nil: no such proxy is known
	// Root is the namespace whose plugins are for all; empty: none.
	Root string
	// Withhold: releases are kept from Envoys of versions in which nobody tried them.
	Withhold bool
	// Rollout is where the plugin's rollout is, and Chosen whether it has come to the
	// proxy; nil: a change goes to everyone at once.
	Rollout *chandler.Rollout
	Chosen  bool
}

// Object is a plugin with what became of it.
type Object struct {
	Generation int64
	// Plugin is the last valid one; nil: there never was one.
	Plugin *chandler.Plugin
	// Problems are of the newest text, and Against is what the operator's policy has
	// against Plugin.
	Problems, Against []chandler.Problem
	// Detached are releases that proxies are to have and that are taken out, with what the
	// policy has against them. Denied: there is no release, and requests are refused meanwhile.
	Detached map[chandler.ReleaseID]string
	Denied   bool
	// Resolved is the condition ResolvedRefs.
	Resolved chandler.Condition
	// Release is the newest; nil: none. History has those before it.
	Release *chandler.Release
	History []*chandler.Release
}

// Proxy is a proxy with what it says.
type Proxy struct {
	chandler.Node
	Connected bool
	Since     time.Time
	Facts     *chandler.Facts // nil: not told
	// State is what it says of the plugin; nil: nothing.
	State *chandler.AttachmentState
}

// Check is one of the things that decide.
type Check struct {
	Name    string
	Holds   bool
	Message string
}

// Answer is why a plugin is or is not on a proxy.
type Answer struct {
	// Verdict is one sentence.
	Verdict string
	// AsWanted: it is as the resource wants it to be, on the proxy or not.
	AsWanted bool
	// Checks are in the order in which they decide, to the first that does not hold.
	Checks []Check
}

// Explain says why.
func Explain(in Input) Answer {
	r := &reasoning{Input: in}
	for _, step := range steps() {
		c := Check{Name: step.name, Holds: true}
		var applies bool
		if applies, c.Message = step.look(r, &c); !applies {
			continue
		}
		c.Message = chandler.Printable(c.Message, maxMessage)
		r.checks = append(r.checks, c)
		if !c.Holds {
			return r.answer(c.Message, step.wanted || r.patient)
		}
	}
	why := "since " + stamp(in.Proxy.State.Since)
	if ro := in.Rollout; ro != nil && ro.Pinned {
		return r.answer("it is pinned to that release by an undo, until the spec changes or somebody unpins it", false)
	}
	return r.answer(why, true)
}

const maxMessage = 1 << 10 // bytes

// reasoning is an explanation as far as it has got.
type reasoning struct {
	Input
	checks []Check
	// given is what the proxy is to have, once it is known.
	given *chandler.Release
	// patient: it is only a matter of its turn.
	patient bool
}

// step is one check. look tells whether it is of any use here, and what it saw; it
// takes Holds back where it does not. wanted: when it does not hold, the plugin is not
// meant to be there.
type step struct {
	name   string
	wanted bool
	look   func(*reasoning, *Check) (applies bool, message string)
}

func steps() []step {
	return []step{
		{"exists", false, (*reasoning).exists},
		{"accepted", false, (*reasoning).accepted},
		{"known", false, (*reasoning).known},
		{"namespace", true, (*reasoning).namespace},
		{"selector", true, (*reasoning).selector},
		{"targetRefs", true, (*reasoning).targets},
		{"supported", false, (*reasoning).supported},
		{"policy", false, (*reasoning).policy},
		{"resolved", false, (*reasoning).resolved},
		{"disabled", false, (*reasoning).disabled},
		{"rollout", false, (*reasoning).rollout},
		{"envoy version", false, (*reasoning).tried},
		{"connected", false, (*reasoning).connected},
		{"bypassed", false, (*reasoning).bypassed},
		{"features", false, (*reasoning).features},
		{"match", true, (*reasoning).match},
		{"told", false, (*reasoning).told},
		{"fetched", false, (*reasoning).fetched},
		{"acknowledged", false, (*reasoning).acknowledged},
		{"in force", false, (*reasoning).inForce},
	}
}

// no takes Holds back.
func no(c *Check, format string, args ...any) (bool, string) {
	c.Holds = false
	return true, fmt.Sprintf(format, args...)
}

func (r *reasoning) answer(why string, wanted bool) Answer {
	a := Answer{Checks: r.checks, AsWanted: wanted}
	there := "is not on"
	if r.Proxy != nil && r.Proxy.State != nil {
		s := r.Proxy.State
		switch {
		case s.InForce != "":
			there = fmt.Sprintf("is in force (release %s) on", s.InForce.Short())
			last := r.checks[len(r.checks)-1]
			a.AsWanted = wanted && (last.Holds || r.patient) // it should not be there any more
		case s.StandIn == chandler.StandInDeny:
			there = "has requests refused in its place on"
		}
	}
	a.Verdict = fmt.Sprintf("%s %s/%s %s %s: %s", r.Key.Kind, r.Key.Namespace, r.Key.Name, there, r.Node, why)
	return a
}

func (r *reasoning) exists(c *Check) (bool, string) {
	if r.Object == nil {
		return no(c, "there is no such plugin")
	}
	return true, fmt.Sprintf("generation %d", r.Object.Generation)
}

func (r *reasoning) accepted(c *Check) (bool, string) {
	o := r.Object
	switch {
	case len(o.Problems) > 0 && o.Plugin != nil:
		return no(c, "generation %d is not valid, so generation %d counts: %s", o.Generation, o.Plugin.Generation, o.Problems[0].Error())
	case len(o.Problems) > 0:
		return no(c, "generation %d is not valid, and none was before: %s", o.Generation, o.Problems[0].Error())
	case o.Plugin == nil:
		return no(c, "no generation was valid yet")
	}
	return true, "the resource is valid"
}

func (r *reasoning) known(c *Check) (bool, string) {
	if r.Proxy == nil {
		return no(c, "no proxy of that name is known: its agent never connected, or is away for more than a day")
	}
	return true, "its agent says it is Envoy " + orUnknown(r.Proxy.EnvoyVersion)
}

func (r *reasoning) namespace(c *Check) (bool, string) {
	switch p := r.Object.Plugin; {
	case p.Namespace == r.Proxy.Namespace:
		return true, "plugin and proxy are both in " + p.Namespace
	case r.Root != "" && p.Namespace == r.Root:
		return true, p.Namespace + " is the root namespace, whose plugins are for proxies of all"
	case r.Root == "":
		return no(c, "a plugin of namespace %s is for proxies of that namespace, and there is no root namespace", p.Namespace)
	default:
		return no(c, "a plugin of namespace %s is for proxies of that namespace; only those of %s are for all", p.Namespace, r.Root)
	}
}

func (r *reasoning) selector(c *Check) (bool, string) {
	p := r.Object.Plugin
	if len(p.TargetRefs) > 0 {
		return false, ""
	}
	if len(p.Selector) == 0 {
		return true, "without a selector it is for every proxy in scope"
	}
	if assign.Means(p, r.Proxy.Node, r.Root) {
		return true, "the proxy has " + labels(p.Selector)
	}
	var lacks []string
	for _, k := range slices.Sorted(maps.Keys(p.Selector)) {
		switch got, ok := r.Proxy.Labels[k]; {
		case !ok:
			lacks = append(lacks, fmt.Sprintf("the proxy has no label %s, which has to be %s", k, chandler.Quote(p.Selector[k])))
		case got != p.Selector[k]:
			lacks = append(lacks, fmt.Sprintf("the proxy's label %s is %s, and has to be %s", k, chandler.Quote(got), chandler.Quote(p.Selector[k])))
		}
	}
	return no(c, "%s", strings.Join(lacks, "; "))
}

func (r *reasoning) targets(c *Check) (bool, string) {
	p := r.Object.Plugin
	if len(p.TargetRefs) == 0 {
		return false, ""
	}
	var all []string
	for _, t := range p.TargetRefs {
		all = append(all, t.Kind+" "+t.Name)
	}
	if assign.Means(p, r.Proxy.Node, r.Root) {
		return true, "the proxy declares to be one of " + strings.Join(all, ", ")
	}
	own := "it declares none"
	if l := assign.Declares(r.Proxy.Node); len(l) > 0 {
		own = "it declares " + labels(l)
	}
	return no(c, "the proxy is none of %s in namespace %s: %s", strings.Join(all, ", "), p.Namespace, own)
}

func (r *reasoning) supported(c *Check) (bool, string) {
	if r.Proxy.Waypoint() {
		return no(c, "%s: the proxy is a waypoint, which runs no plugins", chandler.CodeUnsupportedTarget)
	}
	return false, ""
}

func (r *reasoning) policy(c *Check) (bool, string) {
	o := r.Object
	if len(o.Against) > 0 {
		return no(c, "it is against the operator's policy: %s", o.Against[0].Error())
	}
	var id chandler.ReleaseID
	switch {
	case r.Rollout != nil && !r.Chosen:
		id = r.Rollout.From
	case o.Release != nil:
		id = o.Release.ID
	}
	if why, ok := o.Detached[id]; ok {
		return no(c, "release %s, which the proxy would have, is against the operator's policy, so it is taken out: %s", short(id), why)
	}
	return true, "nothing is against it"
}

func (r *reasoning) resolved(c *Check) (bool, string) {
	o := r.Object
	if o.Resolved.Status == chandler.True && o.Release != nil {
		r.given = o.Release
		return true, fmt.Sprintf("release %s: %s", o.Release.ID.Short(), o.Resolved.Message)
	}
	message := o.Resolved.Message
	switch {
	case o.Release != nil:
		message += fmt.Sprintf("; release %s of generation %d stays", o.Release.ID.Short(), o.Release.Generation)
	case o.Denied:
		message += "; requests are refused meanwhile"
	}
	return no(c, "%s: %s", o.Resolved.Reason, message)
}

func (r *reasoning) disabled(c *Check) (bool, string) {
	if r.Rollout == nil {
		return false, ""
	}
	for i := range r.Rollout.Disabled {
		if d := &r.Rollout.Disabled[i]; d.Holds(r.Proxy.Node) {
			by := d.By
			if by == "" {
				by = "somebody"
			}
			return no(c, "disabled by %s at %s: %s", by, stamp(d.At), d.Reason)
		}
	}
	return true, "no order to disable it is about this proxy"
}

func (r *reasoning) rollout(c *Check) (bool, string) {
	ro := r.Rollout
	if ro == nil {
		return false, ""
	}
	for _, one := range append(slices.Clone(r.Object.History), r.Object.Release) {
		if want := ro.To; one != nil && (r.Chosen && one.ID == want || !r.Chosen && one.ID == ro.From) {
			r.given = one
		}
	}
	where := fmt.Sprintf("release %s is for everyone", short(ro.To))
	if ro.Plan != nil && ro.Step < len(ro.Plan.Steps) {
		where = fmt.Sprintf("step %d of %d to release %s", ro.Step+1, len(ro.Plan.Steps), short(ro.To))
	}
	switch {
	case ro.State == chandler.RolloutDegraded:
		return no(c, "a release was taken back: %s; the proxy has release %s", ro.Message, short(r.givenID()))
	case !r.Chosen && ro.State == chandler.RolloutPaused:
		return no(c, "paused at %s, which has not come to this proxy; it keeps release %s: %s", where, short(ro.From), ro.Message)
	case !r.Chosen && ro.From != ro.To:
		r.patient = true
		return no(c, "%s has not come to this proxy; it keeps release %s", where, short(ro.From))
	case ro.To == "":
		r.patient = true
		return no(c, "it is being taken out")
	}
	return true, where
}

func (r *reasoning) givenID() chandler.ReleaseID {
	if r.given == nil {
		return ""
	}
	return r.given.ID
}

func (r *reasoning) tried(c *Check) (bool, string) {
	if !r.Withhold {
		return false, ""
	}
	if r.given.FitFor(r.Proxy.EnvoyVersion) {
		return true, "it was tried in Envoy " + orUnknown(r.Proxy.EnvoyVersion)
	}
	return no(c, "nobody tried it in Envoy %s, so the proxy keeps what it has", orUnknown(r.Proxy.EnvoyVersion))
}

func (r *reasoning) connected(c *Check) (bool, string) {
	if !r.Proxy.Connected {
		return no(c, "its agent is not connected since %s; this is the last it said", stamp(r.Proxy.Since))
	}
	return true, "since " + stamp(r.Proxy.Since)
}

func (r *reasoning) bypassed(c *Check) (bool, string) {
	if r.Proxy.Facts == nil {
		return false, ""
	}
	if b := r.Proxy.Facts.Bypass(r.Key); b != nil {
		return no(c, "taken out on the machine itself at %s: %s", stamp(b.At), b.Reason)
	}
	return true, "nobody took it out on the machine"
}

// attachment is what the proxy is told.
func (r *reasoning) attachment() chandler.Attachment {
	return assign.Attach(assign.Candidate{Plugin: r.Object.Plugin, Release: r.given})
}

func (r *reasoning) features(c *Check) (bool, string) {
	a := r.attachment()
	for _, f := range a.Requires {
		if !slices.Contains(r.Proxy.Features, f) {
			return no(c, "its agent (%s) cannot do %q, which the plugin needs", orUnknown(r.Proxy.AgentVersion), f)
		}
	}
	return true, "its agent can do all that the plugin needs"
}

func (r *reasoning) match(c *Check) (bool, string) {
	f, s := r.Proxy.Facts, r.Proxy.State
	if f == nil || len(f.Listeners) == 0 {
		if s != nil && s.State == chandler.StateUnmatched {
			return no(c, "its agent says that it concerns no listener of this proxy")
		}
		return f != nil && len(f.Listeners) == 0 && s == nil, "its agent told of no listener yet"
	}
	a := r.attachment()
	var yes, not []string
	for i := range f.Listeners {
		l := &f.Listeners[i]
		if ok, why := matches(l, &a, f.Slots); ok {
			yes = append(yes, spell(l))
		} else {
			not = append(not, spell(l)+": "+why)
		}
	}
	if f.More {
		not = append(not, "others that its agent does not tell of")
	}
	if len(yes) == 0 {
		return no(c, "it matches no listener; %s", some(not))
	}
	message := "it matches " + some(yes)
	if len(not) > 0 {
		message += "; not " + some(not)
	}
	return true, message
}

// matches tells whether a plugin has a place in a listener, as the agent does.
func matches(l *chandler.Listener, a *chandler.Attachment, slots bool) (ok bool, why string) {
	if _, ok := place(l, a); !ok {
		return false, "its match entries want another mode or port"
	}
	if slots && a.Type != chandler.Network && !slices.ContainsFunc(l.Slots, func(s chandler.Slot) bool { return s.Type != chandler.Network }) {
		return false, "it has no HTTP connection manager"
	}
	return true, ""
}

// place is the slot of a plugin in a listener.
func place(l *chandler.Listener, a *chandler.Attachment) (attach.Slot, bool) {
	return attach.Site{Mode: l.Mode, Port: l.Port, Network: a.Type == chandler.Network}.Slot(a)
}

func (r *reasoning) told(c *Check) (bool, string) {
	s := r.Proxy.State
	switch {
	case s == nil, s.UID != r.Object.Plugin.UID:
		return no(c, "its agent has said nothing of it yet")
	case s.Release != r.given.ID:
		return no(c, "its agent is still at release %s, and not at %s", short(s.Release), short(r.given.ID))
	}
	return true, "its agent is at release " + short(s.Release)
}

// noBy takes Holds back, with what the agent says beside a state.
func noBy(c *Check, what string, s *chandler.AttachmentState) (bool, string) {
	if said := words(s); said != "" {
		what += ": " + said
	}
	return no(c, "%s", what)
}

// words are what the agent says beside a state.
func words(s *chandler.AttachmentState) string {
	var parts []string
	if s.Reason != "" {
		parts = append(parts, string(s.Reason))
	}
	if s.Message != "" {
		parts = append(parts, s.Message)
	}
	said := strings.Join(parts, ": ")
	if s.Attempt > 0 {
		if said != "" {
			said += " "
		}
		said += fmt.Sprintf("(attempt %d", s.Attempt)
		if !s.NextTry.IsZero() {
			said += ", next at " + stamp(s.NextTry)
		}
		said += ")"
	}
	return said
}

func (r *reasoning) fetched(c *Check) (bool, string) {
	switch s := r.Proxy.State; s.State {
	case chandler.StatePending:
		return noBy(c, "it waits for its turn", s)
	case chandler.StateFetching:
		return noBy(c, "its module is being fetched", s)
	case chandler.StateFailed:
		return noBy(c, "the agent cannot have it", s)
	case chandler.StateUnmatched:
		return no(c, "its agent says that it concerns no listener of this proxy")
	}
	return true, "its module is on the proxy's disk"
}

func (r *reasoning) acknowledged(c *Check) (bool, string) {
	switch s := r.Proxy.State; s.State {
	case chandler.StateRejected:
		return noBy(c, "Envoy refuses it", s)
	case chandler.StateReady:
		return noBy(c, "it was sent to Envoy, which has not answered yet", s)
	}
	return true, "Envoy took it"
}

func (r *reasoning) inForce(c *Check) (bool, string) {
	s := r.Proxy.State
	switch {
	case s.Reason == chandler.CodeEnvoyDown, s.Reason == chandler.CodeVMTrap:
		return no(c, "%s", words(s))
	case s.State != chandler.StateInForce || s.InForce != s.Release:
		return noBy(c, fmt.Sprintf("its agent says %s of it", s.State), s)
	}
	return true, "since " + stamp(s.Since)
}

func labels(m map[string]string) string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		all = append(all, k+"="+m[k])
	}
	return strings.Join(all, ",")
}

// some joins a few, and counts the others.
func some(all []string) string {
	const most = 4
	if len(all) <= most {
		return strings.Join(all, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(all[:most], ", "), len(all)-most)
}

func spell(l *chandler.Listener) string {
	name := l.Name
	if name == "" {
		name = l.Address
	}
	return fmt.Sprintf("%s (%s, port %d)", name, l.Mode, l.Port)
}

func short(id chandler.ReleaseID) string {
	if id == "" {
		return "none"
	}
	return id.Short()
}

func orUnknown(s string) string {
	if s == "" {
		return "(version not known)"
	}
	return s
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return "an unknown time"
	}
	return t.UTC().Format(time.RFC3339)
}
