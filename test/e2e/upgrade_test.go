package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/api/chandler/v1/chandlerv1connect"
	"chandler.dev/chandler/internal/testenv/module"
)

// buildAgent builds an agent that says it is of a version.
func buildAgent(t *testing.T, version string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "chandler-agent")
	args := slices.Concat([]string{"build", "-ldflags", "-X main.version=" + version}, buildFlags, []string{"-o", path, "chandler.dev/chandler/cmd/chandler-agent"})
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}

// An agent is replaced by another build and back, asked to end and killed, under
// load: its Envoy serves on with every plugin in force and is taken over, nothing
// is sent again to either of them, and the new agent does what the old one did.
func TestAgentUpgrade(t *testing.T) {
	w := newWorld(t)
	w.upstream.Close()
	w.upstream = httptest.NewServer(http.HandlerFunc(steadyUpstream))
	t.Cleanup(w.upstream.Close)
	builds := map[string]string{"1.0.0": buildAgent(t, "1.0.0"), "1.1.0": buildAgent(t, "1.1.0")}
	port := freePort(t)
	p := w.agent(node{name: "a", workers: 2, binary: builds["1.0.0"], flags: []string{"--leave-envoy"}},
		w.gateway(listener{port: port, name: "in", upgrades: "[{upgrade_type: websocket}]"}))
	envoy := p.envoy(t)
	t.Cleanup(func() { _ = syscall.Kill(envoy, syscall.SIGTERM) }) // the last agent leaves it

	url := w.push("append:v1", module.Append())
	w.apply(plugin("basic", w.push("basic:v1", sample(t)), "phase: AUTHN", "pluginConfig: "+realmConfig(0)) + "---\n" +
		plugin("p", url, tag("n0")))
	guard := &guard{}
	s := startSteady(t, port, ask{begin: guard.begin, right: guard.denied},
		ask{header: http.Header{"Authorization": {"Basic b2s6dGVzdA=="}}, begin: guard.begin, right: guard.passed})
	before := proxyStats(t, p)
	for i, next := range []struct {
		version string
		killed  bool // the one before
	}{{"1.1.0", false}, {"1.0.0", false}, {"1.1.0", true}, {"1.0.0", true}} {
		slots, sent := proxyStats(t, p).received, w.sent()
		if next.killed {
			p.kill(t)
		} else if err := p.stop(); err != nil {
			t.Fatal(err)
		}
		alone := s.answers.Load()
		eventually(t, 20*time.Second, "Envoy serves on alone", func() (bool, string) {
			return s.answers.Load() > alone+2*steadyCallers, "the load stands still"
		})
		p.cmd.Path = builds[next.version]
		p.restart()
		p.awaitReady()
		if now := p.envoy(t); now != envoy {
			t.Fatalf("%s: Envoy is %d and was %d", next.version, now, envoy)
		}
		p.resumed()
		w.runs("a", next.version)
		if again := proxyStats(t, p).received - slots; again != 0 || w.sent() != sent {
			t.Errorf("%s: taken over, Envoy was sent %v slots again, and the agent %v bytes", next.version, again, w.sent()-sent)
		}
		guard.last.Add(1)
		w.apply(plugin("p", url, tag(fmt.Sprint("n", i+1))))
		guard.settled.Add(1)
		if w.sent() == sent {
			t.Error("a change took no bytes: they are not counted")
		}
		saw := s.answers.Load()
		eventually(t, 20*time.Second, "requests see the change", func() (bool, string) {
			return s.answers.Load() > saw+2*steadyCallers, "the load stands still"
		})
	}
	after := proxyStats(t, p)
	s.end(t)
	if n := after.reloads - before.reloads; n != 4 {
		t.Errorf("four changes of a configuration changed a slot %v times", n)
	}
	if before.harm != after.harm {
		t.Errorf("listeners or connections were touched: before %+v, after %+v", before.harm, after.harm)
	}
	t.Logf("%d requests, %d exchanges", s.answers.Load(), s.exchanged.Load())
}

// Other arguments for Envoy are not adopted either: they take effect.
func TestEnvoyArgumentsChange(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a", flags: []string{"--leave-envoy"}}, w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("p", w.push("append:v1", module.Append()), tag("p")))
	before := p.envoy(t)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	p.cmd.Args = slices.DeleteFunc(p.cmd.Args, func(arg string) bool { return arg == "--leave-envoy" })
	p.cmd.Args[len(p.cmd.Args)-1] = "2" // --concurrency
	p.restart()
	p.awaitReady()
	stopped(t, before)
	if n := proxyStats(t, p).workers; n != 2 {
		t.Errorf("Envoy has %v workers, and was given 2", n)
	}
	has(t, port, "p")
}

// guard judges what a plugin that asks for credentials and one that adds its
// newest tag let through.
type guard struct{ settled, last atomic.Int64 }

func (g *guard) begin() int { return int(g.settled.Load()) }

func (g *guard) denied(a answer, _ int) error {
	if a.code != http.StatusUnauthorized || a.headers.Get("Www-Authenticate") == "" {
		return fmt.Errorf("without credentials: status %d, headers %v", a.code, a.headers)
	}
	return nil
}

func (g *guard) passed(a answer, begun int) error {
	tags := appended(a)
	if a.code == http.StatusOK && len(tags) == 1 {
		n, err := strconv.Atoi(strings.TrimPrefix(tags[0], "n"))
		if err == nil && n >= begun && n <= int(g.last.Load()) {
			return nil
		}
	}
	return fmt.Errorf("with credentials: status %d, tags %v; begun with n%d in force", a.code, tags, begun)
}

// sent is how many bytes of attachments and modules agents were sent; none is a failure.
func (w *world) sent() float64 {
	w.t.Helper()
	sum := w.everSent()
	if sum == 0 {
		w.t.Fatal("the control plane does not count what it sends")
	}
	return sum
}

// everSent may be none, of a control plane that has just begun.
func (w *world) everSent() float64 {
	w.t.Helper()
	sum := 0.0
	for line := range strings.Lines(fetchText(w.t, "http://"+w.admin+"/metrics")) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name != "chandler_xds_resource_bytes_sent_total" && name != "chandler_module_bytes_sent_total" {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			w.t.Fatal(err)
		}
		sum += n
	}
	return sum
}

// resumed waits until the agent knows from Envoy that every plugin is in force.
func (p *proxy) resumed() {
	p.w.t.Helper()
	eventually(p.w.t, 20*time.Second, "Envoy is heard again", func() (bool, string) {
		report := fetchText(p.w.t, "http://"+p.admin+"/report")
		states := strings.Count(report, `"State":`)
		return states > 0 && strings.Count(report, `"State":"InForce"`) == states, report
	})
}

// runs waits until the control plane says that a node's agent is of a version
// and has every plugin in force.
func (w *world) runs(name, version string) {
	w.t.Helper()
	admin := chandlerv1connect.NewAdminClient(http.DefaultClient, "http://"+w.admin)
	eventually(w.t, 20*time.Second, name+" runs agent "+version, func() (bool, string) {
		list, err := admin.List(w.t.Context(), connect.NewRequest(&chandlerv1.ListRequest{Proxies: true}))
		if err != nil {
			return false, err.Error()
		}
		return !slices.ContainsFunc(list.Msg.Objects, func(o *chandlerv1.Object) bool {
			return !slices.ContainsFunc(o.Status.Proxies, func(p *chandlerv1.ProxyStatus) bool {
				return p.Node == name && p.AgentVersion == version && p.EnvoyVersion != "" && p.Connected && p.InForce == p.Release && p.InForce != ""
			})
		}), list.Msg.String()
	})
}
