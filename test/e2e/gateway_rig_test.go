//go:build gateway

package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"chandler.dev/chandler/internal/testenv/module"
)

// The ports of the example, and those that Envoy Gateway takes whatever its file says.
const (
	gatewayPort = 8888
	readyPort   = 19003
	agentPort   = 9912
)

var fixedPorts = []struct {
	port int
	what string
}{
	{gatewayPort, "the example's Gateway"}, {9080, "Bookinfo's page"}, {9081, "Bookinfo's details"}, {agentPort, "the agent's status"},
	{8081, "Envoy Gateway's health"}, {18000, "Envoy Gateway's xDS"}, {18002, "Envoy Gateway's Wasm modules"},
	{19000, "Envoy Gateway's admin interface"}, {19001, "Envoy Gateway's metrics"}, {readyPort, "the readiness of its Envoy"},
}

var ownNetwork = flag.Bool("own-network", false, "the network is this process's alone; for the test itself")

// alone runs a test in a network of its own, as its ports are fixed: for that the test
// binary starts itself again. Where that may not be, the ports must be free.
func alone(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	if *ownNetwork {
		loopbackUp(t)
		test(t)
		return
	}
	runtime.LockOSThread() // with the thread the child would be killed
	defer runtime.UnlockOSThread()
	args := []string{"-own-network", "-test.v", "-test.run", "^" + t.Name() + "$"}
	if deadline, ok := t.Deadline(); ok {
		args = append(args, "-test.timeout", (time.Until(deadline) - 15*time.Second).String())
	}
	again := exec.CommandContext(t.Context(), os.Args[0], args...)
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		again.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		again.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		again.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := again.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		t.Logf("%s", out)
	case errors.As(err, &exit):
		t.Fatalf("%v\n%s", err, out)
	default:
		t.Logf("no network of its own (%v): on this machine's", err)
		for _, p := range fixedPorts {
			lis, err := net.Listen("tcp", fmt.Sprintf(":%d", p.port))
			if err != nil {
				t.Fatalf("port %d, which is %s, is taken (%v): end what listens there, or run this where a network namespace can be made", p.port, p.what, err)
			}
			lis.Close()
		}
		test(t)
	}
}

// loopbackUp does what "ip link set lo up" does.
func loopbackUp(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		t.Fatal(err)
	}
}

// envoyGateway is the files of the example on folders of a test's own.
type envoyGateway struct {
	*process
	t       *testing.T
	w       *world
	dir     string // the example's /etc/envoy-gateway
	data    string // the agent's
	envoy   string // what Envoy Gateway starts
	program string
	modules *httptest.Server
	replace *strings.Replacer
	runs    int
}

func newEnvoyGateway(t *testing.T) *envoyGateway {
	t.Helper()
	program, err := filepath.Abs(filepath.Join("..", "..", ".tools", "envoy-gateway"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("no Envoy Gateway: run make tools-gateway (%v)", err)
	}
	w := uncontrolled(t)
	w.flags = append(w.flags, "--hosts-dir", w.theSamplesHost())
	w.startControl()
	root := t.TempDir()
	at := func(name string) string { return filepath.Join(root, name) }
	g := &envoyGateway{t: t, w: w, program: program, dir: at("etc"), data: at("agent"), envoy: at("lib/envoy-versions/1.40.0/bin/envoy"),
		modules: httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write(module.Append()) }))}
	t.Cleanup(g.modules.Close)
	t.Cleanup(g.tell)
	g.replace = strings.NewReplacer("/etc/envoy-gateway", g.dir, "/var/lib/envoy-gateway", at("lib"), "/run/envoy-gateway", at("run"),
		"/var/lib/chandler-agent", g.data, "/usr/local/bin/envoy", envoyBinary(t), "127.0.0.1:9910", w.listen, "http://127.0.0.1:8000", g.modules.URL)
	for _, name := range []string{"config.yaml", "agent.env", "resources/gateway.yaml", "resources/bookinfo.yaml"} {
		g.place(name, g.example(name))
	}
	for _, dir := range []string{filepath.Dir(g.envoy), at("home")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(built, "chandler-agent"), g.envoy); err != nil {
		t.Fatal(err)
	}
	if out, err := g.command("certgen", "--local", "--config-home", at("lib/config")).CombinedOutput(); err != nil {
		t.Fatalf("certgen: %v\n%s", err, out)
	}
	return g
}

// example gives a file of the example, with the test's folders and addresses.
func (g *envoyGateway) example(name string) string {
	g.t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "examples", "envoy-gateway", name))
	if err != nil {
		g.t.Fatal(err)
	}
	return g.replace.Replace(string(b))
}

// place puts a file where Envoy Gateway reads it, at once as a whole.
func (g *envoyGateway) place(name, text string) {
	g.t.Helper()
	path := filepath.Join(g.dir, name)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(g.dir, "new"), []byte(text), 0o600)
	}
	if err == nil {
		err = os.Rename(filepath.Join(g.dir, "new"), path)
	}
	if err != nil {
		g.t.Fatal(err)
	}
}

// environ is that of Envoy Gateway, and of the Envoy that it starts.
func (g *envoyGateway) environ() []string {
	env := append(os.Environ(), "HOME="+filepath.Join(filepath.Dir(g.dir), "home"), "CHANDLER_AGENT_LOG_LEVEL=debug")
	for line := range strings.Lines(g.example("agent.env")) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "#") {
			env = append(env, line)
		}
	}
	return env
}

func (g *envoyGateway) command(args ...string) *exec.Cmd {
	cmd := exec.Command(g.program, args...)
	cmd.Env = g.environ()
	return cmd
}

// start starts Envoy Gateway, and does not wait.
func (g *envoyGateway) start() {
	g.t.Helper()
	g.runs++
	g.process = run(g.t, filepath.Join(g.dir, fmt.Sprintf("envoy-gateway-%d.log", g.runs)), g.command("server", "--config-path", filepath.Join(g.dir, "config.yaml")))
}

// watches waits until Envoy Gateway notices changes of its files: some seconds after it has
// read them, and what changes between is lost on it.
func (g *envoyGateway) watches() {
	g.t.Helper()
	eventually(g.t, 60*time.Second, "Envoy Gateway watches its files", func() (bool, string) {
		log, err := os.ReadFile(g.log)
		return err == nil && bytes.Contains(log, []byte("Watching path added")), fmt.Sprint(err)
	})
}

// stop ends Envoy Gateway, and with it its Envoy.
func (g *envoyGateway) stop() {
	g.t.Helper()
	_ = g.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-g.done:
	case <-time.After(30 * time.Second):
		g.t.Fatal("Envoy Gateway does not end")
	}
}

// tell shows what agents said, if the test failed: there are a thousand other lines.
func (g *envoyGateway) tell() {
	logs, err := filepath.Glob(filepath.Join(g.dir, "*.log"))
	for _, log := range logs {
		if !g.t.Failed() || err != nil {
			return
		}
		text, _ := os.ReadFile(log)
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "time=") || strings.HasPrefix(line, "chandler-agent:") || strings.Contains(line, "\terror\t") {
				g.t.Logf("%s: %.500s", filepath.Base(log), line)
			}
		}
	}
}

// agentSaid are the lines of a process that the agent in it wrote at a level.
func agentSaid(t *testing.T, p *process, level string) (lines []string) {
	t.Helper()
	b, err := os.ReadFile(p.log)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		if bytes.HasPrefix(line, []byte("time=")) && bytes.Contains(line, []byte(" level="+level+" ")) {
			lines = append(lines, string(line))
		}
	}
	return lines
}

// arguments are those with which Envoy Gateway started its Envoy.
func (g *envoyGateway) arguments() []string {
	g.t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		g.t.Fatal(err)
	}
	for _, name := range all {
		b, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended
		}
		if args := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00"); args[0] == g.envoy {
			return args[1:]
		}
	}
	g.t.Fatalf("nobody runs %s", g.envoy)
	return nil
}

// policy is the example's Wasm policy, filled in as it says.
func (g *envoyGateway) policy() string {
	text := g.example("wasm-policy.yaml")
	for word, file := range map[string]string{"TLS_CRT": "tls.crt", "TLS_KEY": "tls.key"} {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(g.dir), "lib", "config", "certs", "envoy", file))
		if err != nil {
			g.t.Fatal(err)
		}
		text = strings.ReplaceAll(text, ": "+word+"\n", ": "+base64.StdEncoding.EncodeToString(b)+"\n")
	}
	return text
}

// bookinfo starts the sample.
func (g *envoyGateway) bookinfo() {
	g.t.Helper()
	program := filepath.Join(built, "bookinfo")
	if out, err := exec.Command("go", "build", "-o", program, "chandler.dev/chandler/cmd/bookinfo").CombinedOutput(); err != nil {
		g.t.Fatalf("build: %v\n%s", err, out)
	}
	start(g.t, filepath.Join(g.dir, "bookinfo.log"), program, "all", "--details-listen", loopback(9081))
}

// agentStatus is of what the agent tells what this test looks at.
type agentStatus struct {
	Ready     bool
	Upstreams []struct {
		Name      string
		Connected bool
		Error     string
	}
	Listeners []struct {
		Name  string
		Slots []struct{ Name string }
	}
	Plugins []struct{ Name, State string }
}

func (g *envoyGateway) status() (st agentStatus) {
	g.t.Helper()
	resp, err := http.Get("http://" + loopback(agentPort) + "/status")
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&st); err != nil {
		g.t.Fatal(err)
	}
	return st
}

// remove takes a file away.
func (g *envoyGateway) remove(name string) {
	g.t.Helper()
	if err := os.Remove(filepath.Join(g.dir, name)); err != nil {
		g.t.Fatal(err)
	}
}

// kept waits until the agent has written what Envoy has by now: a listener and a route with
// that word in them, and which modules that means. Envoy Gateway does not ask it to end, it
// kills it.
func (g *envoyGateway) kept(word string) {
	g.t.Helper()
	eventually(g.t, 60*time.Second, "what Envoy has is kept", func() (bool, string) {
		for _, kind := range []string{"config.listener.v3.Listener", "config.route.v3.RouteConfiguration"} {
			if !slices.ContainsFunc(keptViews(g.data), func(view []byte) bool {
				return bytes.Contains(view, []byte(kind)) && bytes.Contains(view, []byte(word))
			}) {
				return false, fmt.Sprintf("there is no %s with %s", kind, word)
			}
		}
		meant, err := os.ReadFile(filepath.Join(g.data, "remote-listeners-1"))
		return bytes.Contains(meant, []byte("sha256:")), fmt.Sprintf("the modules of listeners: %s, %v", meant, err)
	})
}
