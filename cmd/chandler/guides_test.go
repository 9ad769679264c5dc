//go:build authors

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/compilers"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/registry"
)

// guideTime bounds the commands of a guide. They compile some plugins in C++.
const guideTime = 10 * time.Minute

// TestGuides runs every command of the guides for authors, each guide in a folder of its
// own, one block after the other in one shell. In a guide
//
//   - a block of "sh" is run, and must not fail;
//   - a block after <!-- file: NAME --> is written to that file first;
//   - a block after <!-- output --> is held against what the block before it printed: its
//     lines are in there, in their order, where "..." is anything and blanks do not count.
//
// The registry of the guides, localhost:5000, is one of the test's.
func TestGuides(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../docs/authoring/*.md")
	if err != nil || len(files) < 4 {
		t.Fatalf("%v %v", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		blocks := readGuide(string(text))
		if len(blocks) == 0 {
			continue // a reference, without commands
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			runGuide(t, blocks)
		})
	}
}

// guideBlock is a block of a guide: commands, or with a name a file.
type guideBlock struct {
	line  int
	file  string
	text  string
	wants []string // lines of the output
}

var (
	fencePattern = regexp.MustCompile("^```([a-z+]*)$")
	filePattern  = regexp.MustCompile(`^<!-- file: (\S+) -->$`)
)

// readGuide finds the blocks of a guide that mean something to the test.
func readGuide(text string) (blocks []guideBlock) {
	before, language, begin := "", "", 0
	var body []string
	for i, line := range strings.Split(text, "\n") {
		fence := fencePattern.FindStringSubmatch(line)
		switch {
		case begin == 0 && fence != nil:
			language, begin, body = fence[1], i+1, nil
		case begin == 0 && line != "":
			before = line
		case begin > 0 && line != "```":
			body = append(body, line)
		case begin > 0:
			if name := filePattern.FindStringSubmatch(before); name != nil {
				blocks = append(blocks, guideBlock{line: begin, file: name[1], text: strings.Join(body, "\n") + "\n"})
			} else if language == "sh" {
				blocks = append(blocks, guideBlock{line: begin, text: strings.Join(body, "\n") + "\n"})
			} else if before == "<!-- output -->" && len(blocks) > 0 {
				blocks[len(blocks)-1].wants = body
			}
			before, begin = "", 0
		}
	}
	return blocks
}

// guideMark is before the output of each block.
const guideMark = "=== line "

func runGuide(t *testing.T, blocks []guideBlock) {
	reg, err := registry.Start(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reg.Close() })
	dir := t.TempDir()
	var script strings.Builder
	for i, b := range blocks {
		text := strings.ReplaceAll(b.text, "localhost:5000", reg.Addr)
		fmt.Fprintf(&script, "echo '%s%d'\n", guideMark, b.line)
		if b.file == "" {
			script.WriteString(text)
			continue
		}
		name := fmt.Sprintf("%s/.file%d", dir, i)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&script, "mkdir -p \"$(dirname %s)\" && cp %s %s\n", b.file, name, b.file)
	}
	ctx, cancel := context.WithTimeout(t.Context(), guideTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-e")
	cmd.Dir = dir
	cmd.WaitDelay = time.Second
	cmd.Stdin = strings.NewReader(script.String())
	cmd.Env = guideEnviron(t)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	failed := cmd.Run()
	said := strings.ReplaceAll(out.String(), reg.Addr, "localhost:5000")
	if failed != nil {
		t.Fatalf("%v\n%s", failed, said)
	}
	parts := strings.Split(said, guideMark)[1:]
	if len(parts) != len(blocks) {
		t.Fatalf("%d of %d blocks were run\n%s", len(parts), len(blocks), said)
	}
	for i, b := range blocks {
		if missing, ok := guideOutput(parts[i], b.wants); !ok {
			t.Errorf("line %d: the output does not have %q where it should be:\n%s", b.line, missing, parts[i])
		}
	}
}

// guideEnviron has the compilers and an Envoy in PATH, where chandler is already.
func guideEnviron(t *testing.T) []string {
	bin := t.TempDir()
	envoy, err := filepath.Abs(module.Envoy(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(envoy, filepath.Join(bin, "envoy")); err != nil {
		t.Fatal(err)
	}
	environ := compilers.Environ(t, "zig")
	last := environ[len(environ)-1]
	return append(environ, last+string(os.PathListSeparator)+bin)
}

// guideOutput looks for lines in an output, one after the other.
func guideOutput(out string, wants []string) (missing string, ok bool) {
	lines := strings.Split(out, "\n")
	for _, want := range wants {
		words := strings.Fields(want)
		for i, w := range words {
			words[i] = strings.ReplaceAll(regexp.QuoteMeta(w), `\.\.\.`, `.*`)
		}
		pattern := regexp.MustCompile(`^\s*` + strings.Join(words, `\s+`) + `\s*$`)
		at := 0
		for at < len(lines) && !pattern.MatchString(lines[at]) {
			at++
		}
		if at == len(lines) {
			return want, false
		}
		lines = lines[at+1:]
	}
	return "", true
}
