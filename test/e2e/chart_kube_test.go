//go:build kube

package e2e

import (
	"bytes"
	"context"
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

func parse(t testing.TB, text []byte) (all manifests) {
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
func (m manifests) args(t testing.TB, replace ...string) []string {
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

// charted is a world run as the chart and the examples say: the control plane with
// the Deployment's own arguments and the rights of its service account, the gateway
// with those of the example and the token of its pod.
type charted struct {
	*world
	cluster  *kubeenv.Cluster
	rendered []byte
	account  string // kubeconfig of the control plane
	args     []string
	gateway  *proxy
	port     int
}

func newCharted(t *testing.T, set ...string) *charted {
	t.Helper()
	w := &charted{world: uncontrolled(t), cluster: kubeenv.Start(t, filepath.Join("..", "..", ".tools"))}
	ca := authority.New(t)
	own := ca.Issue(authority.Leaf{DNS: []string{"chandler.chandler-system.svc"}, IP: "127.0.0.1"})
	w.kubectl("", "create", "namespace", "chandler-system")
	gateway := w.example("gateway.yaml")
	w.kubectl(string(gateway), "apply", "--server-side", "-f", "-") // its namespace, too
	var err error
	if w.rendered, _, err = chart.Render(chart.Options{Release: "chandler", Namespace: "chandler-system", Set: set}); err != nil {
		t.Fatal(err)
	}
	w.kubectl(string(w.rendered), "apply", "--server-side", "-f", "-")
	w.kubectl("", "wait", "--for=condition=Established", "--timeout=60s", "crd/wasmplugins.extensions.istio.io", "crd/trafficextensions.extensions.istio.io")
	serves(t, w.cluster, "wasmplugins", "trafficextensions")
	if w.account, err = w.cluster.ServiceAccount(t.Context(), "chandler-system", "chandler"); err != nil {
		t.Fatal(err)
	}
	token := w.kubectl("", "create", "token", "-n", "chandler-system", "chandler", "--audience=chandler")
	w.args = append(parse(t, w.rendered).args(t, "--listen=:9910", "--listen="+w.listen, "--admin=:9911", "--admin="+w.admin, "$(POD_IP):9910", w.listen,
		"chandler-replicas.chandler-system.svc:9910", w.listen, "/var/lib/chandler/data", filepath.Join(w.dir, "control"),
		"/etc/chandler/tls/tls.crt", own.Cert, "/etc/chandler/tls/tls.key", own.Key, "/etc/chandler/tls/ca.crt", ca.File,
		"/var/run/secrets/chandler/token", w.write(token), "/usr/local/bin/envoy", envoyBinary(t)), "--kubeconfig", w.account)
	w.launch()
	w.awaitReady()
	w.runGateway(parse(t, gateway), ca)
	return w
}

func (w *charted) kubectl(stdin string, args ...string) string {
	w.t.Helper()
	out, err := w.cluster.Kubectl(context.Background(), stdin, args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// launch starts the control plane.
func (w *charted) launch() {
	w.t.Helper()
	w.control = start(w.t, filepath.Join(w.dir, "control.log"), filepath.Join(built, "chandler"), w.args...)
}

func (w *charted) awaitReady() {
	w.t.Helper()
	eventually(w.t, time.Minute, "control plane ready", w.ready)
}

func (w *charted) ready() (bool, string) { return status("http://" + w.admin + "/healthz/ready") }

func (w *charted) example(name string) []byte {
	w.t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "examples", "kubernetes", name))
	if err != nil {
		w.t.Fatal(err)
	}
	return text
}

func (w *charted) write(text string) string {
	w.t.Helper()
	file := filepath.Join(w.t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return file
}

// The seed's walkthrough with the chart and the examples.
func TestKubeChart(t *testing.T) {
	w := newCharted(t)
	if a := get(t, w.port, "/productpage"); a.code != http.StatusOK {
		t.Fatalf("before there is a plugin: %d", a.code)
	}
	manifest := strings.Replace(string(w.example("basic-auth.yaml")), "oci://ghcr.io/istio-ecosystem/wasm-extensions/basic_auth:1.12.0", w.push("basic_auth:1.12.0", sample(t)), 1)
	w.kubectl(manifest, "apply", "-f", "-")
	answers := func(want int, header http.Header) {
		t.Helper()
		// A Go module is compiled twice before it decides: where it is tried, and by the proxy.
		eventually(t, 20*time.Second, "the answer is "+strconv.Itoa(want), func() (bool, string) {
			a, err := request(fresh, http.MethodGet, w.port, "/productpage", header)
			if err != nil {
				return false, err.Error()
			}
			return a.code == want, strconv.Itoa(a.code)
		})
	}
	answers(http.StatusUnauthorized, nil)
	answers(http.StatusOK, http.Header{"Authorization": {"Basic YWRtaW4zOmFkbWluMw=="}})
	if out := w.kubectl("", "get", "controllerrevisions", "-n", "istio-system", "-o", "name"); out == "" {
		t.Error("what was resolved is not in the cluster")
	}
	if out := w.kubectl("", "get", "lease", "-n", "chandler-system", "chandler", "-o", "jsonpath={.spec.holderIdentity}"); !strings.HasPrefix(out, w.listen) {
		t.Errorf("the Lease is of %q", out)
	}
	w.kubectl("", "delete", "wasmplugins.extensions.istio.io", "-n", "istio-system", "basic-auth")
	answers(http.StatusOK, nil)
	if _, forbidden := w.asked(); len(forbidden) > 0 {
		t.Errorf("the chart's rights are not enough: %v", forbidden)
	}
}

// runGateway runs the gateway of the examples as a pod's container would be.
func (w *charted) runGateway(m manifests, ca *authority.Authority) {
	t := w.t
	t.Helper()
	const name, namespace = "ingressgateway-0", "istio-system"
	w.port = freePort(t)
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
	config = strings.NewReplacer("0.0.0.0, port_value: 8080", "127.0.0.1, port_value: "+strconv.Itoa(w.port), "STRICT_DNS", "STATIC",
		"productpage.bookinfo.svc.cluster.local, port_value: 9080", upstream.Hostname()+", port_value: "+upstream.Port()).Replace(config)
	w.kubectl(`apiVersion: v1
kind: Pod
metadata: {name: `+name+`, namespace: `+namespace+`, labels: {`+labels+`}}
spec: {serviceAccountName: `+account+`, automountServiceAccountToken: false, containers: [{name: envoy, image: envoy}]}
`, "apply", "-f", "-")
	uid := w.kubectl("", "get", "pod", "-n", namespace, name, "-o", "jsonpath={.metadata.uid}")
	token := w.kubectl("", "create", "token", "-n", namespace, account, "--audience=chandler", "--bound-object-kind=Pod", "--bound-object-name="+name, "--bound-object-uid="+uid)

	p := &proxy{w: w.world, dir: t.TempDir(), admin: loopback(freePort(t))}
	args := m.args(t, "chandler.chandler-system.svc:9910", w.listen, "/etc/chandler/ca/ca.crt", ca.File, "/var/run/secrets/chandler/token", w.write(token),
		"$(POD_NAME)", name, "$(POD_NAMESPACE)", namespace, "/var/lib/chandler-agent/data", filepath.Join(p.dir, "data"),
		"--admin=:9912", "--admin="+p.admin, "--drain=20s", "--drain=1s", "/etc/envoy/envoy.yaml", w.write(config))
	args = append(append([]string{"--envoy", envoyBinary(t)}, args...), "--concurrency", "1")
	p.process = start(t, filepath.Join(p.dir, "agent.log"), filepath.Join(built, "chandler-agent"), args...)
	p.awaitReady()
	w.gateway = p
}
