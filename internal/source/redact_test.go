package source

import (
	"strings"
	"testing"

	yaml "go.yaml.in/yaml/v3"
)

// What may be a secret is "canary" here, in each of the ways in which YAML can say
// it; what may be seen is "seen".
const secretive = `# canary
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata:
  name: seen-name # canary
  namespace: seen
  labels: {seen: seen-label}
  annotations:
    chandler.dev/first-attach: hold
    kubectl.kubernetes.io/last-applied-configuration: '{"spec":{"pluginConfig":{"password":"canary"}}}'
    note: canary
spec:
  url: https://host.example/seen.wasm?token=canary
  phase: AUTHN
  priority: 7
  selector: {matchLabels: {app: seen-selector}}
  match: [{mode: SERVER, ports: [{number: 8080}]}]
  vmConfig:
    env:
    - {name: SEEN_INLINE, value: canary}
    - {name: SEEN_HOST, valueFrom: HOST}
  verificationKey: canary
  pluginConfg: canary
  pluginConfig:
    text: &here canary
    again: *here
    folded: >
      canary
    number: 6666
    float: 66.66e2
    yes: true
    nothing: null
    list: [canary, {deep: [canary, [canary]]}]
    <<: {merged: canary}
    url: canary
    name: canary
status: {canary: 6666}
`

func TestRedact(t *testing.T) {
	t.Parallel()
	got := string(Redact([]byte(secretive)))
	for _, secret := range []string{"canary", "6666", "66.66", "true", "null"} {
		if strings.Contains(strings.ReplaceAll(got, "canary: <redacted>", ""), secret) {
			t.Errorf("%q is seen", secret)
		}
	}
	for _, seen := range []string{
		"name: seen-name", "seen: seen-label", "app: seen-selector", "phase: AUTHN", "priority: 7", "number: 8080", "first-attach: hold",
		"name: SEEN_INLINE", "valueFrom: HOST", "url: https://host.example/seen.wasm?token=***", "again: <redacted>", "merged: <redacted>",
		"note: <redacted>", "pluginConfg: <redacted>", "last-applied-configuration: <redacted>",
	} {
		if !strings.Contains(got, seen) {
			t.Errorf("%q is not seen", seen)
		}
	}
	var doc map[string]any
	if err := yaml.Unmarshal([]byte(got), &doc); err != nil {
		t.Fatal(err)
	}
	config := doc["spec"].(map[string]any)["pluginConfig"].(map[string]any)
	if l, ok := config["list"].([]any); !ok || len(l) != 2 || len(config) != 11 {
		t.Errorf("the structure is lost: %v", config)
	}
	if t.Failed() {
		t.Log(got)
	}
}

// Whatever the text is, and wherever in an object something stands.
func TestRedactOthers(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"spec: [canary", "canary", "- canary\n- {a: canary}", "spec: canary", "spec: {phase: {a: canary}, url: 'ftp://canary'}", "metadata: canary",
		`{"kind": {"x": "canary"}, "metadata": {"name": ["canary"]}}`, "spec: {url: [canary]}",
		"kind: TrafficExtension\nspec: {lua: {inlineCode: canary}, wasm: {url: 'oci://user:canary@h/x', pluginConfig: {a: canary}}}",
	} {
		if got := Redact([]byte(text)); strings.Contains(string(got), "canary") {
			t.Errorf("%s: %s", text, got)
		}
	}
}

// Some values are replaced, and where there are none nothing is changed.
func TestHide(t *testing.T) {
	t.Parallel()
	const written = `# as it was written
kind: WasmPlugin
metadata:
  annotations: {"kubectl.kubernetes.io/last-applied-configuration": '{"password":"canary"}', note: seen}
spec:
  url: seen
  pluginConfig: {users: [{name: seen, password: canary}, {name: seen}], key: &k canary, again: *k}
`
	asked := 0
	all := [][]string{{"users", "0", "password"}, {"key"}, {"again"}, {"users", "7"}, {"none", "0"}, {"key", "deeper"}}
	places := func(config []byte) [][]string {
		if asked++; string(config) != `{"again":"canary","key":"canary","users":[{"name":"seen","password":"canary"},{"name":"seen"}]}` {
			t.Errorf("asked about %s", config)
		}
		return all
	}
	got, hid := Hide([]byte(written), places)
	if !hid || asked != 1 || strings.Contains(string(got), "canary") || strings.Count(string(got), "seen") != 4 {
		t.Errorf("hidden %v, asked %d times: %s", hid, asked, got)
	}
	all = [][]string{{"users", "7"}}
	if got, hid := Hide([]byte(written), places); hid || string(got) != written {
		t.Errorf("nothing is to be hidden: %v, %s", hid, got)
	}
	asked = 0
	traffic := "kind: TrafficExtension\nspec: {wasm: {pluginConfig: {a: canary}}}\n"
	if got, hid := Hide([]byte(traffic), func([]byte) [][]string { return [][]string{{}} }); !hid || strings.Contains(string(got), "canary") {
		t.Errorf("all of it is to be hidden: %s", got)
	}
}

// What was read without its values is not taken for the values.
func TestRedactedIsRefused(t *testing.T) {
	t.Parallel()
	const written = "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: a}\nspec: {url: 'oci://h.example/a', pluginConfig: {users: [{password: canary}]}}\n"
	for _, text := range [][]byte{Redact([]byte(written)), first(Hide([]byte(written), func([]byte) [][]string { return [][]string{{"users", "0", "password"}} }))} {
		docs := Decode(text, "")
		if len(docs) != 1 || len(docs[0].Problems) != 1 || docs[0].Problems[0].Field != "spec.pluginConfig.users[0].password" {
			t.Errorf("%s: %+v", text, docs)
		}
	}
}

func first(b []byte, _ bool) []byte { return b }
