//go:build kube

package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/kube"
)

// inCluster is a world whose plugins are in a cluster, and whose control plane has
// the rights of the chart and no more.
type inCluster struct {
	*world
	cluster *kube.Cluster
	account string // kubeconfig file
}

func newInCluster(t *testing.T) *inCluster {
	t.Helper()
	w := &inCluster{world: uncontrolled(t), cluster: kube.Start(t, filepath.Join("..", "..", ".tools"))}
	for _, ns := range []string{"edge", "chandler-system"} {
		w.kubectl("", "create", "namespace", ns)
	}
	manifests, err := exec.Command(filepath.Join(built, "chandler"), "install", "-n", "chandler-system").Output()
	if err != nil {
		t.Fatal(err)
	}
	w.kubectl(string(manifests), "apply", "-n", "chandler-system", "-f", "-")
	w.kubectl("", "wait", "--for=condition=Established", "crd", "--all")
	serves(t, w.cluster, "wasmplugins", "trafficextensions")
	if w.account, err = w.cluster.ServiceAccount(t.Context(), "chandler-system", "chandler"); err != nil {
		t.Fatal(err)
	}
	w.startControl()
	return w
}

func (w *inCluster) startControl() {
	w.t.Helper()
	w.control = start(w.t, filepath.Join(w.dir, "control.log"), filepath.Join(built, "chandler"), "serve", "--no-vet", "--kube", "--own-unlabelled", "--kubeconfig", w.account,
		"--data", filepath.Join(w.dir, "control"), "--listen", w.listen, "--admin", w.admin)
	eventually(w.t, time.Minute, "control plane ready", func() (bool, string) { return status("http://" + w.admin + "/healthz/ready") })
}

func (w *inCluster) kubectl(stdin string, args ...string) string {
	w.t.Helper()
	out, err := w.try(stdin, args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *inCluster) try(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := w.cluster.Kubectl(ctx, stdin, args...)
	return strings.TrimSpace(out), err
}

func (w *inCluster) waits(condition, name string) {
	w.t.Helper()
	w.kubectl("", "wait", "--for=condition="+condition, "--timeout=90s", "-n", "edge", "wasmplugin/"+name)
}

// digest is that which the status shows.
func (w *inCluster) digest(name string) string {
	return w.kubectl("", "get", "wasmplugin", "-n", "edge", name, "-o", "jsonpath={.status.chandler.moduleDigest}")
}

// shows waits until what kubectl describe prints has all of these texts.
func (w *inCluster) shows(name string, texts ...string) {
	w.t.Helper()
	eventually(w.t, time.Minute, "kubectl describe "+name, func() (bool, string) {
		out := w.kubectl("", "describe", "wasmplugin", "-n", "edge", name)
		for _, text := range texts {
			if !strings.Contains(out, text) {
				return false, fmt.Sprintf("no %q in\n%s", text, out)
			}
		}
		return true, ""
	})
}

// The user's side of status: columns, kubectl wait, and why a bad plugin is bad.
func TestKubeStatus(t *testing.T) {
	w := newInCluster(t)
	port := freePort(t)
	w.agent(node{name: "gw"}, w.gateway(listener{port: port, name: "in"}))

	w.kubectl(plugin("good", w.push("append:v1", build(1)), tag("one")), "apply", "-f", "-")
	w.waits("Ready", "good")
	has(t, port, "one") // at once
	w.waits("Programmed", "good")
	if out := w.kubectl("", "get", "wasmplugin", "-A"); !strings.Contains(out, "READY") || !strings.Contains(out, " 1/1 ") {
		t.Errorf("kubectl get:\n%s", out)
	}
	w.shows("good", "Events:", "Resolved", "in force on the 1 proxy it is for")

	w.kubectl(plugin("bad", "oci://"+w.registry.Addr+"/plugins/append:none", tag("bad")), "apply", "-f", "-")
	w.waits("Ready=False", "bad")
	if out, err := w.try("", "wait", "--for=condition=Ready", "--timeout=2s", "-n", "edge", "wasmplugin/bad"); err == nil {
		t.Errorf("a plugin that cannot be resolved is ready: %s", out)
	}
	w.shows("bad", "Warning", "NotFound", "append:none")
	has(t, port, "one")

	// An edit to what does not exist is not ready, and the version before stays.
	w.kubectl(plugin("good", "oci://"+w.registry.Addr+"/plugins/append:none", tag("two")), "apply", "-f", "-")
	w.waits("Ready=False", "good")
	has(t, port, "one")
	w.kubectl(plugin("good", w.push("append:v1", build(1)), tag("three")), "apply", "-f", "-")
	w.waits("Ready", "good")
	has(t, port, "three")
}

// The status is wiped, and the resource deleted and restored, with and without a
// control plane that saw it go: the digest in force is the same, wherever the tag
// points by then.
func TestKubeDigestsStay(t *testing.T) {
	w := newInCluster(t)
	port := freePort(t)
	w.agent(node{name: "gw"}, w.gateway(listener{port: port, name: "in"}))
	p := plugin("p", w.push("append:v1", build(1)), tag("one"))
	w.kubectl(p, "apply", "-f", "-")
	w.waits("Ready", "p")
	first := w.digest("p")
	w.push("append:v1", build(2)) // the tag moves

	w.kubectl(`{"status": null}`, "patch", "wasmplugin", "-n", "edge", "p", "--subresource=status", "--type=merge", "--patch-file=/dev/stdin")
	w.waits("Ready", "p")
	if got := w.digest("p"); got != first {
		t.Errorf("after the status was wiped %s is in force, before %s", got, first)
	}
	has(t, port, "one")

	restored := func(how string) {
		t.Helper()
		w.kubectl(p, "apply", "-f", "-")
		w.waits("Ready", "p")
		if got := w.digest("p"); got != first {
			t.Errorf("%s: %s is in force, before %s", how, got, first)
		}
		has(t, port, "one")
	}
	w.kubectl("", "delete", "wasmplugin", "-n", "edge", "p")
	heals(t, port) // nothing
	restored("deleted and restored")

	w.kubectl("", "delete", "wasmplugin", "-n", "edge", "p")
	heals(t, port)
	// As the cluster's garbage collection would; here nobody runs it.
	w.kubectl("", "delete", "controllerrevisions", "-n", "edge", "-l", "chandler.dev/record=release")
	w.control.kill(t)
	w.startControl()
	restored("restored under a new control plane")

	w.control.kill(t)
	w.kubectl("", "delete", "wasmplugin", "-n", "edge", "p")
	w.kubectl("", "delete", "controllerrevisions", "-n", "edge", "-l", "chandler.dev/record=release")
	w.kubectl(p, "apply", "-f", "-")
	w.startControl()
	restored("deleted and restored while no control plane ran")
}

// The control plane is killed in the middle of writing a status. Whatever is shown
// afterwards is whole and of one generation, what was never in force is never
// called ready, and the next control plane shows what is so.
func TestFault_F6_ControlPlaneKilledWhileItWritesStatus(t *testing.T) {
	w := newInCluster(t)
	port := freePort(t)
	w.agent(node{name: "gw"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("append:v1", build(1))
	none := "oci://" + w.registry.Addr + "/plugins/append:none"
	for round := range 4 {
		w.kubectl(plugin("p", url, tag(tagOf(round))), "apply", "-f", "-")
		w.waits("Ready", "p")
		has(t, port, tagOf(round))
		bad := w.kubectl(plugin("p", none, tag("bad")), "apply", "-f", "-", "-o", "jsonpath={.metadata.generation}")
		for range round { // sooner or later
			w.kubectl("", "get", "wasmplugin", "-n", "edge", "p", "-o", "name")
		}
		w.control.kill(t)
		shown := func() string {
			return w.kubectl("", "get", "wasmplugin", "-n", "edge", "p", "-o",
				`jsonpath={.status.observedGeneration} {.status.conditions[?(@.type=="Ready")].status} {.status.conditions[*].observedGeneration}`)
		}
		honest := func() {
			t.Helper()
			f := strings.Fields(shown())
			if len(f) != 6 || f[0] != f[2] || f[2] != f[3] || f[3] != f[4] || f[4] != f[5] || f[0] == bad && f[1] == "True" {
				t.Errorf("round %d: the status is %v; generation %s is not good", round, f, bad)
			}
		}
		honest()
		w.startControl()
		eventually(t, time.Minute, "the next control plane says what is so", func() (bool, string) {
			honest()
			got := shown()
			return strings.HasPrefix(got, bad+" False "), got
		})
		has(t, port, tagOf(round))
	}
}
