//go:build linux

// Package machine starts machines for tests, on Linux and as root: each has namespaces of
// its own for mounts, processes, network and names, a systemd as PID 1, and of this system
// the packages alone. There is nothing of the repository and of the go command in it but
// what a test puts there, and no network but loopback. What it changes lies in a folder of
// the test's, and is there after a reboot, too.
//
// It is no virtual machine: the kernel is this one's.
package machine

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

//go:embed prepare.sh
var prepare string

//go:embed boot.sh
var boot string

// patience bounds what should take seconds.
const patience = 2 * time.Minute

// Config says what a machine is like.
type Config struct {
	// Name is its host name; empty is "machine".
	Name string
	// Medium is a folder of this system that is at /mnt there, to be read only, as what
	// people carry. Empty: there is none.
	Medium string
}

// Machine is one that is running.
type Machine struct {
	Config
	t      testing.TB
	disk   string
	holder *part // of the namespaces that a reboot keeps
	system *part
	pid    int // of its PID 1, among ours
}

// part is a script that runs until its input is closed.
type part struct {
	cmd   *exec.Cmd
	input io.Closer
	errs  bytes.Buffer
	line  string // the first of what it printed
}

// Start boots a machine, which is off when the test ends.
func Start(t testing.TB, cfg Config) *Machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("machines are made as root: run the test so, for one in a container or a virtual machine")
	}
	m := &Machine{Config: cfg, t: t, disk: t.TempDir()}
	if m.Name == "" {
		m.Name = "machine"
	}
	if err := os.Chmod(m.disk, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.off)
	var err error
	if m.holder, err = m.start("unshare", "--mount", "--net", "--uts", "--ipc", "sh", "-c", prepare); err != nil {
		t.Fatalf("no machine can be made: %v", err)
	}
	m.boot()
	return m
}

// start starts a script and waits for its first line.
func (m *Machine) start(words ...string) (*part, error) {
	p := &part{cmd: exec.Command(words[0], words[1:]...)}
	p.cmd.Env = append(p.cmd.Environ(), "DISK="+m.disk, "NAME="+m.Name, "MEDIUM="+m.Medium)
	p.cmd.Stderr = &p.errs
	// What a terminal sends is for the test, which then ends this.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.WaitDelay = time.Second
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	p.input = in
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	late := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	defer late.Stop()
	if p.line, err = bufio.NewReader(out).ReadString('\n'); err != nil {
		p.end()
		return nil, fmt.Errorf("%w\n%s", err, p.errs.String())
	}
	return p, nil
}

func (p *part) end() {
	p.input.Close()
	late := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	defer late.Stop()
	_ = p.cmd.Wait()
}

func (m *Machine) boot() {
	m.t.Helper()
	var err error
	m.system, err = m.start("nsenter", "--target", strconv.Itoa(m.holder.cmd.Process.Pid), "--mount", "--net", "--uts", "--ipc", "sh", "-c", boot)
	if err != nil {
		m.t.Fatalf("%s does not boot: %v", m.Name, err)
	}
	if m.pid, err = strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(m.system.line, "booted "))); err != nil {
		m.t.Fatalf("%s booted as %q", m.Name, m.system.line)
	}
	// Its bus is not there at first.
	deadline := time.Now().Add(patience)
	for {
		out, err := m.Run("systemctl is-system-running --wait")
		if err == nil {
			return
		}
		if time.Now().After(deadline) || strings.Contains(out, "degraded") {
			failed, _ := m.Run("systemctl --failed --no-pager; journalctl -b -n 50 --no-pager")
			m.t.Fatalf("%s does not come up: %s%v\n%s", m.Name, out, err, failed)
		}
		time.Sleep(100 * time.Millisecond) // between looks
	}
}

// off ends everything on the machine, and the machine.
func (m *Machine) off() {
	for _, p := range []*part{m.system, m.holder} {
		if p != nil {
			p.end()
		}
	}
}

// Reboot is a loss of power: all that runs is killed, and the machine boots again.
func (m *Machine) Reboot() {
	m.t.Helper()
	m.system.end()
	m.boot()
}

// Pid is that of the machine's PID 1, among those of this system. Its network namespace is
// the same one after a reboot.
func (m *Machine) Pid() int { return m.pid }

// Shell gives the words by which a shell is started on the machine, as root in /. They are
// good until it is rebooted.
func (m *Machine) Shell() []string {
	return []string{"nsenter", "--target", strconv.Itoa(m.pid), "--all", "env", "-i",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "HOME=/root", "LANG=C.UTF-8", "SYSTEMD_PAGER=", "sh"}
}

// Run runs commands on the machine and gives what they print.
func (m *Machine) Run(commands string) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.t.Context()), patience)
	defer cancel()
	words := append(m.Shell(), "-ec", commands)
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Must is Run, of what may not fail.
func (m *Machine) Must(commands string) string {
	m.t.Helper()
	out, err := m.Run(commands)
	if err != nil {
		m.t.Fatalf("%s: %s: %v\n%s", m.Name, commands, err, out)
	}
	return out
}

// Put copies a file or folder of this system to the machine, where nothing of that name is.
func (m *Machine) Put(from, to string) {
	m.t.Helper()
	from, err := filepath.Abs(from)
	if err != nil {
		m.t.Fatal(err)
	}
	at := filepath.Join(m.disk, "root", to)
	cmd := exec.Command("nsenter", "--target", strconv.Itoa(m.holder.cmd.Process.Pid), "--mount", "sh", "-ec", `mkdir -p "$(dirname "$2")" && cp -rL "$1" "$2"`, "sh", from, at)
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("%s: put %s at %s: %v\n%s", m.Name, from, to, err, out)
	}
}
