package main

import (
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/testenv/pages"
)

// Every command that a page tells is one that there is, with flags that it has.
func TestPagesCommands(t *testing.T) {
	t.Parallel()
	commands, err := pages.Commands("../..", "chandler-agent")
	if err != nil || len(commands) < 20 {
		t.Fatalf("%d commands, %v", len(commands), err)
	}
	for _, c := range commands {
		if why := misunderstood(c.Words); why != "" {
			t.Errorf("chandler-agent %v: %s", c, why)
		}
	}
	for _, wrong := range []string{"stats", "store list", "bypass x --because y", "--nod x -- -c envoy.yaml", "status --data x"} {
		if misunderstood(strings.Fields(wrong)) == "" {
			t.Errorf("%s is understood", wrong)
		}
	}
}

// misunderstood says why a command would not begin. Asked for its help at the end it has
// looked at all flags before, and does nothing.
func misunderstood(words []string) string {
	if i := slices.Index(words, "--"); i >= 0 {
		words = words[:i]
	}
	words = append(slices.Clone(words), "--help")
	var errs strings.Builder
	if code, ok := subcommand(words, nil, io.Discard, &errs); ok {
		if code != 0 {
			return errs.String()
		}
		return ""
	}
	if _, err := parse(words, nil, io.Discard, io.Discard); !errors.Is(err, flag.ErrHelp) {
		return "it is no command, or has no such flag"
	}
	return ""
}

// Every variable that a page tells is that of a flag.
func TestPagesVariables(t *testing.T) {
	t.Parallel()
	var help strings.Builder
	if _, err := parse([]string{"--help"}, nil, &help, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile(`CHANDLER_AGENT_([A-Z_]+[A-Z])\b`).FindAllStringSubmatch(string(text), -1) {
			told++
			if name := strings.ToLower(strings.ReplaceAll(name[1], "_", "-")); name != "name" && !regexp.MustCompile(`(?m)^  -`+name+`\b`).MatchString(help.String()) {
				t.Errorf("%s tells of a variable for --%s, which is no flag", filepath.Base(file), name)
			}
		}
	}
	if told < 20 {
		t.Errorf("only %d variables", told)
	}
}
