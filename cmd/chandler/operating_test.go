package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler/internal/testenv/pages"
)

// Every command that a page tells is one that there is, with flags that it has. (Those of
// the guides for authors are run, see TestGuides.)
func TestPagesCommands(t *testing.T) {
	t.Parallel()
	for _, program := range []struct {
		name  string
		least int // of them are in the pages
	}{{"chandler", 100}, {"kubectl chandler", 5}} {
		commands, err := pages.Commands("../..", program.name)
		if err != nil || len(commands) < program.least {
			t.Fatalf("%s: %d commands, %v", program.name, len(commands), err)
		}
		for _, c := range commands {
			if err := understood(c.Words, program.name != "chandler"); err != nil {
				t.Errorf("%s %v: %v", program.name, c, err)
			}
		}
	}
	for _, wrong := range []string{"stats", "rollout promot x", "disable x --because y"} {
		if understood(strings.Fields(wrong), false) == nil {
			t.Errorf("%s is understood", wrong)
		}
	}
	if understood([]string{"apply", "-f", "x"}, true) == nil {
		t.Error("kubectl chandler apply is understood")
	}
}

// understood tells whether a command would begin.
func understood(words []string, plugin bool) error {
	e := &env{getenv: func(string) string { return "" }, stdin: strings.NewReader(""), stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}, plugin: plugin}
	root := rootCommand(e)
	cmd, rest, err := root.Find(words)
	if err != nil {
		return err
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	if cmd.HasSubCommands() { // whose name might be misspelt
		return cmd.ValidateArgs(cmd.Flags().Args())
	}
	return nil
}

// The example of how to scrape is YAML, and keeps the plugins' namespace.
func TestScrapeExample(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "<!-- scrape -->\n```yaml\n")
	example, _, _ := strings.Cut(after, "```")
	var file struct {
		ScrapeConfigs []struct {
			HonorLabels bool `yaml:"honor_labels"`
		} `yaml:"scrape_configs"`
	}
	if err := yaml.Unmarshal([]byte(example), &file); err != nil || len(file.ScrapeConfigs) != 2 {
		t.Fatal(err, file)
	}
	for _, c := range file.ScrapeConfigs {
		if !c.HonorLabels {
			t.Error("a job takes the plugins' namespace for its own")
		}
	}
}
