package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
)

// An Envoy of another user reads modules and configuration as one of a group, which it
// and the agent are both in. What is nobody's business but the agent's stays so: its
// identity, what was last good, orders.

// noGroup: nobody but the owner reads anything.
const noGroup = -1

// lookupGroup gives the number of a group.
func lookupGroup(name string) (int, error) {
	if name == "" {
		return noGroup, nil
	}
	if gid, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(gid), nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return noGroup, fmt.Errorf("there is no group %s on this machine", chandler.Quote(name))
	}
	return strconv.Atoi(g.Gid)
}

// shared is the file system for what Envoy reads.
func (a *Agent) shared() durable.FS {
	if a.group == noGroup {
		return durable.OS()
	}
	return durable.OSFor(a.group)
}

// adminDir is where an Envoy that somebody else starts makes the socket of its admin
// interface: the one folder that the group may write to.
func (a *Agent) adminDir() string { return filepath.Join(a.envoyDir(), "admin") }

// shareDirectory makes the folders that Envoy needs, and gives to the group what is in
// them already.
func (a *Agent) shareDirectory() error {
	dirs := []string{a.cfg.Data, a.envoyDir(), modulesDir(a.cfg.Data)}
	if a.cfg.NoChild {
		dirs = append(dirs, a.adminDir())
	}
	for _, dir := range dirs {
		if err := durable.Mkdir(a.shared(), dir); err != nil {
			return err
		}
	}
	if a.group == noGroup {
		return nil
	}
	for _, dir := range dirs {
		mode := fs.FileMode(0o750)
		if dir == a.adminDir() {
			mode = 0o770
		}
		if err := a.share(dir, mode); err != nil {
			return err
		}
	}
	for dir, is := range map[string]func(name string) bool{
		modulesDir(a.cfg.Data): func(name string) bool { return strings.HasSuffix(name, ".wasm") },
		a.envoyDir():           func(name string) bool { return strings.HasPrefix(name, listenersName+".") },
	} {
		files, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, f := range files {
			if !f.Type().IsRegular() || !is(f.Name()) {
				continue
			}
			if err := a.share(filepath.Join(dir, f.Name()), 0o640); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// share gives one file, folder or socket to the group, if there is one.
func (a *Agent) share(path string, mode fs.FileMode) error {
	if a.group == noGroup {
		return nil
	}
	if err := durable.Share(path, a.group, mode); err != nil {
		return fmt.Errorf("it cannot be given to the group %s, which the agent must be in and Envoy too: %w", chandler.Quote(a.cfg.DataGroup), err)
	}
	return nil
}
