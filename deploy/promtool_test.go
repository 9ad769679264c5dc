//go:build promtool

package deploy_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	yaml "go.yaml.in/yaml/v3"
)

// promtool reads and tests the rules, and reads every query of the dashboard: "make
// test-rules".
func TestPromtool(t *testing.T) {
	promtool, err := filepath.Abs("../.tools/promtool")
	if err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) {
		t.Helper()
		out, err := exec.Command(promtool, args...).CombinedOutput()
		if err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	run("check", "rules", "--lint=all", "--lint-fatal", rulesFile)
	run("test", "rules", testsFile)

	var b board
	load(t, dashFile, json.Unmarshal, &b)
	queries := 0
	var recorded []map[string]string
	for _, p := range b.Panels {
		for _, q := range p.Targets {
			expr := strings.NewReplacer("$__rate_interval", "5m").Replace(q.Expr)
			recorded = append(recorded, map[string]string{"record": fmt.Sprintf("query:n%d", queries), "expr": expr})
			queries++
		}
	}
	text, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": recorded}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "dashboard.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if queries < 20 {
		t.Errorf("%d queries", queries)
	}
	run("check", "rules", file)
}
