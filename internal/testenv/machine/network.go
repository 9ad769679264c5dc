//go:build linux

package machine

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Gateway is the address at which a network has its test; the mask is /24.
const Gateway = "10.0.0.254"

// Network connects machines: a bridge in a network namespace of its own, of which nobody
// else knows. The test listens and dials there by Listen and Dial.
type Network struct {
	t      testing.TB
	holder *exec.Cmd // of the namespace
	ports  int
}

// NewNetwork makes a network without machines. It ends with the test.
func NewNetwork(t testing.TB) *Network {
	t.Helper()
	n := &Network{t: t, holder: exec.Command("unshare", "--net", "sh", "-ec",
		"ip link set lo up; ip link add bridge type bridge; ip address add "+Gateway+"/24 dev bridge; ip link set bridge up; echo up; exec cat")}
	n.holder.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := n.holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := n.holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = n.holder.Wait()
	})
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatalf("no bridge can be made: %v", err)
	}
	return n
}

// Connect lays a cable from the bridge to a machine, which has that address from then on,
// reboots included.
func (n *Network) Connect(m *Machine, addr string) {
	n.t.Helper()
	n.ports++
	bridge, machine := strconv.Itoa(n.holder.Process.Pid), strconv.Itoa(m.Pid())
	port := fmt.Sprint("port", n.ports)
	for _, end := range []struct{ pid, commands string }{
		{bridge, fmt.Sprintf("ip link add %[1]s type veth peer name eth0 netns %[2]s; ip link set %[1]s master bridge up", port, machine)},
		{machine, fmt.Sprintf("ip address add %s/24 dev eth0; ip link set eth0 up", addr)},
	} {
		if out, err := exec.Command("nsenter", "--target", end.pid, "--net", "sh", "-ec", end.commands).CombinedOutput(); err != nil {
			n.t.Fatalf("the cable to %s: %v\n%s", m.Name, err, out)
		}
	}
}

// inside calls f on a thread that is in the network's namespace, and ends with it.
func (n *Network) inside(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: nobody else may be given this thread
		done <- func() error {
			ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", n.holder.Process.Pid))
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			return f()
		}()
	}()
	return <-done
}

// Listen listens on a port of Gateway.
func (n *Network) Listen(port string) (lis net.Listener, err error) {
	err = n.inside(func() (err error) {
		lis, err = net.Listen("tcp", net.JoinHostPort(Gateway, port))
		return err
	})
	return lis, err
}

// Dial connects to a machine by its address, for http.Transport.
func (n *Network) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	if host, _, _ := strings.Cut(addr, ":"); net.ParseIP(host) == nil {
		return nil, fmt.Errorf("%s is no address", addr) // a name would be looked up on other threads
	}
	err = n.inside(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}
