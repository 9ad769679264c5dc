package relay

import (
	"slices"
	"testing"
	"time"
)

// starting is a talk with an Envoy that is another process; listeners of missing are held.
func starting(t *testing.T, delta bool, missing map[string]bool) *talk {
	k := newTalk(t, delta, map[string]Transform{listenerType: func(r Resource) ([]byte, bool) { return r.Body, !missing[r.Name] }})
	k.relay.Another()
	return k
}

func (k *talk) without() (names []string) {
	for _, ev := range k.events {
		names = append(names, ev.Without...)
	}
	return names
}

// The first answer for listeners to an Envoy that starts waits until none in it is held;
// other types do not, nor do later answers.
func TestFirstListeners(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		missing := map[string]bool{"l": true, "m": true}
		k := starting(t, delta, missing)
		k.want(clusterType)
		k.want(listenerType)
		k.push(listenerType, "1", "l=1", "m=1", "n=1")
		k.getsNothing()
		if want := k.now.Add(openingPatience); !k.Wake().Equal(want) {
			t.Errorf("looked at again at %v, want %v", k.Wake(), want)
		}
		k.push(clusterType, "1", "c=1")
		k.ack(k.gets(clusterType, "c=1"))
		delete(missing, "m")
		k.relay.Changed(listenerType, "m")
		k.now = k.now.Add(openingPatience - 1)
		k.getsNothing()
		delete(missing, "l")
		k.relay.Changed(listenerType, "l")
		k.ack(k.gets(listenerType, "l=1", "m=1", "n=1"))
		if names := k.without(); names != nil || !k.Wake().IsZero() {
			t.Errorf("it began without %q, and is looked at again at %v", names, k.Wake())
		}

		missing["l"], missing["o"] = true, true
		k.push(listenerType, "2", "l=2", "m=2", "n=1", "o=2")
		if delta {
			k.ack(k.gets(listenerType, "m=2", "n=1"))
		} else {
			k.ack(k.gets(listenerType, "l=1", "m=2", "n=1"))
		}
		k.getsNothing()
	})
}

// It waits for a time, and then Envoy goes on without those that are held; the owner is told.
func TestFirstListenersInTime(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		for _, ready := range [][]string{{"n=1"}, nil} {
			missing := map[string]bool{"l": true}
			k := starting(t, delta, missing)
			k.want(listenerType)
			k.now = k.now.Add(10 * time.Second) // of the time that Envoy waits
			k.push(listenerType, "1", append([]string{"l=1"}, ready...)...)
			k.getsNothing()
			k.now = k.now.Add(openingPatience - 10*time.Second)
			if ready != nil {
				k.ack(k.gets(listenerType, ready...))
			}
			k.getsNothing()
			if names := k.without(); !slices.Equal(names, []string{"l"}) || !k.Wake().IsZero() {
				t.Errorf("it began without %q, and is looked at again at %v", names, k.Wake())
			}
			delete(missing, "l")
			k.relay.Changed(listenerType, "l")
			if delta {
				ready = nil
			}
			k.ack(k.gets(listenerType, append([]string{"l=1"}, ready...)...))
		}
	})
}

// An Envoy that waits for less is answered before it goes on without listeners; one that
// waits for more is not kept shut for longer.
func TestFirstListenersInEnvoysTime(t *testing.T) {
	for envoys, want := range map[time.Duration]time.Duration{
		0: 14 * time.Second, 15 * time.Second: 14 * time.Second, time.Minute: 14 * time.Second, 14 * time.Second: 13 * time.Second,
		5 * time.Second: 4 * time.Second, 2 * time.Second: time.Second, time.Second: 500 * time.Millisecond, time.Millisecond: 500 * time.Microsecond,
	} {
		k := starting(t, true, map[string]bool{"l": true})
		k.relay.hooks.ListenersTimeout = envoys
		k.want(listenerType)
		k.push(listenerType, "1", "l=1", "n=1")
		if got := k.Wake().Sub(k.now); got != want {
			t.Errorf("for an Envoy that waits for %v its first listeners wait for %v, want %v", envoys, got, want)
		}
		k.getsNothing()
		k.now = k.now.Add(want)
		k.ack(k.gets(listenerType, "n=1"))
	}
}

// Nothing waits for an Envoy that may serve: one of which the relay does not know that it
// has just started, or that says itself that it has listeners.
func TestListenersOfOneThatServes(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		has := Request{Type: listenerType, Version: "1"}
		if delta {
			has = Request{Type: listenerType, Held: map[string]string{"n": "1"}}
		}
		for name, q := range map[string]Request{"unknown": {Type: listenerType}, "says so": has} {
			k := newTalk(t, delta, map[string]Transform{listenerType: func(r Resource) ([]byte, bool) { return r.Body, r.Name != "l" }})
			if name == "says so" {
				k.relay.Another()
			}
			k.ask(q)
			k.push(listenerType, "2", "l=2", "m=2")
			k.ack(k.gets(listenerType, "m=2"))
			if names := k.without(); names != nil {
				t.Errorf("%s: it began without %q", name, names)
			}
		}
	})
}

// beginning is what a model knows of an Envoy: that it is a new process and was given no
// listeners, and until when it may wait for them.
type beginning struct {
	is    bool
	until time.Time // zero: it has not asked
}

// checkBeginning holds that a first answer for listeners goes on only when none is held.
func (w *world) checkBeginning(typeURL string) {
	if typeURL != listenerType {
		return
	}
	for name, e := range w.stream.feeds[listenerType].entries {
		if w.begins.is && e.up != nil && w.shut[name] && w.now.Before(w.begins.until) {
			w.t.Fatalf("Envoy begins without the listener %s", name)
		}
	}
	w.begins.is = false
}

// checkListeners holds that nothing is withheld, once all has settled, but what is held, and
// all of it from an Envoy that begins.
func (w *world) checkListeners() {
	f := w.stream.feeds[listenerType]
	if f == nil || w.begins.is && w.now.Before(w.begins.until) || f.isFull() && f.lacks() {
		return
	}
	for name, e := range f.entries {
		if e.up != nil && !w.shut[name] && (e.due == fresh || e.due == own) {
			w.t.Fatalf("the listener %s is withheld", name)
		}
	}
}
