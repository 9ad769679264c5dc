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
	"strings"
	"syscall"
)

// A control plane leaves word of its socket for commands of the same user: a link
// named after the address of its admin port, in a folder of that user's. So that
// commands need no flags, and no secret is kept or sent. The name has the network
// namespace in it, too: elsewhere the same address is somebody else's.

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
	address := net.JoinHostPort(addr.Unmap().String(), port)
	for _, name := range []string{e.wordName(address), address} {
		for _, dir := range e.wordsDirs() {
			link := filepath.Join(dir, name)
			to, err := os.Readlink(link)
			if err == nil && filepath.IsAbs(to) && private(dir) {
				return link
			}
		}
	}
	return ""
}

// wordName is the name of the link for an address. Up to 0.2.0 the address was all: for
// commands of then such a link leads on to this one, by its name alone, and a control plane's
// of then leads to a socket.
func (e *env) wordName(address string) string {
	if e.network == "" {
		return address
	}
	return address + "-" + e.network
}

// network is the number of this process's network namespace; empty where there are none.
func network() string {
	name, _ := os.Readlink("/proc/self/ns/net")
	return strings.Trim(name, "net:[]")
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
	address := net.JoinHostPort(host, fmt.Sprint(at.Port))
	name := e.wordName(address)
	var errs []error
	for _, dir := range e.wordsDirs() {
		err := leaveLink(dir, name, socket)
		if err == nil && name != address {
			err = leaveLink(dir, address, name)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		return func() {
			link := filepath.Join(dir, name)
			if to, err := os.Readlink(link); err == nil && to == socket {
				_ = os.Remove(link) // a link to nothing does no harm
				forget(dir, "")
			}
		}, nil
	}
	return func() {}, errors.Join(errs...)
}

func leaveLink(dir, name, to string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if !private(dir) {
		return fmt.Errorf("the folder %s is not this user's alone", dir)
	}
	forget(dir, to)
	link := filepath.Join(dir, name)
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(to, link)
}

// forget removes links to what is gone, and those from before to what there is a new one to.
func forget(dir, next string) {
	links, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, l := range links {
		path := filepath.Join(dir, l.Name())
		to, err := os.Readlink(path)
		if err != nil {
			continue
		}
		if _, err := os.Stat(path); to == next || errors.Is(err, fs.ErrNotExist) {
			_ = os.Remove(path)
		}
	}
}
