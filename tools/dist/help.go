package main

import (
	"bytes"
	"fmt"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"

	"chandler.dev/chandler/tools/dist/files"
)

// A program's own help is what its manual pages are made of, so that they say what it
// says, and the programs link nothing for it.

// section is a part of a help: what is indented below a line that ends with a colon. What
// else there is has no title, and is one section.
type section struct{ title, text string }

var isTitle = regexp.MustCompile(`^[A-Z][^:]*:$`)

func sections(help string) []section {
	all := []section{{}}
	at, blank := 0, true
	for _, line := range strings.Split(strings.TrimSpace(help), "\n") {
		switch {
		case blank && isTitle.MatchString(line):
			all = append(all, section{title: strings.TrimSuffix(line, ":")})
			at = len(all) - 1
			continue
		case line != "" && line[0] != ' ' && at != 0:
			at = 0
		}
		blank = line == ""
		all[at].text += line + "\n"
	}
	return all
}

// page is a manual page of section 1.
func page(name, short, help string, see []string, r release) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, ".TH %s 1 %s \"chandler %s\" \"chandler\"\n", roff(strings.ToUpper(name)), r.Time.Format("2006-01-02"), roff(r.Version))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", roff(name), roff(short))
	all := sections(help)
	slices.SortStableFunc(all, func(a, b section) int { return rank(a.title) - rank(b.title) })
	for _, s := range all {
		text := strings.Trim(s.text, "\n")
		title := strings.ToUpper(s.title)
		switch s.title {
		case "":
			title = "DESCRIPTION"
		case "Usage":
			title = "SYNOPSIS"
		case "Available Commands":
			title = "COMMANDS"
		}
		if text != "" {
			fmt.Fprintf(&b, ".SH %s\n.nf\n%s\n.fi\n", roff(title), roff(text))
		}
	}
	if len(see) > 0 {
		fmt.Fprintf(&b, ".SH SEE ALSO\n")
		for i, other := range see {
			end := ","
			if i == len(see)-1 {
				end = ""
			}
			fmt.Fprintf(&b, ".BR %s (1)%s\n", roff(other), end)
		}
	}
	return b.Bytes()
}

// rank puts the usage before what is said of it.
func rank(title string) int {
	if title == "Usage" {
		return 0
	}
	return 1
}

// roff is text as troff prints it.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}

// help is what a program says of itself, or of one of its commands.
func help(program string, words ...string) (string, error) {
	return output(program, append(words, "--help")...)
}

func output(program string, words ...string) (string, error) {
	cmd := exec.Command(program, words...)
	cmd.Env = []string{"HOME=~"} // for defaults that pages tell, so that they are not those of who builds it
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", program, strings.Join(words, " "), err, errs.Bytes())
	}
	return string(out), nil
}

var isCommand = regexp.MustCompile(`(?m)^  ([a-z-]+) +(.+)$`)

// cobraPages are the pages of a program made with cobra: one a command. Which there are
// is what its help lists.
func cobraPages(program string, r release) ([]files.File, error) {
	root := path.Base(program)
	var all []files.File
	var walk func(words []string, short string) error
	walk = func(words []string, short string) error {
		text, err := help(program, words...)
		if err != nil {
			return err
		}
		name := strings.Join(append([]string{root}, words...), "-")
		var see []string
		if len(words) > 0 {
			see = append(see, strings.Join(append([]string{root}, words[:len(words)-1]...), "-"))
		}
		for _, s := range sections(text) {
			if s.title == "" && short == "" {
				short = strings.TrimSuffix(strings.SplitN(s.text, "\n", 2)[0], ".")
			}
			if s.title != "Available Commands" {
				continue
			}
			for _, m := range isCommand.FindAllStringSubmatch(s.text, -1) {
				if m[1] == "help" {
					continue
				}
				below := append(slices.Clone(words), m[1])
				see = append(see, strings.Join(append([]string{root}, below...), "-"))
				if err := walk(below, m[2]); err != nil {
					return err
				}
			}
		}
		all = append(all, files.Text("man1/"+name+".1", page(name, short, text, see, r)))
		return nil
	}
	return all, walk(nil, "")
}

// plainPages is the page of a program whose help is one text, the first sentence of which
// says what it is.
func plainPages(program string, see []string, r release) ([]files.File, error) {
	name := path.Base(program)
	text, err := help(program)
	if err != nil {
		return nil, err
	}
	short, rest, _ := strings.Cut(text, "\n")
	short = strings.TrimSuffix(strings.TrimPrefix(short, name+" "), ".")
	return []files.File{files.Text("man1/"+name+".1", page(name, short, rest, see, r))}, nil
}

// completions are the scripts by which shells complete chandler's commands.
func completions(program string) ([]files.File, error) {
	var all []files.File
	for _, shell := range []struct{ name, file string }{{"bash", "chandler.bash"}, {"zsh", "_chandler"}, {"fish", "chandler.fish"}} {
		text, err := output(program, "completion", shell.name)
		if err != nil {
			return nil, err
		}
		all = append(all, files.Text(shell.file, text))
	}
	return all, nil
}
