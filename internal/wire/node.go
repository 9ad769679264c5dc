package wire

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
)

// NodeToProto translates a node for the wire.
func NodeToProto(n chandler.Node) *chandlerv1.Node {
	return &chandlerv1.Node{
		Name: n.Name, Namespace: n.Namespace, Labels: n.Labels,
		AgentVersion: n.AgentVersion, EnvoyVersion: n.EnvoyVersion, Features: n.Features,
	}
}

// NodeFromProto checks and translates the claim an agent makes of itself.
func NodeFromProto(m *chandlerv1.Node) (chandler.Node, error) {
	if m == nil {
		return chandler.Node{}, errors.New("node is missing")
	}
	n := chandler.Node{
		Name: m.GetName(), Namespace: m.GetNamespace(), Labels: m.GetLabels(),
		AgentVersion: m.GetAgentVersion(), EnvoyVersion: m.GetEnvoyVersion(), Features: m.GetFeatures(),
	}
	return n, checkNode(n)
}

func checkNode(n chandler.Node) error {
	if err := checkName("node name", n.Name); err != nil {
		return err
	}
	if err := checkName("node namespace", n.Namespace); err != nil {
		return err
	}
	if strings.Contains(n.Namespace, "/") || strings.Contains(n.Name, "/") {
		return fmt.Errorf("node %s: neither name nor namespace may have a slash", chandler.Quote(n.ID()))
	}
	if err := checkOptionalName("agent version", n.AgentVersion); err != nil {
		return err
	}
	if err := checkOptionalName("envoy version", n.EnvoyVersion); err != nil {
		return err
	}
	if err := checkLen("labels", len(n.Labels), maxList); err != nil {
		return err
	}
	if err := checkLen("features", len(n.Features), maxList); err != nil {
		return err
	}
	for k, v := range n.Labels {
		if err := checkName("label", k); err != nil {
			return err
		}
		if err := checkOptionalName("label value", v); err != nil {
			return err
		}
	}
	for _, f := range n.Features {
		if err := checkName("feature", f); err != nil {
			return err
		}
	}
	return nil
}

// metadataKey is where a node's claim stands in the metadata of an xDS node.
const metadataKey = "chandler"

// NodeToXDS gives the node as it stands in an xDS request: the id is
// "namespace/name", the rest is metadata.
func NodeToXDS(n chandler.Node) *corev3.Node {
	text := structpb.NewStringValue
	labels := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for _, k := range slices.Sorted(maps.Keys(n.Labels)) {
		labels.Fields[k] = text(n.Labels[k])
	}
	features := &structpb.ListValue{}
	for _, f := range n.Features {
		features.Values = append(features.Values, text(f))
	}
	claim := &structpb.Struct{Fields: map[string]*structpb.Value{
		"name":          text(n.Name),
		"namespace":     text(n.Namespace),
		"labels":        structpb.NewStructValue(labels),
		"agent_version": text(n.AgentVersion),
		"envoy_version": text(n.EnvoyVersion),
		"features":      structpb.NewListValue(features),
	}}
	return &corev3.Node{
		Id:            n.ID(),
		Cluster:       n.Namespace,
		UserAgentName: "chandler-agent",
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			metadataKey: structpb.NewStructValue(claim),
		}},
	}
}

// NodeFromXDS checks and translates the node of an xDS request.
func NodeFromXDS(m *corev3.Node) (chandler.Node, error) {
	if m.GetId() == "" {
		return chandler.Node{}, errors.New("node id is missing")
	}
	claim := m.GetMetadata().GetFields()[metadataKey].GetStructValue().GetFields()
	if claim == nil {
		return chandler.Node{}, fmt.Errorf("node metadata has no %q: this port is for chandler's agents", metadataKey)
	}
	n := chandler.Node{
		Name:         claim["name"].GetStringValue(),
		Namespace:    claim["namespace"].GetStringValue(),
		AgentVersion: claim["agent_version"].GetStringValue(),
		EnvoyVersion: claim["envoy_version"].GetStringValue(),
	}
	for k, v := range claim["labels"].GetStructValue().GetFields() {
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		n.Labels[k] = v.GetStringValue()
	}
	for _, f := range claim["features"].GetListValue().GetValues() {
		n.Features = append(n.Features, f.GetStringValue())
	}
	if err := checkNode(n); err != nil {
		return chandler.Node{}, err
	}
	if m.GetId() != n.ID() {
		return chandler.Node{}, fmt.Errorf("node id %s does not agree with name and namespace %s", chandler.Quote(m.GetId()), chandler.Quote(n.ID()))
	}
	return n, nil
}
