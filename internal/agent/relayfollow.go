package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/durable"
)

// relistUpstream has other slots of one plugin stand in the listeners of Envoy's control
// plane. relayedFollower tells what becomes of that.
func (a *Agent) relistUpstream(own []attach.Slot) {
	if err := a.keepSlots(own); err != nil {
		a.log.Warn("an agent that is started anew would not know which plugins have slots in the listeners, and drain them", "error", err)
	}
	a.metrics.listings.Inc()
	a.changedUpstream(listenerType, a.relayed.relist(own, a.running())...)
}

// changedUpstream has Envoy told of resources that go on in another form by now; of none
// if none are named.
func (a *Agent) changedUpstream(typeURL string, names ...string) {
	if len(names) == 0 {
		return
	}
	for _, u := range a.upstreams {
		u.changed(typeURL, names...)
	}
}

// slotsPath is the file of the slots of one plugin that stand in listeners of a control
// plane's: they must stand there for the next agent, too, or Envoy drains its connections.
func (a *Agent) slotsPath() string { return filepath.Join(a.envoyDir(), "slots.json") }

func (a *Agent) keepSlots(own []attach.Slot) error {
	names := make([]string, len(own))
	for i, s := range own {
		names[i] = s.Name()
	}
	b, err := json.Marshal(names)
	if err != nil {
		return err
	}
	return durable.Write(durable.OS(), a.slotsPath(), b)
}

func (a *Agent) keptSlots() (own []attach.Slot, err error) {
	b, err := durable.Read(durable.OS(), a.slotsPath(), 1<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	if err := json.Unmarshal(b, &names); err != nil {
		return nil, err
	}
	for _, name := range names {
		if s, ok := attach.ParseSlot(name); ok && !s.Shared() {
			own = append(own, s)
		}
	}
	return own, nil
}

// relayedFollower tells what becomes of the listeners of Envoy's control plane, and once
// that Envoy serves: an Envoy that has opened its first listeners says that it is ready, and
// of those that come later one may wait for ever for something of its own.
type relayedFollower struct {
	agent *Agent
	since time.Time
	open  bool
	told  bool // that it takes long
	waits waits
	// answered is since when Envoy has answered for a change.
	answered time.Time
}

// slowPoll is how often is looked whether Envoy serves when it has not done so soon.
const slowPoll = 200 * time.Millisecond

func (f *relayedFollower) run(ctx context.Context) {
	l := f.agent.relayed
	for changing := false; ; {
		var again <-chan time.Time
		switch {
		case changing, !f.open && time.Since(f.since) < listenersPatience:
			again = time.After(listenersPoll)
		case !f.open:
			again = time.After(slowPoll)
		}
		select {
		case <-ctx.Done():
			return
		case <-l.news:
			f.await()
		case <-again:
		}
		changing = f.look(ctx, l.look())
		if !f.open {
			f.lookReady(ctx)
		}
	}
}

// await lets a response be made as a whole, so that what is told is not half of it.
func (f *relayedFollower) await() {
	for _, u := range f.agent.upstreams {
		u.changed("") // waits its turn, and changes nothing
	}
}

// look tells the agent what is new, and whether a change awaits Envoy's answers.
func (f *relayedFollower) look(ctx context.Context, n relayedNews) (changing bool) {
	a := f.agent
	if len(n.without) > 0 { // all of them are in the status
		a.log.Warn("a listener of Envoy's control plane runs without plugins, or a part of it", "of", len(n.without), "first", n.without[0])
	}
	if n.laid != nil {
		a.send(ctx, message{event: *n.laid})
	}
	switch {
	case !n.changing:
	case n.refused != "":
		a.log.Warn("envoy refused a change of its listeners", "why", n.refused)
		a.relayed.settled()
		a.send(ctx, message{event: ListenersRefused{Reason: n.refused}})
	case !n.answered:
		f.answered = time.Time{}
		return true
	case !f.active(ctx):
		return true
	default:
		a.relayed.settled()
		a.send(ctx, message{event: ListenersTaken{}})
	}
	f.answered = time.Time{}
	return false
}

// active tells whether listeners that changed serve by now. One of the control plane's
// may wait for something else, so that this has an end.
func (f *relayedFollower) active(ctx context.Context) bool {
	if f.answered.IsZero() {
		f.answered = time.Now()
	}
	if !f.open || time.Since(f.answered) > listenersPatience {
		return true
	}
	poll, cancel := context.WithTimeout(ctx, listenersPatience)
	defer cancel()
	st, err := f.agent.envoyAdmin.listeners(poll)
	return err == nil && st.warming == 0
}

// lookReady asks whether Envoy serves.
func (f *relayedFollower) lookReady(ctx context.Context) {
	a := f.agent
	if v := a.view.Load(); v != nil && !f.told && time.Since(f.since) > listenersPatience {
		f.told = true
		a.log.Warn("envoy has started and its listeners are not active yet", "why", strings.Join(v.unready, "; "))
	}
	f.waits.ask(ctx, a, f.since)
	poll, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, err := a.envoyAdmin.get(poll, "/ready"); err == nil {
		f.open = true
		a.send(ctx, message{event: ListenersOpen{}})
	}
}
