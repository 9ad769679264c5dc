package attach

import (
	"regexp"
	"strings"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler"
)

// Told is what a configuration that another control plane's tools wrote says of its
// proxy. What it does not say is empty.
type Told struct {
	Name, Namespace string
	// Labels are those of its pod, and those that follow from the rest.
	Labels map[string]string
}

// Istio's names of labels.
const (
	labelWorkload = "service.istio.io/workload-name"
	labelCluster  = "topology.istio.io/cluster"
)

// Bounds of what is taken over.
const (
	maxToldLabels = 64
	maxToldName   = 253
	maxToldValue  = 253
)

var (
	toldName = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$`)
	// gatewayOf is how Envoy Gateway calls the cluster of a proxy's node: its Gateway.
	gatewayOf = regexp.MustCompile(`^([a-z0-9](?:[-a-z0-9]*[a-z0-9])?)/([a-z0-9](?:[-a-z0-9.]*[a-z0-9])?)$`)
)

// Told reads the node: node and cluster are what the command line says of its id and
// cluster, which win. It understands the nodes of
//
//   - Istio: an id TYPE~ADDRESS~NAME.NAMESPACE~DOMAIN, and the metadata that istiod goes by (NAME,
//     NAMESPACE, LABELS, WORKLOAD_NAME, CLUSTER_ID);
//   - Envoy Gateway: a cluster NAMESPACE/NAME, which is the Gateway, in a configuration that comes
//     from a control plane.
//
// Of any other node, and of what cannot be taken over as it is, it says nothing.
func (c *Config) Told(node, cluster string) Told {
	root, err := (&resolver{open: map[*yaml.Node]bool{}}).resolve(c.root)
	if err != nil {
		return Told{}
	}
	own, err := message(root, "", "node")
	if err != nil || own == nil {
		own = newMapping()
	}
	if node == "" {
		node, _ = scalarText(own, "", "id")
	}
	if cluster == "" {
		cluster, _ = scalarText(own, "", "cluster")
	}
	if parts := strings.Split(node, "~"); len(parts) == 4 {
		return toldByIstio(own, parts[0], parts[2])
	}
	dynamic, err := message(root, "", "dynamic_resources")
	gateway := gatewayOf.FindStringSubmatch(cluster)
	if err != nil || dynamic == nil || gateway == nil {
		return Told{}
	}
	return Told{Name: plainName(node), Namespace: gateway[1], Labels: map[string]string{chandler.LabelGateway: gateway[2]}}
}

// toldByIstio reads the metadata of a node of Istio's; workload is NAME.NAMESPACE.
func toldByIstio(node *yaml.Node, kind, workload string) Told {
	meta, err := message(node, "", "metadata")
	if err != nil || meta == nil {
		meta = newMapping()
	}
	text := func(key string) string {
		v, _ := scalarText(meta, "", key)
		return v
	}
	t := Told{Name: plainName(text("NAME")), Namespace: plainName(text("NAMESPACE")), Labels: map[string]string{}}
	if at := strings.LastIndexByte(workload, '.'); at > 0 {
		if t.Name == "" {
			t.Name = plainName(workload[:at])
		}
		if t.Namespace == "" {
			t.Namespace = plainName(workload[at+1:])
		}
	}
	t.add(labelWorkload, text("WORKLOAD_NAME"))
	t.add(labelCluster, text("CLUSTER_ID"))
	labels, err := message(meta, "", "LABELS")
	for i := 0; err == nil && labels != nil && i+1 < len(labels.Content); i += 2 {
		if value := labels.Content[i+1]; value.Kind == yaml.ScalarNode && !isNull(value) {
			t.add(labels.Content[i].Value, value.Value)
		}
	}
	if kind == "waypoint" || kind == "ztunnel" {
		t.Labels[chandler.LabelManaged] = chandler.ManagedWaypoint
	}
	return t
}

// add takes a label over that can be one.
func (t *Told) add(key, value string) {
	_, there := t.Labels[key]
	switch {
	case key == "" || len(key) > maxToldName || !chandler.IsPlain(key):
	case value == "" || len(value) > maxToldValue || !chandler.IsPlain(value):
	case there || len(t.Labels) < maxToldLabels:
		t.Labels[key] = value
	}
}

// plainName gives a name that can be one of a node or a namespace, or nothing.
func plainName(s string) string {
	if len(s) > maxToldName || !toldName.MatchString(s) {
		return ""
	}
	return s
}
