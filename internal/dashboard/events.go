package dashboard

import (
	"net/url"
	"slices"
	"strconv"
	"strings"

	"chandler.dev/chandler"
)

// event is one of the timeline.
type event struct {
	chandler.Event
	About bool // a plugin
}

// maxEvents is how many a page of the timeline has.
const maxEvents = 100

// latest gives the newest events that are asked for, the newest first.
func (s *snapshot) latest(limit int, want func(*chandler.Event) bool) []event {
	var all []event
	for i := len(s.events) - 1; i >= 0 && len(all) < limit; i-- {
		if e := &s.events[i]; want(e) {
			all = append(all, event{*e, e.Key != (chandler.Key{})})
		}
	}
	return all
}

// events is the timeline.
func (d *dashboard) events(v *view) (string, string, any, error) {
	type content struct {
		Events              []event
		Plugin, Proxy, Text string
		Reason              chandler.EventReason
		Warnings            bool
		Reasons             []chandler.EventReason
		Older               string // the address of the next page; empty: there is none
		Filtered            bool
	}
	q := v.query
	c := content{
		Plugin: strings.TrimSpace(q.Get("plugin")), Proxy: strings.TrimSpace(q.Get("proxy")), Text: strings.TrimSpace(q.Get("text")),
		Reason: chandler.EventReason(q.Get("reason")), Warnings: q.Get("warnings") != "",
	}
	c.Filtered = c.Plugin != "" || c.Proxy != "" || c.Text != "" || c.Reason != "" || c.Warnings
	before, _ := strconv.ParseUint(q.Get("before"), 10, 64)
	c.Events = v.latest(maxEvents+1, func(e *chandler.Event) bool {
		return (before == 0 || e.ID < before) &&
			(c.Reason == "" || e.Reason == c.Reason) && (!c.Warnings || e.Warning) &&
			holds(e.Key.Namespace+"/"+e.Key.Name, c.Plugin) && holds(e.Node, c.Proxy) && holds(e.Message+" "+e.By, c.Text)
	})
	if len(c.Events) > maxEvents {
		c.Events = c.Events[:maxEvents]
		next := url.Values{"before": {strconv.FormatUint(c.Events[maxEvents-1].ID, 10)}}
		for _, name := range []string{"plugin", "proxy", "text", "reason", "warnings"} {
			if q.Get(name) != "" {
				next.Set(name, q.Get(name))
			}
		}
		c.Older = Root + "events?" + next.Encode()
	}
	for i := range v.events {
		if r := v.events[i].Reason; !slices.Contains(c.Reasons, r) {
			c.Reasons = append(c.Reasons, r)
		}
	}
	slices.Sort(c.Reasons)
	return "events", "Events", c, nil
}

// holds tells whether a text is found in another, whatever the case; an empty one
// always is.
func holds(in, text string) bool {
	return text == "" || strings.Contains(strings.ToLower(in), strings.ToLower(text))
}
