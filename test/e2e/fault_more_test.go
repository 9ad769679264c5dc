package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/registry"
)

// One plugin is edited without pause: versions keep their order, the last one
// wins, and its neighbour in the slot is not held up.
func TestFault_F49_Flapping(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("append:v1", module.Append())
	w.edit("p", plugin("p", url, tag("n0")))
	sees(t, port, "n0")
	o := watchOrder(port)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	const edits = 200
	for n := 1; n <= edits; n++ {
		w.edit("p", plugin("p", url, tag(fmt.Sprintf("n%d", n))))
		<-tick.C
	}
	heals(t, port, fmt.Sprintf("n%d", edits))
	o.check(t)
}

// private starts a registry that wants credentials, with a module in it.
func private(t *testing.T, user, password string) (reg *registry.Registry, url string) {
	t.Helper()
	reg, err := registry.Start(registry.Config{Username: user, Password: password, Token: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reg.Close)
	client := fetch.New(fetch.Config{Dir: t.TempDir()})
	defer client.Close()
	ref := reg.Addr + "/team/append:v1"
	opts := fetch.PushOptions{Layout: fetch.LayoutCompat, Credentials: fetch.NewCredentials(reg.Addr, user, password)}
	if _, err := client.Push(t.Context(), ref, module.Append(), opts); err != nil {
		t.Fatal(err)
	}
	return reg, "oci://" + ref
}

// pullSecret is the manifest of a secret for a registry.
func pullSecret(reg *registry.Registry, user, password string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Secret
type: kubernetes.io/dockerconfigjson
metadata: {name: pull, namespace: edge}
stringData:
  .dockerconfigjson: '{"auths":{%q:{"username":%q,"password":%q}}}'
`, reg.Addr, user, password)
}

// A credential is revoked after its module was fetched: what runs goes on, also
// through a change of configuration; who comes without a proof of its own does
// not get the module.
func TestFault_F35_CredentialRevoked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	reg, url := private(t, "puller", "first")
	w.apply(pullSecret(reg, "puller", "first") + "---\n" + plugin("p", url, tag("one"), "imagePullSecret: pull"))
	reg.Fail(func(r *http.Request) (int, bool) { return http.StatusUnauthorized, true })
	w.apply(plugin("p", url, tag("two"), "imagePullSecret: pull"))
	has(t, port, "two")
	for _, other := range []string{plugin("other", url, tag("other"), "imagePullSecret: pull"), plugin("bare", url, tag("bare"))} {
		if out, ok := w.cli(other, "apply", "-f", "-", "--wait", "--timeout", "60s"); ok || !strings.Contains(out, "Unauthorized") {
			t.Errorf("with a revoked credential: %s", out)
		}
	}
	has(t, port, "two")
}

// A secret is rotated: what runs does not notice, and what waited for the right
// one is in force without an edit of its own.
func TestFault_F56_SecretRotated(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("q", w.push("append:v1", build(1)), tag("q"), "phase: STATS"))
	reg, url := private(t, "puller", "new")
	w.edit("secret", pullSecret(reg, "puller", "old"))
	w.submit(plugin("p", url, tag("p"), "imagePullSecret: pull"))
	w.tells("p", "Unauthorized")
	has(t, port, "q")
	w.edit("secret", pullSecret(reg, "puller", "new"))
	heals(t, port, "q", "p")
	w.edit("secret", pullSecret(reg, "puller", "newer"))
	w.apply(plugin("p", url, tag("two"), "imagePullSecret: pull"))
	has(t, port, "q", "two")
}
