package wire

import (
	"errors"
	"fmt"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
)

// NodeToProto translates a node for the wire.
func NodeToProto(n chandler.Node) *chandlerv1.Node {
	return &chandlerv1.Node{
		Name: n.Name, Namespace: n.Namespace, Labels: n.Labels, FoundLabels: n.Found,
		AgentVersion: n.AgentVersion, EnvoyVersion: n.EnvoyVersion, Features: n.Features,
	}
}

// NodeFromProto checks and translates the claim an agent makes of itself.
func NodeFromProto(m *chandlerv1.Node) (chandler.Node, error) {
	if m == nil {
		return chandler.Node{}, errors.New("node is missing")
	}
	n := chandler.Node{
		Name: m.GetName(), Namespace: m.GetNamespace(), Labels: m.GetLabels(), Found: m.GetFoundLabels(),
		AgentVersion: m.GetAgentVersion(), EnvoyVersion: m.GetEnvoyVersion(), Features: m.GetFeatures(),
	}
	return n, CheckNode(n)
}

// CheckNode tells why no control plane takes an agent that says this of itself.
func CheckNode(n chandler.Node) error {
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
	if err := checkLabels("labels", "label", n.Labels); err != nil {
		return err
	}
	if err := checkLabels("found labels", "found label", n.Found); err != nil {
		return err
	}
	if err := checkLen("features", len(n.Features), maxList); err != nil {
		return err
	}
	for _, f := range n.Features {
		if err := checkName("feature", f); err != nil {
			return err
		}
	}
	return nil
}

func checkLabels(all, one string, labels map[string]string) error {
	if err := checkLen(all, len(labels), maxList); err != nil {
		return err
	}
	for k, v := range labels {
		if err := checkName(one, k); err != nil {
			return err
		}
		if err := checkOptionalName(one+" value", v); err != nil {
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
	features := &structpb.ListValue{}
	for _, f := range n.Features {
		features.Values = append(features.Values, text(f))
	}
	claim := &structpb.Struct{Fields: map[string]*structpb.Value{
		"name":          text(n.Name),
		"namespace":     text(n.Namespace),
		"labels":        labelsToXDS(n.Labels),
		"agent_version": text(n.AgentVersion),
		"envoy_version": text(n.EnvoyVersion),
		"features":      structpb.NewListValue(features),
	}}
	if len(n.Found) > 0 {
		claim.Fields["found_labels"] = labelsToXDS(n.Found)
	}
	return &corev3.Node{
		Id:            n.ID(),
		Cluster:       n.Namespace,
		UserAgentName: "chandler-agent",
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			metadataKey: structpb.NewStructValue(claim),
		}},
	}
}

func labelsToXDS(labels map[string]string) *structpb.Value {
	s := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(labels))}
	for k, v := range labels {
		s.Fields[k] = structpb.NewStringValue(v)
	}
	return structpb.NewStructValue(s)
}

// labelsFromXDS gives nil for none.
func labelsFromXDS(v *structpb.Value) map[string]string {
	var labels map[string]string
	for k, v := range v.GetStructValue().GetFields() {
		if labels == nil {
			labels = map[string]string{}
		}
		labels[k] = v.GetStringValue()
	}
	return labels
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
		Labels:       labelsFromXDS(claim["labels"]),
		Found:        labelsFromXDS(claim["found_labels"]),
	}
	for _, f := range claim["features"].GetListValue().GetValues() {
		n.Features = append(n.Features, f.GetStringValue())
	}
	if err := CheckNode(n); err != nil {
		return chandler.Node{}, err
	}
	if m.GetId() != n.ID() {
		return chandler.Node{}, fmt.Errorf("node id %s does not agree with name and namespace %s", chandler.Quote(m.GetId()), chandler.Quote(n.ID()))
	}
	return n, nil
}
