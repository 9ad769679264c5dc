package control

import (
	"sync"
	"time"

	"chandler.dev/chandler"
)

const (
	maxEvents       = 2000    // that are kept
	maxEventMessage = 1 << 10 // bytes
)

// journal keeps the last events, in the order in which they came.
type journal struct {
	now func() time.Time

	mu      sync.Mutex
	events  []chandler.Event
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
	if len(j.events) == maxEvents {
		j.events = append(j.events[:0:0], j.events[maxEvents/4:]...)
	}
	j.events = append(j.events, e)
	if j.changed != nil {
		close(j.changed)
		j.changed = nil
	}
}

// after gives the events behind one, oldest first, and a channel that is closed when
// there are more.
func (j *journal) after(id uint64) ([]chandler.Event, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.changed == nil {
		j.changed = make(chan struct{})
	}
	for i := range j.events {
		if j.events[i].ID > id {
			return j.events[i:len(j.events):len(j.events)], j.changed
		}
	}
	return nil, j.changed
}

// Events gives the events behind one, oldest first, and a channel that is closed when
// there are more. They are kept in memory, some thousand of them, and are this
// replica's own.
func (c *Control) Events(after uint64) ([]chandler.Event, <-chan struct{}) {
	return c.journal.after(after)
}

// Emit adds an event.
func (c *Control) Emit(e chandler.Event) { c.journal.add(e) }
