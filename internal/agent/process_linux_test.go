package agent

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// An Envoy that was started for this directory and not written down is found; one of a
// container whose processes we see, which has another directory at that path, is not ours
// to stop.
func TestStraysOfThisDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// grep reads its input, with what is an Envoy's command line.
	const envoy = `exec grep -c "$1/bootstrap"`
	here := standsFor(t, "sh", "-c", envoy, "sh", dir)
	elsewhere := []string{"--mount", "sh", "-c", `mount -t tmpfs tmpfs "$1" && ` + envoy, "sh", dir}
	if os.Geteuid() != 0 {
		elsewhere = append([]string{"--map-root-user"}, elsewhere...)
	}
	standsFor(t, "unshare", elsewhere...)
	if found := strays(dir, nil); len(found) != 1 || found[0].proc.Pid != here {
		t.Errorf("%d are found, and ours is one", len(found))
	}
}

// standsFor starts a program that becomes grep, and gives its number once it has.
func standsFor(t *testing.T, name string, args ...string) int {
	t.Helper()
	cmd := exec.Command(name, args...)
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = input.Close()
		_ = cmd.Wait() // it has found nothing
	})
	for until := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", cmd.Process.Pid)); strings.HasPrefix(string(line), "grep\x00-c") {
			return cmd.Process.Pid
		}
		if time.Now().After(until) {
			t.Fatalf("%s did not come so far", name)
		}
	}
}
