//go:build kube

package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/testenv/kube"
)

// watched is a Source that runs until the test ends.
type watched struct {
	t         *testing.T
	snapshots chan source.Snapshot
	last      source.Snapshot
	stop      func()
}

func watchAs(t *testing.T, kubeconfig string, own bool) *watched {
	t.Helper()
	client, err := Connect(kubeconfig, "", "test")
	if err != nil {
		t.Fatal(err)
	}
	w := &watched{t: t, snapshots: make(chan source.Snapshot, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := &Source{Client: client, OwnUnlabelled: own}
	go func() { done <- s.Run(ctx, func(s source.Snapshot) { w.snapshots <- s }) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(w.stop)
	return w
}

// await takes snapshots until one is as wanted.
func (w *watched) await(what string, ok func(source.Snapshot) bool) source.Snapshot {
	w.t.Helper()
	limit := time.After(time.Minute)
	for {
		select {
		case w.last = <-w.snapshots:
			if ok(w.last) {
				return w.last
			}
		case <-limit:
			w.t.Fatalf("never %s; last: %s", what, described(w.last))
		}
	}
}

func described(s source.Snapshot) string {
	var b strings.Builder
	for _, o := range s.Objects {
		fmt.Fprintf(&b, "%s generation %d valid %t problems %v; ", o.Key, o.Generation, o.Plugin != nil, o.Problems)
	}
	for name, secret := range s.Secrets {
		fmt.Fprintf(&b, "%v problem %v; ", name, secret.Problem)
	}
	return b.String()
}

func find(s source.Snapshot, name string) *source.Object {
	for i := range s.Objects {
		if s.Objects[i].Name == name {
			return &s.Objects[i]
		}
	}
	return nil
}

func has(name string, ok func(*source.Object) bool) func(source.Snapshot) bool {
	return func(s source.Snapshot) bool {
		o := find(s, name)
		return o != nil && ok(o)
	}
}

func valid(o *source.Object) bool { return o.Plugin != nil && len(o.Problems) == 0 }

func apply(t *testing.T, c *kube.Cluster, manifest string) {
	t.Helper()
	if out, err := c.Kubectl(t.Context(), manifest, "apply", "-f", "-"); err != nil {
		t.Fatal(out, err)
	}
}

func kubectl(t *testing.T, c *kube.Cluster, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(t.Context(), "", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// define puts the definitions of both kinds in place.
func define(t *testing.T, c *kube.Cluster) {
	t.Helper()
	kubectl(t, c, "apply", "--server-side", "-f", "../../../deploy/crds")
	kubectl(t, c, "wait", "--for=condition=Established", "crd/wasmplugins.extensions.istio.io", "crd/trafficextensions.extensions.istio.io")
	if err := c.Served(t.Context(), "wasmplugins", "trafficextensions"); err != nil {
		t.Fatal(err)
	}
}

func manifest(name, labels, url, more string) string {
	return fmt.Sprintf(`apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: %s, namespace: default, labels: {%s}}
spec: {url: %q%s}
`, name, labels, url, more)
}

func pull(secret string) string { return ", imagePullSecret: " + secret }

func dockerSecret(t *testing.T, c *kube.Cluster, name, password string) {
	t.Helper()
	out, err := c.Kubectl(t.Context(), "", "create", "secret", "docker-registry", name, "--docker-server=reg.example", "--docker-username=u",
		"--docker-password="+password, "--dry-run=client", "-o", "yaml")
	if err != nil {
		t.Fatal(err)
	}
	apply(t, c, out)
}

func holds(name, password string) func(source.Snapshot) bool {
	return func(s source.Snapshot) bool {
		return strings.Contains(string(s.Secrets[source.SecretName{Namespace: "default", Name: name}].DockerConfigJSON), password)
	}
}

// Rows 55 and 56, as far as the source goes: rotation is seen, a right that is
// missing or withdrawn is said, and nothing else in a namespace is asked for.
func TestFault_F55_F56_Secrets(t *testing.T) {
	c := kube.Start(t, tools)
	define(t, c)
	account, err := c.ServiceAccount(t.Context(), "default", "control")
	if err != nil {
		t.Fatal(err)
	}
	kubectl(t, c, "create", "clusterrole", "plugins", "--verb=get,list,watch", "--resource=wasmplugins.extensions.istio.io,trafficextensions.extensions.istio.io")
	kubectl(t, c, "create", "clusterrolebinding", "plugins", "--clusterrole=plugins", "--serviceaccount=default:control")
	kubectl(t, c, "create", "role", "reg", "--verb=get,watch", "--resource=secrets", "--resource-name=reg")
	kubectl(t, c, "create", "rolebinding", "reg", "--role=reg", "--serviceaccount=default:control")

	w := watchAs(t, account, true)
	dockerSecret(t, c, "reg", "first")
	dockerSecret(t, c, "other", "canary")
	apply(t, c, manifest("auth", "", "oci://reg.example/auth:v1", pull("reg")))
	w.await("the plugin with its secret", func(s source.Snapshot) bool {
		// On a busy machine the secret may be said to be unknown first.
		if secret, named := s.Secrets[source.SecretName{Namespace: "default", Name: "reg"}]; has("auth", valid)(s) && (!named || secret.Problem == nil && !holds("reg", "first")(s)) {
			t.Errorf("the plugin was shown before its secret: %s", described(s))
		}
		return has("auth", valid)(s) && holds("reg", "first")(s)
	})
	dockerSecret(t, c, "reg", "second")
	w.await("the new password", holds("reg", "second"))

	apply(t, c, manifest("nosy", "", "oci://reg.example/auth:v1", pull("other")))
	s := w.await("the plugin whose secret may not be read", func(s source.Snapshot) bool {
		p := s.Secrets[source.SecretName{Namespace: "default", Name: "other"}].Problem
		if has("nosy", valid)(s) && (p == nil || p.Code != chandler.CodeSecretType) {
			t.Errorf("a secret that may not be read: %s", described(s))
		}
		return has("nosy", valid)(s) && p != nil && strings.Contains(p.Message, "may not read")
	})
	if !holds("reg", "second")(s) {
		t.Error("another plugin's secret is gone")
	}

	apply(t, c, manifest("early", "", "oci://reg.example/auth:v1", pull("reg2")))
	kubectl(t, c, "create", "role", "reg2", "--verb=get,watch", "--resource=secrets", "--resource-name=reg2")
	kubectl(t, c, "create", "rolebinding", "reg2", "--role=reg2", "--serviceaccount=default:control")
	w.await("the plugin before its secret", func(s source.Snapshot) bool {
		_, named := s.Secrets[source.SecretName{Namespace: "default", Name: "reg2"}]
		return has("early", valid)(s) && !named
	})
	kubectl(t, c, "create", "secret", "generic", "reg2", "--from-literal=a=b")
	s = w.await("a secret of another type", func(s source.Snapshot) bool {
		return s.Secrets[source.SecretName{Namespace: "default", Name: "reg2"}].Type == "Opaque"
	})
	secret := s.Secrets[source.SecretName{Namespace: "default", Name: "reg2"}]
	if secret.Problem != nil || secret.DockerConfigJSON != nil || string(secret.Values["a"]) != "b" {
		t.Errorf("a secret of another type: %v", secret.Problem)
	}
	kubectl(t, c, "patch", "secret", "reg2", "-p", `{"stringData":{"a":"c"}}`)
	w.await("another value, at another version", func(s source.Snapshot) bool {
		next := s.Secrets[source.SecretName{Namespace: "default", Name: "reg2"}]
		return string(next.Values["a"]) == "c" && next.Version != "" && next.Version != secret.Version
	})
	kubectl(t, c, "delete", "secret", "reg")
	w.await("a deletion", func(s source.Snapshot) bool {
		_, there := s.Secrets[source.SecretName{Namespace: "default", Name: "reg"}]
		return !there
	})
}

// Rows 45 and 48: what was read stays while the API server or its store is away,
// and what changes later is seen.
func TestFault_F45_F48_APIServerAway(t *testing.T) {
	c := kube.Start(t, tools)
	define(t, c)
	dockerSecret(t, c, "reg", "first")
	apply(t, c, manifest("auth", "", "oci://reg.example/auth:v1", pull("reg")))
	w := watchAs(t, c.Admin, false)
	w.await("the plugin", has("auth", valid))
	for i, part := range []*kube.Part{c.APIServer, c.Etcd, c.APIServer} {
		if err := part.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(part.Start(t.Context()), c.APIServer.Ready(t.Context())); err != nil {
			t.Fatal(err)
		}
		url := fmt.Sprintf("oci://reg.example/auth:after-%d", i)
		apply(t, c, manifest("auth", "", url, pull("reg")))
		dockerSecret(t, c, "reg", fmt.Sprintf("after-%d", i))
		w.await("the change after it came back", func(s source.Snapshot) bool {
			if o := find(s, "auth"); o == nil {
				t.Fatalf("a snapshot without what was there: %s", described(s))
			}
			return find(s, "auth").Plugin.Wasm.URL == url && holds("reg", fmt.Sprintf("after-%d", i))(s)
		})
	}
}
