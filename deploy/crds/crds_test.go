//go:build kube

// Package crds_test holds the definitions of the two resources against a real
// API server, and against what the rest of chandler takes for right.
package crds_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/testenv/kube"
)

// verdict is what the server must say of a spec.
type verdict struct {
	name string
	kind string
	spec string
	// refused is in the server's message, with the field; empty: accepted.
	refused string
	// but is why package source judges otherwise; empty: it agrees.
	but string
}

const (
	plugin    = chandler.KindWasmPlugin
	extension = chandler.KindTrafficExtension

	later = "Istio accepts it, so it can be applied; the status says what is wrong"
)

func verdicts() []verdict {
	long := func(n int) string { return strings.Repeat("x", n) }
	many := func(n int, format string) string {
		var items []string
		for i := range n {
			items = append(items, fmt.Sprintf(format, i))
		}
		return "[" + strings.Join(items, ", ") + "]"
	}
	return []verdict{
		{"least", plugin, `{url: a}`, "", ""},
		{"no url", plugin, `{phase: AUTHN}`, "spec.url: Required", ""},
		{"empty url", plugin, `{url: ""}`, "spec.url", ""},
		{"port without a scheme", plugin, `{url: "reg.example:5000/a:v1"}`, "", ""},
		{"address without a scheme", plugin, `{url: "10.0.0.1:5000/a:v1"}`, "", ""},
		{"tag without a scheme", plugin, `{url: "test:v1"}`, "", ""},
		{"http", plugin, `{url: "http://h.example/x.wasm?tok=1"}`, "", ""},
		{"file", plugin, `{url: "file:///opt/x.wasm"}`, "", ""},
		{"ftp", plugin, `{url: "ftp://h.example/x.wasm"}`, "spec.url", ""},
		{"data", plugin, `{url: "data:application/wasm;base64,AA"}`, "spec.url", ""},
		{"relative file", plugin, `{url: "file://x.wasm"}`, "", later},
		{"query of an image", plugin, `{url: "oci://reg.example/a?x=y"}`, "", later},
		{"user in a url", plugin, `{url: "https://u:p@h.example/x.wasm"}`, "", later},
		{"digest", plugin, `{url: a, sha256: "` + strings.Repeat("0a", 32) + `"}`, "", ""},
		{"empty digest", plugin, `{url: a, sha256: ""}`, "", ""},
		{"digest nil", plugin, `{url: a, sha256: nil}`, "spec.sha256", ""},
		{"digest in upper case", plugin, `{url: a, sha256: "` + strings.Repeat("0A", 32) + `"}`, "spec.sha256", ""},
		{"pull policy", plugin, `{url: a, imagePullPolicy: Never}`, "spec.imagePullPolicy", ""},
		{"empty secret", plugin, `{url: a, imagePullSecret: ""}`, "spec.imagePullSecret", ""},
		{"secret of a long name", plugin, `{url: a, imagePullSecret: ` + long(254) + `}`, "spec.imagePullSecret", ""},
		{"secret elsewhere", plugin, `{url: a, imagePullSecret: other/s}`, "", later},
		{"key", plugin, `{url: a, verificationKey: x}`, "", later},
		{"configuration", plugin, `{url: a, pluginConfig: {a: {b: [1, x, null]}}}`, "", ""},
		{"configuration as text", plugin, `{url: a, pluginConfig: x}`, "spec.pluginConfig", ""},
		{"long plugin name", plugin, `{url: a, pluginName: ` + long(257) + `}`, "spec.pluginName", ""},
		{"phase", plugin, `{url: a, phase: AUTHNN}`, "spec.phase", ""},
		{"no phase of a plugin", plugin, `{url: a, phase: UNSPECIFIED_PHASE}`, "", ""},
		{"no phase of an extension", extension, `{wasm: {url: a}, phase: UNSPECIFIED}`, "", ""},
		{"the other's word", extension, `{wasm: {url: a}, phase: UNSPECIFIED_PHASE}`, "spec.phase", "both words are plain in a file; the server refuses what Istio's does"},
		{"priority", plugin, `{url: a, priority: -5}`, "", ""},
		{"priority null", plugin, `{url: a, priority: null}`, "", ""},
		{"priority beyond", plugin, `{url: a, priority: 2147483648}`, "spec.priority", ""},
		{"priority as text", plugin, `{url: a, priority: high}`, "spec.priority", ""},
		{"fail strategy", plugin, `{url: a, failStrategy: OPEN}`, "spec.failStrategy", ""},
		{"type", plugin, `{url: a, type: TCP}`, "spec.type", ""},
		{"unknown field", plugin, `{url: a, imagePullPolcy: Always}`, `unknown field "spec.imagePullPolcy"`, ""},
		{"runtime", plugin, `{url: a, vmConfig: {runtime: v8}}`, `unknown field "spec.vmConfig.runtime"`, ""},

		{"selector", plugin, `{url: a, selector: {matchLabels: {a: b}}}`, "", ""},
		{"wildcard value", plugin, `{url: a, selector: {matchLabels: {a: "b*"}}}`, "spec.selector.matchLabels", ""},
		{"wildcard label", plugin, `{url: a, selector: {matchLabels: {"a*": b}}}`, "spec.selector.matchLabels", ""},
		{"empty label", plugin, `{url: a, selector: {matchLabels: {"": b}}}`, "spec.selector.matchLabels", ""},
		{"long value", plugin, `{url: a, selector: {matchLabels: {a: ` + long(64) + `}}}`, "spec.selector.matchLabels", ""},
		{"number as value", plugin, `{url: a, selector: {matchLabels: {a: 1}}}`, "spec.selector.matchLabels", ""},
		{"target", plugin, `{url: a, targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: g}}`, "", ""},
		{"selector and target", plugin, `{url: a, selector: {}, targetRefs: [{kind: Service, name: s}]}`, "at most one of", ""},
		{"target and targets", plugin, `{url: a, targetRef: {kind: Service, name: s}, targetRefs: []}`, "at most one of", ""},
		{"selector and targets of an extension", extension, `{wasm: {url: a}, selector: {}, targetRefs: []}`, "at most one of", ""},
		{"one target of an extension", extension, `{wasm: {url: a}, targetRef: {kind: Service, name: s}}`, `unknown field "spec.targetRef"`, ""},
		{"target without kind", plugin, `{url: a, targetRef: {name: g}}`, "spec.targetRef.kind", ""},
		{"target without name", plugin, `{url: a, targetRefs: [{kind: Service}]}`, "spec.targetRefs[0].name", ""},
		{"target elsewhere", plugin, `{url: a, targetRef: {kind: Service, name: s, namespace: other}}`, "spec.targetRef.namespace", ""},
		{"target here in words", plugin, `{url: a, targetRef: {kind: Service, name: s, namespace: default}}`, "spec.targetRef.namespace", "harmless in a file; the server refuses what Istio's does"},
		{"target of a kind unknown", plugin, `{url: a, targetRef: {group: apps, kind: Deployment, name: d}}`, "", later},
		{"17 targets", plugin, `{url: a, targetRefs: ` + many(17, "{kind: Service, name: s%d}") + `}`, "spec.targetRefs", ""},

		{"match", plugin, `{url: a, match: [{mode: CLIENT, ports: [{number: 80}, {number: 443}]}, {}]}`, "", ""},
		{"mode", plugin, `{url: a, match: [{mode: BOTH}]}`, "spec.match[0].mode", ""},
		{"port 0", plugin, `{url: a, match: [{ports: [{number: 0}]}]}`, "spec.match[0].ports[0].number", ""},
		{"port 65536", plugin, `{url: a, match: [{ports: [{number: 65536}]}]}`, "spec.match[0].ports[0].number", ""},
		{"port without number", plugin, `{url: a, match: [{ports: [{}]}]}`, "spec.match[0].ports[0].number", ""},
		{"port twice", plugin, `{url: a, match: [{ports: [{number: 80}, {number: 80}]}]}`, "spec.match[0].ports[1]", ""},

		{"environment", plugin, `{url: a, vmConfig: {env: [{name: A, value: b}, {name: HOME, valueFrom: HOST}, {name: E, valueFrom: INLINE}]}}`, "", ""},
		{"name twice", plugin, `{url: a, vmConfig: {env: [{name: A}, {name: A}]}}`, "spec.vmConfig.env[1]", ""},
		{"host with value", plugin, `{url: a, vmConfig: {env: [{name: A, valueFrom: HOST, value: b}]}}`, "spec.vmConfig.env[0]", ""},
		{"no name", plugin, `{url: a, vmConfig: {env: [{value: b}]}}`, "spec.vmConfig.env[0].name", ""},
		{"long name", plugin, `{url: a, vmConfig: {env: [{name: ` + long(257) + `}]}}`, "spec.vmConfig.env[0].name", ""},
		{"long text", plugin, `{url: a, vmConfig: {env: [{name: A, value: ` + long(2049) + `}]}}`, "spec.vmConfig.env[0].value", ""},
		{"257 names", plugin, `{url: a, vmConfig: {env: ` + many(257, "{name: A%d}") + `}}`, "spec.vmConfig.env", ""},
		{"reserved name", plugin, `{url: a, vmConfig: {env: [{name: ISTIO_META_A}]}}`, "", later},

		{"lua", extension, `{lua: {inlineCode: x}}`, "", ""},
		{"empty lua", extension, `{lua: {inlineCode: ""}}`, "spec.lua.inlineCode", ""},
		{"no lua in it", extension, `{lua: {}}`, "spec.lua.inlineCode", ""},
		{"65,537 bytes of lua", extension, `{lua: {inlineCode: ` + long(65537) + `}}`, "spec.lua.inlineCode", ""},
		{"65,538 bytes in fewer characters", extension, `{lua: {inlineCode: "` + strings.Repeat("é", 32769) + `"}}`, "", "the server counts characters"},
		{"wasm and lua", extension, `{wasm: {url: a}, lua: {inlineCode: x}}`, "exactly one of wasm and lua", ""},
		{"neither", extension, `{phase: AUTHN}`, "exactly one of wasm and lua", ""},
		{"wasm without url", extension, `{wasm: {type: HTTP}}`, "spec.wasm.url", ""},
		{"ftp in wasm", extension, `{wasm: {url: "ftp://h.example/x"}}`, "spec.wasm.url", ""},
	}
}

// cluster is one with the definitions in place.
func cluster(t *testing.T) *kube.Cluster {
	t.Helper()
	c := kube.Start(t, "../../.tools")
	for _, args := range [][]string{
		{"apply", "--server-side", "-f", "."},
		{"wait", "--for=condition=Established", "--timeout=60s", "crd/wasmplugins.extensions.istio.io", "crd/trafficextensions.extensions.istio.io"},
		{"create", "namespace", "istio-system"},
		{"create", "namespace", "team-a"},
		{"create", "namespace", "a"},
	} {
		if _, err := c.Kubectl(t.Context(), "", args...); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Served(t.Context(), "wasmplugins", "trafficextensions"); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDefinitions(t *testing.T) {
	c := cluster(t)
	try := func(manifest string) (string, bool) {
		out, err := c.Kubectl(t.Context(), manifest, "create", "--dry-run=server", "--validate=strict", "-f", "-")
		return out, err == nil
	}
	t.Run("verdicts", func(t *testing.T) {
		for _, v := range verdicts() {
			manifest := fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: x}\nspec: %s\n", chandler.APIVersion, v.kind, v.spec)
			out, accepted := try(manifest)
			if accepted != (v.refused == "") || !strings.Contains(out, v.refused) {
				t.Errorf("%s: accepted %t, want a message with %q:\n%s", v.name, accepted, v.refused, out)
			}
			problems := source.Decode([]byte(manifest), "")[0].Problems
			if agrees := (v.refused == "") == (len(problems) == 0); agrees != (v.but == "") {
				t.Errorf("%s: the file's judge says %v; why it differs: %q", v.name, problems, v.but)
			}
		}
	})
	t.Run("files", func(t *testing.T) {
		if out, err := c.Kubectl(t.Context(), "", "create", "namespace", "envoy-gateway-system"); err != nil { // of an example
			t.Fatal(out, err)
		}
		agree(t, try)
	})
	t.Run("shown", func(t *testing.T) { shown(t, c) })
}

// agree: on every resource in the repository's YAML the server and package source
// are of one mind.
func agree(t *testing.T, try func(string) (string, bool)) {
	judged := 0
	for _, pattern := range []string{"../../examples/*/*.yaml", "../../internal/source/testdata/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: no files, %v", pattern, err)
		}
		for _, file := range files {
			manifest, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range source.Decode(manifest, "") {
				if d.Kind != plugin && d.Kind != extension {
					continue // no resource, or a Secret
				}
				judged++
				if out, accepted := try(string(d.Manifest)); accepted != (len(d.Problems) == 0) {
					t.Errorf("%s:%d: accepted %t, but the file's judge says %v:\n%s", file, d.Line, accepted, d.Problems, out)
				}
			}
		}
	}
	if judged < 10 {
		t.Errorf("only %d resources in the repository's YAML", judged)
	}
}

// shown: the status is a part of its own, conditions can be waited for, and the
// columns are what a user looks for.
func shown(t *testing.T, c *kube.Cluster) {
	must := func(stdin string, args ...string) string {
		t.Helper()
		out, err := c.Kubectl(t.Context(), stdin, args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	must(`apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: basic-auth, namespace: istio-system}
spec: {url: "oci://reg.example/a:v1", phase: AUTHN}
status: {chandler: {ready: 9/9}}
`, "create", "-f", "-")
	row := func(args ...string) []string {
		return strings.Fields(must("", append([]string{"get", "-A", "--no-headers"}, args...)...))
	}
	if got := row("wp"); len(got) != 5 || got[2] != "oci://reg.example/a:v1" || got[3] != "AUTHN" {
		t.Errorf("a status came in with the spec, or columns are missing: %q", got)
	}
	must("", "patch", "wp", "-n", "istio-system", "basic-auth", "--subresource=status", "--type=merge", "-p",
		`{"status": {"observedGeneration": 1, "conditions": [{"type": "Programmed", "status": "True", "observedGeneration": 1, "reason": "InForce",
		"lastTransitionTime": "2026-01-02T03:04:05Z"}], "chandler": {"ready": "1/1", "moduleDigest": "sha256:ab", "new": {"a": 1}}}}`)
	must("", "wait", "--for=condition=Programmed", "--timeout=20s", "-n", "istio-system", "wasmplugins.extensions.istio.io/basic-auth")
	if got := row("wasmplugins", "-o", "wide"); len(got) != 7 || got[4] != "1/1" || got[6] != "sha256:ab" {
		t.Errorf("kubectl get -o wide: %q", got)
	}
	if got := must("", "get", "wp", "-n", "istio-system", "basic-auth", "-o", "jsonpath={.status.chandler.new.a} {.metadata.generation}"); got != "1 1" {
		t.Errorf("a field of a newer chandler is not kept, or the status counts as a change: %q", got)
	}
}
