package deploy_test

import (
	"bytes"
	"os"
	"reflect"
	"testing"

	kyaml "sigs.k8s.io/yaml"
)

// What docs/any-control-plane.md shows of Envoy Gateway on a machine is of the example that
// make e2e-gateway runs.
func TestEnvoyGatewayExample(t *testing.T) {
	t.Parallel()
	for name, words := range map[string][]string{
		"config.yaml":            {"kind: EnvoyGateway\n"},
		"resources/gateway.yaml": {"kind: EnvoyProxy\n", "type: Host\n"},
	} {
		var shown map[string]any
		strict(t, snippet(t, words...), &shown)
		text, err := os.ReadFile("../examples/envoy-gateway/" + name)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, document := range bytes.Split(text, []byte("\n---\n")) {
			var run map[string]any
			if err := kyaml.Unmarshal(document, &run); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			found = found || within(shown, run)
		}
		if !found {
			t.Errorf("%s has not what the page shows: %v", name, shown)
		}
	}
}

// within tells whether all of a is in b, which may have more.
func within(a, b any) bool {
	small, ok := a.(map[string]any)
	if !ok {
		return reflect.DeepEqual(a, b)
	}
	large, _ := b.(map[string]any)
	for key := range small {
		if !within(small[key], large[key]) {
			return false
		}
	}
	return len(large) > 0
}
