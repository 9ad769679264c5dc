package upstream

import (
	"context"
	"crypto/tls"
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
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	buffer "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/buffer/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"chandler.dev/chandler/internal/testenv/authority"
	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/testenv/module"
)

func TestMain(m *testing.M) { leaks.Main(m) }

// envoy is a real one, connected directly.
type envoy struct {
	*testing.T
	*Upstream
	dir, backend string
}

func startEnvoy(t *testing.T, c Config) *envoy {
	t.Helper()
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "backend") }))
	t.Cleanup(backend.Close)
	e := &envoy{t, New(t, c), t.TempDir(), backend.Listener.Addr().String()}
	e.run(e.Bootstrap("tester", filepath.Join(e.dir, "admin")))
	return e
}

// run starts the Envoy itself.
func (e *envoy) run(config string) {
	t := e.T
	t.Helper()
	bootstrap := filepath.Join(e.dir, "bootstrap.yaml")
	if err := os.WriteFile(bootstrap, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(e.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(module.Envoy(t), "-c", bootstrap, "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("Envoy's log:\n%.8000s", text)
		}
	})
}

// get asks on a socket and gives the answer's body and mark; nothing if there is none.
func (e *envoy) get(socket string) (body, mark string) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport, Timeout: bound}).Get("http://envoy/")
	if err != nil {
		return "", ""
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	return string(text), res.Header.Get("x-mark")
}

// serves waits until the backend answers through a socket with that mark.
func (e *envoy) serves(socket, want string) {
	e.Helper()
	var body, mark string
	for until := time.Now().Add(bound); time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
		if body, mark = e.get(socket); body == "backend" && mark == want {
			return
		}
	}
	e.Fatalf("answered %q with mark %q, want the backend with %q", body, mark, want)
}

// Every variant as one client sees it: it serves, changes, is refused, is cut, and is
// restarted; and it tells of all that.
func TestVariants(t *testing.T) {
	t.Parallel()
	for _, v := range Variants {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			e := startEnvoy(t, Config{Variant: v})
			socket := filepath.Join(e.dir, "l")
			set := func(version, mark string, more ...types.Resource) {
				filter := v.Discovered("limit", "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer")
				e.Set(version, append(Resources{
					v.Listener("l", socket, "r", filter), v.Cluster("c"), Route("r", "c", mark), Backend("c", e.backend),
					Extension("limit", &buffer.Buffer{MaxRequestBytes: wrapperspb.UInt32(1000)}),
				}, more...))
			}
			set("1", "first")
			e.serves(socket, "first")
			for kind, want := range map[string]string{Listeners: "*", Clusters: "*", Routes: "r", Endpoints: "c", Extensions: "limit"} {
				if got := e.Subscribed(kind); !slices.Equal(got, []string{want}) {
					t.Errorf("of %s it subscribed to %q, want %q", kind, got, want)
				}
				e.Await(kind+" is acknowledged", func() bool { return e.Acked(kind, "1") })
			}
			if r := e.Requests()[0]; r.Node.GetId() != "tester" || len(r.Known) != 0 {
				t.Errorf("the first request is of node %q and knows %v", r.Node.GetId(), r.Known)
			}

			set("2", "second")
			e.serves(socket, "second")

			bad := &listenerv3.Listener{Name: "bad", Address: addressOf(filepath.Join(e.dir, "bad"))}
			set("3", "third", bad)
			e.Await("the bad listener is refused", func() bool { return e.Nacked(Listeners, "3") != "" })
			if words := e.Nacked(Listeners, "3"); !strings.Contains(words, "bad") || !strings.Contains(words, "no filter chains") {
				t.Errorf("refused with %q", words)
			}
			e.serves(socket, "third")
			set("4", "fourth")
			e.serves(socket, "fourth")
			e.Await("the listeners are taken again", func() bool { return e.Acked(Routes, "4") })

			e.resumes(e.Cut)
			set("5", "fifth")
			e.serves(socket, "fifth")

			e.resumes(func() { e.Stop(); e.Start() })
			set("6", "sixth")
			e.serves(socket, "sixth")
		})
	}
}

// resumes has all streams ended, and waits until the client came back with what it had.
func (e *envoy) resumes(end func()) {
	e.Helper()
	_, before := e.Streams()
	end()
	e.Await("the client comes back", func() bool {
		return slices.ContainsFunc(e.Requests(), func(r Request) bool {
			return r.Stream > int64(before) && r.Type == Routes && len(r.Known) == 1
		})
	})
}

// With mutual TLS an Envoy is served with the certificate of its bootstrap, and
// nobody without one.
func TestMutualTLS(t *testing.T) {
	t.Parallel()
	e := startEnvoy(t, Config{Authority: authority.New(t), Mutual: true})
	socket := filepath.Join(e.dir, "l")
	e.Set("1", Resources{e.config.Listener("l", socket, "r"), e.config.Cluster("c"), Route("r", "c", "safe"), Backend("c", e.backend)})
	e.serves(socket, "safe")

	nobody, err := tls.Dial("tcp", e.Addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Close()
	_ = nobody.SetDeadline(time.Now().Add(bound))
	if _, err := nobody.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("without a certificate: %v", err)
	}
}

// Many listeners are served and changed; the same seed makes the same changes.
func TestSite(t *testing.T) {
	t.Parallel()
	e := startEnvoy(t, Config{Variant: Variant{Delta: true}})
	site, twin := NewSite(e.config.Variant, 200, e.dir, e.backend, 1), NewSite(e.config.Variant, 200, e.dir, e.backend, 1)
	for round := range 2 {
		e.Set(fmt.Sprint(round), site.Resources())
		for _, kind := range []string{Clusters, Endpoints, Listeners, Routes} {
			e.Await(kind+" are taken", func() bool { return e.Acked(kind, fmt.Sprint(round)) })
		}
		for i := 0; i < 200; i += 20 {
			e.serves(site.Socket(i), site.Mark(i))
		}
		site.Change(300)
		twin.Change(300)
	}
	same := twin.Resources()
	for i, r := range site.Resources() {
		if !proto.Equal(r, same[i]) {
			t.Fatalf("two sites of one seed differ:\n%v", r)
		}
	}
	other := NewSite(e.config.Variant, 200, e.dir, e.backend, 2)
	if other.Change(600); slices.Equal(other.routes, site.routes) {
		t.Error("two seeds make the same changes")
	}
}
