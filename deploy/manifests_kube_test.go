//go:build kube

package deploy_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/testenv/kube"
)

// TestExamples: a real API server takes the examples and knows every field.
func TestExamples(t *testing.T) {
	c := kube.Start(t, "../.tools")
	apply := func(stdin string, args ...string) string {
		t.Helper()
		out, err := c.Kubectl(t.Context(), stdin, append([]string{"apply", "--server-side", "--validate=strict"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	apply("", "-f", "crds")
	if _, err := c.Kubectl(t.Context(), "", "wait", "--for=condition=Established", "--timeout=60s", "crd/wasmplugins.extensions.istio.io"); err != nil {
		t.Fatal(err)
	}
	if err := c.Served(t.Context(), "wasmplugins"); err != nil {
		t.Fatal(err)
	}
	files := []string{"gateway.yaml", "bookinfo.yaml", "basic-auth.yaml"} // namespaces come first
	for _, name := range files {
		text, err := os.ReadFile(filepath.Join(examples, name))
		if err != nil {
			t.Fatal(err)
		}
		if out := apply(string(text), "-f", "-"); strings.Count(out, "serverside-applied") != len(objects(t, text)) || strings.Contains(out, "Warning") {
			t.Errorf("%s: %s", name, out)
		}
		apply(string(text), "-f", "-", "--dry-run=server")
	}
	if all, err := filepath.Glob(examples + "/*.yaml"); err != nil || len(all) != len(files) {
		t.Errorf("%v, %v: applied are %v", all, err, files)
	}
}
