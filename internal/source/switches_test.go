package source_test

import (
	"encoding/json"
	"strings"
	"testing"

	kubernetes "sigs.k8s.io/yaml"

	"chandler.dev/chandler/internal/source"
)

// A resource means what it means to kubectl, which reads the words of YAML 1.1 for booleans:
// alone, as an item of a List, and when it is read again as it was kept.
func TestConfigMeansWhatItMeansToKubectl(t *testing.T) {
	t.Parallel()
	const resource = `apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: p, namespace: ns}
spec:
  url: oci://reg.example/a
  pluginConfig:
    plain: [y, Y, yes, Yes, YES, on, On, ON, n, N, no, No, NO, off, Off, OFF, yEs, oN, true, "null", ~]
    quoted: ["y", 'yes', "on", "no", !!str off, !!str yes]
    numbers: [010, 08, 0o17, 0b11, 0x1F, 1_000, -010, 1.0, 1., .5, !!float 1, 1:30, 2001-01-01]
    below: {"deep": [{"er": yes}, {"er": "yes"}], "text": 'off'}
`
	var kubectl struct {
		Spec struct{ PluginConfig json.RawMessage }
	}
	if err := kubernetes.Unmarshal([]byte(resource), &kubectl); err != nil {
		t.Fatal(err)
	}
	list := "apiVersion: v1\nkind: List\nitems:\n- " + strings.ReplaceAll(strings.TrimSpace(resource), "\n", "\n  ")
	for name, text := range map[string]string{"alone": resource, "in a list": list} {
		docs := source.Decode([]byte(text), "ns")
		if len(docs) != 1 || docs[0].Plugin == nil {
			t.Fatalf("%s: %s", name, show(docs))
		}
		again := source.Decode(docs[0].Manifest, "ns")
		for _, d := range []source.Document{docs[0], again[0]} {
			if got, want := string(d.Plugin.Wasm.Config), string(kubectl.Spec.PluginConfig); got != want {
				t.Errorf("%s\n got %s\nwant %s", name, got, want)
			}
		}
	}
}

// Where text is wanted, such a word is text: kubectl would have it in quotes.
func TestWordsForBooleansAreTextElsewhere(t *testing.T) {
	t.Parallel()
	p := accept(t, wasmPlugin("url: oci://reg.example/a\nselector: {matchLabels: {canary: yes}}\nvmConfig: {env: [{name: MODE, value: on}]}"))
	if got := p.Selector["canary"] + " " + p.Wasm.Env[0].Value; got != "yes on" {
		t.Error(got)
	}
}
