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
	"syscall"
)

// A control plane leaves word of its socket for commands of the same user: a link
// named after the address of its admin port, in a folder of that user's. So that
// commands need no flags, and no secret is kept or sent.

// wordsDirs are the folders of the links, the best first: beside the user's other
// state, and for users without a home that can be written to under the temporary
// directory.
func (e *env) wordsDirs() []string {
	state := e.getenv("XDG_STATE_HOME")
	if home := e.getenv("HOME"); !filepath.IsAbs(state) {
		if u, err := user.Current(); home == "" && err == nil {
			home = u.HomeDir
		}
		state = filepath.Join(home, ".local", "state")
	}
	dirs := []string{filepath.Join(os.TempDir(), fmt.Sprintf("chandler-admin-%d", os.Getuid()))}
	if filepath.IsAbs(state) {
		dirs = append([]string{filepath.Join(state, "chandler", "admin")}, dirs...)
	}
	return dirs
}

// private tells whether a folder is this user's alone: anybody may make one under
// the temporary directory.
func private(dir string) bool {
	st, err := os.Lstat(dir)
	if err != nil || !st.IsDir() || st.Mode().Perm() != 0o700 {
		return false
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	return ok && int(owner.Uid) == os.Getuid()
}

// word is the link that was left for an address of this machine's own; empty: there
// is none.
func (e *env) word(host, port string) string {
	if host == "localhost" {
		host = "127.0.0.1"
	}
	addr, err := netip.ParseAddr(host)
	if err != nil || !addr.Unmap().IsLoopback() {
		return ""
	}
	for _, dir := range e.wordsDirs() {
		link := filepath.Join(dir, net.JoinHostPort(addr.Unmap().String(), port))
		if _, err := os.Lstat(link); err == nil && private(dir) {
			return link
		}
	}
	return ""
}

// leaveWord makes the link to a socket, and gives what removes it again.
func (e *env) leaveWord(at *net.TCPAddr, socket string) (leave func(), err error) {
	host := at.IP.String()
	switch {
	case at.IP.IsUnspecified():
		host = "127.0.0.1"
	case !at.IP.IsLoopback():
		return func() {}, nil // commands say another address
	}
	var errs []error
	for _, dir := range e.wordsDirs() {
		link := filepath.Join(dir, net.JoinHostPort(host, fmt.Sprint(at.Port)))
		if err := leaveLink(dir, link, socket); err != nil {
			errs = append(errs, err)
			continue
		}
		return func() {
			if to, err := os.Readlink(link); err == nil && to == socket {
				_ = os.Remove(link) // a link to nothing does no harm
			}
		}, nil
	}
	return func() {}, errors.Join(errs...)
}

func leaveLink(dir, link, socket string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if !private(dir) {
		return fmt.Errorf("the folder %s is not this user's alone", dir)
	}
	forget(dir)
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(socket, link)
}

// forget removes links to sockets that are gone.
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
