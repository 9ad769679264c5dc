package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

// walk is the walkthrough beside an Envoy, whoever started it: attach, update, a bad
// module, detach, with requests that are never refused. reason is what is told of why
// the bad module was refused.
func walk(t *testing.T, w *world, port int, reason string) {
	t.Helper()
	sees(t, port)
	l := startLoad(port, 2, 1, func(a answer) error {
		if a.code != 200 {
			return fmt.Errorf("status %d", a.code)
		}
		return nil
	})
	url := w.push("append:v1", module.Append())
	w.apply(plugin("p", url, tag("one")))
	sees(t, port, "one")
	w.apply(plugin("p", w.push("append:v2", module.Append(module.WithSection("build", []byte("2")))), tag("two")))
	sees(t, port, "two")
	bad := plugin("p", w.push("bad:v1", module.RefuseConfigure("the moon is wrong")))
	if out, ok := w.cli(bad, "apply", "-f", "-", "--wait", "--timeout", "60s"); ok || !strings.Contains(out, "Rejected") || !strings.Contains(out, reason) {
		t.Errorf("a bad module, of which %q should be told: %s", reason, out)
	}
	sees(t, port, "two")
	if out, ok := w.cli("", "delete", "wasmplugins.extensions.istio.io", "-n", "edge", "p"); !ok {
		t.Fatal(out)
	}
	sees(t, port)
	unharmed(t, l)
}

// unharmed is harmless where plugins come and go in slots; where they do in listeners
// connections drain, and that is all.
func unharmed(t *testing.T, l *load) {
	t.Helper()
	l.end()
	if *envoyFlag != "" {
		l.closed.Store(0)
	}
	if l.answers.Load() == 0 || len(l.wrong) > 0 || l.closed.Load() > 0 {
		t.Errorf("%d requests, %d connections closed, wrong: %v", l.answers.Load(), l.closed.Load(), l.wrong)
	}
}

// adminAt waits for the address that Envoy writes into a file, as a parent of an Envoy
// does, and for Envoy to be ready.
func adminAt(t *testing.T, file string) string {
	t.Helper()
	var addr string
	eventually(t, 30*time.Second, "Envoy is ready", func() (bool, string) {
		b, err := os.ReadFile(file)
		if err != nil {
			return false, err.Error()
		}
		addr = strings.TrimSpace(string(b))
		return status("http://" + addr + "/ready")
	})
	return addr
}

// The agent before an Envoy's arguments: all that Envoy takes it takes too, also a port
// of the admin interface that Envoy chooses, and what Envoy takes no notice of.
func TestWaysPrefix(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	dir := t.TempDir()
	address := filepath.Join(dir, "admin-address")
	p := w.startAgentArgs(node{name: "a"}, w.gateway(listener{port: port, name: "in"}),
		"--config-yaml", "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}",
		"--admin-address-path", address, "--service-node", "node-of-arguments", "--service-cluster", "cluster-of-arguments", "--service-zone", "z",
		"--concurrency=1", "--log-level", "info", "--component-log-level", "misc:error", "--cpuset-threads", "--drain-strategy", "immediate", "--drain-time-s", "1",
		"--restart-epoch", "0", "--parent-shutdown-time-s", "2", "--stats-tag", "a:b", "--stats-tag", "c:d", "--mode", "serve", "--", "--run-id", "5")
	p.awaitReady()
	walk(t, w, port, "the moon is wrong")
	info := fetchText(t, "http://"+adminAt(t, address)+"/server_info")
	for _, want := range []string{`"id": "node-of-arguments"`, `"cluster": "cluster-of-arguments"`, `"zone": "z"`} {
		if !strings.Contains(info, want) {
			t.Errorf("Envoy does not know %s of itself: %s", want, info)
		}
	}
}

// startAgentArgs is startAgent with further arguments of Envoy's.
func (w *world) startAgentArgs(n node, config string, more ...string) *proxy {
	w.t.Helper()
	p := &proxy{w: w, dir: w.t.TempDir(), admin: loopback(freePort(w.t))}
	file := filepath.Join(p.dir, "envoy.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		w.t.Fatal(err)
	}
	args := append([]string{"--control", w.listen, "--node", n.name, "--namespace", "edge", "--data", filepath.Join(p.dir, "data"),
		"--admin", p.admin, "--envoy", envoyBinary(w.t), "--drain", "1s", "--", "-c", file}, more...)
	p.process = start(w.t, filepath.Join(p.dir, "agent.log"), filepath.Join(built, "chandler-agent"), args...)
	return p
}

// parent starts what it takes for an Envoy, as a supervisor of Envoys does.
type parent struct {
	*process
	t       *testing.T
	dir     string
	address string // the file that the admin address is written to
}

// gatewaysBootstrap is what Envoy Gateway gives to its Envoys, but for its own clusters and
// for dynamic resources; all of it comes in an argument.
const gatewaysBootstrap = `admin:
  access_log:
  - name: envoy.access_loggers.file
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
      path: /dev/null
  address:
    socket_address:
      address: 127.0.0.1
      port_value: 0
node:
  locality:
    zone: $(ENVOY_SERVICE_ZONE)
deferredStatOptions:
  enableDeferredCreationStats: true
stats_config:
  use_all_default_tags: true
  stats_tags:
  - regex: \.zone(\.(([^\.]+)\.))
    tag_name: from_zone
  - regex: "^cluster(\\..+\\.(.+))\\.total_match_count$"
    tag_name: socket_match_name
  - regex: "circuit_breakers\\.((.+?)\\.).+"
    tag_name: priority
layered_runtime:
  layers:
  - name: global_config
    static_layer:
      envoy.reloadable_features.oauth2_use_gcm_encryption: true
      re2.max_program_size.error_level: 4294967295
      re2.max_program_size.warn_level: 1000
overload_manager:
  refresh_interval: 0.25s
  resource_monitors:
  - name: "envoy.resource_monitors.global_downstream_max_connections"
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig
      max_active_downstream_connections: 50000
`

// startAsEnvoy starts the agent under the name envoy, with a configuration that stands in
// the arguments alone.
func (w *world) startAsEnvoy(t *testing.T, dir, config string) *parent {
	t.Helper()
	name := filepath.Join(dir, "envoy")
	if err := os.Symlink(filepath.Join(built, "chandler-agent"), name); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	pa := &parent{t: t, dir: dir, address: filepath.Join(dir, "admin-address")}
	cmd := exec.Command(name, "--service-cluster", "envoy-gateway-system/eg", "--service-node", "envoy-gateway-system-eg-5391c79d", "--config-yaml", gatewaysBootstrap+config,
		"--log-level", "info", "--cpuset-threads", "--drain-strategy", "immediate", "--concurrency", "1", "--component-log-level", "misc:error", "--drain-time-s", "60",
		"--admin-address-path", pa.address, "--", "--run-id", "20261128_172428_558")
	cmd.Env = append(os.Environ(), "CHANDLER_AGENT_CONTROL="+w.listen, "CHANDLER_AGENT_ENVOY="+envoyBinary(t), "CHANDLER_AGENT_NAMESPACE=edge",
		"CHANDLER_AGENT_NODE=a", "CHANDLER_AGENT_DATA="+filepath.Join(dir, "data"), "CHANDLER_AGENT_ADMIN=")
	pa.process = run(t, filepath.Join(dir, "envoy.log"), cmd)
	return pa
}

// run starts a command that the test ends itself, or that is killed at its end.
func run(t *testing.T, log string, cmd *exec.Cmd) *process {
	t.Helper()
	f, err := os.OpenFile(log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	p := &process{cmd: cmd, log: log, done: make(chan struct{})}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
		if t.Failed() {
			t.Logf("%s log:\n%s", filepath.Base(cmd.Path), p.tail())
		}
	})
	return p
}

// ends waits for the end, and gives the exit code; -1 of one that was killed.
func (pa *parent) ends(within time.Duration) int {
	pa.t.Helper()
	within = patience(within)
	select {
	case <-pa.done:
		return pa.cmd.ProcessState.ExitCode()
	case <-time.After(within):
		pa.t.Fatalf("it has not ended after %s", within)
	}
	return 0
}

// free tells when nobody listens on a port any more.
func free(t *testing.T, port int, within time.Duration) {
	t.Helper()
	eventually(t, within, "the port is free", func() (bool, string) {
		conn, err := net.Dial("tcp", loopback(port))
		if err == nil {
			conn.Close()
		}
		return err != nil, "somebody listens"
	})
}

// Called envoy, the agent is to its parent what an Envoy is: admin interface, signals,
// outputs, exit codes, and the end that comes to both.
func TestWaysCalledEnvoy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	config := w.gateway(listener{port: port, name: "in"})
	dir := t.TempDir()

	pa := w.startAsEnvoy(t, dir, config)
	if info := fetchText(t, "http://"+adminAt(t, pa.address)+"/server_info"); !strings.Contains(info, `"id": "envoy-gateway-system-eg-5391c79d"`) || !strings.Contains(info, `"cluster": "envoy-gateway-system/eg"`) {
		t.Errorf("Envoy is not who its arguments say: %s", info)
	}
	walk(t, w, port, "the moon is wrong")
	if log := pa.output(); !strings.Contains(log, "starting main dispatch loop") {
		t.Errorf("its parent does not read what Envoy says: %s", log)
	}
	for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1} {
		if err := pa.cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 10*time.Second, "Envoy gets the signals", func() (bool, string) {
		log := pa.output()
		return strings.Contains(log, "SIGHUP") && strings.Contains(log, "SIGUSR1"), log
	})
	sees(t, port)

	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		open, err := net.Dial("tcp", loopback(port)) // a connection holds nothing up
		if err != nil {
			t.Fatal(err)
		}
		if err := pa.cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		if code := pa.ends(3 * time.Second); code != 0 {
			t.Errorf("%s: exit code %d", s, code)
		}
		open.Close()
		free(t, port, 0)
		_ = os.Remove(pa.address)
		pa = w.startAsEnvoy(t, dir, config)
		adminAt(t, pa.address)
	}

	// Killed, it leaves no Envoy behind: its parent may start the next at once.
	_ = pa.cmd.Process.Kill()
	if code := pa.ends(3 * time.Second); code != -1 {
		t.Errorf("killed: exit code %d", code)
	}
	free(t, port, 3*time.Second)
	_ = os.Remove(pa.address)
	pa = w.startAsEnvoy(t, dir, config)
	admin := adminAt(t, pa.address)
	sees(t, port)

	resp, err := http.Post("http://"+admin+"/quitquitquit", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if code := pa.ends(5 * time.Second); code != 0 {
		t.Errorf("told by its admin interface: exit code %d", code)
	}

	broken := strings.Replace(config, "stat_prefix:", "stat_prefixx:", 1)
	pa = w.startAsEnvoy(t, dir, broken)
	if code := pa.ends(20 * time.Second); code != 1 || !strings.Contains(pa.tail(), "stat_prefixx") {
		t.Errorf("of a configuration that Envoy refuses: exit code %d", code)
	}
}
