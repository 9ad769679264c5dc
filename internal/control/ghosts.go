package control

import (
	"maps"
	"slices"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/policy"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/source"
)

// A plugin with a plan whose resource is gone is taken out in steps. Until that is over
// its record stands for it: a ghost. It is nobody's object, is resolved no more, and gives
// way to a resource of its name.

// parted remembers what a resource said that has just gone, unless the record says it.
func (l *loop) parted(was map[string]*chandler.Plugin) {
	for uid, p := range was {
		if plan := l.c.plan(p); plan != nil && l.byUID[uid] == nil {
			l.partings[uid] = record.Kept{Created: p.Created, FirstAttach: p.FirstAttach, Plan: *plan}
		}
	}
	maps.DeleteFunc(l.partings, func(uid string, _ record.Kept) bool {
		_, there := l.rollouts[uid]
		return !there || l.byUID[uid] != nil
	})
}

// ghost gives what is kept of a plugin that is gone and is still in force somewhere.
func (l *loop) ghost(uid string) (record.Kept, bool) {
	ro := l.at(uid)
	if ro.UID == "" || l.byUID[uid] != nil || ro.Release == "" && ro.Stage == nil || l.names[ro.Key] {
		return record.Kept{}, false
	}
	kept, ok := l.partings[uid]
	if ro.Kept == nil {
		return kept, ok
	}
	recorded := *ro.Kept
	if ok {
		recorded.Plan = kept.Plan // as it was when the resource went
	}
	return recorded, true
}

// survives tells whether the records of a plugin that is gone are still needed.
func (l *loop) survives(uid string) bool {
	_, ghost := l.ghost(uid)
	return ghost || l.bequeaths(uid)
}

// ghosts gives the entries of plugins that are gone. There are few, and they are made
// anew each time.
func (l *loop) ghosts() []*entry {
	var all []*entry
	for uid, ro := range l.rollouts {
		if l.byUID[uid] != nil {
			continue
		}
		kept, ok := l.ghost(uid)
		if !ok {
			continue
		}
		p := &chandler.Plugin{Key: ro.Key, UID: uid, Generation: ro.Generation, Created: kept.Created, FirstAttach: kept.FirstAttach}
		o := source.Object{Key: ro.Key, UID: uid, Generation: ro.Generation, Created: kept.Created, Plugin: p}
		rule := ruling{plugin: p, terms: policy.Terms{FirstAttach: kept.FirstAttach}}
		e, err := newEntry(o, l.course(uid, &kept.Plan), rule, l.attempts[uid], l.c.cfg.FetchDeadline, nil)
		if err != nil {
			l.c.log.Error("an attachment cannot be marshalled", "plugin", ro.Key.String(), "error", err)
		}
		e.kept, e.denied, e.history, e.incomplete = &kept.Plan, false, l.recent(uid), l.incomplete(uid)
		e.gate, e.denials = l.gate, l.denials(uid)
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b *entry) int { return strings.Compare(a.object.UID, b.object.UID) })
	return all
}
