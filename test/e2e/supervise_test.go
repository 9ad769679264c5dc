package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

// local runs a command of chandler-agent that looks at this agent, and gives its
// output and exit code.
func (p *proxy) local(t testing.TB, args ...string) (string, int) {
	t.Helper()
	if args[0] == "store" {
		args = append(args, "--data", filepath.Join(p.dir, "data"))
	}
	cmd := exec.Command(filepath.Join(built, "chandler-agent"), append(args, "--admin", p.admin)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// pid gives the Envoy that the agent says it runs; 0: none.
func (p *proxy) pid(t testing.TB) int {
	t.Helper()
	out, _ := p.local(t, "status", "-o", "json")
	var st struct{ Envoy struct{ PID int } }
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return st.Envoy.PID
}

// firstAnswer waits for the port to answer and tells with what.
func firstAnswer(t testing.TB, port int) (code int) {
	t.Helper()
	eventually(t, 40*time.Second, "an answer", func() (bool, string) {
		a, err := request(fresh, http.MethodGet, port, "/", nil)
		code = a.code
		return err == nil, fmt.Sprint(err)
	})
	return code
}

// Envoy is killed again and again while registry and control plane are down: the
// agent starts it anew, and the first answer is the plugin's.
func TestFault_F7_EnvoyKilledOffline(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a", flags: []string{"--restart", "on-failure"}}, w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("deny", w.push("deny:v1", module.Deny(401)), "phase: AUTHN") + "---\n" +
		plugin("p", w.push("append:v1", module.Append()), tag("p")))
	if code := firstAnswer(t, port); code != 401 {
		t.Fatalf("it answers %d", code)
	}
	if err := w.control.stop(); err != nil {
		t.Fatal(err)
	}
	w.registry.Close()
	for range 3 {
		envoy := p.pid(t)
		if err := syscall.Kill(envoy, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		stopped(t, envoy)
		if code := firstAnswer(t, port); code != 401 {
			t.Fatalf("the first answer is %d; the plugin would have said 401", code)
		}
		p.awaitReady()
		if now := p.pid(t); now == envoy || now == 0 {
			t.Errorf("Envoy was %d and is %d", envoy, now)
		}
	}
	if out, code := p.local(t, "status"); code != 0 || !strings.Contains(out, "deny") || !strings.Contains(out, "not connected") {
		t.Errorf("status ends with %d:\n%s", code, out)
	}
	log, err := os.ReadFile(p.log)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(log), "envoy was ended by signal 9 (killed)"); n != 3 {
		t.Errorf("the agent says %d times how Envoy ended, want 3", n)
	}
}

// While Envoy cannot be started, agent and control plane say so, with its end and
// the next try; once it can be, nobody has to do anything.
func TestEnvoyDownIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	link := filepath.Join(w.dir, "envoy-link")
	if err := os.Symlink(envoyBinary(t), link); err != nil {
		t.Fatal(err)
	}
	p := w.agent(node{name: "a", flags: []string{"--envoy", link, "--restart", "on-failure"}}, w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("p", w.push("append:v1", module.Append()), tag("p")))
	sees(t, port, "p")
	if err := os.Rename(link, link+".away"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(p.pid(t), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the control plane tells", func() (bool, string) {
		out, _ := w.cli("", "describe", "wasmplugin", "p", "-n", "edge")
		return strings.Contains(out, "EnvoyDown") && strings.Contains(out, "cannot be started"), out
	})
	eventually(t, 20*time.Second, "status tells", func() (bool, string) {
		out, code := p.local(t, "status")
		return code == 3 && strings.Contains(out, "is not running") && strings.Contains(out, "cannot be started") && strings.Contains(out, "next try in"), out
	})
	if err := os.Rename(link+".away", link); err != nil {
		t.Fatal(err)
	}
	heals(t, port, "p")
	eventually(t, 20*time.Second, "status is good", func() (bool, string) {
		out, code := p.local(t, "status")
		return code == 0, out
	})
}

// A NETWORK plugin, whose slot stands in the listeners, is there when the next Envoy
// serves its first connection.
func TestNetworkPluginAfterEnvoyEnded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	config, ports := tcpGateway(t)
	p := w.agent(node{name: "edge-1", flags: []string{"--restart", "on-failure"}}, config)
	w.apply(networkPlugin("prefix", w.push("prefix", module.Prefix()), "1"))
	if err := w.control.stop(); err != nil {
		t.Fatal(err)
	}
	w.registry.Close()
	for range 2 {
		envoy := p.pid(t)
		if err := syscall.Kill(envoy, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		stopped(t, envoy)
		eventually(t, 20*time.Second, "it serves", func() (bool, string) {
			conn, err := dialTCP(ports.plain, "")
			if err != nil {
				return false, err.Error()
			}
			defer conn.Close()
			got := say(conn, "hello")
			if got == "hello" {
				t.Fatal("a connection passed without the plugin")
			}
			return got == prefix("1")+"hello", got
		})
		p.awaitReady()
		ports.everywhereSays(t, prefix("1")+"hello")
	}
}

// An Envoy that was told to end is not started anew: its agent ends well, too.
func TestEnvoyIsToldToEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.agent(node{name: "a", flags: []string{"--restart", "on-failure"}}, w.gateway(listener{port: freePort(t), name: "in"}))
	socket := filepath.Join(p.dir, "data", "envoy", "admin.sock")
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	resp, err := client.Post("http://envoy/quitquitquit", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	<-p.done
	if p.err != nil {
		t.Errorf("the agent ended with %v", p.err)
	}
}

// Envoy ends while an update is on its way into it: the next one serves with the version
// before, tries the update again later, and nobody has to do anything.
func TestEnvoyEndsDuringAnUpdate(t *testing.T) {
	t.Parallel()
	slow, err := os.ReadFile(filepath.Join("..", "..", "bin", "basicauth.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a", flags: []string{"--restart", "on-failure"}}, w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("p", w.push("append:v1", module.Append()), tag("before")))
	envoy := p.pid(t)
	if err := syscall.Kill(envoy, syscall.SIGSTOP); err != nil { // else it may be done when we look
		t.Fatal(err)
	}
	w.submit(plugin("p", w.push("slow:v1", slow), `pluginConfig: {basic_auth_rules: [{prefix: "/", request_methods: ["GET"], credentials: ["a:b"]}]}`))
	eventually(t, 30*time.Second, "Envoy is sent the update", func() (bool, string) {
		out, _ := p.local(t, "status")
		return strings.Contains(out, "Ready ") && strings.Contains(out, "the version before"), out
	})
	if err := syscall.Kill(envoy, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	stopped(t, envoy)
	var first answer
	eventually(t, 20*time.Second, "an answer", func() (bool, string) {
		first, err = request(fresh, http.MethodGet, port, "/", nil)
		return err == nil, fmt.Sprint(err)
	})
	if first.code != 200 || len(appended(first)) != 1 {
		t.Errorf("the first answer: %d, tags %v, want the version before", first.code, appended(first))
	}
	eventually(t, 20*time.Second, "status says why it waits", func() (bool, string) {
		if a, err := request(fresh, http.MethodGet, port, "/", nil); err == nil && a.code == 401 {
			t.Log("the wait was over before we looked")
			return true, ""
		}
		out, code := p.local(t, "status")
		return code == 3 && strings.Contains(out, "Envoy ended while this version was being put in force") && strings.Contains(out, "next try in"), out
	})
	eventually(t, 60*time.Second, "the update is in force", func() (bool, string) {
		a, err := request(fresh, http.MethodGet, port, "/", nil)
		return err == nil && a.code == 401, fmt.Sprint(a.code, err)
	})
}

// held is an upstream that answers when it is told to, and counts what it was
// asked.
func held(t *testing.T, w *world) (arrived chan struct{}, release func(), asked *atomic.Int64) {
	t.Helper()
	asked = new(atomic.Int64)
	arrived = make(chan struct{}, 100)
	open := make(chan struct{})
	release = sync.OnceFunc(func() { close(open) })
	w.upstream.Close()
	w.upstream = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.URL.Path == "/held" {
			arrived <- struct{}{}
			select {
			case <-open:
			case <-r.Context().Done():
			}
		}
		_, _ = rw.Write([]byte("{}"))
	}))
	t.Cleanup(func() { release(); w.upstream.Close() })
	return arrived, release, asked
}

// An agent that is told to end under load loses no request that Envoy has taken:
// those held by the upstream end well, and every other that came to it is
// answered. What was not let in was refused, or reset before Envoy looked at it.
func TestStopUnderLoad(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	arrived, release, asked := held(t, w)
	port := freePort(t)
	p := w.agent(node{name: "a", flags: []string{"--drain", "20s"}}, w.gateway(listener{port: port, name: "in"}))
	const slow = 20
	results := make(chan error, slow)
	for range slow {
		go func() {
			a, err := request(fresh, http.MethodGet, port, "/held", nil)
			if err == nil && a.code != 200 {
				err = fmt.Errorf("status %d", a.code)
			}
			results <- err
		}()
	}
	for range slow {
		<-arrived
	}
	var load sync.WaitGroup
	answered, shut := make([]int, 6), make([]error, 6)
	for i := range answered {
		load.Go(func() {
			transport := &http.Transport{MaxIdleConnsPerHost: 1, DisableKeepAlives: i%2 == 0}
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport, Timeout: time.Minute}
			for {
				a, err := request(client, http.MethodGet, port, "/", nil)
				if err == nil && a.code != 200 {
					err = fmt.Errorf("status %d", a.code)
				}
				if err != nil {
					shut[i] = err
					return
				}
				answered[i]++
				time.Sleep(time.Millisecond) // bounds the load
			}
		})
	}
	began := time.Now()
	p.signal(t, syscall.SIGTERM)
	eventually(t, 10*time.Second, "it is unready", func() (bool, string) {
		_, why := status("http://" + p.admin + "/healthz/ready")
		return strings.Contains(why, "draining"), why
	})
	eventually(t, 10*time.Second, "nobody is let in", func() (bool, string) {
		conn, err := net.Dial("tcp", loopback(port))
		if err == nil {
			conn.Close()
		}
		return err != nil, "it is"
	})
	load.Wait()
	release()
	for range slow {
		if err := <-results; err != nil {
			t.Errorf("a request in flight: %v", err)
		}
	}
	total := int64(slow)
	for i, err := range shut {
		total += int64(answered[i])
		if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, io.EOF) {
			t.Errorf("client %d, after %d answers: %v", i, answered[i], err)
		}
	}
	if n := asked.Load(); n != total {
		t.Errorf("the upstream answered %d requests, the clients have %d answers", n, total)
	}
	<-p.done
	if p.err != nil {
		t.Errorf("the agent ended with %v", p.err)
	}
	t.Logf("%v answers, ended after %s", answered, time.Since(began).Round(time.Millisecond))
}

// What does not end by itself is ended: the agent takes the drain time and little
// more, and its Envoy is gone.
func TestStopIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	arrived, _, _ := held(t, w)
	port := freePort(t)
	p := w.agent(node{name: "a", flags: []string{"--drain", "2s"}}, w.gateway(listener{port: port, name: "in"}))
	envoy := p.pid(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = request(fresh, http.MethodGet, port, "/held", nil)
	}()
	<-arrived
	began := time.Now()
	p.signal(t, syscall.SIGTERM)
	<-p.done
	took := time.Since(began)
	<-done
	if p.err != nil || took < 2*time.Second || took > 7*time.Second+patience(5*time.Second) { // 5 s are its patience
		t.Errorf("the agent ended with %v after %s", p.err, took)
	}
	if syscall.Kill(envoy, 0) == nil {
		t.Error("Envoy runs still")
	}
}

// The store of a running agent can be listed, checked and trimmed; nothing that
// is in force is dropped.
func TestStoreOfRunningAgent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	for i, version := range []string{"old", "before", "new"} { // the one before stands by, for an undo
		w.apply(plugin("p", w.push(fmt.Sprintf("append:v%d", i), build(i)), tag(version)))
	}
	sees(t, port, "new")
	list, code := p.local(t, "store", "ls")
	if lines := strings.Count(list, "sha256:"); code != 0 || lines != 3 || strings.Count(list, "WasmPlugin/edge/p") != 1 {
		t.Fatalf("ls ends with %d:\n%s", code, list)
	}
	if out, code := p.local(t, "store", "verify"); code != 0 || !strings.Contains(out, "3 modules checked, 0 corrupt") {
		t.Errorf("verify ends with %d:\n%s", code, out)
	}
	if out, code := p.local(t, "store", "import", p.log); code != 1 || !strings.Contains(out, "an agent runs on this directory") {
		t.Errorf("import ends with %d:\n%s", code, out)
	}
	if out, code := p.local(t, "store", "trim", "--dry-run"); code != 0 || !strings.Contains(out, "1 module of") || len(wholeModules(t, p.modules())) != 3 {
		t.Errorf("a dry trim ends with %d:\n%s", code, out)
	}
	if out, code := p.local(t, "store", "trim"); code != 0 || !strings.Contains(out, "1 module of") || len(wholeModules(t, p.modules())) != 2 {
		t.Errorf("trim ends with %d:\n%s", code, out)
	}
	if list, _ := p.local(t, "store", "ls"); strings.Count(list, "sha256:") != 2 || strings.Count(list, "WasmPlugin/edge/p") != 1 {
		t.Errorf("after it:\n%s", list)
	}
	has(t, port, "new")
	// One bit, as disks do: another size the agent sees, and mends, within seconds.
	file := wholeModules(t, p.modules())[0]
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte{1}, 0)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if out, code := p.local(t, "store", "verify"); code != 3 || !strings.Contains(out, "1 corrupt") {
		t.Errorf("verify ends with %d:\n%s", code, out)
	}
	has(t, port, "new")
}
