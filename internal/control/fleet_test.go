package control

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/wire"
)

type counter float64

func (c *counter) Add(v float64) { *c += counter(v) }

func node(i int) chandler.Node { return chandler.Node{Namespace: "ns", Name: fmt.Sprint(i)} }

// unheard is a stream whose other end hears nothing.
func unheard(uint64, time.Duration, time.Duration) error { return nil }

func TestFleetForgetsWhoIsAwayForADay(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	f := newFleet(func() time.Time { return now }, new(counter))
	for i := range 3 {
		f.connected(node(i), true)
	}
	f.connected(node(0), false)
	now = now.Add(23 * time.Hour)
	f.connected(node(1), false)
	if err := f.admit(node(9)); err != nil || len(f.list()) != 3 {
		t.Errorf("%v; %d members after 23 hours", err, len(f.list()))
	}
	now = now.Add(2 * time.Hour)
	if err := f.admit(node(9)); err != nil || len(f.list()) != 2 || f.size() != 1 {
		t.Errorf("%v; %d members after 25 hours, %d connected", err, len(f.list()), f.size())
	}
}

func TestFleetHasAnEnd(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	f := newFleet(func() time.Time { return now }, new(counter))
	for i := range MaxNodes {
		f.connected(node(i), true)
	}
	if err := f.admit(node(MaxNodes)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one too many: %v", err)
	}
	if err := f.admit(node(5)); err != nil {
		t.Errorf("one that is known: %v", err)
	}
	f.connected(node(7), false)
	now = now.Add(time.Second)
	f.connected(node(8), false)
	if err := f.admit(node(MaxNodes)); err != nil || f.members[node(7).ID()] != nil || f.members[node(8).ID()] == nil {
		t.Errorf("%v; not the one that has been away longest made room", err)
	}
}

func TestReportOfOneNodeHasAnEnd(t *testing.T) {
	t.Parallel()
	f := newFleet(time.Now, new(counter))
	r, err := f.begin(node(1), unheard)
	if err != nil {
		t.Fatal(err)
	}
	states := func(from, n int) (out []chandler.AttachmentState) {
		for i := range n {
			out = append(out, chandler.AttachmentState{Key: chandler.Key{Kind: "k", Namespace: "n", Name: fmt.Sprint(from + i)}})
		}
		return out
	}
	if err := f.take(r, wire.Report{Sequence: 1, Full: true, States: states(0, wire.MaxStates)}); err != nil {
		t.Fatal(err)
	}
	if err := f.take(r, wire.Report{Sequence: 2, States: states(5000, 1)}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one too many: %v", err)
	}
	if err := f.take(r, wire.Report{Sequence: 2, Removed: []chandler.Key{states(0, 1)[0].Key}, States: states(5000, 1)}); err != nil {
		t.Errorf("one for one: %v", err)
	}
	if err := f.take(r, wire.Report{Sequence: 3, Full: true}); err != nil || len(f.list()[0].states) != 0 {
		t.Errorf("%v; a full report did not replace all", err)
	}
}

func TestRejectionsAreCountedOnce(t *testing.T) {
	t.Parallel()
	total := new(counter)
	f := newFleet(time.Now, total)
	key := chandler.Key{Kind: "k", Namespace: "n", Name: "p"}
	var r *reporter
	for i, c := range []struct {
		again   bool // a new stream
		uid     string
		reports uint64
		want    counter
	}{
		{true, "u", 2, 2},
		{false, "u", 2, 2},
		{false, "u", 5, 5},
		{true, "u", 5, 5},  // the same agent on a new connection
		{true, "u", 1, 6},  // a new agent
		{false, "v", 3, 9}, // another plugin of that name
	} {
		if c.again {
			var err error
			if r, err = f.begin(node(1), unheard); err != nil {
				t.Fatal(err)
			}
		}
		rep := wire.Report{Sequence: uint64(i + 1), Full: true, States: []chandler.AttachmentState{{Key: key, UID: c.uid, Rejections: c.reports}}}
		if err := f.take(r, rep); err != nil {
			t.Fatal(err)
		}
		if *total != c.want {
			t.Errorf("%d: %v rejections, want %v", i, *total, c.want)
		}
	}
}

// What was taken to look at is not written to any more, nor is what was empty.
func TestTakenKeysAreTheTakers(t *testing.T) {
	t.Parallel()
	f := newFleet(time.Now, nil)
	f.touch()
	_, before := f.takeDirty()
	f.mu.Lock()
	f.dirty[chandler.Key{Name: "p"}] = true
	f.mu.Unlock()
	_, some := f.takeDirty()
	if len(before) != 0 || len(some) != 1 {
		t.Errorf("taken before: %v, then: %v", before, some)
	}
}
