package ports

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// Each port is given once, lies below those that the kernel gives away, and can be
// listened at, again and again; also when a block has been used up.
func TestFree(t *testing.T) {
	seen := map[string]bool{}
	for range 2*blockSize + 1 {
		addr, err := Free()
		if err != nil {
			t.Fatal(err)
		}
		if at := netip.MustParseAddrPort(addr); seen[addr] || at.Port() < first || at.Port() >= 32768 {
			t.Errorf("%s was given", addr)
		}
		seen[addr] = true
		for range 2 {
			lis, err := net.Listen("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			lis.Close()
		}
	}
}

// A port at which somebody listens who did not ask here is passed over.
func TestTaken(t *testing.T) {
	addr, err := Free()
	if err != nil {
		t.Fatal(err)
	}
	taken.given--
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	if other, err := Free(); err != nil || other == addr {
		t.Errorf("%s, %v", other, err)
	}
}

// Processes that run at once are given different ports.
func TestProcesses(t *testing.T) {
	if os.Getenv("PORTS_OF_A_CHILD") != "" {
		addr, err := Free()
		if err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString(addr + "\n")
		_, _ = os.Stdin.Read(make([]byte, 1)) // until it is closed
		return
	}
	child := func() (addr string, end func()) {
		cmd := exec.Command(os.Args[0], "-test.run=^TestProcesses$")
		cmd.Env = append(os.Environ(), "PORTS_OF_A_CHILD=1")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		text := make([]byte, 100)
		n, err := out.Read(text)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text[:n])), func() { in.Close(); _ = cmd.Wait() }
	}
	mine, err := Free()
	if err != nil {
		t.Fatal(err)
	}
	one, endOne := child()
	two, endTwo := child()
	if all := []string{mine, one, two}; len(slices.Compact(slices.Sorted(slices.Values(all)))) != 3 {
		t.Errorf("given at once: %q", all)
	}
	endOne()
	endTwo()
}
