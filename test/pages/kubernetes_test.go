//go:build pages && kube

package pages_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/kube"
	"chandler.dev/chandler/internal/testenv/pages"
)

// TestKubernetes runs the page with a real API server, kubectl and helm. What is not there
// is a node with its kubelet and controllers: the test runs the containers' programs as
// their Deployments say, and says that they are there; names of Services are in /etc/hosts.
// So there are no images, nothing forwards a port, and no docker: its commands are looked
// up in the Dockerfile.
func TestKubernetes(t *testing.T) {
	alone(t, func(t *testing.T) {
		m := newMachine(t)
		m.pushSample()
		m.write("/etc/hosts", "127.0.0.1 localhost productpage.bookinfo.svc.cluster.local chandler.chandler-system.svc chandler-replicas.chandler-system.svc\n")
		tools := m.dir + "/bin"
		m.write(tools+"/docker", dockerScript)
		for name, to := range map[string]string{"kubectl": ".tools/kubectl", "helm": ".tools/helm", "kubectl-chandler": "bin/chandler"} {
			if err := os.Symlink(filepath.Join(m.root, to), filepath.Join(tools, name)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(tools+"/docker", 0o755); err != nil {
			t.Fatal(err)
		}
		n := &cluster{machine: m, Cluster: kube.Start(t, m.root+"/.tools"), ran: map[string]bool{}}
		other := kube.Start(t, m.root+"/.tools")
		n.run()
		env := slices.Clip(append(os.Environ(), "PATH="+tools+":"+os.Getenv("PATH")))
		w := &pages.World{
			Shells: map[string]*pages.Shell{
				"":             {Dir: m.root, Env: append(env, "KUBECONFIG="+n.Admin)},
				"without Helm": {Dir: m.root, Env: append(env, "KUBECONFIG="+other.Admin)},
			},
			Names: []string{
				"kubectl port-forward -n istio-system service/ingressgateway 8080:80 &", "# no node that could forward it",
				"kubectl port-forward -n chandler-system deployment/chandler 9911 &", "# no node that could forward it",
				"kubectl create token ACCOUNT", "kubectl create token -n istio-system looks",
			},
			Time: 3 * time.Minute,
		}
		if _, err := other.Kubectl(t.Context(), "", "create", "namespace", "chandler-system"); err != nil {
			t.Fatal(err)
		}
		page := pages.Open(t, "docs/kubernetes.md")
		page.In(w, "The walkthrough")
		n.must(migrated, "apply", "-f", "-")
		n.must("", "create", "serviceaccount", "-n", "istio-system", "looks")
		n.must("", "create", "clusterrolebinding", "looks", "--clusterrole=view", "--serviceaccount=istio-system:looks")
		n.must("", "create", "namespace", "argocd")
		n.must("", "create", "configmap", "-n", "argocd", "argocd-cm")
		m.write(m.root+"/rules.yaml", "basic_auth_rules: []\n")
		page.In(w)
		pages.Open(t, "docs/cli.md").In(w)
	})
}

// dockerScript knows the stages of the Dockerfile.
const dockerScript = `#!/bin/sh
set -e
case "$*" in
"build -f deploy/Dockerfile --target "*) grep -qi "^FROM .* AS $5\$" deploy/Dockerfile ;;
"push "*) ;;
*) exit 1 ;;
esac
`

// migrated is what somebody has who comes from Istio.
const migrated = `
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: old, namespace: istio-system}
spec: {url: "oci://ghcr.io/istio-ecosystem/wasm-extensions/basic_auth:1.12.0", selector: {matchLabels: {istio: ingressgateway}}}
---
` + kube.EnvoyFilters

// cluster is an API server whose Deployments are run on this machine.
type cluster struct {
	*machine
	*kube.Cluster
	ran map[string]bool
}

func (n *cluster) must(stdin string, args ...string) string {
	n.t.Helper()
	out, err := n.Kubectl(n.t.Context(), stdin, args...)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

// deployment is as much of one as a node needs to know.
type deployment struct {
	Metadata struct {
		Name, Namespace string
		Generation      int
	}
	Spec struct {
		Replicas int
		Template struct {
			Metadata struct{ Labels map[string]string }
			Spec     struct {
				ServiceAccountName string
				Containers         []struct{ Args []string }
			}
		}
	}
}

// run looks for Deployments until the test ends.
func (n *cluster) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := n.look(ctx); err != nil && ctx.Err() == nil {
				n.t.Errorf("the Deployments' programs: %v", err)
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond): // between looks at the API server
			}
		}
	}()
	n.t.Cleanup(func() { cancel(); <-done })
}

// look starts what is new, and says that it is there when it is.
func (n *cluster) look(ctx context.Context) error {
	out, err := n.Kubectl(ctx, "", "get", "deployments", "-A", "-o", "json")
	if err != nil {
		return err
	}
	var list struct{ Items []deployment }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return err
	}
	for _, d := range list.Items {
		name := d.Metadata.Name
		if n.ran[name] {
			continue
		}
		n.ran[name] = true
		var url string
		switch name {
		case "chandler":
			url, err = "http://127.0.0.1:9911/healthz/ready", n.control(ctx, d)
		case "ingressgateway":
			url, err = "http://127.0.0.1:9912/healthz/ready", n.gateway(ctx, d)
		case "productpage-v1":
			n.start("bookinfo", "all", "--listen", "127.0.0.1:9080")
			url = "http://127.0.0.1:9080/health"
		}
		if err == nil && url != "" {
			err = until(ctx, url)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		status := fmt.Sprintf(`{"status": {"observedGeneration": %d, "replicas": %[2]d, "updatedReplicas": %[2]d, "readyReplicas": %[2]d, "availableReplicas": %[2]d}}`, d.Metadata.Generation, d.Spec.Replicas)
		if _, err := n.Kubectl(ctx, "", "patch", "deployment", "-n", d.Metadata.Namespace, name, "--subresource=status", "--type=merge", "-p", status); err != nil {
			return err
		}
	}
	return nil
}

func until(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	for {
		code, err := status(url)
		if code == 200 {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), fmt.Errorf("%s answers %d", url, code), err)
		case <-time.After(100 * time.Millisecond): // between looks at a condition
		}
	}
}

// mounted writes the entries of a Secret or ConfigMap below a folder.
func (n *cluster) mounted(ctx context.Context, dir, kind, namespace, name string) error {
	out, err := n.Kubectl(ctx, "", "get", kind, "-n", namespace, name, "-o", "json")
	if err != nil {
		return err
	}
	var text struct{ Data map[string]string }
	var bytes struct{ Data map[string][]byte }
	if kind == "secret" {
		err = json.Unmarshal([]byte(out), &bytes)
	} else {
		err = json.Unmarshal([]byte(out), &text)
	}
	if err = errors.Join(err, os.MkdirAll(dir, 0o755)); err != nil {
		return err
	}
	for name, value := range text.Data {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(value), 0o600))
	}
	for name, value := range bytes.Data {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), value, 0o600))
	}
	return err
}

// token writes a token for the audience of agents to where a pod has it.
func (n *cluster) token(ctx context.Context, file, namespace, account string, more ...string) error {
	out, err := n.Kubectl(ctx, "", append([]string{"create", "token", "-n", namespace, account, "--audience=chandler"}, more...)...)
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(strings.TrimSpace(out)), 0o600))
}

// control runs the control plane's container. What a kubelet does not do for it is where
// the walkthrough's image is: that is for the chart's registries.hosts to say.
func (n *cluster) control(ctx context.Context, d deployment) error {
	account, err := n.ServiceAccount(ctx, d.Metadata.Namespace, d.Spec.Template.Spec.ServiceAccountName)
	err = errors.Join(err, n.mounted(ctx, "/etc/chandler/tls", "secret", d.Metadata.Namespace, "chandler-tls"),
		n.token(ctx, "/var/run/secrets/chandler/token", d.Metadata.Namespace, d.Spec.Template.Spec.ServiceAccountName))
	if err != nil {
		return err
	}
	args := []string{"chandler"}
	for _, a := range d.Spec.Template.Spec.Containers[0].Args {
		args = append(args, strings.ReplaceAll(a, "$(POD_IP)", "10.0.0.1"))
	}
	n.start(append(args, "--kubeconfig", account, "--hosts-dir", n.root+"/examples/bookinfo/hosts")...)
	return nil
}

// gateway runs the gateway's container as a pod's.
func (n *cluster) gateway(ctx context.Context, d deployment) error {
	const pod, token = "ingressgateway-0", "/var/run/secrets/gateway/token"
	namespace, account := d.Metadata.Namespace, d.Spec.Template.Spec.ServiceAccountName
	labels, err := json.Marshal(d.Spec.Template.Metadata.Labels)
	if err != nil {
		return err
	}
	manifest := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": %q, "namespace": %q, "labels": %s}, "spec": {"serviceAccountName": %q, "containers": [{"name": "envoy", "image": "envoy"}]}}`,
		pod, namespace, labels, account)
	if _, err := n.Kubectl(ctx, manifest, "apply", "-f", "-"); err != nil {
		return err
	}
	uid, err := n.Kubectl(ctx, "", "get", "pod", "-n", namespace, pod, "-o", "jsonpath={.metadata.uid}")
	err = errors.Join(err, n.mounted(ctx, "/etc/envoy", "configmap", namespace, "ingressgateway-envoy"), n.mounted(ctx, "/etc/chandler/ca", "configmap", namespace, "chandler-ca"))
	if err == nil {
		err = n.token(ctx, token, namespace, account, "--bound-object-kind=Pod", "--bound-object-name="+pod, "--bound-object-uid="+uid)
	}
	if err != nil {
		return err
	}
	args := []string{"chandler-agent"}
	for _, a := range d.Spec.Template.Spec.Containers[0].Args {
		args = append(args, strings.NewReplacer("$(POD_NAME)", pod, "$(POD_NAMESPACE)", namespace, "/var/run/secrets/chandler/token", token).Replace(a))
	}
	n.start(append(args, "--concurrency", "1")...)
	return nil
}
