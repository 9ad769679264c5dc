package control

import (
	"container/list"
	"sync"
)

// turns lets so many go at a time, and the others in the order in which they came.
type turns struct {
	mu      sync.Mutex
	free    int
	waiting list.List // of *turn
}

// turn is one's place among those who wait, and then what they wait for.
type turn struct {
	come  chan struct{} // closed when it has come
	place *list.Element // nil from then on
}

// join takes a place, which is to be left whether its turn came or not.
func (q *turns) join() *turn {
	q.mu.Lock()
	defer q.mu.Unlock()
	t := &turn{come: make(chan struct{})}
	if q.free > 0 {
		q.free--
		close(t.come)
	} else {
		t.place = q.waiting.PushBack(t)
	}
	return t
}

// leave gives the turn to whoever waits the longest.
func (q *turns) leave(t *turn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch first := q.waiting.Front(); {
	case t.place != nil:
		q.waiting.Remove(t.place)
	case first == nil:
		q.free++
	default:
		next := q.waiting.Remove(first).(*turn)
		next.place = nil
		close(next.come)
	}
}

// length is how many wait.
func (q *turns) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.waiting.Len()
}
