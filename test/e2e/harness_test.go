package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/api/chandler/v1/chandlerv1connect"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/ports"
	"chandler.dev/chandler/internal/testenv/registry"
	"chandler.dev/chandler/internal/web"
)

// envoyFlag names another Envoy to test with, by its path from the repository's
// root.
var envoyFlag = flag.String("envoy", "", "Envoy binary, by its path from the repository's root")

func envoyBinary(t testing.TB) string {
	t.Helper()
	if *envoyFlag == "" {
		return module.Envoy(t)
	}
	path, err := filepath.Abs(filepath.Join("..", "..", *envoyFlag))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("no Envoy at %s: run make tools", path)
	}
	return path
}

// built are the commands under test, built once for the package.
var built string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "chandler-e2e-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		built = dir
		// Where control planes leave word of their sockets, for the commands of tests.
		if err := os.Setenv("XDG_STATE_HOME", filepath.Join(dir, "state")); err != nil {
			panic(err)
		}
		args := append([]string{"build"}, buildFlags...)
		cmd := exec.Command("go", append(args, "-o", dir+"/", "chandler.dev/chandler/cmd/chandler", "chandler.dev/chandler/cmd/chandler-agent")...)
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

func freePort(t testing.TB) int {
	t.Helper()
	addr, err := ports.Free()
	if err != nil {
		t.Fatal(err)
	}
	return int(netip.MustParseAddrPort(addr).Port())
}

func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// eventually waits for a condition, with a bound for a machine that does nothing else (see
// patience); why is asked when it fails.
func eventually(t testing.TB, within time.Duration, what string, holds func() (bool, string)) {
	t.Helper()
	within = patience(within)
	deadline := time.Now().Add(within)
	for {
		ok, why := holds()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %s", what, within, why)
		}
		time.Sleep(5 * time.Millisecond) // between looks at a condition
	}
}

// world is a registry, an upstream and a control plane; agents are added to it.
type world struct {
	t        testing.TB
	dir      string
	registry *registry.Registry
	upstream *httptest.Server
	control  *process
	listen   string
	admin    string
	plugins  string
	flags    []string // more of the control plane's
	program  string   // the control plane's, when it is not the one under test
}

// newWorld starts everything but agents. It ends with the test. flags are more of
// the control plane's.
func newWorld(t testing.TB, flags ...string) *world {
	t.Helper()
	w := uncontrolled(t, flags...)
	w.startControl()
	return w
}

// uncontrolled is a world without a control plane.
func uncontrolled(t testing.TB, flags ...string) *world {
	t.Helper()
	w := &world{t: t, flags: flags, dir: t.TempDir(), listen: loopback(freePort(t)), admin: loopback(freePort(t))}
	w.plugins = filepath.Join(w.dir, "plugins")
	if err := os.Mkdir(w.plugins, 0o755); err != nil {
		t.Fatal(err)
	}
	reg, err := registry.Start(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reg.Close)
	w.registry = reg
	w.upstream = httptest.NewServer(http.HandlerFunc(echo))
	t.Cleanup(w.upstream.Close)
	return w
}

func (w *world) startControl() {
	w.t.Helper()
	w.launchControl()
	eventually(w.t, 20*time.Second, "control plane ready", func() (bool, string) {
		return status("http://" + w.admin + "/healthz/ready")
	})
}

// launchControl starts the control plane and does not wait.
func (w *world) launchControl() {
	w.t.Helper()
	args := []string{"serve", "--data", filepath.Join(w.dir, "control"), "--listen", w.listen, "--admin", w.admin}
	if w.plugins != "" {
		args = append(args, "--plugins", w.plugins)
	}
	if w.program == "" && !strings.Contains(strings.Join(w.flags, " "), "--envoy") && !strings.Contains(strings.Join(w.flags, " "), "--vet-") {
		args = append(args, "--no-vet") // many tests are about what proxies refuse
	}
	w.control = start(w.t, filepath.Join(w.dir, "control.log"), cmp.Or(w.program, filepath.Join(built, "chandler")), append(args, w.flags...)...)
}

// client is of the admin API, over the control plane's socket.
func (w *world) client() chandlerv1connect.AdminClient {
	way := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return web.DialSocket(ctx, filepath.Join(w.dir, "control", "admin.sock"))
	}}
	return chandlerv1connect.NewAdminClient(&http.Client{Transport: way}, "http://localhost")
}

// echo answers with the request's headers, so that a test sees what plugins did
// to it.
func echo(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, 1<<20))
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(r.Header)
}

func status(url string) (bool, string) {
	resp, err := http.Get(url)
	if err != nil {
		return false, err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	return resp.StatusCode == http.StatusOK, resp.Status + ": " + string(body)
}

// push puts a module into the registry and gives its url.
func (w *world) push(name string, mod []byte) string {
	url, _ := w.pushDigest(name, mod)
	return url
}

// pushDigest gives the manifest's digest too.
func (w *world) pushDigest(name string, mod []byte) (url string, digest chandler.ArtifactDigest) {
	w.t.Helper()
	client := fetch.New(fetch.Config{Dir: w.dir})
	defer client.Close()
	ref := w.registry.Addr + "/plugins/" + name
	digest, err := client.Push(w.t.Context(), ref, mod, fetch.PushOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return "oci://" + ref, digest
}

// cli runs chandler and gives its output and whether it succeeded.
func (w *world) cli(stdin string, args ...string) (string, bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(built, "chandler"), append(args, "--server", w.admin)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatalf("chandler %v: %v", args, err)
	}
	return string(out), err == nil
}

// apply applies a manifest and waits until it is in force.
func (w *world) apply(manifest string) {
	w.t.Helper()
	if out, ok := w.cli(manifest, "apply", "-f", "-", "--wait", "--timeout", "60s"); !ok {
		w.t.Fatalf("apply: %s\n%s", out, manifest)
	}
}

// submit applies a manifest and does not wait.
func (w *world) submit(manifest string) {
	w.t.Helper()
	if out, ok := w.cli(manifest, "apply", "-f", "-"); !ok {
		w.t.Fatalf("apply: %s\n%s", out, manifest)
	}
}

// plugin is a WasmPlugin in the namespace "edge"; more are further lines of the
// spec, written without indentation.
func plugin(name, url string, more ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: %s, namespace: edge}\nspec:\n  url: %s\n", name, url)
	for _, line := range more {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	return b.String()
}

// process is a command of ours that a test started.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error
}

func start(t testing.TB, log, path string, args ...string) *process {
	t.Helper()
	f, err := os.OpenFile(log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return startInto(t, f, log, path, args...)
}

// startInto is start for output that goes elsewhere than to the log that is read.
func startInto(t testing.TB, out *os.File, log, path string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(path, args...), log: log, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Errorf("%s: %v", filepath.Base(path), err)
		}
		if t.Failed() {
			t.Logf("%s log:\n%s", filepath.Base(path), p.tail())
		}
	})
	return p
}

// stop asks the process to end and waits for it.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return p.err
	case <-time.After(patience(30 * time.Second)):
		return fmt.Errorf("did not end when asked to; it stands at\n%s", p.abort())
	}
}

// abort ends a process that does not end, and gives its goroutines' stacks. Its log keeps
// what was said before them.
func (p *process) abort() string {
	before := len(p.output())
	_ = p.cmd.Process.Signal(syscall.SIGQUIT)
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	stacks := p.output()[before:]
	_ = os.Truncate(p.log, int64(before))
	return stacks[:min(len(stacks), 64<<10)]
}

func (p *process) tail() string {
	log := p.output()
	return log[max(0, len(log)-12<<10):]
}

// proxy is an agent with its Envoy.
type proxy struct {
	*process
	w     *world
	dir   string
	admin string
}

// node says who an agent is.
type node struct {
	name, namespace string
	labels          []string
	// binary is the agent's, flags are more of its flags, and workers are Envoy's;
	// the built one, none and one by default.
	binary  string
	flags   []string
	workers int
}

// startAgent starts an agent over an Envoy configuration, and does not wait.
func (w *world) startAgent(n node, config string) *proxy {
	w.t.Helper()
	p := &proxy{w: w, dir: w.t.TempDir(), admin: loopback(freePort(w.t))}
	file := filepath.Join(p.dir, "envoy.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if n.namespace == "" {
		n.namespace = "edge"
	}
	args := []string{"--control", w.listen, "--node", n.name, "--namespace", n.namespace, "--data", filepath.Join(p.dir, "data"),
		"--admin", p.admin, "--envoy", envoyBinary(w.t), "--drain", "1s"}
	for _, l := range n.labels {
		args = append(args, "--label", l)
	}
	args = append(append(args, n.flags...), "--", "-c", file, "--concurrency", strconv.Itoa(max(1, n.workers)))
	p.process = start(w.t, filepath.Join(p.dir, "agent.log"), cmp.Or(n.binary, filepath.Join(built, "chandler-agent")), args...)
	return p
}

// agent starts an agent and waits until it is ready.
func (w *world) agent(n node, config string) *proxy {
	w.t.Helper()
	p := w.startAgent(n, config)
	p.awaitReady()
	return p
}

func (p *proxy) awaitReady() {
	p.w.t.Helper()
	eventually(p.w.t, 60*time.Second, "agent ready", func() (bool, string) {
		select {
		case <-p.done:
			p.w.t.Fatalf("agent ended: %v\n%s", p.err, p.tail())
		default:
		}
		return status("http://" + p.admin + "/healthz/ready")
	})
}

// listener is one listener of a gateway configuration.
type listener struct {
	port int
	// name and direction are left out when empty.
	name, direction string
	// upgrades is YAML flow for upgrade_configs.
	upgrades string
}

// gateway writes an Envoy configuration whose listeners all route to upstream.
func (w *world) gateway(listeners ...listener) string {
	var b strings.Builder
	b.WriteString("static_resources:\n  listeners:\n")
	for _, l := range listeners {
		fmt.Fprintf(&b, "  - address: {socket_address: {address: 127.0.0.1, port_value: %d}}\n", l.port)
		if l.name != "" {
			fmt.Fprintf(&b, "    name: %s\n", l.name)
		}
		if l.direction != "" {
			fmt.Fprintf(&b, "    traffic_direction: %s\n", l.direction)
		}
		fmt.Fprintf(&b, "    filter_chains:\n    - filters:\n%s", connectionManager("      ", l.upgrades))
	}
	host, port, _ := net.SplitHostPort(strings.TrimPrefix(w.upstream.URL, "http://"))
	fmt.Fprintf(&b, `  clusters:
  - name: upstream
    connect_timeout: 2s
    load_assignment: {cluster_name: upstream, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %s, port_value: %s}}}}]}]}
`, host, port)
	return b.String()
}

func connectionManager(indent, upgrades string) string {
	text := `- name: envoy.filters.network.http_connection_manager
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
    stat_prefix: gateway
    route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: upstream, timeout: 60s}}]}]}
    http_filters:
    - name: envoy.filters.http.router
      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
`
	if upgrades != "" {
		text += "    upgrade_configs: " + upgrades + "\n"
	}
	return indent + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n"+indent) + "\n"
}

// answer is what a request through a proxy saw.
type answer struct {
	code    int
	headers http.Header // of the response
	seen    http.Header // of the request as the upstream saw it
	size    int         // of the body
}

// fresh makes a connection for every request.
var fresh = &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}

func request(client *http.Client, method string, port int, path string, header http.Header) (answer, error) {
	req, err := http.NewRequest(method, "http://"+loopback(port)+path, nil)
	if err != nil {
		return answer{}, err
	}
	if header != nil {
		req.Header = header
	}
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	return readAnswer(resp)
}

// readAnswer reads the whole of a response.
func readAnswer(resp *http.Response) (answer, error) {
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return answer{}, err
	}
	a := answer{code: resp.StatusCode, headers: resp.Header, size: len(body)}
	if bytes.HasPrefix(body, []byte("{")) {
		if err := json.Unmarshal(body, &a.seen); err != nil {
			return a, err
		}
	}
	return a, nil
}

// get asks a port once, on a new connection.
func get(t testing.TB, port int, path string) answer {
	t.Helper()
	a, err := request(fresh, http.MethodGet, port, path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// load sends requests until it is told to stop, over connections that are kept
// and over new ones, and counts what was not as it should be.
type load struct {
	stop    chan struct{}
	wg      sync.WaitGroup
	answers atomic.Int64
	failed  atomic.Int64
	mu      sync.Mutex
	wrong   []string // why, of the first that failed
	// closed counts the kept connections that the proxy ended, and the answers that
	// announced it would.
	closed atomic.Int64
}

// keptConn notices when the other side ends a connection. (That a client dials
// anew says less: under load Go's client now and then gives one up by itself.)
type keptConn struct {
	net.Conn
	ended func()
	ours  atomic.Bool // we closed it
}

func (c *keptConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && !c.ours.Load() {
		c.ended()
	}
	return n, err
}

func (c *keptConn) Close() error {
	c.ours.Store(true)
	return c.Conn.Close()
}

// startLoad sends requests from keep clients that keep their connection and from
// anew clients that do not. right judges an answer.
func startLoad(port, keep, anew int, right func(answer) error) *load {
	return startLoadAt(dialing("tcp", loopback(port)), keep, anew, right)
}

// dialer makes connections of a client.
type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// dialing dials an address, whatever was asked for.
func dialing(network, addr string) dialer {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
}

// startLoadAt is startLoad where a port is not all.
func startLoadAt(dial dialer, keep, anew int, right func(answer) error) *load {
	l := &load{stop: make(chan struct{})}
	for i := range keep + anew {
		transport := &http.Transport{MaxIdleConnsPerHost: 1, DisableKeepAlives: i >= keep, DialContext: dial}
		if i < keep {
			transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := dial(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				return &keptConn{Conn: conn, ended: func() { l.closed.Add(1) }}, nil
			}
		}
		client := &http.Client{Transport: transport, Timeout: time.Minute}
		l.wg.Add(1)
		go func() {
			defer l.wg.Done()
			defer transport.CloseIdleConnections()
			l.run(client, i < keep, right)
		}()
	}
	return l
}

func (l *load) run(client *http.Client, keeps bool, right func(answer) error) {
	for {
		select {
		case <-l.stop:
			return
		default:
		}
		a, err := request(client, http.MethodGet, 80, "/", nil) // the dialler knows where
		if err == nil {
			err = right(a)
		}
		l.answers.Add(1)
		if keeps && a.headers.Get("Connection") == "close" {
			l.closed.Add(1)
		}
		if err != nil {
			l.failed.Add(1)
			l.mu.Lock()
			if len(l.wrong) < 20 {
				l.wrong = append(l.wrong, err.Error())
			}
			l.mu.Unlock()
		}
		time.Sleep(time.Millisecond) // bounds the load: it is there to notice, not to press
	}
}

// end stops the load and waits for its clients.
func (l *load) end() {
	close(l.stop)
	l.wg.Wait()
}

// harmless ends a load and tells whether it met anything wrong.
func harmless(t *testing.T, l *load) {
	t.Helper()
	l.end()
	if l.answers.Load() == 0 || len(l.wrong) > 0 || l.closed.Load() > 0 {
		t.Errorf("%d requests, %d connections closed, wrong: %v", l.answers.Load(), l.closed.Load(), l.wrong)
	}
	t.Logf("%d requests", l.answers.Load())
}
