package edge

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	buffer "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/buffer/v3"
	wasm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/upstream"
	"chandler.dev/chandler/internal/xds/relay"
	"chandler.dev/chandler/internal/xds/viewstore"
)

const bound = time.Minute

func TestMain(m *testing.M) { leaks.Main(m) }

// site is an upstream, an edge before it and a real Envoy behind that.
type site struct {
	*testing.T
	*upstream.Upstream
	variant      upstream.Variant
	dir, backend string
	hooks        relay.Hooks
	took         func()
	taken        func() ([]relay.View, time.Time) // what is to be kept; nil: the edge's own
	edge         *Edge
	stopEdge     func()
	stopEnvoy    func()
	envoys       int
}

func newSite(t *testing.T, v upstream.Variant, hooks relay.Hooks) *site {
	t.Helper()
	dir, err := os.MkdirTemp("", "chandler") // short: paths of sockets are bounded
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "backend") }))
	t.Cleanup(backend.Close)
	s := &site{T: t, Upstream: upstream.New(t, upstream.Config{Variant: v}), variant: v, dir: dir, hooks: hooks, took: func() {},
		backend: backend.Listener.Addr().String()}
	t.Cleanup(func() {
		if s.stopEnvoy != nil {
			s.stopEnvoy()
		}
		if s.stopEdge != nil {
			s.stopEdge()
		}
	})
	return s
}

func (s *site) socket() string { return filepath.Join(s.dir, "xds") }

// startEdge starts an edge with what one before kept on disk.
func (s *site) startEdge() {
	s.Helper()
	store, remembered, problems, err := viewstore.Open(viewstore.Config{Dir: filepath.Join(s.dir, "views")})
	if err != nil || len(problems) != 0 {
		s.Fatal(err, problems)
	}
	conn, err := grpc.NewClient(s.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.Fatal(err)
	}
	config := Config{Hooks: s.hooks, Upstream: conn, Remembered: remembered, Took: func() { s.took(); store.Changed() }}
	lis, err := net.Listen("unix", s.socket())
	if err != nil {
		s.Fatal(err)
	}
	s.edge = New(config)
	taken := s.taken
	if taken == nil {
		taken = s.edge.Taken
	}
	ctx, cancel := context.WithCancel(context.Background())
	done, kept := make(chan error, 1), make(chan struct{})
	go func() { done <- s.edge.Serve(ctx, lis) }()
	go func() {
		defer close(kept)
		store.Run(ctx, taken)
	}()
	s.stopEdge = func() {
		cancel()
		<-kept
		if p := store.Problem(); p != nil {
			s.Errorf("not kept: %v", p)
		}
		if err := <-done; err != nil {
			s.Errorf("Serve: %v", err)
		}
		_ = conn.Close()
		s.stopEdge = nil
	}
}

// startEnvoy starts one whose control plane is the edge.
func (s *site) startEnvoy() {
	s.Helper()
	s.envoys++
	_, port, _ := net.SplitHostPort(s.Addr)
	direct := fmt.Sprintf("{socket_address: {address: 127.0.0.1, port_value: %s}}", port)
	text := s.Bootstrap("tester", filepath.Join(s.dir, fmt.Sprint("admin", s.envoys)))
	if !strings.Contains(text, direct) {
		s.Fatal("the bootstrap has no address of the upstream")
	}
	text = strings.ReplaceAll(text, direct, fmt.Sprintf("{pipe: {path: %q}}", s.socket()))
	bootstrap := filepath.Join(s.dir, "bootstrap.yaml")
	if err := os.WriteFile(bootstrap, []byte(text), 0o600); err != nil {
		s.Fatal(err)
	}
	log, err := os.Create(filepath.Join(s.dir, fmt.Sprint("log", s.envoys)))
	if err != nil {
		s.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(module.Envoy(s.T), "-c", bootstrap, "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	s.stopEnvoy = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		s.stopEnvoy = nil
		if s.Failed() {
			text, _ := os.ReadFile(log.Name())
			s.Logf("the log of Envoy %s:\n%.8000s", log.Name(), text)
		}
	}
}

// ask asks on a socket and gives the answer's body and mark; nothing if there is none.
func (s *site) ask(socket, path string) (body, mark string) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport, Timeout: bound}).Get("http://envoy" + path)
	if err != nil {
		return "", ""
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	return string(text), res.Header.Get("x-mark")
}

// serves waits until the backend answers through the listener l with that mark.
func (s *site) serves(want string) {
	s.Helper()
	s.answers(filepath.Join(s.dir, "l"), want)
}

// answers waits until the backend answers through a socket with that mark.
func (s *site) answers(socket, want string) {
	s.Helper()
	var body, mark string
	for until := time.Now().Add(bound); time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
		if body, mark = s.ask(socket, "/"); body == "backend" && mark == want {
			return
		}
	}
	s.Fatalf("answered %q with mark %q, want the backend with %q", body, mark, want)
}

func (s *site) set(version, mark string, more ...types.Resource) {
	s.Helper()
	filter := s.variant.Discovered("limit", bufferType)
	s.Set(version, append(upstream.Resources{
		s.variant.Listener("l", filepath.Join(s.dir, "l"), "r", filter), s.variant.Cluster("c"),
		upstream.Route("r", "c", mark), upstream.Backend("c", s.backend),
		upstream.Extension("limit", &buffer.Buffer{MaxRequestBytes: wrapperspb.UInt32(1000)}),
	}, more...))
}

// A real Envoy behind the edge has of every variant what it would have of the upstream
// itself; and when the upstream is away, an Envoy that starts has it too, also behind
// another edge.
func TestEnvoyBehindTheEdge(t *testing.T) {
	t.Parallel()
	for _, v := range upstream.Variants {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, v, relay.Hooks{})
			s.startEdge()
			s.startEnvoy()
			s.set("1", "first")
			s.serves("first")
			for kind, want := range map[string]string{upstream.Listeners: "*", upstream.Clusters: "*", upstream.Routes: "r",
				upstream.Endpoints: "c", upstream.Extensions: "limit"} {
				if got := s.Subscribed(kind); !slices.Equal(got, []string{want}) {
					t.Errorf("of %s the upstream is asked for %q, want %q", kind, got, want)
				}
				s.Await(kind+" is acknowledged", func() bool { return s.Acked(kind, "1") })
			}
			if node := s.Requests()[0].Node; node.GetId() != "tester" || node.GetMetadata().GetFields()["LABELS"] == nil || len(node.GetExtensions()) < 100 {
				t.Errorf("the upstream is told of node %q with %d extensions", node.GetId(), len(node.GetExtensions()))
			}

			s.set("2", "second")
			s.serves("second")
			began := time.Now()
			s.set("3", "third", &listenerv3.Listener{Name: "bad"})
			s.Await("the bad listener is refused", func() bool { return s.Nacked(upstream.Listeners, "3") != "" })
			if words := s.Nacked(upstream.Listeners, "3"); !strings.Contains(words, "bad") {
				t.Errorf("refused with %q", words)
			}
			s.serves("third")
			time.Sleep(300 * time.Millisecond)
			requests, most := s.Requests(), 2
			for pauses := time.Second; pauses <= time.Since(began); pauses = 2*pauses + time.Second { // each twice the one before
				most++
			}
			for _, r := range requests {
				if r.Again > most {
					t.Errorf("%s was refused %d times more in %v", r.Type, r.Again, time.Since(began))
				}
			}
			s.set("4", "fourth")
			s.serves("fourth")
			s.Await("the routes are taken", func() bool { return s.Acked(upstream.Routes, "4") })

			s.resumes()
			s.set("5", "fifth")
			s.serves("fifth")
			s.Await("the routes are taken", func() bool { return s.Acked(upstream.Routes, "5") })

			s.Stop()
			s.stopEnvoy()
			s.startEnvoy()
			s.serves("fifth")
			s.stopEnvoy()
			s.stopEdge()
			s.startEdge()
			s.startEnvoy()
			s.serves("fifth")

			s.Start()
			s.set("6", "sixth")
			s.serves("sixth")
		})
	}
}

// A real Envoy that refuses an extension keeps the one before, and takes a listener that
// names it: it would not as long as it remembers the refused one.
func TestRefusedExtension(t *testing.T) {
	t.Parallel()
	for _, v := range []upstream.Variant{{}, {Delta: true}} {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, v, relay.Hooks{})
			s.startEdge()
			s.startEnvoy()
			set := func(version string, bad proto.Message, more uint32) {
				l := v.Listener("l", filepath.Join(s.dir, "l"), "r",
					v.Discovered("bad", bufferType, wasmType), v.Discovered("good", bufferType))
				l.PerConnectionBufferLimitBytes = wrapperspb.UInt32(1<<20 + more)
				good := &buffer.Buffer{MaxRequestBytes: wrapperspb.UInt32(1000 + more)}
				s.Set(version, upstream.Resources{l, v.Cluster("c"), upstream.Backend("c", s.backend), upstream.Route("r", "c", version),
					upstream.Extension("bad", bad), upstream.Extension("good", good)})
			}
			set("1", &buffer.Buffer{MaxRequestBytes: wrapperspb.UInt32(1000)}, 0)
			s.serves("1")
			s.Await("both are taken", func() bool { return s.Acked(upstream.Extensions, "1") })
			set("2", missing, 1)
			s.Await("one is refused", func() bool { return s.Nacked(upstream.Extensions, "2") != "" })
			if words := s.Nacked(upstream.Extensions, "2"); !strings.Contains(words, "/missing") {
				t.Errorf("refused with %q", words)
			}
			set("3", missing, 2)
			s.Await("the listener is taken", func() bool { return s.Acked(upstream.Listeners, "3") })
			s.serves("3")
			set("4", &buffer.Buffer{MaxRequestBytes: wrapperspb.UInt32(2000)}, 3)
			s.Await("both are taken again", func() bool { return s.Acked(upstream.Extensions, "4") })
		})
	}
}

// missing is a plugin whose module is not there.
var missing = &wasm.Wasm{Config: &wasmv3.PluginConfig{Name: "missing", Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{
	Runtime: "envoy.wasm.runtime.v8", Code: &core.AsyncDataSource{Specifier: &core.AsyncDataSource_Local{Local: &core.DataSource{
		Specifier: &core.DataSource_Filename{Filename: "/missing"}}}}}}}}

const wasmType = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"

const bufferType = "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer"

// resumes has all streams of the upstream ended, and waits until the edge came back with
// what Envoy has.
func (s *site) resumes() {
	s.Helper()
	_, before := s.Streams()
	s.Cut()
	s.Await("the edge comes back", func() bool {
		return slices.ContainsFunc(s.Requests(), func(r upstream.Request) bool {
			return r.Stream > int64(before) && r.Type == upstream.Routes && len(r.Known) == 1
		})
	})
}

// Many listeners and routes of a real Envoy change while a transform of listeners changes
// and the upstream's connections are cut; Envoy has in the end what the upstream has, with
// the transform.
func TestManyChanges(t *testing.T) {
	t.Parallel()
	const n = 100
	for _, v := range []upstream.Variant{{}, {Delta: true}} {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			var edits atomic.Int32
			s := newSite(t, v, relay.Hooks{Transforms: map[string]relay.Transform{upstream.Listeners: func(r relay.Resource) ([]byte, bool) {
				const statPrefix = 28
				b := protowire.AppendTag(slices.Clip(r.Body), statPrefix, protowire.BytesType)
				return protowire.AppendString(b, fmt.Sprint("edit-", edits.Load())), true
			}}})
			many := upstream.NewSite(v, n, s.dir, s.backend, 1)
			s.startEdge()
			s.startEnvoy()
			s.Set("0", many.Resources())
			s.Await("all listeners are taken", func() bool { return s.Acked(upstream.Routes, "0") })
			for round := 1; round <= 4; round++ {
				many.Change(n)
				s.Set(fmt.Sprint(round), many.Resources())
				edits.Add(1)
				s.edge.Changed(upstream.Listeners)
				if round == 3 {
					s.Cut()
				}
			}
			s.Await("the last routes are taken", func() bool { return s.Acked(upstream.Routes, "4") })
			for i := range n {
				s.answers(many.Socket(i), many.Mark(i))
			}
			want, got := fmt.Sprint("edit-", edits.Load()), 0
			for until := time.Now().Add(bound); got != n && time.Now().Before(until); time.Sleep(200 * time.Millisecond) {
				dump, _ := s.ask(filepath.Join(s.dir, "admin1"), "/config_dump?resource=dynamic_listeners")
				got = strings.Count(dump, fmt.Sprintf("%q", want))
			}
			if got != n {
				t.Errorf("%d listeners of %d have what the transform gives", got, n)
			}
		})
	}
}
