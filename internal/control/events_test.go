package control

import (
	"fmt"
	"testing"
	"time"

	"chandler.dev/chandler"
)

// Whoever floods the journal forgets his own past: what is of another kind, or another
// namespace, stays.
func TestJournalForgetsTheFlood(t *testing.T) {
	t.Parallel()
	j := &journal{now: func() time.Time { return time.Unix(1, 0) }}
	of := func(namespace string, i int) chandler.Key {
		return chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: namespace, Name: fmt.Sprint("p", i)}
	}
	for i := range 20 {
		j.add(chandler.Event{Key: of("quiet", i), Reason: chandler.EventNotResolved})
		j.add(chandler.Event{Key: of("loud", i), Reason: chandler.EventRolledBack, By: "jane"})
	}
	_, changed := j.after(40)
	for i := range 6 * maxEvents {
		j.add(chandler.Event{Key: of("loud", i), Reason: chandler.EventNotResolved, Message: "no such tag"})
		j.add(chandler.Event{Key: of("loud", i), Reason: chandler.EventApplied})
	}
	<-changed
	all, _ := j.after(0)
	counts := map[string]int{}
	last := uint64(0)
	for _, e := range all {
		if e.ID <= last {
			t.Fatalf("event %d comes after %d", e.ID, last)
		}
		last = e.ID
		counts[e.Key.Namespace+" "+string(e.Reason)]++
	}
	if counts["quiet NotResolved"] != 20 || counts["loud RolledBack"] != 20 || len(all) > maxEvents || counts["loud NotResolved"] < maxEvents/8 {
		t.Errorf("of %d events there are %v", len(all), counts)
	}
	if some, _ := j.after(last - 5); len(some) != 5 || some[0].ID != last-4 {
		t.Errorf("behind %d come %d", last-5, len(some))
	}
	if none, _ := j.after(last); len(none) != 0 {
		t.Error("behind the last there are more")
	}
}

// A node that came and went between two looks is as it was.
func TestTurnsAreNetted(t *testing.T) {
	t.Parallel()
	f := newFleet(func() time.Time { return time.Unix(1, 0) }, new(counter))
	n := func(name string) chandler.Node { return chandler.Node{Namespace: "edge", Name: name} }
	f.connected(n("a"), true)
	f.connected(n("b"), true)
	f.connected(n("b"), false)
	if got := f.takeTurns(); len(got) != 1 || !got["edge/a"] {
		t.Errorf("came and went: %v", got)
	}
	f.connected(n("a"), false)
	f.connected(n("a"), true)
	if got := f.takeTurns(); len(got) != 0 {
		t.Errorf("a reconnect is told: %v", got)
	}
	f.connected(n("a"), false)
	if got := f.takeTurns(); len(got) != 1 || got["edge/a"] {
		t.Errorf("went: %v", got)
	}
}
