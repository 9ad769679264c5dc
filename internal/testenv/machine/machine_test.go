//go:build linux && machine

package machine_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/testenv/machine"
)

// TestMachine: it has systemd, no network, nothing of this repository, and a disk that
// outlives it.
func TestMachine(t *testing.T) {
	t.Parallel()
	m := machine.Start(t, machine.Config{Name: "edge-1"})
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	for command, want := range map[string]string{
		"cat /proc/1/comm":  "systemd",
		"hostname":          "edge-1",
		"ls /sys/class/net": "lo",
		"ip -o route show table all | grep -v -e '^local' -e '^broadcast' -e ' dev lo ' || echo none": "none",
		"ls -d '" + here + "' 2>/dev/null || echo none":                                               "none",
		"command -v go || echo none":                                                                  "none",
	} {
		if got := strings.TrimSpace(m.Must(command)); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
	note := filepath.Join(t.TempDir(), "note")
	if err := os.WriteFile(note, []byte("from outside"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.Put(note, "/var/lib/note")
	m.Must("echo changed >/etc/motd; echo changed >/usr/local/bin/x; systemd-run --unit=stays sleep 1000; systemctl is-active stays")
	m.Reboot()
	for command, want := range map[string]string{
		"cat /var/lib/note":               "from outside",
		"cat /etc/motd /usr/local/bin/x":  "changed\nchanged",
		"systemctl is-active stays || :":  "inactive",
		"journalctl --list-boots | wc -l": "2",
		"systemctl is-system-running":     "running",
	} {
		if got := strings.TrimSpace(m.Must(command)); got != want {
			t.Errorf("after a reboot, %s: %q, want %q", command, got, want)
		}
	}
	if _, err := os.Stat("/usr/local/bin/x"); !os.IsNotExist(err) {
		t.Errorf("this system was changed: %v", err)
	}
}
