package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/api/chandler/v1/chandlerv1connect"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/xds/envoyads"
)

// BenchmarkConfigChange times a change of a plugin's configuration until the
// next request on a kept connection is decided by it, with the sample plugin (a
// Go module of 2.4 MB) on a real Envoy. "envoy" hands Envoy the finished slot and
// is what Envoy itself needs; "chandler" applies the resource to the control
// plane. The difference of the two is what chandler adds.
func BenchmarkConfigChange(b *testing.B) {
	mod, err := os.ReadFile(filepath.Join("..", "..", "bin", "basicauth.wasm"))
	if err != nil {
		b.Fatalf("%v: run make bin/basicauth.wasm", err)
	}
	b.Run("envoy", func(b *testing.B) { benchmarkEnvoyAlone(b, mod) })
	b.Run("chandler", func(b *testing.B) { benchmarkChandler(b, mod) })
}

// realmConfig guards everything and names a realm, which the answer shows.
func realmConfig(i int) string {
	return fmt.Sprintf(`{"basic_auth_rules":[{"credentials":["ok:test"],"prefix":"/","request_methods":["GET"]}],"realm":"r%d"}`, i)
}

// changes runs b.N changes and reports the median, which says more on a shared
// machine than the mean does.
func changes(b *testing.B, port int, change func(i int)) {
	transport := &http.Transport{MaxIdleConnsPerHost: 1}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
	change(0)
	awaitRealm(b, client, port, 0)
	var took []time.Duration
	b.ResetTimer()
	for i := 1; i <= b.N; i++ {
		begin := time.Now()
		change(i)
		awaitRealm(b, client, port, i)
		took = append(took, time.Since(begin))
	}
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2])/float64(time.Millisecond), "ms-median")
}

func awaitRealm(b *testing.B, client *http.Client, port, i int) {
	want := fmt.Sprintf("Basic realm=r%d", i)
	deadline := time.Now().Add(30 * time.Second)
	for {
		a, err := request(client, http.MethodGet, port, "/", nil)
		if err == nil && a.headers.Get("Www-Authenticate") == want {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("realm r%d never came: %v %v", i, a.code, err)
		}
	}
}

func benchmarkChandler(b *testing.B, mod []byte) {
	w := newWorld(b)
	port := freePort(b)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("basic:v1", mod)
	admin := chandlerv1connect.NewAdminClient(http.DefaultClient, "http://"+w.admin)
	changes(b, port, func(i int) {
		res, err := admin.Apply(b.Context(), connect.NewRequest(&chandlerv1.ApplyRequest{
			Manifest: []byte(plugin("p", url, "pluginConfig: "+realmConfig(i))),
		}))
		if err != nil || len(res.Msg.Results[0].Problems) > 0 {
			b.Fatal(err, res)
		}
	})
}

func benchmarkEnvoyAlone(b *testing.B, mod []byte) {
	dir, port := b.TempDir(), freePort(b)
	path := filepath.Join(dir, "plugin.wasm")
	if err := os.WriteFile(path, mod, 0o600); err != nil {
		b.Fatal(err)
	}
	ads, slots := startEnvoyAlone(b, dir, directGateway(port))
	slot := slots[len(slots)-1]
	a := chandler.Attachment{
		Key:       chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "edge", Name: "p"},
		Program:   chandler.Program{Module: &chandler.Module{Digest: chandler.Digest[chandler.ModuleDigest](mod)}},
		Behaviour: chandler.Behaviour{Type: chandler.HTTP, FailStrategy: chandler.FailClose},
	}
	changes(b, port, func(i int) {
		a.Config = []byte(realmConfig(i))
		config := attach.Compose(slot, []attach.Member{{Attachment: &a, ModulePath: path}})
		ads.Set(slot.Name(), attach.Version(config), attach.Body(config))
	})
}

// startEnvoyAlone runs Envoy over a derived configuration, with nothing but the
// loop that speaks to it.
func startEnvoyAlone(b *testing.B, dir, config string) (*envoyads.Server, []attach.Slot) {
	b.Helper()
	sockets, err := os.MkdirTemp("", "chandler-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(sockets) })
	parsed, err := attach.MergeConfig("envoy.yaml", []byte(config), "")
	if err != nil {
		b.Fatal(err)
	}
	derived, err := attach.Derive(parsed, attach.DeriveConfig{
		NodeID: "bench", Cluster: "bench", ListenersFile: filepath.Join(dir, "listeners"),
		ADSSocket: filepath.Join(sockets, "ads.sock"), AdminSocket: filepath.Join(sockets, "admin.sock"),
	})
	if err != nil {
		b.Fatal(err)
	}
	bootstrap := filepath.Join(dir, "bootstrap.yaml")
	for name, content := range map[string][]byte{bootstrap: derived.Bootstrap, derived.ListenersFile: derived.Listeners} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	ads := envoyads.New(envoyads.Config{Events: func(envoyads.Event) {}})
	for _, slot := range derived.Slots {
		empty := attach.Compose(slot, nil)
		ads.Set(slot.Name(), attach.Version(empty), attach.Body(empty))
	}
	lis, err := net.Listen("unix", filepath.Join(sockets, "ads.sock"))
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- ads.Serve(ctx, lis) }()
	cmd := exec.Command(module.Envoy(b), "-c", bootstrap, "--use-dynamic-base-id", "--concurrency", "1", "-l", "off")
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		cancel()
		<-served
	})
	return ads, derived.Slots
}

// directGateway is a gateway that answers by itself.
func directGateway(port int) string {
	config := fmt.Sprintf("static_resources:\n  listeners:\n  - name: in\n    address: {socket_address: {address: 127.0.0.1, port_value: %d}}\n    filter_chains:\n    - filters:\n%s",
		port, connectionManager("      ", ""))
	return strings.Replace(config, "route: {cluster: upstream}", "direct_response: {status: 200}", 1)
}
