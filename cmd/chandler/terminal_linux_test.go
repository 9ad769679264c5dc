package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/registry"
	"chandler.dev/chandler/internal/trust"
)

// newTerminal gives a terminal and the end at which a person sits.
func newTerminal(t *testing.T) (terminal, person *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return terminal, person
}

// silent waits until the terminal shows nothing of what is typed, as it does while a
// password is asked for.
func silent(person *os.File) bool {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) { // between looks
		if state, err := unix.IoctlGetTermios(int(person.Fd()), unix.TCGETS); err == nil && state.Lflag&unix.ECHO == 0 {
			return true
		}
	}
	return false
}

// onTerminal runs a command as a person does who types an answer to each question,
// and gives the exit code, standard output and what the terminal showed.
func onTerminal(t *testing.T, env map[string]string, answers []string, args ...string) (code int, stdout, shown string) {
	t.Helper()
	terminal, person := newTerminal(t)
	var screen bytes.Buffer
	done := make(chan struct{})
	go func() { // ends when the terminal is closed
		defer close(done)
		b := make([]byte, 1024)
		for {
			n, err := person.Read(b)
			screen.Write(b[:n])
			if len(answers) > 0 && strings.HasSuffix(screen.String(), ": ") && silent(person) {
				io.WriteString(person, answers[0]+"\n")
				answers = answers[1:]
			}
			if err != nil {
				return
			}
		}
	}()
	var out bytes.Buffer
	code = run(append([]string{"chandler"}, args...), func(k string) string { return env[k] }, terminal, &out, terminal)
	terminal.Close()
	<-done
	return code, out.String(), screen.String()
}

// TestTerminal: a person is asked for passwords, which are not shown, and sees how
// far a transfer is.
func TestTerminal(t *testing.T) {
	prefix := filepath.Join(t.TempDir(), "key")
	code, _, shown := onTerminal(t, nil, []string{"secret", "secret"}, "sign", "generate-key", "--output-prefix", prefix)
	if code != 0 || !strings.Contains(shown, "Password for the private key: ") || strings.Contains(shown, "secret") {
		t.Fatalf("exit %d: %q", code, shown)
	}
	private, err := os.ReadFile(prefix + ".key")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trust.ParseSigner(private, func() ([]byte, error) { return []byte("secret"), nil }); err != nil {
		t.Error(err)
	}
	if code, _, shown = onTerminal(t, nil, []string{"one", "other"}, "sign", "generate-key", "--output-prefix", prefix+"2"); code == 0 || !strings.Contains(shown, "not the same") {
		t.Errorf("exit %d: %q", code, shown)
	}
	reg, err := registry.Start(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	client := fetch.New(fetch.Config{Dir: t.TempDir()})
	defer client.Close()
	if _, err := client.Push(t.Context(), reg.Addr+"/p:v1", module.Append(), fetch.PushOptions{}); err != nil {
		t.Fatal(err)
	}
	code, stdout, shown := onTerminal(t, nil, []string{"secret"}, "sign", reg.Addr+"/p:v1", "--key", prefix+".key")
	if code != 0 || !strings.Contains(stdout, "/p:v1@sha256:") || strings.Contains(shown, "secret") {
		t.Errorf("exit %d: %q", code, shown)
	}
	code, stdout, shown = onTerminal(t, nil, nil, "pull", reg.Addr+"/p:v1", "-o", prefix+".wasm")
	if code != 0 || strings.Contains(stdout, "\x1b") || !strings.Contains(shown, "\r\x1b[Klayer 0  [") || !strings.HasSuffix(shown, "\r\x1b[K") {
		t.Errorf("exit %d: %q", code, shown)
	}
}
