package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"chandler.dev/chandler/internal/testenv/pages"
)

// docs/reference/chandler.md is what the commands say of themselves.
func TestReference(t *testing.T) {
	t.Parallel()
	var contents, rest strings.Builder
	var tell func(cmd *cobra.Command)
	tell = func(cmd *cobra.Command) {
		if cmd.Hidden || cmd.Name() == "help" || cmd.Name() == "completion" {
			return
		}
		path := cmd.CommandPath()
		fmt.Fprintf(&contents, "| [`%s`](#%s) | %s |\n", path, strings.ReplaceAll(path, " ", "-"), strings.ReplaceAll(cmd.Short, "|", `\|`))
		fmt.Fprintf(&rest, "\n## %s\n\n```text\n%s\n```\n", path, help(t, strings.Fields(path)))
		for _, below := range cmd.Commands() {
			tell(below)
		}
	}
	e := &env{getenv: noEnvironment, stdin: strings.NewReader(""), stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}}
	for _, cmd := range rootCommand(e).Commands() { // its own help lists them
		tell(cmd)
	}
	pages.Held(t, "docs/reference/chandler.md", `# chandler: all commands

What `+"`--help`"+` says of each. Many of them are explained in [what to ask at the command line](../cli.md) and
[operating](../operating.md). `+"`kubectl chandler`"+` has those that ask a cluster.

<!-- made by: go test ./cmd/chandler -run TestReference -update -->

| command | |
|---|---|
`+contents.String()+rest.String(), *update)
}

// help is what a command prints when it is asked for it.
func help(t *testing.T, words []string) string {
	t.Helper()
	var out bytes.Buffer
	if code := run(append(words, "--help"), noEnvironment, strings.NewReader(""), &out, &out); code != 0 {
		t.Fatalf("%v --help ends with %d:\n%s", words, code, out.String())
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}
