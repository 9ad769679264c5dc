package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/registry"
)

// Every plugin is tried in an Envoy first: what that one refuses, or does not come to
// an end with, no proxy ever hears of, and its author is told why. Traffic shows no
// trace of the attempts.
func TestFault_F70_Preflight(t *testing.T) {
	t.Parallel()
	preflight(t, "_initialize failed: Uncaught RuntimeError: unreachable", "tried in Envoy 1.", "--envoy", envoyBinary(t), "--vet-timeout", "15s", "--vet-memory", "64MiB")
}

// Where no Envoy is named the Proxy-Wasm host is asked, with the same result.
func TestFault_F70_PreflightWithoutEnvoy(t *testing.T) {
	t.Parallel()
	preflight(t, "_initialize failed: wasm error: unreachable", "tried in the Proxy-Wasm host and in no Envoy", "--vet-timeout", "15s", "--vet-memory", "64MiB")
}

func preflight(t *testing.T, trap, tried string, flags ...string) {
	w := newWorld(t, flags...)
	port := freePort(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("p", w.push("append:v1", module.Append()), tag("v1")))
	load := startLoad(port, 2, 1, func(a answer) error {
		if got := appended(a); a.code != http.StatusOK || !slices.Equal(got, []string{"v1"}) {
			return fmt.Errorf("status %d, tags %v", a.code, got)
		}
		return nil
	})
	report := func() string {
		_, body, _ := strings.Cut(fetchText(t, "http://"+p.admin+"/report"), "\r\n\r\n")
		return body
	}
	before := report()
	files, err := registry.StartFiles("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(files.Close)
	pinned := sha256.Sum256(module.Deny(401))
	bad := func(mod []byte) string { return w.push(fmt.Sprintf("bad:%x", sha256.Sum256(mod)), mod) }
	for name, c := range map[string]struct {
		url, sha256 string
		field, text string
	}{
		"refuses":    {bad(module.RefuseConfigure("no thanks")), "", "spec.pluginConfig", "no thanks (WasmConfigure)"},
		"traps":      {bad(module.TrapStart()), "", "spec.url", trap + " (WasmStart)"},
		"has no end": {bad(module.LoopConfigure()), "", "spec.url", "(WasmTimeout)"},
		"grows":      {bad(module.GrowConfigure()), "", "spec.url", "(WasmMemory)"},
		"other ABI":  {bad(module.BadABI()), "", "spec.url", "(WasmABI)"},
		"import":     {bad(module.MissingImport()), "", "spec.url", "(WasmImport)"},
		"tampered":   {files.Put("p.wasm", module.Deny(402)), hex.EncodeToString(pinned[:]), "spec.url", "(DigestMismatch)"},
		"too large":  {files.Put("large.wasm", make([]byte, 65<<20)), "", "spec.url", "(HTTPLength)"},
	} {
		out, ok := w.cli(plugin("p", c.url, fmt.Sprintf("sha256: %q", c.sha256), tag("v2")), "apply", "-f", "-", "--wait", "--timeout", "60s")
		if code := c.text[strings.LastIndex(c.text, "(")+1 : len(c.text)-1]; ok || !strings.Contains(out, code) {
			t.Errorf("%s: want %s, got: %s", name, code, out)
		}
		described, _ := w.cli("", "describe", "wasmplugin", "p", "-n", "edge")
		if said := strings.TrimSuffix(c.text[:strings.LastIndex(c.text, "(")], " "); !strings.Contains(described, c.field+": ") || !strings.Contains(described, said) {
			t.Errorf("%s: described as\n%s", name, described)
		}
	}
	// A new plugin that is bad, beside the good one.
	w.submit(plugin("q", w.push("bad:v2", module.TrapStart()), tag("q")))
	w.tells("q", "WasmStart")
	if slices.Contains(flags, "--envoy") { // the host knows no Lua
		w.submit(`apiVersion: extensions.istio.io/v1alpha1
kind: TrafficExtension
metadata: {name: script, namespace: edge}
spec: {lua: {inlineCode: "function function"}}
`)
		eventually(t, 20*time.Second, "the script is refused", func() (bool, string) {
			out, _ := w.cli("", "describe", "trafficextension", "script", "-n", "edge")
			return strings.Contains(out, "LuaSyntax") && strings.Contains(out, "spec.lua.inlineCode: "), out
		})
	}
	harmless(t, load)
	if after := report(); after != before || !strings.Contains(after, `"InForce"`) {
		t.Errorf("the agent heard of what was refused; it said\n%s\nand says\n%s", before, after)
	}
	if metrics := fetchText(t, "http://"+w.admin+"/metrics"); !strings.Contains(metrics, `chandler_vet_total{result="accepted"} 1`) ||
		!strings.Contains(metrics, `chandler_vet_total{result="WasmConfigure"} 1`) {
		t.Errorf("metrics:\n%s", grep(metrics, "chandler_vet_total"))
	}
	w.apply(plugin("p", w.push("append:v1", module.Append()), tag("v3")))
	has(t, port, "v3")
	if out, _ := w.cli("", "describe", "wasmplugin", "p", "-n", "edge"); !strings.Contains(out, ", "+tried) {
		t.Errorf("described as\n%s", out)
	}
}

// A plugin that loads and lets pass what it is to deny, the silent hole, is found by
// its probe, before any proxy has it.
func TestPreflightProbe(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "--envoy", envoyBinary(t))
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	probed := func(url, config string) string {
		const probe = `{"request":{"path":"/productpage"},"expect":{"status":401}}`
		return strings.Replace(plugin("p", url, config), "metadata: {", "metadata: {annotations: {chandler.dev/probe: '"+probe+"'}, ", 1)
	}
	w.apply(probed(w.push("deny:v1", module.Deny(401)), tag("v1")))
	if a := get(t, port, "/"); a.code != http.StatusUnauthorized {
		t.Errorf("status %d", a.code)
	}
	w.submit(probed(w.push("append:v1", module.Append()), tag("v2")))
	w.tells("p", "ProbeFailed", `metadata.annotations["chandler.dev/probe"]: probe 1: GET "/productpage" is to be answered 401; Envoy `, "answered 200, it was allowed")
	if a := get(t, port, "/"); a.code != http.StatusUnauthorized {
		t.Errorf("status %d", a.code)
	}
}
