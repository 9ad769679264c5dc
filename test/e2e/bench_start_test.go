package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

// BenchmarkOfflineRestart times the start of a node that reaches nobody until the
// sample plugin (a Go module of 2.4 MB) answers the first request: in turn an
// Envoy whose static file names the plugin, and an agent with its last good set,
// which then starts an Envoy. Reported are the medians.
func BenchmarkOfflineRestart(b *testing.B) {
	mod := sample(b)
	w := newWorld(b)
	port := freePort(b)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("p", w.push("basic:v1", mod), "pluginConfig: "+realmConfig(0)))
	if err := w.control.stop(); err != nil {
		b.Fatal(err)
	}
	w.registry.Close()
	static, staticPort := staticPlugin(b, mod, realmConfig(0))

	envoy, agent := &subject{}, &subject{}
	for b.Loop() {
		p.killAll(b)
		begin := time.Now()
		p.restart()
		awaitRealm(b, fresh, port, 0)
		agent.took = append(agent.took, time.Since(begin))
		p.awaitReady()

		cmd := exec.Command(envoyBinary(b), "-c", static, "--use-dynamic-base-id", "--concurrency", "1", "-l", "off")
		begin = time.Now()
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		awaitRealm(b, fresh, staticPort, 0)
		envoy.took = append(envoy.took, time.Since(begin))
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
	b.ReportMetric(envoy.median(), "envoy-ms")
	b.ReportMetric(agent.median(), "agent-ms")
}

// staticPlugin writes an Envoy configuration that names the plugin itself.
func staticPlugin(b *testing.B, mod []byte, pluginConfig string) (path string, port int) {
	b.Helper()
	dir := b.TempDir()
	path, port = filepath.Join(dir, "envoy.yaml"), freePort(b)
	wasm := filepath.Join(dir, "plugin.wasm")
	filter := strings.ReplaceAll(module.Filter("p", wasm, pluginConfig), "\n", " ")
	config := strings.Replace(directGateway(port), "          http_filters:\n", "          http_filters:\n          - "+filter+"\n", 1)
	for name, content := range map[string]string{path: config, wasm: string(mod)} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	if !strings.Contains(config, "wasm.v3.Wasm") {
		b.Fatal("the plugin is not in the configuration")
	}
	return path, port
}
