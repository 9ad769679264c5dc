package dashboard

import (
	"encoding/json"
	"fmt"
	"html/template"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"chandler.dev/chandler"
)

const (
	maxRows    = 100  // proxies on a page of the table
	mapFrom    = 60   // proxies: of more a map is drawn, of fewer a table
	maxStrips  = 12   // namespaces that have a column of the map
	maxMapped  = 5000 // proxies of a map
	maxColumns = 60   // plugins of a page
	wideUpTo   = 3    // plugins of a table with words
)

// matrix is every plugin on every proxy. Of many proxies it is a map: a square for each,
// at the same place in every plugin's row. Of few it is a table.
type matrix struct {
	Asked   asked
	Plugins []*plugin
	// Left is how many plugins are left out, All how many proxies there are before any
	// is left out by a state.
	Left, All int
	Proxies   []*proxy
	Map       bool
	Legend    []legendCount
	// Columns, Rows: of the map, on which Unmapped proxies have no place.
	Unmapped int
	Columns  []column
	Rows     []mapRow
	// Wide: the plugins are so few that there is room for words.
	Wide bool
	// Groups are the rows of the table, and the pages around them.
	Groups         []tableGroup
	From, To       int
	Prev, Next     string
	AsMap, AsTable string
	Namespaces     []string
	byMark         [marks]legend
}

// asked is what a viewer asks for.
type asked struct {
	Plugin, Proxy, Namespace, State, View string
	Page                                  int
}

func (a asked) Filtered() bool {
	return a.Plugin != "" || a.Proxy != "" || a.Namespace != "" || a.State != ""
}

// address gives the page with something of it changed.
func (a asked) address(change func(*asked)) string {
	change(&a)
	q := url.Values{}
	for name, value := range map[string]string{"plugin": a.Plugin, "proxy": a.Proxy, "namespace": a.Namespace, "state": a.State, "view": a.View} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if a.Page > 1 {
		q.Set("page", strconv.Itoa(a.Page))
	}
	if len(q) == 0 {
		return Root + "matrix"
	}
	return Root + "matrix?" + q.Encode()
}

type legendCount struct {
	One     legend
	Count   int
	Chosen  bool
	Address string
}

// column is a namespace's on the map.
type column struct {
	Word    string
	Proxies []*proxy
	// Names is a list in JSON, for the script that says what is under the pointer.
	Names string
}

type mapRow struct {
	*plugin
	Shown  counts
	Strips []template.HTML
}

type tableGroup struct {
	Namespace string
	Count     int
	Rows      []tableRow
}

type tableRow struct {
	Proxy *proxy
	Cells template.HTML
}

func (d *dashboard) matrix(v *view) (string, string, any, error) {
	q := v.query
	page, _ := strconv.Atoi(q.Get("page"))
	m := matrix{
		Asked: asked{
			Plugin: strings.TrimSpace(q.Get("plugin")), Proxy: strings.TrimSpace(q.Get("proxy")), Namespace: q.Get("namespace"),
			State: q.Get("state"), View: q.Get("view"), Page: max(page, 1),
		},
		Namespaces: v.namespaces(),
	}
	for i := range m.byMark {
		m.byMark[i] = mark(i).legend()
	}
	m.choose(v.snapshot)
	m.Map = m.Asked.View == "map" || m.Asked.View != "table" && len(m.Proxies) > mapFrom
	m.AsMap = m.Asked.address(func(a *asked) { a.View, a.Page = "map", 1 })
	m.AsTable = m.Asked.address(func(a *asked) { a.View, a.Page = "table", 1 })
	if m.Map {
		m.draw()
	} else {
		m.list()
	}
	return "matrix", "Matrix", m, nil
}

// choose finds the plugins and proxies that are asked for, and counts how they fare.
func (m *matrix) choose(s *snapshot) {
	a := m.Asked
	for _, p := range s.proxies {
		if (a.Namespace == "" || p.Namespace == a.Namespace) && holds(p.ID(), a.Proxy) {
			m.Proxies = append(m.Proxies, p)
		}
	}
	m.All = len(m.Proxies)
	state := notSelected
	for _, l := range legends() {
		if l.Letter == a.State {
			state = l.mark
		}
	}
	var seen counts
	has := make([]bool, 0)
	if n := len(s.proxies); n > 0 {
		has = make([]bool, s.proxies[n-1].index+1)
	}
	for _, p := range s.plugins {
		if !holds(p.Namespace+"/"+p.Name, a.Plugin) {
			continue
		}
		var its counts
		for _, on := range m.Proxies {
			mark := p.marks[on.index]
			its[mark]++
			has[on.index] = has[on.index] || mark == state
		}
		if a.Filtered() && its.Total() == 0 || state != notSelected && its[state] == 0 {
			continue
		}
		for i := range seen {
			seen[i] += its[i]
		}
		m.Plugins = append(m.Plugins, p)
	}
	if state != notSelected {
		m.Proxies = slices.DeleteFunc(m.Proxies, func(p *proxy) bool { return !has[p.index] })
	}
	if len(m.Plugins) > maxColumns {
		m.Plugins, m.Left = m.Plugins[:maxColumns], len(m.Plugins)-maxColumns
	}
	for _, l := range legends() {
		one := legendCount{One: l, Count: seen[l.mark], Chosen: l.mark == state}
		one.Address = a.address(func(a *asked) {
			a.State, a.Page = l.Letter, 1
			if one.Chosen {
				a.State = ""
			}
		})
		m.Legend = append(m.Legend, one)
	}
}

// draw makes the map.
func (m *matrix) draw() {
	byNamespace := map[string][]*proxy{}
	mapped := m.Proxies[:min(len(m.Proxies), maxMapped)]
	m.Unmapped = len(m.Proxies) - len(mapped)
	for _, p := range mapped {
		byNamespace[p.Namespace] = append(byNamespace[p.Namespace], p)
	}
	names := make([]string, 0, len(byNamespace))
	for n := range byNamespace {
		names = append(names, n)
	}
	slices.SortFunc(names, func(a, b string) int { return len(byNamespace[b]) - len(byNamespace[a]) })
	var others []string
	if len(names) > maxStrips {
		names, others = names[:maxStrips-1], names[maxStrips-1:]
	}
	slices.Sort(names)
	slices.Sort(others)
	for _, n := range names {
		m.Columns = append(m.Columns, column{Word: n, Proxies: byNamespace[n]})
	}
	if len(others) > 0 {
		rest := column{Word: plural(len(others), "other namespace", "other namespaces")}
		for _, n := range others {
			rest.Proxies = append(rest.Proxies, byNamespace[n]...)
		}
		m.Columns = append(m.Columns, rest)
	}
	sizes := make([]int, len(m.Columns))
	for i := range m.Columns {
		c := &m.Columns[i]
		sizes[i] = len(c.Proxies)
		ids := make([]string, len(c.Proxies))
		for n, p := range c.Proxies {
			ids[n] = p.ID()
		}
		b, _ := json.Marshal(ids) // strings only
		c.Names = string(b)
	}
	height := stripHeight(sizes)
	for _, p := range m.Plugins {
		row := mapRow{plugin: p}
		for i := range m.Columns {
			row.Strips = append(row.Strips, strip(p, &m.Columns[i], height, &row.Shown))
		}
		m.Rows = append(m.Rows, row)
	}
}

// list makes the table's page.
func (m *matrix) list() {
	m.Wide = len(m.Plugins) <= wideUpTo
	from := min((m.Asked.Page-1)*maxRows, len(m.Proxies))
	to := min(from+maxRows, len(m.Proxies))
	m.From, m.To = from+1, to
	if from > 0 {
		m.Prev = m.Asked.address(func(a *asked) { a.Page-- })
	}
	if to < len(m.Proxies) {
		m.Next = m.Asked.address(func(a *asked) { a.Page++ })
	}
	for _, p := range m.Proxies[from:to] {
		if n := len(m.Groups); n == 0 || m.Groups[n-1].Namespace != p.Namespace {
			m.Groups = append(m.Groups, tableGroup{Namespace: p.Namespace})
		}
		g := &m.Groups[len(m.Groups)-1]
		g.Rows = append(g.Rows, tableRow{p, m.cells(p)})
	}
	for i := range m.Groups {
		for _, p := range m.Proxies {
			if p.Namespace == m.Groups[i].Namespace {
				m.Groups[i].Count++
			}
		}
	}
}

// cells are a proxy's row of the table. They are many, so they are no template.
func (m *matrix) cells(on *proxy) template.HTML {
	var b strings.Builder
	for _, p := range m.Plugins {
		l := m.byMark[p.marks[on.index]]
		if l.mark == notSelected {
			b.WriteString(`<td class="c-none"><b>not selected</b></td>`)
			continue
		}
		if m.Wide {
			text := ""
			if line := p.lines[on.index]; line != nil && line.Reason != "" {
				text = string(line.Reason) + " " + chandler.Printable(line.Message, maxTitle)
			}
			fmt.Fprintf(&b, `<td class="c-%s" title="%s"><b>%s</b> <span class="words">%s</span></td>`,
				l.Class, template.HTMLEscapeString(p.says(on, l)), strings.ToLower(l.Word), template.HTMLEscapeString(text))
			continue
		}
		fmt.Fprintf(&b, `<td class="c-%s" title="%s"><b>%s</b></td>`, l.Class, template.HTMLEscapeString(p.says(on, l)), strings.ToLower(l.Word))
	}
	return template.HTML(b.String())
}

// maxTitle bounds a message in a title, in bytes.
const maxTitle = 240

// says tells in words how a plugin fares on a proxy.
func (p *plugin) says(on *proxy, l legend) string {
	text := p.Namespace + "/" + p.Name + " on " + on.ID() + ": " + strings.ToLower(l.Word)
	if line := p.lines[on.index]; line != nil {
		text += decides(l.mark, line)
		if line.Reason != "" {
			text += "; " + string(line.Reason)
		}
		if line.Message != "" {
			text += ": " + line.Message
		}
	}
	return chandler.Printable(text, maxTitle+len(on.ID())+len(p.Name)+len(p.Namespace))
}

// decides names the release that decides requests, or did when that was last known.
func decides(m mark, line *chandler.ProxyStatus) string {
	switch {
	case line.InForce == "":
		return ""
	case m == inForce, m == inForceOther, m == faulting:
		return ", release " + line.InForce.Short()
	case m == away, line.Reason == chandler.CodeEnvoyDown:
		return ", last with release " + line.InForce.Short()
	}
	return ", with release " + line.InForce.Short() + " in force"
}
