package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// unit reads a unit file: the values of every setting, in order.
func unit(t *testing.T, path string) map[string][]string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	settings, section := map[string][]string{}, ""
	for i, line := range strings.Split(string(b), "\n") {
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '[' && line[len(line)-1] == ']':
			section = line[1 : len(line)-1]
		default:
			name, value, ok := strings.Cut(line, "=")
			if !ok || section == "" || strings.TrimSpace(name) != name || strings.HasSuffix(line, "\\") {
				t.Fatalf("%s:%d: %q", path, i+1, line)
			}
			settings[section+"."+name] = append(settings[section+"."+name], value)
		}
	}
	return settings
}

const unitFiles = "../../deploy/systemd/"

// The agent's unit starts the agent with flags and variables it has, and lets
// Envoy outlive it.
func TestAgentUnit(t *testing.T) {
	t.Parallel()
	u := unit(t, unitFiles+"chandler-agent.service")
	for name, want := range map[string]string{
		"Service.KillMode": "process", "Service.Restart": "always", "Service.StateDirectory": "chandler-agent", "Service.LimitNOFILE": "1048576",
		"Service.OOMPolicy": "continue", "Unit.StartLimitIntervalSec": "0", "Service.UMask": "0077",
	} {
		if got := u[name]; !slices.Equal(got, []string{want}) {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for _, never := range []string{"Service.MemoryDenyWriteExecute", "Service.PrivateNetwork", "Service.SystemCallFilter", "Service.ExecStop"} {
		if u[never] != nil {
			t.Errorf("Envoy does not run under %s", never)
		}
	}
	env := map[string]string{"STATE_DIRECTORY": "/var/lib/chandler-agent"}
	for _, pair := range u["Service.Environment"] {
		name, value, _ := strings.Cut(pair, "=")
		env[name] = value
	}
	words := strings.Fields(u["Service.ExecStart"][0])
	cfg := parsed(t, env, words[1:]...)
	if !cfg.LeaveEnvoy || cfg.Envoy != "/usr/local/bin/envoy" || cfg.Data != "/var/lib/chandler-agent" || !slices.Equal(cfg.EnvoyArgs, []string{"-c", "/etc/envoy/envoy.yaml"}) {
		t.Errorf("%+v", cfg)
	}
	env["CHANDLER_AGENT_LEAVE_ENVOY"] = "false" // as docs/machines.md stops both
	if cfg = parsed(t, env, words[1:]...); cfg.LeaveEnvoy {
		t.Error("the variable does not take it back")
	}
	if stop, err := time.ParseDuration(u["Service.TimeoutStopSec"][0] + "s"); err != nil || stop < cfg.Drain+10*time.Second {
		t.Errorf("it is killed after %s, and drains for %s", stop, cfg.Drain)
	}
}

// systemd itself has nothing to say against the units, where it is installed.
func TestUnitsAreUnderstood(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(unitFiles + "*.service")
	if err != nil || len(files) != 3 {
		t.Fatalf("%v, %v", files, err)
	}
	dir := t.TempDir()
	args := []string{"verify", "--man=no"}
	for _, file := range files {
		unit(t, file)
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, command := range []string{"/usr/local/bin/chandler-agent", "/usr/local/bin/chandler"} {
			for _, setting := range []string{"ExecStart=", "ExecStartPre="} {
				b = bytes.ReplaceAll(b, []byte(setting+command+" "), []byte(setting+"/bin/true ")) // not installed here
			}
		}
		copied := filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(copied, b, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, copied)
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		return // they were read above
	}
	if out, err := exec.Command(analyze, args...).CombinedOutput(); err != nil || bytes.Contains(out, []byte(dir)) {
		t.Errorf("%v\n%s", err, out)
	}
}
