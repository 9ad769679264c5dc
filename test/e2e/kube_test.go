//go:build kube

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/kube"
)

// cluster is a real API server and its store with our definitions.
type cluster struct {
	*kube.Cluster
	t testing.TB
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	c := &cluster{kube.Start(t, filepath.Join("..", "..", ".tools")), t}
	c.kubectl("", "apply", "--server-side", "-f", filepath.Join("..", "..", "deploy", "crds"))
	c.kubectl("", "wait", "--for=condition=Established", "crd/wasmplugins.extensions.istio.io", "crd/trafficextensions.extensions.istio.io")
	serves(t, c.Cluster, "wasmplugins", "trafficextensions")
	for _, ns := range []string{"edge", "istio-system", "chandler-system"} {
		c.kubectl("", "create", "namespace", ns)
	}
	return c
}

// serves waits until the API server serves kinds: it says that a definition is established,
// or that it is ready itself, a moment before.
func serves(t testing.TB, c *kube.Cluster, kinds ...string) {
	t.Helper()
	if err := c.Served(t.Context(), kinds...); err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) kubectl(stdin string, args ...string) string {
	c.t.Helper()
	out, err := c.Kubectl(context.Background(), stdin, args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func (c *cluster) apply(manifest string) { c.t.Helper(); c.kubectl(manifest, "apply", "-f", "-") }

// flags have a control plane take its plugins from the cluster.
func (c *cluster) flags(more ...string) []string {
	return append([]string{"--kube", "--kubeconfig", c.Admin}, more...)
}

// leader waits until one leads that is known to live, and tells where agents reach it.
func (c *cluster) leader(lives func(at string) bool) (at string) {
	c.t.Helper()
	eventually(c.t, time.Minute, "a living leader", func() (bool, string) {
		held := c.kubectl("", "get", "lease", "-n", "chandler-system", "chandler", "-o", "jsonpath={.spec.holderIdentity}")
		at, _, _ = strings.Cut(held, "|")
		return at != "" && lives(at), held
	})
	return at
}

// kubeWorld is a world whose plugins are in a cluster.
func kubeWorld(t testing.TB, c *cluster, flags ...string) *world {
	t.Helper()
	w := uncontrolled(t, c.flags(flags...)...)
	w.plugins = ""
	w.startControl()
	return w
}

// What the seed's user types: kubectl apply, a look at it, kubectl delete.
func TestKubeWalkthrough(t *testing.T) {
	c := newCluster(t)
	w := kubeWorld(t, c)
	port := freePort(t)
	w.agent(node{name: "gateway", namespace: "istio-system", labels: []string{"istio=ingressgateway"}}, w.gateway(listener{port: port, name: "ingress"}))
	written, err := os.ReadFile(filepath.Join("..", "..", "examples", "bookinfo", "basic-auth.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	const url = "oci://ghcr.io/istio-ecosystem/wasm-extensions/basic_auth:1.12.0"
	manifest := strings.Replace(string(written), url, w.push("basic_auth:1.12.0", sample(t)), 1)
	answers := func(want int) {
		t.Helper()
		eventually(t, 30*time.Second, fmt.Sprint("answers ", want), func() (bool, string) {
			a, err := request(fresh, http.MethodGet, port, "/productpage", nil)
			return err == nil && a.code == want, fmt.Sprint(a.code, err)
		})
	}
	answers(200)
	c.apply(manifest)
	answers(401)

	broken := strings.Replace(manifest, "request_methods:", "request_method:", 1)
	c.apply(broken)
	answers(401)
	if out, ok := w.cli(manifest, "apply", "-f", "-"); ok || !strings.Contains(out, "kubectl") {
		t.Errorf("chandler apply on a cluster says: %s", out)
	}
	c.kubectl("", "delete", "wasmplugins.extensions.istio.io", "-n", "istio-system", "basic-auth")
	answers(200)
}

// API server, store and control plane are killed in turn while plugins change:
// nothing in force is disturbed, and everything comes about.
func TestFault_F45_F47_F48_PartsDie(t *testing.T) {
	c := newCluster(t)
	w := kubeWorld(t, c)
	port := freePort(t)
	w.agent(node{name: "gw"}, w.gateway(listener{port: port, name: "in"}))
	c.apply(plugin("p", w.push("append:v1", build(1)), tag("one")))
	heals(t, port, "one")
	load := startLoad(port, 2, 1, alwaysOne)
	last := "one"
	for i, part := range []string{"api", "etcd", "control", "api and control"} {
		if strings.Contains(part, "control") {
			w.control.kill(t)
		}
		var ended *kube.Part
		if strings.Contains(part, "api") {
			ended = c.APIServer
		} else if part == "etcd" {
			ended = c.Etcd
		}
		if ended != nil {
			if err := ended.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		has(t, port, last)
		if part == "api and control" {
			w.launchControl() // before there is an API server
			has(t, port, last)
		}
		if ended != nil {
			if err := ended.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := c.APIServer.Ready(t.Context()); err != nil {
				t.Fatal(err)
			}
			serves(t, c.Cluster, "wasmplugins")
		}
		if part == "control" {
			w.startControl()
		}
		next := fmt.Sprint("after-", i)
		c.apply(plugin("p", w.push(fmt.Sprint("append:", next), build(2+i)), tag(next)))
		heals(t, port, next)
		last = next
	}
	harmless(t, load)
}

// Three replicas, the leader killed under load again and again, and then all of
// them restarted in turn: proxies notice nothing, and what is applied meanwhile comes
// about.
func TestKubeReplicas(t *testing.T) {
	c := newCluster(t)
	var listens []string
	for range 3 {
		listens = append(listens, loopback(freePort(t)))
	}
	replica := func(i int) *world {
		return &world{t: t, dir: t.TempDir(), listen: listens[i], admin: loopback(freePort(t)), flags: c.flags("--advertise", listens[i], "--peers", strings.Join(listens, ","))}
	}
	w := uncontrolled(t)
	replicas := map[string]*world{}
	for i, listen := range listens {
		replicas[listen] = replica(i)
		replicas[listen].startControl()
	}
	leader := func() string { return c.leader(func(at string) bool { return replicas[at].control != nil }) }
	w.listen = strings.Join(listens, ",")
	port := freePort(t)
	w.agent(node{name: "gw"}, w.gateway(listener{port: port, name: "in"}))
	first := leader()
	c.apply(plugin("p", w.push("append:v1", build(1)), tag("one")))
	heals(t, port, "one")
	load := startLoad(port, 2, 1, alwaysOne)
	for i := range 2 {
		dies := leader()
		replicas[dies].control.kill(t)
		replicas[dies].control = nil
		has(t, port, map[int]string{0: "one", 1: "after-0"}[i])
		next := fmt.Sprint("after-", i)
		c.apply(plugin("p", w.push(fmt.Sprint("append:", next), build(2+i)), tag(next)))
		eventually(t, time.Minute, "the next leader's release is in force", func() (bool, string) {
			got := appended(get(t, port, "/"))
			return len(got) == 1 && got[0] == next, strings.Join(got, ",")
		})
		replicas[dies].startControl()
	}
	for i, listen := range listens { // a rolling restart
		if err := replicas[listen].control.stop(); err != nil {
			t.Errorf("a replica that is asked to end: %v", err)
		}
		next := fmt.Sprint("rolled-", i)
		c.apply(plugin("p", w.push(fmt.Sprint("append:", next), build(10+i)), tag(next)))
		replicas[listen].startControl()
		eventually(t, time.Minute, "what was applied while a replica restarts", func() (bool, string) {
			got := appended(get(t, port, "/"))
			return len(got) == 1 && got[0] == next, strings.Join(got, ",")
		})
	}
	if first == "" {
		t.Error("nobody led")
	}
	harmless(t, load)
}

// The leader is cut off from the API server, and its agent is not: it is sent to
// the other replica, gets there what is applied meanwhile, and is harmed by nothing.
func TestFault_F53_LeaderCutOff(t *testing.T) {
	c := newCluster(t)
	config, err := os.ReadFile(c.Admin)
	if err != nil {
		t.Fatal(err)
	}
	server := regexp.MustCompile(`https://([0-9.:]+)`).FindSubmatch(config)
	if server == nil {
		t.Fatal("the kubeconfig names no server")
	}
	line := toxicProxy(t, string(server[1]))
	through := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(through, bytes.ReplaceAll(config, server[1], []byte(line.Listen)), 0o600); err != nil {
		t.Fatal(err)
	}
	listens := []string{loopback(freePort(t)), loopback(freePort(t))}
	replicas := make([]*world, 2)
	for i, kubeconfig := range []string{through, c.Admin} {
		replicas[i] = &world{t: t, dir: t.TempDir(), listen: listens[i], admin: loopback(freePort(t)),
			flags: []string{"--kube", "--kubeconfig", kubeconfig, "--advertise", listens[i], "--peers", strings.Join(listens, ",")}}
		replicas[i].startControl()
		eventually(t, time.Minute, "the first replica leads", func() (bool, string) {
			out, err := c.Kubectl(t.Context(), "", "get", "lease", "-n", "chandler-system", "chandler", "-o", "jsonpath={.spec.holderIdentity}")
			return err == nil && strings.HasPrefix(out, listens[0]), out
		})
	}
	w := uncontrolled(t)
	w.listen = strings.Join(listens, ",")
	port := freePort(t)
	p := w.agent(node{name: "gw"}, w.gateway(listener{port: port, name: "in"}))
	c.apply(plugin("p", w.push("append:v1", build(1)), tag("one")))
	heals(t, port, "one")
	load := startLoad(port, 2, 1, alwaysOne)
	ready := func(i int) (bool, string) { return status("http://" + replicas[i].admin + "/healthz/ready") }
	control := func() string { return fetchText(t, "http://"+p.admin+"/status") }
	if at := control(); !strings.Contains(at, listens[0]) {
		t.Fatalf("the agent is not at the first replica: %s", at)
	}

	cure := poison(t, line, "timeout", `"timeout": 0`)
	c.apply(plugin("p", w.push("append:v2", build(2)), tag("two")))
	eventually(t, time.Minute, "what was applied meanwhile", func() (bool, string) {
		got := appended(get(t, port, "/"))
		return len(got) == 1 && got[0] == "two", strings.Join(got, ",")
	})
	if ok, why := ready(0); ok || !strings.Contains(why, "cut off") {
		t.Errorf("the replica that is cut off says of itself: %s", why)
	}
	if ok, why := ready(1); !ok {
		t.Errorf("the other one is not ready: %s", why)
	}
	cure()
	eventually(t, 2*time.Minute, "the first replica is back", func() (bool, string) { return ready(0) })
	has(t, port, "two")
	harmless(t, load)
}

// alwaysOne judges that some version of the plugin had the request.
func alwaysOne(a answer) error {
	if got := appended(a); a.code != http.StatusOK || len(got) != 1 {
		return fmt.Errorf("status %d, tags %v", a.code, got)
	}
	return nil
}
