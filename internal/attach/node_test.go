package attach

import (
	"fmt"
	"maps"
	"strings"
	"testing"
)

const toldDynamic = "dynamic_resources: {ads_config: {}}\n"

// What the nodes of other control planes say, and that nothing is made of any other.
func TestTold(t *testing.T) {
	t.Parallel()
	type labels = map[string]string
	istio := func(id, metadata string) string {
		return fmt.Sprintf("%snode: {id: %q, cluster: a.b, metadata: {%s}}", toldDynamic, id, metadata)
	}
	for _, c := range []struct {
		name, config, node, cluster string
		want                        Told
	}{
		{"a sidecar of Istio", istio("sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local",
			`NAME: web-1, NAMESPACE: shop, WORKLOAD_NAME: web, CLUSTER_ID: east, LABELS: {app: web, version: "1"}`), "", "",
			Told{"web-1", "shop", labels{"app": "web", "version": "1", "service.istio.io/workload-name": "web", "topology.istio.io/cluster": "east"}}},
		{"its id alone", istio("router~::1~gw.a.ns~ns.svc.cluster.local", ``), "", "", Told{"gw.a", "ns", labels{}}},
		{"its pod's labels win", istio("sidecar~1~a.ns~d", `WORKLOAD_NAME: x, LABELS: {service.istio.io/workload-name: y}`), "", "",
			Told{"a", "ns", labels{"service.istio.io/workload-name": "y"}}},
		{"a gateway of Istio", istio("router~1~gw.ns~d", `LABELS: {gateway.networking.k8s.io/gateway-name: gw}`), "", "",
			Told{"gw", "ns", labels{"gateway.networking.k8s.io/gateway-name": "gw"}}},
		{"a waypoint", istio("waypoint~1~w.ns~d", ``), "", "", Told{"w", "ns", labels{"gateway.istio.io/managed": "istio.io-mesh-controller"}}},
		{"what cannot be a name or a label", istio("sidecar~1~a.ns~d", `NAME: "a/b", NAMESPACE: [x], LABELS: {"": x, l: {}, m: null, n: "a\u0007", o: "`+strings.Repeat("o", 300)+`", p: ok}`), "", "",
			Told{"a", "ns", labels{"p": "ok"}}},
		{"Envoy Gateway by its arguments", toldDynamic, "shop-eg-5391c79d", "shop/eg", Told{"shop-eg-5391c79d", "shop", labels{"gateway.networking.k8s.io/gateway-name": "eg"}}},
		{"Envoy Gateway in the file", toldDynamic + "node: {id: n, cluster: shop/eg}", "", "", Told{"n", "shop", labels{"gateway.networking.k8s.io/gateway-name": "eg"}}},
		{"arguments win", toldDynamic + "node: {id: n, cluster: shop/eg}", "m", "other/gw", Told{"m", "other", labels{"gateway.networking.k8s.io/gateway-name": "gw"}}},
		{"no control plane", "node: {id: n, cluster: shop/eg}", "", "", Told{}},
		{"no Gateway", toldDynamic + "node: {id: n, cluster: eg}", "", "", Told{}},
		{"a path", toldDynamic + "node: {id: n, cluster: a/b/c}", "", "", Told{}},
		{"a node that is none", "node: 3", "", "", Told{}},
	} {
		config, err := MergeConfig("x.yaml", []byte(c.config), "")
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		got := config.Told(c.node, c.cluster)
		if got.Name != c.want.Name || got.Namespace != c.want.Namespace || !maps.Equal(got.Labels, c.want.Labels) {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// However many labels there are, few are taken over.
func TestToldIsBounded(t *testing.T) {
	t.Parallel()
	var all strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&all, "l%d: x, ", i)
	}
	config, err := MergeConfig("x.yaml", []byte(`node: {id: "sidecar~1~a.b~c", metadata: {LABELS: {`+all.String()+`}}}`), "")
	if err != nil {
		t.Fatal(err)
	}
	if got := config.Told("", ""); len(got.Labels) != maxToldLabels {
		t.Errorf("%d labels", len(got.Labels))
	}
}
