package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	yaml "go.yaml.in/yaml/v3"
)

var (
	shellBlock = regexp.MustCompile("(?s)```sh\n(.*?)```")
	codeSpan   = regexp.MustCompile("`((?:chandler) [^`]+)`")
	quotedWord = regexp.MustCompile(`'([^']*)'|(\S+)`)
)

// Every command of the pages for operators is one that there is, with flags that it has.
// (Those of the guides for authors are run, see TestGuides.)
func TestOperatorsCommands(t *testing.T) {
	t.Parallel()
	for page, least := range map[string]int{"operating.md": 30, "rollouts.md": 0} {
		text, err := os.ReadFile(filepath.Join("../../docs", page))
		if err != nil {
			t.Fatal(err)
		}
		var commands []string
		for _, block := range shellBlock.FindAllStringSubmatch(string(text), -1) {
			for line := range strings.Lines(block[1]) {
				if line, _, _ = strings.Cut(line, " #"); strings.HasPrefix(line, "chandler ") {
					commands = append(commands, line)
				}
			}
		}
		for _, span := range codeSpan.FindAllStringSubmatch(string(text), -1) {
			commands = append(commands, span[1])
		}
		if len(commands) < least {
			t.Errorf("%s has %d commands", page, len(commands))
		}
		for _, c := range commands {
			if err := understood(c); err != nil {
				t.Errorf("%s: %s: %v", page, strings.TrimSpace(c), err)
			}
		}
	}
	for _, wrong := range []string{"chandler stats", "chandler rollout promot x", "chandler disable x --because y"} {
		if understood(wrong) == nil {
			t.Errorf("%s is understood", wrong)
		}
	}
}

// understood tells whether a command would begin.
func understood(command string) error {
	var words []string
	for _, m := range quotedWord.FindAllStringSubmatch(command, -1) {
		words = append(words, m[1]+m[2])
	}
	e := &env{getenv: func(string) string { return "" }, stdin: strings.NewReader(""), stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}}
	root := rootCommand(e)
	cmd, rest, err := root.Find(words[1:])
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
