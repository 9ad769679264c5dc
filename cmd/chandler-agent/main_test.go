package main

import (
	"bytes"
	"errors"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/agent"
)

func parsed(t *testing.T, env map[string]string, args ...string) agent.Config {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cfg, err := parse(args, env, &stdout, &stderr)
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	if stdout.Len()+stderr.Len() > 0 {
		t.Errorf("%v: it says %q and %q", args, stdout.String(), stderr.String())
	}
	return cfg
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	cfg := parsed(t, map[string]string{"HOME": "/home/me"})
	if !slices.Equal(cfg.Control, []string{"127.0.0.1:9910"}) || cfg.Admin != "127.0.0.1:9912" || cfg.Envoy != "envoy" ||
		cfg.Node.Name != host || cfg.Node.Namespace != "default" || len(cfg.Node.Labels) != 0 || cfg.Node.AgentVersion != version ||
		cfg.Drain != 10*time.Second || cfg.LeaveEnvoy || cfg.FetchFrom != agent.FromControl || cfg.DockerConfig != "" ||
		cfg.Data != "/home/me/.local/state/chandler-agent" || len(cfg.EnvoyArgs) != 0 {
		t.Errorf("%+v", cfg)
	}
	for want, env := range map[string]map[string]string{
		"/var/lib/a":               {"STATE_DIRECTORY": "/var/lib/a", "XDG_STATE_HOME": "/x"},
		"/var/lib/b":               {"STATE_DIRECTORY": "/var/lib/b:/var/lib/c"},
		"/x/chandler-agent":        {"XDG_STATE_HOME": "/x", "HOME": "/home/me"},
		"/set":                     {"STATE_DIRECTORY": "/var/lib/a", "CHANDLER_AGENT_DATA": "/set"},
		filepath.Join(cwd(t), "d"): {"CHANDLER_AGENT_DATA": "d"},
	} {
		if got := parsed(t, env).Data; got != want {
			t.Errorf("with %v the directory is %s, want %s", env, got, want)
		}
	}
}

func cwd(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestFlagsWinOverVariables(t *testing.T) {
	t.Parallel()
	env := map[string]string{
		"CHANDLER_AGENT_CONTROL": "a:1, b:2,", "CHANDLER_AGENT_NODE": "of the variable", "CHANDLER_AGENT_NAMESPACE": "ns",
		"CHANDLER_AGENT_LABEL": "a=1,b=2", "CHANDLER_AGENT_DRAIN": "3s", "CHANDLER_AGENT_FETCH_FROM": "origin",
		"CHANDLER_AGENT_DOCKER_CONFIG": "/etc/d", "CHANDLER_AGENT_LEAVE_ENVOY": "true", "CHANDLER_AGENT_LOG_LEVEL": "debug",
		"CHANDLER_AGENT_VERSION": "1.2.3", // images often name their version so
		"OTHER":                  "x",
	}
	cfg := parsed(t, env, "--node", "of the flag", "--label", "b=3", "--label=c=", "-drain=4s", "--", "-c", "envoy.yaml", "--", "-l", "off")
	if !slices.Equal(cfg.Control, []string{"a:1", "b:2"}) || cfg.Node.Name != "of the flag" || cfg.Node.Namespace != "ns" ||
		!maps.Equal(cfg.Node.Labels, map[string]string{"a": "1", "b": "3", "c": ""}) || cfg.Drain != 4*time.Second ||
		cfg.FetchFrom != agent.FromOrigin || cfg.DockerConfig != "/etc/d" || !cfg.LeaveEnvoy ||
		!slices.Equal(cfg.EnvoyArgs, []string{"-c", "envoy.yaml", "--", "-l", "off"}) {
		t.Errorf("%+v", cfg)
	}
	if cfg.HostEnv["OTHER"] != "x" {
		t.Error("plugins cannot copy a variable")
	}
	if !cfg.Log.Enabled(t.Context(), -4) {
		t.Error("debug lines are dropped")
	}
	empty := parsed(t, map[string]string{"CHANDLER_AGENT_LABEL": "", "CHANDLER_AGENT_CONTROL": "", "CHANDLER_AGENT_ADMIN": ""})
	if len(empty.Node.Labels)+len(empty.Control)+len(empty.Admin) != 0 {
		t.Errorf("%+v", empty)
	}
}

func TestMistakes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		env  map[string]string
		args []string
		why  string
	}{
		{nil, []string{"--nonsense"}, "nonsense"},
		{nil, []string{"--label", "a"}, `"a" is not KEY=VALUE`},
		{nil, []string{"--label", "a=1,=2"}, `"=2" is not KEY=VALUE`},
		{nil, []string{"--drain", "soon"}, "drain"},
		{nil, []string{"--log-level", "loud"}, "--log-level"},
		{nil, []string{"statu"}, `unexpected argument "statu"`},
		{nil, []string{"--drain", "1s", "envoy", "-c", "envoy.yaml"}, "stand behind --"},
		{nil, []string{"--hosts-dir", "/nowhere/at/all"}, "--hosts-dir"},
		{map[string]string{"CHANDLER_AGENT_DRAIN": "soon"}, nil, "CHANDLER_AGENT_DRAIN"},
		{map[string]string{"CHANDLER_AGENT_LABEL": "a"}, nil, "CHANDLER_AGENT_LABEL"},
	} {
		var stdout, stderr bytes.Buffer
		if _, err := parse(c.args, c.env, &stdout, &stderr); err == nil || errors.Is(err, flag.ErrHelp) || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%v %v: error %v, want one that says %q", c.env, c.args, err, c.why)
		}
		env := []string{}
		for name, value := range c.env {
			env = append(env, name+"="+value)
		}
		stdout.Reset()
		if code := run(c.args, env, &stdout, &stderr); code != exitUsage || stdout.Len() != 0 || !strings.Contains(stderr.String(), c.why) || !strings.Contains(stderr.String(), "--help") {
			t.Errorf("%v %v: exit code %d, output %q, errors %q", c.env, c.args, code, stdout.String(), stderr.String())
		}
	}
	// A mistake that only the agent sees is one of usage too.
	var stdout, stderr bytes.Buffer
	if code := run([]string{"--data", t.TempDir()}, nil, &stdout, &stderr); code != exitUsage || !strings.Contains(stderr.String(), "-c FILE") {
		t.Errorf("without Envoy arguments: exit code %d, errors %q", code, stderr.String())
	}
	for _, c := range []struct {
		flag, value, why string
	}{
		{"--node", "a/b", "neither name nor namespace may have a slash"},
		{"--namespace", "a/b", "neither name nor namespace may have a slash"},
		{"--drain", "-5s", "-5s is not a time for which Envoy may drain"},
	} {
		stderr.Reset()
		if code := run([]string{"--data", t.TempDir(), c.flag, c.value, "--", "-c", "envoy.yaml"}, nil, &stdout, &stderr); code != exitUsage || !strings.Contains(stderr.String(), c.why) {
			t.Errorf("%s %s: exit code %d, errors %q", c.flag, c.value, code, stderr.String())
		}
	}
	stderr.Reset()
	if code := run([]string{"--data", t.TempDir(), "--hosts-dir", t.TempDir(), "--", "-c", "envoy.yaml"}, nil, &stdout, &stderr); code != exitUsage || !strings.Contains(stderr.String(), "folder of mirrors") {
		t.Errorf("mirrors that are not to be asked: exit code %d, errors %q", code, stderr.String())
	}
}

func TestHelpAndVersion(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		flag string
		want []string
	}{
		{"--help", []string{"chandler-agent [flags] -- ENVOY ARGUMENTS", "CHANDLER_AGENT_", "-control", "-node", "-namespace", "-label", "-data", "-admin", "-envoy", "-fetch-from", "-hosts-dir", "-docker-config", "-drain"}},
		{"-h", []string{"Usage:"}},
		{"--version", []string{"chandler-agent " + version + " (go1."}},
	} {
		var stdout, stderr bytes.Buffer
		if code := run([]string{c.flag}, nil, &stdout, &stderr); code != 0 || stderr.Len() != 0 {
			t.Errorf("%s: exit code %d, errors %q", c.flag, code, stderr.String())
		}
		for _, text := range c.want {
			if !strings.Contains(stdout.String(), text) {
				t.Errorf("%s says no %q:\n%s", c.flag, text, stdout.String())
			}
		}
	}
}

func TestVariables(t *testing.T) {
	t.Parallel()
	got := variables([]string{"A=1", "B=x=y", "C=", "D"})
	if !maps.Equal(got, map[string]string{"A": "1", "B": "x=y", "C": "", "D": ""}) {
		t.Errorf("%v", got)
	}
}

func TestSecureFlags(t *testing.T) {
	t.Parallel()
	if cfg := parsed(t, nil); cfg.DialOptions != nil {
		t.Error("without flags there is something to dial with")
	}
	for _, c := range []struct {
		env  map[string]string
		args []string
		why  string // empty: none
	}{
		{nil, []string{"--tls-ca", "/ca"}, ""}, // files are read when they are needed
		{map[string]string{"CHANDLER_AGENT_TLS_CA": "/ca", "CHANDLER_AGENT_TOKEN_FILE": "/token"}, nil, ""},
		{map[string]string{"CHANDLER_AGENT_TLS_CA": "/ca", "CHANDLER_AGENT_TLS_CERT": "/c", "CHANDLER_AGENT_TLS_KEY": "/k"}, []string{"--tls-server-name", "x"}, ""},
		{nil, []string{"--tls-ca", "/ca", "--tls-cert", "/c"}, "belong together"},
		{nil, []string{"--tls-cert", "/c", "--tls-key", "/k"}, "need --tls-ca"},
		{nil, []string{"--token-file", "/token"}, "need --tls-ca"},
	} {
		var out bytes.Buffer
		cfg, err := parse(c.args, c.env, &out, &out)
		if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%v %v: %v, want %q", c.env, c.args, err, c.why)
		}
		if err == nil && (cfg.DialOptions == nil || cfg.Collectors == nil) {
			t.Errorf("%v %v: the control plane is spoken to in plain text", c.env, c.args)
		}
	}
	for addr, want := range map[string]bool{
		"127.0.0.1:9910": true, "[::1]:9910": true, "localhost:9910": true, "unix:/run/x": true, "127.0.0.1": true,
		"10.0.0.1:9910": false, "chandler.example:9910": false, "localhost.example:9910": false,
	} {
		if onThisMachine(addr) != want {
			t.Errorf("%s is on this machine: %v", addr, !want)
		}
	}
}
