package main

import (
	"fmt"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/rollout"
)

// change changes a plugin in all clusters at once: the leader of each hears of it,
// brings its module, has it tried and records it; then all replicas tell their agents.
func (w *world) change(plugin int, plan *chandler.RolloutPlan) {
	for _, c := range w.clusters {
		recorded := func() {
			c.after(c.Record, func() {
				c.publish(func(e *[pluginN]entry) {
					e[plugin].before, e[plugin].change = e[plugin].change, e[plugin].change+1
					if plan != nil {
						e[plugin].choice = rollout.Choice{}
					}
				})
				if plan != nil {
					c.demand(rollout.TrafficEvery(plan))
					c.after(rollout.Foreword, func() { c.begin(plugin, plan) })
				}
			})
		}
		if !c.isNew {
			c.after(c.Watch, recorded)
			continue
		}
		c.after(c.Watch, func() {
			c.pulled.Messages += c.Lookups
			c.fetch(&c.planes[0].cache, func(done func()) { c.pull(c.Pulls, done) }, func() {
				c.after(c.Load, recorded) // in the Envoy that tries it
			})
		})
	}
}

// publish has the replicas go by what was recorded: the leader at once, the others when
// they hear of it.
func (c *cluster) publish(edit func(*[pluginN]entry)) {
	for _, pl := range c.planes {
		hears := time.Duration(0)
		if !pl.leads {
			hears = c.Watch + time.Duration(c.chance.Float64()*float64(c.Watch))
		}
		c.after(hears, func() {
			edit(&pl.plugins)
			c.pass(pl)
		})
	}
}

// demand has all agents say how often they are to tell their traffic, and do.
func (c *cluster) demand(interval time.Duration) {
	c.interval = interval
	for _, p := range c.proxies {
		spread := control.Spread(p.plane.online)
		p.down(taken, takenSize(interval, spread), p.Message, func() {
			p.spread = spread
			began := p.interval == 0 && interval > 0
			if p.interval = interval; began {
				p.tell()
			}
		})
	}
}

// tell reports traffic, again and again.
func (p *proxy) tell() {
	if p.interval == 0 {
		return
	}
	p.counting = true
	p.remind()
	p.after(p.interval, p.tell)
}

// observed is what the leader knows.
func (c *cluster) observed(plugin int) rollout.Observed {
	e := &c.planes[0].plugins[plugin]
	o := rollout.Observed{UID: e.plugin.UID, Type: e.plugin.Type, Heard: epoch.Add(-time.Hour), Proxies: make([]rollout.Proxy, 0, len(c.proxies))}
	for _, p := range c.proxies {
		told, inForce := p.known.told[plugin], p.known.inForce[plugin]
		if told == 0 {
			continue
		}
		seen := rollout.Proxy{Node: p.Node, Connected: p.plane != nil, Traffic: p.known.traffic}
		seen.Read(c.releases[e.change], uint64(e.change), chandler.AttachmentState{
			Release: c.releases[told], Sequence: uint64(told), InForce: c.releases[inForce], State: chandler.StateInForce,
		}, true)
		o.Proxies = append(o.Proxies, seen)
	}
	return o
}

func (c *cluster) time() time.Time { return epoch.Add(c.now) }

// begin begins a rollout with its first step.
func (c *cluster) begin(plugin int, plan *chandler.RolloutPlan) {
	s := rollout.Begin(*plan, c.observed(plugin), c.time())
	c.move(plugin, &s)
	c.after(rollout.LookEvery(plan), func() { c.look(plugin, plan) })
}

// look decides what is to become of a rollout.
func (c *cluster) look(plugin int, plan *chandler.RolloutPlan) {
	next, decision, _ := rollout.Next(*c.stage, c.observed(plugin), c.time())
	switch c.stage = &next; decision {
	case rollout.Advance:
		c.move(plugin, &next)
	case rollout.Finish:
		c.move(plugin, &next)
		c.demand(0)
		return
	case rollout.Pause, rollout.RollBack:
		c.failed = fmt.Errorf("the rollout came to %s at step %d: %s", decision, next.Step, next.Message)
		c.demand(0)
		return
	}
	c.after(rollout.LookEvery(plan), func() { c.look(plugin, plan) })
}

// move records where a rollout is, and has it so.
func (c *cluster) move(plugin int, s *rollout.State) {
	c.stage = s
	choice := s.Choice
	c.after(c.Record, func() {
		c.publish(func(e *[pluginN]entry) { e[plugin].choice = choice })
	})
}
