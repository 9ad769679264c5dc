//go:build kube

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
