package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/assign"
	"chandler.dev/chandler/internal/control"
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
	planes   []*plane // the first one leads
	proxies  []*proxy
	stage    *rollout.State // nil: changes go to all at once
	interval time.Duration  // at which traffic is to be told; zero: not at all
}

// plane is one replica of a control plane.
type plane struct {
	cache
	leads   bool
	up      bool
	online  int // proxies that it knows to be connected
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

	reports, taken         uint64        // of its stream: made, and known to be taken in
	spread                 time.Duration // within which a change is to be reported
	said                   word          // by the last report
	soon, unsaid, counting bool          // the next one is to come; something is new; traffic, too
	interval               time.Duration
	unheard                bool // a word to the leader is under way
	word, known            word // as its replica knows it, and the leader

	greeted      bool          // it was answered on this connection,
	back         time.Duration // at that time
	toldAt, done time.Duration // the last change
}

// word is what is known of a proxy.
type word struct {
	number        int // of two the newer one has the greater
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
	for _, c := range w.clusters {
		for _, p := range c.proxies {
			p.spread = control.Spread(p.plane.online)
		}
	}
	for i := range w.releases {
		w.releases[i] = release(i)
	}
	var err error
	last := w.clusters[len(w.clusters)-1].proxies
	w.size, err = measureSizes(last[len(last)-1].Node, in.Module, isNew, shape.Replicas == 1)
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
	p.said = word{told: p.told, inForce: p.inForce}
	p.word, p.known = p.said, p.said
	if p.reports = c.Said; p.reports == 0 {
		p.reports = 1 + c.chance.Uint64N(answerEvery)
	}
	p.taken = p.reports - (p.reports-1)%answerEvery
	p.counts(1)
	return p
}

// counts has its replica know that it came or went, and the leader, who knows of all.
func (p *proxy) counts(by int) {
	p.plane.online += by
	if !p.plane.leads {
		p.planes[0].online += by
	}
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
		p.report(true)
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
		p.say()
	}
	p.after(took, func() {
		if change > p.inForce[i] {
			p.inForce[i], p.done = change, p.now
			p.say()
		}
	})
}

// As in internal/agent: of reports that are not known to be taken in there are so many at
// most, and one of so many is answered.
const (
	mostUnderWay = 8
	answerEvery  = 4
)

// say has something new reported.
func (p *proxy) say() {
	p.unsaid = true
	p.remind()
}

// remind has the next report come, at a moment of the agent's own choice; what is new by
// then is all in it.
func (p *proxy) remind() {
	if !p.greeted || p.soon || p.waits() {
		return
	}
	p.soon = true
	here := p.connection
	p.after(time.Duration(p.chance.Float64()*float64(p.spread)), func() {
		if p.connection == here {
			p.soon = false
			p.report(false)
		}
	})
}

// waits tells whether no more may be reported before an answer.
func (p *proxy) waits() bool { return p.reports >= p.taken+mostUnderWay }

// report reports what is true now, if that is new; in full on a new connection.
func (p *proxy) report(full bool) {
	if !full && !p.unsaid && !p.counting {
		return
	}
	now, bytes, cost := p.said, p.size.envelope, p.Message
	now.number, now.told, now.inForce = now.number+1, p.told, p.inForce
	if p.counting {
		bytes += p.size.traffic
		now.traffic = []chandler.Traffic{answers(p.now)}
	}
	switch {
	case full:
		bytes += p.size.node + p.states() + p.facts()
	case now.inForce != p.said.inForce:
		bytes += p.size.state + p.facts()
	case p.unsaid:
		bytes += p.size.state
	}
	p.said, p.unsaid, p.counting = now, false, false
	p.reports++
	sequence := p.reports
	answered := sequence%answerEvery == 1
	if answered {
		cost += p.Message
	} else {
		bytes += p.size.silent
	}
	p.up(p.plane, report, bytes, cost, func() {
		p.learn(now)
		if answered {
			p.answer(sequence)
		}
	})
}

// answer has an agent know that its reports were taken in up to one.
func (p *proxy) answer(sequence uint64) {
	spread := control.Spread(p.plane.online)
	p.down(taken, takenSize(p.cluster.interval, spread), 0, func() {
		waited := p.waits()
		if p.taken, p.spread = sequence, spread; waited {
			p.report(false)
		}
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
	if now.number < p.word.number {
		return // came late
	}
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
		p.after(p.latency(), func() {
			p.at(leader.works(p.now, p.Message), func() {
				if now.number > p.known.number {
					p.known = now
				}
			})
		})
	})
}

// restart ends all control planes of a cluster, which serve again after a while.
func (c *cluster) restart() {
	for _, pl := range c.planes {
		pl.up, pl.online = false, 0
		c.after(c.Away, func() { pl.up = true })
	}
	for _, p := range c.proxies {
		p.plane, p.greeted, p.answering, p.soon, p.unheard = nil, false, false, false, false
		p.reports, p.taken, p.spread = 0, 0, 0
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
		p.counts(1)
		p.refresh(true)
	})
	here := p.connection
	p.after(deltaclient.FirstTimeout, func() {
		if p.connection == here && !p.greeted {
			if p.plane != nil {
				p.counts(-1)
			}
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
