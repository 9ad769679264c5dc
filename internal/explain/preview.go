package explain

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/assign"
	"chandler.dev/chandler/internal/attach"
)

// MaxProxies is how many proxies are named of those that a change concerns.
const MaxProxies = 100

// Change is what would become of a plugin on a proxy.
type Change string

// The changes. To move is to stand in another slot, or elsewhere in its order, whatever
// else changes with it.
const (
	Attach Change = "attach"
	Update Change = "update"
	Move   Change = "move"
	Detach Change = "detach"
	None   Change = "none"
)

// Effect is what a change of a resource does to proxies: those alone on which something
// changes, by their names.
type Effect struct {
	Proxies []ProxyEffect
	More    bool // there are more
}

// ProxyEffect is what changes on one proxy.
type ProxyEffect struct {
	Node   string
	Change Change
	Slots  []SlotEffect
}

// SlotEffect is a slot of a listener in which something changes, with the plugins in the
// order in which requests meet them.
type SlotEffect struct {
	Listener, Slot string
	Before, After  []chandler.Key
}

// Fleet is the proxies and what they are to have.
type Fleet struct {
	root    string
	proxies []Proxy
	byKey   map[chandler.Key]*held
	by      map[string][]*held // by namespace
}

// held is a plugin with what proxies are told of it.
type held struct {
	plugin *chandler.Plugin
	on     bool // there is something to attach
	told   chandler.Attachment
}

// NewFleet gives a fleet as it is. Proxies are by name.
func NewFleet(root string, proxies []Proxy, objects []Object) *Fleet {
	f := &Fleet{root: root, proxies: proxies, byKey: map[chandler.Key]*held{}, by: map[string][]*held{}}
	for i := range objects {
		o := &objects[i]
		if o.Plugin == nil {
			continue
		}
		h := &held{plugin: o.Plugin, on: o.Denied}
		if o.Release != nil {
			_, out := o.Detached[o.Release.ID]
			h.on = !out
		}
		h.told = assign.Attach(assign.Candidate{Plugin: o.Plugin, Release: o.Release, Deny: o.Denied})
		if o.Release != nil {
			h.told.Behaviour = o.Release.Behaviour // without values of secrets
		}
		f.put(h)
	}
	return f
}

func (f *Fleet) put(h *held) {
	key := h.plugin.Key
	if old := f.byKey[key]; old != nil {
		f.by[key.Namespace] = slices.DeleteFunc(f.by[key.Namespace], func(o *held) bool { return o == old })
	}
	f.byKey[key] = h
	f.by[key.Namespace] = append(f.by[key.Namespace], h)
}

// Apply says what applying a plugin does once it is resolved, and makes it so in the
// fleet: what is asked afterwards comes on top. Whom a rollout would choose first is no
// matter of it. shown tells of which proxies to tell.
func (f *Fleet) Apply(p *chandler.Plugin, now time.Time, shown func(chandler.Node) bool) Effect {
	own := *p
	before := f.byKey[p.Key]
	own.Created = now
	if before != nil {
		own.UID, own.Created, own.Generation = before.plugin.UID, before.plugin.Created, before.plugin.Generation+1
	}
	after := &held{plugin: &own, on: true}
	after.told = assign.Attach(assign.Candidate{Plugin: &own, Release: &chandler.Release{Behaviour: assign.Behaviour(&own)}})
	defer f.put(after)
	same := before != nil && before.on && sameContent(before, after)
	if same && sameScope(before.plugin, &own) && sameOrder(&before.told, &after.told) {
		return Effect{}
	}
	var e Effect
	for i := range f.proxies {
		p := &f.proxies[i]
		if !shown(p.Node) {
			continue
		}
		one := f.on(p, before, after, same)
		if one.Change == None {
			continue
		}
		if len(e.Proxies) == MaxProxies {
			e.More = true
			return e
		}
		e.Proxies = append(e.Proxies, one)
	}
	return e
}

// sameContent tells whether a plugin would run as it does, wherever it stands.
func sameContent(a, b *held) bool {
	x, y := a.told.Behaviour, b.told.Behaviour
	x.Phase, x.Priority, x.Match = y.Phase, y.Priority, y.Match
	if !bytes.Equal(text(x), text(y)) || a.plugin.FirstAttach != b.plugin.FirstAttach || !reflect.DeepEqual(a.plugin.Lua, b.plugin.Lua) {
		return false
	}
	v, w := a.plugin.Wasm, b.plugin.Wasm
	if v == nil || w == nil {
		return v == w
	}
	return v.URL == w.URL && v.SHA256 == w.SHA256 && slices.Equal(v.ConfigFrom, w.ConfigFrom)
}

// text of plain values; what is empty is as what is not there.
func text(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil { // plain types only
		panic(fmt.Sprintf("chandler: marshal behaviour: %v", err))
	}
	return b
}

func sameScope(a, b *chandler.Plugin) bool {
	return maps.Equal(a.Selector, b.Selector) && slices.Equal(a.TargetRefs, b.TargetRefs)
}

// sameOrder tells whether two attachments stand in the same places.
func sameOrder(a, b *chandler.Attachment) bool {
	return a.Type == b.Type && a.Phase == b.Phase && a.CompareOrder(b) == 0 && bytes.Equal(text(a.Match), text(b.Match))
}

// on is what changes on one proxy.
func (f *Fleet) on(p *Proxy, before, after *held, same bool) ProxyEffect {
	e := ProxyEffect{Node: p.ID(), Change: None}
	was := before != nil && before.on && assign.Selects(before.plugin, p.Node, f.root)
	is := assign.Selects(after.plugin, p.Node, f.root)
	if !was && !is {
		return e
	}
	if p.Facts == nil || len(p.Facts.Listeners) == 0 {
		e.Change = change(was, is, same, was && !sameOrder(&before.told, &after.told)) // in which slots, nobody knows
		return e
	}
	had, has, moved := false, false, false
	var beside []*held // the others on the proxy
	for i := range p.Facts.Listeners {
		l := &p.Facts.Listeners[i]
		left, entered := group{}, group{}
		stood, stands := false, false
		if was {
			left, stood = groupIn(l, before, p.Facts.Slots)
		}
		if is {
			entered, stands = groupIn(l, after, p.Facts.Slots)
		}
		had, has = had || stood, has || stands
		if !stood && !stands {
			continue
		}
		if beside == nil {
			beside = f.beside(p.Node, after.plugin.Key)
		}
		var groups []group
		if stood {
			groups = append(groups, left)
		}
		if stands && !(stood && entered == left) {
			groups = append(groups, entered)
		}
		for _, g := range groups {
			slot := SlotEffect{Listener: spell(l), Slot: g.name()}
			slot.Before = g.order(beside, before, stood && g == left)
			slot.After = g.order(beside, after, stands && g == entered)
			differs := !slices.Equal(slot.Before, slot.After)
			moved = moved || differs
			if differs || !same {
				e.Slots = append(e.Slots, slot)
			}
		}
	}
	e.Change = change(had, has, same, moved)
	return e
}

func change(was, is, same, moved bool) Change {
	switch {
	case !was && is:
		return Attach
	case was && !is:
		return Detach
	case was && moved:
		return Move
	case was && !same:
		return Update
	}
	return None
}

// beside are the other plugins of a proxy.
func (f *Fleet) beside(n chandler.Node, but chandler.Key) []*held {
	others := []*held{}
	namespaces := []string{n.Namespace}
	if f.root != "" && f.root != n.Namespace {
		namespaces = append(namespaces, f.root)
	}
	for _, ns := range namespaces {
		for _, h := range f.by[ns] {
			if h.on && h.plugin.Key != but && assign.Selects(h.plugin, n, f.root) {
				others = append(others, h)
			}
		}
	}
	return others
}

// group is the place of one phase in a listener, whether there is a shared slot for it
// or each plugin has its own.
type group struct{ attach.Slot }

func groupIn(l *chandler.Listener, h *held, slots bool) (group, bool) {
	if ok, _ := matches(l, &h.told, slots); !ok {
		return group{}, false
	}
	slot, _ := place(l, &h.told)
	slot.Plugin = chandler.Key{}
	return group{slot}, true
}

func (g group) name() string {
	if g.Network {
		return g.Name() + "/network"
	}
	return g.Name()
}

// order are the plugins of the group, with one more that is itself there.
func (g group) order(beside []*held, own *held, there bool) []chandler.Key {
	var all []*chandler.Attachment
	for _, h := range beside {
		if g.Holds(&h.told) {
			all = append(all, &h.told)
		}
	}
	if there {
		all = append(all, &own.told)
	}
	slices.SortFunc(all, (*chandler.Attachment).CompareOrder)
	keys := make([]chandler.Key, 0, len(all))
	for _, a := range all {
		keys = append(keys, a.Key)
	}
	return keys
}
