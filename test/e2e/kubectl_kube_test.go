//go:build kube

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/kube"
	"chandler.dev/chandler/internal/testenv/module"
)

// kubectl chandler: the same command under kubectl's name for plugins, which reads
// what the cluster shows as somebody who may read plugins and nothing else.
func TestKubePlugin(t *testing.T) {
	w := newInCluster(t)
	port := freePort(t)
	w.agent(node{name: "gw"}, w.gateway(listener{port: port, name: "in"}))
	w.cluster.Plugins = t.TempDir()
	if err := os.Symlink(filepath.Join(built, "chandler"), filepath.Join(w.cluster.Plugins, "kubectl-chandler")); err != nil {
		t.Fatal(err)
	}
	reader, err := w.cluster.User("reader", "readers")
	if err != nil {
		t.Fatal(err)
	}
	w.kubectl("", "create", "clusterrole", "readers", "--verb=get,list", "--resource=wasmplugins.extensions.istio.io,trafficextensions.extensions.istio.io")
	w.kubectl("", "create", "rolebinding", "-n", "edge", "readers", "--clusterrole=readers", "--group=readers")
	chandler := func(args ...string) (string, error) {
		return w.cluster.KubectlAs(t.Context(), reader, "", append([]string{"chandler"}, args...)...)
	}

	if out, err := chandler("status", "-n", "edge"); err != nil || !strings.Contains(out, `No plugins found in namespace "edge"`) {
		t.Errorf("of nothing it says: %s (%v)", out, err)
	}
	w.kubectl(plugin("good", w.push("append:v1", build(1)), tag("one")), "apply", "-f", "-")
	w.waits("Ready", "good")
	out, err := chandler("status", "-n", "edge")
	if err != nil || !strings.Contains(out, " 1/1 ") || !strings.Contains(out, w.digest("good")[len("sha256:"):][:12]) {
		t.Errorf("of a plugin in force it says: %s (%v)", out, err)
	}
	// Envoy refuses the next version; the one before decides requests.
	w.kubectl(plugin("good", w.push("append:v2", module.RefuseConfigure("not today")), tag("two")), "apply", "-f", "-")
	w.waits("Ready=False", "good")
	eventually(t, time.Minute, "the failing proxy", func() (bool, string) {
		out, err := chandler("status", "good", "-n", "edge")
		lines := strings.Split(out, "\n")
		return err != nil && len(lines) > 4 && strings.Contains(lines[1], " 0/1 ") && strings.Contains(out, "\nedge/gw "), out
	})
	has(t, port, "one")

	w.kubectl(plugin("typo", "oci://"+w.registry.Addr+"/plugins/append:none", "selektor: {}"), "apply", "--validate=false", "-f", "-")
	w.waits("Ready=False", "typo")
	out, err = chandler("describe", "wasmplugin", "typo", "-n", "edge")
	if err != nil || !strings.Contains(out, "append:none") {
		t.Errorf("of a plugin that cannot be resolved it says: %s (%v)", out, err)
	}

	// The control plane ends: nothing is claimed of what is written then.
	w.control.kill(t)
	w.kubectl(plugin("good", w.push("append:v1", build(1)), tag("three")), "apply", "-f", "-")
	if out, err = chandler("status", "-n", "edge"); err == nil || !strings.Contains(out, "NotObserved") {
		t.Errorf("with no control plane it says: %s (%v)", out, err)
	}

	if out, err = chandler("status", "-A"); err == nil || !strings.Contains(out, "forbidden") {
		t.Errorf("who may not list everywhere is told: %s (%v)", out, err)
	}
	if out, err = chandler("get", "wasmplugin", "god", "-n", "edge"); err == nil || !strings.Contains(out, `"god" not found in namespace "edge"`) {
		t.Errorf("of a name that is not there it says: %s (%v)", out, err)
	}
	out, err = chandler("get", "wasmplugin", "good", "-n", "edge", "-o", "yaml")
	if err != nil || !strings.Contains(out, "moduleDigest: sha256:") || !strings.Contains(out, "node: edge/gw") {
		t.Errorf("as YAML it says: %s (%v)", out, err)
	}
}

// chandler migrate reads from a cluster what kubectl would have given it.
func TestKubeMigrate(t *testing.T) {
	c := newCluster(t)
	migrate := func(stdin string, args ...string) (out, talk string, err error) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(built, "chandler"), append([]string{"migrate", "--from"}, args...)...)
		cmd.Env = []string{"KUBECONFIG=" + c.Admin}
		cmd.Stdin = strings.NewReader(stdin)
		var stdout, stderr strings.Builder
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err = cmd.Run()
		return stdout.String(), stderr.String(), err
	}
	if _, talk, err := migrate("", "istio", "-A"); err == nil || !strings.Contains(talk, "nothing to translate") {
		t.Errorf("of an empty cluster it says: %s (%v)", talk, err)
	}
	if _, talk, err := migrate("", "envoyfilter", "-A"); err == nil || !strings.Contains(talk, "does not define EnvoyFilter") {
		t.Errorf("of a kind that is not defined it says: %s (%v)", talk, err)
	}
	c.apply(kube.EnvoyFilters)
	c.kubectl("", "wait", "--for=condition=Established", "crd/envoyfilters.networking.istio.io")
	serves(t, c.Cluster, "envoyfilters")
	c.apply(plugin("a", "oci://registry.example/a:v1", "phase: AUTHN"))
	c.apply(strings.Replace(plugin("a", "oci://registry.example/b:v1", "failStrategy: FAIL_OPEN"), "namespace: edge", "namespace: istio-system", 1))
	c.apply(strings.Replace(plugin("ours", "oci://registry.example/ours:v1"), "{name: ours,", "{name: ours, labels: {istio.io/rev: chandler},", 1))
	c.apply(envoyFilter)

	for from, kinds := range map[string]string{"istio": "wasmplugins,trafficextensions", "envoyfilter": "envoyfilters"} {
		for _, scope := range [][]string{{"-A"}, {"-n", "edge"}} {
			got, talk, err := migrate("", append([]string{from}, scope...)...)
			if err != nil {
				t.Errorf("%s %v: %v: %s", from, scope, err, talk)
			}
			given := c.kubectl("", append([]string{"get", kinds, "-l", "istio.io/rev!=chandler", "-o", "yaml"}, scope...)...)
			want, _, err := migrate(given, from, "-f", "-")
			if err != nil || got != want || !strings.Contains(got, "kind: WasmPlugin") {
				t.Errorf("%s %v: from the cluster\n%s\nfrom kubectl (%v)\n%s", from, scope, got, err, want)
			}
			if strings.Contains(talk, "ours") || strings.Contains(talk, "line ") || strings.Contains(got, "istio-system") != (from == "istio" && scope[0] == "-A") {
				t.Errorf("%s %v: it says\n%s\nof\n%s", from, scope, talk, got)
			}
		}
	}
	if _, talk, err := migrate("", "istio", "-n", "chandler-system"); err == nil || !strings.Contains(talk, "nothing to translate") {
		t.Errorf("of an empty namespace it says: %s (%v)", talk, err)
	}
}

// envoyFilter is one of Istio's.
const (
	envoyFilter = `
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: guard, namespace: edge}
spec:
  workloadSelector: {labels: {app: web}}
  configPatches:
  - applyTo: HTTP_FILTER
    match:
      context: GATEWAY
      listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager, subFilter: {name: envoy.filters.http.router}}}}
    patch:
      operation: INSERT_BEFORE
      value:
        name: guard
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm
          config:
            name: guard
            vm_config:
              runtime: envoy.wasm.runtime.v8
              code: {remote: {http_uri: {uri: "https://modules.example/guard.wasm", cluster: modules, timeout: 10s}, sha256: "abababababababababababababababababababababababababababababababab"}}
`
)
