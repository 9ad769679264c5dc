package dashboard

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/access"
	"chandler.dev/chandler/internal/schema"
)

// Bounds of a plugin's page.
const (
	maxFailing = chandler.MaxFailures
	maxLines   = 50 // proxies
	maxImports = 200
	maxRecent  = 15 // events
)

// line is a proxy of a plugin's page.
type line struct {
	Node   string
	Legend legend
	*chandler.ProxyStatus
}

// past is a release of a plugin's history, with what is recorded of it.
type past struct {
	chandler.HistoricRelease
	Known   bool
	Is      chandler.Release
	Present bool
	// Against leads to what differs from the release before; empty: there is none.
	Against string
}

// change is something in which two releases differ, beside their configuration.
type change struct{ Field, Before, After string }

// difference is what differs between two releases.
type difference struct {
	From, To chandler.ReleaseID
	Missing  string // why there is nothing to compare
	Fields   []change
	Config   []diffLine
	Cut, Hid bool
	MayRead  bool
}

type pluginContent struct {
	*plugin
	MayRead      bool
	Conditions   []chandler.Condition
	Imports      []string
	MoreImports  int
	ImportsKnown bool
	Config       string
	ConfigHid    bool
	Env          []string
	Schema       []schema.Property
	SchemaMore   bool
	Failing      []line
	MoreFailing  int
	Lines        []line
	MoreLines    int
	Legend       []legendCount
	History      []past
	Difference   *difference
	Events       []event
	InMatrix     string
}

func (d *dashboard) plugin(v *view) (string, string, any, error) {
	key := v.key()
	p := v.byKey[key]
	if p == nil {
		return "", "", nil, missing{"There is no such plugin, or you may not see it."}
	}
	c := pluginContent{
		plugin: p, MayRead: v.sight.May(access.Read, key.Namespace),
		Conditions: p.Status.Conditions,
		InMatrix:   asked{}.address(func(a *asked) { a.Plugin, a.View = key.Namespace+"/"+key.Name, "table" }),
	}
	c.proxies()
	d.release(&c)
	c.History = p.history()
	c.Difference = c.difference(v)
	c.Events = v.latest(maxRecent, func(e *chandler.Event) bool { return e.Key == key })
	return "plugin", key.Name, c, nil
}

// proxies sorts a plugin's lines: what fails first.
func (c *pluginContent) proxies() {
	known := make(map[*chandler.ProxyStatus]mark, len(c.lines))
	for on, s := range c.lines {
		known[s] = c.marks[on]
	}
	for i := range c.Status.Proxies {
		s := &c.Status.Proxies[i]
		m, ok := known[s]
		if !ok { // the proxy itself is not known
			m = markOf(c.plugin, s, nil, false)
		}
		l := line{Node: s.Namespace + "/" + s.Node, Legend: m.legend(), ProxyStatus: s}
		c.Lines = append(c.Lines, l)
		if l.Legend.mark.failing() {
			c.Failing = append(c.Failing, l)
		}
	}
	slices.SortStableFunc(c.Lines, func(a, b line) int { return cmp.Compare(c.urgency(a.Legend.mark), c.urgency(b.Legend.mark)) })
	if len(c.Failing) > maxFailing {
		c.Failing, c.MoreFailing = c.Failing[:maxFailing], len(c.Failing)-maxFailing
	}
	if len(c.Lines) > maxLines {
		c.Lines, c.MoreLines = c.Lines[:maxLines], len(c.Lines)-maxLines
	}
	for _, l := range legends() {
		if n := c.Counts[l.mark]; n > 0 {
			c.Legend = append(c.Legend, legendCount{One: l, Count: n})
		}
	}
}

func (c *pluginContent) urgency(m mark) int {
	return slices.Index([]mark{rejected, failed, faulting, takenOut, onItsWay, inForceOther, away, unmatched, inForce, notSelected}, m)
}

// release fills in what is known of the release that is to be in force.
func (d *dashboard) release(c *pluginContent) {
	if c.ObjectView.Schema != nil {
		c.Schema, c.SchemaMore = c.ObjectView.Schema.Outline()
	}
	r := c.Status.Release
	if r == nil {
		return
	}
	if m := r.Program.Module; m != nil && d.cfg.Imports != nil {
		c.Imports, c.ImportsKnown = d.cfg.Imports(m.Digest)
		if len(c.Imports) > maxImports {
			c.Imports, c.MoreImports = c.Imports[:maxImports], len(c.Imports)-maxImports
		}
	}
	c.Env = environment(r, c.MayRead)
	if c.MayRead {
		c.Config, c.ConfigHid = c.text(r)
	}
}

// text is what a release is configured with, or its Lua code, for those who may read
// it. Whether something in the configuration of an earlier one is write-only is known
// only while the schema is the same; else all of it is hidden, if anything was.
func (p *plugin) text(r *chandler.Release) (text string, hid bool) {
	if r.Program.Lua != nil {
		return r.Program.Lua.InlineCode, false
	}
	var places [][]string
	if p.Hidden != nil && r.Config != nil {
		places = p.Hidden(r.Config)
	}
	if now := p.Status.Release; r.SecretConfig && (now == nil || !sameSchema(now.Schema, r.Schema)) {
		places = [][]string{{}}
	}
	return legible(r.Config, places)
}

func sameSchema(a, b *chandler.ConfigSchema) bool {
	return (a == nil) == (b == nil) && (a == nil || *a == *b)
}

// environment names a release's variables, with their values for those who may read
// them.
func environment(r *chandler.Release, read bool) []string {
	var all []string
	for _, v := range r.Env {
		switch {
		case v.Host:
			all = append(all, v.Name+" (of the proxy's machine)")
		case read:
			all = append(all, v.Name+"="+v.Value)
		default:
			all = append(all, v.Name)
		}
	}
	return all
}

// history gives what was in force, the newest first.
func (p *plugin) history() []past {
	if p.Rollout == nil {
		return nil
	}
	var all []past
	for i, h := range p.Rollout.History {
		one := past{HistoricRelease: h, Present: p.Status.Release != nil && h.Release == p.Status.Release.ID}
		one.Is, one.Known = p.recorded(h.Release)
		if i+1 < len(p.Rollout.History) {
			one.Against = comparison(p.Key, p.Rollout.History[i+1].Release, h.Release)
		}
		all = append(all, one)
	}
	return all
}

func comparison(k chandler.Key, from, to chandler.ReleaseID) string {
	return fmt.Sprintf("%s?from=%s&to=%s#difference", pluginPath(k), from, to)
}

// recorded gives a release of the plugin; false: it is recorded no more.
func (p *plugin) recorded(id chandler.ReleaseID) (chandler.Release, bool) {
	if r := p.Status.Release; r != nil && r.ID == id {
		return *r, true
	}
	for _, all := range [][]*chandler.Release{p.releases, p.History} {
		for _, r := range all {
			if r.ID == id {
				return *r, true
			}
		}
	}
	return chandler.Release{}, false
}

// difference compares the releases that are asked for, or the last two.
func (c *pluginContent) difference(v *view) *difference {
	from, to := chandler.ReleaseID(v.query.Get("from")), chandler.ReleaseID(v.query.Get("to"))
	if from == "" && to == "" && len(c.History) > 1 {
		from, to = c.History[1].Release, c.History[0].Release
	}
	if from == "" && to == "" {
		return nil
	}
	diff := &difference{From: from, To: to, MayRead: c.MayRead}
	before, ok1 := c.recorded(from)
	after, ok2 := c.recorded(to)
	if !ok1 || !ok2 {
		diff.Missing = "One of the two releases is recorded no more."
		return diff
	}
	diff.Fields = fields(&before, &after, c.MayRead)
	if c.MayRead {
		a, hid1 := c.text(&before)
		b, hid2 := c.text(&after)
		diff.Config, diff.Cut = compare(a, b)
		diff.Hid = hid1 || hid2
	}
	return diff
}

// fields are those in which two releases differ.
func fields(a, b *chandler.Release, read bool) []change {
	all := []change{
		{"Generation", fmt.Sprint(a.Generation), fmt.Sprint(b.Generation)},
		{"Reference", a.ShownReference(), b.ShownReference()},
		{"Artifact", string(a.Artifact), string(b.Artifact)},
		{"Module", string(moduleOf(a)), string(moduleOf(b))},
		{"ABI", a.ABI, b.ABI},
		{"Type", string(a.Type), string(b.Type)},
		{"Phase", string(a.Phase), string(b.Phase)},
		{"Priority", priority(a.Priority), priority(b.Priority)},
		{"Match", matches(a.Match), matches(b.Match)},
		{"Fail strategy", string(a.FailStrategy), string(b.FailStrategy)},
		{"Root id", a.RootID, b.RootID},
		{"Environment", strings.Join(environment(a, read), ", "), strings.Join(environment(b, read), ", ")},
		{"Secrets", secrets(a), secrets(b)},
		{"Capabilities", strings.Join(a.Capabilities, ", "), strings.Join(b.Capabilities, ", ")},
	}
	return slices.DeleteFunc(all, func(c change) bool { return c.Before == c.After })
}

func moduleOf(r *chandler.Release) chandler.ModuleDigest {
	switch {
	case r.Program.Module != nil:
		return r.Program.Module.Digest
	case r.Program.File != nil:
		return r.Program.File.Digest
	}
	return ""
}

func priority(p *int32) string {
	if p == nil {
		return "none"
	}
	return fmt.Sprint(*p)
}

func matches(all []chandler.Match) string {
	var parts []string
	for _, m := range all {
		part := cmp.Or(string(m.Mode), "any mode")
		if len(m.Ports) > 0 {
			part += " on " + strings.Trim(strings.ReplaceAll(fmt.Sprint(m.Ports), " ", ", "), "[]")
		}
		parts = append(parts, part)
	}
	return cmp.Or(strings.Join(parts, "; "), "all traffic")
}

// secrets names the secrets of a release with their versions, which tell nothing of
// their values.
func secrets(r *chandler.Release) string {
	var parts []string
	for _, s := range r.ConfigFrom {
		parts = append(parts, s.String()+" "+short(s.Version))
	}
	return strings.Join(parts, ", ")
}
