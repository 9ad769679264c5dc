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
	"chandler.dev/chandler/api/chandler/v1/chandlerv1connect"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/xds/envoyads"
)

// BenchmarkConfigChange times a change of a plugin's configuration until the
// next request on a kept connection is decided by it, with the sample plugin (a
// Go module of 2.4 MB) on a real Envoy. Three are changed in turn: one Envoy is
// handed the finished slot, which is what Envoy itself needs; for the other the
// resource is applied to a control plane, and for a third to one that tries every
// change in an Envoy first. The medians are reported.
func BenchmarkConfigChange(b *testing.B) {
	mod := sample(b)
	versions := func(i int) (string, []byte) { return realmConfig(i), mod }
	alone, whole, vetted := envoyAlone(b, versions), underChandler(b, versions), underChandler(b, versions, "--envoy", envoyBinary(b))
	alone.change(b, 0)
	whole.change(b, 0)
	kept := func() float64 { return metricOf(b, vetted.world.admin, `chandler_vet_envoys_total{envoy="kept"}`) }
	for i := 0; kept() == 0; i++ { // until an Envoy holds the module
		vetted.change(b, -i)
	}
	before, n := kept(), 0
	for b.Loop() {
		n++
		alone.change(b, n)
		whole.change(b, n)
		vetted.change(b, n)
	}
	if tried := kept() - before; tried != float64(n) {
		b.Errorf("%v of %d changes were tried in an Envoy that held the module", tried, n)
	}
	b.ReportMetric(alone.median(), "envoy-ms")
	b.ReportMetric(whole.median(), "chandler-ms")
	b.ReportMetric(vetted.median(), "vetted-ms")
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
	// prepare does what is not timed; nil: nothing.
	prepare func(i int)
	apply   func(i int)
	shows   func(a answer, i int) bool
	world   *world // nil: there is no control plane
	took    []time.Duration
}

func newSubject(b *testing.B, port int, apply func(i int)) *subject {
	transport := &http.Transport{MaxIdleConnsPerHost: 1}
	b.Cleanup(transport.CloseIdleConnections)
	return &subject{port: port, apply: apply, shows: showsRealm, client: &http.Client{Transport: transport, Timeout: 20 * time.Second}}
}

// change applies version i and waits until a request shows it.
func (s *subject) change(b *testing.B, i int) {
	b.Helper()
	if s.prepare != nil {
		s.prepare(i)
	}
	begin := time.Now()
	s.apply(i)
	awaitAnswer(b, s.client, s.port, fmt.Sprint("version ", i), func(a answer) bool { return s.shows(a, i) })
	if i > 0 { // the first is an attach
		s.took = append(s.took, time.Since(begin))
	}
}

// median in milliseconds says more on a shared machine than the mean does.
func (s *subject) median() float64 { return median(s.took) }

func median(took []time.Duration) float64 {
	sorted := slices.Sorted(slices.Values(took))
	return inMilliseconds(sorted[len(sorted)/2])
}

func inMilliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// realmConfig guards everything and names a realm, which the answer shows.
func realmConfig(i int) string {
	return fmt.Sprintf(`{"basic_auth_rules":[{"credentials":["ok:test"],"prefix":"/","request_methods":["GET"]}],"realm":"r%d"}`, i)
}

func showsRealm(a answer, i int) bool {
	return a.headers.Get("Www-Authenticate") == fmt.Sprintf("Basic realm=r%d", i)
}

func awaitRealm(b *testing.B, client *http.Client, port, i int) {
	b.Helper()
	awaitAnswer(b, client, port, fmt.Sprint("realm r", i), func(a answer) bool { return showsRealm(a, i) })
}

// awaitAnswer asks again and again, without a pause, until an answer is as it should be.
func awaitAnswer(b *testing.B, client *http.Client, port int, what string, holds func(answer) bool) {
	b.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; {
		a, err := request(client, http.MethodGet, port, "/", nil)
		if err == nil && holds(a) {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("%s never came: %v %v", what, a.code, err)
		}
	}
}

// version is a plugin's configuration and module, by number. The same module again is
// the same slice.
type version func(i int) (config string, mod []byte)

// underChandler has versions applied to a control plane.
func underChandler(b *testing.B, versions version, flags ...string) *subject {
	w := newWorld(b, flags...)
	port := freePort(b)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	admin := w.client()
	var pushed []byte
	var url string
	s := newSubject(b, port, func(i int) {
		config, _ := versions(i)
		apply(b, admin, plugin("p", url, "pluginConfig: "+config))
	})
	s.prepare = func(i int) {
		if _, mod := versions(i); pushed == nil || &mod[0] != &pushed[0] {
			pushed, url = mod, w.push(fmt.Sprintf("basic:v%d", i), mod)
		}
	}
	s.world = w
	return s
}

// apply applies a manifest without a process of its own, and does not wait.
func apply(b *testing.B, admin chandlerv1connect.AdminClient, manifest string) {
	b.Helper()
	res, err := admin.Apply(b.Context(), connect.NewRequest(&chandlerv1.ApplyRequest{Manifest: []byte(manifest)}))
	if err != nil || len(res.Msg.Results[0].Problems) > 0 {
		b.Fatal(err, res)
	}
}

// envoyAlone is handed the finished slot of each version.
func envoyAlone(b *testing.B, versions version) *subject {
	dir, port := b.TempDir(), freePort(b)
	ads, slots := startEnvoyAlone(b, dir, directGateway(port))
	slot := slots[len(slots)-1]
	a := chandler.Attachment{
		Key:       chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "edge", Name: "p"},
		Behaviour: chandler.Behaviour{Type: chandler.HTTP, FailStrategy: chandler.FailClose},
	}
	var written []byte
	var path string
	s := newSubject(b, port, func(i int) {
		config, _ := versions(i)
		a.Config = []byte(config)
		content := attach.Compose(slot, []attach.Member{{Attachment: &a, ModulePath: path}})
		ads.Set(slot.Name(), attach.Version(content), attach.Body(content))
	})
	s.prepare = func(i int) {
		_, mod := versions(i)
		if written != nil && &mod[0] == &written[0] {
			return
		}
		written, path = mod, filepath.Join(dir, fmt.Sprintf("plugin-%d.wasm", i))
		if err := os.WriteFile(path, mod, 0o600); err != nil {
			b.Fatal(err)
		}
		a.Program = chandler.Program{Module: &chandler.Module{Digest: chandler.Digest[chandler.ModuleDigest](mod)}}
	}
	return s
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
