package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
)

// A control plane leaves word of its socket for commands of the same user: a link
// named after the address of its admin port, in a folder of that user's. So that
// commands need no flags, and no secret is kept or sent.

// wordsDir is the folder of the links.
func (e *env) wordsDir() (string, error) {
	state := e.getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(state) {
		home := e.getenv("HOME")
		if home == "" {
			u, err := user.Current()
			if err != nil {
				return "", err
			}
			home = u.HomeDir
		}
		if !filepath.IsAbs(home) {
			return "", errors.New("this user has no home")
		}
		state = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(state, "chandler", "admin"), nil
}

// word is the link for an address of this machine's own; empty: there cannot be
// one.
func (e *env) word(host, port string) string {
	if host == "localhost" {
		host = "127.0.0.1"
	}
	addr, err := netip.ParseAddr(host)
	if err != nil || !addr.Unmap().IsLoopback() {
		return ""
	}
	dir, err := e.wordsDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, net.JoinHostPort(addr.Unmap().String(), port))
}

// leaveWord makes the link to a socket, and gives what removes it again.
func (e *env) leaveWord(at *net.TCPAddr, socket string) (leave func(), err error) {
	leave = func() {}
	host := at.IP.String()
	switch {
	case at.IP.IsUnspecified():
		host = "127.0.0.1"
	case !at.IP.IsLoopback():
		return leave, nil // commands say another address
	}
	dir, err := e.wordsDir()
	if err != nil {
		return leave, err
	}
	link := e.word(host, fmt.Sprint(at.Port))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return leave, err
	}
	forget(dir)
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return leave, err
	}
	if err := os.Symlink(socket, link); err != nil {
		return leave, err
	}
	return func() {
		if to, err := os.Readlink(link); err == nil && to == socket {
			_ = os.Remove(link) // a link to nothing does no harm
		}
	}, nil
}

// forget removes links to sockets that are gone with the folders they were in.
func forget(dir string) {
	links, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, l := range links {
		path := filepath.Join(dir, l.Name())
		if _, err := os.Stat(path); l.Type() == fs.ModeSymlink && errors.Is(err, fs.ErrNotExist) {
			_ = os.Remove(path)
		}
	}
}
