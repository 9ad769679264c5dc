package main

import "time"

// clock is simulated time: what is due is done in its order, and time stands still
// meanwhile. Of two things that are due at once the one that was asked for first is
// done first, so that a run is the same each time.
type clock struct {
	now   time.Duration
	due   agenda
	order uint64
}

type appointment struct {
	at    time.Duration
	order uint64
	do    func()
}

// agenda is a heap: none is before the one at half its place. It is written out, since
// container/heap allocates for every appointment, of which there are tens of millions.
type agenda []appointment

func (a agenda) before(i, j int) bool {
	return a[i].at < a[j].at || a[i].at == a[j].at && a[i].order < a[j].order
}

func (a *agenda) push(x appointment) {
	*a = append(*a, x)
	h := *a
	for i := len(h) - 1; i > 0 && h.before(i, (i-1)/2); i = (i - 1) / 2 {
		h[i], h[(i-1)/2] = h[(i-1)/2], h[i]
	}
}

func (a *agenda) pop() appointment {
	h := *a
	first, last := h[0], len(h)-1
	h[0], h[last] = h[last], appointment{}
	h = h[:last]
	*a = h
	for i := 0; ; {
		next := 2*i + 1
		if next+1 < last && h.before(next+1, next) {
			next++
		}
		if next >= last || !h.before(next, i) {
			return first
		}
		h[i], h[next] = h[next], h[i]
		i = next
	}
}

// at has something done at a time, or now if that is over.
func (c *clock) at(at time.Duration, do func()) {
	c.order++
	c.due.push(appointment{max(at, c.now), c.order, do})
}

func (c *clock) after(d time.Duration, do func()) { c.at(c.now+d, do) }

// run lets time pass until nothing is due any more, or up to a bound.
func (c *clock) run(bound time.Duration) {
	for len(c.due) > 0 && c.due[0].at <= bound {
		next := c.due.pop()
		c.now = next.at
		next.do()
	}
}

// lanes are what does one thing at a time each, such as cores or a network link; each
// lane is the time from which on it is free.
type lanes []time.Duration

// take has the lane that is free first do something, and tells when it will be done.
func (l lanes) take(now, cost time.Duration) time.Duration {
	first := 0
	for i := range l {
		if l[i] < l[first] {
			first = i
		}
	}
	l[first] = max(l[first], now) + cost
	return l[first]
}
