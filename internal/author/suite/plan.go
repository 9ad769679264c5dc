package suite

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"chandler.dev/chandler/internal/exchange"
	"chandler.dev/chandler/internal/strict"
)

// configurePrefix is before the names of configurations.
const configurePrefix = "configure/"

// Test is a case with all that follows from the file.
type Test struct {
	// Name is the case's; of a configuration it begins with "configure/".
	Name  string
	Scope Scope
	Setup exchange.Setup

	configure *Configure // or
	steps     []planned
}

// planned is a step as it is run.
type planned struct {
	*Step
	exchange exchange.Exchange
}

// Tests are the file's cases in their order.
func (f *File) Tests() []Test {
	var tests []Test
	for i := range f.Configure {
		c := &f.Configure[i]
		tests = append(tests, Test{Name: configurePrefix + c.Name, Scope: c.Scope, Setup: f.setup(&c.Settings, c.Now), configure: c})
	}
	for i := range f.Cases {
		c := &f.Cases[i]
		t := Test{Name: c.Name, Scope: c.Scope, Setup: f.setup(&c.Settings, c.Now)}
		steps := c.Steps
		if steps == nil {
			steps = []Step{c.Step}
		}
		for i := range steps {
			t.steps = append(t.steps, planned{&steps[i], f.exchange(&steps[i])})
			for _, a := range steps[i].Calls {
				t.Setup.Clusters = append(t.Setup.Clusters, a.Cluster)
			}
		}
		slices.Sort(t.Setup.Clusters)
		t.Setup.Clusters = slices.Compact(t.Setup.Clusters)
		tests = append(tests, t)
	}
	return tests
}

// clocked tells whether a test has a clock of its own.
func (t *Test) clocked() bool { return t.Setup.Now != nil }

// setup is the plugin with what a case says otherwise.
func (f *File) setup(s *Settings, now *Time) exchange.Setup {
	p := &f.Plugin
	setup := exchange.Setup{
		Module: f.Module, Name: p.Name, VMID: p.VMID,
		Memory: int64(f.Limits.Memory), Deadline: f.Limits.Deadline,
		Config: p.configBytes, Env: map[string]string{}, Clusters: append(slices.Clone(p.Clusters), s.Clusters...),
		Open: cmp.Or(s.FailStrategy, p.FailStrategy) == "FAIL_OPEN",
	}
	if s.configBytes != nil {
		setup.Config = s.configBytes
	}
	if vm := cmp.Or(s.VMConfig, p.VMConfig); vm != nil {
		setup.VMConfig = append([]byte{}, text(vm)...)
	}
	if root := cmp.Or(s.RootID, p.RootID); root != nil {
		setup.RootID = *root
	}
	for _, env := range []map[string]strict.Text{p.Env, s.Env} {
		for name, value := range env {
			setup.Env[name] = string(value)
		}
	}
	if t := cmp.Or(now, f.Now); t != nil {
		setup.Now = func() time.Time { return t.Time }
	}
	return setup
}

// exchange is what a step sends, with what the file says of all.
func (f *File) exchange(s *Step) exchange.Exchange {
	e := exchange.Exchange{Properties: map[string]string{}}
	for name, value := range s.Properties {
		e.Properties[name] = string(value)
	}
	for i := range s.Calls {
		e.Answers = append(e.Answers, s.Calls[i].answer())
	}
	if s.Request == nil {
		return e
	}
	r, d := s.Request, &f.Defaults.Request
	method := cmp.Or(r.Method, d.Method, "GET")
	body := r.Content.or(&d.Content)
	if cmp.Or(r.Method, d.Method) == "" && body.body != nil {
		method = "POST"
	}
	e.Request = body.message(
		exchange.Header{Name: ":method", Value: method},
		exchange.Header{Name: ":scheme", Value: cmp.Or(r.Scheme, d.Scheme, "http")},
		exchange.Header{Name: ":authority", Value: cmp.Or(r.Authority, d.Authority, "test.example")},
		exchange.Header{Name: ":path", Value: cmp.Or(r.Path, d.Path, "/")},
	)
	e.Request.Headers = append(e.Request.Headers, d.Headers.or(r.Headers)...)
	u := s.Upstream
	if u == nil {
		u = &Upstream{}
	}
	answer := u.Content.or(&f.Defaults.Upstream.Content)
	e.Upstream = answer.message(exchange.Header{Name: ":status", Value: strconv.Itoa(cmp.Or(u.Status, f.Defaults.Upstream.Status, 200))})
	e.Upstream.Headers = append(e.Upstream.Headers, f.Defaults.Upstream.Headers.or(u.Headers)...)
	return e
}

func (a *Answer) answer() exchange.Answer {
	m := (&Content{body: text(a.Body)}).message(exchange.Header{Name: ":status", Value: strconv.Itoa(cmp.Or(a.Status, 200))})
	m.Headers = append(m.Headers, a.Headers.or(nil)...)
	return exchange.Answer{Cluster: a.Cluster, Method: a.Method, Path: a.Path, Message: m, Delay: a.Delay, Fails: a.Fails, Times: a.Times}
}

// or is the content with what is not said taken from another.
func (c *Content) or(d *Content) *Content {
	all := *c
	if all.body == nil {
		all.body = d.body
	}
	if all.Chunks.Count == 0 && all.Chunks.Sizes == nil {
		all.Chunks = d.Chunks
	}
	if all.Chunked == nil {
		all.Chunked = d.Chunked
	}
	if all.Trailers == nil {
		all.Trailers = d.Trailers
	}
	return &all
}

func (c *Content) message(first ...exchange.Header) exchange.Message {
	return exchange.Message{
		Headers: first, Chunks: c.Chunks.cut(c.body), Trailers: c.Trailers.or(nil),
		Chunked: c.Trailers != nil || c.Chunked != nil && *c.Chunked,
	}
}

// cut divides a body.
func (c *Chunks) cut(body []byte) [][]byte {
	var pieces [][]byte
	take := func(n int) {
		if n = min(n, len(body)); n > 0 {
			pieces = append(pieces, body[:n:n])
			body = body[n:]
		}
	}
	for _, n := range c.Sizes {
		take(n)
	}
	if count := min(c.Count, len(body)); count > 1 {
		each, more := len(body)/count, len(body)%count
		for i := range count {
			if i < more {
				take(each + 1)
			} else {
				take(each)
			}
		}
	}
	take(len(body))
	return pieces
}

// or gives the fields, those of over instead of those of the same name, in the order
// of their names.
func (h Headers) or(over Headers) []exchange.Header {
	all := map[string]Values{}
	for _, fields := range []Headers{h, over} {
		for name, values := range fields {
			all[strings.ToLower(name)] = values
		}
	}
	var list []exchange.Header
	for _, name := range slices.Sorted(maps.Keys(all)) {
		for _, v := range all[name] {
			list = append(list, exchange.Header{Name: name, Value: string(v)})
		}
	}
	return list
}
