//go:build kube

package chart

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/deploy/helm"
	"chandler.dev/chandler/internal/testenv/kube"
)

const (
	definition = "crd/wasmplugins.extensions.istio.io"
	keepNote   = "helm.sh/resource-policy"

	aPlugin = `
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: kept, namespace: shop}
spec: {url: "oci://registry.example/kept:v1"}
`
)

// installed is a cluster on which Helm's own program is run.
type installed struct {
	*kube.Cluster
	t     *testing.T
	chart string
	home  string
}

// TestHelm: Helm installs, changes and removes the chart, and whatever it does, the
// plugins and another owner's definitions are what they were.
func TestHelm(t *testing.T) {
	h := &installed{Cluster: kube.Start(t, "../../.tools"), t: t, chart: filepath.Join(t.TempDir(), "chandler"), home: t.TempDir()}
	if err := os.CopyFS(filepath.Dir(h.chart), helm.Chart); err != nil {
		t.Fatal(err)
	}
	must(t, h.Cluster, "", "create", "namespace", "shop")
	for _, part := range []struct {
		name string
		run  func(*installed)
	}{{"life", (*installed).life}, {"handed over", (*installed).handedOver}, {"another's", (*installed).anothers}} {
		t.Run(part.name, func(t *testing.T) {
			h := *h
			h.t = t
			part.run(&h)
			must(t, h.Cluster, "", "delete", "crd", "--all")
		})
	}
}

// try runs helm with the release's namespace, and gives what it says.
func (h *installed) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(h.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "../../.tools/helm", append([]string{"--namespace=chandler-system"}, args...)...)
	cmd.Env = []string{"HOME=" + h.home, "KUBECONFIG=" + h.Admin}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (h *installed) helm(args ...string) string {
	h.t.Helper()
	out, err := h.try(args...)
	if err != nil {
		h.t.Fatalf("helm %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

func (h *installed) install() { h.helm("install", "chandler", h.chart, "--create-namespace") }

// upgrade has the default values but for some.
func (h *installed) upgrade(set ...string) {
	h.t.Helper()
	h.helm(h.upgradeArgs(set)...)
}

func (h *installed) upgradeArgs(set []string) []string {
	args := []string{"upgrade", "chandler", h.chart, "--reset-values"}
	for _, s := range set {
		args = append(args, "--set", s)
	}
	return args
}

// get gives a field of an object.
func (h *installed) get(object, field string, args ...string) string {
	h.t.Helper()
	return must(h.t, h.Cluster, "", append([]string{"get", object, "-o", "jsonpath={" + field + "}"}, args...)...)
}

// plugin makes one, once the definition is served.
func (h *installed) plugin() (same func(when string)) {
	h.t.Helper()
	must(h.t, h.Cluster, "", "wait", "--for=condition=Established", "--timeout=60s", definition)
	for deadline := time.Now().Add(time.Minute); ; {
		out, err := h.Kubectl(h.t.Context(), aPlugin, "apply", "-f", "-")
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("%v: %s", err, out)
		}
	}
	uid := h.get("wasmplugin/kept", ".metadata.uid", "-n", "shop")
	return func(when string) {
		h.t.Helper()
		if got := h.get("wasmplugin/kept", ".metadata.uid", "-n", "shop"); got != uid {
			h.t.Fatalf("%s: the plugin is another", when)
		}
	}
}

// life: from install to uninstall, of which the definitions and plugins are left.
func (h *installed) life() {
	t := h.t
	if out := h.helm("lint", "--strict", h.chart); !strings.Contains(out, "0 chart(s) failed") || strings.Contains(out, "[WARNING]") {
		t.Error(out)
	}
	manifests, _, err := Render(Options{Release: "chandler", Namespace: "chandler-system"})
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := documents(t, manifests), documents(t, []byte(h.helm("template", "chandler", h.chart)))
	if a, b := names(ours), names(theirs); len(a) != len(ours) || len(a) != len(b) || fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("helm template gives\n%v\nand chandler install\n%v", b, a)
	}

	h.install()
	same := h.plugin()
	h.upgrade("replicas=2")
	if got := h.get("deployment/chandler", ".spec.replicas", "-n", "chandler-system"); got != "2" {
		t.Errorf("after the upgrade it has %s replicas", got)
	}
	same("an upgrade")

	// A newer chart brings newer definitions.
	file := filepath.Join(h.chart, "definitions/wasmplugins.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, bytes.Replace(text, []byte("shortNames: [wp]"), []byte("shortNames: [wp, wplug]"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	h.upgrade()
	if got := h.get(definition, ".spec.names.shortNames"); got != `["wp","wplug"]` {
		t.Errorf("after the upgrade of the chart the short names are %s", got)
	}
	h.helm("rollback", "chandler", "1")
	if got := h.get(definition, ".spec.names.shortNames"); got != `["wp"]` {
		t.Errorf("after the rollback the short names are %s", got)
	}
	same("a newer chart, and back")

	h.upgrade("crds.mode=never")
	same("without definitions")
	h.upgrade()
	same("with definitions again")
	if got := strings.Count(h.helm("get", "manifest", "chandler"), "\nkind: CustomResourceDefinition\n"); got != 2 {
		t.Errorf("with definitions again the release has %d", got)
	}

	if out := h.helm("uninstall", "chandler"); !strings.Contains(out, "wasmplugins.extensions.istio.io") {
		t.Errorf("of what it keeps it says: %s", out)
	}
	same("the uninstall")
	kinds := "deployments,services,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,networkpolicies,poddisruptionbudgets,persistentvolumeclaims"
	if out := must(t, h.Cluster, "", "get", kinds, "-A", "-l", "app.kubernetes.io/instance=chandler", "-o", "name"); out != "" && !strings.Contains(out, "No resources found") {
		t.Errorf("after the uninstall there is still\n%s", out)
	}
	h.install()
	same("another install")
	h.helm("uninstall", "chandler")
}

func names(objects []object) map[string]bool {
	all := map[string]bool{}
	for _, o := range objects {
		all[o.Kind+" "+o.Metadata.Namespace+"/"+o.Metadata.Name] = true
	}
	return all
}

// handedOver: a definition that the release brought is somebody else's now. Helm
// would delete what an upgrade no longer has, and all plugins with it.
func (h *installed) handedOver() {
	t := h.t
	h.install()
	same := h.plugin()

	// By those who replace it with the file that is the chart's too.
	must(t, h.Cluster, "", "replace", "-f", "../../deploy/crds/wasmplugins.yaml")
	h.upgrade()
	same("replaced with our own file")

	// By Istio, whose file is applied over it.
	must(t, h.Cluster, "", "annotate", definition, "meta.helm.sh/release-name=chandler", "meta.helm.sh/release-namespace=chandler-system")
	must(t, h.Cluster, "", "label", definition, "app.kubernetes.io/managed-by=Helm")
	h.upgrade()
	must(t, h.Cluster, foreign, "apply", "-f", "-")
	generation := h.get(definition, ".metadata.generation")
	h.upgrade("replicas=2")
	same("Istio's over ours")
	if got := h.get(definition, ".metadata.generation"); got != generation {
		t.Errorf("Istio's definition was overwritten: generation %s, was %s", got, generation)
	}

	// By somebody who does not say that it is to be kept: first that must be said.
	h.upgrade("crds.mode=always")
	must(t, h.Cluster, "", "annotate", definition, keepNote+"-", "meta.helm.sh/release-name-")
	out, err := h.try(h.upgradeArgs(nil)...)
	_, advice, ok := strings.Cut(out, "first say: kubectl ")
	if err == nil || !ok {
		t.Fatalf("with a definition that would be deleted it says: %s (%v)", out, err)
	}
	same("an upgrade that is refused")
	must(t, h.Cluster, "", strings.Fields(advice)...)
	h.upgrade()
	same("after what was asked for")
	h.helm("uninstall", "chandler")
	same("the uninstall")
}

// anothers: where Istio's definition was first, nothing that Helm is told changes it.
func (h *installed) anothers() {
	t := h.t
	must(t, h.Cluster, foreign, "apply", "--server-side", "--field-manager=istio", "-f", "-")
	same := h.plugin()
	version := h.get(definition, ".metadata.resourceVersion")
	untouched := func(when string) {
		t.Helper()
		same(when)
		if got := h.get(definition, ".metadata.resourceVersion"); got != version {
			t.Errorf("%s: Istio's definition was changed", when)
		}
	}
	h.install()
	untouched("the install")
	if got := strings.Count(h.helm("get", "manifest", "chandler"), "\nkind: CustomResourceDefinition\n"); got != 1 {
		t.Errorf("the release has %d definitions, want the one that was not there", got)
	}
	if out, err := h.try(h.upgradeArgs([]string{"crds.mode=always"})...); err == nil || !strings.Contains(out, "invalid ownership metadata") {
		t.Errorf("told to bring definitions always it says: %s (%v)", out, err)
	}
	untouched("mode always")
	h.helm("rollback", "chandler", "1")
	untouched("a rollback")
	h.helm("uninstall", "chandler")
	untouched("the uninstall")
}
