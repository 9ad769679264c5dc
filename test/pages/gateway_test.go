//go:build pages && gateway

package pages_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/pages"
)

// withGateway is a machine with Envoy Gateway.
func withGateway(t *testing.T) *machine {
	t.Helper()
	m := newMachine(t)
	program := filepath.Join(m.root, ".tools", "envoy-gateway")
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v: run make tools-gateway", err)
	}
	if err := os.Symlink(program, "/usr/local/bin/envoy-gateway"); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestEnvoyGatewayExample(t *testing.T) {
	alone(t, func(t *testing.T) {
		m := withGateway(t)
		m.pushSample()
		m.dir = filepath.Join(m.root, "examples", "envoy-gateway")
		pages.Open(t, "examples/envoy-gateway/README.md").In(m.world(m.mirrored()...))
	})
}

// The example's Gateway gets its Envoy from the page's commands. It has no route, so what
// is not denied is not found.
func TestEnvoyGateway(t *testing.T) {
	alone(t, func(t *testing.T) {
		m := withGateway(t)
		m.push("deny:v1", module.Deny(http.StatusTeapot))
		gateway, err := os.ReadFile(filepath.Join(m.root, "examples", "envoy-gateway", "resources", "gateway.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		documents := strings.Split(string(gateway), "---\n")
		m.write("/etc/envoy-gateway/resources/gateway.yaml", documents[0]+"---\n"+documents[2]) // the EnvoyProxy is the page's
		m.serve("--no-vet")
		pages.Open(t, "docs/any-control-plane.md").In(m.world())
		m.comes(http.StatusNotFound, "http://127.0.0.1:8888/")
		m.run(strings.ReplaceAll(denies, "NAMESPACE", "envoy-gateway-system"), "chandler", "apply", "-f", "-", "--wait")
		m.comes(http.StatusTeapot, "http://127.0.0.1:8888/")
	})
}
