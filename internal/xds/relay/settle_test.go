package relay

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// settled gives what Settled gives, as "name=content" of all types; until, in how long.
func (k *talk) settled() (resources string, until time.Duration) {
	k.Helper()
	views, at := k.relay.Settled(k.now)
	if !at.IsZero() {
		if views != nil {
			k.Error("it gives views and a time")
		}
		return "", at.Sub(k.now)
	}
	var all []string
	for _, v := range views {
		for _, it := range v.items {
			all = append(all, it.Name+"="+contentOf(it.body(v.Delta)))
		}
	}
	return strings.Join(all, " "), 0
}

// settles expects that.
func (k *talk) settles(want string) {
	k.Helper()
	if got, until := k.settled(); until != 0 || got != want {
		k.Fatalf("settled is %q, until %v, want %q", got, until, want)
	}
}

// namesRoutes are Names of listeners whose content is their route.
func namesRoutes(_ string, body []byte, named func(string, string)) {
	named(routeType, contentOf(body))
}

// What Envoy has belongs together when it has all that it asked for, or will.
func TestSettled(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		k := newTalk(t, delta, nil)
		k.relay.hooks.Names = namesRoutes
		k.want(listenerType)
		k.push(listenerType, "1", "l=r1")
		k.ack(k.gets(listenerType, "l=r1"))
		if _, until := k.settled(); until != missingPatience {
			t.Fatalf("before Envoy has asked: until %v", until)
		}
		k.now = k.now.Add(time.Second)
		k.want(routeType, "r1")
		if _, until := k.settled(); until != missingPatience-time.Second {
			t.Fatalf("with a route missing: until %v", until)
		}
		k.push(routeType, "1", "r1=1")
		k.ack(k.gets(routeType, "r1=1"), "r1")
		k.settles("l=r1 r1=1")

		// A change of what is there leaves nothing missing.
		k.push(routeType, "2", "r1=2")
		k.settles("l=r1 r1=1")
		k.ack(k.gets(routeType, "r1=2"), "r1")
		k.settles("l=r1 r1=2")

		// What the upstream does not have is waited for, for a time, and once.
		k.want(routeType, "r1", "r2")
		if _, until := k.settled(); until != missingPatience {
			t.Errorf("until %v", until)
		}
		k.now = k.now.Add(missingPatience)
		k.settles("l=r1 r1=2")
		if !delta {
			k.want(routeType, "r1", "r2", "r3")
			k.want(routeType, "r1", "r2")
		} else {
			k.want(routeType, "r3")
			k.ask(Request{Type: routeType, Unsubscribe: []string{"r3"}})
		}
		k.settles("l=r1 r1=2")
		if delta {
			k.want(routeType, "r4")
			k.push(routeType, "3", "-r4")
			k.settles("l=r1 r1=2")
		}

		// Without pause something is missing: in the end that is taken too.
		began, n := k.now, 0
		for ; k.now.Sub(began) < time.Minute; k.now = k.now.Add(time.Second) {
			k.want(routeType, "r1", fmt.Sprint("x", k.now.Unix()))
			if got, until := k.settled(); until == 0 {
				if n++; got != "l=r1 r1=2" {
					t.Errorf("taken is %q", got)
				}
			}
		}
		if n == 0 || n > 2 {
			t.Errorf("%d times taken in a minute", n)
		}
	})
}

// Of an Envoy that ends in the middle, and while there is no upstream, is left what does not
// belong together, also behind another relay, until an upstream gives what is missing.
func TestSettledAfterAnEnd(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		for _, asks := range []bool{false, true} {
			k := newTalk(t, delta, nil)
			k.relay.hooks.Names = namesRoutes
			not := func(when string) {
				t.Helper()
				for range 2 {
					k.now = k.now.Add(time.Hour)
					if got, until := k.settled(); until == 0 {
						t.Fatalf("asked %v: %s %q is given", asks, when, got)
					}
				}
			}
			k.want(listenerType)
			k.push(listenerType, "1", "l=r1")
			k.ack(k.gets(listenerType, "l=r1"))
			if asks {
				k.want(routeType, "r1")
			}
			k.Disconnected()
			not("without an upstream")
			k.Close(k.now)
			not("without Envoy")
			views := k.relay.Views()
			k.relay = New(Hooks{Names: namesRoutes})
			k.relay.Restore(views)
			not("behind another relay")
			k.Stream = k.relay.Open(Kind{Delta: delta}, k.now)
			k.want(listenerType)
			k.ack(k.gets(listenerType, "l=r1"))
			k.want(routeType, "r1")
			not("with Envoy")
			k.Connected(k.now)
			if _, until := k.settled(); until != missingPatience {
				t.Fatalf("asked %v: until %v", asks, until)
			}
			k.push(routeType, "1", "r1=1")
			k.ack(k.gets(routeType, "r1=1"), "r1")
			k.settles("l=r1 r1=1")
		}
	})
}
