package web

import (
	"context"
	"slices"
	"strings"
	"time"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/access"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/explain"
	"chandler.dev/chandler/internal/source"
)

// preview says of a manifest's objects what they would change, one after the other.
type preview struct {
	cfg   *Config
	now   time.Time
	sight *access.Sight
	byKey map[chandler.Key]*control.ObjectView
	fleet *explain.Fleet
}

func newPreview(ctx context.Context, cfg *Config, views []control.ObjectView) *preview {
	p := &preview{
		cfg: cfg, now: cfg.Now(), byKey: map[chandler.Key]*control.ObjectView{},
		sight: callerOf(ctx).sight(ctx),
	}
	objects := make([]explain.Object, 0, len(views))
	for i := range views {
		p.byKey[views[i].Key] = &views[i]
		objects = append(objects, *explainable(&views[i]))
	}
	var proxies []explain.Proxy
	for _, v := range cfg.Control.Proxies() {
		if v.Connected {
			proxies = append(proxies, explain.Proxy{Node: v.Node, Connected: true, Facts: v.Facts})
		}
	}
	p.fleet = explain.NewFleet(cfg.Control.RootNamespace(), proxies, objects)
	return p
}

func (p *preview) object(doc *source.Document, r source.Result, proxies bool) *chandlerv1.ObjectPreview {
	var against []chandler.Problem
	if p.cfg.Admit != nil && doc.Plugin != nil {
		against = p.cfg.Admit(doc.Plugin)
	}
	r.Warnings = slices.Concat(r.Warnings, against)
	o := &chandlerv1.ObjectPreview{Result: resultsToProto([]source.Result{r})[0]}
	if doc.Plugin == nil || r.Action == source.Refused {
		return o
	}
	o.Diff = p.diff(doc, p.sight.May(access.Read, doc.Namespace))
	switch {
	case len(against) > 0: // it will not get that far
	case !proxies:
		o.More = true
	default:
		p.effects(o, doc)
	}
	return o
}

// diff is the change of the text. What the caller may not read is replaced, and so is
// what nobody is shown.
func (p *preview) diff(doc *source.Document, read bool) string {
	var before []byte
	after := doc.Manifest
	if v := p.byKey[doc.Key]; v != nil {
		before = v.Manifest
		if v.Hidden != nil {
			before, _ = source.Hide(before, v.Hidden)
			after, _ = source.Hide(after, v.Hidden)
		}
	}
	if !read {
		before, after = source.Redact(before), source.Redact(after)
	}
	return explain.Diff(strings.ToLower(doc.Kind)+"/"+doc.Namespace+"/"+doc.Name, doc.Namespace, before, after)
}

func (p *preview) effects(o *chandlerv1.ObjectPreview, doc *source.Document) {
	e := p.fleet.Apply(doc.Plugin, p.now, func(n chandler.Node) bool { return p.sight.May(access.List, n.Namespace) })
	o.More = e.More
	for _, one := range e.Proxies {
		m := &chandlerv1.ProxyPreview{Node: one.Node, Change: string(one.Change)}
		for _, s := range one.Slots {
			m.Slots = append(m.Slots, &chandlerv1.SlotPreview{Listener: s.Listener, Slot: s.Slot, Before: p.refs(s.Before), After: p.refs(s.After)})
		}
		o.Proxies = append(o.Proxies, m)
	}
	if len(o.Proxies) > 0 && p.cfg.Rollouts != nil {
		o.First = p.first(doc.Plugin)
	}
}

// maxFirst is how many proxies of the first stage are named.
const maxFirst = 10

// first says whom a change comes to first; nil: to everyone at once.
func (p *preview) first(plugin *chandler.Plugin) *chandlerv1.FirstStage {
	f, ok := p.cfg.Rollouts.FirstStage(plugin)
	if !ok {
		return nil
	}
	m := &chandlerv1.FirstStage{Step: f.Step.String(), Proxies: uint32(len(f.Chosen)), Selected: uint32(f.Selected), Undecided: f.Undecided}
	slices.SortFunc(f.Chosen, func(a, b chandler.Node) int { return strings.Compare(a.ID(), b.ID()) })
	for _, n := range f.Chosen {
		if !f.Undecided && len(m.Nodes) < maxFirst && p.sight.May(access.List, n.Namespace) {
			m.Nodes = append(m.Nodes, n.ID())
		}
	}
	return m
}

// refs are the plugins that the caller may see.
func (p *preview) refs(keys []chandler.Key) []*chandlerv1.ObjectRef {
	refs := make([]*chandlerv1.ObjectRef, 0, len(keys))
	for _, key := range keys {
		if p.sight.May(access.List, key.Namespace) {
			refs = append(refs, refToProto(key))
		}
	}
	return refs
}

// keysOf are the objects of a manifest.
func keysOf(manifest []byte, namespace string) []chandler.Key {
	var keys []chandler.Key
	for _, doc := range source.Decode(manifest, namespace) {
		keys = append(keys, doc.Key)
	}
	return keys
}
