package pages

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Block is a fenced block of a page with which its reader does something: it has commands,
// or is a file.
type Block struct {
	Page  string // from the repository's root
	Line  int    // of the fence
	Under []string
	// What comments before the block say of it, see Run.
	File  string
	On    string
	Stays bool
	Until string
	Exit  string

	steps []step
}

// step is what is given to a shell at once, and lines of what it prints.
type step struct {
	text  string
	wants []string
}

var (
	fence     = regexp.MustCompile("^([ \t]*)```([a-z+]*)$")
	heading   = regexp.MustCompile(`^(#{1,6}) (.+)$`)
	directive = regexp.MustCompile(`^[ \t]*<!-- (output|stays|(file|on|until|exit): (.+?)) -->$`)
	// status is a comment behind a command that prints the status of an answer.
	status = regexp.MustCompile(`(?m)^.*\bcurl .*# ([1-5][0-9][0-9])$`)
)

// Read finds the blocks of a page.
func Read(root, page string) ([]Block, error) {
	text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(page)))
	if err != nil {
		return nil, err
	}
	return read(page, string(text)), nil
}

func read(page, text string) (blocks []Block) {
	var under []string
	next, output := Block{}, false // what comments say of the block that comes
	lines := strings.Split(text, "\n")
	for i := 0; i < len(lines); i++ {
		if open := fence.FindStringSubmatch(lines[i]); open != nil {
			begin := i + 1
			for i++; i < len(lines) && strings.TrimSpace(lines[i]) != "```"; i++ {
				lines[i] = strings.TrimPrefix(lines[i], open[1])
			}
			body := lines[begin:min(i, len(lines))]
			next.Page, next.Line, next.Under = page, begin, slices.Clone(under)
			if output && len(blocks) > 0 {
				steps := blocks[len(blocks)-1].steps
				steps[len(steps)-1].wants = append(steps[len(steps)-1].wants, body...)
			} else if next.steps = stepsOf(open[2], next.File, body); next.steps != nil {
				blocks = append(blocks, next)
			}
			next, output = Block{}, false
		} else if said := directive.FindStringSubmatch(lines[i]); said != nil {
			output = output || said[1] == "output"
			next.say(said[1], said[2], said[3])
		} else if h := heading.FindStringSubmatch(lines[i]); h != nil {
			under = append(under[:min(len(under), len(h[1])-1)], h[2])
		}
	}
	return blocks
}

// say takes what one comment says of the block that comes.
func (b *Block) say(word, name, value string) {
	switch name {
	case "file":
		b.File = value
	case "on":
		b.On = value
	case "until":
		b.Until = value
	case "exit":
		b.Exit = value
	default:
		b.Stays = b.Stays || word == "stays"
	}
}

// stepsOf gives what is done with a block: a text for a shell, or the commands behind the
// prompts of a console with what is printed below each. Other blocks are read only.
func stepsOf(language, file string, body []string) (steps []step) {
	text := strings.Join(body, "\n") + "\n"
	switch {
	case file != "":
		return []step{{text: text}}
	case language == "sh":
		s := step{text: text}
		for _, code := range status.FindAllStringSubmatch(text, -1) {
			s.wants = append(s.wants, code[1])
		}
		return []step{s}
	case language != "console":
		return nil
	}
	for _, line := range body {
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			steps = append(steps, step{text: command + "\n"})
		} else if len(steps) > 0 {
			steps[len(steps)-1].wants = append(steps[len(steps)-1].wants, line)
		}
	}
	return steps
}

// anything are the parts of a line that stand for others of their kind, and what those are.
var anything = []struct {
	shown  *regexp.Regexp
	others string
}{
	{regexp.MustCompile(`^\.\.\.`), `.*`},
	{regexp.MustCompile(`^20\d\d-\d\d-\d\dT[\d:.]+Z`), `20\d\d-\d\d-\d\dT[\d:.]+Z`},
	{regexp.MustCompile(`^[0-9a-f]{12,64}\b`), `[0-9a-f]{12,64}`},
	{regexp.MustCompile(`^\d+(?:ms|[smhd])\b`), `\d+(?:ms|[smhd])`},
}

// word begins what is left of a line.
var word = regexp.MustCompile(`^(?:\w+|\s+|.)`)

// pattern is what a line has to match.
func pattern(line string) *regexp.Regexp {
	var p strings.Builder
	for rest := strings.TrimSpace(line); rest != ""; {
		part := word.FindString(rest)
		as := regexp.QuoteMeta(part)
		if strings.TrimSpace(part) == "" {
			as = `\s+`
		}
		for _, a := range anything {
			if shown := a.shown.FindString(rest); shown != "" {
				part, as = shown, a.others
				break
			}
		}
		p.WriteString(as)
		rest = rest[len(part):]
	}
	return regexp.MustCompile(`^\s*` + p.String() + `\s*$`)
}

// missing looks for lines in what was printed, one after the other, and gives the first
// that is not there. In a line "..." is anything, blanks do not count, and digests, times
// and ages stand for any others.
func missing(out string, wants []string) (line string, found bool) {
	lines := strings.Split(out, "\n")
	for _, want := range wants {
		if strings.TrimSpace(want) == "" {
			continue
		}
		at := slices.IndexFunc(lines, pattern(want).MatchString)
		if at < 0 {
			return want, true
		}
		lines = lines[at+1:]
	}
	return "", false
}
