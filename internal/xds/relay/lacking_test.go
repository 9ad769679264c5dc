package relay

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// leadsToContent are Clusters of routes whose content is a cluster.
func leadsToContent(typeURL string, body []byte, to func(string)) {
	if typeURL == routeType {
		to(contentOf(body))
	}
}

// What is kept waits for clusters to which its routes lead, also when they go before the
// routes, as they do when an upstream gives one another name; but not for ever, and for one
// that does not come once.
func TestSettledLeads(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		k := newTalk(t, delta, nil)
		k.relay.hooks.Clusters = leadsToContent
		k.want(clusterType)
		k.want(routeType, "r")
		k.push(routeType, "1", "r=c1")
		k.ack(k.gets(routeType, "r=c1"), "r")
		if _, until := k.settled(); until != missingPatience {
			t.Fatalf("with a route to no cluster: until %v", until)
		}
		k.push(clusterType, "1", "c1=1")
		k.ack(k.gets(clusterType, "c1=1"))
		k.settles("c1=1 r=c1")

		k.now = k.now.Add(time.Hour)
		if delta {
			k.push(clusterType, "2", "c2=1", "-c1")
			k.ack(k.gets(clusterType, "c2=1", "-c1"))
		} else {
			k.push(clusterType, "2", "c2=1")
			k.ack(k.gets(clusterType, "c2=1"))
		}
		if _, until := k.settled(); until != missingPatience {
			t.Fatalf("with the route of before: until %v", until)
		}
		k.push(routeType, "2", "r=c2")
		k.ack(k.gets(routeType, "r=c2"), "r")
		k.settles("c2=1 r=c2")

		k.push(routeType, "3", "r=c3")
		k.ack(k.gets(routeType, "r=c3"), "r")
		if _, until := k.settled(); until != missingPatience {
			t.Fatalf("with a cluster that does not come: until %v", until)
		}
		k.now = k.now.Add(missingPatience)
		k.settles("c2=1 r=c3")
		k.push(clusterType, "3", "c2=2")
		k.ack(k.gets(clusterType, "c2=2"))
		k.settles("c2=2 r=c3")
		k.Disconnected()
		k.settles("c2=2 r=c3")
	})
}

// While there is no upstream what is lacking stays so; where Envoy asks for no clusters none
// is.
func TestSettledLeadsElsewhere(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		for _, asks := range []bool{false, true} {
			k := newTalk(t, delta, nil)
			k.relay.hooks.Clusters = leadsToContent
			if asks {
				k.want(clusterType)
			}
			k.want(routeType, "r")
			k.push(routeType, "1", "r=c")
			k.ack(k.gets(routeType, "r=c"), "r")
			k.Disconnected()
			if !asks {
				k.settles("r=c")
				continue
			}
			for range 3 {
				if got, until := k.settled(); until != missingPatience {
					t.Fatalf("%q is given, until %v", got, until)
				}
				k.now = k.now.Add(time.Hour)
			}
			k.Connected(k.now)
			if got, until := k.settled(); until != missingPatience {
				t.Fatalf("once it is back %q is given, until %v", got, until)
			}
		}
	})
}

// For every interleaving of clusters and routes that come and go and of their messages, what
// is given to be kept leads to clusters that are kept with it; and in the end it is given.
func TestSettledLeadsSomewhere(t *testing.T) {
	t.Parallel()
	for _, delta := range []bool{false, true} {
		t.Run(fmt.Sprintf("delta=%v", delta), func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(t *rapid.T) { leadSomewhere(t, delta) })
		})
	}
}

func leadSomewhere(t *rapid.T, delta bool) {
	w := newWorld(fatal{t: t}, delta)
	w.relay.hooks.Clusters = leadsToContent
	cluster, route := rapid.SampledFrom([]string{"c1", "c2", "c3"}), rapid.SampledFrom([]string{"r1", "r2"})
	count := 0
	w.envoy.want(clusterType)
	w.envoy.want(routeType, "r1", "r2")
	w.connect()
	look := func() bool {
		views, until := w.relay.Settled(w.now)
		if !until.IsZero() {
			return false
		}
		there := map[string]bool{}
		for _, v := range views {
			for _, it := range v.items {
				there[v.Type+it.Name] = true
			}
		}
		for _, v := range views {
			for _, it := range v.items {
				if c := contentOf(it.body(v.Delta)); v.Type == routeType && !there[clusterType+c] {
					t.Fatalf("the route %s leads to %s, which is not kept", it.Name, c)
				}
			}
		}
		return true
	}
	t.Repeat(map[string]func(*rapid.T){
		"a cluster comes": func(t *rapid.T) {
			count++
			w.up.set(clusterType, cluster.Draw(t, "cluster"), fmt.Sprint("good", count))
		},
		"a cluster goes": func(t *rapid.T) { w.up.remove(clusterType, cluster.Draw(t, "cluster")) },
		"a route leads":  func(t *rapid.T) { w.up.set(routeType, route.Draw(t, "route"), cluster.Draw(t, "cluster")) },
		"a route goes":   func(t *rapid.T) { w.up.remove(routeType, route.Draw(t, "route")) },
		"all is changed": func(t *rapid.T) { // as one snapshot
			for _, c := range []string{"c1", "c2", "c3"} {
				w.up.remove(clusterType, c)
			}
			for _, r := range []string{"r1", "r2"} {
				c := cluster.Draw(t, "cluster")
				w.up.set(clusterType, c, "good")
				w.up.set(routeType, r, c)
			}
		},
		"connect":             func(*rapid.T) { w.connect() },
		"disconnect":          func(*rapid.T) { w.disconnect() },
		"Envoy's stream ends": func(*rapid.T) { w.reopen(false) },
		"Envoy restarts":      func(*rapid.T) { w.reopen(true) },
		"messages move": func(t *rapid.T) {
			for _, move := range rapid.SliceOfN(rapid.IntRange(0, 3), 1, 16).Draw(t, "moves") {
				[]func(){w.envoySpeaks, w.envoyHears, w.upstreamHears, w.upstreamSpeaks}[move]()
				look()
			}
		},
		"all settles": func(*rapid.T) { w.settle() },
		"":            func(*rapid.T) { look() },
	})
	w.connect()
	for _, c := range []string{"c1", "c2", "c3"} { // also for routes of which nobody says that they are gone
		w.up.set(clusterType, c, "good")
	}
	w.finish(t)
	if !look() {
		t.Fatal("it is never given")
	}
}
