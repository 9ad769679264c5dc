package e2e

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/authority"
	"chandler.dev/chandler/internal/testenv/module"
)

// secured is a world whose agents' port wants client certificates.
func secured(t *testing.T, flags ...string) (*world, *authority.Authority, authority.Pair) {
	t.Helper()
	ca := authority.New(t)
	own := ca.Issue(authority.Leaf{IP: "127.0.0.1"})
	return newWorld(t, append(flags, "--tls-cert", own.Cert, "--tls-key", own.Key, "--client-ca", ca.File)...), ca, own
}

// shows is the flags of an agent with a certificate.
func shows(ca *authority.Authority, p authority.Pair) []string {
	return []string{"--tls-ca", ca.File, "--tls-cert", p.Cert, "--tls-key", p.Key}
}

// machine is the certificate of one node.
func machine(name, namespace string) authority.Leaf {
	return authority.Leaf{DNS: []string{name + "." + namespace + ".node.cluster.local"}}
}

// says waits until what an agent says of itself has all of these texts.
func (p *proxy) says(t *testing.T, texts ...string) {
	t.Helper()
	eventually(t, 60*time.Second, "chandler-agent status says "+strings.Join(texts, ", "), func() (bool, string) {
		out, _ := p.local(t, "status")
		for _, text := range texts {
			if !strings.Contains(out, text) {
				return false, out
			}
		}
		return true, ""
	})
}

// An agent with a certificate gets attachments and bytes; certificates and
// authorities are renewed under it without a restart of anything; one that claims
// to be somebody else gets nothing and says why.
func TestCertificates(t *testing.T) {
	t.Parallel()
	w, ca, own := secured(t)
	port, shut := freePort(t), freePort(t)
	mine := ca.Issue(machine("a", "edge"))
	a := w.agent(node{name: "a", labels: []string{"app=web"}, flags: shows(ca, mine)}, w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("p", w.push("append:v1", build(1)), tag("one"), "selector: {matchLabels: {app: web}}"))
	has(t, port, "one")

	// A certificate for one namespace and a claim of another: shut, and told.
	forged := w.startAgent(node{name: "a", namespace: "edge", flags: shows(ca, ca.Issue(machine("a", "shop")))}, w.gateway(listener{port: shut, name: "in"}))
	forged.says(t, "not connected", "PermissionDenied", `a.shop.node.cluster.local may not act as node "edge/a"`)
	if _, err := request(fresh, http.MethodGet, shut, "/", nil); err == nil {
		t.Error("its Envoy serves")
	}
	if got := wholeModules(t, filepath.Join(forged.dir, "data", "modules")); len(got) != 0 {
		t.Errorf("it got %v", got)
	}
	for name, c := range map[string]struct {
		flags []string
		why   string
	}{
		"without a certificate":   {[]string{"--tls-ca", ca.File}, "certificate required"},
		"another authority's":     {shows(ca, authority.New(t).Issue(machine("b", "edge"))), "unknown certificate authority"},
		"another control plane's": {shows(authority.New(t), mine), "certificate signed by unknown authority"},
		"in plain text":           {nil, "it may want TLS: give --tls-ca"},
	} {
		w.startAgent(node{name: "b", flags: c.flags}, w.gateway(listener{port: freePort(t), name: name})).says(t, "not connected", c.why)
	}

	plain := newWorld(t)
	plain.startAgent(node{name: "b", flags: shows(ca, mine)}, plain.gateway(listener{port: freePort(t), name: "in"})).says(t, "not connected", "it does not speak TLS: give it --tls-cert")

	// Another authority, as it should be done: both are trusted, all is renewed.
	next := authority.New(t)
	replace(t, ca.File, ca.File, next.File)
	next.Renew(own, authority.Leaf{IP: "127.0.0.1"})
	next.Renew(mine, machine("a", "edge"))
	w.apply(plugin("p", w.push("append:v2", build(2)), tag("two"), "selector: {matchLabels: {app: web}}"))
	heals(t, port, "two") // on the connection from before
	// The old one is no longer trusted, and that connection no longer believed.
	replace(t, ca.File, next.File)
	w.submit(plugin("p", w.push("append:v3", build(3)), tag("three"), "selector: {matchLabels: {app: web}}"))
	heals(t, port, "three")
	w.control.kill(t)
	w.startControl()
	w.submit(plugin("p", w.push("append:v4", build(4)), tag("four"), "selector: {matchLabels: {app: web}}"))
	heals(t, port, "four")
	a.says(t, "connected to "+w.listen)
}

// Labels of a machine are its own word, as far as the operator allows.
func TestClaimedLabels(t *testing.T) {
	t.Parallel()
	w, ca, _ := secured(t, "--claimable-labels", "zone")
	good, bad := freePort(t), freePort(t)
	any := ca.Issue(authority.Leaf{DNS: []string{"*.edge.node.cluster.local"}})
	w.agent(node{name: "a", labels: []string{"zone=z"}, flags: shows(ca, any)}, w.gateway(listener{port: good, name: "in"}))
	forged := w.startAgent(node{name: "b", labels: []string{"zone=z", "app=pay"}, flags: shows(ca, any)}, w.gateway(listener{port: bad, name: "in"}))
	w.apply(plugin("p", w.push("append:v1", module.Append()), tag("one"), "selector: {matchLabels: {zone: z}}"))
	has(t, good, "one")
	forged.says(t, "PermissionDenied", `may not claim the label "app"`)
}

// What others can reach is not served in plain text.
func TestPlainIsForThisMachine(t *testing.T) {
	t.Parallel()
	ca := authority.New(t)
	own := ca.Issue(authority.Leaf{IP: "127.0.0.1"})
	for _, c := range []struct {
		flags []string
		code  int
		why   string
	}{
		{[]string{"--listen", "0.0.0.0:0"}, 2, "plain text is not safe: give --tls-cert, --tls-key and --client-ca"},
		{[]string{"--listen", "[::]:0", "--tls-cert", own.Cert, "--tls-key", own.Key}, 2, "give --client-ca"},
		{[]string{"--tls-cert", own.Cert}, 2, "belong together"},
		{[]string{"--client-ca", ca.File}, 2, "--client-ca needs --tls-cert"},
		{[]string{"--tls-cert", own.Key, "--tls-key", own.Key}, 2, own.Key},
		{[]string{"--tls-cert", "/nonexistent", "--tls-key", own.Key}, 2, "/nonexistent"},
	} {
		args := append([]string{"serve", "--no-vet", "--data", t.TempDir(), "--listen", loopback(freePort(t)), "--admin", loopback(freePort(t))}, c.flags...)
		cmd := exec.CommandContext(t.Context(), filepath.Join(built, "chandler"), args...)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != c.code || !strings.Contains(string(out), c.why) {
			t.Errorf("%v: exit code %d: %s", c.flags, code, out)
		}
	}
}

// replace puts the content of others in place of a file, at once as a whole.
func replace(t *testing.T, file string, by ...string) {
	t.Helper()
	var all []byte
	for _, name := range by {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	if err := os.WriteFile(file+".next", all, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".next", file); err != nil {
		t.Fatal(err)
	}
}
