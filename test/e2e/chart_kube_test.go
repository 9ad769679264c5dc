//go:build kube

package e2e

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler/internal/chart"
	"chandler.dev/chandler/internal/testenv/authority"
	kubeenv "chandler.dev/chandler/internal/testenv/kube"
)

// manifests are objects as far as this test needs to know them.
type manifests []struct {
	Kind     string
	Metadata struct{ Name string }
	Data     map[string]string
	Spec     struct {
		Template struct {
			Metadata struct{ Labels map[string]string }
			Spec     struct {
				ServiceAccountName string `yaml:"serviceAccountName"`
				Containers         []struct{ Args []string }
			}
		}
	}
}

func parse(t *testing.T, text []byte) (all manifests) {
	t.Helper()
	for d := yaml.NewDecoder(bytes.NewReader(text)); ; {
		all = append(all, make(manifests, 1)...)
		if err := d.Decode(&all[len(all)-1]); errors.Is(err, io.EOF) {
			return all[:len(all)-1]
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// args gives the arguments of the one Deployment, with what a kubelet would have
// put in their place.
func (m manifests) args(t *testing.T, replace ...string) []string {
	t.Helper()
	for _, o := range m {
		if o.Kind == "Deployment" {
			r := strings.NewReplacer(replace...)
			var args []string
			for _, a := range o.Spec.Template.Spec.Containers[0].Args {
				args = append(args, r.Replace(a))
			}
			return args
		}
	}
	t.Fatal("no Deployment")
	return nil
}

// The seed's walkthrough with the chart and the examples: the control plane runs
// with the Deployment's own arguments and the rights of its service account, the
// gateway with those of the example and the token of its pod.
func TestKubeChart(t *testing.T) {
	cluster := kubeenv.Start(t, filepath.Join("..", "..", ".tools"))
	kubectl := func(stdin string, args ...string) string {
		t.Helper()
		out, err := cluster.Kubectl(t.Context(), stdin, args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	example := func(name string) []byte {
		t.Helper()
		text, err := os.ReadFile(filepath.Join("..", "..", "examples", "kubernetes", name))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	write := func(text string) string {
		t.Helper()
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}

	w := uncontrolled(t)
	ca := authority.New(t)
	own := ca.Issue(authority.Leaf{DNS: []string{"chandler.chandler-system.svc"}, IP: "127.0.0.1"})
	kubectl("", "create", "namespace", "chandler-system")
	rendered, _, err := chart.Render(chart.Options{Release: "chandler", Namespace: "chandler-system"})
	if err != nil {
		t.Fatal(err)
	}
	kubectl(string(rendered), "apply", "--server-side", "-f", "-")
	kubectl("", "wait", "--for=condition=Established", "--timeout=60s", "crd/wasmplugins.extensions.istio.io", "crd/trafficextensions.extensions.istio.io")
	account, err := cluster.ServiceAccount(t.Context(), "chandler-system", "chandler")
	if err != nil {
		t.Fatal(err)
	}
	token := kubectl("", "create", "token", "-n", "chandler-system", "chandler", "--audience=chandler")
	args := parse(t, rendered).args(t, "--listen=:9910", "--listen="+w.listen, "--admin=:9911", "--admin="+w.admin, "$(POD_IP):9910", w.listen,
		"chandler-replicas.chandler-system.svc:9910", w.listen, "/var/lib/chandler/data", filepath.Join(w.dir, "control"),
		"/etc/chandler/tls/tls.crt", own.Cert, "/etc/chandler/tls/tls.key", own.Key, "/etc/chandler/tls/ca.crt", ca.File,
		"/var/run/secrets/chandler/token", write(token))
	w.control = start(t, filepath.Join(w.dir, "control.log"), filepath.Join(built, "chandler"), append(args, "--kubeconfig", account)...)
	eventually(t, time.Minute, "control plane ready", func() (bool, string) { return status("http://" + w.admin + "/healthz/ready") })

	gateway := example("gateway.yaml")
	kubectl(string(gateway), "apply", "--server-side", "-f", "-")
	port := w.exampleGateway(t, parse(t, gateway), kubectl, write, ca)
	if a := get(t, port, "/productpage"); a.code != http.StatusOK {
		t.Fatalf("before there is a plugin: %d", a.code)
	}
	mod, err := os.ReadFile(filepath.Join("..", "..", "bin", "basicauth.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	manifest := strings.Replace(string(example("basic-auth.yaml")), "oci://ghcr.io/istio-ecosystem/wasm-extensions/basic_auth:1.12.0", w.push("basic_auth:1.12.0", mod), 1)
	kubectl(manifest, "apply", "-f", "-")
	answers := func(want int, header http.Header) {
		t.Helper()
		eventually(t, healed, "the answer is "+strconv.Itoa(want), func() (bool, string) {
			a, err := request(fresh, http.MethodGet, port, "/productpage", header)
			if err != nil {
				return false, err.Error()
			}
			return a.code == want, strconv.Itoa(a.code)
		})
	}
	answers(http.StatusUnauthorized, nil)
	answers(http.StatusOK, http.Header{"Authorization": {"Basic YWRtaW4zOmFkbWluMw=="}})
	if out := kubectl("", "get", "controllerrevisions", "-n", "istio-system", "-o", "name"); out == "" {
		t.Error("what was resolved is not in the cluster")
	}
	if out := kubectl("", "get", "lease", "-n", "chandler-system", "chandler", "-o", "jsonpath={.spec.holderIdentity}"); !strings.HasPrefix(out, w.listen) {
		t.Errorf("the Lease is of %q", out)
	}
	kubectl("", "delete", "wasmplugins.extensions.istio.io", "-n", "istio-system", "basic-auth")
	answers(http.StatusOK, nil)
	if log, err := os.ReadFile(w.control.log); err != nil || strings.Contains(strings.ToLower(string(log)), "forbidden") {
		t.Errorf("the chart's rights are not enough, %v", err)
	}
}

// exampleGateway runs the gateway of the examples as a pod's container would be.
func (w *world) exampleGateway(t *testing.T, m manifests, kubectl func(string, ...string) string, write func(string) string, ca *authority.Authority) (port int) {
	t.Helper()
	const name, namespace = "ingressgateway-0", "istio-system"
	port = freePort(t)
	upstream, err := url.Parse(w.upstream.URL)
	if err != nil {
		t.Fatal(err)
	}
	var config, labels, account string
	for _, o := range m {
		switch o.Kind {
		case "ConfigMap":
			config = o.Data["envoy.yaml"]
		case "Deployment":
			account = o.Spec.Template.Spec.ServiceAccountName
			for k, v := range o.Spec.Template.Metadata.Labels {
				labels += k + ": " + v + ", "
			}
		}
	}
	config = strings.NewReplacer("0.0.0.0, port_value: 8080", "127.0.0.1, port_value: "+strconv.Itoa(port), "STRICT_DNS", "STATIC",
		"productpage.bookinfo.svc.cluster.local, port_value: 9080", upstream.Hostname()+", port_value: "+upstream.Port()).Replace(config)
	kubectl(`apiVersion: v1
kind: Pod
metadata: {name: `+name+`, namespace: `+namespace+`, labels: {`+labels+`}}
spec: {serviceAccountName: `+account+`, automountServiceAccountToken: false, containers: [{name: envoy, image: envoy}]}
`, "apply", "-f", "-")
	uid := kubectl("", "get", "pod", "-n", namespace, name, "-o", "jsonpath={.metadata.uid}")
	token := kubectl("", "create", "token", "-n", namespace, account, "--audience=chandler", "--bound-object-kind=Pod", "--bound-object-name="+name, "--bound-object-uid="+uid)

	p := &proxy{w: w, dir: t.TempDir(), admin: loopback(freePort(t))}
	args := m.args(t, "chandler.chandler-system.svc:9910", w.listen, "/etc/chandler/ca/ca.crt", ca.File, "/var/run/secrets/chandler/token", write(token),
		"$(POD_NAME)", name, "$(POD_NAMESPACE)", namespace, "/var/lib/chandler-agent/data", filepath.Join(p.dir, "data"),
		"--admin=:9912", "--admin="+p.admin, "--drain=20s", "--drain=1s", "/etc/envoy/envoy.yaml", write(config))
	args = append(append([]string{"--envoy", envoyBinary(t)}, args...), "--concurrency", "1")
	p.process = start(t, filepath.Join(p.dir, "agent.log"), filepath.Join(built, "chandler-agent"), args...)
	p.awaitReady()
	return port
}
