package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/api/chandler/v1/chandlerv1connect"
	"chandler.dev/chandler/internal/testenv/authority"
	"chandler.dev/chandler/internal/testenv/module"
)

// beside is another control plane over the folder of this one, with data of its own; the
// program may be of another version.
func (w *world) beside(program string) *world {
	w.t.Helper()
	other := *w
	other.program = program
	other.dir, other.listen, other.admin = w.t.TempDir(), loopback(freePort(w.t)), loopback(freePort(w.t))
	other.startControl()
	return &other
}

// dialsInTurn gives the flag of an agent that has several control planes, in this order.
func dialsInTurn(all ...*world) []string {
	var addrs []string
	for _, w := range all {
		addrs = append(addrs, w.listen)
	}
	return []string{"--control", strings.Join(addrs, ",")}
}

// meaning is what a control plane says that every plugin is: its digests.
func (w *world) meaning() map[string]string {
	w.t.Helper()
	admin := chandlerv1connect.NewAdminClient(http.DefaultClient, "http://"+w.admin)
	list, err := admin.List(w.t.Context(), connect.NewRequest(&chandlerv1.ListRequest{Namespace: "edge"}))
	if err != nil {
		w.t.Fatal(err)
	}
	digests := map[string]string{}
	for _, o := range list.Msg.Objects {
		r := o.GetStatus().GetResolved()
		digests[o.Ref.Name] = fmt.Sprint(r.GetArtifactDigest(), r.GetModuleDigest())
	}
	return digests
}

// inForce waits until a control plane has connected proxies, these, in which every plugin
// but those that were refused is in force.
func (w *world) inForce(names ...string) {
	w.t.Helper()
	admin := chandlerv1connect.NewAdminClient(http.DefaultClient, "http://"+w.admin)
	eventually(w.t, 60*time.Second, fmt.Sprintf("in force on %v", names), func() (bool, string) {
		list, err := admin.List(w.t.Context(), connect.NewRequest(&chandlerv1.ListRequest{Namespace: "edge", Proxies: true}))
		if err != nil {
			return false, err.Error()
		}
		for _, o := range list.Msg.Objects {
			for _, name := range names {
				if o.GetStatus().GetResolved() != nil && !slices.ContainsFunc(o.GetStatus().GetProxies(), func(p *chandlerv1.ProxyStatus) bool {
					return p.Node == name && p.Connected && p.InForce != "" && p.InForce == p.Release
				}) {
					return false, o.String()
				}
			}
		}
		return true, ""
	})
}

// Two control planes over one folder with a lock file, with data of their own and
// another history: they agree on every digest and on the order of plugins, and refuse
// what is not locked. Agents go from the one to the other when it dies and when it is
// silent, under load: no request notices, Envoy is sent nothing, and no module comes again.
func TestTwoControlPlanes(t *testing.T) {
	t.Parallel()
	one := uncontrolled(t)
	one.upstream.Close()
	one.upstream = httptest.NewServer(http.HandlerFunc(steadyUpstream))
	t.Cleanup(one.upstream.Close)
	rules := filepath.Join(t.TempDir(), "chandler.yaml")
	if err := os.WriteFile(rules, []byte("registries: [{repositories: ['"+one.registry.Addr+"/**'], require: digest}]"), 0o600); err != nil {
		t.Fatal(err)
	}
	one.flags = []string{"--config", rules}
	url := one.push("append:v1", build(1))
	lock := func() {
		t.Helper()
		if out, err := exec.Command(filepath.Join(built, "chandler"), "lock", "-f", one.plugins).CombinedOutput(); err != nil {
			t.Fatalf("lock: %v\n%s", err, out)
		}
	}
	// The first has seen z long before a, the second sees both at once.
	one.edit("z", plugin("z", url, tag("z")))
	lock()
	one.startControl()
	one.tells("z", url)
	one.edit("a", plugin("a", url, tag("a")))
	one.tells("a", url)
	one.push("append:v1", build(2)) // moved, and nobody is to notice
	two := one.beside("")
	eventually(t, 20*time.Second, "both say the same", func() (bool, string) {
		here, there := one.meaning(), two.meaning()
		return len(here) == 2 && len(there) == 2 && here["a"] != "" && here["a"] == here["z"] && fmt.Sprint(here) == fmt.Sprint(there), fmt.Sprint(here, there)
	})

	ports := []int{freePort(t), freePort(t)}
	left := one.agent(node{name: "left", flags: dialsInTurn(one, two)}, one.gateway(listener{port: ports[0], name: "in", upgrades: "[{upgrade_type: websocket}]"}))
	right := one.agent(node{name: "right", flags: dialsInTurn(two, one)}, one.gateway(listener{port: ports[1], name: "in", upgrades: "[{upgrade_type: websocket}]"}))
	one.inForce("left")
	two.inForce("right")
	for _, port := range ports {
		sees(t, port, "a", "z")
	}
	asked := ask{begin: func() int { return 0 }, right: func(a answer, _ int) error {
		if got := appended(a); a.code != http.StatusOK || !slices.Equal(got, []string{"a", "z"}) {
			return fmt.Errorf("status %d, tags %v", a.code, got)
		}
		return nil
	}}
	loads := []*steady{startSteady(t, ports[0], asked), startSteady(t, ports[1], asked)}
	before := []counters{proxyStats(t, left), proxyStats(t, right)}
	modules := func(w *world) string {
		return metricLine(t, w, "chandler_module_bytes_sent_total")
	}

	// A tag that nobody locked means nothing to either.
	one.edit("n", plugin("n", one.push("append:unlocked", module.Append()), tag("n")))
	for _, w := range []*world{one, two} {
		w.tells("n", "PolicyDenied", "wants a digest")
	}

	had := modules(two)
	one.control.kill(t)
	two.inForce("left", "right")
	one.startControl()
	if got := modules(two); got != had {
		t.Errorf("modules came again: %s, before %s", got, had)
	}
	// One that says nothing any more, and keeps its connections.
	had = modules(one)
	if err := two.control.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	one.inForce("left", "right")
	if err := two.control.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if got := modules(one); got != had {
		t.Errorf("modules came again: %s, before %s", got, had)
	}
	// And back.
	one.control.kill(t)
	two.inForce("left", "right")
	one.startControl()
	for i, p := range []*proxy{left, right} {
		after := proxyStats(t, p) // before the load ends its streams
		loads[i].end(t)
		if after.harm != before[i].harm || after.received != before[i].received {
			t.Errorf("Envoy was told something: before %+v, after %+v", before[i], after)
		}
		t.Logf("%d requests, %d exchanges", loads[i].answers.Load(), loads[i].exchanged.Load())
	}

	// What is locked next is the next of both, whichever an agent has.
	lock()
	for _, port := range ports {
		sees(t, port, "a", "n", "z")
	}
	one.inForce()
	if here, there := one.meaning(), two.meaning(); fmt.Sprint(here) != fmt.Sprint(there) {
		t.Errorf("they say %v and %v", here, there)
	}
}

// metricLine is a series of a control plane without labels, as it stands.
func metricLine(t *testing.T, w *world, name string) string {
	t.Helper()
	for line := range strings.Lines(fetchText(t, "http://"+w.admin+"/metrics")) {
		if strings.HasPrefix(line, name+" ") {
			return strings.TrimSpace(line)
		}
	}
	t.Fatalf("there is no %s", name)
	return ""
}

// A control plane that cannot prove who it is is passed by for the next, and nothing
// is said to it.
func TestControlPlaneNotBelieved(t *testing.T) {
	t.Parallel()
	ca, other := authority.New(t), authority.New(t)
	served := func(a *authority.Authority) []string {
		own := a.Issue(authority.Leaf{IP: "127.0.0.1"})
		return []string{"--tls-cert", own.Cert, "--tls-key", own.Key, "--client-ca", ca.File}
	}
	impostor := newWorld(t, served(other)...)
	plain := newWorld(t)
	w := newWorld(t, served(ca)...)
	port := freePort(t)
	me := ca.Issue(authority.Leaf{DNS: []string{"a.edge.node.cluster.local"}})
	w.agent(node{name: "a", flags: append(dialsInTurn(impostor, plain, w), "--tls-ca", ca.File, "--tls-cert", me.Cert, "--tls-key", me.Key)},
		w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("p", w.push("append:v1", module.Append()), tag("p")))
	has(t, port, "p")
	for _, untold := range []*world{impostor, plain} {
		if out, _ := untold.cli("", "nodes"); strings.Contains(out, "edge") {
			t.Errorf("it knows of the agent: %s", out)
		}
	}
}

// A control plane that starts from a back-up counts on from there, where its agents have
// long been further: they take what it says, and what comes next.
func TestControlPlaneFromBackup(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("append:v1", module.Append())
	w.apply(plugin("p", url, tag("saved")))
	data, backup := filepath.Join(w.dir, "control"), filepath.Join(t.TempDir(), "backup.tar.gz")
	tar := func(args ...string) { // as operating.md has it
		t.Helper()
		if out, err := exec.Command("tar", append([]string{"-C", w.dir}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("tar: %v\n%s", err, out)
		}
	}
	tar("-czf", backup, "--exclude=control/modules", "--exclude=control/vet", "control")
	for i := range 3 {
		w.apply(plugin("p", url, tag(fmt.Sprint("lost", i))))
	}
	has(t, port, "lost2")
	if err := w.control.stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(data); err != nil {
		t.Fatal(err)
	}
	tar("-xzf", backup)
	w.startControl()
	sees(t, port, "saved")
	w.apply(plugin("p", url, tag("next")))
	has(t, port, "next")
}
