package control

import (
	"cmp"
	"slices"
	"time"

	"chandler.dev/chandler"
)

// ProxyView is a node as it is known, with what it said.
type ProxyView struct {
	chandler.Node
	Connected bool
	// Since when it is connected, or is not.
	Since time.Time
	// Facts are nil before the agent told them.
	Facts *chandler.Facts
	// States are what it says of each plugin; they are not to be changed.
	States map[chandler.Key]chandler.AttachmentState
	// Traffic is what it said last, at TrafficAt, when it was asked; not to be changed.
	Traffic   []chandler.Traffic
	TrafficAt time.Time
}

// Proxies gives all nodes that are known, by namespace and name, read at one moment.
func (c *Control) Proxies() []ProxyView {
	members := c.fleet.list()
	views := make([]ProxyView, 0, len(members))
	for i := range members {
		m := &members[i]
		views = append(views, ProxyView{
			Node: m.node, Connected: m.connected, Since: m.since, Facts: m.facts, States: m.states,
			Traffic: m.traffic, TrafficAt: m.trafficAt,
		})
	}
	slices.SortFunc(views, func(a, b ProxyView) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return views
}

// RootNamespace is that whose plugins are for proxies of every namespace; empty: none.
func (c *Control) RootNamespace() string { return c.cfg.RootNamespace }

// Withholds tells whether releases are kept from Envoys of versions in which nobody
// tried them.
func (c *Control) Withholds() bool { return c.withholds() }
