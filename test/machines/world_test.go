//go:build machine

// Package machines runs docs/machines.md, as it stands, on machines that run systemd, with
// the packages of make dist.
package machines

import (
	"crypto/tls"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/authority"
	"chandler.dev/chandler/internal/testenv/machine"
	"chandler.dev/chandler/internal/testenv/pages"
	"chandler.dev/chandler/internal/testenv/registry"
)

var dist = flag.String("dist", "../../dist", "what make dist left: the packages under test")

// hosts are the machines of the page, and what else it names, which is the test itself.
var hosts = map[string]string{
	"desk": "10.0.0.20", "control-1": "10.0.0.1", "control-2": "10.0.0.2", "control-3": "10.0.0.3", "edge-1": "10.0.0.11", "edge-2": "10.0.0.12",
	"registry.example": machine.Gateway, "registry.internal": machine.Gateway, "git.example": machine.Gateway,
}

// world is the page's machines, and around them a registry, an upstream of the Envoys, and a
// way from machine to machine.
type world struct {
	t        *testing.T
	net      *machine.Network
	machines map[string]*machine.Machine
}

func newWorld(t *testing.T, names ...string) *world {
	t.Helper()
	w := &world{t: t, net: machine.NewNetwork(t), machines: map[string]*machine.Machine{}}
	ca := w.registry()
	w.serve("8080", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	w.serve("22", http.HandlerFunc(w.remote))
	w.git()
	for _, name := range names {
		m := machine.Start(t, machine.Config{Name: name})
		w.net.Connect(m, hosts[name])
		w.machines[name] = m
		m.Put(ca, "/usr/local/share/registry-ca.pem")
		m.Put("testdata/ssh", "/usr/local/bin/ssh")
		m.Put("testdata/scp", "/usr/local/bin/scp")
		etc := ""
		for name, addr := range hosts {
			etc += addr + " " + name + "\n"
		}
		m.Must("cat >>/etc/hosts <<'END'\n" + etc + "END\n" + `
rm -f /etc/dpkg/dpkg.cfg.d/*
cat /usr/local/share/registry-ca.pem >>/etc/ssl/certs/ca-certificates.crt
chmod 755 /usr/local/bin/ssh /usr/local/bin/scp
git config --system user.name desk
git config --system user.email desk@desk.example
git config --system init.defaultBranch main
git config --system url.http://git.example/.insteadOf git.example:`)
	}
	return w
}

// git serves an empty repository, plugins.git, to be pulled from and pushed to.
func (w *world) git() {
	w.t.Helper()
	dir := w.t.TempDir()
	for _, words := range [][]string{{"init", "-q", "--bare", "-b", "main", dir + "/plugins.git"}, {"-C", dir + "/plugins.git", "config", "http.receivepack", "true"}} {
		if out, err := exec.Command("git", words...).CombinedOutput(); err != nil {
			w.t.Fatalf("git %v: %v\n%s", words, err, out)
		}
	}
	git, err := exec.LookPath("git")
	if err != nil {
		w.t.Fatal(err)
	}
	w.serve("80", &cgi.Handler{Path: git, Args: []string{"http-backend"}, Env: []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1"}})
}

// registry serves one over TLS, with the sample plugin, and gives the file of its authority.
func (w *world) registry() string {
	t := w.t
	t.Helper()
	reg, err := registry.Start(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reg.Close)
	client := fetch.New(fetch.Config{Dir: t.TempDir()})
	defer client.Close()
	mod, err := os.ReadFile("../../bin/basicauth.wasm")
	if err != nil {
		t.Fatalf("run make bin/basicauth.wasm: %v", err)
	}
	if _, err := client.Push(t.Context(), reg.Addr+"/team/basic-auth:v1", mod, fetch.PushOptions{}); err != nil {
		t.Fatal(err)
	}
	ca := authority.New(t)
	own := ca.Issue(authority.Leaf{DNS: []string{"registry.example", "registry.internal"}})
	pair, err := tls.LoadX509KeyPair(own.Cert, own.Key)
	if err != nil {
		t.Fatal(err)
	}
	plain := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: reg.Addr})
	}}
	w.serveOn(func(lis net.Listener) net.Listener {
		return tls.NewListener(lis, &tls.Config{Certificates: []tls.Certificate{pair}})
	}, "443", plain)
	return ca.File
}

func (w *world) serve(port string, h http.Handler) {
	w.t.Helper()
	w.serveOn(func(lis net.Listener) net.Listener { return lis }, port, h)
}

func (w *world) serveOn(as func(net.Listener) net.Listener, port string, h http.Handler) {
	w.t.Helper()
	lis, err := w.net.Listen(port)
	if err != nil {
		w.t.Fatal(err)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(as(lis)) // until it is closed
	}()
	w.t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
}

// remote runs a command on another machine, as sshd would: who asks is root there.
func (w *world) remote(rw http.ResponseWriter, r *http.Request) {
	m := w.machines[r.URL.Path[1:]]
	if m == nil {
		http.Error(rw, "no such machine", http.StatusNotFound)
		return
	}
	words := append(m.Shell(), "-c", "cd; "+r.Header.Get("X-Command"))
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Stdin = r.Body
	out, err := cmd.Output()
	if err != nil {
		http.Error(rw, fmt.Sprintf("%v: %s", err, out), http.StatusInternalServerError)
		return
	}
	_, _ = rw.Write(out)
}

// deliver puts a file of make dist into root's home on a machine.
func (w *world) deliver(name, pattern string) {
	w.t.Helper()
	found, err := filepath.Glob(filepath.Join(*dist, pattern))
	if err != nil || len(found) != 1 {
		w.t.Fatalf("%d files %s in %s: run make dist", len(found), pattern, *dist)
	}
	w.machines[name].Put(found[0], "/root/"+filepath.Base(found[0]))
}

// shells are those of the page, in root's home.
func (w *world) shells() *pages.World {
	shells := map[string]*pages.Shell{}
	for name, m := range w.machines {
		shells[name] = &pages.Shell{Command: append(m.Shell(), "-c", "cd && exec sh")}
	}
	return &pages.World{Shells: shells}
}

// load asks a machine's Envoy again and again over kept connections, until end.
type load struct {
	stop    chan struct{}
	wg      sync.WaitGroup
	answers atomic.Int64
	mu      sync.Mutex
	wrong   []string
}

const callers = 4

// startLoad has every answer be the plugin's refusal of a request without credentials: one
// that is answered in another way was harmed.
func (w *world) startLoad(name string) *load {
	l := &load{stop: make(chan struct{})}
	for range callers {
		client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: w.net.Dial}}
		l.wg.Go(func() {
			defer client.CloseIdleConnections()
			for {
				select {
				case <-l.stop:
					return
				case <-time.After(4 * time.Millisecond):
				}
				resp, err := client.Get("http://" + hosts[name] + "/")
				if err == nil {
					if resp.Body.Close(); resp.StatusCode != http.StatusUnauthorized || resp.Header.Get("Www-Authenticate") == "" {
						err = fmt.Errorf("status %s, headers %v", resp.Status, resp.Header)
					}
				}
				l.answers.Add(1)
				if err != nil {
					l.mu.Lock()
					if len(l.wrong) < 10 {
						l.wrong = append(l.wrong, time.Now().Format(time.TimeOnly)+" "+err.Error())
					}
					l.mu.Unlock()
				}
			}
		})
	}
	return l
}

// harmless ends a load and tells what it met.
func (l *load) harmless(t *testing.T) {
	t.Helper()
	close(l.stop)
	l.wg.Wait()
	if l.answers.Load() == 0 || len(l.wrong) > 0 {
		t.Errorf("%d requests, wrong: %v", l.answers.Load(), l.wrong)
	}
	t.Logf("%d requests", l.answers.Load())
}
