//go:build pages

package pages_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/pages"
	"chandler.dev/chandler/internal/testenv/swarm"
)

const limit = `apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata:
  name: limit
  namespace: edge
spec:
  phase: AUTHN
  url: oci://localhost:5000/limit:v1
`

// The page asks about two proxies, one of which does not take a release of limit. That they
// are real ones would say no more of the commands.
func TestAsking(t *testing.T) {
	alone(t, func(t *testing.T) {
		m := newMachine(t)
		m.push("basic-auth:v1", module.Append())
		m.push("limit:v1", module.Deny(http.StatusTooManyRequests))
		refused := module.Deny(http.StatusServiceUnavailable)
		m.push("limit:v2", refused)
		m.serve("--no-vet")
		m.swarm(swarm.Config{
			Agents: 2, Mode: chandler.ModeClient,
			Node: func(i int) chandler.Node {
				return chandler.Node{Namespace: "edge", Name: fmt.Sprintf("n%d", i+1), Labels: map[string]string{"app": "edge"}}
			},
			Conduct: func(n chandler.Node, a *chandler.Attachment) (c swarm.Conduct) {
				if m := a.Program.Module; n.Name == "n2" && m != nil && m.Digest == chandler.Digest[chandler.ModuleDigest](refused) {
					c.Reject = "Unable to create Wasm plugin limit"
				}
				return c
			},
		})
		m.run(basicAuth+"---\n"+limit, "chandler", "apply", "-f", "-", "--wait")
		m.write(m.dir+"/limit.yaml", strings.ReplaceAll(limit, "limit:v1", "limit:v2"))
		m.run("", "sh", "-c", "chandler apply -f limit.yaml; until chandler status limit -n edge | grep -q Rejected; do sleep 0.1; done")
		m.write(m.dir+"/limit.yaml", strings.ReplaceAll(limit, "limit:v1", "limit:v2")+"  priority: 7\n")
		pages.Open(t, "docs/cli.md").In(m.world("reg.example", "localhost:5000", "Envoy 1.40.0", "Envoy (version not known)", "ingress (CLIENT", "main (CLIENT"))
	})
}

// swarm has agents join whose Envoys follow a script.
func (m *machine) swarm(cfg swarm.Config) {
	m.t.Helper()
	cfg.Target = "127.0.0.1:9910"
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- swarm.New(cfg).Run(ctx) }()
	m.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			m.t.Error(err)
		}
	})
	m.run("", "sh", "-c", fmt.Sprintf("until [ $(chandler nodes -A -o name | wc -l) = %d ]; do sleep 0.1; done", cfg.Agents))
}
