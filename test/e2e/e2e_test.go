// Package e2e holds the built commands against a real Envoy and a real registry:
// what a user would do, and what requests through the gateway then see.
package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/registry"
)

// appended gives what plugins added to the request that the upstream saw, in
// their order.
func appended(a answer) []string {
	var tags []string
	for _, value := range a.seen["X-Plugins"] {
		for part := range strings.SplitSeq(value, ",") {
			tag := strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(part), `{"tag":"`), `"}`)
			tags = append(tags, tag)
		}
	}
	return tags
}

// tag is the spec line that makes an appending module write a tag.
func tag(name string) string { return fmt.Sprintf("pluginConfig: {tag: %q}", name) }

// pin is the spec line of the sha256 field; unquoted, some digests are numbers.
func pin(digest string) string { return fmt.Sprintf("sha256: %q", digest) }

// sees waits until a port's requests get exactly these tags.
func sees(t *testing.T, port int, want ...string) {
	t.Helper()
	eventually(t, 20*time.Second, fmt.Sprintf("requests get %v", want), func() (bool, string) {
		a, err := request(fresh, http.MethodGet, port, "/", nil)
		if err != nil {
			return false, err.Error()
		}
		return a.code == 200 && slices.Equal(appended(a), want), fmt.Sprintf("status %d, tags %v", a.code, appended(a))
	})
}

func TestPhasesAndPriorities(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("append:v1", module.Append())
	// Applied in an order that is not the chain's.
	w.apply(plugin("last", url, tag("unspecified")) + "---\n" +
		plugin("stats", url, tag("stats"), "phase: STATS") + "---\n" +
		plugin("authz", url, tag("authz"), "phase: AUTHZ") + "---\n" +
		plugin("authn-none", url, tag("authn-none"), "phase: AUTHN") + "---\n" +
		plugin("authn-low", url, tag("authn-low"), "phase: AUTHN", "priority: -5") + "---\n" +
		plugin("authn-high", url, tag("authn-high"), "phase: AUTHN", "priority: 10"))
	sees(t, port, "authn-high", "authn-low", "authn-none", "authz", "stats", "unspecified")

	blobs := w.registry.Counts().BlobGet
	w.apply(plugin("authn-low", url, tag("authn-low"), "phase: AUTHN", "priority: 20"))
	sees(t, port, "authn-low", "authn-high", "authn-none", "authz", "stats", "unspecified")
	if now := w.registry.Counts().BlobGet; now != blobs {
		t.Errorf("six plugins of one module and an edit took %d more blobs from the registry", now-blobs)
	}
}

func TestMatchByPortAndMode(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	in, out, other := freePort(t), freePort(t), freePort(t)
	w.agent(node{name: "a"}, w.gateway(
		listener{port: in, name: "in", direction: "INBOUND"},
		listener{port: out, name: "out", direction: "OUTBOUND"},
		listener{port: other, name: "gateway"}))
	url := w.push("append:v1", module.Append())
	w.apply(plugin("server", url, tag("server"), "match: [{mode: SERVER}]") + "---\n" +
		plugin("client", url, tag("client"), "match: [{mode: CLIENT}]") + "---\n" +
		plugin("port", url, tag("port"), fmt.Sprintf("match: [{ports: [{number: %d}]}]", out)) + "---\n" +
		plugin("either", url, tag("either"), fmt.Sprintf("match: [{mode: SERVER}, {mode: CLIENT, ports: [{number: %d}]}]", other)) + "---\n" +
		plugin("nowhere", url, tag("nowhere"), fmt.Sprintf("match: [{mode: SERVER, ports: [{number: %d}]}]", out)))
	sees(t, in, "either", "server")
	sees(t, out, "client", "port")
	sees(t, other, "client", "either")
}

func TestAgentsByLabelAndLate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	red, blue := freePort(t), freePort(t)
	w.agent(node{name: "red", labels: []string{"colour=red"}}, w.gateway(listener{port: red, name: "in"}))
	url := w.push("append:v1", module.Append())
	w.apply(plugin("red", url, tag("red"), "selector: {matchLabels: {colour: red}}") + "---\n" +
		plugin("blue", url, tag("blue"), "selector: {matchLabels: {colour: blue}}") + "---\n" +
		plugin("both", url, tag("both")))
	sees(t, red, "both", "red")

	// This one comes when all is settled, and its listeners do not open before
	// its plugins are decided on.
	w.agent(node{name: "blue", labels: []string{"colour=blue"}}, w.gateway(listener{port: blue, name: "in"}))
	if got, want := appended(get(t, blue, "/")), []string{"blue", "both"}; !slices.Equal(got, want) {
		t.Errorf("the first request after ready got %v, want %v", got, want)
	}
	eventually(t, 20*time.Second, "status counts both proxies", func() (bool, string) {
		out, _ := w.cli("", "status", "-A")
		return strings.Contains(out, "2/2"), out
	})
}

// Other namespaces' plugins are not for this proxy; the root namespace's are.
func TestNamespaces(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("append:v1", module.Append())
	w.submit(strings.Replace(plugin("other", url, tag("other")), "namespace: edge", "namespace: elsewhere", 1))
	w.apply(strings.Replace(plugin("root", url, tag("root")), "namespace: edge", "namespace: istio-system", 1))
	sees(t, port, "root")
}

func TestHundredEdits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("append:v1", module.Append())
	file := filepath.Join(w.plugins, "p.yaml")
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for i := range 100 {
		if err := os.WriteFile(file, []byte(plugin("p", url, tag(fmt.Sprintf("edit-%d", i)))), 0o600); err != nil {
			t.Fatal(err)
		}
		<-tick.C
	}
	sees(t, port, "edit-99")
}

// Where a module may come from, and the pins that hold it.
func TestSourcesAndPins(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	mod := module.Append()
	sum := sha256.Sum256(mod)
	digest := hex.EncodeToString(sum[:])
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("tok") != "1" {
			http.NotFound(rw, r)
			return
		}
		_, _ = rw.Write(mod)
	}))
	t.Cleanup(server.Close)
	file := filepath.Join(t.TempDir(), "plugin.wasm")
	if err := os.WriteFile(file, mod, 0o600); err != nil {
		t.Fatal(err)
	}
	oci, manifest := w.pushDigest("append:v1", mod)
	pinned := strings.TrimSuffix(oci, ":v1") + "@" + string(manifest)

	w.apply(plugin("http", server.URL+"/p.wasm?tok=1", tag("http"), pin(digest)) + "---\n" +
		plugin("file", "file://"+file, tag("file"), pin(digest)) + "---\n" +
		plugin("oci", oci, tag("oci"), pin(strings.TrimPrefix(string(manifest), "sha256:"))) + "---\n" +
		plugin("pinned", pinned, tag("pinned")))
	sees(t, port, "file", "http", "oci", "pinned")

	// Two modules that differ, so that neither is in a store.
	wrong := strings.Repeat("0", 64)
	otherFile := filepath.Join(t.TempDir(), "other.wasm")
	if err := os.WriteFile(otherFile, module.Append(module.WithSection("build", []byte("2"))), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, spec := range map[string]string{
		"http": plugin("wrong-http", server.URL+"/p.wasm?tok=1", tag("x"), pin(wrong)),
		"oci":  plugin("wrong-oci", oci, tag("x"), pin(wrong)),
		// Left out when the fetch deadline passes before we are done.
		"file": plugin("wrong-file", "file://"+otherFile, tag("x"), pin(wrong), "failStrategy: FAIL_OPEN"),
	} {
		out, ok := w.cli(spec, "apply", "-f", "-", "--wait", "--timeout", "60s")
		if ok || !strings.Contains(out, "Digest") && !strings.Contains(out, "NotFound") {
			t.Errorf("%s with a wrong sha256: %s", name, out)
		}
	}
	sees(t, port, "file", "http", "oci", "pinned")
}

// A private registry: refused without a secret, pulled with one, and the secret
// is in nothing that a proxy gets or a person sees.
func TestPullSecret(t *testing.T) {
	t.Parallel()
	const password = "correct-horse-battery"
	private, err := registry.Start(registry.Config{Username: "puller", Password: password, Token: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(private.Close)
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	client := fetch.New(fetch.Config{Dir: t.TempDir()})
	t.Cleanup(client.Close)
	ref := private.Addr + "/team/append:v1"
	opts := fetch.PushOptions{Layout: fetch.LayoutCompat, Credentials: fetch.NewCredentials(private.Addr, "puller", password)}
	if _, err := client.Push(t.Context(), ref, module.Append(), opts); err != nil {
		t.Fatal(err)
	}
	out, ok := w.cli(plugin("p", "oci://"+ref, tag("p")), "apply", "-f", "-", "--wait", "--timeout", "60s")
	if ok || !strings.Contains(out, "Unauthorized") {
		t.Errorf("without a secret: %s", out)
	}
	w.apply(fmt.Sprintf(`apiVersion: v1
kind: Secret
type: kubernetes.io/dockerconfigjson
metadata: {name: pull, namespace: edge}
stringData:
  .dockerconfigjson: '{"auths":{%q:{"username":"puller","password":%q}}}'
---
`, private.Addr, password) + plugin("p", "oci://"+ref, tag("p"), "imagePullSecret: pull"))
	sees(t, port, "p")
	described, _ := w.cli("", "describe", "wasmplugin", "p", "-n", "edge")
	for name, text := range map[string]string{
		"describe": described, "get": first(w.cli("", "get", "-A", "-o", "yaml")),
		"control log": w.control.output(), "agent log": p.output(), "agent report": fetchText(t, "http://"+p.admin+"/report"),
	} {
		if strings.Contains(text, password) {
			t.Errorf("the password is in %s", name)
		}
	}
}

func first(out string, _ bool) string { return out }

func TestFortyConnectionManagers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	// Forty filter chains of one listener, each with a connection manager.
	port := freePort(t)
	var b strings.Builder
	config := w.gateway(listener{port: port, name: "in"})
	chains := strings.Index(config, "    - filters:\n")
	clusters := strings.Index(config, "  clusters:\n")
	b.WriteString(config[:chains])
	for i := range 39 {
		fmt.Fprintf(&b, "    - name: chain-%d\n      filter_chain_match: {source_ports: [%d]}\n      filters:\n%s", i, i+1, connectionManager("      ", ""))
	}
	b.WriteString(config[chains:clusters])
	b.WriteString(config[clusters:])
	w.agent(node{name: "a"}, b.String())
	url := w.push("append:v1", module.Append())
	w.apply(plugin("p", url, tag("one")))
	sees(t, port, "one")
	w.apply(plugin("p", url, tag("two")))
	sees(t, port, "two")
}

func TestTwoUnnamedListeners(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one, two := freePort(t), freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: one}, listener{port: two}))
	w.apply(plugin("p", w.push("append:v1", module.Append()), tag("p")))
	sees(t, one, "p")
	sees(t, two, "p")
}

// A plugin that Envoy refuses and one that works, both there before Envoy is:
// listeners open, the good one works, the bad one denies and says why.
func TestBadAndGoodWhileEnvoyStarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.submit(plugin("bad", w.push("bad:v1", module.RefuseConfigure("the moon is wrong")), "failStrategy: FAIL_OPEN") + "---\n" +
		plugin("good", w.push("append:v1", module.Append()), tag("good")))
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	sees(t, port, "good")
	eventually(t, 10*time.Second, "the reason is told", func() (bool, string) {
		out, _ := w.cli("", "describe", "wasmplugin", "bad", "-n", "edge")
		return strings.Contains(out, "Rejected") && strings.Contains(out, "the moon is wrong"), out
	})
	sees(t, port, "good")
}

// A working plugin is not touched by an update that is refused, at either place
// where that can happen.
func TestBrokenUpdates(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("p", w.push("append:v1", module.Append()), tag("v1")))
	for name, c := range map[string]struct {
		url, code string
	}{
		"truncated":      {w.push("bad:truncated", module.Truncate(module.Append())), "Wasm"},
		"unknown abi":    {w.push("bad:abi", module.BadABI()), "WasmABI"},
		"missing import": {w.push("bad:import", module.MissingImport()), "WasmImport"},
		"traps at start": {w.push("bad:trap", module.TrapStart()), "Rejected"},
		"refuses":        {w.push("bad:refuse", module.RefuseConfigure("no thanks")), "Rejected"},
		"no such tag":    {"oci://" + w.registry.Addr + "/plugins/append:none", "NotFound"},
	} {
		out, ok := w.cli(plugin("p", c.url, tag("v1")), "apply", "-f", "-", "--wait", "--timeout", "60s")
		if ok || !strings.Contains(out, c.code) {
			t.Errorf("%s: want %s, got: %s", name, c.code, out)
		}
		if got := appended(get(t, port, "/")); !slices.Equal(got, []string{"v1"}) {
			t.Errorf("%s: the plugin in force is gone: %v", name, got)
		}
	}
	if out, _ := w.cli("", "describe", "wasmplugin", "p", "-n", "edge"); !strings.Contains(out, "edge/a") {
		t.Errorf("describe names no proxy:\n%s", out)
	}
	metrics := fetchText(t, "http://"+w.admin+"/metrics")
	if !strings.Contains(metrics, `pilot_total_xds_rejects{type="type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"} 2`) {
		t.Errorf("two refusals by Envoy are not counted:\n%s", grep(metrics, "pilot_total"))
	}
	merged := p.statistics(t)
	for _, name := range []string{"istio_agent_wasm_cache_entries", "envoy_server_uptime"} {
		if !strings.Contains(merged, name) {
			t.Errorf("the merged statistics lack %s", name)
		}
	}
	w.apply(plugin("p", w.push("append:v2", module.Append(module.WithSection("build", []byte("2")))), tag("v2")))
	sees(t, port, "v2")
}

func TestLua(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	w.apply(`apiVersion: extensions.istio.io/v1alpha1
kind: TrafficExtension
metadata: {name: script, namespace: edge}
spec:
  phase: AUTHZ
  lua:
    inlineCode: |
      function envoy_on_request(handle)
        handle:headers():add("x-plugins", '{"tag":"lua"}')
      end
`)
	sees(t, port, "lua")
}

// The control plane goes away and comes back: nothing changes for traffic, and
// nothing is sent again.
func TestControlPlaneRestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("append:v1", module.Append())
	w.apply(plugin("p", url, tag("one")))
	sees(t, port, "one")
	before, _ := w.cli("", "get", "wasmplugin", "p", "-n", "edge", "-o", "json")
	requests := w.registry.Counts()
	if err := w.control.stop(); err != nil {
		t.Fatal(err)
	}
	sees(t, port, "one")
	w.startControl()
	eventually(t, 20*time.Second, "in force again", func() (bool, string) {
		out, ok := w.cli("", "status", "p", "-n", "edge")
		return ok, out
	})
	after, _ := w.cli("", "get", "wasmplugin", "p", "-n", "edge", "-o", "json")
	for _, field := range []string{`"uid"`, `"creationTimestamp"`, `"release"`, `"moduleDigest"`} {
		if grep(before, field) != grep(after, field) || grep(before, field) == "" {
			t.Errorf("%s changed over a restart: %s -> %s", field, grep(before, field), grep(after, field))
		}
	}
	if now := w.registry.Counts(); now != requests {
		t.Errorf("the restart asked the registry: %+v, before %+v", now, requests)
	}
	sees(t, port, "one")
}

func fetchText(t testing.TB, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b := new(strings.Builder)
	if err := resp.Write(b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// grep gives the lines that hold a text.
func grep(s, text string) string {
	var out strings.Builder
	for line := range strings.Lines(s) {
		if strings.Contains(line, text) {
			out.WriteString(line)
		}
	}
	return out.String()
}
