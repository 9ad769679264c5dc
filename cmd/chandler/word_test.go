package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Word is left where the same user's commands look, and nobody else's folder is
// believed.
func TestWord(t *testing.T) {
	home, tmp := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", tmp)
	at := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9911}
	e := &env{getenv: func(name string) string { return map[string]string{"HOME": home}[name] }}
	socket := filepath.Join(home, "admin.sock")
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	leave, err := e.leaveWord(at, socket)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "localhost", "::ffff:127.0.0.1"} {
		if got := e.word(host, "9911"); !strings.HasPrefix(got, home) {
			t.Errorf("%s: %q", host, got)
		}
	}
	for _, other := range [][2]string{{"127.0.0.1", "9912"}, {"127.0.0.2", "9911"}, {"10.0.0.1", "9911"}, {"example", "9911"}} {
		if got := e.word(other[0], other[1]); got != "" {
			t.Errorf("%v: %q", other, got)
		}
	}
	// The next one at this address takes its place, and the one before leaves it.
	next := filepath.Join(home, "next.sock")
	if err := os.WriteFile(next, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	leaveNext, err := e.leaveWord(&net.TCPAddr{IP: net.IPv4zero, Port: 9911}, next)
	if err != nil {
		t.Fatal(err)
	}
	leave()
	if to, err := os.Readlink(e.word("localhost", "9911")); err != nil || to != next {
		t.Errorf("it leads to %q, %v", to, err)
	}
	leaveNext()
	if got := e.word("localhost", "9911"); got != "" {
		t.Errorf("it is still there: %q", got)
	}

	// Without a home the folder is under the temporary directory, if nobody else
	// has made it.
	e.getenv = func(name string) string { return map[string]string{"HOME": filepath.Join(socket, "none")}[name] }
	leave, err = e.leaveWord(at, socket)
	if err != nil {
		t.Fatal(err)
	}
	link := e.word("localhost", "9911")
	if !strings.HasPrefix(link, tmp) {
		t.Errorf("it is at %q", link)
	}
	if err := os.Chmod(filepath.Dir(link), 0o777); err != nil {
		t.Fatal(err)
	}
	if got := e.word("localhost", "9911"); got != "" {
		t.Errorf("a folder that others may write to is believed: %q", got)
	}
	if _, err := e.leaveWord(at, socket); err == nil || !strings.Contains(err.Error(), "not this user's alone") {
		t.Errorf("it is written to: %v", err)
	}
	leave()
}
