package upstream

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Site is many listeners, each with a route configuration, a cluster and its endpoint
// of its own. Names stay; what changes is told by the seed alone.
type Site struct {
	variant      Variant
	dir, backend string
	random       *rand.Rand
	stay         int
	// How often each was changed.
	listeners, routes, clusters []int
}

// NewSite makes one of n listeners, on sockets in dir, which lead to the backend at
// that address.
func NewSite(v Variant, n int, dir, backend string, seed uint64) *Site {
	return &Site{variant: v, dir: dir, backend: backend, random: rand.New(rand.NewPCG(seed, 0)),
		listeners: make([]int, n), routes: make([]int, n), clusters: make([]int, n)}
}

// Name is that of the i-th listener and of all that belongs to it.
func (s *Site) Name(i int) string { return fmt.Sprintf("site-%04d", i) }

// Socket is where the i-th listener listens.
func (s *Site) Socket(i int) string { return filepath.Join(s.dir, s.Name(i)) }

// Mark is what answers through the i-th listener have in their header x-mark: how
// often its route was changed.
func (s *Site) Mark(i int) string { return fmt.Sprint(s.routes[i]) }

// Stay has the first n listeners stay as they are; their routes and clusters change.
func (s *Site) Stay(n int) { s.stay = n }

// Change changes one kind of resource of each of n listeners, drawn by chance: most
// often the route, as it is in life. A listener may be drawn twice. A cluster's
// endpoints change with it: over delta ADS, Envoy waits for endpoints of a changed
// cluster that it has already, which nobody sends, until the fetch times out.
func (s *Site) Change(n int) {
	for range n {
		drawn, i := s.random.IntN(10), s.random.IntN(len(s.routes))
		switch {
		case drawn == 0 && i >= s.stay:
			s.listeners[i]++
		case drawn == 1 || drawn == 2:
			s.clusters[i]++
		default:
			s.routes[i]++
		}
	}
}

// Resources gives all of it as it is now.
func (s *Site) Resources() Resources {
	var all Resources
	for i := range s.listeners {
		name := s.Name(i)
		l := s.variant.Listener(name, s.Socket(i), name)
		l.PerConnectionBufferLimitBytes = wrapperspb.UInt32(1<<16 + uint32(s.listeners[i]))
		c := s.variant.Cluster(name)
		c.ConnectTimeout = durationpb.New(time.Second + time.Duration(s.clusters[i])*time.Millisecond)
		b := Backend(name, s.backend)
		b.Endpoints[0].LbEndpoints[0].LoadBalancingWeight = wrapperspb.UInt32(1 + uint32(s.clusters[i]))
		all = append(all, l, c, b, Route(name, name, s.Mark(i)))
	}
	return all
}
