package control

import (
	"sort"
	"sync"
	"time"

	"chandler.dev/chandler"
)

const (
	maxEvents       = 2000    // that are kept
	maxEventMessage = 1 << 10 // bytes
)

// journal keeps the last events, in the order in which they came. When it is full it
// is the kind that there is most of, in one namespace, that makes room: whoever applies
// a hundred bad plugins a second forgets his own past, and nobody else's.
type journal struct {
	now func() time.Time

	mu      sync.Mutex
	events  []chandler.Event // never changed in place
	last    uint64
	changed chan struct{} // closed with the next event; nil: nobody waits for it
}

// add takes an event in; its ID and, where it has none, its time are set here.
func (j *journal) add(e chandler.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last++
	e.ID, e.Message = j.last, chandler.Printable(e.Message, maxEventMessage)
	if e.At.IsZero() {
		e.At = j.now().UTC()
	}
	if len(j.events) >= maxEvents {
		j.makeRoom()
	}
	j.events = append(j.events, e)
	if j.changed != nil {
		close(j.changed)
		j.changed = nil
	}
}

// makeRoom drops the older half of the largest group of events.
func (j *journal) makeRoom() {
	type group struct {
		reason    chandler.EventReason
		namespace string
	}
	of := func(e *chandler.Event) group { return group{e.Reason, e.Key.Namespace} }
	counts := map[group]int{}
	largest := group{}
	for i := range j.events {
		g := of(&j.events[i])
		if counts[g]++; counts[g] > counts[largest] {
			largest = g
		}
	}
	drop := (counts[largest] + 1) / 2
	kept := make([]chandler.Event, 0, maxEvents)
	for i := range j.events {
		if drop > 0 && of(&j.events[i]) == largest {
			drop--
			continue
		}
		kept = append(kept, j.events[i])
	}
	j.events = kept
}

// after gives the events behind one, oldest first, and a channel that is closed when
// there are more.
func (j *journal) after(id uint64) ([]chandler.Event, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.changed == nil {
		j.changed = make(chan struct{})
	}
	first := sort.Search(len(j.events), func(i int) bool { return j.events[i].ID > id })
	return j.events[first:len(j.events):len(j.events)], j.changed
}

// Events gives the events behind one, oldest first, and a channel that is closed when
// there are more. They are kept in memory, some thousand of them, and are this
// replica's own.
func (c *Control) Events(after uint64) ([]chandler.Event, <-chan struct{}) {
	return c.journal.after(after)
}

// Emit adds an event.
func (c *Control) Emit(e chandler.Event) { c.journal.add(e) }
