//go:build kube

package e2e

import (
	"context"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/credential"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/identity"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/resolve"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/source/kube"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/testenv/authority"
	kubeenv "chandler.dev/chandler/internal/testenv/kube"
)

// believing runs a control plane here, on the world's folder of plugins, that
// believes the cluster's tokens.
func (w *world) believing(t *testing.T, cluster *kubeenv.Cluster, own authority.Pair) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	log := slog.New(slog.DiscardHandler)
	client, err := kube.Connect(cluster.Admin, "", "test")
	must(err)
	tokens, err := client.Tokens(kube.TokensConfig{PodAge: time.Second})
	must(err)
	creds, err := credential.NewServer(credential.Files{Cert: own.Cert, Key: own.Key})
	must(err)
	data := filepath.Join(w.dir, "control")
	modules, err := store.Open(store.Config{Dir: filepath.Join(data, "modules")})
	must(err)
	records, err := record.OpenDirectory(durable.OS(), filepath.Join(data, "records"), log)
	must(err)
	plugins, err := source.OpenDirectory(source.DirectoryConfig{Dir: w.plugins, Data: data, Now: time.Now, Log: log})
	must(err)
	listener, err := net.Listen("tcp", w.listen)
	must(err)
	fetcher := fetch.New(fetch.Config{})
	plane, err := control.New(control.Config{
		Source: plugins, Records: records, Store: modules, Listener: listener, Credentials: creds,
		Resolver:      resolve.New(resolve.Config{Fetcher: fetcher, Store: modules}),
		Authenticator: identity.New(identity.Config{Reviewer: tokens}), Recheck: time.Second,
	})
	must(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- plane.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		fetcher.Close()
		modules.Close()
	})
}

// pod makes a pod with a label, and gives the file of a token that is bound to it.
func (c *cluster) pod(namespace, name, label string) (file string) {
	c.t.Helper()
	if out, err := c.Kubectl(c.t.Context(), "", "create", "namespace", namespace); err != nil && !strings.Contains(out, "AlreadyExists") {
		c.t.Fatal(err)
	}
	c.kubectl(`apiVersion: v1
kind: ServiceAccount
metadata: {name: `+name+`}
---
apiVersion: v1
kind: Pod
metadata: {name: `+name+`, labels: {`+label+`}}
spec: {serviceAccountName: `+name+`, containers: [{name: envoy, image: envoy}]}
`, "apply", "-n", namespace, "-f", "-")
	uid := c.kubectl("", "get", "pod", "-n", namespace, name, "-o", "jsonpath={.metadata.uid}")
	return c.file(c.kubectl("", "create", "token", "-n", namespace, name, "--audience=chandler", "--bound-object-kind=Pod", "--bound-object-name="+name, "--bound-object-uid="+uid))
}

func (c *cluster) file(token string) string {
	c.t.Helper()
	file := filepath.Join(c.t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return file
}

// An agent with the token of its pod is who the API server says it is, and has the
// pod's labels; one that claims another namespace or label gets nothing.
func TestKubeTokens(t *testing.T) {
	cluster := newCluster(t)
	ca := authority.New(t)
	w := uncontrolled(t)
	w.believing(t, cluster.Cluster, ca.Issue(authority.Leaf{IP: "127.0.0.1"}))
	with := func(token string) []string { return []string{"--tls-ca", ca.File, "--token-file", token} }

	mine := cluster.pod("edge", "gw", "app: web")
	port, shut := freePort(t), freePort(t)
	a := w.agent(node{name: "gw", flags: with(mine)}, w.gateway(listener{port: port, name: "in"}))
	w.edit("p", plugin("p", w.push("append:v1", build(1)), tag("web"), "selector: {matchLabels: {app: web}}"))
	w.edit("q", plugin("q", w.push("append:v2", build(2)), tag("pay"), "selector: {matchLabels: {app: pay}}"))
	heals(t, port, "web")

	other := cluster.pod("shop", "gw", "app: web")
	forged := w.startAgent(node{name: "gw", namespace: "edge", flags: with(other)}, w.gateway(listener{port: shut, name: "in"}))
	forged.says(t, "not connected", "PermissionDenied", `system:serviceaccount:shop:gw (pod gw) may not act as node "edge/gw"`)
	if got := wholeModules(t, filepath.Join(forged.dir, "data", "modules")); len(got) != 0 {
		t.Errorf("it got %v", got)
	}
	label := w.startAgent(node{name: "gw", namespace: "shop", labels: []string{"app=pay"}, flags: with(other)}, w.gateway(listener{port: freePort(t), name: "in"}))
	label.says(t, "not connected", "PermissionDenied", `may not claim the label "app=pay": it is not on the pod`)
	nobody := cluster.file(cluster.kubectl("", "create", "token", "-n", "edge", "gw"))
	w.startAgent(node{name: "gw", flags: with(nobody)}, w.gateway(listener{port: freePort(t), name: "in"})).says(t, "not connected", "Unauthenticated", "the token is refused")

	// The pod's labels change: so does what is in force, on the connection that is
	// there. The pod goes: the agent is nobody, and what is in force stays.
	cluster.kubectl("", "label", "pod", "-n", "edge", "gw", "app=pay", "--overwrite")
	eventually(t, 2*time.Minute, "the label counts", func() (bool, string) {
		got := appended(get(t, port, "/"))
		return len(got) == 1 && got[0] == "pay", strings.Join(got, ",")
	})
	cluster.kubectl("", "delete", "pod", "-n", "edge", "gw", "--grace-period=0", "--force")
	eventually(t, 2*time.Minute, "the pod's end counts", func() (bool, string) {
		out, _ := a.local(t, "status")
		return strings.Contains(out, "Unauthenticated"), out
	})
	has(t, port, "pay")
}

// A control plane of a cluster, with the chart's rights: an agent in a pod shows
// its token, one on a machine outside its certificate, and a kubectl apply reaches
// both.
func TestKubeInsideAndOutside(t *testing.T) {
	cluster := newCluster(t)
	manifests, err := exec.Command(filepath.Join(built, "chandler"), "install", "--set", "crds.mode=never").Output()
	if err != nil {
		t.Fatal(err)
	}
	cluster.kubectl(string(manifests), "apply", "--server-side", "-f", "-")
	config, err := cluster.ServiceAccount(t.Context(), "chandler-system", "chandler")
	if err != nil {
		t.Fatal(err)
	}
	ca := authority.New(t)
	own := ca.Issue(authority.Leaf{IP: "127.0.0.1"})
	w := uncontrolled(t, "--tls-cert", own.Cert, "--tls-key", own.Key, "--client-ca", ca.File, "--kube", "--kubeconfig", config)
	w.plugins = ""
	w.startControl()

	token := func(file string) []string { return []string{"--tls-ca", ca.File, "--token-file", file} }
	inside, outside := freePort(t), freePort(t)
	gw := cluster.pod("edge", "gw", "app: web")
	w.agent(node{name: "gw", flags: token(gw)}, w.gateway(listener{port: inside, name: "in"}))
	w.agent(node{name: "vm-1", labels: []string{"app=web"}, flags: shows(ca, ca.Issue(machine("vm-1", "edge")))}, w.gateway(listener{port: outside, name: "in"}))
	cluster.apply(plugin("p", w.push("append:v1", build(1)), tag("web"), "selector: {matchLabels: {app: web}}"))
	heals(t, inside, "web")
	heals(t, outside, "web")

	forged := map[string]node{
		"namespace by token":       {name: "gw", flags: token(cluster.pod("shop", "gw", "app: web"))},
		"node by token":            {name: "vm-1", flags: token(gw)},
		"namespace by certificate": {name: "vm-1", flags: shows(ca, ca.Issue(machine("vm-1", "shop")))},
		"node by certificate":      {name: "gw", flags: shows(ca, ca.Issue(machine("vm-1", "edge")))},
		"label":                    {name: "gw", labels: []string{"app=pay"}, flags: token(gw)},
	}
	for what, n := range forged {
		p := w.startAgent(n, w.gateway(listener{port: freePort(t), name: "in"}))
		p.says(t, "not connected", "PermissionDenied")
		if got := wholeModules(t, filepath.Join(p.dir, "data", "modules")); len(got) != 0 {
			t.Errorf("%s: it got %v", what, got)
		}
	}
	w.startAgent(node{name: "gw", flags: []string{"--tls-ca", ca.File}}, w.gateway(listener{port: freePort(t), name: "in"})).says(t, "Unauthenticated", "--token-file")

	cluster.kubectl("", "delete", "wasmplugins.extensions.istio.io", "-n", "edge", "p")
	heals(t, inside)
	heals(t, outside)
}
