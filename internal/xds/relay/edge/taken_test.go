package edge

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/testenv/upstream"
	"chandler.dev/chandler/internal/xds/relay"
)

// While listeners with routes, clusters and endpoints of their own come to a real Envoy and
// go, what would be kept at any moment names nothing that is not kept with it. No time passes
// in which an upstream would be given up, as it does on a machine that stands still.
func TestTakenBelongsTogether(t *testing.T) {
	t.Parallel()
	const rounds = 41
	for _, v := range upstream.Variants {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, v, relay.Hooks{Names: attach.Names, Clusters: attach.Clusters})
			took := make(chan struct{}, 1)
			s.took = func() {
				select {
				case took <- struct{}{}:
				default:
				}
			}
			began := time.Now()
			s.taken = func() ([]relay.View, time.Time) { return s.edge.taken(began) }
			s.startEdge()
			ctx, cancel := context.WithCancel(t.Context())
			var kept atomic.Int32
			done := make(chan struct{})
			go func() { defer close(done); s.look(ctx, took, &kept) }()
			defer func() { cancel(); <-done }()
			s.startEnvoy()
			for i := range rounds {
				var all upstream.Resources
				for j := range i + 1 { // what is named goes after what names it, or stays
					name := fmt.Sprintf("%03d", j)
					all = append(all, v.Cluster("cluster-"+name), upstream.Backend("cluster-"+name, s.backend), upstream.Route("route-"+name, "cluster-"+name, name))
					if j > i-4 {
						all = append(all, v.Listener("l-"+name, filepath.Join(s.dir, "l-"+name), "route-"+name))
					}
				}
				s.Set(fmt.Sprint(i), all)
				if i%4 > 0 {
					continue // the next comes into the middle of this one
				}
				before := kept.Load()
				s.answers(filepath.Join(s.dir, fmt.Sprintf("l-%03d", i)), fmt.Sprintf("%03d", i))
				for until := time.Now().Add(bound); kept.Load() == before; time.Sleep(time.Millisecond) {
					if time.Now().After(until) {
						t.Fatal("nothing is worth keeping")
					}
				}
			}
		})
	}
}

// look looks at what is worth keeping as often as that is, and counts.
func (s *site) look(ctx context.Context, took <-chan struct{}, kept *atomic.Int32) {
	for ctx.Err() == nil {
		views, until := s.taken()
		wait := 10 * time.Millisecond
		if until.IsZero() {
			wait = time.Minute
			belongsTogether(s.T, views)
			kept.Add(1)
		}
		select {
		case <-ctx.Done():
		case <-took:
		case <-time.After(wait):
		}
	}
}

// belongsTogether holds that of each listener the route is there, of each cluster the endpoints
// and of each route the cluster. This upstream, when a change overtakes another, answers for
// routes while it waits to be told that the clusters of the change before were taken.
func belongsTogether(t *testing.T, views []relay.View) {
	texts := map[string]string{}
	for _, v := range views {
		var b bytes.Buffer
		if _, err := v.WriteTo(&b); err != nil {
			t.Error(err)
		}
		texts[v.Type] = b.String()
	}
	for _, needs := range [][3]string{{upstream.Listeners, upstream.Routes, "route-"}, {upstream.Clusters, upstream.Endpoints, "cluster-"}, {upstream.Routes, upstream.Clusters, "cluster-"}} {
		for i := range 100 {
			name := fmt.Sprintf("%s%03d", needs[2], i)
			if strings.Contains(texts[needs[0]], name) && !strings.Contains(texts[needs[1]], name) {
				t.Errorf("%s is named in %s and not there", name, needs[0])
			}
		}
	}
}
