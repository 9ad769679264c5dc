package dashboard

import (
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/access"
)

// proxyLine is a proxy in the list of all.
type proxyLine struct {
	*proxy
	Counts counts
}

// Ready counts the plugins that are in force, of those that are to be.
func (p proxyLine) Ready() string {
	return number(p.Counts[inForce]) + " / " + number(p.Counts.Total())
}

// proxies is the list of proxies.
func (d *dashboard) proxies(v *view) (string, string, any, error) {
	type content struct {
		Lines           []proxyLine
		All, Found      int
		From, To        int
		Text, Namespace string
		Away            bool
		Prev, Next      string
		Namespaces      []string
	}
	c := content{All: len(v.snapshot.proxies), Text: strings.TrimSpace(v.query.Get("proxy")), Namespace: v.query.Get("namespace"), Away: v.query.Get("away") != "", Namespaces: v.namespaces()}
	var found []*proxy
	for _, p := range v.snapshot.proxies {
		text := p.ID() + " " + p.EnvoyVersion
		for _, k := range slices.Sorted(maps.Keys(p.Labels)) {
			text += " " + k + "=" + p.Labels[k]
		}
		if holds(text, c.Text) && (c.Namespace == "" || c.Namespace == p.Namespace) && (!c.Away || !p.Connected) {
			found = append(found, p)
		}
	}
	page, _ := strconv.Atoi(v.query.Get("page"))
	page = min(max(page, 1), len(found)/maxRows+1)
	from := (page - 1) * maxRows
	to := min(from+maxRows, len(found))
	c.Found, c.From, c.To = len(found), from+1, to
	address := func(page int) string {
		q := url.Values{"page": {strconv.Itoa(page)}}
		for _, name := range []string{"proxy", "namespace", "away"} {
			if v.query.Get(name) != "" {
				q.Set(name, v.query.Get(name))
			}
		}
		return Root + "proxies?" + q.Encode()
	}
	if from > 0 {
		c.Prev = address(page - 1)
	}
	if to < len(found) {
		c.Next = address(page + 1)
	}
	for _, p := range found[from:to] {
		one := proxyLine{proxy: p}
		for _, plugin := range v.plugins {
			one.Counts[plugin.marks[p.index]]++
		}
		c.Lines = append(c.Lines, one)
	}
	return "proxies", "Proxies", c, nil
}

// member is a plugin in a slot; one that the viewer may not see has no name.
type member struct {
	chandler.SlotMember
	Seen, There bool
}

type slot struct {
	chandler.Slot
	Word    string
	Members []member
}

type listener struct {
	chandler.Listener
	Slots []slot
}

// pluginLine is a plugin of a proxy's page.
type pluginLine struct {
	Key    chandler.Key
	There  bool // its object is
	Legend legend
	*chandler.AttachmentState
}

type proxyContent struct {
	*proxy
	Labels    []string
	Listeners []listener
	Plugins   []pluginLine
	Bypassed  []chandler.Bypass
	Counts    counts
	// Full is how full the store is, in hundredths; -1: it has no limit.
	Full   int
	Events []event
}

func (d *dashboard) proxy(v *view) (string, string, any, error) {
	id := v.path("namespace") + "/" + v.path("name")
	p := v.byNode[id]
	if p == nil {
		return "", "", nil, missing{"There is no such proxy, or you may not see it."}
	}
	c := proxyContent{proxy: p, Full: -1}
	for _, k := range slices.Sorted(maps.Keys(p.Node.Labels)) {
		c.Labels = append(c.Labels, k+"="+p.Node.Labels[k])
	}
	if f := p.Facts; f != nil {
		for _, l := range f.Listeners {
			c.Listeners = append(c.Listeners, v.listener(l))
		}
		for _, b := range f.Bypassed {
			if v.sight.May(access.List, b.Namespace) {
				c.Bypassed = append(c.Bypassed, b)
			}
		}
		if f.Store.Limit > 0 {
			c.Full = int(min(f.Store.Bytes*100/f.Store.Limit, 100))
		}
	}
	c.Plugins = v.pluginsOf(p, &c.Counts)
	c.Events = v.latest(maxRecent, func(e *chandler.Event) bool { return e.Node == id })
	return "proxy", p.Name, c, nil
}

// listener shows a listener's slots with the plugins that the viewer may see.
func (v *view) listener(l chandler.Listener) listener {
	out := listener{Listener: l}
	for _, s := range l.Slots {
		one := slot{Slot: s, Word: string(s.Type)}
		if s.Type != chandler.Network {
			if one.Word = string(s.Phase); s.Phase == chandler.PhaseUnspecified {
				one.Word = "UNSPECIFIED"
			}
		}
		for _, m := range s.Members {
			one.Members = append(one.Members, member{m, v.sight.May(access.List, m.Namespace), v.byKey[m.Key] != nil})
		}
		out.Slots = append(out.Slots, one)
	}
	return out
}

// pluginsOf gives the plugins that are for a proxy, and those that it still speaks of.
func (v *view) pluginsOf(p *proxy, into *counts) []pluginLine {
	var all []pluginLine
	for _, plugin := range v.plugins {
		m := plugin.marks[p.index]
		if m == notSelected {
			continue
		}
		into[m]++
		l := pluginLine{Key: plugin.Key, There: true, Legend: m.legend()}
		if line := plugin.lines[p.index]; line != nil {
			l.AttachmentState = &line.AttachmentState
		}
		all = append(all, l)
	}
	for key, state := range p.States {
		if one := v.byKey[key]; (one == nil || one.marks[p.index] == notSelected) && v.sight.May(access.List, key.Namespace) {
			all = append(all, pluginLine{Key: key, There: one != nil, Legend: notSelected.legend(), AttachmentState: &state})
		}
	}
	slices.SortFunc(all, func(a, b pluginLine) int { return a.Key.Compare(b.Key) })
	return all
}
