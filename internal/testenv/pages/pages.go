// Package pages finds the commands that the project's pages tell their readers to give,
// so that tests of the programs can see whether these would understand them.
package pages

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Command is one that a page tells.
type Command struct {
	Page string
	// Words are those behind the program's name.
	Words []string
}

func (c Command) String() string { return c.Page + ": " + strings.Join(c.Words, " ") }

var (
	block = regexp.MustCompile("(?ms)^[ \t]*```([a-z]*)\n(.*?)^[ \t]*```")
	span  = regexp.MustCompile("`[^`]+`")
	// Marks of what may be left out, or is one of several; in a table a stroke has a
	// backslash before it.
	choice = strings.NewReplacer("[", "", "]", "", `\|`, " ", "...", "")
)

// Commands gives the commands of a program in README.md and docs/*.md below root. Those
// in blocks of "sh", and behind the prompts of "console", are as in a shell; those in the
// text may have marks of what can be left out. A program may have two words, as "kubectl
// chandler" has.
func Commands(root, program string) ([]Command, error) {
	files, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		return nil, err
	}
	var found []Command
	for _, file := range append(files, filepath.Join(root, "README.md")) {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for _, words := range of(string(text), strings.Fields(program)) {
			found = append(found, Command{filepath.Base(file), words})
		}
	}
	return found, nil
}

// of gives the commands of a program in one page.
func of(page string, program []string) (found [][]string) {
	for _, b := range block.FindAllStringSubmatch(page, -1) {
		switch script := b[2]; b[1] {
		case "console":
			script = prompted(script)
			fallthrough
		case "sh":
			found = append(found, called(script, program)...)
		}
	}
	for _, s := range span.FindAllString(block.ReplaceAllString(page, ""), -1) {
		found = append(found, called(choice.Replace(strings.ReplaceAll(strings.Trim(s, "`"), "\n", " ")), program)...)
	}
	return found
}

// prompted keeps what is typed behind prompts.
func prompted(session string) string {
	var typed []string
	for line := range strings.Lines(session) {
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			typed = append(typed, command)
		}
	}
	return strings.Join(typed, "")
}

// called gives the words of each command of a script that calls the program, also where
// something stands before it: sudo, a variable, the folder that it is in.
func called(script string, program []string) (found [][]string) {
	for _, words := range commands(script) {
		for len(words) > 0 && (words[0] == "sudo" || strings.Contains(words[0], "=")) {
			words = words[1:]
		}
		if len(words) < len(program) || filepath.Base(words[0]) != program[0] {
			continue
		}
		if rest := words[len(program):]; strings.Join(words[1:len(program)], " ") == strings.Join(program[1:], " ") {
			found = append(found, rest)
		}
	}
	return found
}

// commands splits a script into simple commands of words, as a shell does as far as pages
// need it: quotes, comments, lines that go on, pipes and lists, redirections, commands in
// the place of words.
func commands(script string) (all [][]string) {
	var words []string
	var word strings.Builder
	begun, skip := false, false
	endWord := func() {
		if begun && !skip {
			words = append(words, word.String())
		}
		skip = skip && !begun
		begun = false
		word.Reset()
	}
	endCommand := func() {
		endWord()
		if len(words) > 0 {
			all = append(all, words)
		}
		words, skip = nil, false
	}
	for i := 0; i < len(script); i++ {
		switch c := script[i]; {
		case c == '\\' && i+1 < len(script):
			i++
			if script[i] != '\n' {
				begun = true
				word.WriteByte(script[i])
			}
		case c == '\'' || c == '"':
			end := strings.IndexByte(script[i+1:], c)
			if end < 0 {
				end = len(script) - i - 1
			}
			begun = true
			word.WriteString(script[i+1 : i+1+end])
			i += end + 1
		case c == '#' && !begun:
			for i+1 < len(script) && script[i+1] != '\n' {
				i++
			}
		case strings.IndexByte("\n;|&()", c) >= 0:
			endCommand()
		case c == '<' || c == '>':
			if w := word.String(); len(w) == 1 && w[0] >= '0' && w[0] <= '9' {
				begun = false // whose output
				word.Reset()
			}
			endWord()
			skip = true
		case c == ' ' || c == '\t':
			endWord()
		default:
			begun = true
			word.WriteByte(c)
		}
	}
	endCommand()
	return all
}
