package kube

import (
	"time"

	"chandler.dev/chandler"
)

const (
	// writeEvery is the least time between two writes of one status.
	writeEvery = time.Second
	// onItsWay is how long a status may wait that is about to be another one: most
	// plugins are in force before it is over, and a write less is made.
	onItsWay = 200 * time.Millisecond
	// firstRetry and maxRetry bound the wait after a write that failed.
	firstRetry, maxRetry = time.Second, 30 * time.Second
)

// ledger decides which statuses are to be written, and when. It is pure: the
// shell (StatusWriter) tells it what is true, what the cluster shows and what
// became of each write, with the time.
type ledger struct {
	subjects map[chandler.Key]*subject
	// open are the subjects that may have to be written.
	open map[chandler.Key]bool
	busy int // writes under way
}

// subject is one resource.
type subject struct {
	want  *wanted
	shown *sighted
	// asked and left are the last write as it was sent, and what the cluster showed of
	// it. They differ where a definition of somebody else does not keep all fields;
	// it is no reason to write again.
	asked, left string
	at          time.Time // the last write began
	differs     time.Time // since when the cluster shows something else
	writing     bool
	failed      int
	notBefore   time.Time
	turns       turns
}

// wanted is what is true of a resource.
type wanted struct {
	uid    string
	fields statusFields
	text   string
}

// sighted is what the cluster shows of it.
type sighted struct {
	uid     string
	version uint64 // of the object, to tell old news
	fields  statusFields
}

// write is a status to be written.
type write struct {
	key    chandler.Key
	uid    string
	before statusFields // that the cluster shows
	fields statusFields
}

// written is what became of it: the status that the cluster shows now, or an error.
type written struct {
	write
	shown *sighted
	err   error
}

func newLedger() *ledger {
	return &ledger{subjects: map[chandler.Key]*subject{}, open: map[chandler.Key]bool{}}
}

func (l *ledger) subject(k chandler.Key) *subject {
	s := l.subjects[k]
	if s == nil {
		s = &subject{}
		l.subjects[k] = s
	}
	return s
}

// want takes in what is true of all resources.
func (l *ledger) want(all map[chandler.Key]wanted) {
	for k, w := range all {
		s := l.subject(k)
		if s.want != nil && s.want.uid != w.uid {
			s.anew()
		}
		if s.want == nil || s.want.uid != w.uid || s.want.text != w.text {
			s.want = &w
			l.open[k] = true
		}
	}
	for k, s := range l.subjects {
		if _, ok := all[k]; !ok {
			s.want = nil
			l.tidy(k)
		}
	}
}

// see takes in what the cluster shows of a resource; nil: there is none.
func (l *ledger) see(k chandler.Key, now *sighted) {
	s := l.subject(k)
	switch {
	case now == nil:
		s.shown = nil
		s.anew()
	case s.shown != nil && s.shown.uid == now.uid && s.shown.version > now.version:
		return // overtaken by the answer to a write
	default:
		s.shown = now
		l.open[k] = true
	}
	l.tidy(k)
}

// anew forgets what was of another resource of the same name.
func (s *subject) anew() {
	*s = subject{want: s.want, shown: s.shown, writing: s.writing}
}

// tidy drops a subject of which there is nothing to know.
func (l *ledger) tidy(k chandler.Key) {
	if s := l.subjects[k]; s.want == nil && s.shown == nil && !s.writing {
		delete(l.subjects, k)
		delete(l.open, k)
	}
}

// due gives the writes to begin now, so many that no more than limit are under
// way, and when to ask again; zero: when something was taken in.
func (l *ledger) due(now time.Time, limit int) (writes []write, next time.Time) {
	for k := range l.open {
		s := l.subjects[k]
		w, at := s.due(k, now)
		switch {
		case w == nil && at.IsZero():
			delete(l.open, k)
		case w == nil:
			if next.IsZero() || at.Before(next) {
				next = at
			}
		case l.busy < limit:
			l.busy++
			s.writing, s.at, s.asked = true, now, w.fields.text()
			writes = append(writes, *w)
			delete(l.open, k)
		}
	}
	return writes, next
}

// due gives the write that a subject needs now, or the time at which it will; zero:
// none.
func (s *subject) due(k chandler.Key, now time.Time) (*write, time.Time) {
	if s.want == nil || s.shown == nil || s.want.uid != s.shown.uid || s.writing {
		return nil, time.Time{}
	}
	fields := s.want.fields.since(&s.shown.fields)
	text, there := fields.text(), s.shown.fields.text()
	if text == there || text == s.asked && there == s.left {
		s.differs = time.Time{}
		return nil, time.Time{}
	}
	if s.differs.IsZero() {
		s.differs = now
	}
	at := s.notBefore
	if wait := s.differs.Add(onItsWay); fields.onItsWay() && wait.After(at) {
		at = wait
	}
	if earliest := s.at.Add(writeEvery); !s.at.IsZero() && earliest.After(at) {
		at = earliest
	}
	if at.After(now) {
		return nil, at
	}
	return &write{key: k, uid: s.want.uid, before: s.shown.fields, fields: fields}, time.Time{}
}

// done takes in what became of a write, and gives what there is to be announced.
func (l *ledger) done(w written, now time.Time) []turn {
	l.busy--
	s := l.subjects[w.key]
	s.writing = false
	defer l.tidy(w.key)
	if s.want != nil && s.want.uid != w.uid || s.shown != nil && s.shown.uid != w.uid {
		l.open[w.key] = true
		return nil // it is another one by now
	}
	if w.err != nil { // where it was deleted, the watch says so
		wait := min(firstRetry<<min(s.failed, 10), maxRetry)
		s.failed++
		s.notBefore, s.asked = now.Add(wait), ""
		l.open[w.key] = true
		return nil
	}
	s.differs = time.Time{}
	s.failed, s.notBefore, s.left = 0, time.Time{}, w.shown.fields.text()
	if s.shown != nil && s.shown.version <= w.shown.version {
		s.shown = w.shown
	}
	l.open[w.key] = true
	return s.turns.of(&w.before, &w.fields, now)
}
