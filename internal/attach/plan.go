package attach

import (
	"fmt"
	"slices"
	"strings"

	"chandler.dev/chandler"
)

// plan decides which slots stand in listeners and notes what it decided. It knows
// no form of a listener: those that edit trees (editor) and protobuf (wireEditor)
// ask it, so that a plugin stands at the same place in both.
type plan struct {
	// shared: Envoy has the filter that shared slots need.
	shared bool
	// own are the slots of one plugin each, in the order in which they stand.
	own []Slot

	slots    map[Slot]bool // the shared ones that it put in
	sites    map[Site]bool
	layout   []Listener
	names    map[Counted]bool // of the listener at hand
	warnings []string
	// aside: the chain at hand serves nobody's requests, and gets nothing.
	aside bool
}

func newPlan(shared bool, own []Slot) plan {
	return plan{shared: shared, own: own, slots: map[Slot]bool{}, sites: map[Site]bool{}}
}

// inHTTP gives the slots of a chain of HTTP filters: at i those that stand directly
// before filter i. A filter of the user's must not have the name of a slot.
func (p *plan) inHTTP(chain []Filter, mode chandler.Mode, port uint32) [][]Slot {
	before := make([][]Slot, len(chain))
	if len(chain) == 0 || p.aside {
		return before
	}
	places := Places(chain)
	for i, phase := range chandler.Phases() {
		before[places[i]] = append(before[places[i]], p.ofPhase(phase, mode, port)...)
	}
	return before
}

// ofPhase are the slots of a phase among HTTP filters.
func (p *plan) ofPhase(phase chandler.Phase, mode chandler.Mode, port uint32) []Slot {
	if p.shared {
		slot := Slot{Phase: phase, Mode: mode, Port: port}
		p.slot(slot)
		return []Slot{slot}
	}
	site := Site{mode, port, false}
	p.site(site)
	return p.ownAt(site, phase)
}

// inNetwork gives the slots of NETWORK plugins, which stand before a chain's connection
// manager or terminal filter, in the order of their phases.
func (p *plan) inNetwork(mode chandler.Mode, port uint32) []Slot {
	if p.aside {
		return nil
	}
	site := Site{mode, port, true}
	p.site(site)
	var slots []Slot
	for _, phase := range chandler.Phases() {
		slots = append(slots, p.ownAt(site, phase)...)
	}
	return slots
}

// ownAt are the slots of one plugin each that stand at a site, in order.
func (p *plan) ownAt(site Site, phase chandler.Phase) []Slot {
	var slots []Slot
	for _, slot := range p.own {
		if slot.Phase == phase && (Site{slot.Mode, slot.Port, slot.Network}) == site {
			slots = append(slots, slot)
		}
	}
	return slots
}

// enter begins with a listener.
func (p *plan) enter(l Listener) {
	p.layout = append(p.layout, l)
	p.names = map[Counted]bool{}
}

// slot notes a shared slot of the listener at hand.
func (p *plan) slot(s Slot) {
	p.slots[s] = true
	if l := &p.layout[len(p.layout)-1]; !slices.Contains(l.Slots, s) {
		l.Slots = append(l.Slots, s)
	}
}

// site notes a site of the listener at hand.
func (p *plan) site(s Site) {
	p.sites[s] = true
	if l := &p.layout[len(p.layout)-1]; !slices.Contains(l.Sites, s) {
		l.Sites = append(l.Sites, s)
	}
}

// statName makes a text fit for the name of a statistic, as Envoy does.
var statName = strings.NewReplacer("://", "_", ":/", "_", ":", "_", "\x00", "_")

// counted notes under which name Envoy counts what a connection manager does.
func (p *plan) counted(statPrefix string, mode chandler.Mode, port uint32) {
	m := Counted{statName.Replace(statPrefix), mode, port}
	if l := &p.layout[len(p.layout)-1]; m.Stats != "" && !p.names[m] && !p.aside {
		p.names[m] = true
		l.Counted = append(l.Counted, m)
	}
}

// warnDatagrams and warnEmpty note what gets no plugins though it can be read.
func (p *plan) warnDatagrams(path string) {
	p.warnings = append(p.warnings, path+" takes datagrams: it runs no NETWORK plugins")
}

// begin begins with a chain, whose connection managers stand aside for these reasons; an
// empty one: that one does not, and so none does.
func (p *plan) begin(whys []string, path func() string) {
	if p.aside = len(whys) > 0 && !slices.Contains(whys, ""); p.aside {
		p.warnings = append(p.warnings, fmt.Sprintf("%s %s: it runs no plugins", path(), whys[0]))
	}
}

func (p *plan) warnEmpty(path string) {
	p.warnings = append(p.warnings, fmt.Sprintf("%s has no filters, not even a router: it gets no plugins", path))
}

// modeOf tells inbound from outbound; a listener without a direction counts as a
// gateway's, which is a client.
func modeOf(inbound bool) chandler.Mode {
	if inbound {
		return chandler.ModeServer
	}
	return chandler.ModeClient
}
