package main

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
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

// Control planes of one user at the same address in two network namespaces leave word each
// for the commands beside it. Commands and control planes of 0.2.0 know the address alone.
func TestWordInAnotherNetwork(t *testing.T) {
	home, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	in := func(network string) *env {
		return &env{network: network, getenv: func(name string) string { return map[string]string{"HOME": home}[name] }}
	}
	at := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9911}
	leave := func(network string) (socket string, gone func()) {
		t.Helper()
		socket = filepath.Join(home, "in"+network+".sock")
		if err := os.WriteFile(socket, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		gone, err := in(network).leaveWord(at, socket)
		if err != nil {
			t.Fatal(err)
		}
		return socket, gone
	}
	leads := func(network, want string) {
		t.Helper()
		if to, _ := os.Readlink(in(network).word("localhost", "9911")); to != want {
			t.Errorf("in %q a command is led to %q, want %q", network, to, want)
		}
	}
	before := func(want string) {
		t.Helper()
		to, err := filepath.EvalSymlinks(filepath.Join(home, ".local/state/chandler/admin/127.0.0.1:9911"))
		if to != want || err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a command of 0.2.0 is led to %q, %v, want %q", to, err, want)
		}
	}
	one, oneGone := leave("1")
	two, twoGone := leave("2")
	leads("1", one)
	leads("2", two)
	leads("3", "")
	before(two)
	oneGone()
	leads("1", "")
	before(two)
	twoGone()
	before("")
	if left, err := os.ReadDir(filepath.Join(home, ".local/state/chandler/admin")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	old, oldGone := leave("") // as one of 0.2.0
	leads("1", old)
	before(old)
	oldGone()
	two, _ = leave("2")
	leads("2", two)
	before(two)

	// Word of another namespace, or address, that leads to the same socket is from before.
	if _, err := in("4").leaveWord(at, two); err != nil {
		t.Fatal(err)
	}
	leads("4", two)
	leads("2", "")
	before(two)

	if number := network(); strings.Trim(number, "0123456789") != "" || (number == "") == (runtime.GOOS == "linux") {
		t.Errorf("the network namespace is %q", number)
	}
}
