package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/authority"
)

// enrolling is a world whose agents get their certificates from the control plane.
func enrolling(t *testing.T) *world {
	t.Helper()
	return newWorld(t, enrolment(t)...)
}

// enrolment are the flags of such a control plane.
func enrolment(t *testing.T) []string {
	t.Helper()
	ca := authority.New(t)
	own := ca.Issue(authority.Leaf{IP: "127.0.0.1"})
	signer := ca.Issue(authority.Leaf{CA: true, NotAfter: time.Now().Add(40 * time.Hour)})
	return []string{"--tls-cert", own.Cert, "--tls-key", own.Key, "--enrol-ca-cert", signer.Cert, "--enrol-ca-key", signer.Key, "--enrol-server-ca", ca.File}
}

// token makes a token, and gives the flags of an agent with it.
func (w *world) token(args ...string) []string {
	w.t.Helper()
	out, ok := w.cli("", append([]string{"node", "token", "create"}, args...)...)
	at := strings.LastIndex(out, "chandler1.")
	if !ok || at < 0 {
		w.t.Fatalf("node token create: %s", out)
	}
	file := filepath.Join(w.t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(out[at:]), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return []string{"--enrol-token-file", file}
}

// A machine with nothing but a token gets attachments and bytes, as the node and with
// the labels that the token says; with others it gets none. A revoked one is cut off,
// its Envoy serves on, and another token brings it back.
func TestEnrolment(t *testing.T) {
	t.Parallel()
	w := enrolling(t)
	port, shut := freePort(t), freePort(t)
	flags := w.token("-n", "edge", "--label", "app=web", "--name", "a*")
	a := w.agent(node{name: "a", labels: []string{"app=web"}, flags: flags}, w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("p", w.push("append:v1", build(1)), tag("one"), "selector: {matchLabels: {app: web}}"))
	has(t, port, "one")

	forged := w.startAgent(node{name: "b", labels: []string{"app=web"}, flags: w.token("-n", "edge", "--label", "app=pay")}, w.gateway(listener{port: shut, name: "in"}))
	forged.says(t, "not connected", "PermissionDenied", `spiffe://cluster.local/ns/edge/node/b may not claim the label "app=web": it is not among those of its token`)
	if _, err := request(fresh, http.MethodGet, shut, "/", nil); err == nil {
		t.Error("its Envoy serves")
	}
	if got := wholeModules(t, filepath.Join(forged.dir, "data", "modules")); len(got) != 0 {
		t.Errorf("it got %v", got)
	}
	spent := filepath.Join(t.TempDir(), "token")
	replace(t, spent, flags[1])
	again := w.startAgent(node{name: "a2", labels: []string{"app=web"}, flags: []string{"--enrol-token-file", spent}}, w.gateway(listener{port: freePort(t), name: "in"}))
	again.says(t, "not connected", "the token is not good")

	// What was enrolled stays so over a restart of either side.
	w.control.kill(t)
	w.startControl()
	w.submit(plugin("p", w.push("append:v2", build(2)), tag("two"), "selector: {matchLabels: {app: web}}"))
	heals(t, port, "two")

	out, ok := w.cli("", "node", "revoke", "a", "-n", "edge")
	if began := time.Now(); !ok {
		t.Fatal(out)
	} else if a.says(t, "not connected", `the node "edge/a" was revoked`); time.Since(began) > patience(5*time.Second) {
		t.Errorf("it was cut off after %v", time.Since(began))
	}
	w.submit(plugin("p", w.push("append:v3", build(3)), tag("three"), "selector: {matchLabels: {app: web}}"))
	if out, _ := w.cli("", "node", "list", "-A"); !strings.Contains(out, "revoked") {
		t.Errorf("node list: %s", out)
	}
	has(t, port, "two")
	replace(t, flags[1], w.token("-n", "edge", "--label", "app=web")[1])
	eventually(t, 30*time.Second, "the machine is back with another key", func() (bool, string) {
		got := appended(get(t, port, "/"))
		return len(got) == 1 && got[0] == "three", strings.Join(got, ",")
	})
}

// On one machine a socket does instead of certificates: it is its user's alone.
func TestAgentsSocket(t *testing.T) {
	t.Parallel()
	w := uncontrolled(t)
	path := filepath.Join(w.dir, "run", "agents.sock")
	w.listen = "unix://" + path
	w.startControl()
	for name, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("p", w.push("append:v1", build(1)), tag("one")))
	has(t, port, "one")
	w.control.kill(t) // leaves the socket behind
	w.startControl()
	w.submit(plugin("p", w.push("append:v2", build(2)), tag("two")))
	heals(t, port, "two")
}
