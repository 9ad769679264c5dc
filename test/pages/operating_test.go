//go:build pages

package pages_test

import (
	"net/http"
	"os"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/pages"
)

// basicAuth is what operators have in the pages: the sample plugin at the edge.
const basicAuth = `
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata:
  name: basic-auth
  namespace: edge
spec:
  selector: {matchLabels: {app: edge}}
  url: oci://localhost:5000/basic-auth:v1
  phase: AUTHN
  pluginConfig:
    basic_auth_rules:
      - {prefix: /productpage, request_methods: [GET, POST], credentials: ["ok:test"]}
`

// fleet is a control plane with two proxies, at which basic-auth is in force.
func fleet(t *testing.T) (m *machine, end func()) {
	t.Helper()
	m = newMachine(t)
	m.backend()
	sample, err := os.ReadFile(m.root + "/bin/basicauth.wasm")
	if err != nil {
		t.Fatalf("%v: run make pages", err)
	}
	m.push("basic-auth:v1", sample)
	end = m.serve("--no-vet")
	m.agent(1)
	m.agent(2)
	m.run(basicAuth, "chandler", "apply", "-f", "-", "--wait")
	m.comes(http.StatusUnauthorized, "http://127.0.0.1:8080/productpage")
	return m, end
}

func TestOperating(t *testing.T) {
	alone(t, func(t *testing.T) {
		m, end := fleet(t)
		changed := strings.NewReplacer("ok:test", "ok:other",
			"namespace: edge", `namespace: edge
  annotations: {chandler.dev/rollout: "1", chandler.dev/rollout-interval: 10m}`).Replace(basicAuth)
		m.write(m.dir+"/basic-auth.yaml", changed)
		m.write(m.dir+"/plugin.wasm", string(module.Append()))
		m.envoyConfig(m.dir+"/envoy.yaml", 8090, 9950)
		run := pages.Open(t, "docs/operating.md")
		run.In(m.world(), "See what is where", "Why is it (not) there?", "A plugin that proxies refuse")

		m.run(changed, "chandler", "apply", "-f", "-")
		run.In(m.world(), "A rollout gone bad")
		m.comes(http.StatusUnauthorized, "http://127.0.0.1:8081/productpage") // taken out by none of it in the end

		m.env = []string{"CHANDLER_AGENT_NODE=edge-3", "CHANDLER_AGENT_DATA=" + m.dir + "/mirrored", "CHANDLER_AGENT_ADMIN=127.0.0.1:9920"}
		m.write("/etc/containerd/certs.d/README", "")
		run.In(m.world(), "Module bytes in a large fleet")
		m.answers("http://127.0.0.1:8090/")

		run.In(m.world(), "Back-up and restore")
		m.run("", "sh", "-c", "tar -tzf chandler-backup.tar.gz | grep -q '^chandler/records/.'")
		end()
		m.write(m.dir+"/plugins/basic-auth.yaml", basicAuth)
		run.In(m.world())
		m.run("", "sh", "-c", "tar -tzf report.tar.gz | grep -q .")
	})
}

func TestLock(t *testing.T) {
	alone(t, func(t *testing.T) {
		m := newMachine(t)
		m.push("basic-auth:v1", module.Append())
		m.write(m.dir+"/plugins/basic-auth.yaml", basicAuth)
		pages.Open(t, "docs/lock.md").In(m.world())
		m.push("basic-auth:v1", module.Deny(403))
		m.run("", "sh", "-c", "chandler lock -f plugins/ --check; [ $? = 3 ]")
	})
}

func TestDashboardToken(t *testing.T) {
	alone(t, func(t *testing.T) { pages.Open(t, "docs/dashboard.md").In(newMachine(t).world()) })
}

func TestComingFromIstio(t *testing.T) {
	alone(t, func(t *testing.T) { pages.Open(t, "docs/coming-from-istio.md").In(newMachine(t).world()) })
}

// What measures takes from minutes to an hour. So simulations are of small fleets here, and
// of the others make says what it would do: that target and variables are there.
func TestMeasuring(t *testing.T) {
	alone(t, func(t *testing.T) {
		m := newMachine(t)
		m.dir = m.root
		names := []string{
			"make bench", "make -n bench", "make simulate  ", "make -n simulate  ", "-proxies 20000", "-proxies 200", "-proxies 5000", "-proxies 200",
		}
		for _, page := range []string{"docs/benchmarks.md", "docs/scaling.md"} {
			pages.Open(t, page).In(m.world(names...))
		}
	})
}
