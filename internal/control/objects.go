package control

import (
	"context"
	"fmt"
	"maps"
	"regexp"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/assign"
	"chandler.dev/chandler/internal/schema"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/status"
)

// ObjectView is an object with its status.
type ObjectView struct {
	source.Object
	Status chandler.Status
	// Schema is what the configuration is judged by; nil: there is nothing, or it is
	// of no use.
	Schema *schema.Schema
	// Hidden gives the places in a configuration that are not to be shown to anybody,
	// an empty one for all of it; nil: there are none.
	Hidden func(config []byte) [][]string
	// Against is what the operator's policy has against it as it is written. Detached are
	// releases that proxies are to have and that are taken out, with what is against them.
	// Denied: without a release proxies refuse requests.
	Against  []chandler.Problem
	Detached map[chandler.ReleaseID]string
	Denied   bool
	// History are its releases that are recorded, oldest first; not to be changed.
	History []*chandler.Release
}

// Objects gives all objects with their status, in the order of their keys, read
// at one moment. It fails as long as Ready does.
func (c *Control) Objects(context.Context) ([]ObjectView, error) {
	p := c.published.Load()
	if p == nil {
		return nil, c.Ready()
	}
	members := c.fleet.list()
	views := make([]ObjectView, 0, len(p.entries))
	for _, e := range p.entries {
		v := ObjectView{
			Object: e.object, Status: c.join(e, members),
			Against: e.against, Denied: e.denied, History: e.history,
		}
		for _, d := range e.detachments() {
			if v.Detached == nil {
				v.Detached = map[chandler.ReleaseID]string{}
			}
			v.Detached[d.Release.ID] = d.Why.Message
		}
		v.Schema, v.Hidden = c.schemas.of(e)
		views = append(views, v)
	}
	return views, nil
}

// Changed gives a channel that is closed when Objects, Proxies, Rollouts or Broken may
// say something else than they do at this moment.
func (c *Control) Changed() <-chan struct{} { return c.fleet.watch() }

// Broken gives the files in which the source could not make out everything.
func (c *Control) Broken() []source.Broken {
	if broken := c.broken.Load(); broken != nil {
		return *broken
	}
	return nil
}

// join derives the status of one object, and remembers when its conditions
// changed.
func (c *Control) join(e *entry, members []member) chandler.Status {
	in := status.Input{
		Generation: e.object.Generation,
		Problems:   e.object.Problems,
		Warnings:   e.object.Warnings,
		Against:    e.against,
		Detached:   e.detachments(),
		Plugin:     e.object.Plugin,
		Target:     e.target,
		Meant:      e.meant,
		Incomplete: e.withheld(),
		Denied:     e.denied,
		Withheld:   c.withholds(),
		Resolve:    status.Resolve{Problem: e.attempts.Problem, Attempt: e.attempts.Failed, NextTry: e.attempts.Next},
		Now:        c.cfg.Now().UTC(),
	}
	if e.object.Plugin != nil {
		in.Proxies = make([]status.Proxy, 0, len(members))
		said := make([]chandler.AttachmentState, len(members)) // at once, not one by one
		for i := range members {
			if p, ok := c.proxy(e, &members[i], &said[i]); ok {
				in.Proxies = append(in.Proxies, p)
			}
			if n := members[i].node; members[i].connected && n.Waypoint() && assign.Means(e.object.Plugin, n, c.cfg.RootNamespace) {
				in.Waypoints = append(in.Waypoints, n)
			}
		}
		if len(in.Waypoints) > 0 {
			in.WaypointField = aim(&e.object, in.Waypoints[0], c.cfg.RootNamespace)
		}
		if c.planOf(e) != nil || e.course.rollout.Steered() {
			view := c.rollout(e, members, false)
			in.Rollout = &view.Rollout
		}
	}
	c.board.mu.Lock()
	defer c.board.mu.Unlock()
	if before, ok := c.board.transitions[e.id()]; ok {
		in.Previous = &before
	}
	s := status.Join(in)
	c.board.transitions[e.id()] = chandler.Status{Conditions: s.Conditions}
	return s
}

// singular is the form of targetRefs for one target.
var singular = regexp.MustCompile(`\btargetRef"?\s*:`)

// aim is the field of a resource by which it means a node.
func aim(o *source.Object, n chandler.Node, root string) string {
	p := *o.Plugin
	if len(p.TargetRefs) == 0 {
		if len(p.Selector) == 0 {
			return "spec"
		}
		return "spec.selector"
	}
	if len(p.TargetRefs) == 1 && singular.Match(o.Manifest) {
		return "spec.targetRef"
	}
	all := p.TargetRefs
	for i := range all {
		if p.TargetRefs = all[i : i+1]; assign.Means(&p, n, root) {
			return fmt.Sprintf("spec.targetRefs[%d]", i)
		}
	}
	return "spec.targetRefs"
}

// proxy is a node as the status of a plugin has it, with what it said in said; false: it
// has nothing to do with it.
func (c *Control) proxy(e *entry, m *member, said *chandler.AttachmentState) (status.Proxy, bool) {
	p := status.Proxy{Node: m.node, Connected: m.connected}
	if s, ok := m.states[e.object.Key]; ok {
		*said = s
		p.State = said
	}
	v := e.of(m.node, c.cfg.RootNamespace)
	if v != nil && v == e.others && c.says(e, m).Keeps {
		v = &e.variant
	}
	if v == nil {
		p.Nothing = true
		return p, p.State != nil && p.State.UID == e.object.UID && e.concerns(m.node, c.cfg.RootNamespace)
	}
	p.Wants = v.target
	return p, true
}

func (e *entry) id() string { return e.object.Key.String() + " " + e.object.UID }

// transit dates the conditions of the plugins about which something was said,
// so that their times do not depend on somebody asking, and counts them. When it
// returns all that was said before is in the board.
func (c *Control) transit() {
	c.board.round.Lock()
	defer c.board.round.Unlock()
	c.tellTurns()
	c.tellBypasses()
	all, some := c.fleet.takeDirty()
	p := c.published.Load() // after that: what is published next is said again
	if p == nil || !all && len(some) == 0 {
		return
	}
	members := c.fleet.list()
	there := make(map[string]bool, len(p.entries))
	for _, e := range p.entries {
		there[e.id()] = true
		if all || some[e.object.Key] {
			s := c.join(e, members)
			c.board.count(e.id(), standingOf(&s))
			c.tell(e, &s)
		}
	}
	c.board.mu.Lock()
	defer c.board.mu.Unlock()
	for id := range c.board.transitions {
		if !there[id] {
			delete(c.board.transitions, id)
			delete(c.board.standings, id)
		}
	}
	maps.DeleteFunc(c.told, func(id string, _ *told) bool { return !there[id] })
}

// count notes what is counted of a plugin. It is transit's alone: who asks for a status may
// have looked at the proxies before they said what is counted.
func (b *board) count(id string, st standing) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.standings[id] = st
}

// standing gives what is counted of a plugin.
func (b *board) standing(id string) (standing, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	st, ok := b.standings[id]
	return st, ok
}
