//go:build gateway

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

// Envoy Gateway, unchanged, has the agent for its Envoy: with examples/envoy-gateway, it
// serves Bookinfo, with its own Wasm and with plugins.
func TestGateway(t *testing.T) { alone(t, testGateway) }

func testGateway(t *testing.T) {
	g := newEnvoyGateway(t)
	g.bookinfo()
	g.place("own-filter.wasm", string(module.Append()))
	g.place("resources/own-filter.yaml", g.example("own-filter.yaml"))
	g.start()
	g.sees("without a plugin", page{code: 200, own: "own-filter"})
	admin, err := filepath.Glob(filepath.Join(filepath.Dir(g.dir), "run", "*", "admin-address.txt"))
	if err != nil || len(admin) != 1 {
		t.Fatalf("Envoy's admin address: %v, %v", admin, err)
	}
	envoy := "http://" + adminAt(t, admin[0])
	g.ready("without a plugin")

	guard := g.example("basic-auth.yaml")
	g.w.apply(guard)
	g.guards("with the plugin", "ok:test", "own-filter")
	g.ready("with the plugin")

	l, unguarded := startLoad(gatewayPort, 4, 1, filtered), g.neverOpen()
	for round := range 3 {
		password := fmt.Sprintf("ok:test-%d", round)
		g.route(fmt.Sprint(round))
		g.w.apply(strings.ReplaceAll(guard, "ok:test", password))
		g.guards("changed together", password, "own-filter")
		g.routed(fmt.Sprint(round), password)
	}
	bad := strings.Replace(guard, "oci://ghcr.io/istio-ecosystem/wasm-extensions/basic_auth:1.12.0", g.w.push("bad:v1", module.RefuseConfigure("the moon is wrong")), 1)
	if out, ok := g.w.cli(bad, "apply", "-f", "-", "--wait", "--timeout", "60s"); ok || !strings.Contains(out, "Rejected") || !strings.Contains(out, "the moon is wrong") {
		t.Errorf("a bad module: %s", out)
	}
	g.guards("after a bad module", "ok:test-2", "own-filter")
	g.w.apply(guard)
	harmless(t, l)

	// Another listener takes the place of the one that is there, by Envoy Gateway's own
	// will: connections may end, and no request fails.
	l = startLoad(gatewayPort, 4, 1, filtered)
	g.place("resources/wasm-policy.yaml", g.policy())
	g.sees("with a Wasm policy", page{code: 401, own: "own-policy"})
	g.policed("with a Wasm policy", "ok:test")
	if dump := fetchText(t, envoy+"/config_dump?resource=dynamic_listeners"); !strings.Contains(dump, "own-policy") || strings.Contains(dump, "wasm_cluster") {
		t.Error("Envoy is to fetch the module of the policy itself, or has none")
	}
	l.closed.Store(0)
	harmless(t, l)
	g.ready("after all changes")
	g.kept("own-policy")
	if st := g.status(); len(st.Upstreams) != 1 || !st.Upstreams[0].Connected || st.Upstreams[0].Name != "xds_cluster" {
		t.Errorf("the agent tells of %+v", st.Upstreams)
	}
	if lines := g.warnings(g.process); len(lines) > 1 || len(lines) == 1 && !strings.Contains(lines[0], "the moon is wrong") {
		t.Errorf("the agent warns of what is good: %s", strings.Join(lines, ""))
	}

	args := g.arguments()
	g.stop()
	free(t, gatewayPort, 5*time.Second)
	_, open := unguarded()
	if open != "" {
		t.Error(open)
	}
	g.withoutIt(args, guard)
}

// withoutIt starts what Envoy Gateway had started, while it is away, and has it back then.
func (g *envoyGateway) withoutIt(args []string, guard string) {
	t := g.t
	t.Helper()
	cmd := exec.Command(g.envoy, args...)
	cmd.Env = g.environ()
	envoy := run(t, filepath.Join(g.dir, "envoy.log"), cmd)
	g.sees("started without Envoy Gateway", page{code: 401, own: "own-policy"})
	g.policed("without Envoy Gateway", "ok:test")
	g.routed("2", "ok:test")
	g.ready("without Envoy Gateway")
	st := g.status()
	if !st.Ready || len(st.Upstreams) != 1 || st.Upstreams[0].Connected || !strings.Contains(st.Upstreams[0].Error, ":18000") {
		t.Errorf("the agent says of Envoy Gateway, which is away: %+v", st)
	}
	lines := slices.DeleteFunc(g.warnings(envoy), func(line string) bool { return strings.Contains(line, "not active yet") }) // on a slow machine
	if len(lines) != 1 || !strings.Contains(lines[0], "no stream to Envoy's control plane") {
		t.Errorf("the agent does not log once that Envoy Gateway is away: %s", strings.Join(lines, ""))
	}

	l, unguarded := startLoad(gatewayPort, 4, 1, filtered), g.neverOpen()
	g.w.apply(strings.ReplaceAll(guard, "ok:test", "ok:changed"))
	g.policed("changed without Envoy Gateway", "ok:changed")
	g.start() // its own Envoy cannot start beside this one, and it serves xDS all the same
	eventually(t, 60*time.Second, "the agent is connected", func() (bool, string) {
		up := g.status().Upstreams
		return len(up) == 1 && up[0].Connected, fmt.Sprintf("%+v", up)
	})
	g.watches()
	g.route("back")
	g.routed("back", "ok:changed")
	g.policed("with Envoy Gateway back", "ok:changed")
	harmless(t, l)
	g.remove("resources/wasm-policy.yaml")
	g.sees("without the Wasm policy", page{code: 401, own: "own-filter", alone: true})
	if asked, open := unguarded(); open != "" || asked == 0 {
		t.Errorf("%d requests without credentials: %s", asked, open)
	}
	if out, ok := g.w.cli("", "delete", "wasmplugin", "-n", "envoy-gateway-system", "basic-auth"); !ok {
		t.Fatal(out)
	}
	g.sees("deleted", page{code: 200, own: "own-filter", alone: true})
	g.ready("deleted")
	if err := envoy.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-envoy.done
	if envoy.err != nil {
		t.Errorf("the agent ended with %v", envoy.err)
	}
}

// warnings are what the agent in a process warned of, but for the listener in which nobody
// expects plugins, which it tells of.
func (g *envoyGateway) warnings(p *process) []string {
	g.t.Helper()
	told := func(line string) bool {
		return strings.Contains(line, fmt.Sprint(readyPort)) && strings.Contains(line, "answers health checks only")
	}
	all := agentSaid(g.t, p, "WARN")
	if !slices.ContainsFunc(all, told) {
		g.t.Errorf("the agent does not tell that readiness has no plugins: %s", strings.Join(all, ""))
	}
	return slices.DeleteFunc(all, told)
}

// filtered judges answers of what is not guarded: they passed the gateway's own filter.
func filtered(a answer) error {
	if a.code != http.StatusOK || !slices.Contains(a.headers.Values("X-Plugins-Response"), "own-filter") {
		return fmt.Errorf("status %d, %v", a.code, a.headers)
	}
	return nil
}

// guardedPath is the path of the page that the plugin guards.
const guardedPath = "/productpage"

// page is an answer to a request for it.
type page struct {
	code  int
	own   string // what a filter of Envoy Gateway's own left in it
	alone bool   // and no other
}

// ask asks for a path, with credentials if any are given.
func (g *envoyGateway) ask(path, credentials string) (answer, error) {
	req, err := http.NewRequest(http.MethodGet, "http://"+loopback(gatewayPort)+path, nil)
	if err != nil {
		return answer{}, err
	}
	if user, password, ok := strings.Cut(credentials, ":"); ok {
		req.SetBasicAuth(user, password)
	}
	resp, err := fresh.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return answer{code: resp.StatusCode, headers: resp.Header}, err
}

// sees waits for an answer, without credentials.
func (g *envoyGateway) sees(when string, want page) {
	g.t.Helper()
	eventually(g.t, 90*time.Second, when, func() (bool, string) {
		a, err := g.ask(guardedPath, "")
		if err != nil {
			return false, err.Error()
		}
		own := marks(a)
		return a.code == want.code && slices.Contains(own, want.own) && (!want.alone || len(own) == 1), fmt.Sprintf("status %d, marks %q", a.code, own)
	})
}

// marks are those of Envoy Gateway's own filters; policies write theirs as JSON.
func marks(a answer) (all []string) {
	for _, v := range a.headers.Values("X-Plugins-Response") {
		all = append(all, strings.Trim(v, `"`))
	}
	return all
}

// guards tells whether the page is for those alone who have the credentials, and whether a
// filter of the gateway's own sees both.
func (g *envoyGateway) guards(when, credentials, own string) {
	g.t.Helper()
	for given, want := range map[string]int{"": 401, "ok:wrong": 401, credentials: 200} {
		a, err := g.ask(guardedPath, given)
		if err != nil || a.code != want || !slices.Contains(marks(a), own) {
			g.t.Errorf("%s: with %q: %d, marks %q, %v; want %d and %q", when, given, a.code, marks(a), err, want, own)
		}
	}
	if a, err := g.ask("/details/0", ""); err != nil || a.code != 200 || !slices.Contains(marks(a), own) {
		g.t.Errorf("%s: what is not guarded: %d, marks %q, %v", when, a.code, marks(a), err)
	}
}

// policed tells whether the page is guarded, and whether both of the gateway's own filters,
// that of the policy too, see who has credentials and who has not.
func (g *envoyGateway) policed(when, credentials string) {
	g.t.Helper()
	for _, own := range []string{"own-policy", "own-filter"} {
		g.guards(when, credentials, own)
	}
}

// ready tells whether Envoy Gateway's own way to ask for readiness is as it made it.
func (g *envoyGateway) ready(when string) {
	g.t.Helper()
	if a := get(g.t, readyPort, "/ready"); a.code != 200 || a.headers.Get("X-Envoy-Upstream-Healthchecked-Cluster") != "envoy-gateway-system/eg" {
		g.t.Errorf("%s: Envoy Gateway's readiness: %d, %v", when, a.code, a.headers)
	}
	for _, l := range g.status().Listeners {
		if strings.Contains(l.Name, fmt.Sprint(readyPort)) && len(l.Slots) > 0 {
			g.t.Errorf("%s: plugins have places in the listener for readiness: %+v", when, l)
		}
	}
}

// route changes the route to the page: answers have a header of that value.
func (g *envoyGateway) route(value string) {
	g.t.Helper()
	const to = "    backendRefs:\n    - {group: gateway.envoyproxy.io, kind: Backend, name: productpage}\n"
	text := g.example("resources/bookinfo.yaml")
	if !strings.Contains(text, to) {
		g.t.Fatal("the example has another route")
	}
	g.place("resources/bookinfo.yaml", strings.Replace(text, to, fmt.Sprintf("    filters:\n    - type: ResponseHeaderModifier\n      responseHeaderModifier: {set: [{name: x-route, value: %q}]}\n", value)+to, 1))
}

// routed waits until the route is the one of that value.
func (g *envoyGateway) routed(value, credentials string) {
	g.t.Helper()
	eventually(g.t, 90*time.Second, "the route is "+value, func() (bool, string) {
		a, err := g.ask(guardedPath, credentials)
		return err == nil && a.code == 200 && a.headers.Get("X-Route") == value, fmt.Sprintf("status %d, %v, %v", a.code, a.headers, err)
	})
}

// neverOpen asks for the guarded page without credentials until the result is asked for:
// how often that was refused, and what went otherwise.
func (g *envoyGateway) neverOpen() (result func() (asked int, open string)) {
	stop, done := make(chan struct{}), make(chan struct{})
	var asked int
	var open string
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond): // it is there to notice, not to press
			}
			switch a, err := g.ask(guardedPath, ""); {
			case err == nil && a.code == http.StatusUnauthorized:
				asked++
			case err == nil && open == "":
				open = fmt.Sprintf("without credentials: status %d", a.code)
			}
		}
	}()
	return func() (int, string) {
		close(stop)
		<-done
		return asked, open
	}
}
