package control

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/source"
)

// Bounds of what is traced.
const (
	maxJourneys = 1000           // under way; further changes leave no trace
	maxSteps    = 100            // of one: who is tried again for days is not told of each time
	maxJourney  = 24 * time.Hour // then it is told of as far as it came
	noProxies   = 10 * time.Second
)

// What becomes of a change, as its trace has it.
const (
	outcomeInForce    = "in force"
	outcomeNobody     = "no proxies"
	outcomeSuperseded = "superseded"
	outcomeDeleted    = "deleted"
	outcomeUnfinished = "unfinished"
)

// journeys follows changes of plugins from where they are seen to where they are in
// force on every proxy, each in one trace: the change, in it its steps (resolve, verify,
// conform, vet, record), and then what proxies make of it (tell, put in force). It holds
// names, digests and codes, never an address, a message or a configuration.
type journeys struct {
	tracer trace.Tracer // nil: nobody looks
	now    func() time.Time

	mu   sync.Mutex
	open map[string]*journey // by uid
}

// journey is the way of one generation of a plugin.
type journey struct {
	key        chandler.Key
	generation int64
	ctx        context.Context // of its span
	span       trace.Span
	steps      int
	began      time.Time

	release     chandler.ReleaseID // that is assigned; empty: none yet
	assigned    time.Time
	told, force trace.Span // nil: not begun, or over
}

func newJourneys(tracer trace.Tracer, now func() time.Time) *journeys {
	return &journeys{tracer: tracer, now: now, open: map[string]*journey{}}
}

// seen begins a journey with each generation that has no release yet, and ends those
// of plugins that are gone or have changed again.
func (js *journeys) seen(s source.Snapshot, released func(uid string, generation int64) bool) {
	if js.tracer == nil {
		return
	}
	ctx := context.Background()
	if s.Cause != nil {
		ctx = trace.ContextWithSpanContext(ctx, trace.SpanContextFromContext(s.Cause))
	}
	js.mu.Lock()
	defer js.mu.Unlock()
	there := make(map[string]bool, len(s.Objects))
	for i := range s.Objects {
		o := &s.Objects[i]
		there[o.UID] = true
		if o.Plugin == nil || js.open[o.UID] != nil && js.open[o.UID].generation == o.Plugin.Generation {
			continue
		}
		js.end(o.UID, outcomeSuperseded)
		if len(js.open) < maxJourneys && !released(o.UID, o.Plugin.Generation) {
			js.open[o.UID] = js.begin(ctx, o)
		}
	}
	for uid := range js.open {
		if !there[uid] {
			js.end(uid, outcomeDeleted)
		}
	}
}

func (js *journeys) begin(ctx context.Context, o *source.Object) *journey {
	j := &journey{key: o.Key, generation: o.Plugin.Generation, began: js.now()}
	j.ctx, j.span = js.tracer.Start(ctx, "change", trace.WithAttributes(
		attribute.String("chandler.plugin.kind", o.Kind), attribute.String("chandler.plugin.namespace", o.Namespace),
		attribute.String("chandler.plugin.name", o.Name), attribute.Int64("chandler.plugin.generation", j.generation)))
	return j
}

// end ends a journey, if there is one.
func (js *journeys) end(uid, outcome string, more ...attribute.KeyValue) {
	j := js.open[uid]
	if j == nil {
		return
	}
	delete(js.open, uid)
	for _, s := range []trace.Span{j.told, j.force} {
		if s != nil {
			s.SetStatus(codes.Error, outcome)
			s.End()
		}
	}
	j.span.SetAttributes(append(more, attribute.String("chandler.outcome", outcome))...)
	if outcome != outcomeInForce && outcome != outcomeNobody {
		j.span.SetStatus(codes.Error, outcome)
	}
	j.span.End()
}

// carry puts the journey of a generation into a context, for steps.
func (js *journeys) carry(ctx context.Context, p *chandler.Plugin) context.Context {
	js.mu.Lock()
	defer js.mu.Unlock()
	j := js.open[p.UID]
	if j == nil || j.generation != p.Generation || j.steps >= maxSteps {
		return ctx
	}
	j.steps++
	return trace.ContextWithSpan(ctx, j.span)
}

// step begins a step of the journey that ctx carries, if it does. Its end is told how
// it went.
func (js *journeys) step(ctx context.Context, name string, attributes ...attribute.KeyValue) (context.Context, func(error)) {
	if js.tracer == nil || !trace.SpanFromContext(ctx).IsRecording() {
		return ctx, func(error) {}
	}
	ctx, span := js.tracer.Start(ctx, name, trace.WithAttributes(attributes...))
	return ctx, func(err error) {
		if err != nil {
			code := errorCode(err)
			span.SetAttributes(attribute.String("error.type", code))
			span.SetStatus(codes.Error, code)
		}
		span.End()
	}
}

// errorCode is all that is told of an error: a message may hold anything.
func errorCode(err error) string {
	var problem *chandler.Problem
	switch {
	case errors.As(err, &problem):
		return string(problem.Code)
	case errors.Is(err, context.Canceled):
		return "cancelled"
	}
	return "internal"
}

// follow tells journeys what proxies say until ctx ends. It looks when something is
// said, and leaves the machine to others for a few times as long as that took.
func (c *Control) follow(ctx context.Context) {
	const share = 4
	tick := time.NewTicker(time.Second) // for what is over because nothing happens
	defer tick.Stop()
	for {
		changed := c.fleet.watch()
		began := time.Now()
		c.journeys.look(c)
		rest := time.NewTimer(min(share*time.Since(began), time.Second))
		select {
		case <-ctx.Done():
			rest.Stop()
			c.journeys.stop()
			return
		case <-rest.C:
		}
		select {
		case <-ctx.Done(): // the next round ends it
		case <-changed:
		case <-tick.C:
		}
	}
}

// look moves the journeys on whose releases are assigned.
func (js *journeys) look(c *Control) {
	p := c.published.Load()
	js.mu.Lock()
	defer js.mu.Unlock()
	if len(js.open) == 0 || p == nil {
		return
	}
	members := c.fleet.list()
	for _, e := range p.entries {
		uid := e.object.UID
		j := js.open[uid]
		switch {
		case j == nil:
		case js.now().Sub(j.began) > maxJourney:
			js.end(uid, outcomeUnfinished)
		case e.target != nil && e.target.UID == uid && e.target.Generation == j.generation:
			js.advance(uid, j, e.target.ID, c.join(e, members))
		}
	}
}

// advance takes in what the status says of a release.
func (js *journeys) advance(uid string, j *journey, id chandler.ReleaseID, s chandler.Status) {
	if j.release == "" {
		j.release, j.assigned = id, js.now()
		j.span.SetAttributes(attribute.String("chandler.release", string(id)))
		_, j.told = js.tracer.Start(j.ctx, "tell")
		_, j.force = js.tracer.Start(j.ctx, "put in force")
	}
	told, connected := 0, 0
	for i := range s.Proxies {
		if s.Proxies[i].Connected {
			connected++
			if s.Proxies[i].Release == id {
				told++
			}
		}
	}
	proxies := attribute.Int("chandler.proxies", connected)
	if told == connected && connected > 0 && j.told != nil {
		j.told.SetAttributes(proxies)
		j.told.End()
		j.told = nil
	}
	switch {
	case s.Desired > 0 && s.InForce == s.Desired && told == connected:
		j.force.SetAttributes(attribute.Int("chandler.proxies", s.InForce))
		j.force.End()
		j.force = nil
		js.end(uid, outcomeInForce, proxies)
	case s.Desired == 0 && js.now().Sub(j.assigned) > noProxies:
		j.told, j.force = over(j.told), over(j.force)
		js.end(uid, outcomeNobody)
	}
}

func over(s trace.Span) trace.Span {
	if s != nil {
		s.End()
	}
	return nil
}

// stop ends what is under way.
func (js *journeys) stop() {
	js.mu.Lock()
	defer js.mu.Unlock()
	for uid := range js.open {
		js.end(uid, outcomeUnfinished)
	}
}
