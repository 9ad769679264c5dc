//go:build kube

package chart

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"k8s.io/client-go/tools/clientcmd"

	"chandler.dev/chandler/internal/testenv/kube"
)

// A definition of somebody else's, much looser than ours.
const foreign = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: wasmplugins.extensions.istio.io
  labels: {release: istio}
spec:
  group: extensions.istio.io
  scope: Namespaced
  names: {kind: WasmPlugin, listKind: WasmPluginList, plural: wasmplugins, singular: wasmplugin}
  versions:
    - name: v1alpha1
      served: true
      storage: true
      subresources: {status: {}}
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

// TestCluster holds the chart against a real API server.
func TestCluster(t *testing.T) {
	c := kube.Start(t, "../../.tools")
	for _, ns := range []string{"chandler-system", "shop", "istio-system"} {
		must(t, c, "", "create", "namespace", ns)
	}
	t.Run("definitions", func(t *testing.T) { definitions(t, c) })
	t.Run("applied", func(t *testing.T) { applied(t, c) })
	t.Run("rights", func(t *testing.T) { rights(t, c) })
}

func must(t *testing.T, c *kube.Cluster, stdin string, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(t.Context(), stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// live renders as Helm does with a cluster at hand.
func live(t *testing.T, c *kube.Cluster, set ...string) []string {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", c.Admin)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Release: "chandler", Namespace: "chandler-system", Set: set}
	manifests, _, err := render(o, func(c *chart.Chart, v chartutil.Values) (map[string]string, error) {
		return engine.RenderWithClient(c, v, config)
	})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range documents(t, manifests) {
		if d.Kind == "CustomResourceDefinition" {
			names = append(names, strings.TrimSuffix(d.Metadata.Name, ".extensions.istio.io"))
		}
	}
	return names
}

// definitions: crds.mode=auto gives what is not there, and never another owner's.
func definitions(t *testing.T, c *kube.Cluster) {
	expect := func(when, want string, set ...string) {
		t.Helper()
		if got := strings.Join(live(t, c, set...), " "); got != want {
			t.Errorf("%s: definitions %q, want %q", when, got, want)
		}
	}
	const both = "trafficextensions wasmplugins"
	expect("an empty cluster", both)
	must(t, c, foreign, "apply", "--server-side", "--field-manager=istio", "-f", "-")
	expect("another's WasmPlugin", "trafficextensions")
	expect("another's, and always", both, "crds.mode=always")
	expect("another's, and never", "", "crds.mode=never")

	// What is rendered without looking does not take it over either.
	manifests, _, err := Render(Options{Release: "chandler", Namespace: "chandler-system"})
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.Kubectl(t.Context(), string(manifests), "apply", "--server-side", "-f", "-")
	if err == nil || !strings.Contains(out, "conflict with \"istio\"") {
		t.Errorf("another's definition was taken over: %v", err)
	}
	if got := must(t, c, "", "get", "crd", "wasmplugins.extensions.istio.io", "-o", "jsonpath={.metadata.labels} {.spec.versions[0].additionalPrinterColumns}"); !strings.Contains(got, `{"release":"istio"}`) || strings.Contains(got, "URL") {
		t.Errorf("another's definition is now %s", got)
	}

	// An upgrade keeps rendering what the release brought, or Helm would remove it.
	must(t, c, "", "annotate", "crd", "wasmplugins.extensions.istio.io", "meta.helm.sh/release-name=chandler", "meta.helm.sh/release-namespace=chandler-system")
	must(t, c, "", "delete", "crd", "trafficextensions.extensions.istio.io")
	expect("what Istio took over", "trafficextensions")
	must(t, c, "", "label", "crd", "wasmplugins.extensions.istio.io", "release-")
	expect("our own", both)
	must(t, c, "", "annotate", "--overwrite", "crd", "wasmplugins.extensions.istio.io", "meta.helm.sh/release-namespace=other")
	expect("of a release elsewhere", "trafficextensions")
	must(t, c, "", "delete", "crd", "wasmplugins.extensions.istio.io")
}

// applied: the server takes all that the golden values give, as a trial and then
// for real, and knows every field of it.
func applied(t *testing.T, c *kube.Cluster) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		values, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		// The Prometheus operator is not there.
		manifests, _, err := Render(Options{Release: "chandler", Namespace: "chandler-system", Values: [][]byte{values}, Set: []string{"serviceMonitor.enabled=false", "prometheusRule.enabled=false"}})
		if err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"--dry-run=server"}, nil} {
			args := append([]string{"apply", "--server-side", "--force-conflicts", "--validate=strict", "-f", "-"}, args...)
			if out := must(t, c, string(manifests), args...); strings.Count(out, "serverside-applied") != len(documents(t, manifests)) || strings.Contains(out, "Warning") {
				t.Errorf("%s: %s", file, out)
			}
		}
	}
}

// rights: the account may do what it must, and nothing beside it.
func rights(t *testing.T, c *kube.Cluster) {
	manifests, _, err := Render(Options{Release: "chandler", Namespace: "chandler-system", Set: []string{"secrets.names.shop={pull}"}})
	if err != nil {
		t.Fatal(err)
	}
	must(t, c, string(manifests), "apply", "--server-side", "--force-conflicts", "-f", "-")
	account, err := c.ServiceAccount(t.Context(), "chandler-system", "chandler")
	if err != nil {
		t.Fatal(err)
	}
	const plugins, secrets, leases = "wasmplugins.extensions.istio.io", "secrets", "leases.coordination.k8s.io"
	for _, try := range []struct {
		verb, resource, namespace string
		may                       bool
	}{
		{"list", plugins, "shop", true}, {"watch", "trafficextensions.extensions.istio.io", "shop", true},
		{"patch", plugins + "/status", "shop", true}, {"patch", "trafficextensions.extensions.istio.io/status", "shop", true},
		{"create", "controllerrevisions.apps", "shop", true}, {"delete", "controllerrevisions.apps", "shop", true},
		{"create", "tokenreviews.authentication.k8s.io", "", true}, {"create", "subjectaccessreviews.authorization.k8s.io", "", true}, {"get", "pods", "shop", true}, {"create", "events.events.k8s.io", "shop", true},
		{"get", secrets + "/pull", "shop", true}, {"watch", secrets + "/pull", "shop", true},
		{"create", leases, "chandler-system", true}, {"update", leases + "/chandler", "chandler-system", true},
		{"get", "crd/wasmplugins.extensions.istio.io", "", true}, {"get", "configmaps/istio-ca-root-cert", "istio-system", true},

		{"list", secrets, "shop", false}, {"watch", secrets, "shop", false}, {"get", secrets + "/other", "shop", false}, {"get", secrets + "/pull", "istio-system", false}, {"get", secrets + "/chandler-tls", "chandler-system", false},
		{"get", plugins, "shop", false}, {"create", plugins, "shop", false}, {"update", plugins, "shop", false}, {"patch", plugins, "shop", false}, {"delete", plugins, "shop", false},
		{"update", plugins + "/status", "shop", false}, {"update", "controllerrevisions.apps", "shop", false}, {"patch", secrets + "/pull", "shop", false}, {"delete", leases + "/chandler", "chandler-system", false},
		{"list", "pods", "shop", false}, {"get", "configmaps/other", "istio-system", false}, {"update", leases + "/other", "chandler-system", false}, {"get", leases + "/chandler", "shop", false},
		{"patch", "crd/wasmplugins.extensions.istio.io", "", false}, {"get", "configmaps", "chandler-system", false}, {"create", "pods", "chandler-system", false},
	} {
		resource, status := strings.CutSuffix(try.resource, "/status")
		args := []string{"auth", "can-i", try.verb, resource}
		if status {
			args = append(args, "--subresource=status")
		}
		if try.namespace != "" {
			args = append(args, "-n", try.namespace)
		}
		out, err := c.KubectlAs(t.Context(), account, "", args...)
		for end := time.Now().Add(time.Minute); err != nil && try.may && time.Now().Before(end); { // grants hold a moment later
			out, err = c.KubectlAs(t.Context(), account, "", args...)
		}
		if may := err == nil; may != try.may || !strings.Contains(out, map[bool]string{true: "yes", false: "no"}[may]) {
			t.Errorf("%s %s in %q: %t, want %t: %s", try.verb, try.resource, try.namespace, may, try.may, out)
		}
	}
}
