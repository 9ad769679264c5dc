//go:build pages

package pages_test

import (
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/pages"
	"chandler.dev/chandler/internal/testenv/upstream"
)

// inRepository runs a page that begins with make, in the repository's folder.
func inRepository(t *testing.T, page string) {
	alone(t, func(t *testing.T) {
		root, err := pages.Root()
		if err != nil {
			t.Fatal(err)
		}
		pages.Open(t, page).In(&pages.World{Shells: map[string]*pages.Shell{"": {Dir: root}}, Time: 5 * time.Minute})
	})
}

func TestWalkthrough(t *testing.T) { inRepository(t, "README.md") }

func TestTutorial(t *testing.T) { inRepository(t, "docs/tutorial.md") }

func TestBookinfoExample(t *testing.T) {
	alone(t, func(t *testing.T) {
		m := newMachine(t)
		m.pushSample()
		m.dir = m.root
		pages.Open(t, "examples/bookinfo/README.md").In(m.world(m.mirrored()...))
	})
}

// edge has what is at an Envoy that one has: its configuration, and what it leads to. A
// plugin that is applied is in force there.
func edge(t *testing.T) *machine {
	t.Helper()
	m := newMachine(t)
	m.backend()
	m.envoyConfig("/etc/envoy/envoy.yaml", 8080, 9901)
	m.push("deny:v1", module.Deny(http.StatusTeapot))
	return m
}

const denies = `
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: deny, namespace: NAMESPACE}
spec: {url: "oci://localhost:5000/deny:v1"}
`

// inForce applies a plugin and sees it in force.
func (m *machine) inForce(namespace string) {
	m.t.Helper()
	m.answers("http://127.0.0.1:8080/")
	m.run(strings.ReplaceAll(denies, "NAMESPACE", namespace), "chandler", "apply", "-f", "-", "--wait")
	m.comes(http.StatusTeapot, "http://127.0.0.1:8080/")
}

func TestYourOwnEnvoy(t *testing.T) {
	alone(t, func(t *testing.T) {
		m := edge(t)
		m.write("/etc/chandler/plugins/none.yaml", "")
		pages.Open(t, "README.md").In(m.world())
		m.inForce("default")
	})
}

// tell has the section of docs/agent.md that is the test's run on an edge, whose control
// plane is on another machine: what the page leaves to variables stands in them.
func tell(t *testing.T, node, namespace string, prepare func(m *machine)) {
	alone(t, func(t *testing.T) {
		m := edge(t)
		m.env = m.serveAt("10.0.0.1:9910", node, namespace)
		prepare(m)
		pages.Open(t, "docs/agent.md").In(m.world())
		m.inForce(namespace)
	})
}

func hostname(t *testing.T) string {
	t.Helper()
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestAgentBefore(t *testing.T) {
	tell(t, hostname(t), "default", func(*machine) {})
}

func TestAgentInPlace(t *testing.T) {
	tell(t, hostname(t), "edge", func(m *machine) {
		m.write("/opt/edge/bin/README", "")
		m.write("/run/edge/README", "")
		m.envoyConfig(m.dir+"/envoy.yaml", 8080, 9901)
	})
}

func TestAgentBeside(t *testing.T) {
	tell(t, hostname(t), "default", func(*machine) {})
}

// The page's bootstrap leads to a control plane of somebody else's, which has the listener.
func TestAnyControlPlane(t *testing.T) {
	alone(t, func(t *testing.T) {
		m := edge(t)
		m.env = m.serveAt("10.0.0.1:9910", "edge-1", "edge")
		v := upstream.Variant{Delta: true}
		u := upstream.New(t, upstream.Config{Variant: v})
		u.Set("1", upstream.Resources{v.Listener("in", "127.0.0.1:8080", "r"), v.Cluster("c"), upstream.Route("r", "c", "1"), upstream.Backend("c", "127.0.0.1:9080")})
		host, port, err := net.SplitHostPort(u.Addr)
		if err != nil {
			t.Fatal(err)
		}
		pages.Open(t, "docs/any-control-plane.md").In(m.world("control-plane.example", host, "port_value: 18000", "port_value: "+port))
		m.inForce("edge")
	})
}
