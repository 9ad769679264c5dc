package main

import (
	"flag"
	"fmt"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/testenv/pages"
)

var update = flag.Bool("update", false, "write docs/reference/chandler-agent.md anew")

// docs/reference/chandler-agent.md is what the commands say of themselves.
func TestReference(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	b.WriteString("# chandler-agent: all commands\n\nWhat `--help` says of each. [The agent, and who starts Envoy](../agent.md) says when to use which.\n\n" +
		"<!-- made by: go test ./cmd/chandler-agent -run TestReference -update -->\n")
	for _, command := range []string{"", "bootstrap", "status", "bypass", "store"} {
		var out strings.Builder
		code := run(append(strings.Fields(command), "--help"), []string{"HOME=~"}, &out, &out)
		if code != 0 || out.Len() == 0 {
			t.Fatalf("%s --help ends with %d: %s", command, code, out.String())
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		for i := range lines {
			lines[i] = strings.TrimRight(strings.ReplaceAll(lines[i], "\t", "    "), " ")
		}
		fmt.Fprintf(&b, "\n## %s\n\n```text\n%s\n```\n", strings.TrimSpace("chandler-agent "+command), strings.Join(lines, "\n"))
	}
	pages.Held(t, "docs/reference/chandler-agent.md", b.String(), *update)
}
