package control

import (
	"context"
	"reflect"
	"slices"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/assign"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/rollout"
)

// plan says how a change of a plugin comes to its proxies; nil: to all at once.
func (c *Control) plan(p *chandler.Plugin) *chandler.RolloutPlan {
	switch {
	case p == nil:
		return nil
	case p.Rollout != nil:
		return p.Rollout
	case c.cfg.Rollouts != nil:
		return c.cfg.Rollouts(p)
	}
	return nil
}

// planOf is the plan of an entry's next change, as the resource and the operator's file
// have it at this moment; nil: to all at once.
func (c *Control) planOf(e *entry) *chandler.RolloutPlan {
	if e.kept != nil {
		return e.kept
	}
	return c.plan(e.object.Plugin)
}

// ahead gives the plan of the next change where what is under way goes by another.
func ahead(underway, next *chandler.RolloutPlan) *chandler.RolloutPlan {
	switch {
	case next == nil:
		return &chandler.RolloutPlan{}
	case reflect.DeepEqual(underway, next):
		return nil
	}
	return next
}

// gauges is what a leader measured last of rollouts that are under way.
type gauges struct {
	term time.Time // since when it led
	each map[string]gauge
}

// gauge is what was measured in the step that began at a time.
type gauge struct {
	since    time.Time
	measures []chandler.Measure
}

func gaugesOf(all map[string]watched, term time.Time) *gauges {
	g := &gauges{term, make(map[string]gauge, len(all))}
	for uid, w := range all {
		g.each[uid] = w.gauge
	}
	return g
}

// gauge shows what is measured now.
func (c *Control) gauge(now *gauges) {
	if before := c.gauges.Swap(now); !reflect.DeepEqual(before, now) {
		c.fleet.wake()
	}
}

// measured gives what is measured of a rollout in its present step. Who leads no more
// knows nothing of that, whatever it knew.
func (c *Control) measured(ro *record.Rollout) []chandler.Measure {
	leads, term := c.office.self()
	all := c.gauges.Load()
	if !leads || all == nil || !all.term.Equal(term) {
		return nil
	}
	if g := all.each[ro.UID]; g.since.Equal(ro.Stage.Since) {
		return g.measures
	}
	return nil
}

// RolloutView is a rollout with its plugin's releases.
type RolloutView struct {
	chandler.Rollout
	// Releases are those that are recorded, the oldest first.
	Releases []*chandler.Release
	// Gone: the resource is there no more, and the plugin is being taken out.
	Gone bool
}

// Rollouts gives the rollouts of all plugins that have a record, by their keys, read at
// one moment. What is measured only the replica that leads knows. It fails as long as
// Ready does.
func (c *Control) Rollouts(context.Context) ([]RolloutView, error) {
	p := c.published.Load()
	if p == nil {
		return nil, c.Ready()
	}
	members := c.fleet.list()
	var views []RolloutView
	for _, e := range p.entries {
		if e.course.rollout.UID != "" {
			views = append(views, c.rollout(e, members, false))
		}
	}
	for _, e := range p.ghosts {
		views = append(views, c.rollout(e, members, true))
	}
	slices.SortStableFunc(views, func(a, b RolloutView) int { return a.Key.Compare(b.Key) })
	return views, nil
}

// Rollout gives where a plugin's rollout is, and whether its release has come to a node;
// not ok: there is no more to say than that everyone is to have the newest release.
func (c *Control) Rollout(key chandler.Key, n chandler.Node) (r chandler.Rollout, chosen, ok bool) {
	e, gone, err := c.find(key)
	if err != nil || c.planOf(e) == nil && !e.course.rollout.Steered() {
		return r, false, false
	}
	return c.rollout(e, c.fleet.list(), gone).Rollout, e.chosen(n), true
}

// rollout is the view of one entry.
func (c *Control) rollout(e *entry, members []member, gone bool) RolloutView {
	ro := e.course.rollout
	v := RolloutView{Gone: gone, Releases: e.history, Rollout: chandler.Rollout{
		Key: ro.Key, UID: ro.UID, Generation: ro.Generation, State: chandler.RolloutHealthy,
		From: ro.Release, To: ro.Release, Plan: c.planOf(e), Since: ro.UpdatedAt,
		Pinned: ro.Pinned, Disabled: ro.Disabled, History: ro.History,
	}}
	if v.Plan != nil {
		v.Step = len(v.Plan.Steps)
	}
	switch st := ro.Stage; {
	case st != nil:
		plan := st.Plan
		v.Ahead = ahead(&plan, v.Plan)
		v.From, v.Plan, v.Step, v.State, v.Since, v.Next = st.Base.Release, &plan, max(st.Step, 0), st.Phase, st.Since, st.Due()
		v.Reason, v.Message, v.Gates = st.Reason, st.Message, c.measured(ro)
		if st.Step == unbegun {
			v.Next = time.Time{}
		}
	case ro.Pinned:
		v.State, v.Reason = chandler.RolloutPaused, chandler.CodePinned
		v.Message = "held at " + releaseText(ro.Release) + " by an undo"
	case ro.Failure != nil:
		v.State, v.Reason, v.Message, v.Gates = chandler.RolloutDegraded, ro.Failure.Reason, ro.Failure.Message, ro.Failure.Gates
	}
	for _, d := range e.detachments() {
		if v.Message != "" {
			v.Message += "; "
		}
		if v.Message += d.String(); d.Whole || d.Chosen {
			v.State, v.Reason, v.Next = chandler.RolloutDegraded, d.Why.Code, time.Time{}
			if ro.Stage != nil {
				v.State = chandler.RolloutPaused // it stands still until the policy allows it
			}
		}
	}
	if d := e.denial(ro.Release); d != nil && ro.Stage != nil && e.course.denial == nil {
		v.State, v.Reason, v.Message, v.Next = chandler.RolloutPaused, d.Reason, e.objects(ro.Release), time.Time{}
	}
	c.countRollout(&v, e, members)
	return v
}

// countRollout counts the connected proxies that a rollout is about.
func (c *Control) countRollout(v *RolloutView, e *entry, members []member) {
	root := c.cfg.RootNamespace
	for i := range members {
		m := &members[i]
		if !m.connected || !e.concerns(m.node, root) || e.disabled(m.node) != nil {
			continue
		}
		v.Proxies++
		p := c.says(e, m)
		if !p.Keeps && !e.chosen(m.node) {
			continue
		}
		if v.Chosen++; p.InForce {
			v.Updated++
		}
	}
}

// FirstStage is whom a change of a plugin comes to first.
type FirstStage struct {
	Step     chandler.RolloutStep
	Selected int // proxies that it is about, which are connected
	Chosen   []chandler.Node
	// Undecided: as many as Chosen it will be; which ones depends on the uid that the
	// resource is yet to get.
	Undecided bool
}

// FirstStage gives whom a change to what p says would come to first, if it were made now
// and does something else on proxies; not ok: to everyone at once.
func (c *Control) FirstStage(p *chandler.Plugin) (f FirstStage, ok bool) {
	plan := c.plan(p)
	if plan == nil {
		return f, false
	}
	f.Step = plan.Steps[0]
	e, gone, err := c.find(p.Key)
	if known := err == nil && !gone; !known {
		e = nil
		f.Undecided = len(f.Step.Labels) == 0 && !f.Step.Everyone()
	}
	var nodes []chandler.Node
	members := c.fleet.list()
	for i := range members {
		m := &members[i]
		concerned := assign.Selects(p, m.node, c.cfg.RootNamespace) || e != nil && e.concerns(m.node, c.cfg.RootNamespace)
		if m.connected && concerned && m.facts.Bypass(p.Key) == nil && (e == nil || e.disabled(m.node) == nil) {
			nodes = append(nodes, m.node)
		}
	}
	uid := ""
	if e != nil {
		uid = e.object.UID
	}
	choice := rollout.Choose(uid, nodes, rollout.Choice{}, f.Step)
	f.Selected = len(nodes)
	f.Chosen = slices.DeleteFunc(nodes, func(n chandler.Node) bool { return !choice.Has(uid, n) })
	return f, true
}
