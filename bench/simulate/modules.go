package main

import (
	"time"

	"chandler.dev/chandler/internal/agent"
)

// origin is where agents get modules from.
type origin string

const (
	fromControl  origin = "control plane"
	fromRegistry origin = "registry"
	fromMirror   origin = "mirror"
)

// cache is what has modules, or fetches them: a control plane, a mirror, the registry.
type cache struct {
	cores     lanes // none: it costs nothing
	busy      time.Duration
	link      lanes
	bandwidth int64
	far       bool
	have      bool
	coming    bool
	serving   int
	waiting   []func() // to be served
	hoping    []func() // for what is coming
}

func (w *world) newCache(cores int) *cache {
	return &cache{cores: make(lanes, cores), link: make(lanes, 1), bandwidth: w.Bandwidth}
}

// works has a core do something, and tells when it will be done.
func (c *cache) works(now, cost time.Duration) time.Duration {
	c.busy += cost
	return c.cores.take(now, cost)
}

// carries is how long a link is busy with some bytes.
func (c *cache) carries(bytes int64) time.Duration {
	return time.Duration(bytes * int64(time.Second) / c.bandwidth)
}

// read sends so many bytes of the module to somebody, as soon as there is room.
func (w *world) read(from *cache, bytes int64, done func()) {
	if from.serving == w.Reads && !from.far {
		from.waiting = append(from.waiting, func() { w.read(from, bytes, done) })
		return
	}
	from.serving++
	w.piece(from, bytes, done)
}

// piece sends what is left, piece by piece, so that all who read have their turn.
func (w *world) piece(from *cache, left int64, done func()) {
	n, made := min(left, w.Piece), w.now
	if from.far {
		w.pulled.Bytes += n
	} else {
		w.count(piece, n)
	}
	if len(from.cores) > 0 {
		made = from.works(w.now, w.Chunk)
	}
	w.at(from.link.take(made, from.carries(n+w.Framing)), func() {
		if left > n {
			w.piece(from, left-n, done)
			return
		}
		if from.serving--; len(from.waiting) > 0 {
			next := from.waiting[0]
			from.waiting = from.waiting[1:]
			w.after(0, next)
		}
		wait := w.latency()
		if from.far {
			wait = w.Far
		}
		w.after(wait, done)
	})
}

// pull fetches from the registry.
func (w *world) pull(requests int64, done func()) {
	w.pulled.Messages += requests
	w.after(w.Far*time.Duration(2*requests-1), func() { w.read(w.registry, w.Module, done) })
}

// fetch has a cache get the module, once for all who hope for it.
func (w *world) fetch(c *cache, get func(done func()), then func()) {
	if then != nil {
		c.hoping = append(c.hoping, then)
	}
	if c.coming {
		return
	}
	c.coming = true
	get(func() {
		c.have = true
		for _, do := range c.hoping {
			do()
		}
		c.hoping = nil
	})
}

// load brings the module of a change to a proxy.
func (p *proxy) load(done func()) {
	switch {
	case !p.isNew:
		done()
		return
	case p.From == fromRegistry:
		p.pull(p.Pulls, done)
	case p.From == fromMirror && p.mirror.have:
		p.read(p.mirror, p.Module, done)
	case p.From == fromMirror:
		p.fetch(p.mirror, func(done func()) { p.pull(p.Pulls, done) }, func() { p.read(p.mirror, p.Module, done) })
	default:
		p.download(1, done)
	}
	p.say()
}

// download asks the control plane. A replica that has not got the module refuses, and
// fetches it from the leader; the agent asks again after its pause.
func (p *proxy) download(attempt uint32, done func()) {
	from := p.plane
	if from == nil {
		p.after(agent.Retry(attempt, p.chance.Float64()), func() { p.download(attempt+1, done) })
		return
	}
	p.up(from, ask, p.size.asking, p.Message, func() {
		if from.have {
			p.read(&from.cache, p.Sent, done)
			return
		}
		p.fetch(&from.cache, func(done func()) {
			p.after(2*p.latency(), func() { p.read(&p.planes[0].cache, p.Module, done) })
		}, nil)
		p.after(p.latency()+agent.Retry(attempt, p.chance.Float64()), func() { p.download(attempt+1, done) })
	})
}
