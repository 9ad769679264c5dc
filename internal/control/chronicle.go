package control

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/resolve"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/status"
)

// What happens is told as events where it turns, and once a turn: a try that fails as
// the one before did, a proxy that refuses what another has refused, are nothing new.

const (
	// oneByOne is how many proxies that come or go within a look are told one by one;
	// of more the number is told, and some of their names.
	oneByOne = 3
	// trapPause is how long a plugin whose VM ends again and again is not told of.
	trapPause = time.Minute
)

// hands are those who change plugins at this moment, by plugin.
type hands struct {
	mu sync.Mutex
	of map[chandler.Key]*string // those who came last
}

// Acting notes who is about to apply or delete plugins, so that the events of that say
// so, until the function that it gives is called.
func (c *Control) Acting(who string, keys []chandler.Key) (done func()) {
	h := &c.hands
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.of == nil {
		h.of = map[chandler.Key]*string{}
	}
	for _, key := range keys {
		h.of[key] = &who
	}
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, key := range keys {
			if h.of[key] == &who {
				delete(h.of, key)
			}
		}
	}
}

func (h *hands) who(key chandler.Key) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if who := h.of[key]; who != nil {
		return *who
	}
	return ""
}

// tellTaken tells what is new, changed or gone since the snapshot before.
func (l *loop) tellTaken(before source.Snapshot) {
	was := make(map[string]*source.Object, len(before.Objects))
	for i := range before.Objects {
		was[before.Objects[i].UID] = &before.Objects[i]
	}
	tell := func(o *source.Object, reason chandler.EventReason, warning bool, message string) {
		l.c.Emit(chandler.Event{Key: o.Key, Reason: reason, Warning: warning, Message: message, By: l.c.hands.who(o.Key)})
	}
	for i := range l.snapshot.Objects {
		o := &l.snapshot.Objects[i]
		old := was[o.UID]
		delete(was, o.UID)
		switch {
		case old != nil && old.Generation == o.Generation:
		case len(o.Problems) > 0:
			tell(o, chandler.EventApplied, true, fmt.Sprintf("generation %d is not valid: %s", o.Generation, o.Problems[0].Error()))
		case old == nil:
			tell(o, chandler.EventApplied, false, fmt.Sprintf("created, generation %d", o.Generation))
		default:
			tell(o, chandler.EventApplied, false, fmt.Sprintf("changed, generation %d", o.Generation))
		}
	}
	for _, o := range slices.SortedFunc(maps.Values(was), func(a, b *source.Object) int { return a.Key.Compare(b.Key) }) {
		l.c.log.Info("a plugin is gone", "plugin", o.Key.String(), "generation", o.Generation, "was", o.Origin)
		tell(o, chandler.EventDeleted, false, fmt.Sprintf("deleted, generation %d was the last", o.Generation))
	}
}

// tellResolved tells that a plugin has a new release.
func (c *Control) tellResolved(r *chandler.Release, sequence uint64) {
	what := r.ShownReference()
	if what == "" {
		what = "inline Lua"
	}
	c.Emit(chandler.Event{Key: r.Key, Reason: chandler.EventResolved, Message: fmt.Sprintf("generation %d is release %s (sequence %d): %s", r.Generation, r.ID.Short(), sequence, what)})
}

// tellFailed tells that a plugin cannot be resolved, unless that was so before for the
// same reason.
func (c *Control) tellFailed(key chandler.Key, before, now resolve.Attempts) {
	if before.UID == now.UID && before.Generation == now.Generation && before.Problem != nil && before.Problem.Code == now.Problem.Code {
		return
	}
	c.Emit(chandler.Event{Key: key, Reason: chandler.EventNotResolved, Warning: true, Message: fmt.Sprintf("generation %d cannot be resolved: %s: %s", now.Generation, now.Problem.Code, now.Problem.Error())})
}

// told is what was told of one plugin's release on its proxies.
type told struct {
	release chandler.ReleaseID
	inForce bool
	reasons map[chandler.Code]bool // for which proxies do not have it
	trapped time.Time
}

// tell tells how a plugin's status turned on its proxies. What is in force since
// before this control plane began is no news.
func (c *Control) tell(e *entry, s *chandler.Status) {
	if e.target == nil {
		return
	}
	t := c.told[e.id()]
	if t == nil || t.release != e.target.ID {
		known := t != nil
		t = &told{release: e.target.ID, inForce: !known && !e.target.ResolvedAt.After(c.begun), reasons: map[chandler.Code]bool{}}
		c.told[e.id()] = t
	}
	everywhere := s.Desired > 0 && s.InForce == s.Desired && e.course.rollout.Stage == nil
	news := everywhere && !t.inForce
	t.inForce = t.inForce || everywhere
	if !c.leads() {
		return // of the proxies it knows its own only
	}
	if news {
		c.Emit(chandler.Event{Key: e.object.Key, Reason: chandler.EventInForce, Message: fmt.Sprintf("release %s is in force on %s", e.target.ID.Short(), status.All(s.Desired))})
	}
	c.tellRefused(e, s, t)
	c.tellTrapped(e, s, t)
}

// tellRefused tells of the first proxy that does not take a release, once a reason.
func (c *Control) tellRefused(e *entry, s *chandler.Status, t *told) {
	for i := range s.Proxies {
		p := &s.Proxies[i]
		const most = 16 // reasons, which agents make up
		if !p.Connected || !p.State.Failing() || p.Release != t.release || t.reasons[p.Reason] || len(t.reasons) == most {
			continue
		}
		t.reasons[p.Reason] = true
		what := "refuses"
		if p.State == chandler.StateFailed {
			what = "cannot have"
		}
		message := fmt.Sprintf("%s/%s %s release %s: %s: %s", p.Namespace, p.Node, what, t.release.Short(), p.Reason, p.Message)
		if s.Failed > 1 {
			message += fmt.Sprintf(" (%d proxies fail by now)", s.Failed)
		}
		c.Emit(chandler.Event{Key: e.object.Key, Node: p.Namespace + "/" + p.Node, Reason: chandler.EventRejected, Warning: true, Message: message})
	}
}

// tellTrapped tells of a VM that ended while serving.
func (c *Control) tellTrapped(e *entry, s *chandler.Status, t *told) {
	now := c.cfg.Now()
	if !t.trapped.IsZero() && now.Sub(t.trapped) < trapPause {
		return
	}
	for i := range s.Proxies {
		if p := &s.Proxies[i]; p.Connected && p.Reason == chandler.CodeVMTrap {
			t.trapped = now
			c.Emit(chandler.Event{Key: e.object.Key, Node: p.Namespace + "/" + p.Node, Reason: chandler.EventTrapped, Warning: true, Message: fmt.Sprintf("the VM of release %s ended on %s/%s: %s", p.InForce.Short(), p.Namespace, p.Node, p.Message)})
			return
		}
	}
}

// takeTurns gives the nodes that came (true) or went since the last call; one that did
// both is as it was.
func (f *fleet) takeTurns() map[string]bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	turns := map[string]bool{}
	for id, before := range f.turns {
		if m := f.members[id]; m != nil && m.online() != before {
			turns[id] = !before
		}
	}
	clear(f.turns)
	return turns
}

// tellTurns tells which proxies came and went.
func (c *Control) tellTurns() {
	var came, went []string
	turns := c.fleet.takeTurns()
	for _, id := range slices.Sorted(maps.Keys(turns)) {
		if turns[id] {
			came = append(came, id)
		} else {
			went = append(went, id)
		}
	}
	c.tellProxies(came, chandler.EventConnected, false, "connected")
	c.tellProxies(went, chandler.EventDisconnected, true, "disconnected")
}

func (c *Control) tellProxies(ids []string, reason chandler.EventReason, warning bool, what string) {
	if len(ids) > oneByOne {
		c.Emit(chandler.Event{Reason: reason, Warning: warning, Message: fmt.Sprintf("%d proxies %s: %s and %d more", len(ids), what, strings.Join(ids[:oneByOne], ", "), len(ids)-oneByOne)})
		return
	}
	for _, id := range ids {
		c.Emit(chandler.Event{Node: id, Reason: reason, Warning: warning, Message: what})
	}
}

// bypasses gives why plugins are taken out on machines themselves, by node; false when
// nobody said anything since the last call. Of who is away the last is taken.
func (f *fleet) bypasses() (map[chandler.Key]map[string]string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.retold {
		return nil, false
	}
	f.retold = false
	all := map[chandler.Key]map[string]string{}
	for id, m := range f.members {
		facts := m.seen().facts
		if facts == nil {
			continue
		}
		for _, b := range facts.Bypassed {
			if all[b.Key] == nil {
				all[b.Key] = map[string]string{}
			}
			all[b.Key][id] = b.Reason
		}
	}
	return all, true
}

// tellBypasses tells where plugins were taken out by hand, and put back.
func (c *Control) tellBypasses() {
	now, news := c.fleet.bypasses()
	if !news {
		return
	}
	before := c.byHand
	c.byHand = now
	for _, key := range slices.SortedFunc(maps.Keys(now), chandler.Key.Compare) {
		c.tellHand(key, onlyIn(now[key], before[key]), true, "taken out on the machine itself: ", now[key])
	}
	for _, key := range slices.SortedFunc(maps.Keys(before), chandler.Key.Compare) {
		c.tellHand(key, onlyIn(before[key], now[key]), false, "put back on the machine itself", nil)
	}
}

// onlyIn gives the names that are in one map and not in another.
func onlyIn(in, not map[string]string) []string {
	var only []string
	for _, id := range slices.Sorted(maps.Keys(in)) {
		if _, ok := not[id]; !ok {
			only = append(only, id)
		}
	}
	return only
}

func (c *Control) tellHand(key chandler.Key, ids []string, warning bool, what string, why map[string]string) {
	if len(ids) > oneByOne {
		c.Emit(chandler.Event{Key: key, Reason: chandler.EventBypassed, Warning: warning, Message: fmt.Sprintf("%s%s (%s and %s)", what, why[ids[0]], strings.Join(ids[:oneByOne], ", "), chandler.Count(len(ids)-oneByOne, "more proxy", "more proxies"))})
		return
	}
	for _, id := range ids {
		c.Emit(chandler.Event{Key: key, Node: id, Reason: chandler.EventBypassed, Warning: warning, Message: what + why[id]})
	}
}
