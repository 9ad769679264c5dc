package suite

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/exchange"
)

// agree compares what came of a step on two engines: all that the client, the upstream
// and the services that were called could see, and whether the VM failed. What is logged
// and counted may depend on time, and on how often an engine starts a plugin.
func (c *comparison) agree(a, b *seen) {
	if a.outcome == nil || b.outcome == nil {
		return
	}
	x, y := a.outcome, b.outcome
	if (x.Trap == "") != (y.Trap == "") {
		c.differ("trap", none(x.Trap), none(y.Trap))
	}
	if x.Cut != y.Cut {
		c.differ("cut", strconv.FormatBool(x.Cut), strconv.FormatBool(y.Cut))
	}
	// Envoy says no details of a response that ends before its time.
	whole := func(o *exchange.Outcome) bool { return o.Response != nil && !o.Cut }
	if p, q := underscored(x.Details), underscored(y.Details); p != q && whole(x) && whole(y) {
		c.differ("details", none(p), none(q))
	}
	c.same("response", x.Response, y.Response)
	c.same("upstream", x.Upstream, y.Upstream)
	if len(a.calls) != len(b.calls) {
		c.differ("calls", strconv.Itoa(len(a.calls))+listed(a.calls), strconv.Itoa(len(b.calls))+listed(b.calls))
		return
	}
	for i := range a.calls {
		of := fmt.Sprintf("call %d", i+1)
		if a.calls[i].Cluster != b.calls[i].Cluster {
			c.differ(of+" cluster", a.calls[i].Cluster, b.calls[i].Cluster)
		}
		c.same(of, &a.calls[i].Request, &b.calls[i].Request)
	}
}

// differ says what two engines gave.
func (c *comparison) differ(what, a, b string) { c.fail(what, a, b) }

func none(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// same compares two messages.
func (c *comparison) same(of string, a, b *exchange.Message) {
	if a == nil || b == nil {
		if a != b {
			there := map[bool]string{true: "there is none", false: "there is one"}
			c.differ(of, there[a == nil], there[b == nil])
		}
		return
	}
	c.sameFields(of+" header ", a.Headers, b.Headers)
	c.sameFields(of+" trailer ", a.Trailers, b.Trailers)
	if x, y := string(a.Body()), string(b.Body()); x != y {
		x, y = different(x, y)
		c.differ(of+" body", x, y)
	}
}

func (c *comparison) sameFields(what string, a, b []exchange.Header) {
	x, y := exchange.Message{Headers: a}, exchange.Message{Headers: b}
	names := map[string]bool{}
	for _, h := range append(slices.Clone(a), b...) {
		if h.Name != ":scheme" && !exchange.Own(h.Name) { // no request of HTTP/1.1 says its scheme
			names[h.Name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		v, there := x.Get(name)
		w, there2 := y.Get(name)
		if v != w || there != there2 {
			c.differ(what+name, quoted(v, there), quoted(w, there2))
		}
	}
}

func quoted(v string, there bool) string {
	if !there {
		return "not there"
	}
	return chandler.Quote(v)
}
