package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/assign"
	"chandler.dev/chandler/internal/rollout"
	"chandler.dev/chandler/internal/xds/deltaclient"
)

// epoch is when simulations begin.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Shape is a fleet. Proxies are shared out evenly.
type Shape struct {
	Proxies, Clusters, Replicas int
	From                        origin
}

// world is all that is simulated.
type world struct {
	Inputs
	Shape
	clock
	chance   *rand.Rand
	size     sizes
	sent     tally
	registry *cache
	pulled   count // from the registry: requests, and bytes of modules
	clusters []*cluster
	isNew    bool // the change brings a module that nobody has
	releases [4]chandler.ReleaseID
	failed   error
}

// cluster has a source of its own, with control planes and proxies.
type cluster struct {
	*world
	planes  []*plane // the first one leads
	proxies []*proxy
	stage   *rollout.State // nil: changes go to all at once
}

// plane is one replica of a control plane.
type plane struct {
	cache
	leads   bool
	up      bool
	plugins [pluginN]entry

	streams []*proxy // of the pass under way, that are still to be asked
	working int
	again   bool
}

// entry is a plugin as a replica publishes it: a change for whoever is chosen, and the
// one before for the others.
type entry struct {
	plugin         *chandler.Plugin
	change, before int
	choice         rollout.Choice
}

// of is the change that a node is to have; 0: the plugin is not for it.
func (e *entry) of(n chandler.Node) int {
	switch {
	case !assign.Selects(e.plugin, n, root):
		return 0
	case e.choice.Has(e.plugin.UID, n):
		return e.change
	}
	return e.before
}

// proxy is one agent and its Envoy.
type proxy struct {
	chandler.Node
	*cluster
	plane      *plane // that it is connected to; nil: none
	connection int    // counts; what was under way on one before is lost
	failures   int
	answering  bool         // an answer is under way to it
	held       [pluginN]int // the change that it was last sent
	told       [pluginN]int
	inForce    [pluginN]int
	mirror     *cache // of its machine

	reporting, unsaid, counting bool // a report is under way; more is to be said; of traffic
	interval                    time.Duration
	unheard                     bool // a word to the leader is under way
	word, known                 word // as its replica knows it, and the leader

	greeted      bool          // it was answered on this connection,
	back         time.Duration // at that time
	toldAt, done time.Duration // the last change
}

// word is what is known of a proxy.
type word struct {
	told, inForce [pluginN]int
	traffic       []chandler.Traffic
}

func newWorld(in Inputs, shape Shape, isNew bool, seed uint64) (*world, error) {
	w := &world{
		Inputs: in, Shape: shape, isNew: isNew, chance: rand.New(rand.NewPCG(seed, 0)),
		registry: &cache{have: true, link: make(lanes, 1), bandwidth: in.RegistryBandwidth, far: true},
	}
	for c := range shape.Clusters {
		cl := &cluster{world: w}
		w.clusters = append(w.clusters, cl)
		for r := range shape.Replicas {
			p := &plane{cache: *w.newCache(in.Cores), leads: r == 0, up: true}
			for i := range p.plugins {
				p.plugins[i] = entry{plugin: pluginOf(i), change: 1, choice: rollout.Everyone()}
			}
			cl.planes = append(cl.planes, p)
		}
		for i := c * shape.Proxies / shape.Clusters; i < (c+1)*shape.Proxies/shape.Clusters; i++ {
			cl.proxies = append(cl.proxies, cl.newProxy(i))
		}
	}
	for i := range w.releases {
		w.releases[i] = release(i)
	}
	var err error
	last := w.clusters[len(w.clusters)-1].proxies
	w.size, err = measureSizes(last[len(last)-1].Node, in.Module, isNew)
	return w, err
}

// newProxy gives one that has everything and is connected.
func (c *cluster) newProxy(i int) *proxy {
	p := &proxy{cluster: c, greeted: true, plane: c.planes[i%len(c.planes)], Node: chandler.Node{
		Namespace: "default", Name: fmt.Sprintf("agent-%06d", i), AgentVersion: "bench", EnvoyVersion: "1.40.0",
		Labels: map[string]string{"app": "bench", "version": "v1"},
		Features: []string{
			chandler.FeatureHTTP, chandler.FeatureNetwork, chandler.FeatureLua, chandler.FeatureFile, chandler.FeatureSecretConfig, chandler.FeatureSlots,
		},
	}}
	if i%fewEvery == 0 {
		p.Labels["few"] = "yes"
	}
	for i := range p.held {
		n := p.plane.plugins[i].of(p.Node)
		p.held[i], p.told[i], p.inForce[i] = n, n, n
	}
	if at := len(c.proxies); at%c.PerNode == 0 {
		p.mirror = c.newCache(1)
	} else {
		p.mirror = c.proxies[at-1].mirror
	}
	p.word = word{told: p.told, inForce: p.inForce}
	p.known = p.word
	return p
}

// latency is one way between an agent and its control plane.
func (w *world) latency() time.Duration {
	return w.Latency + time.Duration(w.chance.Float64()*float64(w.Latency))
}

func (w *world) count(k kind, bytes int64) {
	w.sent[k].Messages++
	w.sent[k].Bytes += bytes
}

// up sends a message to the control plane, which takes it in at a cost. What is on a
// connection that breaks does not arrive.
func (p *proxy) up(to *plane, k kind, bytes int64, cost time.Duration, arrived func()) {
	p.count(k, bytes)
	here := p.connection
	p.after(p.latency(), func() {
		p.at(to.works(p.now, cost), func() {
			if p.connection == here && to.up {
				arrived()
			}
		})
	})
}

// down sends one from the control plane that it is connected to, at a cost, and tells when
// that is done with it. An answer is made by who took the question in, at whose cost that
// is counted already, and waits for nobody else.
func (p *proxy) down(k kind, bytes int64, cost time.Duration, arrived func()) time.Duration {
	p.count(k, bytes)
	here, from, made := p.connection, p.plane, p.now
	if cost > 0 {
		made = from.works(p.now, cost)
	}
	p.at(from.link.take(made, from.carries(bytes+p.Framing))+p.latency(), func() {
		if p.connection == here {
			arrived()
		}
	})
	return made
}

// refresh sends a proxy what it is to have and has not been sent, and tells when that is
// made, or false; an answer is sent although there is nothing, and its cost is counted.
func (p *proxy) refresh(answer bool) (made time.Duration, ok bool) {
	if p.plane == nil || p.answering {
		return 0, false
	}
	bytes, next, differs, cost := p.size.answer, p.held, answer, p.Message
	for i := range p.plane.plugins {
		// What it has by a newer word than this replica's it keeps.
		if n := p.plane.plugins[i].of(p.Node); n > p.held[i] {
			next[i], differs = n, true
			bytes += p.size.resource[i]
		}
	}
	if !differs {
		return 0, false
	}
	if answer {
		cost = 0
	}
	p.held, p.answering = next, true
	return p.down(push, bytes, cost, func() {
		p.up(p.plane, ack, p.size.ack, p.Message, func() {
			p.answering = false
			p.refresh(false)
		})
		p.hear(next)
	}), true
}

// hear takes in what the control plane says.
func (p *proxy) hear(held [pluginN]int) {
	if !p.greeted {
		p.greeted, p.back, p.failures = true, p.now, 0
		p.say(true)
	}
	for i, n := range held {
		if n > p.told[i] {
			p.told[i], p.toldAt = n, p.now
			p.load(func() { p.enforce(i, n) })
		}
	}
}

// enforce has Envoy take what is there by now.
func (p *proxy) enforce(i, change int) {
	took := p.Configure
	if p.isNew {
		took = p.Load
	}
	if took > 0 {
		p.say(false)
	}
	p.after(took, func() {
		if change > p.inForce[i] {
			p.inForce[i], p.done = change, p.now
			p.say(false)
		}
	})
}

// say reports what is true now. One message is under way at a time, and what is new
// meanwhile is in the next.
func (p *proxy) say(full bool) {
	if p.plane == nil || p.reporting {
		p.unsaid = true
		return
	}
	now, bytes := word{p.told, p.inForce, p.word.traffic}, p.size.envelope
	if p.counting {
		bytes += p.size.traffic
		now.traffic = []chandler.Traffic{answers(p.now)}
	}
	switch {
	case full:
		bytes += p.size.node + p.states() + p.facts()
	case now.inForce != p.word.inForce:
		bytes += p.size.state + p.facts()
	case now.told != p.word.told || p.unsaid:
		bytes += p.size.state
	}
	p.reporting, p.unsaid, p.counting = true, false, false
	p.up(p.plane, report, bytes, 2*p.Message, func() {
		p.learn(now)
		p.down(taken, p.size.taken, 0, func() {
			if p.reporting = false; p.unsaid || p.counting {
				p.say(false)
			}
		})
	})
}

// states is how large all that a proxy says of its plugins is.
func (p *proxy) states() (bytes int64) {
	for _, n := range p.told {
		if n > 0 {
			bytes += p.size.state
		}
	}
	return bytes
}

func (p *proxy) facts() int64 {
	if p.told[few] > 0 {
		return p.size.facts[few]
	}
	return p.size.facts[everyone]
}

// learn has the leader know of a proxy, by another replica's word if need be. Of one node
// only the newest is told.
func (p *proxy) learn(now word) {
	told := len(now.traffic) > 0 && (len(p.word.traffic) == 0 || &now.traffic[0] != &p.word.traffic[0])
	if p.word = now; p.plane.leads {
		p.known = now
		return
	}
	if p.unheard {
		return
	}
	p.unheard = true
	leader := p.planes[0]
	p.at(p.plane.works(p.now, p.Message), func() {
		p.unheard = false
		now, bytes := p.word, p.size.node+p.states()+p.facts()
		if told {
			bytes += p.size.traffic
		}
		p.count(relay, bytes)
		p.after(p.latency(), func() { p.at(leader.works(p.now, p.Message), func() { p.known = now }) })
	})
}

// restart ends all control planes of a cluster, which serve again after a while.
func (c *cluster) restart() {
	for _, pl := range c.planes {
		pl.up = false
		c.after(c.Away, func() { pl.up = true })
	}
	for _, p := range c.proxies {
		p.plane, p.greeted, p.answering, p.reporting, p.unheard = nil, false, false, false, false
		p.connection++
		p.retry()
	}
}

// retry connects after the agents' pause.
func (p *proxy) retry() {
	wait := deltaclient.Delay(p.failures, 1, p.chance.Float64())
	p.failures++
	p.after(wait, p.connect)
}

// connect comes to any replica that serves, as with a Service of Kubernetes, and says
// what it has.
func (p *proxy) connect() {
	to := p.planes[p.chance.IntN(len(p.planes))]
	if !to.up {
		p.after(2*p.latency(), p.retry)
		return
	}
	bytes := p.size.xdsNode
	for _, n := range p.held {
		if n > 0 {
			bytes += p.size.version
		}
	}
	p.up(to, subscribe, bytes, p.Handshake+2*p.Message, func() {
		p.plane, p.held = to, p.told
		p.refresh(true)
	})
	here := p.connection
	p.after(deltaclient.FirstTimeout, func() {
		if p.connection == here && !p.greeted {
			p.plane, p.answering = nil, false
			p.connection++
			p.retry()
		}
	})
}

// pass has a replica look at all its agents again, with as much work at a time as it has
// cores. A pass that comes meanwhile is made once, after it.
func (c *cluster) pass(pl *plane) {
	if pl.working > 0 {
		pl.again = true
		return
	}
	pl.streams, pl.working, pl.again = slices.Clone(c.proxies), len(pl.cores), false
	for range pl.cores {
		c.work(pl)
	}
}

func (c *cluster) work(pl *plane) {
	for len(pl.streams) > 0 {
		p := pl.streams[0]
		pl.streams = pl.streams[1:]
		if p.plane != pl {
			continue
		}
		if made, ok := p.refresh(false); ok {
			c.at(made, func() { c.work(pl) })
			return
		}
	}
	if pl.working--; pl.working == 0 && pl.again {
		c.pass(pl)
	}
}
