package suite

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/exchange"
	"chandler.dev/chandler/internal/strict"
)

// Failure is something that is not as expected.
type Failure struct {
	// Step is the number of the step, from 1; 0: the plugin's start.
	Step int `json:"step,omitempty"`
	// What is that which differs, such as "header x-a".
	What string `json:"what"`
	Want string `json:"want"`
	Got  string `json:"got"`
}

// seen is what came of a step on one engine.
type seen struct {
	outcome *exchange.Outcome // nil: the step had no request
	calls   []exchange.Call
	logs    []exchange.Log
	metrics map[string]int64
}

// comparison gathers failures.
type comparison struct {
	step     int
	failures []Failure
}

func (c *comparison) fail(what, want, got string) {
	c.failures = append(c.failures, Failure{c.step, what, want, got})
}

// judge compares what came of a step with what was expected of it.
func (c *comparison) judge(e *Expect, s *seen) {
	if o := s.outcome; o != nil {
		c.exchange(e, o)
	}
	if e.Calls != nil {
		c.calls(*e.Calls, s.calls)
	}
	if e.Logs != nil {
		c.logs(e.Logs, s.logs)
	}
	for _, name := range slices.Sorted(maps.Keys(e.Metrics)) {
		want := e.Metrics[name]
		if got, ok := s.metrics[name]; !ok {
			c.fail("metric "+name, want.String(), "nothing of that name"+among(slices.Sorted(maps.Keys(s.metrics))))
		} else if !want.Holds(got) {
			c.fail("metric "+name, want.String(), strconv.FormatInt(got, 10))
		}
	}
}

func among(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return ", but " + strings.Join(names[:min(10, len(names))], ", ")
}

// exchange compares what the client and the upstream got.
func (c *comparison) exchange(e *Expect, o *exchange.Outcome) {
	switch {
	case o.Trap != "" && !e.Trap.Expected:
		c.fail("trap", "none", o.Trap)
	case o.Trap == "" && e.Trap.Expected:
		c.fail("trap", "the VM fails", "it does not")
	case e.Trap.How != nil && !e.Trap.How.MatchString(o.Trap):
		c.fail("trap", "matches "+e.Trap.How.String(), o.Trap)
	}
	if o.Response == nil {
		if !e.Reset {
			got := "the stream was reset"
			if o.Details != "" {
				got += " (" + o.Details + ")"
			}
			c.fail("response", "one", got)
		}
	} else if e.Reset {
		status, _ := o.Response.Get(":status")
		c.fail("response", "none: the stream is reset", "status "+status)
	} else {
		c.response(e, o)
	}
	if e.Upstream != nil {
		c.reached(e.Upstream, o.Upstream)
	}
	if e.Details != nil {
		c.match("details", e.Details, underscored(o.Details), o.Details != "", underscored)
	}
}

// underscored is how Envoy writes a text that is one word for it.
func underscored(s string) string { return strings.Join(strings.Fields(s), "_") }

func (c *comparison) response(e *Expect, o *exchange.Outcome) {
	if e.Status != 0 {
		if got, _ := o.Response.Get(":status"); got != strconv.Itoa(e.Status) {
			what := ""
			if o.Details != "" {
				what = " (" + o.Details + ")"
			}
			c.fail("status", strconv.Itoa(e.Status), got+what)
		}
	}
	if o.Cut != e.Cut {
		said := map[bool]string{true: "not as long as its content-length says", false: "as long as is said"}
		c.fail("body's length", said[e.Cut], said[o.Cut])
	}
	c.message("", o.Response, e.Headers, e.Only, e.Body, e.Trailers)
}

// message compares headers, body and trailers; of says whose they are.
func (c *comparison) message(of string, m *exchange.Message, headers map[string]Match, only []string, body *BodyMatch, trailers map[string]Match) {
	c.fields(of+"header ", m, headers)
	if only != nil {
		allowed := map[string]bool{}
		for _, name := range only {
			allowed[strings.ToLower(name)] = true
		}
		for _, h := range m.Headers {
			if !allowed[h.Name] && !strings.HasPrefix(h.Name, ":") && !exchange.Own(h.Name) {
				c.fail(of+"header "+h.Name, "not there", strconv.Quote(h.Value))
			}
		}
	}
	if body != nil {
		c.body(of+"body", body, m.Body())
	}
	c.fields(of+"trailer ", &exchange.Message{Headers: m.Trailers}, trailers)
}

func (c *comparison) fields(what string, m *exchange.Message, want map[string]Match) {
	for _, name := range slices.Sorted(maps.Keys(want)) {
		match := want[name]
		got, there := m.Get(strings.ToLower(name))
		c.match(what+name, &match, got, there, nil)
	}
}

// match compares a text. Several values are one text, with commas between them.
func (c *comparison) match(what string, m *Match, got string, there bool, form func(string) string) {
	if form == nil {
		form = func(s string) string { return s }
	}
	shown := "nothing"
	if there {
		shown = chandler.Quote(got)
	}
	if m.Absent {
		if there {
			c.fail(what, "not there", shown)
		}
		return
	}
	if m.Is != nil {
		if want := form(joined(m.Is)); !there || got != want {
			c.fail(what, chandler.Quote(want), shown)
		}
	}
	for _, part := range m.Contains {
		if !there || !strings.Contains(got, form(string(part))) {
			c.fail(what, "with "+chandler.Quote(string(part))+" in it", shown)
		}
	}
	if m.Matches != nil && (!there || !m.Matches.MatchString(got)) {
		c.fail(what, "matches "+m.Matches.String(), shown)
	}
}

func joined(v Values) string {
	all := make([]string, len(v))
	for i := range v {
		all[i] = string(v[i])
	}
	return strings.Join(all, ",")
}

func (c *comparison) body(what string, m *BodyMatch, got []byte) {
	exact := func(want []byte) {
		if !bytes.Equal(got, want) {
			w, g := different(string(want), string(got))
			c.fail(what, w, g)
		}
	}
	if m.Is != nil {
		exact([]byte(*m.Is))
	}
	if m.File != "" {
		exact(m.file)
	}
	for _, part := range m.Contains {
		if !bytes.Contains(got, []byte(part)) {
			c.fail(what, "with "+chandler.Quote(string(part))+" in it", chandler.Quote(string(got)))
		}
	}
	if m.Matches != nil && !m.Matches.Match(got) {
		c.fail(what, "matches "+m.Matches.String(), chandler.Quote(string(got)))
	}
	if m.JSON != nil && !sameJSON(*m.JSON, got) {
		c.fail(what, "the JSON "+string(*m.JSON), chandler.Quote(string(got)))
	}
}

// different shows two texts: the whole of both, or from shortly before they differ.
func different(want, got string) (w, g string) {
	const lead = 24
	at := 0
	for at < min(len(want), len(got)) && want[at] == got[at] {
		at++
	}
	if max(len(want), len(got)) <= chandler.MaxQuoted || at <= lead {
		return chandler.Quote(want), chandler.Quote(got)
	}
	from := fmt.Sprintf("from byte %d: ", at-lead)
	return from + chandler.Quote(want[at-lead:]), from + chandler.Quote(got[at-lead:])
}

// sameJSON tells whether two texts are JSON and mean the same.
func sameJSON(want strict.JSON, got []byte) bool {
	var w, g any
	dw, dg := json.NewDecoder(bytes.NewReader(want)), json.NewDecoder(bytes.NewReader(got))
	if dw.Decode(&w) != nil || dg.Decode(&g) != nil || dg.More() {
		return false
	}
	return reflect.DeepEqual(w, g)
}

func (c *comparison) reached(want *Reached, got *exchange.Message) {
	if want.Word == "notReached" {
		if got != nil {
			path, _ := got.Get(":path")
			c.fail("upstream", "not reached", "reached with "+chandler.Quote(path))
		}
		return
	}
	if got == nil {
		c.fail("upstream", "reached", "not reached")
		return
	}
	c.request("upstream ", got, want.Method, want.Path, want.Authority)
	c.message("upstream ", got, want.Headers, want.Only, want.Body, want.Trailers)
}

func (c *comparison) request(of string, got *exchange.Message, method string, path, authority *Match) {
	if m, _ := got.Get(":method"); method != "" && m != method {
		c.fail(of+"method", method, m)
	}
	if path != nil {
		p, there := got.Get(":path")
		c.match(of+"path", path, p, there, nil)
	}
	if authority != nil {
		a, there := got.Get(":authority")
		c.match(of+"authority", authority, a, there, nil)
	}
}

// calls compares call-outs one by one.
func (c *comparison) calls(want []Called, got []exchange.Call) {
	var flat []*Called
	for i := range want {
		for range max(1, want[i].Times) {
			flat = append(flat, &want[i])
		}
	}
	if len(flat) != len(got) {
		c.fail("calls", strconv.Itoa(len(flat)), strconv.Itoa(len(got))+listed(got))
		return
	}
	for i, w := range flat {
		of, g := fmt.Sprintf("call %d ", i+1), &got[i]
		if g.Cluster != w.Cluster {
			c.fail(of+"cluster", w.Cluster, g.Cluster)
			continue
		}
		c.request(of, &g.Request, w.Method, w.Path, w.Authority)
		c.message(of, &g.Request, w.Headers, nil, w.Body, nil)
	}
}

func listed(calls []exchange.Call) string {
	var b strings.Builder
	for i := range calls {
		method, _ := calls[i].Request.Get(":method")
		path, _ := calls[i].Request.Get(":path")
		fmt.Fprintf(&b, "; %s %s %s", calls[i].Cluster, method, chandler.Quote(path))
	}
	return strings.Replace(b.String(), ";", ":", 1)
}

func (l *LogMatch) matches(line exchange.Log) bool {
	if l.Level != "" && string(l.Level) != line.Level {
		return false
	}
	for _, part := range l.Contains {
		if !strings.Contains(line.Text, string(part)) {
			return false
		}
	}
	return l.Matches == nil || l.Matches.MatchString(line.Text)
}

func (l *LogMatch) String() string {
	var parts []string
	for _, p := range l.Contains {
		parts = append(parts, chandler.Quote(string(p)))
	}
	if l.Matches != nil {
		parts = append(parts, "matches "+l.Matches.String())
	}
	if l.Level != "" {
		parts = append(parts, "at level "+string(l.Level))
	}
	return strings.Join(parts, ", ")
}

func (c *comparison) logs(want *Logs, got []exchange.Log) {
	for i := range want.Has {
		if !slices.ContainsFunc(got, want.Has[i].matches) {
			c.fail("log", "a line with "+want.Has[i].String(), lines(got))
		}
	}
	for i := range want.Absent {
		if at := slices.IndexFunc(got, want.Absent[i].matches); at >= 0 {
			c.fail("log", "no line with "+want.Absent[i].String(), chandler.Quote(got[at].Text))
		}
	}
}

// lines shows what was logged.
func lines(logs []exchange.Log) string {
	if len(logs) == 0 {
		return "nothing was logged"
	}
	var all []string
	for _, l := range logs[max(0, len(logs)-10):] {
		all = append(all, l.Level+": "+chandler.Printable(l.Text, 256))
	}
	return strings.Join(all, "\n")
}
