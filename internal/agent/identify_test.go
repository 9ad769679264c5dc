package agent

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"chandler.dev/chandler"
)

// What the operator says of a proxy wins over what its configuration says.
func TestIdentify(t *testing.T) {
	t.Parallel()
	type labels = map[string]string
	const gatewayLabel = "gateway.networking.k8s.io/gateway-name"
	file := filepath.Join(t.TempDir(), "envoy.yaml")
	if err := os.WriteFile(file, []byte(`
node: {id: "sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local", metadata: {LABELS: {app: web, gateway.networking.k8s.io/gateway-name: g}}}
dynamic_resources: {ads_config: {}}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	istio, gateway := []string{"-c", file}, []string{"--config-yaml", "dynamic_resources: {ads_config: {}}", "--service-cluster", "shop/eg", "--service-node", "eg-1"}
	for name, c := range map[string]struct {
		args  []string
		given chandler.Node
		want  chandler.Node
	}{
		"nothing is said": {istio, chandler.Node{}, chandler.Node{Name: "web-1", Namespace: "shop", Found: labels{"app": "web", gatewayLabel: "g"}}},
		"all is said": {istio, chandler.Node{Name: "n", Namespace: "shop", Labels: labels{"app": "mine"}},
			chandler.Node{Name: "n", Namespace: "shop", Labels: labels{"app": "mine"}, Found: labels{gatewayLabel: "g"}}},
		"Envoy Gateway": {gateway, chandler.Node{}, chandler.Node{Name: "eg-1", Namespace: "shop", Found: labels{gatewayLabel: "eg"}}},
		"its proxy runs elsewhere": {gateway, chandler.Node{Name: "pod", Namespace: "envoy-gateway-system"},
			chandler.Node{Name: "pod", Namespace: "envoy-gateway-system"}},
		"of nobody":                {[]string{"--config-yaml", "node: {id: x, cluster: y}"}, chandler.Node{}, chandler.Node{Name: "host", Namespace: "default"}},
		"a file that is not there": {[]string{"-c", file + "x"}, chandler.Node{}, chandler.Node{Name: "host", Namespace: "default"}},
		"a file that is no YAML":   {[]string{"--config-yaml", "{"}, chandler.Node{Namespace: "a"}, chandler.Node{Name: "host", Namespace: "a"}},
		"no configuration":         {nil, chandler.Node{}, chandler.Node{Name: "host", Namespace: "default"}},
	} {
		cfg := Config{Node: c.given, EnvoyArgs: c.args}
		Identify(&cfg, "host")
		if n := cfg.Node; n.ID() != c.want.ID() || !maps.Equal(n.Labels, c.want.Labels) || !maps.Equal(n.Found, c.want.Found) {
			t.Errorf("%s: %+v, want %+v", name, n, c.want)
		}
	}
}
