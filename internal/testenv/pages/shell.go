package pages

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Shell is a shell that is given one text after the other: what one sets, another finds.
type Shell struct {
	// Command starts it; "sh" if there is none. It reads from standard input; "ip netns
	// exec NAME sh" is one too.
	Command []string
	Dir     string
	Env     []string // all of it; nil for the test's own

	once  sync.Once
	begun error
	stdin io.WriteCloser
	lines chan string // what it prints; closed at its end
}

// mark is what the shell prints when it is done with a text, with its exit code if it
// ended by it.
const mark = "=== pages: done"

// maxPrinted bounds what is kept of what one text prints.
const maxPrinted = 4 << 20

// start starts the shell, for the time of a test.
func (s *Shell) start(t testing.TB) error {
	s.once.Do(func() { s.begun = s.launch(t) })
	return s.begun
}

func (s *Shell) launch(t testing.TB) error {
	words := s.Command
	if len(words) == 0 {
		words = []string{"sh"}
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Dir, cmd.Env = s.Dir, s.Env
	cmd.Stdout, cmd.Stderr = writer, writer
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if s.stdin, err = cmd.StdinPipe(); err == nil {
		err = cmd.Start()
	}
	writer.Close()
	if err != nil {
		reader.Close()
		return err
	}
	s.lines = make(chan string, 1024)
	over := make(chan struct{})
	go func() {
		defer close(s.lines)
		text := bufio.NewReaderSize(reader, 64<<10)
		for {
			line, err := text.ReadString('\n')
			if line != "" {
				select {
				case s.lines <- line:
				case <-over: // nobody asks any more
				}
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(over)
		s.stdin.Close()
		endGroup(cmd)
		reader.Close()
	})
	_, err = fmt.Fprintf(s.stdin, "set -e; trap 'code=$?; echo; echo \"%s $code\"' EXIT\n", mark)
	return err
}

// endGroup asks the shell and all that it started to end, and sees to it.
func endGroup(cmd *exec.Cmd) {
	group := -cmd.Process.Pid
	gone := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(gone)
	}()
	_ = syscall.Kill(group, syscall.SIGTERM)
	for range 600 {
		if syscall.Kill(group, 0) != nil {
			break
		}
		time.Sleep(50 * time.Millisecond) // between looks at whether all have ended
	}
	_ = syscall.Kill(group, syscall.SIGKILL)
	<-gone
}

// give gives the shell a text, and what was printed meanwhile.
func (s *Shell) give(text string, within time.Duration) (string, error) {
	script := fmt.Sprintf("eval %s </dev/null\necho; echo '%s'\n", quoted(text), mark)
	if _, err := io.WriteString(s.stdin, script); err != nil {
		return "", err
	}
	var out strings.Builder
	late := time.NewTimer(within)
	defer late.Stop()
	for {
		select {
		case line, ok := <-s.lines:
			// What goes on in the background may have begun the line.
			before, said, done := strings.Cut(line, mark)
			if done {
				out.WriteString(before)
			}
			switch {
			case !ok:
				return out.String(), errors.New("the shell ended")
			case done && strings.TrimSpace(said) != "":
				return out.String(), fmt.Errorf("exit code %s", strings.TrimSpace(said))
			case done:
				return out.String(), nil
			case out.Len()+len(line) > maxPrinted:
				return out.String(), errors.New("it prints too much")
			}
			out.WriteString(line)
		case <-late.C:
			return out.String(), fmt.Errorf("not done within %s", within)
		}
	}
}

func quoted(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// script is what is given to a shell for one step of a block.
func (b *Block) script(text string, within time.Duration) string {
	switch {
	case b.File != "":
		return fmt.Sprintf("mkdir -p \"$(dirname %s)\"\nprintf %%s %s >%s\n", b.File, quoted(text), b.File)
	case b.Stays:
		head, last := lastCommand(text)
		text = head + "{ " + last + "\n} &\n"
	case b.Exit != "":
		head, last := lastCommand(text)
		text = head + "pages_code=0\n{ " + last + "\n} || pages_code=$?\necho \"exit code $pages_code\"; [ $pages_code = " + b.Exit + " ]\n"
	}
	if b.Until == "" {
		return text
	}
	goesOn := "true"
	if b.Stays {
		goesOn = "kill -0 $!"
	}
	return text + fmt.Sprintf(`pages_end=$(($(date +%%s) + %[2]d))
until ( %[1]s ) >/dev/null 2>&1; do
  %[4]s
  [ $(date +%%s) -lt $pages_end ] || { echo "never so: "%[3]s; ( %[1]s ); exit 1; }
  sleep 0.1
done
`, b.Until, int(within.Seconds())*9/10, quoted(b.Until), goesOn)
}

// lastCommand takes the last line, with those that it goes on from, off a text.
func lastCommand(text string) (head, last string) {
	lines := strings.SplitAfter(strings.TrimRight(text, "\n"), "\n")
	at := len(lines) - 1
	for at > 0 && strings.HasSuffix(lines[at-1], "\\\n") {
		at--
	}
	return strings.Join(lines[:at], ""), strings.Join(lines[at:], "")
}

// run takes a block's steps one after the other.
func (s *Shell) run(b Block, names *strings.Replacer, within time.Duration) error {
	within = cmp.Or(within, blockTime)
	for i, st := range b.steps {
		text := st.text
		if i == len(b.steps)-1 {
			text = b.script(text, within)
		}
		text = names.Replace(text)
		out, err := s.give(text, within)
		if err != nil {
			return fmt.Errorf("%w, of\n%s\nwhich printed\n%s", err, text, out)
		}
		wants := make([]string, len(st.wants))
		for i, w := range st.wants {
			wants[i] = names.Replace(w)
		}
		if line, lacks := missing(out, wants); lacks {
			return fmt.Errorf("the output does not have %q where it should be:\n%s\nprinted\n%s", line, text, out)
		}
	}
	return nil
}

// blockTime bounds one step of a block where the world says nothing.
const blockTime = 2 * time.Minute
