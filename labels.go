package chandler

import (
	"cmp"
	"fmt"
)

// Labels by which a proxy declares what it is: a gateway of the Gateway API, and the proxy
// that all requests to a Service of its namespace pass.
const (
	LabelGateway      = "gateway.networking.k8s.io/gateway-name"       // the Gateway that it is the proxy of, which targetRefs of kind Gateway mean
	LabelGatewayClass = "gateway.networking.k8s.io/gateway-class-name" // the class of its Gateway, which targetRefs of kind GatewayClass mean
	LabelService      = "chandler.dev/service"                         // the Service whose requests all pass it, which targetRefs of kind Service mean

	// The first is Istio's older name of LabelGateway, the others are Envoy Gateway's.
	labelIstioGateway          = "istio.io/gateway-name"
	labelEnvoyGateway          = "gateway.envoyproxy.io/owning-gateway-name"
	labelEnvoyGatewayNamespace = "gateway.envoyproxy.io/owning-gateway-namespace"
	labelEnvoyGatewayClass     = "gateway.envoyproxy.io/owning-gatewayclass"

	LabelManaged = "gateway.istio.io/managed" // which of Istio's controllers made it; a waypoint runs no plugins

	// ManagedWaypoint is the controller that makes waypoints, which are of the class
	// WaypointClass unless somebody made another one.
	ManagedWaypoint = "istio.io-mesh-controller"
	WaypointClass   = "istio-waypoint"
)

// TargetLabels are all that targetRefs go by.
func TargetLabels() []string {
	return []string{LabelGateway, labelIstioGateway, labelEnvoyGateway, labelEnvoyGatewayNamespace, LabelGatewayClass, labelEnvoyGatewayClass, LabelService, LabelManaged}
}

// Gateway is the name of the Gateway in its namespace that the proxy declares to be;
// empty: none. One that runs elsewhere than its Gateway is none: plugins are for the
// proxies of a namespace.
func (n Node) Gateway() string {
	if name := cmp.Or(n.Labels[LabelGateway], n.Labels[labelIstioGateway]); name != "" {
		return name
	}
	if of := n.Labels[labelEnvoyGatewayNamespace]; of != "" && of != n.Namespace {
		return ""
	}
	return n.Labels[labelEnvoyGateway]
}

// GatewayClass is the class of its Gateway, or of all Gateways that it is for.
func (n Node) GatewayClass() string {
	return cmp.Or(n.Labels[LabelGatewayClass], n.Labels[labelEnvoyGatewayClass])
}

// HintUnsupportedTarget is what to do about a target that is a waypoint.
const HintUnsupportedTarget = "select the proxies of gateways or workloads: with selector, or targetRefs to their Gateway"

// Unsupported tells why nothing can be attached to what a reference names; empty: it can.
func (r TargetRef) Unsupported() string {
	switch {
	case r.Kind == "ServiceEntry":
		return "a ServiceEntry is reached through a waypoint, and waypoints run no plugins"
	case r.Kind == "GatewayClass" && r.Name == WaypointClass:
		return fmt.Sprintf("the proxies of GatewayClass %s are waypoints, which run no plugins", Quote(r.Name))
	}
	return ""
}

// Waypoint tells whether it is a waypoint of an ambient mesh, which runs no plugins.
func (n Node) Waypoint() bool {
	return n.Labels[LabelGatewayClass] == WaypointClass || n.Labels[LabelManaged] == ManagedWaypoint
}
