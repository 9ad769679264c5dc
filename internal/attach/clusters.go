package attach

import "google.golang.org/protobuf/encoding/protowire"

// The fields that Clusters reads beside those of filters and route tables.
const (
	actionCluster, actionWeighted, weightedClusters, weightedName protowire.Number = 1, 3, 1, 1
	tcpProxyCluster, tcpProxyWeighted                             protowire.Number = 2, 10
	tableMirrors, hostMirrors, actionMirrors, mirrorCluster       protowire.Number = 13, 22, 30, 1
)

// Clusters tells to which clusters a listener, a route configuration or a virtual host leads
// traffic, mirrored requests included: Envoy refuses a listener whose own routes have a mirror
// that is not there. What it does not read leads nowhere: what is computed from a request, and a
// connection manager in a TypedStruct.
func Clusters(typeURL string, body []byte, to func(cluster string)) {
	l := leader(to)
	switch typeURL {
	case routeType:
		l.table(body)
	case hostType:
		l.host(body)
	case listenerType:
		l.over(body, listenerChains, l.chain)
		l.over(body, listenerDefaultChain, l.chain)
	}
}

type leader func(cluster string)

// over reads the messages of a field.
func (l leader) over(b []byte, num protowire.Number, read func([]byte)) {
	for s := scan(b, nil); s.next(); {
		if s.num == num {
			read(s.bytes(""))
		}
	}
}

// name reads the name of a cluster.
func (l leader) name(b []byte) {
	if len(b) > 0 {
		l(string(b))
	}
}

func (l leader) weighted(b []byte) {
	l.over(b, weightedClusters, func(b []byte) { l.over(b, weightedName, l.name) })
}

func (l leader) mirrors(b []byte, num protowire.Number) {
	l.over(b, num, func(b []byte) { l.over(b, mirrorCluster, l.name) })
}

func (l leader) table(b []byte) {
	l.over(b, tableHosts, l.host)
	l.mirrors(b, tableMirrors)
}

func (l leader) host(b []byte) {
	l.mirrors(b, hostMirrors)
	l.over(b, hostRoutes, func(b []byte) {
		l.over(b, routeTo, func(b []byte) {
			l.over(b, actionCluster, l.name)
			l.over(b, actionWeighted, l.weighted)
			l.mirrors(b, actionMirrors)
		})
	})
}

func (l leader) chain(b []byte) {
	l.over(b, chainFilters, func(b []byte) {
		l.over(b, filterTyped, func(b []byte) {
			kind, value, _ := typeAndValue(b, nil)
			switch typeName(kind) {
			case hcmType:
				l.over(value, managerRoutes, l.table)
			case tcpProxyType:
				l.over(value, tcpProxyCluster, l.name)
				l.over(value, tcpProxyWeighted, l.weighted)
			}
		})
	})
}
