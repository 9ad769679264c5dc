package pages

import (
	"strings"
	"testing"
	"time"
)

const samplePage = "# A page\n\n## First\n" +
	"```sh\nWORD=said; cd /\nmkdir -p \"$HERE/sub\"\n```\nThat gives\n<!-- file: $HERE/sub/note -->\n```yaml\nit's: \"$5\"\n```\n" +
	"1. In a list:\n   <!-- on: other -->\n   ```console\n   $ echo one 0123456789ab; echo two\n   one a0123456789b\n   $ sleep 0; cat \"$HERE/sub/note\"\n   it's: ...\n   ```\n" +
	"### Below\n```sh\necho \"$WORD by example.org in $PWD\"\n```\n<!-- output -->\n```\nsaid by ... in /\n```\n" +
	"## Second\n<!-- stays -->\n<!-- until: test -e \"$HERE/sub/up\" -->\n```sh\ntrue\nsleep 0.2; touch \\\n  \"$HERE/sub/up\"; sleep 100   # goes on\n```\n" +
	"<!-- exit: 3 -->\n```sh\ntrue\nsh -c 'exit 3'   # as it should\n```\n```go\nnothing()\n```\n"

func TestPageIsRun(t *testing.T) {
	t.Parallel()
	blocks := read("p.md", samplePage)
	if len(blocks) != 6 {
		t.Fatalf("%+v", blocks)
	}
	if b := blocks[3]; strings.Join(b.Under, ", ") != "A page, First, Below" || b.Line != 22 || b.Page != "p.md" {
		t.Errorf("%+v", b)
	}
	dir := t.TempDir()
	shells := map[string]*Shell{"": {Dir: dir, Env: []string{"PATH=/usr/bin:/bin", "HERE=" + dir}}, "other": {Env: []string{"PATH=/usr/bin:/bin", "HERE=" + dir}}}
	names := strings.NewReplacer("example.org", "nobody here")
	for _, b := range blocks {
		s := shells[b.On]
		if err := s.start(t); err != nil {
			t.Fatal(err)
		}
		if err := s.run(b, names, 0); err != nil {
			t.Errorf("line %d: %v", b.Line, err)
		}
	}
}

// A block is done also when something else has begun the line in which that is said.
func TestOutputOfTheBackground(t *testing.T) {
	t.Parallel()
	s := &Shell{Dir: t.TempDir()}
	if err := s.start(t); err != nil {
		t.Fatal(err)
	}
	const page = "```sh\necho() { printf 'half a line '; printf '%s\\n' \"$*\"; }\necho whole\n```\n<!-- output -->\n```\nhalf a line whole\nhalf a line\n```\n"
	if err := s.run(read("p.md", page)[0], strings.NewReplacer(), time.Minute); err != nil {
		t.Error(err)
	}
}

// What is not as the page says is told.
func TestPageIsHeld(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ page, want string }{
		"a command fails":       {"```sh\necho hello\nfalse\necho no\n```\n", "exit code 1"},
		"a command is unknown":  {"```sh\nno-such-command-here\n```\n", "exit code 127"},
		"a variable of nowhere": {"```sh\nset -u; echo $NOWHERE\n```\n", "exit code 2"},
		"the end":               {"```sh\nexit 0\n```\n", "exit code 0"},
		"another output":        {"```console\n$ echo 5m\n5 minutes\n```\n", `does not have "5 minutes"`},
		"an order":              {"```sh\nprintf 'b\\na\\n'\n```\n<!-- output -->\n```\na\nb\n```\n", `does not have "b"`},
		"a status":              {"```sh\ncurl() { echo 200; }\ncurl x   # 401\n```\n", `does not have "401"`},
		"an end too early":      {"<!-- stays -->\n<!-- until: false -->\n```sh\nexit 5\n```\n", "exit code 1"},
		"no exit code":          {"<!-- exit: 3 -->\n```sh\ntrue\n```\n", "exit code 1"},
		"a hang":                {"```sh\nsleep 60\n```\n", "not done within 500ms"},
		"a foreground server":   {"<!-- until: true -->\n```sh\nsleep 60\n```\n", "not done within 500ms"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &Shell{Dir: t.TempDir()}
			if err := s.start(t); err != nil {
				t.Fatal(err)
			}
			patience := time.Minute
			if strings.Contains(c.want, "not done") {
				patience = 500 * time.Millisecond
			}
			err := s.run(read("p.md", c.page)[0], strings.NewReplacer(), patience)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestLinesOfAnOutput(t *testing.T) {
	t.Parallel()
	const out = "NAME  AGE\na     12s  41d07aa09f2c 2026-11-28T09:00:00Z\nend.\n"
	for _, wants := range []string{"NAME AGE\nend.", "a 3h 0f2c9941d07a 2025-01-01T00:00:00.5Z", "...AGE\n\na ..."} {
		if line, lacks := missing(out, strings.Split(wants, "\n")); lacks {
			t.Errorf("%q: no %q", wants, line)
		}
	}
	for _, wants := range []string{"end.\nNAME AGE", "NAME", "endx", "a 3h 0f2c9941d07 ..."} {
		if _, lacks := missing(out, strings.Split(wants, "\n")); !lacks {
			t.Errorf("%q is found", wants)
		}
	}
}
