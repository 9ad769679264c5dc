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
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/xds/envoyads"
)

// BenchmarkConfigChange times a change of a plugin's configuration until the
// next request on a kept connection is decided by it, with the sample plugin (a
// Go module of 2.4 MB) on a real Envoy. Two are changed in turn: one Envoy is
// handed the finished slot, which is what Envoy itself needs; for the other the
// resource is applied to a control plane, and for a third to one that tries every
// change in an Envoy first. The medians are reported, and what chandler adds to the
// first: without trials, and over twice of it with them.
func BenchmarkConfigChange(b *testing.B) {
	mod := sample(b)
	alone, whole, vetted := envoyAlone(b, mod), underChandler(b, mod), underChandler(b, mod, "--envoy", envoyBinary(b))
	alone.change(b, 0)
	whole.change(b, 0)
	kept := func() float64 { return metricOf(b, vetted.admin, `chandler_vet_envoys_total{envoy="kept"}`) }
	for i := 0; kept() == 0; i++ { // until an Envoy holds the module
		vetted.change(b, -i)
	}
	before := kept()
	b.ResetTimer()
	for i := 1; i <= b.N; i++ {
		alone.change(b, i)
		whole.change(b, i)
		vetted.change(b, i)
	}
	b.StopTimer()
	if n := kept() - before; n != float64(b.N) {
		b.Errorf("%v of %d changes were tried in an Envoy that held the module", n, b.N)
	}
	envoy, chandler, tried := alone.median(), whole.median(), vetted.median()
	b.ReportMetric(envoy, "envoy-ms")
	b.ReportMetric(chandler, "chandler-ms")
	b.ReportMetric(chandler-envoy, "added-ms")
	b.ReportMetric(tried, "vetted-ms")
	b.ReportMetric(tried-2*envoy, "vetted-over-twice-ms")
}

func metricOf(b *testing.B, admin, series string) float64 {
	b.Helper()
	for line := range strings.Lines(fetchText(b, "http://"+admin+"/metrics")) {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	return 0
}

// subject is an Envoy whose plugin is changed again and again.
type subject struct {
	client *http.Client
	port   int
	apply  func(i int)
	admin  string // of the control plane, if there is one
	took   []time.Duration
}

func newSubject(b *testing.B, port int, apply func(i int)) *subject {
	transport := &http.Transport{MaxIdleConnsPerHost: 1}
	b.Cleanup(transport.CloseIdleConnections)
	return &subject{port: port, apply: apply, client: &http.Client{Transport: transport, Timeout: 20 * time.Second}}
}

// change applies configuration i and waits until a request shows it.
func (s *subject) change(b *testing.B, i int) {
	begin := time.Now()
	s.apply(i)
	awaitRealm(b, s.client, s.port, i)
	if i > 0 { // the first is an attach
		s.took = append(s.took, time.Since(begin))
	}
}

// median in milliseconds says more on a shared machine than the mean does.
func (s *subject) median() float64 {
	slices.Sort(s.took)
	return float64(s.took[len(s.took)/2]) / float64(time.Millisecond)
}

// realmConfig guards everything and names a realm, which the answer shows.
func realmConfig(i int) string {
	return fmt.Sprintf(`{"basic_auth_rules":[{"credentials":["ok:test"],"prefix":"/","request_methods":["GET"]}],"realm":"r%d"}`, i)
}

func awaitRealm(b *testing.B, client *http.Client, port, i int) {
	want := fmt.Sprintf("Basic realm=r%d", i)
	deadline := time.Now().Add(2 * time.Minute)
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

func underChandler(b *testing.B, mod []byte, flags ...string) *subject {
	w := newWorld(b, flags...)
	port := freePort(b)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("basic:v1", mod)
	admin := w.client()
	s := newSubject(b, port, func(i int) {
		res, err := admin.Apply(b.Context(), connect.NewRequest(&chandlerv1.ApplyRequest{
			Manifest: []byte(plugin("p", url, "pluginConfig: "+realmConfig(i))),
		}))
		if err != nil || len(res.Msg.Results[0].Problems) > 0 {
			b.Fatal(err, res)
		}
	})
	s.admin = w.admin
	return s
}

func envoyAlone(b *testing.B, mod []byte) *subject {
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
	return newSubject(b, port, func(i int) {
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
	cmd := exec.Command(envoyBinary(b), "-c", bootstrap, "--use-dynamic-base-id", "--concurrency", "1", "-l", "off")
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
