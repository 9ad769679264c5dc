//go:build dist

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The packages are installed on a machine like this one, in a mount namespace of its own:
// an overlay over its root, in which systemd does not run.
func TestInstalled(t *testing.T) {
	debs := t.TempDir()
	for _, of := range packages {
		found, err := filepath.Glob(made(of.name + "_*_" + native().Arch + ".deb"))
		if err != nil || len(found) != 1 {
			t.Fatalf("%v, %v", found, err)
		}
		if err := os.WriteFile(filepath.Join(debs, of.name+".deb"), read(t, found[0]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	script, err := filepath.Abs("testdata/install.sh")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/bin/sh", script, debs)
	cmd.Env = append(os.Environ(), "VERSION="+*version)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasSuffix(string(out), "installed, upgraded, removed\n") {
		t.Errorf("%v\n%s", err, out)
	}
}
