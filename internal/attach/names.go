package attach

import (
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

const (
	clusterType       = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	routeType         = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	hostType          = "type.googleapis.com/envoy.config.route.v3.VirtualHost"
	endpointsType     = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	secretType        = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	tlsContextsPrefix = "envoy.extensions.transport_sockets.tls.v3."
)

// The fields that Names reads beside those of slots.
const (
	chainSocket, clusterName, clusterKind, clusterEDS, clusterSocket protowire.Number = 6, 1, 2, 3, 24
	sourceConfig, sourceName, sourceDelayed                          protowire.Number = 1, 2, 1
	socketTyped, tlsCommon                                           protowire.Number = 3, 1
	commonCertificates, commonValidation, commonCombined             protowire.Number = 6, 7, 8
	combinedSecret, secretName, secretSource                         protowire.Number = 2, 1, 2
	sourceAPI, sourceADS, sourceSelf                                 protowire.Number = 2, 3, 5

	kindEDS = 3
)

// Names tells what Envoy asks its control plane for once it has taken a listener or a
// cluster, and waits for: route and extension configs, endpoints, secrets. What it does not
// read names nothing, for instance a connection manager in a TypedStruct.
func Names(typeURL string, body []byte, named func(typeURL, name string)) {
	n := namer(named)
	switch typeURL {
	case listenerType:
		for s := scan(body, nil); s.next(); {
			if s.num == listenerChains || s.num == listenerDefaultChain {
				n.chain(s.bytes(""))
			}
		}
	case clusterType:
		n.cluster(body)
	}
}

type namer func(typeURL, name string)

func (n namer) chain(b []byte) {
	for s := scan(b, nil); s.next(); {
		switch s.num {
		case chainFilters:
			n.filter(s.bytes(""))
		case chainSocket:
			n.socket(s.bytes(""))
		}
	}
}

// filter reads a network filter or an HTTP filter.
func (n namer) filter(b []byte) {
	f, err := readFilter(b, nil)
	if err != nil || f.slot {
		return
	}
	if f.discovered != nil {
		discovery, _ := child(b, filterDiscovery, nil, "")
		if kind := source(discovery, sourceDelayed); kind == sourceADS || kind == sourceAPI {
			n(ExtensionConfigType, f.Name)
		}
		return
	}
	if !f.manager() {
		return
	}
	for s := scan(f.config, nil); s.next(); {
		switch s.num {
		case managerRDS:
			n.routes(s.bytes(""))
		case managerFilters:
			n.filter(s.bytes(""))
		}
	}
}

func (n namer) routes(rds []byte) {
	if name, _ := child(rds, sourceName, nil, ""); source(rds, sourceConfig) != 0 {
		n(routeType, string(name))
	}
}

func (n namer) cluster(b []byte) {
	name, kind, eds := "", uint64(0), []byte(nil)
	for s := scan(b, nil); s.next(); {
		switch s.num {
		case clusterName:
			name = string(s.bytes(""))
		case clusterKind:
			kind = s.number("")
		case clusterEDS:
			eds = s.bytes("")
		case clusterSocket:
			n.socket(s.bytes(""))
		}
	}
	if kind != kindEDS || source(eds, sourceConfig) == 0 {
		return
	}
	if service, _ := child(eds, sourceName, nil, ""); len(service) > 0 {
		name = string(service)
	}
	n(endpointsType, name)
}

// socket reads a transport socket: which secrets it has over ADS. Others come from sources
// of their own, as Istio's.
func (n namer) socket(b []byte) {
	typed, _ := child(b, socketTyped, nil, "")
	kind, value, err := typeAndValue(typed, nil)
	if kind = typeName(kind); err != nil || !strings.HasPrefix(kind, tlsContextsPrefix) {
		return
	}
	common, _ := child(value, tlsCommon, nil, "")
	secret := func(b []byte) {
		if name, _ := child(b, secretName, nil, ""); source(b, secretSource) == sourceADS {
			n(secretType, string(name))
		}
	}
	for s := scan(common, nil); s.next(); {
		switch s.num {
		case commonCertificates, commonValidation:
			secret(s.bytes(""))
		case commonCombined:
			combined, _ := child(s.bytes(""), combinedSecret, nil, "")
			secret(combined)
		}
	}
}

// source tells by which field a ConfigSource, itself a field of b, names a control plane;
// zero: it names none.
func source(b []byte, num protowire.Number) protowire.Number {
	config, _ := child(b, num, nil, "")
	for s := scan(config, nil); s.next(); {
		switch s.num {
		case sourceAPI, sourceADS, sourceSelf:
			return s.num
		}
	}
	return 0
}
