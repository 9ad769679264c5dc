package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/cosign"
	"chandler.dev/chandler/internal/testenv/module"
)

// governed is a world whose control plane has a file of --config, which rule changes.
func governed(t *testing.T, content string, flags ...string) (w *world, rule func(string)) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "chandler.yaml")
	rule = func(content string) {
		t.Helper()
		if err := os.WriteFile(file+".next", []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".next", file); err != nil {
			t.Fatal(err)
		}
	}
	rule(content)
	return newWorld(t, append(flags, "--config", file)...), rule
}

// A policy made stricter while a plugin is in force: traffic is as before, and the
// status says what is against it. Made looser again, it heals without an edit. What
// was never allowed is not even fetched.
func TestPolicyWhileServing(t *testing.T) {
	t.Parallel()
	w, rule := governed(t, "")
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("append:v1", module.Append())
	w.apply(plugin("p", url, tag("v1"), "phase: AUTHN"))
	load := startLoad(port, 2, 1, func(a answer) error {
		if got := appended(a); a.code != http.StatusOK || !slices.Contains(got, "v1") {
			return fmt.Errorf("status %d, tags %v", a.code, got)
		}
		return nil
	})
	for _, c := range []struct{ policy, code, text string }{
		{"registries: [{repositories: [registry.example/**]}]", "PolicyDenied", "spec.url: modules for namespace edge may not come from"},
		{"phases: [{allow: [STATS]}]", "ScopeDenied", "spec.phase: phase AUTHN is not allowed in namespace edge"},
		{"limits: [{moduleSize: 100}]", "ModuleTooLarge", "spec.url: the module has"},
		{"registries: [{repositories: ['" + w.registry.Addr + "/**'], require: digest}]", "PolicyDenied", "wants a digest"},
	} {
		rule(c.policy)
		w.tells("p", c.code, c.text, "generation 1 stays assigned, in force on 1 of 1 proxy")
	}
	rule("limits: [{moduleSize: 10") // a slip of the pen changes nothing
	eventually(t, 20*time.Second, "the mistake is told", func() (bool, string) {
		metrics := fetchText(t, "http://"+w.admin+"/metrics")
		return strings.Contains(metrics, "\nchandler_config_stale 1\n"), grep(metrics, "chandler_config")
	})
	w.submit(plugin("q", url, tag("q")))
	w.tells("q", "PolicyDenied", "there is no release yet; proxies are as they were")
	rule("registries: [{repositories: ['" + w.registry.Addr + "/**']}]")
	w.tells("p", "in force on the 1 proxy it is for", "the resource is valid")
	w.tells("q", "in force on the 1 proxy it is for")
	harmless(t, load)

	// Where the operator wants it, it is taken out.
	rule("onViolation: detach\nphases: [{allow: [STATS, UNSPECIFIED]}]")
	w.tells("p", "ScopeDenied", "generation 1 is taken out of all proxies")
	sees(t, port, "q")
	if metrics := fetchText(t, "http://"+w.admin+"/metrics"); !strings.Contains(metrics, `chandler_config_reloads_total{result="refused"} 1`) ||
		!strings.Contains(metrics, "\nchandler_config_stale 0\n") {
		t.Errorf("metrics:\n%s", grep(metrics, "chandler_config"))
	}
}

// A plugin without a capability cannot use it: Envoy calls nobody, tells the plugin of an
// internal failure and its log of the attempt, and goes on calling the plugin. The
// restriction comes and goes on live listeners.
func TestCapabilities(t *testing.T) {
	t.Parallel()
	w, rule := governed(t, "", "--envoy", envoyBinary(t))
	port := freePort(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("caller", w.push("call:v1", module.Call("upstream"))))
	w.apply(plugin("other", w.push("append:v1", module.Append()), tag("other")))
	answers := func(code int) {
		t.Helper()
		eventually(t, 20*time.Second, fmt.Sprintf("requests are answered %d", code), func() (bool, string) {
			a := get(t, port, "/")
			return a.code == code, fmt.Sprint(a.code)
		})
	}
	answers(http.StatusOK)
	const internalFailure = 500 + 10
	rule("capabilities:\n- {plugins: [caller], deny: [proxy_http_call]}\n- {plugins: [other]}\n")
	answers(internalFailure)
	w.tells("caller", "in force on the 1 proxy it is for")
	before := calls(t, p)
	answers(internalFailure)
	if after := calls(t, p); after != before {
		t.Errorf("the upstream was called %s times, and then %s", before, after)
	}
	if log := p.output(); !strings.Contains(log, "Attempted call to restricted proxy-wasm capability: proxy_http_call") {
		t.Errorf("Envoy's log:\n%s", log)
	}
	rule("")
	answers(http.StatusOK)
	// What cannot even start without a capability does not reach a proxy.
	rule("capabilities:\n- {plugins: [other], deny: [proxy_get_buffer_bytes]}\n- {plugins: [caller]}\n")
	w.tells("other", "WasmConfigure", "stays assigned, in force on 1 of 1 proxy")
	has(t, port, "other")
}

// calls gives how many requests Envoy sent to the upstream.
func calls(t *testing.T, p *proxy) string {
	t.Helper()
	return grep(p.statistics(t), `envoy_cluster_upstream_rq_total{envoy_cluster_name="upstream"}`)
}

// A module that nobody signed, or somebody else, never reaches a proxy, and its resource
// says so; signed as the operator demands, it does, without an edit. What is in force
// when the demand comes stays so, and is told of.
func TestSignaturesDemanded(t *testing.T) {
	t.Parallel()
	signer, other := cosign.New(t, "../../.tools/cosign"), cosign.New(t, "../../.tools/cosign")
	demand := "signatures:\n- name: ours\n  keys:\n  - |\n    " + strings.ReplaceAll(strings.TrimSpace(signer.PublicKey), "\n", "\n    ") + "\n"
	w, rule := governed(t, demand)
	port := freePort(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	sign := func(by *cosign.Signer, place cosign.Place, name string, mod []byte) {
		t.Helper()
		_, digest := w.pushDigest(name, mod)
		repository, _, _ := strings.Cut(name, ":")
		by.Sign(t, place, w.registry.Addr+"/plugins/"+repository+"@"+string(digest))
	}
	first, second := module.Append(), module.Append(module.WithSection("another", []byte("digest")))
	w.submit(plugin("p", w.push("append:v1", first), tag("v1")))
	w.tells("p", "SigMissing", `signature rule "ours" wants`, "there is no release yet; proxies are as they were")
	sign(other, cosign.Tag, "append:v1", first)
	w.tells("p", "SigIdentity")
	if report := fetchText(t, "http://"+p.admin+"/report"); strings.Contains(report, "edge/p") || strings.Contains(report, `"p"`) {
		t.Errorf("the agent heard of it:\n%s", report)
	}
	sees(t, port)
	sign(signer, cosign.Bundle, "append:v1", first)
	w.tells("p", "in force on the 1 proxy it is for", "signed by key sha256:")

	load := startLoad(port, 2, 1, func(a answer) error {
		if got := appended(a); a.code != http.StatusOK || len(got) != 1 || got[0] != "v1" && got[0] != "v2" {
			return fmt.Errorf("status %d, tags %v", a.code, got)
		}
		return nil
	})
	w.submit(plugin("p", w.push("append:v2", second), tag("v2")))
	w.tells("p", "SigMissing", "generation 1 stays assigned, in force on 1 of 1 proxy")
	has(t, port, "v1")
	rule("")
	sees(t, port, "v2")
	rule(demand)
	w.tells("p", "SigMissing", "generation 2 stays assigned, in force on 1 of 1 proxy")
	has(t, port, "v2")
	sign(signer, cosign.Tag, "append:v2", second)
	w.tells("p", "in force on the 1 proxy it is for")
	harmless(t, load)
}
