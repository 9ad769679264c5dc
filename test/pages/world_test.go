//go:build pages

package pages_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/authority"
	"chandler.dev/chandler/internal/testenv/pages"
	"chandler.dev/chandler/internal/testenv/registry"
)

// machine is what a page finds: the programs where they are installed, a registry, and
// whatever its test adds.
type machine struct {
	t        *testing.T
	root     string   // of the repository
	dir      string   // where its shell begins
	env      []string // of its shell, beside the test's
	registry *registry.Registry
}

// newMachine installs the programs. The registry is localhost:5000.
func newMachine(t *testing.T) *machine {
	t.Helper()
	root, err := pages.Root()
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, root: root, dir: t.TempDir()}
	for _, program := range []string{"bin/chandler", "bin/chandler-agent", "bin/bookinfo", ".tools/envoy"} {
		from := filepath.Join(root, program)
		if _, err := os.Stat(from); err != nil {
			t.Fatalf("%v: run make pages", err)
		}
		to := "/usr/local/bin/" + filepath.Base(program)
		_ = os.Remove(to)
		if err := os.Symlink(from, to); err != nil {
			t.Fatal(err)
		}
	}
	if m.registry, err = registry.Start(registry.Config{Addr: "127.0.0.1:5000"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.registry.Close)
	return m
}

// world has one shell, which begins in the machine's folder.
func (m *machine) world(names ...string) *pages.World {
	return &pages.World{Shells: map[string]*pages.Shell{"": {Dir: m.dir, Env: append(os.Environ(), m.env...)}}, Names: names}
}

// push has the registry have a module.
func (m *machine) push(image string, module []byte) {
	m.t.Helper()
	m.pushAs(image, module, "")
}

// pushSample has the registry have the sample plugin by the name that it has at ghcr.io.
func (m *machine) pushSample() {
	m.t.Helper()
	sample, err := os.ReadFile(m.root + "/bin/basicauth.wasm")
	if err != nil {
		m.t.Fatal(err)
	}
	m.pushAs("istio-ecosystem/wasm-extensions/basic_auth:1.12.0", sample, fetch.LayoutCompat)
}

// mirrored has control planes of pages ask the registry in the place of ghcr.io.
func (m *machine) mirrored() []string {
	return []string{"chandler serve ", "chandler serve --hosts-dir " + m.root + "/examples/bookinfo/hosts "}
}

func (m *machine) pushAs(image string, module []byte, layout fetch.Layout) {
	m.t.Helper()
	client := fetch.New(fetch.Config{Dir: m.t.TempDir()})
	defer client.Close()
	if _, err := client.Push(m.t.Context(), m.registry.Addr+"/"+image, module, fetch.PushOptions{Layout: layout}); err != nil {
		m.t.Fatal(err)
	}
}

// write writes a file, and makes its folder.
func (m *machine) write(name, text string) {
	m.t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// backend answers 200 to everything at 127.0.0.1:9080, which is where Bookinfo would be.
func (m *machine) backend() {
	m.t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:9080")
	if err != nil {
		m.t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.Listener.Close()
	s.Listener = lis
	s.Start()
	m.t.Cleanup(s.Close)
}

// envoyConfig is the example's gateway, with other ports: its own, and its admin's.
func (m *machine) envoyConfig(name string, port, admin int) string {
	m.t.Helper()
	text, err := os.ReadFile(filepath.Join(m.root, "examples/bookinfo/envoy.yaml"))
	if err != nil {
		m.t.Fatal(err)
	}
	m.write(name, strings.NewReplacer("8080", fmt.Sprint(port), "9901", fmt.Sprint(admin)).Replace(string(text)))
	return name
}

// start starts a program, which is asked to end when that is called, or with the test.
func (m *machine) start(words ...string) (end func()) {
	m.t.Helper()
	log, err := os.CreateTemp(m.dir, "."+filepath.Base(words[0])+"-*.log")
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = m.dir, log, log
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	end = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-done:
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			<-done
			m.t.Errorf("%v did not end when asked to", words)
		}
		if text, err := os.ReadFile(log.Name()); m.t.Failed() {
			m.t.Logf("%v: %v\n%s", words, err, text[max(0, len(text)-3<<10):])
		}
	})
	m.t.Cleanup(end)
	return end
}

// serve starts the control plane that the agents of pages look for.
func (m *machine) serve(flags ...string) (end func()) {
	m.t.Helper()
	end = m.start(append([]string{"chandler", "serve", "--listen", "127.0.0.1:9910", "--data", "/var/lib/chandler"}, flags...)...)
	m.answers("http://127.0.0.1:9911/healthz/ready")
	return end
}

// agent starts the n-th agent of the namespace edge, edge-1 with the ports and folders of
// an only one, and gives the port of its traffic.
func (m *machine) agent(n int, flags ...string) (port int) {
	m.t.Helper()
	port = 8079 + n
	config := m.envoyConfig(fmt.Sprintf("%s/edge-%d.yaml", m.dir, n), port, 9900+n)
	args := []string{"chandler-agent", "--node", fmt.Sprintf("edge-%d", n), "--namespace", "edge", "--label", "app=edge"}
	if n > 1 {
		args = append(args, "--data", fmt.Sprintf("%s/edge-%d", m.dir, n), "--admin", fmt.Sprintf("127.0.0.1:%d", 9911+n))
	}
	m.start(append(append(args, flags...), "--", "-c", config, "--concurrency", "1", "-l", "warning")...)
	m.answers(fmt.Sprintf("http://127.0.0.1:%d/", port))
	return port
}

// serveAt starts the control plane at an address that other machines reach, and gives the
// variables by which the agent of a node is known to it.
func (m *machine) serveAt(address, node, namespace string) (env []string) {
	m.t.Helper()
	ca := authority.New(m.t)
	host, _, _ := strings.Cut(address, ":")
	own := ca.Issue(authority.Leaf{IP: host})
	m.serve("--no-vet", "--listen", address, "--tls-cert", own.Cert, "--tls-key", own.Key, "--client-ca", ca.File)
	agent := ca.Issue(authority.Leaf{DNS: []string{node + "." + namespace + ".node.cluster.local"}})
	return []string{"CHANDLER_AGENT_TLS_CA=" + ca.File, "CHANDLER_AGENT_TLS_CERT=" + agent.Cert, "CHANDLER_AGENT_TLS_KEY=" + agent.Key}
}

// answers waits until an address answers 200.
func (m *machine) answers(url string) {
	m.t.Helper()
	m.comes(http.StatusOK, url)
}

// comes waits until an address answers with a status.
func (m *machine) comes(code int, url string, header ...string) {
	m.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		got, err := status(url, header...)
		if got == code {
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("%s: %d, %v; want %d", url, got, err, code)
		}
		time.Sleep(20 * time.Millisecond) // between looks at a condition
	}
}

func status(url string, header ...string) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// run gives a command, which must not fail.
func (m *machine) run(stdin string, words ...string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Dir, cmd.Stdin = m.dir, strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("%v: %v\n%s", words, err, out)
	}
}
